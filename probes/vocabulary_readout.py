"""Where along the layers a prompt's answer can be read out, and where the reverse answer dies.

The logit lens (nostalgebraist 2020): a residual state goes straight through what the model does
after its blocks (final norm, projections, unembedding, soft caps), by the model's own code, and the
answer's first token gets a rank among the whole vocabulary. Forward prompts ask for `b`, reverse
ones for `a`; both curves side by side show at which depth the reverse answer is lost.

A lens reads early layers badly in every model. The null (another pair's answer, read from the same
states) says what a rank is worth; a reverse curve that stays on its null carries no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.pairs import Way
from ..interventions.end_chain import EndChain, after_blocks
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.statistics import bootstrap_mean
from .elicitation import Progress, silent

_MEMORY_MB = 256
_TOP = 10


@dataclass(frozen=True, eq=False)
class VocabularyReadout:
    """Ranks (1 is best, ties share the middle) of the answers' first tokens, by direction.

    The layer axis has `n_layers + 1` entries: the input of every block, then the last output.
    `null` holds the rank of another pair's first token at the same states; cells where that pair's
    answer starts with the same token are NaN. Chance is `(d_vocab + 1) / 2`.
    """

    ranks: Mapping[Way, Float[np.ndarray, "layer wording pair"]]
    null: Mapping[Way, Float[np.ndarray, "layer wording pair"]]
    d_vocab: int

    def table(self, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> polars.DataFrame:
        """A row a direction and layer: mean log10 rank over pairs with its bootstrap interval, the
        null's mean, mean reciprocal rank and the share of states that hold the token among ten."""
        return polars.concat(
            [
                _rows(way, ranks, self.null[way], draws, level, seed)
                for way, ranks in self.ranks.items()
            ]
        )


def vocabulary_readout(
    chain: EndChain,
    states: Mapping[Way, Float[np.ndarray, "layer wording pair d_model"]],
    targets: Mapping[Way, Int[np.ndarray, "wording pair"]],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> VocabularyReadout:
    """Rank the target of every state, and another pair's target for the null.

    `states` are residual streams at the prompts' last tokens, one entry a layer and one more for
    the last output. Work: `2 d_model d_vocab` operations a state; logits are held for some states
    at a time (256 MiB). Raises `MnemoscopeError` for shapes that do not belong together or fewer
    than two pairs.
    """
    _check(chain.model, states, targets)
    total, done = sum(array[..., 0].size for array in states.values()), 0
    ranks: dict[Way, np.ndarray] = {}
    null: dict[Way, np.ndarray] = {}
    for way, array in states.items():

        def told(within: int, before: int = done) -> None:
            progress(before + within, total)

        others = _others(targets[way], seed)
        both = np.stack([targets[way], others], axis=-1)
        wanted = np.broadcast_to(both, (*array.shape[:-1], 2))
        found = _ranks(chain, array.reshape(-1, array.shape[-1]), wanted.reshape(-1, 2), told)
        found = found.reshape(*array.shape[:-1], 2)
        ranks[way] = found[..., 0]
        null[way] = np.where(others == targets[way], np.nan, found[..., 1])
        done += array[..., 0].size
    return VocabularyReadout(ranks, null, chain.model.anatomy.d_vocab)


@torch.no_grad()
def _ranks(
    chain: EndChain,
    states: Float[np.ndarray, "state d_model"],
    tokens: Int[np.ndarray, "state k"],
    told: Callable[[int], None],
) -> Float[np.ndarray, "state k"]:
    """Middle ranks of each state's own tokens among all logits."""
    model = chain.model
    step = max(1, _MEMORY_MB * 2**20 // (8 * model.anatomy.d_vocab))
    found = np.empty(tokens.shape)
    for start in range(0, len(states), step):
        piece = slice(start, start + step)
        x = torch.from_numpy(np.ascontiguousarray(states[piece])).to(model.device, model.dtype)
        logits = after_blocks(chain, x[:, None], None)
        found[piece] = middle_ranks(logits, torch.tensor(tokens[piece])).cpu().numpy()
        told(min(start + step, len(states)))
    return found


def middle_ranks(
    logits: Float[Tensor, "row token"], ids: Int[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """Rank of each row's tokens: one more than the larger logits, ties counted half.

    So a model that says the same of every token ranks them all in the middle, not first.
    """
    own = logits.gather(1, ids.to(logits.device))
    ranks = []
    for column in own.T:
        above = (logits > column[:, None]).sum(1)
        level = (logits == column[:, None]).sum(1)
        ranks.append(above + (level + 1) / 2)
    return torch.stack(ranks, dim=1).double()


def _others(targets: Int[np.ndarray, "wording pair"], seed: int) -> Int[np.ndarray, "wording pair"]:
    """Each pair's target exchanged for another pair's: one random cycle through all of them."""
    cycle = np.random.default_rng(seed).permutation(targets.shape[1])
    others = np.empty_like(targets)
    others[:, cycle] = targets[:, np.roll(cycle, 1)]
    return others


def _rows(
    way: Way, ranks: np.ndarray, null: np.ndarray, draws: int, level: float, seed: int
) -> polars.DataFrame:
    by_pair = np.log10(ranks).mean(axis=1).T  # [pair, layer]
    interval = bootstrap_mean(by_pair, range(len(by_pair)), draws=draws, level=level, seed=seed)
    return polars.DataFrame(
        {
            "way": [way] * len(ranks),
            "layer": range(len(ranks)),
            "log10_rank": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "null": _mean_of_finite(np.log10(null)),
            "mrr": (1 / ranks).mean(axis=(1, 2)),
            f"top_{_TOP}": (ranks <= _TOP).mean(axis=(1, 2)),
        }
    )


def _mean_of_finite(values: Float[np.ndarray, "layer wording pair"]) -> Float[np.ndarray, " layer"]:
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis=(1, 2))
    return np.divide(
        total, finite.sum(axis=(1, 2)), out=np.full(len(total), np.nan), where=total > 0
    )


def _check(
    model: HookedModel, states: Mapping[Way, np.ndarray], targets: Mapping[Way, np.ndarray]
) -> None:
    for way, array in states.items():
        want = (*np.shape(targets.get(way, ())), model.anatomy.d_model)
        if array.ndim != 4 or array.shape[1:] != want:
            raise MnemoscopeError(
                f"{way} states have shape {array.shape}, but targets and model ask for [layer, "
                f"wording, pair, d_model] ending in {want}: read both off the same prompts."
            )
        if array.shape[2] < 2:
            raise MnemoscopeError("a readout needs two pairs at least, for its null.")
