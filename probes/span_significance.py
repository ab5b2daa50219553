"""Could a corpus hold these spans by chance? E-values of spans, p and q over all spans of a text.

Under a null in which the corpus is `N` draws from a background model, a span `s` is expected
`E(s) = (N - |s| + 1) P(s)` times, so that it occurs at all with probability at most `min(1, E)`
(tracealign.md 9.1). `E` falls as a span grows, hence `E` of the *longest* match at a place is a
valid p of that place: it was not chosen better than chance allows. A text has as many tests as
places, matched or not, and Benjamini-Hochberg runs over all of them; neighbours share tokens, which
is the positive dependence it stands.

What is bounded is chance collision, not drift and not cause: idioms are no accident either.
A background other than the corpus's own unigrams (9.2) makes them expected: `ngram_background` of
a benign index, `model_background` of a model that has not read the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Float, Int64

from ..data.corpus.span_scores import log_e_value, null_surprisals, token_surprisals
from ..data.corpus.suffix_index import Ids, SuffixIndex, as_ids
from ..models.hooked import HookedModel
from ..results.statistics import benjamini_hochberg

Background = Callable[[Ids], Float[np.ndarray, " n"]]
"""The surprisal in nats of each id of a span after the ids before it *in the span*."""

NGRAM_ORDER = 5
NGRAM_PRIOR = 5.0


@dataclass(frozen=True, eq=False)
class Significances:
    """Per span `ln E`, `p = min(1, E)`, and `q`: p adjusted over all `n_tests` places."""

    log_e: Float[np.ndarray, " span"]
    p: Float[np.ndarray, " span"]
    q: Float[np.ndarray, " span"]
    n_tests: int


def significances(
    spans: Sequence[Ids], n_tokens: int, n_tests: int, background: Background
) -> Significances:
    """How surprising it is that a corpus of `n_tokens` holds each span.

    The spans are the longest matches at some of `n_tests` places (or parts of these); the other
    places count with p = 1. Raises `StatisticsError` for a background of negative surprisals.
    """
    conflicts = [float(background(span).sum()) for span in spans]
    log_e = np.array(
        [log_e_value(c, len(s), n_tokens) for c, s in zip(conflicts, spans, strict=True)],
        dtype=np.float64,
    )
    p = np.exp(np.minimum(log_e, 0.0))
    padded = np.append(p, np.ones(max(1, n_tests - len(p))))
    return Significances(log_e, p, benjamini_hochberg(padded)[: len(p)], n_tests)


def unigram_background(index: SuffixIndex) -> Background:
    """Independent tokens, exactly as frequent as in the index itself."""
    surprisals = null_surprisals(index.unigram_counts)

    def background(ids: Ids) -> Float[np.ndarray, " n"]:
        return token_surprisals(as_ids(ids), surprisals)

    return background


def ngram_background(
    benign: SuffixIndex, *, order: int = NGRAM_ORDER, prior: float = NGRAM_PRIOR
) -> Background:
    """An n-gram model read off a benign index, so that what is idiom there surprises nobody.

    `P_k(t | c) = (n(ct) + a P_{k-1}(t | c')) / (n(c) + a)` down to `null_surprisals`, `a = prior`,
    `c` at most `order - 1` ids (MacKay and Peto 1995). What the shares of the ids that benign text
    holds leave to 1 is the chance that a document ends there. About `order` look-ups an id.

    Raises `ValueError` for an order below 1 or a prior that is not positive.
    """
    if order < 1 or prior <= 0:
        raise ValueError(f"order ({order}) counts from 1 and prior ({prior}) must be positive.")
    surprisals = null_surprisals(benign.unigram_counts)

    def background(ids: Ids) -> Float[np.ndarray, " n"]:
        span = as_ids(ids)
        shares = np.exp(-token_surprisals(span, surprisals))
        shorter = benign.count_many([span[i : i + 1] for i in range(len(span))])
        for size in range(2, min(order, len(span)) + 1):
            grams = [span[i : i + size] for i in range(len(span) - size + 1)]
            counts = benign.count_many(grams)
            contexts = shorter[: len(grams)]
            shares[size - 1 :] = (counts + prior * shares[size - 1 :]) / (contexts + prior)
            shorter = counts
        return -np.log(shares)

    return background


def model_background(
    model: HookedModel, first: Float[np.ndarray, " vocab"] | None = None
) -> Background:
    """A language model's own surprisals of a span that stands alone; the model must not have read
    the corpus, and its tokens must be those of the index.

    The first id has nothing before it: `first` are the surprisals used for it (by default every id
    of the vocabulary is as likely). One forward pass a span.
    """

    def background(ids: Ids) -> Float[np.ndarray, " n"]:
        span = as_ids(ids)
        logits = model.logits(model.batch([span.tolist()]))[0].double().log_softmax(-1)
        later = logits[range(len(span) - 1), span[1:].tolist()]
        opening = np.log(logits.shape[-1]) if first is None else first[span[0]]
        return np.append(opening, -later.cpu().numpy())

    return background


def chance_collisions(
    index: SuffixIndex,
    ids: Ids,
    *,
    lengths: Sequence[int] = (2, 3, 4),
    edges: Sequence[float] = (12, 16, 20, 24, 30),
    seed: int = 0,
) -> polars.DataFrame:
    """How often spans of *shuffled* tokens occur, beside what the E-value says (tracealign.md 6.4).

    `ids` (of a text the index does not hold) are shuffled and cut into spans of each length; a row
    is one length and one range of surprisal, in nats, from `low` to below `high`: `spans`, the
    share of them `observed` in the index, `predicted` as the mean of `1 - exp(-E)`, and the `bound`
    as the mean of `min(1, E)`. Observed above bound (beyond noise) would show the null to be wrong.
    """
    shuffled = np.random.default_rng(seed).permutation(as_ids(ids))
    background = unigram_background(index)
    frames = [_collisions(index, shuffled, n, edges, background) for n in lengths]
    return polars.concat(frames)


def _collisions(
    index: SuffixIndex,
    shuffled: Int64[np.ndarray, " n"],
    length: int,
    edges: Sequence[float],
    background: Background,
) -> polars.DataFrame:
    spans = shuffled[: len(shuffled) // length * length].reshape(-1, length)
    conflict = background(spans.reshape(-1)).reshape(-1, length).sum(axis=1)
    occurs = index.count_many(spans) > 0
    expected = max(1, index.n_tokens - length + 1) * np.exp(-conflict)
    columns = {
        "low": np.append(-np.inf, edges)[np.searchsorted(edges, conflict, side="right")],
        "high": np.append(edges, np.inf)[np.searchsorted(edges, conflict, side="right")],
        "occurs": occurs.astype(np.float64),
        "predicted": -np.expm1(-expected),
        "bound": np.minimum(1.0, expected),
    }
    return (
        polars.DataFrame(columns)
        .group_by("low", "high")
        .agg(
            polars.lit(length).alias("length"),
            polars.len().cast(polars.Int64).alias("spans"),
            polars.col("occurs").mean().alias("observed"),
            polars.col("predicted").mean(),
            polars.col("bound").mean(),
        )
        .select("length", "low", "high", "spans", "observed", "predicted", "bound")
        .sort("low")
    )
