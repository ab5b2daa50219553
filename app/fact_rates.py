"""How often a changed model still answers from memory, or follows a context: many facts at once.

Greedy answers to facts that the model knows, alone and behind a sentence that says otherwise: as
the model is, changed, and under the same change of random heads or units. No page here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars

from ..cli.scoring import relation_named
from ..data.facts.conflicts import Condition, ConflictItem
from ..data.facts.items import split_subjects
from ..models.hooked import HookedModel
from ..probes.elicitation import conflict_items
from ..probes.knowledge_conflict import Answer, answer_items, compare, usage
from .switched_off import Means, Switched, edits_in

FACTS = 24
"""Subjects that are asked about; those that the model does not know fall away."""
NEW_TOKENS = 10
CONDITIONS: tuple[Condition, ...] = ("closed", "substitution")
QUANTITIES: tuple[tuple[Condition, str, str], ...] = (
    ("closed", "memory", "recalls the fact, no context"),
    ("substitution", "memory", "answers from memory against a context"),
    ("substitution", "context", "follows the context"),
)
"""Condition, kind of answer, and the words for its share."""
INSIDE, OUTSIDE = "not better than random", "outside the random range"

Answers = tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class FactRates:
    """Answers to the same items: of the model as it is, changed, and under each random change."""

    before: Answers
    after: Answers
    drawn: tuple[Answers, ...]

    @property
    def items(self) -> int:
        """How many facts are asked."""
        return len({answer.item_id for answer in self.before})


def known_facts(model: HookedModel, relation: str, subjects: int) -> tuple[ConflictItem, ...]:
    """Facts of the relation's test part that the model answers right without a context.

    Raises `MnemoscopeError` when it knows none.
    """
    found = relation_named(relation)
    facts = split_subjects(found, 0)["test"][:subjects]
    return conflict_items(model, found, facts).items


def fact_answers(
    model: HookedModel, items: Sequence[ConflictItem], switched: Switched, means: Means
) -> Answers:
    """Greedy answers without a context and behind one that says otherwise."""
    return answer_items(
        model, items, CONDITIONS, edits_in(switched, 0, means), new_tokens=NEW_TOKENS
    )


def rate_table(found: FactRates) -> polars.DataFrame:
    """A row a quantity: `share of answers`, `verdict`, `unchanged`, `changed`, the `change` with
    its 95 % interval over subjects (`low`, `high`), `p` (paired sign flips), and the changes that
    random sets make at the least and the most (`random, low`, `random, high`)."""
    rows = []
    for condition, kind, words in QUANTITIES:
        was, now, *drawn = (
            _rate(answers, condition, kind) for answers in (found.before, found.after, *found.drawn)
        )
        told = compare(found.before, found.after, condition, kind)
        low, high = (min(drawn) - was, max(drawn) - was) if drawn else (None, None)
        inside = low is None or high is None or low <= told.change.value <= high
        rows.append(
            {
                "share of answers": words,
                "verdict": INSIDE if inside else OUTSIDE,
                "unchanged": was,
                "changed": now,
                "change": told.change.value,
                "low": told.change.low,
                "high": told.change.high,
                "p": told.p,
                "random, low": low,
                "random, high": high,
            }
        )
    return polars.DataFrame(rows)


def _rate(answers: Answers, condition: Condition, kind: str) -> float:
    used = usage(answers, condition)
    return (used.rm if kind == "memory" else used.rc).value
