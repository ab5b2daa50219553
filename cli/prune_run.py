"""One pruning, from its configuration to the checked folder: choose, plan, measure, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..data.neutral import neutral_passages
from ..interventions.checkpoint_surgery import prune_checkpoint
from ..interventions.head_means import mean_head_outputs
from ..interventions.head_slicing import slice_checkpoint
from ..interventions.pruning_plan import PruningPlan, plan_pruning
from ..interventions.slicing_plan import SlicingPlan, plan_slicing
from ..models.checkpoint_files import read_shards
from ..models.errors import CheckpointError
from ..models.hooked import HookedModel
from ..models.load import checkpoint_folder, load_model
from ..models.types import HeadId
from ..results.provenance import JSON
from .exit_codes import GateFailedError
from .prune_config import Evaluate, PruneConfig, Source
from .prune_eval import (
    Evaluation,
    Ground,
    Means,
    evaluate,
    failed_gates,
    ground_of,
    head_edits,
    reload_gap,
)
from .prune_lm_eval import check_lm_eval, run_tasks, save_tasks
from .prune_selection import ChosenHeads, choose_heads, model_shape, weights_digest

Plan: TypeAlias = PruningPlan | SlicingPlan

_TOLERANCE = {"F32": 1e-4, "F64": 1e-4}
_HALF_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Planned:
    """What would be done; no weight has been read."""

    config: PruneConfig
    folder: Path
    chosen: ChosenHeads
    plan: Plan

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The heads, in the order in which they were chosen."""
        return self.chosen.heads

    def describe(self) -> str:
        """The plan for a person, with notes on the choice of heads."""
        return "\n".join((self.plan.describe(), *self.chosen.notes))

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with the resolved recipe."""
        return {
            "plan": self.plan.document(),
            "notes": list(self.chosen.notes),
            "recipe": self.config.document(),
        }


@dataclass(frozen=True)
class Pruned:
    """A folder that was written and checked; `gap` is set when it was reloaded as well."""

    out: Path
    heads: tuple[HeadId, ...]
    evaluation: Evaluation | None
    gap: float | None
    tasks: tuple[tuple[object, ...], ...] = ()
    """(task, metric, before, after) of `--lm-eval`."""

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "out": str(self.out),
            "heads": [str(head) for head in self.heads],
            "evaluation": None if self.evaluation is None else self.evaluation.summary(),
            "reload_gap": self.gap,
            "lm_eval": [list(row) for row in self.tasks],
        }


@dataclass(frozen=True, eq=False)
class Loaded:
    """A checkpoint's model and conflict items, loaded when first needed, shared by a batch."""

    source: Source
    settings: Evaluate

    @cached_property
    def model(self) -> HookedModel:
        """The model under the name that the configuration gives it."""
        return load_model(self.source.path)

    @cached_property
    def ground(self) -> Ground:
        """The model with the items that it knows."""
        return ground_of(self.model, self.settings)

    def means(self, heads: Sequence[HeadId]) -> Means:
        """Mean outputs over the neutral passages."""
        return mean_head_outputs(self.model, neutral_passages(), heads)


def plan_of(config: PruneConfig) -> Planned:
    """Choose the heads and find their bytes, from configuration and headers only.

    Raises `MnemoscopeError`s for heads, folders and modes that cannot be; a mean is planned with
    zeros in the place of the numbers, which touches the same bytes.
    """
    folder = checkpoint_folder(config.source.path)
    chosen = choose_heads(config.heads, folder)
    means = None
    if config.method.mode == "mean":
        d_v = model_shape(folder).d_v
        means = {head: np.zeros(d_v) for head in chosen.heads}
    return Planned(config, folder, chosen, _plan(config, folder, chosen.heads, means))


def prune(
    planned: Planned,
    *,
    runs: Path,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
    loaded: Loaded | None = None,
) -> Pruned:
    """Measure if asked, hold the gates, write, check; a failed gate leaves nothing behind.

    Raises `GateFailedError`, and what planning, measuring and writing raise.
    """
    config, out = planned.config, Path(planned.config.output.path)
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already: choose another name, or use --force.")
    if config.lm_eval:
        check_lm_eval()
    _check_source(planned)
    loaded = loaded or Loaded(config.source, config.evaluate or Evaluate())
    means = loaded.means(planned.heads) if config.method.mode == "mean" else {}
    found = _evaluated(planned, loaded, runs, force, tell)
    if found is not None:
        _hold_gates(planned, found, say)
    plan = planned.plan
    if means:
        plan = _plan(config, planned.folder, planned.heads, means)
    folder = _written(config, plan, out, force, _extra(planned, found))
    gap = None
    if found is not None:
        gap = _reloaded(planned, loaded, folder, means)
    tasks: list[tuple[object, ...]] = []
    if config.lm_eval:
        tasks = run_tasks(planned.folder, folder, config.lm_eval)
        say(f"lm-eval  {save_tasks(folder, tasks)}")
    return Pruned(folder, planned.heads, found, gap, tuple(tasks))


def _plan(
    config: PruneConfig, folder: Path, heads: Sequence[HeadId], means: Mapping[HeadId, Any] | None
) -> Plan:
    method = config.method
    if method.mode == "slice":
        return plan_slicing(folder, heads, allow_no_tokenizer=not config.source.tokenizer)
    return plan_pruning(
        folder,
        heads,
        factor=method.factor or 0.0,
        mean_outputs=means,
        projection=method.projection,
        all_shared=method.all_shared,
        allow_no_tokenizer=not config.source.tokenizer,
    )


def _check_source(planned: Planned) -> None:
    asked = planned.config.source.sha256
    if asked == "auto":
        return
    found = weights_digest(planned.folder, tuple(read_shards(planned.folder)))
    if found != asked:
        raise CheckpointError(
            f"the weights of {planned.folder} have SHA-256 {found}, the recipe asks for {asked}: "
            "get the checkpoint that was meant, or write auto."
        )


def _evaluated(
    planned: Planned,
    loaded: Loaded,
    runs: Path,
    force: bool,
    tell: Callable[[int, int], None],
) -> Evaluation | None:
    config = planned.config
    if config.evaluate is None:
        return None
    return evaluate(
        loaded.ground,
        config.method,
        planned.heads,
        config.controls,
        runs,
        means_of=loaded.means,
        force=force,
        tell=tell,
    )


def _hold_gates(planned: Planned, found: Evaluation, say: Callable[[str], None]) -> None:
    failed = failed_gates(planned.config.gate, found.metrics)
    if failed:
        raise GateFailedError(
            f"{'; '.join(failed)}. Nothing was written; the numbers are in "
            f"{found.run / 'report.html'}. Next: choose fewer heads, or another gate."
        )
    if planned.config.gate:
        say(f"gates: {len(planned.config.gate)} of {len(planned.config.gate)} hold")


def _extra(planned: Planned, found: Evaluation | None) -> dict[str, JSON]:
    extra: dict[str, JSON] = {**planned.chosen.origin, "recipe": planned.config.document()}
    if found is not None:
        extra["evaluation"] = found.summary()
    return extra


def _written(
    config: PruneConfig, plan: Plan, out: Path, force: bool, extra: Mapping[str, JSON]
) -> Path:
    if isinstance(plan, SlicingPlan):
        return slice_checkpoint(plan, out, force=force, manifest_extra=extra)
    copied = config.output.copy_untouched
    return prune_checkpoint(plan, out, force=force, manifest_extra=extra, copy_untouched=copied)


def _reloaded(planned: Planned, loaded: Loaded, folder: Path, means: Means) -> float:
    """The written folder must say what the hooked model said when it was measured."""
    edits = head_edits(planned.config.method, planned.heads, means)
    prompt = loaded.ground.items[0].prompt("substitution")
    gap = reload_gap(loaded.model, load_model(folder), edits, prompt)
    masking = planned.plan if isinstance(planned.plan, PruningPlan) else planned.plan.masking
    bounds = [_TOLERANCE.get(edit.tensor.dtype, _HALF_TOLERANCE) for _, edit in masking.edits]
    if not gap <= max(bounds):
        raise CheckpointError(
            f"{folder} was written, but its logits differ from the measured model's by {gap:.3g} "
            f"of the largest (allowed: {max(bounds):g}): do not use it, and please report this."
        )
    return gap
