"""One layer's scores, folded together block of prompts by block of prompts.

A `Plan` lays out once what a design asks for; a `LayerScores` takes the pooled activations of one
block after the other and keeps running worst cases, so that no sort has to be held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.design_columns import Column, ColumnKind
from ..data.facts.designs import Block, Design, Prompt
from ..models.errors import MnemoscopeError
from .average_precision import AveragePrecision, average_precision
from .neuron_nulls import best_units

# Units whose means are taken in one matrix product: fixed, for products of other shapes round
# otherwise and a score must not depend on the memory.
_STEP = 64
_KINDS: tuple[ColumnKind, ...] = ("relation", "half", "length", "resample", "pseudo")

GRIDS = (
    "score",
    "sign",
    "ap",
    "half",
    "ap_same",
    "ap_new",
    "wording_ap",
    "length_ap",
    "dprime",
    "mean_in",
    "mean_out",
)
"""Names of the arrays `[..., unit]` of a layer: fields of `RelationNeurons` without the layer."""

Key = tuple[ColumnKind, str, int]
"""What a column asks in whatever wording: its kind, relation and draw."""


@dataclass(frozen=True)
class Stage:
    """Prompts that are held together, and the blocks read off them."""

    prompts: tuple[Prompt, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def rows(self) -> tuple[Int[Tensor, " n"], ...]:
        """Of each block, where its prompts stand."""
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        return tuple(
            torch.tensor([place[prompt] for prompt in block.prompts]) for block in self.blocks
        )


@dataclass(frozen=True)
class Tops:
    """Which rows of a layer's `top_units` belong to what."""

    resample: slice
    pseudo: slice
    same: slice
    new: slice


@dataclass(frozen=True)
class Plan:
    """The blocks of a design by purpose, and the rows of everything that is kept of them.

    `keys` are the distinct columns of the blocks that find units, kind by kind.
    """

    relations: tuple[str, ...]
    find: tuple[Block, ...]
    test: tuple[Block, ...]
    pairs: tuple[Block, ...]
    keys: tuple[Key, ...]

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """All that finds (two wordings are compared too), then each block that judges."""
        finding = (*self.find, *self.pairs)
        distinct = dict.fromkeys(prompt for block in finding for prompt in block.prompts)
        judging = (Stage(block.prompts, (block,)) for block in self.test)
        return (Stage(tuple(distinct), finding), *judging)

    @property
    def n_prompts(self) -> int:
        """Prompts that are run for each layer."""
        return sum(len(stage.prompts) for stage in self.stages)

    @property
    def wordings(self) -> tuple[str, ...]:
        """The detection wordings."""
        return tuple(block.wording for block in self.find)

    @property
    def new_wordings(self) -> tuple[str, ...]:
        """The wordings that only judge."""
        return tuple(b.wording for b in self.test if b.wording not in self.wordings)

    @property
    def pseudo(self) -> tuple[str, ...]:
        """Names of the pseudo-relations."""
        return tuple(relation for kind, relation, _ in self.keys if kind == "pseudo")

    @property
    def draws(self) -> int:
        """Resamples of each relation."""
        return len({draw for kind, _, draw in self.keys if kind == "resample"})

    @property
    def tops(self) -> Tops:
        """Where a layer's `top_units` keep what."""
        r, n = len(self.relations), self.draws * len(self.relations)
        same = n + len(self.pseudo)
        return Tops(slice(n), slice(n, same), slice(same, same + r), slice(same + r, same + 2 * r))

    @property
    def unit_bytes(self) -> int:
        """What one unit takes while a layer is scored: its activations and running scores."""
        r, most = len(self.relations), max(len(stage.prompts) for stage in self.stages)
        return 4 * (most + 4 * len(self.keys) + r * (3 * len(self.find) + 20))

    @cached_property
    def sizes(self) -> Int[np.ndarray, "relation wording two"]:
        """Positives and members of each relation's column in each detection wording."""
        sizes = np.zeros((len(self.relations), len(self.find), 2), np.int64)
        for j, block in enumerate(self.find):
            for i, _, column in self.of_relations(block, "relation"):
                members = block.prompts if column.member is None else column.member
                sizes[i, j] = len(column.positive), len(members)
        return sizes

    def rows(self, kind: ColumnKind) -> slice:
        """The rows of one kind in `keys`."""
        at = [i for i, key in enumerate(self.keys) if key[0] == kind]
        return slice(at[0], at[-1] + 1) if at else slice(0, 0)

    def of_relations(self, block: Block, kind: ColumnKind) -> Iterator[tuple[int, int, Column]]:
        """(row of the relation, row of the column, column) of a block's columns of one kind."""
        for row, column in enumerate(block.columns):
            if column.kind == kind:
                yield self.relations.index(column.relation), row, column

    def times(self, blocks: tuple[Block, ...], kind: ColumnKind) -> Float[Tensor, "relation one"]:
        """How many columns of a kind each relation has; NaN for none, as a divisor."""
        times = torch.zeros(len(self.relations), 1)
        for block in blocks:
            for relation, _, _ in self.of_relations(block, kind):
                times[relation] += 1
        return times.masked_fill(times == 0, torch.nan)


def plan_of(design: Design) -> Plan:
    """Sort a design's blocks. Raises `MnemoscopeError` for one that finds nothing."""
    find = design.find_blocks
    asked = {_key(column) for block in find for column in block.columns}
    if not any(kind == "relation" for kind, _, _ in asked):
        raise MnemoscopeError(
            "the design has no relation to find units for: build it with one relation at least."
        )
    place = {name: i for i, name in enumerate(design.relations)}
    keys = sorted(asked, key=lambda key: (_KINDS.index(key[0]), place.get(key[1], 0), key[2]))
    return Plan(design.relations, find, design.test_blocks, design.wording_pairs, tuple(keys))


def _key(column: Column) -> tuple[ColumnKind, str, int]:
    return column.kind, column.relation, column.draw


class LayerScores:
    """The running scores of one layer's units. Not a value: `add` changes it.

    Two signs go through everything: first that of the activation, then that of its negative.
    """

    def __init__(self, plan: Plan, n_units: int, sort_bytes: int) -> None:
        """`sort_bytes` bounds the working memory of a sort."""
        self.plan, self.sort_bytes = plan, sort_bytes
        r, w = len(plan.relations), len(plan.find)
        self.worst = torch.full((2, len(plan.keys), n_units), torch.inf)
        self.by_wording = torch.full((2, r, w, n_units), torch.nan)
        self.means = torch.zeros(3, r, n_units)  # dprime, mean_in, mean_out
        self.tested_worst = torch.full((2, 2, r, n_units), torch.inf)  # [sign, same or new, ...]
        self.tested_sum = torch.zeros(2, 2, r, n_units)
        self.pair_sum = torch.zeros(r, n_units)

    @torch.no_grad()
    def add(self, block: Block, pooled: Float[Tensor, "unit m"], rows: Int[Tensor, " n"]) -> None:
        """Take in a block, whose prompts are `rows` of the pooled activations."""
        positive = torch.from_numpy(block.positive_matrix())
        member = torch.from_numpy(block.member_matrix())
        rows = rows.to(pooled.device)
        for units in self._slices(len(pooled), len(rows), len(positive)):
            scores = pooled[units].index_select(1, rows)
            aps = average_precision(scores, positive, member, memory_bytes=self.sort_bytes // 2)
            self._take(block, units, aps)
        if block in self.plan.find:
            self._take_means(block, pooled, rows)

    def arrays(self, k: int) -> dict[str, np.ndarray]:
        """Scores `[..., unit]`, and value and index of the best `k` units of each column that is
        only ranked, `top_values` and `top_units` `[row, k]` (`Plan.tops`)."""
        plan, best = self.plan, self.worst.amax(0)
        low = (self.worst[1] > self.worst[0])[plan.rows("relation")]
        tested = self.tested_worst.amax(0).flatten(0, 1)
        ranked = [best[plan.rows("resample")], best[plan.rows("pseudo")], tested]
        values, units = best_units(_known(torch.cat(ranked)), k)
        means = dict(zip(("dprime", "mean_in", "mean_out"), self.means, strict=True))
        found = plan.times(plan.find, "relation")
        grids = {
            "score": best[plan.rows("relation")],
            "ap": torch.where(low[:, None], self.by_wording[1], self.by_wording[0]),
            "half": torch.stack([self._of(best, "half", draw) for draw in (0, 1)]),
            "ap_same": self._tested_mean(low, 0),
            "ap_new": self._tested_mean(low, 1),
            "wording_ap": self.pair_sum / plan.times(plan.pairs, "wording"),
            "length_ap": self._of(best, "length", 0),
            **{name: mean / found for name, mean in means.items()},
        }
        arrays = {name: _known(grid) for name, grid in grids.items()}
        arrays["sign"] = (1 - 2 * low.to(torch.int8)).numpy()
        return {**arrays, "top_values": values, "top_units": units}

    def _slices(self, n_units: int, n: int, n_columns: int) -> Iterator[slice]:
        """Slices whose scores and APs fit half of the sort's memory; the other half sorts."""
        step = max(1, self.sort_bytes // 2 // (4 * n + 24 * n_columns))
        for start in range(0, n_units, step):
            yield slice(start, min(start + step, n_units))

    def _take(self, block: Block, units: slice, aps: AveragePrecision) -> None:
        plan, both = self.plan, torch.stack([aps.above, aps.below]).float()
        if block in plan.pairs:
            for relation, row, _ in plan.of_relations(block, "wording"):
                self.pair_sum[relation, units] += both[:, row].amax(0)
        elif block in plan.find:
            keys = torch.tensor([plan.keys.index(_key(column)) for column in block.columns])
            self.worst[:, keys, units] = torch.minimum(self.worst[:, keys, units], both)
            wording = plan.find.index(block)
            for relation, row, _ in plan.of_relations(block, "relation"):
                self.by_wording[:, relation, wording, units] = both[:, row]
        else:
            new = int(block.wording in plan.new_wordings)
            for relation, row, _ in plan.of_relations(block, "relation"):
                at = (slice(None), new, relation, units)
                self.tested_worst[at] = torch.minimum(self.tested_worst[at], both[:, row])
                self.tested_sum[at] += both[:, row]

    def _take_means(self, block: Block, pooled: Tensor, rows: Tensor) -> None:
        """Add the gap between the relations' prompts and all others (`RelationNeurons.dprime`)."""
        found = list(self.plan.of_relations(block, "relation"))
        relations = [relation for relation, _, _ in found]
        inside = torch.from_numpy(block.positive_matrix())[[row for _, row, _ in found]]
        weights = inside.T.double().to(pooled.device)
        for start in range(0, len(pooled), _STEP):
            units = slice(start, start + _STEP)
            scores = pooled[units].index_select(1, rows).double()
            self.means[:, relations, units] += _gaps(scores, weights).float().cpu()

    def _of(self, best: Tensor, kind: ColumnKind, draw: int) -> Float[Tensor, "relation unit"]:
        """The best scores of one column a relation, NaN where the design has none."""
        placed = torch.full((len(self.plan.relations), best.shape[1]), torch.nan)
        for row, (of_kind, relation, of_draw) in enumerate(self.plan.keys):
            if (of_kind, of_draw) == (kind, draw):
                placed[self.plan.relations.index(relation)] = best[row]
        return placed

    def _tested_mean(self, low: Tensor, new: int) -> Float[Tensor, "relation unit"]:
        """Mean over wordings of the AP on new subjects, for the sign that finding chose."""
        names = self.plan.new_wordings
        blocks = tuple(b for b in self.plan.test if (b.wording in names) == bool(new))
        total = torch.where(low, self.tested_sum[1, new], self.tested_sum[0, new])
        return total / self.plan.times(blocks, "relation")


def _gaps(
    scores: Float[Tensor, "unit n"], weights: Float[Tensor, "n relation"]
) -> Float[Tensor, "three relation unit"]:
    """(mean inside - outside) / pooled sd (0 where nothing varies), mean inside, mean outside."""
    p = weights.sum(0)
    n = len(weights) - p
    centre = scores.mean(1, keepdim=True)
    moved = scores - centre
    inside, squares = moved @ weights, moved.square() @ weights
    outside = moved.sum(1, keepdim=True) - inside
    rest = moved.square().sum(1, keepdim=True) - squares
    spread = (squares - inside.square() / p) + (rest - outside.square() / n.clamp(min=1))
    sd = (spread.clamp(min=0) / (len(weights) - 2)).sqrt()
    gap = inside / p - outside / n.clamp(min=1)
    d = torch.where(sd > 0, gap / sd, 0.0)
    return torch.stack([d, inside / p + centre, outside / n.clamp(min=1) + centre]).mT


def _known(values: Tensor) -> np.ndarray:
    """As float32, NaN where no wording was folded in."""
    return values.masked_fill(values.isinf(), torch.nan).float().numpy()
