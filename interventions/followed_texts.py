"""Which part of what `generate` has written so far occurs in an index, kept from step to step.

`generate` hands its processors and criteria ids, not states, and re-orders the rows of a beam
search as it likes. Where each row came from is read off the ids: it is the row before plus a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from ..data.corpus.match_state import MatchState, start
from ..data.corpus.suffix_index import Ids, SuffixIndex, as_ids
from ..models.errors import MnemoscopeError

Units = Callable[[int], Sequence[int]]
"""The index's ids of one token of the model: its UTF-8 bytes, where the index is over bytes."""


class FollowedTexts:
    """The match states of the rows of one generation, without their first `prompt_length` tokens.

    Every call but the first costs one step a row. Rows that no row of the call before leads to (a
    new generation, a text cut back) are read from the start.
    """

    def __init__(self, index: SuffixIndex, prompt_length: int, units: Units | None = None) -> None:
        self.index = index
        self.prompt_length = prompt_length
        self._units = units
        self._rows: list[bytes] = []
        self._state = start(index, 0)

    def __call__(self, ids: Int[Tensor, "row pos"]) -> MatchState:
        """The states of the rows. Raises `MnemoscopeError` for rows shorter than the prompt."""
        new = self.generated(ids)
        rows = [row.tobytes() for row in new]
        if rows != self._rows or not rows:
            self._state = self._continued(new, rows) or self._read(new)
            self._rows = rows
        return self._state

    def generated(self, ids: Int[Tensor, "row pos"]) -> Int[np.ndarray, "row new"]:
        """What stands behind the prompt."""
        return behind_prompt(ids, self.prompt_length)

    def units(self, tokens: Sequence[int] | Int64[np.ndarray, " n"]) -> list[int]:
        """Tokens of the model as ids of the index."""
        if self._units is not None:
            return [unit for token in tokens for unit in self._units(int(token))]
        return unknown_for_separator(self.index, tokens).tolist()

    @property
    def one_to_one(self) -> bool:
        """The index's ids are the model's own."""
        return self._units is None

    def _continued(self, new: Int[np.ndarray, "row new"], rows: list[bytes]) -> MatchState | None:
        known = {row: place for place, row in enumerate(self._rows)}
        origins = [known.get(row[: -new.itemsize]) for row in rows]
        found = [place for place in origins if place is not None]
        if new.shape[1] == 0 or len(found) < len(rows):
            return None
        return self._state.fork(found).extend([self.units(row[-1:]) for row in new])

    def _read(self, new: Int[np.ndarray, "row new"]) -> MatchState:
        return start(self.index, len(new)).extend([self.units(row) for row in new])


def behind_prompt(ids: Int[Tensor, "row pos"], prompt_length: int) -> Int[np.ndarray, "row new"]:
    """What was generated. Raises `MnemoscopeError` for rows shorter than the prompt."""
    if ids.shape[1] < prompt_length:
        raise MnemoscopeError(
            f"the rows have {ids.shape[1]} tokens, fewer than the prompt's {prompt_length}: give "
            "the padded width of the prompts as prompt_length."
        )
    return np.ascontiguousarray(ids[:, prompt_length:].cpu().numpy())


def unknown_for_separator(index: SuffixIndex, tokens: Ids) -> Int64[np.ndarray, " n"]:
    """Token ids with an id that occurs nowhere for the separator's: a model's table may be wider
    than its tokenizer's, and such an id is one more unknown token, not a reason to stop."""
    ids = as_ids(tokens)
    separator = index.info.separator
    return np.where(ids == separator, separator + 1, ids)
