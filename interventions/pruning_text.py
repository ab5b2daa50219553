"""A pruning plan in words and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..results.provenance import JSON

if TYPE_CHECKING:
    from .pruning_plan import PruningPlan

PLAN_SCHEMA = "mnemoscope/prune-plan/1"
WRITE_RATE = 200e6
"""Bytes a second that the estimate of time assumes for copying, hashing included."""
PEAK_MEMORY = 500_000_000
"""Bytes of memory that pruning stays under at any model size (benchmarks/prune_checkpoint.py)."""


def described(plan: PruningPlan) -> Iterator[str]:
    """Lines for a person."""
    action = "set to zero" if plan.factor == 0 else f"multiply by {plan.factor:g}"
    if plan.mode == "mean":
        action = "set to zero and leave the mean in the bias"
    yield (
        f"{plan.source.name} ({plan.model_type}, {plan.n_heads} query heads and "
        f"{plan.n_kv_heads} kv heads a layer): {action} {counted(len(plan.heads), 'head')}, "
        f"{', '.join(map(str, plan.heads))}"
    )
    if plan.shared:
        yield "warning: one matrix serves all layers, so each head is pruned in every layer"
    for name, edit in plan.all_edits:
        yield f"{name}: {edit.tensor.name} {edit.tensor.dtype} {list(edit.tensor.shape)}"
        for part in edit.ranges:
            every = f", every {part.stride}" if part.count > 1 else ""
            runs = counted(part.count, "run")
            yield f"  from byte {part.offset}: {runs} of {part.length} bytes{every}"
    yield from _sharing(plan)
    yield f"{counted(plan.parameters, 'weight')} in {plan.edited_bytes:,} bytes change"
    if plan.left_out:
        yield f"left behind (weights here would still hold the heads): {', '.join(plan.left_out)}"
    yield f"licence of the source: {plan.licence or 'none found in its card'}"
    linked = ""
    if plan.untouched_bytes:
        least = (plan.disk_bytes - plan.untouched_bytes) / 1e6
        linked = f" ({least:,.1f} MB where untouched shards can be linked)"
    yield f"disk needed: {plan.disk_bytes / 1e6:,.1f} MB{linked}"
    yield (
        f"time: about {_seconds(plan):,.0f} s at {WRITE_RATE / 1e6:.0f} MB/s; memory: under "
        f"{PEAK_MEMORY / 1e6:.0f} MB"
    )


def documented(plan: PruningPlan) -> dict[str, JSON]:
    """The plan as plain JSON data."""
    return {
        "schema": PLAN_SCHEMA,
        "source": {
            "path": str(plan.source),
            "model_type": plan.model_type,
            "hub_id": plan.hub_id,
            "revision": plan.revision,
            "licence": plan.licence,
        },
        "mode": plan.mode,
        "factor": plan.factor,
        "shared_matrix": plan.shared,
        "n_heads": plan.n_heads,
        "n_kv_heads": plan.n_kv_heads,
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "kv_head": plan.kv_head(head),
                "shares_kv_with": _others(plan, head.head),
            }
            for head in plan.heads
        ],
        "whole_kv_groups": [list(group) for group in plan.whole_groups()],
        "tensors": [
            {
                "shard": shard,
                "tensor": edit.tensor.name,
                "dtype": edit.tensor.dtype,
                "shape": list(edit.tensor.shape),
                "ranges": [[r.offset, r.stride, r.length, r.count] for r in edit.ranges],
            }
            for shard, edit in plan.all_edits
        ],
        "shards": [
            {"name": shard.name, "bytes": shard.size, "touched": shard.touched}
            for shard in plan.shards
        ],
        "parameters": plan.parameters,
        "edited_bytes": plan.edited_bytes,
        "files": list(plan.files),
        "left_out": list(plan.left_out),
        "disk_bytes": plan.disk_bytes,
        "disk_bytes_if_linked": plan.disk_bytes - plan.untouched_bytes,
        "about_seconds": round(_seconds(plan), 1),
        "peak_memory_bytes": PEAK_MEMORY,
    }


def counted(n: int, noun: str) -> str:
    """`1 head`, `2 heads`, `1,024 heads`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _sharing(plan: PruningPlan) -> Iterator[str]:
    """Grouped-query attention said out loud: who else reads this key/value head."""
    for head in plan.heads if plan.heads_per_kv > 1 else ():
        others = _others(plan, head.head)
        yield (
            f"query head {head.head} of layer {head.layer} shares kv head {plan.kv_head(head)} "
            f"with query head{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
        )
    for layer, kv in plan.whole_groups():
        yield (
            f"warning: all query heads of kv head {kv} in layer {layer} are named; its keys and "
            "values are still computed and cached, since one kv head count holds for all layers"
        )


def _others(plan: PruningPlan, head: int) -> list[int]:
    size = plan.heads_per_kv
    first = head // size * size
    return [other for other in range(first, first + size) if other != head]


def _seconds(plan: PruningPlan) -> float:
    """Time if untouched shards can be linked; start-up is a few seconds more."""
    return 1 + (plan.disk_bytes - plan.untouched_bytes) / WRITE_RATE
