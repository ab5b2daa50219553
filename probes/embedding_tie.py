"""Is a name read and written by one vector? The depth-0 version of role consistency.

A token enters as a row of the embedding `W_E` and leaves as a row of the unembedding `W_U`. Models
that tie the two hold both roles of a token in one vector, and there the index is 1 by construction:
it says that depth 0 cannot be where the roles part, and nothing about the layers. Models with two
tables may or may not have learned to agree; their index is a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.placement import materialised
from ..results.statistics import Interval, bootstrap_mean
from .representation_alignment import linear_cka

_SAMPLE = 1024
_PERMUTATIONS = 20


@dataclass(frozen=True, eq=False)
class EmbeddingTie:
    """How alike the two tables are.

    `cosine` is `cos(W_E[v], W_U[v])` for each token asked, `centred` the same after the mean of
    each table (over the sample) is taken off, `floor` the centred cosine with another asked token's
    row of `W_U`. `cka` is the de-biased linear CKA of the tables over `sample` random tokens; its
    null shuffles the rows of one table.
    """

    tied: bool
    tokens: tuple[int, ...]
    cosine: Float[np.ndarray, " token"]
    centred: Float[np.ndarray, " token"]
    floor: Float[np.ndarray, " token"]
    interval: Interval
    cka: float
    cka_null: float
    sample: int

    @property
    def reading(self) -> str:
        """The index in words."""
        if self.tied:
            return (
                "Embedding and unembedding are one table: the tie index is 1 by construction. A "
                "name is read and written by the same vector at depth 0, so what parts its roles "
                "happens in the layers."
            )
        mean, low, high = map(float, (self.interval.mean, self.interval.low, self.interval.high))
        return (
            "Embedding and unembedding are two tables: the names' first tokens have a centred "
            f"cosine of {mean:.2f} ({low:.2f} to {high:.2f}) between them, other names "
            f"{self.floor.mean():.2f}, and the tables' CKA is {self.cka:.2f} "
            f"({self.cka_null:.2f} when shuffled)."
        )


def embedding_tie(
    model: HookedModel,
    tokens: Sequence[int],
    *,
    sample: int = _SAMPLE,
    draws: int = 1000,
    seed: int = 0,
) -> EmbeddingTie:
    """Compare the two tables at `tokens` (names' first tokens, say; repetitions count once).

    Raises `MnemoscopeError` for fewer than two different tokens or one that the vocabulary lacks,
    `UnsupportedModelError` where the tables have different widths.
    """
    chosen = tuple(dict.fromkeys(int(token) for token in tokens))
    size = model.anatomy.d_vocab
    if len(chosen) < 2 or not all(0 <= token < size for token in chosen):
        raise MnemoscopeError(
            f"the tie index needs two different tokens at least, all below {size}: give the first "
            "tokens of the names."
        )
    read, written = _tables(model)
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.permutation(min(len(read), len(written)))[:sample])
    a, b = _rows_of(read, torch.tensor(chosen)), _rows_of(written, torch.tensor(chosen))
    many_a, many_b = _rows_of(read, drawn), _rows_of(written, drawn)
    centred_a, centred_b = a - many_a.mean(0), b - many_b.mean(0)
    centred = _cosine(centred_a, centred_b)
    cka = linear_cka(
        many_a.numpy()[None], many_b.numpy()[None], permutations=_PERMUTATIONS, seed=seed
    )
    return EmbeddingTie(
        tied=is_tied(model),
        tokens=chosen,
        cosine=_cosine(a, b),
        centred=centred,
        floor=_cosine(centred_a, centred_b.roll(1, 0)),
        interval=bootstrap_mean(centred, range(len(chosen)), draws=draws, seed=seed),
        cka=float(cka.cka[0]),
        cka_null=float(cka.null.mean()),
        sample=len(drawn),
    )


def is_tied(model: HookedModel) -> bool:
    """Whether embedding and unembedding are one table: shared in memory, or equal number by
    number."""
    read, written = _tables(model)
    return read is written or (read.shape == written.shape and bool(torch.equal(read, written)))


def _tables(model: HookedModel) -> tuple[Tensor, Tensor]:
    reader, writer = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    with materialised([reader, writer]):
        read, written = reader.weight, writer.weight
    if read.shape[1] != written.shape[1]:
        raise UnsupportedModelError(
            f"{model.name} reads tokens as {read.shape[1]} numbers and writes them from "
            f"{written.shape[1]}: its tables cannot be compared token by token."
        )
    return read, written


def _rows_of(table: Tensor, ids: Tensor) -> Float[Tensor, "token d_model"]:
    return table.detach()[ids.to(table.device)].double().cpu()


def _cosine(a: Tensor, b: Tensor) -> Float[np.ndarray, " token"]:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).numpy()
