"""The numbers that a plan writes: scaled columns, and biases that take over a mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from .pruning_plan import BiasShift, PruningPlan
from .safetensors_bytes import Change, row_pieces, scaling, shifting


def changes_of(plan: PruningPlan) -> dict[str, tuple[Change, ...]]:
    """File name to its changes. Reads the edited blocks of the source in mode mean."""
    return {
        shard.name: (
            *(scaling(edit, plan.factor) for edit in shard.edits),
            *(shifting(bias.edit, bias_shift(plan, bias)) for bias in shard.biases),
        )
        for shard in plan.shards
    }


def bias_shift(plan: PruningPlan, bias: BiasShift) -> Float[np.ndarray, " d_model"]:
    """`sum_head W_O[:, head] @ mean z[head]` of one layer, in float64, rows piece by piece."""
    weight = bias.weight
    heads = sorted(head for head in plan.heads if head.layer == bias.layer)
    means = torch.from_numpy(np.concatenate([plan.mean_output(head) for head in heads]))
    columns = torch.cat([torch.arange(start, stop) for start, stop in weight.blocks])
    shift = torch.zeros(bias.edit.tensor.shape[0], dtype=torch.float64)
    for first, last in row_pieces(weight.tensor):
        rows = read_rows(plan.source / bias.weight_shard, weight.tensor.name, first, last)
        if weight.axis == 1:
            shift[first:last] = rows[:, columns].double() @ means
        else:
            here = (columns >= first) & (columns < last)
            shift += means[here] @ rows[columns[here] - first].double()
    return shift.numpy()


def read_rows(path: Path, name: str, first: int, last: int) -> Tensor:
    """Rows of a tensor, by the safetensors library; the file is mapped for no longer than that, so
    that its pages do not add up in memory. Copied by numpy: torch's threads would spin beside the
    ones that hash."""
    with safe_open(path, "pt") as file:
        rows = file.get_slice(name)[first:last]
        return torch.from_numpy(np.array(rows.view(torch.uint8).numpy())).view(rows.dtype)
