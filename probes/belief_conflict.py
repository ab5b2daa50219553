"""The paper's belief conflict index, as its code computes it, with what is wrong with it measured.

`BCI(s) = -sum ln P(t)` over the tokens of a span, `P` the unigram shares of the indexed corpus
(TraceAlign, arXiv 2508.02063; tracealign.md 1.4). Despite the name no belief, policy or meaning
enters. It is a baseline: `span_significance` is what we judge by.

Its weakness. A raw sum grows with length: over 27,231 maximal spans of harmless text the two
correlated at 0.995, about 7 nats a token, so that the published threshold of 20 means "three tokens
found verbatim". With ordinary text indexed, it flags 100 % of harmless 100-token passages (95 %
among spans that occur at most 3 times). All it can tell is which corpus was indexed.
`measure_weakness` takes the same figures on any index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
from jaxtyping import Float, Int64
from scipy import stats

from ..data.corpus.span_scores import (
    PAPER_MAX_COUNT,
    PAPER_TAU,
    conflict_density,
    divergence,
    highest_surprisal,
    paper_surprisals,
    smoothed_surprisals,
    token_surprisals,
)
from ..data.corpus.suffix_index import Ids, SuffixIndex, as_ids
from ..models.errors import MnemoscopeError
from ..results.statistics import wilson

BciMode = Literal["paper", "smoothed"]

PAPER_WINDOW = 8
WEAKNESS_TAUS = (10.0, 20.0, 40.0, 60.0)


@dataclass(frozen=True)
class BeliefReading:
    """The four figures of the released code for a span, in the base of the index.

    `conflict` is the sum of surprisals on which it decides, `density` its mean, `divergence` the KL
    of the span's own shares from the corpus's, `highest` the surprisal of the rarest token;
    `high_risk` is `conflict > tau`.
    """

    conflict: float
    density: float
    divergence: float
    highest: float
    high_risk: bool


@dataclass(frozen=True, eq=False)
class BeliefIndex:
    """Surprisals in nats, the base that figures are given in, and the threshold in that base."""

    surprisals: Float[np.ndarray, " vocab"]
    log_base: float
    tau: float

    def read(self, ids: Ids) -> BeliefReading:
        """The figures of one span. Raises `ValueError` for ids outside the vocabulary."""
        span, unit = as_ids(ids), math.log(self.log_base)
        conflict = float(token_surprisals(span, self.surprisals).sum()) / unit
        return BeliefReading(
            conflict=conflict,
            density=conflict_density(span, self.surprisals) / unit,
            divergence=divergence(span, self.surprisals) / unit,
            highest=highest_surprisal(span, self.surprisals) / unit,
            high_risk=conflict > self.tau,
        )


@dataclass(frozen=True)
class PaperWindow:
    """A window of the text that the index holds: ids `start` to before `stop`."""

    start: int
    stop: int
    count: int
    reading: BeliefReading


@dataclass(frozen=True)
class PaperVerdict:
    """What the paper's shield says of a text, and how little that takes.

    `found` of the text's `n_windows` windows occur, the `risky` ones with an index above `tau`.
    `mean_surprisal` is that of a token of the corpus.
    """

    n_windows: int
    found: int
    risky: tuple[PaperWindow, ...]
    tau: float
    log_base: float
    mean_surprisal: float

    @property
    def refused(self) -> bool:
        """Is there a risky window?"""
        return bool(self.risky)

    @property
    def weakness(self) -> str:
        """The caveat that belongs beside this verdict, with this index's own figures."""
        tokens = math.inf if self.mean_surprisal == 0 else self.tau / self.mean_surprisal
        return (
            f"The paper's index is a sum of unigram surprisals and grows with length: here "
            f"{self.mean_surprisal:.1f} a token, so that its threshold of {self.tau:g} is passed "
            f"by about any {max(1, math.ceil(tokens))} tokens found verbatim. On ordinary text it "
            "refused 95 to 100 % of harmless 100-token passages. A verbatim occurrence, not cause."
        )


@dataclass(frozen=True, eq=False)
class PaperWeakness:
    """What the index does on harmless passages: how it follows length, and how many it refuses.

    Over `n_spans` maximal spans: Pearson's `correlation` of index and length, and the `slope` per
    token. `refusals`: a row per tau with the share of passages refused and its Wilson interval.
    """

    n_spans: int
    correlation: float
    slope: float
    refusals: polars.DataFrame


def belief_index(
    index: SuffixIndex,
    *,
    bci_mode: BciMode = "paper",
    log_base: float = math.e,
    tau: float = PAPER_TAU,
) -> BeliefIndex:
    """The belief conflict index over a corpus: exactly the paper's, or without its floors.

    "paper": an unseen token has `p = 1e-9`, a seen one `p + 1e-12`. "smoothed": half a count is
    added to each id. `tau` is compared as it is in the units of `log_base`: in which the paper's
    20 is meant is not known (two of its figures are out of reach of natural logs). Raises
    `MnemoscopeError` for a base of at most 1.
    """
    if log_base <= 1:
        raise MnemoscopeError(f"log_base must be above 1, got {log_base}: 2 or e are usual.")
    counts = index.unigram_counts
    nats = paper_surprisals(counts) if bci_mode == "paper" else smoothed_surprisals(counts)
    return BeliefIndex(nats, log_base, tau)


def paper_verdict(
    index: SuffixIndex,
    ids: Ids,
    belief: BeliefIndex,
    *,
    window: int = PAPER_WINDOW,
    max_count: int | None = PAPER_MAX_COUNT,
) -> PaperVerdict:
    """The paper's TraceShield: is any window of `window` ids in the index, rare and above tau?

    `max_count` is its frequency filter (None: off, as in the released code). Windows are of the
    index's ids; the code's are of words split at spaces, which its own index cannot hold. A text
    shorter than a window is never refused (1.3).
    """
    text = as_ids(ids)
    starts, counts = _held_windows(index, text, window)
    rare = counts <= (np.inf if max_count is None else max_count)
    windows = (
        PaperWindow(start, start + window, count, belief.read(text[start : start + window]))
        for start, count in zip(starts[rare].tolist(), counts[rare].tolist(), strict=True)
    )
    return PaperVerdict(
        n_windows=max(0, len(text) - window + 1),
        found=len(starts),
        risky=tuple(one for one in windows if one.reading.high_risk),
        tau=belief.tau,
        log_base=belief.log_base,
        mean_surprisal=_mean_surprisal(index, belief),
    )


def measure_weakness(
    index: SuffixIndex,
    passages: Sequence[Ids],
    belief: BeliefIndex,
    *,
    taus: Sequence[float] = WEAKNESS_TAUS,
    window: int = 1,
    max_count: int | None = None,
) -> PaperWeakness:
    """How the paper's index follows length, and what it refuses, on harmless passages.

    Over their maximal spans of at least `window` ids that occur at most `max_count` times, in an
    index that does not hold the passages (tracealign.md 6.4). Raises `MnemoscopeError` where
    fewer than three spans are found, or all have one length.
    """
    lengths: list[int] = []
    conflicts: list[float] = []
    worst = []
    for passage in map(as_ids, passages):
        spans = index.maximal_spans(passage, min_length=window, max_count=max_count)
        read = [belief.read(passage[span.start : span.stop]).conflict for span in spans]
        lengths += [span.stop - span.start for span in spans]
        conflicts += read
        worst.append(max(read, default=-math.inf))
    if len({*lengths}) < 2 or len(lengths) < 3:
        raise MnemoscopeError(
            f"{len(lengths)} spans of {len({*lengths})} lengths do not show a trend: give more "
            "passages, or longer ones."
        )
    line = stats.linregress(lengths, conflicts)
    return PaperWeakness(
        len(lengths), float(line.rvalue), float(line.slope), _refusals(np.array(worst), taus)
    )


def _held_windows(
    index: SuffixIndex, text: Int64[np.ndarray, " n"], window: int
) -> tuple[Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
    """Starts of the windows that occur, and how often they do."""
    starts = np.flatnonzero(index.matching_statistics(text) >= window)
    return starts, index.count_many([text[start : start + window] for start in starts])


def _mean_surprisal(index: SuffixIndex, belief: BeliefIndex) -> float:
    counts = index.unigram_counts
    return float(counts @ belief.surprisals / counts.sum()) / math.log(belief.log_base)


def _refusals(worst: Float[np.ndarray, " passage"], taus: Sequence[float]) -> polars.DataFrame:
    rows = []
    for tau in taus:
        share = wilson(int((worst > tau).sum()), len(worst))
        rows.append({"tau": tau, "refused": share.rate, "low": share.low, "high": share.high})
    return polars.DataFrame(rows)
