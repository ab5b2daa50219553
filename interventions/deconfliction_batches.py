"""What the deconfliction losses need to know of each answer, found once, in the data collator.

Only answers are traced, never prompts. What is found travels as plain tensors whose first axis is
the batch, so that it goes wherever the rest of the batch goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..data.corpus.match_state import MatchState, start
from ..data.corpus.span_scores import RiskRule
from ..data.corpus.suffix_index import SuffixIndex
from ..models.errors import MnemoscopeError
from ..models.tokens import pad
from .deconfliction_losses import Risks
from .followed_texts import unknown_for_separator

Answers = Literal["both", "chosen"]
Pair = Mapping[str, Any]

_COLUMNS = ("weights", "levels", "positions", "tokens", "values")


@dataclass(frozen=True)
class RiskSpan:
    """Tokens `start` to before `stop`; `risk` is the span's score less the threshold."""

    start: int
    stop: int
    risk: float


@dataclass(frozen=True)
class RiskStep:
    """At `position`, `token` would complete a span of that `risk`."""

    position: int
    token: int
    risk: float


@dataclass(frozen=True, eq=False)
class RiskTracer:
    """Finds the risky spans of a text, and the steps that would lead it into one.

    `full_risk` is the risk from which a span weighs 1 (tracealign.md 1.6 takes the threshold
    itself). Of a context that occurs more than `next_limit` times, that many places are sampled for
    their next tokens. The index holds the model's own ids.

    Raises `MnemoscopeError` for a `full_risk` that is not positive, and for a rule that takes
    spans of one token: every token of the corpus would be a step.
    """

    index: SuffixIndex
    rule: RiskRule
    full_risk: float
    next_limit: int = 1000

    def __post_init__(self) -> None:
        if self.full_risk <= 0 or self.rule.min_length < 2:
            raise MnemoscopeError(
                f"full_risk ({self.full_risk}) must be positive and the rule's min_length "
                f"({self.rule.min_length}) at least 2."
            )

    def spans(self, ids: Sequence[int]) -> tuple[RiskSpan, ...]:
        """The risky ones of the longest spans of a text."""
        known = unknown_for_separator(self.index, ids)
        found = self.index.maximal_spans(known, min_length=self.rule.min_length)
        risks = [self.rule.risk(known[s.start : s.stop], s.stop - s.start, s.count) for s in found]
        return tuple(
            RiskSpan(s.start, s.stop, risk - self.rule.threshold)
            for s, risk in zip(found, risks, strict=True)
            if risk > self.rule.threshold
        )

    def steps(self, ids: Sequence[int]) -> tuple[RiskStep, ...]:
        """The tokens at each place that would complete a risky span, taken by the text or not."""
        known, state = unknown_for_separator(self.index, ids), start(self.index)
        found: list[RiskStep] = []
        for position, token in enumerate(known.tolist()):
            if int(state.longest[0]) + 1 >= self.rule.min_length:
                found += self._steps_at(state, known[:position])
            state = state.advance([token])
        return tuple(found)

    def weight(self, risk: float) -> float:
        """`min(1, risk / full_risk)`."""
        return min(1.0, risk / self.full_risk)

    def _steps_at(self, state: MatchState, before: Int[np.ndarray, " n"]) -> list[RiskStep]:
        # Whatever follows a longer match also follows the shortest one that is long enough.
        shortest = before[len(before) - self.rule.min_length + 1 :]
        following = self.index.next_tokens(shortest, limit=self.next_limit).tokens
        lengths, counts = state.candidates(following[None], self.rule.min_length)
        found = []
        for token, length, count in zip(
            following.tolist(), lengths[0].tolist(), counts[0].tolist(), strict=True
        ):
            risk = self.rule.risk([*before[len(before) - length + 1 :], token], length, count)
            if risk > self.rule.threshold:
                found.append(RiskStep(len(before), token, risk - self.rule.threshold))
        return found


@dataclass(frozen=True, eq=False)
class RiskCollator:
    """Adds the risks of a batch (`risk_*`) to what another collator makes of the examples.

    The other one gives `input_ids` and `completion_mask`, chosen answers first: TRL's preference
    collator does, and so does `PairCollator`. With `answers="chosen"` only the preferred answer
    is made less likely, which takes back rewarded memorisation and leaves the rest to DPO.
    """

    pairs: Callable[[list[Any]], dict[str, Tensor]]
    tracer: RiskTracer
    answers: Answers = "both"

    def __call__(self, examples: list[Any]) -> dict[str, Tensor]:
        """The batch with the columns that `take_risks` reads."""
        batch = self.pairs(examples)
        risks = trace_batch(self.tracer, batch["input_ids"], batch["completion_mask"], self.answers)
        return batch | {f"risk_{name}": getattr(risks, name) for name in _COLUMNS}


@dataclass(frozen=True)
class PairCollator:
    """Pairs of `prompt_ids`, `chosen_ids` and `rejected_ids` as one batch, padded on the right:
    chosen answers first, laid out as TRL does it, for a plain training loop."""

    pad_id: int = 0

    def __call__(self, examples: list[Pair]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `completion_mask`, `[2 * pair, pos]`."""
        rows = [
            (list(one["prompt_ids"]), list(one[answer]))
            for answer in ("chosen_ids", "rejected_ids")
            for one in examples
        ]
        batch = pad([prompt + answer for prompt, answer in rows], self.pad_id, side="right")
        places = torch.arange(batch.ids.shape[1])
        starts = torch.tensor([len(prompt) for prompt, _ in rows])
        completion = batch.mask & (places >= starts[:, None])
        return {
            "input_ids": batch.ids,
            "attention_mask": batch.mask.long(),
            "completion_mask": completion.long(),
        }


def take_risks(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Risks]:
    """A batch without its `risk_*` columns, and these. Raises `MnemoscopeError` without them."""
    names = {f"risk_{name}": name for name in _COLUMNS}
    missing = [column for column in names if column not in batch]
    if missing:
        raise MnemoscopeError(f"the batch has no {missing[0]}: make batches with a RiskCollator.")
    rest = {key: value for key, value in batch.items() if key not in names}
    return rest, Risks(**{name: batch[column] for column, name in names.items()})


def trace_batch(
    tracer: RiskTracer,
    ids: Int[Tensor, "batch pos"],
    answer_mask: Int[Tensor, "batch pos"],
    answers: Answers = "both",
) -> Risks:
    """The risks of the answers that the mask marks, one unbroken stretch a row.

    `levels` are those of all answers, whichever `answers` are to become less likely.
    """
    weights, levels = torch.zeros(ids.shape), torch.zeros(len(ids))
    steps: list[list[RiskStep]] = [[] for _ in ids]
    for row, (answer, first) in enumerate(_answers(ids, answer_mask)):
        spans = tracer.spans(answer)
        levels[row] = max((span.risk for span in spans), default=0.0)
        if answers == "chosen" and row >= len(ids) // 2:
            continue
        for span in spans:
            weights[row, first + span.start : first + span.stop] += tracer.weight(span.risk)
        steps[row] = [
            RiskStep(first + step.position, step.token, step.risk) for step in tracer.steps(answer)
        ]
    return Risks(weights, levels, *_padded(steps))


def _answers(
    ids: Int[Tensor, "batch pos"], answer_mask: Int[Tensor, "batch pos"]
) -> list[tuple[list[int], int]]:
    """Each row's answer and the place of its first token."""
    found = []
    for row, mask in zip(ids, answer_mask.bool(), strict=True):
        first = int(mask.int().argmax())
        found.append((row[mask].tolist(), first))
    return found


def _padded(steps: list[list[RiskStep]]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, tokens and risks `[batch, k]`; a padded cell has risk 0 and a position of 1."""
    wide = max(1, *map(len, steps))
    filled = [[*row, *[RiskStep(1, 0, 0.0)] * (wide - len(row))] for row in steps]
    return (
        torch.tensor([[step.position for step in row] for row in filled]),
        torch.tensor([[step.token for step in row] for row in filled]),
        torch.tensor([[step.risk for step in row] for row in filled]),
    )
