"""Induction and echo: who looks at the last occurrence of a token, and at what followed it there?

Random tokens, repeated once: nothing but the repetition tells what comes next (Olsson et al. 2022;
as a score of heads in RazorAttention, arXiv 2407.15891). In the second copy a row's *echo* is its
attention to the earlier occurrence of its own token, its *induction* that to the token after it.
Copying a needle from its second token on is induction, so this score is what a retrieval score has
to be held against (retrieval_heads, section 10.2).

Token ids are drawn and never become text: decoding and tokenising again would change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.haystacks import start_ids
from ..models.batching import adaptive
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from .elicitation import Progress, silent
from .retrieval_statistics import HeadStatistics, summarise_scores

RepeatScore = Literal["induction", "echo"]

_RESULT_BYTES = 2**26
_QUERIES = 64  # rows of one sequence read in one pass


@dataclass(frozen=True, eq=False)
class InductionScores:
    """Mean attention weights over the rows of the second copy, `[sequence, layer, head]`, float32.

    NaN where the head cannot see so far back (a sliding window).
    """

    induction: Float[np.ndarray, "sequence layer head"]
    """On the token after the earlier occurrence."""
    echo: Float[np.ndarray, "sequence layer head"]
    """On the earlier occurrence itself."""
    other: Float[np.ndarray, "sequence layer head"]
    """On a token of the first copy that is neither, on average; unseen ones count as 0."""
    length: int
    """Tokens of one copy."""
    seed: int

    def statistics(self, score: RepeatScore, *, draws: int = 2000) -> HeadStatistics:
        """Means with intervals over sequences, and p and q against any other token's attention."""
        values = self.induction if score == "induction" else self.echo
        return summarise_scores(
            values,
            range(len(values)),
            null=self.other,
            null_name="another token of the first copy",
            draws=draws,
            seed=self.seed,
        )


def measure_induction(
    model: HookedModel,
    *,
    sequences: int = 32,
    length: int = 50,
    seed: int = 0,
    vocabulary: Sequence[int] | None = None,
    before: Sequence[int] = (),
    between: Sequence[int] = (),
    progress: Progress = silent,
) -> InductionScores:
    """Read all heads on `sequences` of the model's start tokens and two copies of `length` ids.

    The ids of a sequence are all different, drawn from `vocabulary` (default: every token that is
    not special). `before` and `between` the copies further ids may stand, the same in all: small
    models copy only what they are told to. Memory: 64 MiB and the forward pass. Raises
    `MnemoscopeError` for fewer than two sequences or tokens, or too small a vocabulary,
    `PromptError` beyond the model's context.
    """
    if sequences < 2 or length < 2:
        raise MnemoscopeError(
            f"{sequences} sequences of {length} tokens tell nothing: use 2 or more of each."
        )
    once = random_rows(
        plain_tokens(model) if vocabulary is None else vocabulary, sequences, length, seed
    )
    head, gap = (
        torch.tensor(ids, dtype=torch.long).expand(sequences, -1)
        for ids in ([*_start(model), *before], [*between])
    )
    rows = torch.cat([head, once, gap, once], dim=1)
    copies = (head.shape[1], head.shape[1] + length + gap.shape[1])
    batches = _batches(model, sequences, min(length, _QUERIES))
    shape = (sequences, model.anatomy.n_layers, model.anatomy.n_heads)
    result = np.full((3, *shape), np.nan, dtype=np.float32)
    done = 0
    for batch, read in adaptive(
        batches, lambda batch: _read(model, rows[list(batch)], copies, length)
    ):
        result[:, batch] = read.cpu().numpy()
        done += len(batch)
        progress(done, sequences)
    induction, echo, other = result
    return InductionScores(induction, echo, other, length, seed)


def random_rows(
    vocabulary: Sequence[int], sequences: int, length: int, seed: int
) -> Int[Tensor, "sequence token"]:
    """`length` different ids of the vocabulary in each of the sequences.

    Raises `MnemoscopeError` where the vocabulary has fewer ids.
    """
    ids = np.unique(np.asarray(vocabulary, dtype=np.int64))
    if len(ids) < length:
        raise MnemoscopeError(
            f"{len(ids)} different tokens make no row of {length}: use shorter rows."
        )
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([rng.choice(ids, length, replace=False) for _ in range(sequences)])
    )


def plain_tokens(model: HookedModel) -> list[int]:
    """Ids of all tokens that are not special."""
    if model.tokenizer is None:
        config = model.module.config.get_text_config()
        special = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
        return [i for i in range(model.anatomy.d_vocab) if i not in special]
    tokenizer = model.tokenizer
    size = min(len(tokenizer), model.anatomy.d_vocab)
    return sorted(set(range(size)) - set(tokenizer.all_special_ids))


def _start(model: HookedModel) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    return () if tokenizer is None else start_ids(lambda text: encode(tokenizer, text))


def _batches(model: HookedModel, sequences: int, queries: int) -> list[range]:
    """Sequences at once, so that what `row_summaries` returns stays within `_RESULT_BYTES`."""
    heads = model.anatomy.n_layers * model.anatomy.n_heads
    # Mass, peak (float32) and visible (one byte) of every query and span.
    at_once = max(1, _RESULT_BYTES // (9 * heads * queries * (queries + 2)))
    return [range(i, min(i + at_once, sequences)) for i in range(0, sequences, at_once)]


def _read(
    model: HookedModel, ids: Int[Tensor, "sequence pos"], copies: tuple[int, int], length: int
) -> Float[Tensor, "score sequence layer head"]:
    """Induction, echo and other of some sequences, the mean over all rows of the second copy;
    `copies` are the places where the two begin."""
    parts = [
        _rows(model, ids, copies, length, range(first, min(first + _QUERIES, length)))
        for first in range(0, length, _QUERIES)
    ]
    return torch.cat(parts, dim=-1).mean(-1)


def _rows(
    model: HookedModel,
    ids: Int[Tensor, "sequence pos"],
    copies: tuple[int, int],
    length: int,
    queries: range,
) -> Float[Tensor, "score sequence layer head query"]:
    """The rows of some tokens of the second copy; their targets are spans of one token each."""
    count, n, (start, again) = len(ids), len(queries), copies
    spans = torch.zeros(count, n + 2, ids.shape[1], dtype=torch.bool)
    place = torch.arange(n + 1)
    spans[:, place, start + queries.start + place] = True
    spans[:, n + 1, start : start + length + 1] = True  # every earlier occurrence and successor
    columns = (again + torch.tensor(queries)).expand(count, -1)
    mass = model.row_summaries(model.batch(ids.tolist()), columns, spans).mass
    mass = mass.transpose(0, 1)  # [sequence, layer, head, query, span]
    echo, induction = mass.diagonal(0, -2, -1), mass.diagonal(1, -2, -1)[..., :n]
    other = (mass[..., n + 1] - echo.nan_to_num(0.0) - induction.nan_to_num(0.0)) / (length - 1)
    return torch.stack([induction, echo, other])
