"""Which answer does the model give, from memory or from the context? (RM, RC, RO, MR)

Greedy answers to conflict items under several conditions, classified by containment in the first
five words (ph3.md 1.5), with and without an intervention on the very same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars

from ..data.facts.conflicts import Condition, ConflictItem, Outcome, classify
from ..interventions.head_ablation import AnyEdit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.run import Run
from ..results.statistics import bootstrap_mean, mcnemar, paired_difference
from .elicitation import NEW_TOKENS, Progress, greedy_texts, silent

CONFLICTS: tuple[Condition, ...] = ("substitution", "coherent", "qa")
KINDS = ("memory", "context", "other")


@dataclass(frozen=True)
class Answer:
    """One greedy answer: the item, the condition, the text and what it counts as."""

    item_id: str
    subject: str
    condition: Condition
    text: str
    outcome: Outcome

    def row(self) -> dict[str, str | bool]:
        """The answer as one JSON-able row, so that every score can be recomputed."""
        return {
            "item": self.item_id,
            "subject": self.subject,
            "condition": self.condition,
            "text": self.text,
            "kind": self.outcome.kind,
            "both": self.outcome.both,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answer:
        """Read `row` back."""
        outcome = Outcome(row["kind"], row["both"])
        return cls(row["item"], row["subject"], row["condition"], row["text"], outcome)


@dataclass(frozen=True)
class Rate:
    """A share of items with its bootstrap interval over subjects."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Usage:
    """Shares of memory (RM), context (RC) and other (RO) answers, which sum to 1, and
    `mr = memory / (memory + context)` (NaN when neither occurs)."""

    condition: Condition
    n: int
    rm: Rate
    rc: Rate
    ro: Rate
    mr: float


def answer_items(
    model: HookedModel,
    items: Sequence[ConflictItem],
    conditions: Sequence[Condition],
    edits: Sequence[AnyEdit] = (),
    *,
    rows: int = 32,
    new_tokens: int = NEW_TOKENS,
    progress: Progress = silent,
) -> tuple[Answer, ...]:
    """Greedy answers of every item under every condition, all with the same edits in place.

    Raises `MnemoscopeError` without items, `EditNeverFiredError` when an edit changed nothing.
    """
    if not items:
        raise MnemoscopeError("no conflict items to answer.")
    asked = [(item, condition) for condition in conditions for item in items]
    prompts = [item.prompt(condition) for item, condition in asked]
    with model.intervene(edits):
        texts = greedy_texts(model, prompts, rows=rows, new_tokens=new_tokens, progress=progress)
    return tuple(
        Answer(item.id, item.subject, condition, text, _outcome(item, text))
        for (item, condition), text in zip(asked, texts, strict=True)
    )


def kept_answers(
    run: Run,
    label: str,
    model: HookedModel,
    items: Sequence[ConflictItem],
    conditions: Sequence[Condition],
    edits: Sequence[AnyEdit] = (),
) -> tuple[Answer, ...]:
    """`answer_items` as one unit of a run: asked once, kept, and read back after that."""
    if label not in run.done:
        run.check_cancelled()
        given = answer_items(model, items, conditions, edits)
        run.append(label, {"answers": [answer.row() for answer in given]})
        return given
    return tuple(Answer.from_row(row) for row in run.done[label]["answers"])


def usage(answers: Sequence[Answer], condition: Condition, *, seed: int = 0) -> Usage:
    """RM, RC, RO and MR under one condition. Raises `MnemoscopeError` when it was not asked."""
    chosen = [answer for answer in answers if answer.condition == condition]
    if not chosen:
        raise MnemoscopeError(f"no answers under the condition {condition!r}.")
    hits = np.array([[a.outcome.kind == kind for kind in KINDS] for a in chosen], dtype=float)
    interval = bootstrap_mean(hits, [a.subject for a in chosen], seed=seed)
    rm, rc, ro = (
        Rate(float(interval.mean[i]), float(interval.low[i]), float(interval.high[i]))
        for i in range(3)
    )
    told = hits[:, :2].sum()
    mr = float(hits[:, 0].sum() / told) if told else math.nan
    return Usage(condition, len(chosen), rm, rc, ro, mr)


def balanced(answers: Sequence[Answer], condition: Condition, *, seed: int = 0) -> frozenset[str]:
    """Ids of equally many memory-answered and context-answered items (ph3.md 1.5).

    Chosen by the *unpruned* model's answers, at random with the seed. Raises `MnemoscopeError`
    when one of the two kinds never occurs. Report the natural set beside it: balancing by
    behaviour inflates headline gains.
    """
    ids = {
        kind: [a.item_id for a in answers if a.condition == condition and a.outcome.kind == kind]
        for kind in ("memory", "context")
    }
    n = min(map(len, ids.values()))
    if n == 0:
        raise MnemoscopeError(
            f"no balanced set under {condition!r}: {len(ids['memory'])} items are answered from "
            f"memory and {len(ids['context'])} from context."
        )
    rng = np.random.default_rng(seed)
    return frozenset(str(i) for group in ids.values() for i in rng.permutation(sorted(group))[:n])


def restrict(answers: Sequence[Answer], ids: frozenset[str]) -> tuple[Answer, ...]:
    """The answers to the items named."""
    return tuple(answer for answer in answers if answer.item_id in ids)


@dataclass(frozen=True)
class Comparison:
    """Change of one rate between two sets of answers to the same items, after minus before.

    `p` is the paired sign-flip test over subjects, `mcnemar_p` the exact test over items.
    """

    change: Rate
    p: float
    mcnemar_p: float


def compare(
    before: Sequence[Answer],
    after: Sequence[Answer],
    condition: Condition,
    kind: str,
    *,
    seed: int = 0,
) -> Comparison:
    """Did the share of `kind` answers change? The items of both must be the same."""
    a, b = _by_item(before, condition), _by_item(after, condition)
    if not a or set(a) != set(b):
        raise MnemoscopeError(f"the answers under {condition!r} are not to the same items.")
    ids = sorted(a)
    was = np.array([a[i].outcome.kind == kind for i in ids])
    now = np.array([b[i].outcome.kind == kind for i in ids])
    subjects = [a[i].subject for i in ids]
    paired = paired_difference(now.astype(float), was.astype(float), subjects, seed=seed)
    interval = paired.interval
    change = Rate(float(interval.mean), float(interval.low), float(interval.high))
    return Comparison(change, float(paired.p), mcnemar(was, now).p)


def rates_table(answers: Mapping[str, Sequence[Answer]], *, seed: int = 0) -> polars.DataFrame:
    """Tidy rows (label, condition, answer, rate, low, high, mr, n) of several sets of answers;
    `mr` is the same for the three answers of a condition, and null where neither is given."""
    rows = []
    for label, given in answers.items():
        for condition in dict.fromkeys(a.condition for a in given):
            used = usage(given, condition, seed=seed)
            for kind, rate in zip(KINDS, (used.rm, used.rc, used.ro), strict=True):
                rows.append(
                    {
                        "label": label,
                        "condition": condition,
                        "answer": kind,
                        "rate": rate.value,
                        "low": rate.low,
                        "high": rate.high,
                        "mr": None if math.isnan(used.mr) else used.mr,
                        "n": used.n,
                    }
                )
    return polars.DataFrame(rows)


def _outcome(item: ConflictItem, text: str) -> Outcome:
    return classify(text, item.mem_aliases, [item.ctx_answer])


def _by_item(answers: Sequence[Answer], condition: Condition) -> dict[str, Answer]:
    return {a.item_id: a for a in answers if a.condition == condition}
