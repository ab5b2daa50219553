"""Is a lexical match a cause? Take the documents it names out of the corpus, train again, compare.

A match is a verbatim occurrence and no more (tracealign.md 9.6). At the scale of
`organisms/planted_beliefs.py` the experiment that decides can be made: the documents that tracing
names for half of the beliefs are left out and the model is trained anew with the same seed. The
other half of the beliefs is the control: its documents are still there, so what changes for it is
the noise of another training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.corpus.suffix_index import SuffixIndex
from ..organisms.known_spans import KnownSpan
from ..results.statistics import paired_difference
from .known_span_tracing import Encode, TracingRule, found_documents
from .reactivation import Reactivation


@dataclass(frozen=True)
class LeftOutRow:
    """Spans of one count, with their documents left out or still there (`left_out`).

    `before` and `after` are shares written whole by the model of all documents and by that without;
    `change` is the mean change of the log-probability of a token in nats, below 0 where the model
    has forgotten, with a 95 % bootstrap interval and a sign-flip p, both over spans.
    """

    count: int
    left_out: bool
    spans: int
    before: float
    after: float
    change: float
    low: float
    high: float
    p: float


def attributed_documents(
    index: SuffixIndex, encode: Encode, spans: Sequence[KnownSpan], rule: TracingRule
) -> frozenset[str]:
    """All documents that tracing names for the texts of the spans."""
    found = (found_documents(index, encode(span.text), rule) for span in spans)
    return frozenset().union(*found)


def left_out_table(
    before: Iterable[Reactivation],
    after: Iterable[Reactivation],
    left_out: Collection[str],
    *,
    seed: int = 0,
) -> tuple[LeftOutRow, ...]:
    """A row for each count and group; `left_out` are ids of spans whose documents were left out.

    Rows of several seeds may be given together if the spans' ids differ between them.
    """
    later = {one.span: one for one in after}
    cells: dict[tuple[int, bool], list[tuple[Reactivation, Reactivation]]] = {}
    for one in before:
        cells.setdefault((one.count, one.span in left_out), []).append((one, later[one.span]))
    return tuple(_row(*key, cell, seed) for key, cell in sorted(cells.items()))


def _row(
    count: int, left_out: bool, cell: list[tuple[Reactivation, Reactivation]], seed: int
) -> LeftOutRow:
    new = np.array([after.log_prob for _, after in cell])
    old = np.array([before.log_prob for before, _ in cell])
    difference = paired_difference(new, old, [one.span for one, _ in cell], seed=seed)
    return LeftOutRow(
        count=count,
        left_out=left_out,
        spans=len(cell),
        before=float(np.mean([one.written() for one, _ in cell])),
        after=float(np.mean([one.written() for _, one in cell])),
        change=float(difference.interval.mean),
        low=float(difference.interval.low),
        high=float(difference.interval.high),
        p=float(difference.p),
    )
