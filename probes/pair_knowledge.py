"""Which pairs does *this* model know, in one direction? The filter before every binding probe.

A pair is known when its answer is likelier than 95 % of the other pairs' answers after the same
prompt (reversal_binding.md, section 3.5), or, stricter, when greedy decoding gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from ..data.facts.answers import classify
from ..data.facts.pairs import PairRelation, Way, usable_pairs, with_pairs
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from .elicitation import NEW_TOKENS, Progress, greedy_texts, silent
from .name_scores import ranks_of, rivals, score_names

SHARE = 0.95
"""Share of other answers that a known one is likelier than."""
RIVALS = 40
"""Other answers that each right one is compared with, drawn at random where there are more."""
MIN_PAIRS = 64
Rule = Literal["percentile", "greedy"]


@dataclass(frozen=True, eq=False)
class KnownPairs:
    """The pairs that a model knows in one direction, and how that was judged.

    `relation` holds the known pairs only, `asked` all that were asked. `scores` are, by the rule,
    the share of other answers that are less likely than the right one, or 1 where greedy decoding
    gives it and 0 elsewhere; a pair is known where it reaches the rule's threshold in half of the
    wordings. `dropped` counts what fell away, by reason.
    """

    relation: PairRelation
    asked: PairRelation
    way: Way
    rule: Rule
    wordings: tuple[int, ...]
    scores: Float[np.ndarray, "wording pair"]
    dropped: dict[str, int]

    @property
    def known(self) -> Bool[np.ndarray, " pair"]:
        """Which of the asked pairs are known."""
        return _known(self.scores)

    def table(self) -> pl.DataFrame:
        """One row a wording and pair: pair, its strata, score, and whether the pair is known."""
        shape = self.scores.shape
        pairs = [pair for _ in self.wordings for pair in self.asked.pairs]
        return pl.DataFrame(
            {
                "way": [self.way] * len(pairs),
                "wording": np.repeat(self.wordings, shape[1]),
                "a": [pair.a for pair in pairs],
                "b": [pair.b for pair in pairs],
                "told": [pair.told for pair in pairs],
                "group": [pair.group for pair in pairs],
                "score": self.scores.ravel(),
                "known": np.broadcast_to(self.known, shape).ravel(),
            }
        )


def known_pairs(
    model: HookedModel,
    relation: PairRelation,
    *,
    way: Way = "forward",
    rule: Rule = "percentile",
    wordings: Sequence[int] = (0,),
    min_pairs: int = MIN_PAIRS,
    progress: Progress = silent,
) -> KnownPairs:
    """The pairs of the relation that the model knows in this direction, in their order.

    Only pairs that can be asked both ways count (`usable_pairs`). Up to `RIVALS` other pairs'
    answers are compared with, none that holds the right one or is held by it. Cost: each prompt
    once, and the answers that could win behind it. Raises `MnemoscopeError` when fewer than
    `min_pairs` remain, `PromptError` for names that merge with a prompt.
    """
    if rule not in get_args(Rule) or not wordings:
        raise MnemoscopeError(
            f"rule {rule!r} with wordings {tuple(wordings)} judges nothing: use 'percentile' or "
            "'greedy', and one wording at least."
        )
    usable = usable_pairs(relation)
    asked, judge = usable.relation, _shares if rule == "percentile" else _given
    total = len(wordings) * len(asked.pairs)
    scores = np.stack(
        [
            judge(model, asked, way, wording, part_of(progress, i * len(asked.pairs), total))
            for i, wording in enumerate(wordings)
        ]
    )
    known = _known(scores)
    if known.sum() < min_pairs:
        raise MnemoscopeError(
            f"{model.name} knows {known.sum()} of {len(known)} pairs of {asked.name!r} {way}, "
            f"fewer than the {min_pairs} that are needed: try another relation, a larger model, "
            "the rule 'percentile', or a smaller min_pairs."
        )
    dropped = usable.dropped | ({"not known": int((~known).sum())} if not known.all() else {})
    kept = with_pairs(asked, [pair for pair, is_ in zip(asked.pairs, known, strict=True) if is_])
    return KnownPairs(kept, asked, way, rule, tuple(wordings), scores, dropped)


def gives(text: str, answers: Sequence[str]) -> bool:
    """Whether a greedy continuation gives one of the answers whole, near its beginning."""
    words = max(5, *(len(answer.split()) for answer in answers))
    return classify(text, answers, [], words).kind == "memory"


def tokens_for(model: HookedModel, names: Sequence[str]) -> int:
    """How many new tokens leave room for any of the names and a word or two before it."""
    tokenizer = model.text_tokenizer
    longest = max(
        len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in names
    )
    return max(NEW_TOKENS, longest + 3)


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """The progress of a part of the work, told as progress of the whole."""
    return lambda done, _: progress(before + done, total)


def _shares(
    model: HookedModel, relation: PairRelation, way: Way, wording: int, progress: Progress
) -> Float[np.ndarray, " pair"]:
    """Share of the other answers that are less likely than the right one."""
    prompts = [relation.prompt(pair, way, wording) for pair in relation.pairs]
    names = [pair.asked(way) for pair in relation.pairs]
    own, among = range(len(names)), _some(rivals(names))
    whole = [(i,) for i in own]
    scores = score_names(model, prompts, names, whole=whole, among=among, progress=progress)
    return 1 - (ranks_of(scores, own, among) - 1) / np.maximum(1, among.sum(axis=1))


def _some(
    among: Bool[np.ndarray, "prompt name"],
) -> Bool[np.ndarray, "prompt name"]:
    """`RIVALS` of each prompt's names, the same ones every time: all take part equally often."""
    order = np.random.default_rng(0).random(among.shape)
    place = np.where(among, order, np.inf).argsort(axis=1).argsort(axis=1)
    return np.asarray(among & (place < RIVALS))


def _given(
    model: HookedModel, relation: PairRelation, way: Way, wording: int, progress: Progress
) -> Float[np.ndarray, " pair"]:
    """1 where greedy decoding gives the right answer."""
    prompts = [relation.prompt(pair, way, wording) for pair in relation.pairs]
    room = tokens_for(model, [pair.asked(way) for pair in relation.pairs])
    texts = greedy_texts(model, prompts, new_tokens=room, progress=progress)
    return np.array(
        [
            float(gives(text, pair.answers(way)))
            for text, pair in zip(texts, relation.pairs, strict=True)
        ]
    )


def _known(scores: Float[np.ndarray, "wording pair"]) -> Bool[np.ndarray, " pair"]:
    """Scores of both rules pass at `SHARE`: greedy ones are 0 or 1."""
    return np.asarray((scores >= SHARE).mean(axis=0) >= 0.5)
