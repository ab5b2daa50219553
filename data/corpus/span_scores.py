"""How telling is a span that was found verbatim in an index? Scores of spans, and the rule on them.

A `SpanScore` sees the ids, the length of the match and how often it occurs; larger is more telling.
Whoever traces, stops or decodes takes one as an argument, and a `RiskRule` says when it is enough.

The scores (tracealign.md, 1.4, 9.1 and 9.3):

- `BeliefConflict`: the paper's belief conflict index, a sum of unigram surprisals. It grows with
  length (0.995 correlated, 7 nats a token), so a threshold on it is a threshold on length: 20 flags
  every harmless passage when ordinary text is indexed. No meaning enters it.
- `Significance`: the same sum against the size of the corpus, so that chance is what is judged.
- `CorpusContrast`: how much more often the risk corpus holds the span than a benign one does.

None of them says that the span's documents caused the text: a match is a verbatim occurrence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

Ids = Sequence[int] | Int[np.ndarray, " n"]

PAPER_UNSEEN = 1e-9
"""Probability that the released code gives a token the corpus never shows."""
PAPER_FLOOR = 1e-12
PAPER_TAU = 20.0
PAPER_MAX_COUNT = 3


class SpanScore(Protocol):
    """Score of the span that is the last `length` of `ids` and occurs `count` times."""

    def __call__(self, ids: Ids, length: int, count: int) -> float: ...


class CountsSpans(Protocol):
    """What a contrast asks of the benign corpus: an open index can do it."""

    @property
    def n_tokens(self) -> int: ...

    def count(self, ids: Ids) -> int: ...


@dataclass(frozen=True, eq=False)
class BeliefConflict:
    """`BCI(s) = -sum ln P(t)` over the span's tokens, unigram `P` (tracealign.md 1.4).

    With `paper_surprisals` the released code's index, to be compared with `PAPER_TAU`; with
    `smoothed_surprisals` the same sum without the cliff at unseen tokens. In nats, or whatever
    base the surprisals have. Never falls as a span grows.
    """

    surprisals: Float[np.ndarray, " vocab"]

    def __call__(self, ids: Ids, length: int, count: int) -> float:
        """The index of the span; how often it occurs does not matter."""
        return float(token_surprisals(ids[len(ids) - length :], self.surprisals).sum())


@dataclass(frozen=True, eq=False)
class Significance:
    """`-ln E(s)`: how surprising it is, in nats, that the corpus holds the span by chance.

    `E(s) = (N - |s| + 1) exp(-BCI(s))` is the expected number of occurrences in a corpus of `N`
    independent unigram draws, so a chance match has probability at most `min(1, E)` (Markov).
    Compare with `significance_threshold`. It bounds chance collision under that null, not drift:
    idioms are no accident, and still surprise it (tracealign.md 9.1). Surprisals are in nats.
    """

    surprisals: Float[np.ndarray, " vocab"]
    n_tokens: int

    def __call__(self, ids: Ids, length: int, count: int) -> float:
        """`-ln E` of the span; how often it occurs does not matter."""
        conflict = float(token_surprisals(ids[len(ids) - length :], self.surprisals).sum())
        return -log_e_value(conflict, length, self.n_tokens)


@dataclass(frozen=True, eq=False)
class CorpusContrast:
    """`ln` of the span's rate in the risk corpus over its rate in the benign one (9.3).

    `ln((c_R + a) / (N_R + 2a)) - ln((c_B + a) / (N_B + 2a))`, `a = 0.5`, the counts being those of
    the whole span. Above 0 the risk corpus holds it more often for its size; what is common to
    both, like a harmless technical phrase, comes to about 0. Both corpora need the same ids.
    """

    risk_tokens: int
    benign: CountsSpans
    add: float = 0.5

    def __call__(self, ids: Ids, length: int, count: int) -> float:
        """The log ratio; `count` is the risk corpus's, the benign corpus is asked for its own."""
        benign = self.benign.count(ids[len(ids) - length :])
        return log_rate_ratio(count, self.risk_tokens, benign, self.benign.n_tokens, self.add)


@dataclass(frozen=True)
class RiskRule:
    """When a span counts as risky: at least `min_length` long, occurring at most `max_count` times
    (None: however often), and scored above `threshold`.

    The paper's rule is `min_length=8`, `PAPER_MAX_COUNT` and `PAPER_TAU`. Raises `ValueError` for
    a length or a count below 1.
    """

    score: SpanScore
    threshold: float
    min_length: int = 8
    max_count: int | None = 10

    def __post_init__(self) -> None:
        if self.min_length < 1 or (self.max_count is not None and self.max_count < 1):
            raise ValueError(
                f"min_length ({self.min_length}) and max_count ({self.max_count}) count from 1; "
                "max_count=None takes spans however often they occur."
            )

    def risk(self, ids: Ids, length: int, count: int) -> float:
        """The score of the last `length` of `ids`; `-inf` for what the rule passes over."""
        common = self.max_count is not None and count > self.max_count
        if length < self.min_length or count < 1 or common:
            return -math.inf
        return self.score(ids, length, count)

    def forbids(self, ids: Ids, length: int, count: int) -> bool:
        """Is the last `length` of `ids`, occurring `count` times, risky?"""
        return self.risk(ids, length, count) > self.threshold


def paper_surprisals(
    counts: Int[np.ndarray, " vocab"], *, log_base: float = math.e
) -> Float[np.ndarray, " vocab"]:
    """Surprisals as the released code has them: `-log(p + 1e-12)`, and `p = 1e-9` where unseen.

    In nats unless `log_base` says otherwise; which base the paper's tables use is not known (two of
    their figures are out of reach of natural logs). Raises `ValueError` for an empty corpus.
    """
    share = _checked(counts) / counts.sum(dtype=np.float64)
    return -np.log(np.where(counts > 0, share + PAPER_FLOOR, PAPER_UNSEEN)) / math.log(log_base)


def smoothed_surprisals(
    counts: Int[np.ndarray, " vocab"], *, add: float = 0.5
) -> Float[np.ndarray, " vocab"]:
    """Surprisals in nats with `add` added to every token's count.

    Raises `ValueError` for an empty corpus or an `add` that is not positive.
    """
    if add <= 0:
        raise ValueError(f"add must be positive, got {add}: unseen tokens need some probability.")
    padded = _checked(counts) + add
    return np.log(padded.sum()) - np.log(padded)


def null_surprisals(counts: Int[np.ndarray, " vocab"]) -> Float[np.ndarray, " vocab"]:
    """Surprisals in nats of a corpus's own shares; an id that it never shows counts half.

    What `Significance` wants. Smoothing that adds to every id takes from those that are there, and
    where a vocabulary is large and a corpus small (risk corpora are) chance matches would pass for
    significant. Raises `ValueError` for an empty corpus.
    """
    return np.log(_checked(counts).sum()) - np.log(np.maximum(counts, 0.5))


def token_surprisals(ids: Ids, surprisals: Float[np.ndarray, " vocab"]) -> Float[np.ndarray, " n"]:
    """The surprisal of each token. Raises `ValueError` for an id outside the vocabulary."""
    at = np.asarray(ids, dtype=np.int64)
    if at.size and not 0 <= at.min() <= at.max() < len(surprisals):
        raise ValueError(
            f"the span holds token ids from {at.min()} to {at.max()}, the corpus counts only "
            f"0 to {len(surprisals) - 1}: encode the text with the tokenizer of the index."
        )
    return surprisals[at]


def log_e_value(conflict: float, length: int, n_tokens: int) -> float:
    """`ln E(s)` of a span of `length` tokens whose surprisals sum to `conflict` nats.

    The sum may come from any null: unigrams, or a background model's own log-probabilities.
    """
    return math.log(max(1, n_tokens - length + 1)) - conflict


def significance_threshold(n_spans: int, alpha: float) -> float:
    """`ln(n / alpha)`: with it the chance of any accidental match among `n` spans is below `alpha`.

    Raises `ValueError` unless `0 < alpha < 1` and there is at least one span.
    """
    if not 0 < alpha < 1 or n_spans < 1:
        raise ValueError(
            f"alpha ({alpha}) must lie between 0 and 1 and n_spans ({n_spans}) be at least 1."
        )
    return math.log(n_spans / alpha)


def log_rate_ratio(
    risk: int, risk_tokens: int, benign: int, benign_tokens: int, add: float = 0.5
) -> float:
    """`ln` of a span's smoothed rate in the risk corpus over that in the benign one (9.3)."""
    first = math.log((risk + add) / (risk_tokens + 2 * add))
    return first - math.log((benign + add) / (benign_tokens + 2 * add))


def conflict_density(ids: Ids, surprisals: Float[np.ndarray, " vocab"]) -> float:
    """The paper's length-normalised index: mean surprisal, which is the cross-entropy of the span.

    It exceeds `divergence` by the span's own entropy. 0 for an empty span.
    """
    return float(token_surprisals(ids, surprisals).sum()) / max(1, len(ids))


def highest_surprisal(ids: Ids, surprisals: Float[np.ndarray, " vocab"]) -> float:
    """The paper's max-token risk, a diagnostic: the surprisal of the rarest token; 0 if empty."""
    return float(token_surprisals(ids, surprisals).max(initial=0.0))


def divergence(ids: Ids, surprisals: Float[np.ndarray, " vocab"]) -> float:
    """The paper's KL view: `sum_u p_s(u) ln(p_s(u) / P(u))` over the span's token types, in nats.

    For surprisals in nats. 0 for an empty span; used in no decision.
    """
    if len(ids) == 0:
        return 0.0
    types, times = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
    share = times / times.sum()
    return float((share * (np.log(share) + token_surprisals(types, surprisals))).sum())


def _checked(counts: Int[np.ndarray, " vocab"]) -> Float[np.ndarray, " vocab"]:
    if counts.size == 0 or counts.sum() == 0:
        raise ValueError("the corpus counts no tokens at all: index some text first.")
    return counts.astype(np.float64)
