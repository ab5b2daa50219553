"""Where the chosen head looks: its attention pattern, END's row and the share of the sink."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Float

from ..models.anatomy import Anatomy
from ..models.hooked import HookedModel
from ..models.types import HeadId
from .answers import token_label

MOST_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Pattern:
    """Attention of one head on one text. `weights` is None above `MOST_TOKENS` tokens.

    `labels[i]` is position and text of token i, different for each token; `end_row` holds the
    weights of END's row, which sum to 1.
    """

    head: HeadId
    labels: tuple[str, ...]
    weights: Float[np.ndarray, "query key"] | None
    end_row: Float[np.ndarray, " key"]

    @property
    def sink(self) -> float:
        """Share of END's attention that rests on the first token."""
        return float(self.end_row[0])


def pattern(model: HookedModel, text: str, head: HeadId) -> Pattern:
    """Read one head's attention; long texts give END's row only."""
    batch = model.tokens(text)
    short = batch.ids.shape[1] <= MOST_TOKENS
    rows = model.rows(batch, "all" if short else "end", heads=[head])[0, 0, 0].cpu().numpy()
    pieces = model.pieces(batch.ids[0].tolist())
    labels = tuple(f"{i} {token_label(piece)}" for i, piece in enumerate(pieces))
    return Pattern(head, labels, rows if short else None, rows[-1])


def pattern_table(found: Pattern, *, sink: bool = True) -> polars.DataFrame:
    """The lower triangle as rows: `query`, `key` (positions), their labels, `weight`; without the
    `sink` the first token is no key."""
    if found.weights is None:
        return polars.DataFrame()
    queries, keys = np.tril_indices(len(found.labels))
    if not sink and len(found.labels) > 1:
        queries, keys = queries[keys > 0], keys[keys > 0]
    return polars.DataFrame(
        {
            "query": queries,
            "key": keys,
            "query_token": [found.labels[i] for i in queries],
            "key_token": [found.labels[i] for i in keys],
            "weight": found.weights[queries, keys],
        }
    )


def end_row_table(found: Pattern, k: int = 10, *, sink: bool = True) -> polars.DataFrame:
    """The k keys that END looks at most: `token` (position and text), `weight`; without the `sink`
    the first token is no key."""
    order = np.argsort(-found.end_row, kind="stable")
    if not sink and len(order) > 1:
        order = order[order > 0]
    order = order[:k]
    return polars.DataFrame(
        {"token": [found.labels[i] for i in order], "weight": found.end_row[order]}
    )


def sharing(anatomy: Anatomy, head: HeadId) -> str:
    """Which key/value head it reads, and with whom: "reads kv head 1 with query heads 3, 4, 5"."""
    kv = anatomy.kv_of(head).kv_head
    others = [other.head for other in anatomy.sharing(head)]
    if len(others) == 1:
        return f"reads kv head {kv}, which no other query head reads"
    return f"reads kv head {kv} with query heads {', '.join(map(str, others))}"
