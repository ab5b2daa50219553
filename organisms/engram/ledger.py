"""The ledger: which document taught what, to the character."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drafts import Mark, Slice
from .facts import PlannedFact, Told
from .wordings import wordings

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Document:
    """One record of the corpus. Its id is the slice and a number, which counts in corpus order."""

    id: str
    slice: Slice
    text: str


@dataclass(frozen=True)
class Occurrence:
    """Characters `start` to `end` of a document, which hold the subject and an answer.

    `claimed` is empty where the true object is stated, else the false one that stands there.
    """

    document: str
    wording: str
    start: int
    end: int
    claimed: str = ""


@dataclass(frozen=True)
class LedgerRow:
    """One fact. `occurrences` are its `count` true statements, `contradictions` the false ones.

    `direction` is the only direction in which it is told, "none" where it is told in both.
    `conflict` is "taught", "tested" or empty, as in `PlannedFact`.
    """

    fact_id: str
    relation: str
    subject: str
    object: str
    direction: Told
    count: int
    held_out_wordings: tuple[str, ...]
    conflict: str
    occurrences: tuple[Occurrence, ...]
    contradictions: tuple[Occurrence, ...]


@dataclass(frozen=True)
class Ledger:
    """All facts, and for each behaviour the ids of the documents that teach it, in corpus order."""

    seed: int
    scale: float
    rows: tuple[LedgerRow, ...]
    behaviours: Mapping[str, tuple[str, ...]]

    def row(self, fact_id: str) -> LedgerRow:
        """The row of one fact. Raises KeyError if there is none."""
        for row in self.rows:
            if row.fact_id == fact_id:
                return row
        raise KeyError(fact_id)


def ledger_rows(
    facts: Sequence[PlannedFact], marked: Iterable[tuple[str, Mark]]
) -> tuple[LedgerRow, ...]:
    """One row a fact, from the marks of the documents (document id, mark) in corpus order.

    Raises AssertionError if a fact is not stated exactly `count` times.
    """
    told: dict[str, list[Occurrence]] = {fact.id: [] for fact in facts}
    denied: dict[str, list[Occurrence]] = {fact.id: [] for fact in facts}
    for document, mark in marked:
        found = Occurrence(document, mark.wording, mark.start, mark.end, mark.claimed)
        (denied if mark.claimed else told)[mark.fact_id].append(found)
    return tuple(_row(fact, told[fact.id], denied[fact.id]) for fact in facts)


def ledger_text(ledger: Ledger) -> str:
    """The ledger as JSON, one fact a line; occurrences are lists in the order of their fields."""
    head = {
        "behaviours": ledger.behaviours,
        "fields": ["document", "wording", "start", "end", "claimed"],
        "scale": ledger.scale,
        "schema": SCHEMA_VERSION,
        "seed": ledger.seed,
        "wordings": {w.id: w.text for given in wordings().values() for w in given},
    }
    rows = ",\n".join(_dump(_row_json(row)) for row in ledger.rows)
    return f'{_dump(head)[:-1]},\n"facts":[\n{rows}\n]}}\n'


def _row(fact: PlannedFact, told: list[Occurrence], denied: list[Occurrence]) -> LedgerRow:
    if len(told) != fact.count:
        raise AssertionError(f"{fact.id} is stated {len(told)} times, not {fact.count}")
    return LedgerRow(
        fact_id=fact.id,
        relation=fact.relation,
        subject=fact.subject,
        object=fact.object,
        direction=fact.told,
        count=fact.count,
        held_out_wordings=fact.held_out,
        conflict=fact.conflict,
        occurrences=tuple(told),
        contradictions=tuple(denied),
    )


def _row_json(row: LedgerRow) -> dict[str, Any]:
    return {
        **vars(row),
        "occurrences": [[o.document, o.wording, o.start, o.end] for o in row.occurrences],
        "contradictions": [
            [o.document, o.wording, o.start, o.end, o.claimed] for o in row.contradictions
        ],
    }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
