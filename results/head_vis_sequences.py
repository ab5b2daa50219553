"""One head on sampled texts, as HeadVis files hold it: sparse attention, and sums over it.

Attention is kept as flat indices `query * length + key` with their weights, a few keys a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from .provenance import JSON

KEYS_A_ROW, LEAST_WEIGHT = 8, 0.005
"""What Neuronpedia's pipeline keeps of each row."""
TOP_TOKENS = 50
_DIGITS = 4

METRICS = {
    "self_attention_score": "mean attention of a token to itself",
    "prev_token_score": "mean attention to the token before",
    "pattern_entropy": "mean Shannon entropy of a row, nats",
    "qk_distance": "mean distance of query and key, weighted by attention",
    "qk_distance_variance": "variance of that distance",
    "induction_score": "mean attention to what followed an earlier occurrence of the same token",
}
"""The metrics of `attention_metrics`, under the names of Neuronpedia's trees."""


@dataclass(frozen=True)
class HeadVisSequence:
    """One text: `indices` are `query * length + key`, `values` their attention.

    `interval` is the bucket of its strongest attention among the head's texts, 1 the lowest.
    """

    sequence_id: int
    interval: int
    tokens: tuple[str, ...]
    indices: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def max_activation(self) -> float:
        """The highest kept weight outside the first row and column, as the viewer takes it."""
        length = len(self.tokens)
        return max(
            (
                value
                for index, value in zip(self.indices, self.values, strict=True)
                if index // length and index % length
            ),
            default=0.0,
        )


def sparse_sequence(
    attention: Float[np.ndarray, "query key"], tokens: Sequence[str], sequence_id: int
) -> HeadVisSequence:
    """The `KEYS_A_ROW` strongest keys of each query, weights below `LEAST_WEIGHT` dropped."""
    attention = np.asarray(attention, dtype=np.float64)
    length = len(attention)
    strongest = np.argsort(-attention, axis=1, kind="stable")[:, :KEYS_A_ROW]
    flat = np.sort((np.arange(length)[:, None] * length + strongest).ravel())
    flat = flat[attention.ravel()[flat] >= LEAST_WEIGHT]
    values = attention.ravel()[flat].round(_DIGITS)
    return HeadVisSequence(
        sequence_id, 1, tuple(tokens), tuple(flat.tolist()), tuple(values.tolist())
    )


def in_intervals(
    sequences: Sequence[HeadVisSequence], n_intervals: int
) -> tuple[HeadVisSequence, ...]:
    """The texts in buckets of equal size by their strongest attention, 1 the lowest."""
    order = np.argsort([s.max_activation for s in sequences], kind="stable")
    place = np.empty(len(sequences), dtype=int)
    place[order] = np.arange(len(sequences))
    return tuple(
        replace(s, interval=1 + int(rank) * n_intervals // len(sequences))
        for s, rank in zip(sequences, place, strict=True)
    )


def attention_metrics(
    attention: Float[np.ndarray, "query key"], ids: Int[np.ndarray, " token"]
) -> dict[str, float]:
    """The six `METRICS` of one head on one text of two tokens or more."""
    attention = np.asarray(attention, dtype=np.float64)
    n = len(attention)
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    mass = attention.sum()
    mean = float((attention * distance).sum() / mass)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(attention > 0, attention * np.log(attention), 0.0).sum(axis=1)
    # What followed an earlier occurrence of the query's token.
    follows = np.zeros((n, n), dtype=bool)
    follows[:, 1:] = (ids[:, None] == ids[None, :])[:, :-1]
    follows &= np.tri(n, dtype=bool)
    return {
        "self_attention_score": float(np.diagonal(attention).mean()),
        "prev_token_score": float(np.diagonal(attention, -1).mean()),
        "pattern_entropy": float(entropy.mean()),
        "qk_distance": mean,
        "qk_distance_variance": float((attention * (distance - mean) ** 2).sum() / mass),
        "induction_score": float((attention * follows).sum(axis=1).mean()),
    }


def head_payload(sequences: Sequence[HeadVisSequence]) -> dict[str, JSON]:
    """What one head's file holds: its texts, and the panels that HeadVis draws of them."""
    strongest = [s.max_activation for s in sequences]
    edges = np.linspace(0, 1, 21)
    return {
        "sequences": [_record(s) for s in sequences],
        "qk_distance_histogram": _distances(sequences),
        "top_query_tokens": _top_tokens(sequences, lambda index, n: index // n),
        "top_key_tokens": _top_tokens(sequences, lambda index, n: index % n),
        "histogram": {
            "bin_edges": edges.round(2).tolist(),
            "bin_values": np.histogram(strongest, edges)[0].tolist(),
        }
        if sequences
        else {},
        "statistics": {
            "n_samples": len(sequences),
            "mean_max_activation": round(float(np.mean(strongest)), _DIGITS),
        }
        if sequences
        else {},
    }


def _record(sequence: HeadVisSequence) -> JSON:
    return {
        "sequence_id": sequence.sequence_id,
        "interval": sequence.interval,
        "tokens": list(sequence.tokens),
        "attention_indices": list(sequence.indices),
        "attention_values": list(sequence.values),
        "seq_len": len(sequence.tokens),
        "max_activation": sequence.max_activation,
    }


def _distances(sequences: Sequence[HeadVisSequence]) -> JSON:
    """Attention by distance of query and key, edges 0, 1, 2, 4, 8 and so on."""
    longest = max((len(s.tokens) for s in sequences), default=1)
    edges = [0, *(2**i for i in range(int(np.ceil(np.log2(max(longest, 2)))) + 1))]
    total = np.zeros(len(edges) - 1)
    for s in sequences:
        flat, n = np.array(s.indices, dtype=int), len(s.tokens)
        total += np.histogram(np.abs(flat // n - flat % n), edges, weights=np.array(s.values))[0]
    return {"bin_edges": edges, "bin_values": total.round(_DIGITS).tolist()}


def _top_tokens(
    sequences: Sequence[HeadVisSequence], place: Callable[[int, int], int]
) -> list[JSON]:
    weights: dict[str, float] = {}
    for s in sequences:
        for index, value in zip(s.indices, s.values, strict=True):
            token = s.tokens[place(index, len(s.tokens))]
            weights[token] = weights.get(token, 0.0) + value
    strongest = sorted(weights.items(), key=lambda pair: -pair[1])[:TOP_TOKENS]
    return [{"token": token, "weight": round(weight, _DIGITS)} for token, weight in strongest]
