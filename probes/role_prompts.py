"""Where an entity is read as a subject, read as an object and predicted, token by token.

Each pair gives one row of tokens a wording and direction: the prompt with the asked name written
behind it. Causal attention keeps the name out of the prompt's own positions, so a row shows three
roles at once (Wang & Sun 2025 mix them up; here they stay apart):

- `S`, perceived subject: the last token of the *named* entity in the prompt;
- `P`, predicted object: END of the prompt, where the *asked* entity's first token is emitted and
  nothing of it has been read; `P_mean`: the mean over the positions that predict each of its
  tokens, of which END is the first;
- `O`, perceived object: the last token of the asked entity, written behind the prompt.

Reverse prompts name `b` and ask for `a`; forward prompts name `a` and ask for `b`. So `S` of `b`
comes from reverse prompts, `P` and `O` of `b` from forward ones, and for `a` it is the mirror.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.facts.pairs import WAYS, Pair, PairRelation, Way, with_pairs
from ..models.errors import PromptError
from ..models.hooked import HookedModel
from ..models.token_cuts import token_cuts

Entity = Literal["a", "b"]
ENTITIES: tuple[Entity, ...] = ("a", "b")
Role = Literal["S", "O", "P", "P_mean"]
ROLES: tuple[Role, ...] = ("S", "O", "P", "P_mean")

MERGED = "name merges with its wording"
OTHER_CARRIER = "wording reads differently"


def way_of(entity: Entity, role: Role) -> Way:
    """The direction of the prompts that show an entity in a role."""
    return "forward" if (entity == "a") == (role == "S") else "reverse"


@dataclass(frozen=True)
class RoleRow:
    """A prompt and the asked name behind it; offsets count from the row's first token."""

    ids: tuple[int, ...]
    named: tuple[int, int]
    """Tokens of the named entity: first, one after the last."""
    end: int
    """END of the prompt: the last token before the asked name."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the prompt alone."""
        return self.ids[: self.end + 1]

    @property
    def answer(self) -> tuple[int, ...]:
        """Token ids of the asked name."""
        return self.ids[self.end + 1 :]

    def offsets(self, role: Role) -> tuple[int, ...]:
        """Offsets of the tokens that show the role: one, or for `P_mean` one a name token."""
        last = len(self.ids) - 1
        single = {"S": self.named[1] - 1, "O": last, "P": self.end}
        return tuple(range(self.end, last)) if role == "P_mean" else (single[role],)


@dataclass(frozen=True)
class RolePrompts:
    """The rows of both directions, `rows[way][wording][pair]`, for the pairs that were kept."""

    relation: PairRelation
    """The wordings, and the kept pairs in their order."""
    kept: tuple[int, ...]
    """Their indices among the pairs given."""
    dropped: dict[str, int]
    """How many pairs fell away, by reason."""
    forward: tuple[tuple[RoleRow, ...], ...]
    reverse: tuple[tuple[RoleRow, ...], ...]
    in_context: bool = False
    """Whether each prompt opens with the fact itself, stated in the other direction."""

    def rows(self, way: Way) -> tuple[tuple[RoleRow, ...], ...]:
        """The rows of one direction, `[wording][pair]`."""
        return self.forward if way == "forward" else self.reverse

    def showing(self, entity: Entity, role: Role) -> tuple[tuple[RoleRow, ...], ...]:
        """The rows that show an entity in a role, `[wording][pair]`."""
        return self.rows(way_of(entity, role))

    def positions(self, entity: Entity, role: Role, wording: int) -> tuple[tuple[int, ...], ...]:
        """Offsets of the role in each pair's row, as `Edit.positions` takes them."""
        return tuple(row.offsets(role) for row in self.showing(entity, role)[wording])


def role_prompts(
    model: HookedModel,
    relation: PairRelation,
    pairs: Sequence[Pair] | None = None,
    *,
    in_context: bool = False,
) -> RolePrompts:
    """Token rows and role offsets of the pairs (all of the relation's) in every wording.

    In a wording all pairs share the tokens before and after the name, so that only the name
    differs. Pairs whose name merges with the text around it, or makes that text read differently
    in tokens, are dropped in all wordings and counted. With `in_context` each prompt opens with
    the same fact stated in the other direction ("A's mother is B. B's child is").

    Raises `PromptError` for a wording with nothing behind its name (there `S` and `P` would be one
    token), for rows longer than the model's context, and when fewer than two pairs are left.
    """
    given = relation.pairs if pairs is None else tuple(pairs)
    _check(relation, given)
    found = {
        (way, wording): _wording_rows(model, relation, given, way, wording, in_context)
        for way in WAYS
        for wording in range(len(relation.wordings(way)))
    }
    flaws = {pair: why for _, flawed in found.values() for pair, why in flawed.items()}
    dropped = dict(Counter(flaws.values()))
    kept = tuple(i for i in range(len(given)) if i not in flaws)
    if len(kept) < 2:
        raise PromptError(
            f"{len(kept)} of {len(given)} pairs of {relation.name!r} can be read in the tokens of "
            f"{model.name} (dropped: {dropped}), but at least 2 are needed: put spaces around the "
            "names in its wordings, or give more pairs."
        )
    forward, reverse = (
        tuple(
            tuple(found[way, wording][0][i] for i in kept)
            for wording in range(len(relation.wordings(way)))
        )
        for way in WAYS
    )
    longest = max((row.ids for rows in (*forward, *reverse) for row in rows), key=len)
    model.batch([longest])  # raises where it is longer than the context
    of_kept = with_pairs(relation, [given[i] for i in kept])
    return RolePrompts(of_kept, kept, dropped, forward, reverse, in_context)


def _check(relation: PairRelation, pairs: Sequence[Pair]) -> None:
    if any(not name.strip() for pair in pairs for name in (pair.a, pair.b)):
        raise PromptError(f"a pair of {relation.name!r} has an empty name: leave it out.")
    for text in (*relation.forward, *relation.reverse):
        if not re.split(r"\{[ab]\}", text)[-1].strip():
            raise PromptError(
                f"the wording {text!r} of {relation.name!r} ends with its name, so reading it and "
                "predicting the other would be one token: put words behind it."
            )


def _wording_rows(
    model: HookedModel,
    relation: PairRelation,
    pairs: Sequence[Pair],
    way: Way,
    wording: int,
    in_context: bool,
) -> tuple[dict[int, RoleRow], dict[int, str]]:
    """One wording's rows, and what is wrong with the pairs that have none, by index of the pair."""
    if not pairs:
        return {}, {}
    texts = [_text(relation, pair, way, wording, in_context) for pair in pairs]
    read = token_cuts(model.text_tokenizer, *zip(*texts, strict=True))
    rows: dict[int, RoleRow] = {}
    carriers: dict[int, tuple[tuple[int, ...], ...]] = {}
    for i, (ids, cuts) in enumerate(read):
        if cuts is not None:
            front, start, stop, end = cuts
            rows[i] = RoleRow(tuple(ids), (start, stop), end - 1)
            carriers[i] = (tuple(ids[front:start]), tuple(ids[stop:end]))
    usual = Counter(carriers.values()).most_common(1)
    flaws = {i: MERGED for i in range(len(pairs)) if i not in rows}
    flaws |= {i: OTHER_CARRIER for i, carrier in carriers.items() if carrier != usual[0][0]}
    return rows, flaws


def _text(
    relation: PairRelation, pair: Pair, way: Way, wording: int, in_context: bool
) -> tuple[str, tuple[int, int, int, int]]:
    """The text of a row, and where its prompt's wording, name, name's end and end stand."""
    told = _statement(relation, pair, way, wording) if in_context else ""
    prompt = relation.prompt(pair, way, wording)
    start, stop = relation.name_span(pair, way, wording)
    cuts = (0, start, stop, len(prompt))
    front, first, last, end = (len(told) + cut for cut in cuts)
    return f"{told}{prompt} {pair.asked(way)}", (front, first, last, end)


def _statement(relation: PairRelation, pair: Pair, way: Way, wording: int) -> str:
    """The fact in the other direction, as a sentence before a prompt of this one."""
    other: Way = "reverse" if way == "forward" else "forward"
    wording %= len(relation.wordings(other))
    return f"{relation.prompt(pair, other, wording)} {pair.asked(other)}. "
