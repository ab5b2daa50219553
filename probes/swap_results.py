"""What role swaps did: gains of every arm on a grid of layers, against the same arm's control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from ..data.facts.pairs import Pair
from ..models.errors import MnemoscopeError
from ..results.statistics import Interval, bootstrap_mean, chance_mrr, sign_flip_p
from .swap_vectors import Arm


@dataclass(frozen=True, eq=False)
class HeldOutCell:
    """An arm at the cells of the grid that are best on the *other* half of the pairs, so that the
    choice adds nothing. `beyond` is the gain beyond the control, nats, with its sign-flip `p`."""

    arm: Arm
    cells: tuple[tuple[int, int], ...]
    """(source layer, target layer) that each half was given."""
    gain: Interval
    beyond: Interval
    p: float


@dataclass(frozen=True, eq=False)
class RoleSwaps:
    """Scores of the asked name A under every arm, `[arm, source, target, pair]`; NaN where an arm
    has nothing to write. Ranks are of A's first token among those of all pairs' A (ties halved)."""

    relation: str
    pairs: tuple[Pair, ...]
    arms: tuple[Arm, ...]
    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    log_prob: Float[np.ndarray, "arm source target pair"]
    """Of the whole name, nats."""
    first: Float[np.ndarray, "arm source target pair"]
    """Of its first token, nats."""
    rank: Float[np.ndarray, "arm source target pair"]
    clean_log_prob: Float[np.ndarray, " pair"]
    clean_first: Float[np.ndarray, " pair"]
    clean_rank: Float[np.ndarray, " pair"]
    half: Int[np.ndarray, " pair"]
    seed: int

    @property
    def chance(self) -> float:
        """Mean reciprocal rank of a guess among the N candidates, H_N / N."""
        return chance_mrr(len(self.pairs))

    def gain(self, arm: Arm) -> Float[np.ndarray, "source target pair"]:
        """Change of the whole name's log-probability, nats."""
        return self.log_prob[self._place(arm)] - self.clean_log_prob

    def beyond(self, arm: Arm) -> Float[np.ndarray, "source target pair"]:
        """The gain beyond that of another entity's vector, nats."""
        return self.gain(arm) - self.gain(arm.control)

    def held_out(self, arm: Arm) -> HeldOutCell:
        """The arm where the other half of the pairs says that it works best."""
        beyond, gain = self.beyond(arm), self.gain(arm)
        cells, rows = [], np.full((len(self.pairs), 2), np.nan)
        for half in (0, 1):
            elsewhere = _mean_known(beyond[..., self.half != half])
            at = np.unravel_index(
                int(np.nan_to_num(elsewhere, nan=-np.inf).argmax()), beyond.shape[:2]
            )
            cells.append((self.source_layers[at[0]], self.target_layers[at[1]]))
            mine = self.half == half
            rows[mine] = np.stack([gain[at[0], at[1], mine], beyond[at[0], at[1], mine]], axis=1)
        known = rows[np.isfinite(rows).all(1)]
        units = range(len(known))
        gains, beyonds = (bootstrap_mean(known[:, i], units, seed=self.seed) for i in (0, 1))
        p = float(sign_flip_p(known[:, 1], units, seed=self.seed))
        return HeldOutCell(arm, tuple(cells), gains, beyonds, p)

    def table(self) -> pl.DataFrame:
        """One row an arm and cell: mean gains with 95 % intervals over pairs, mean reciprocal rank,
        and for arms with a control what lies beyond it. `p` is over sign flips of pairs, `p_grid`
        the same for the largest of the arm's cells (family-wise)."""
        return pl.concat([self._rows(arm) for arm in self.arms])

    def _rows(self, arm: Arm) -> pl.DataFrame:
        i = self._place(arm)
        known = np.isfinite(self.log_prob[i]).all((0, 1))
        beyond = self.beyond(arm) if arm.control in self.arms and arm.of == "own" else None
        if beyond is not None:
            known &= np.isfinite(beyond).all((0, 1))
        columns = {
            **_interval("gain", self.gain(arm)[..., known], self.seed),
            **_interval("first_gain", (self.first[i] - self.clean_first)[..., known], self.seed),
            **_interval("mrr", 1 / self.rank[i][..., known], self.seed),
            "clean_mrr": np.full(self.rank.shape[1:3], (1 / self.clean_rank[known]).mean()),
            **_against(None if beyond is None else beyond[..., known], self.seed, self.rank.shape),
        }
        source, target = np.meshgrid(self.source_layers, self.target_layers, indexing="ij")
        return pl.DataFrame(
            {
                "origin": [arm.origin] * source.size,
                "of": arm.of,
                "form": arm.form,
                "rank": "full" if arm.rank is None else str(arm.rank),
                "source_layer": source.ravel(),
                "target_layer": target.ravel(),
                "pairs": int(known.sum()),
                **{name: values.ravel() for name, values in columns.items()},
            }
        )

    def _place(self, arm: Arm) -> int:
        if arm not in self.arms:
            raise MnemoscopeError(f"no swap {arm} was run: choose one of the arms of this result.")
        return self.arms.index(arm)


def _mean_known(values: Float[np.ndarray, "source target pair"]) -> np.ndarray:
    """Mean over pairs that have a value; NaN where none has."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(-1)
    return np.divide(total, known.sum(-1), out=np.full(total.shape, np.nan), where=known.any(-1))


def _interval(
    name: str, values: Float[np.ndarray, "source target pair"], seed: int
) -> dict[str, np.ndarray]:
    over = np.moveaxis(values, -1, 0)
    found = bootstrap_mean(over, range(len(over)), seed=seed)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _against(
    beyond: Float[np.ndarray, "source target pair"] | None, seed: int, shape: Sequence[int]
) -> dict[str, np.ndarray]:
    """The gain beyond the control and its p-values; NaN for arms without one."""
    names = ("beyond", "beyond_low", "beyond_high", "p", "p_grid")
    if beyond is None:
        return {name: np.full(shape[1:3], np.nan) for name in names}
    over, units = np.moveaxis(beyond, -1, 0), range(beyond.shape[-1])
    return {
        **_interval("beyond", beyond, seed),
        "p": sign_flip_p(over, units, seed=seed),
        "p_grid": sign_flip_p(over, units, seed=seed, family_wise=True),
    }
