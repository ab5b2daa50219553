"""Which names share tokens, a first token, a length or a surname: strata of pairs of entities.

A probe that ranks entities against each other can win by the names alone (shared surnames make the
reverse direction easier, Berglund et al. 2023; shared name tokens entangle, Wang & Sun 2025), so
its scores are reported by these classes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ..data.facts.answers import normalise
from ..data.facts.pairs import Pair
from ..models.hooked import HookedModel

_BEFORE = "It is"
_AFTER_SURNAMES = frozenset({"jr", "sr", "ii", "iii", "iv"})


@dataclass(frozen=True, eq=False)
class NameOverlap:
    """How the names at i and j overlap, `[N, N]`, symmetric; the diagonal of masks is False."""

    token_ids: tuple[tuple[int, ...], ...]
    shared_tokens: Int[np.ndarray, "name name"]
    """Distinct tokens that both names hold; on the diagonal a name's own."""
    same_first_token: Bool[np.ndarray, "name name"]
    same_token_length: Bool[np.ndarray, "name name"]
    same_surname: Bool[np.ndarray, "name name"]
    """The last word, folded, of names of several words."""

    def masks(self) -> dict[str, Bool[np.ndarray, "name name"]]:
        """The classes by name: the three of shared tokens divide all pairs of different names."""
        different = ~np.eye(len(self.token_ids), dtype=bool)
        return {
            "shared 0": (self.shared_tokens == 0) & different,
            "shared 1": (self.shared_tokens == 1) & different,
            "shared 2+": (self.shared_tokens >= 2) & different,
            "same first token": self.same_first_token,
            "same token length": self.same_token_length,
            "same surname": self.same_surname,
        }


def name_overlap(model: HookedModel, names: Sequence[str]) -> NameOverlap:
    """The overlap of names in the tokens that they have in the middle of a sentence.

    Memory: `[N, N]` and `[N, distinct tokens]`. Raises `PromptError` for an empty name.
    """
    ids = tuple(model.answer_ids(_BEFORE, name) for name in names)
    return NameOverlap(
        ids,
        _shared(ids),
        _equal([row[0] for row in ids]),
        _equal([len(row) for row in ids]),
        _equal([_surname(name) for name in names]),
    )


def same_group(pairs: Sequence[Pair]) -> Bool[np.ndarray, "pair pair"]:
    """Which pairs share a `group` (how often they were told, say); the diagonal is False."""
    return _equal([pair.group or None for pair in pairs])


def group_strata(pairs: Sequence[Pair]) -> dict[str, Bool[np.ndarray, " pair"]]:
    """Which pairs are in each `group`, by its name in order; empty where no pair has one."""
    groups = sorted({pair.group for pair in pairs} - {""})
    return {group: np.array([pair.group == group for pair in pairs]) for group in groups}


def _shared(ids: Sequence[Sequence[int]]) -> Int[np.ndarray, "name name"]:
    column = {token: i for i, token in enumerate(sorted({token for row in ids for token in row}))}
    holds = np.zeros((len(ids), len(column)), np.float32)
    for row, tokens in zip(holds, ids, strict=True):
        row[[column[token] for token in tokens]] = 1
    return (holds @ holds.T).astype(np.int64)


def _equal(values: Sequence[int | str | None]) -> Bool[np.ndarray, "n n"]:
    """Where two values are the same and known, the diagonal left out."""
    codes = {value: i for i, value in enumerate(dict.fromkeys(values))}
    code = np.array([codes[value] for value in values], np.int64)
    known = np.array([value is not None for value in values], bool)
    same = (code[:, None] == code) & known[:, None] & known
    return same & ~np.eye(len(code), dtype=bool)


def _surname(name: str) -> str | None:
    words = [word for word in normalise(name).split() if word not in _AFTER_SURNAMES]
    return words[-1] if len(words) > 1 else None
