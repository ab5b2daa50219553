"""`prune run` as a run: watched, cancelled and resumed like any other.

The run says which heads left, and what was measured; the checkpoint is the folder that was asked
for. The asking is a `prune-eval` run of its own, which every pruning of these heads finds again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..models.errors import CheckpointError
from ..results.provenance import Provenance, provenance_beyond_a_model
from ..results.report import render_report
from ..results.run import Run, RunFolder
from ..results.run_folder import open_run, run_id_of
from ..results.run_inputs import note_inputs
from ..results.run_reading import load_run
from .prune_checks import written_before
from .prune_config import PruneConfig
from .prune_run import Planned, Pruned, plan_of, prune

KIND = "prune"


@dataclass(frozen=True)
class PruneRun:
    """A finished run; `pruned` is None where an earlier attempt had written the folder."""

    folder: Path
    out: Path
    pruned: Pruned | None

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        found = load_run(self.folder).rows["pruned"]
        return {"run": str(self.folder), **found}


def prune_kept(
    config: PruneConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> PruneRun:
    """Plan, measure if asked, hold the gates, write, check; the run says how far that is.

    A checkpoint that was written and is gone is written anew. Raises what `plan_of` and `prune`
    raise; a gate that does not hold fails the run.
    """
    planned, out = plan_of(config), Path(config.output.path)
    say(planned.describe())
    key = config.document()
    folder = RunFolder(root, run_id_of(KIND, key))
    before = None if force or folder.final.is_dir() else written_before(config)
    if out.exists() and not force and (before is None or not folder.partial.is_dir()):
        raise CheckpointError(f"{out} exists already: choose another name, or use --force.")
    with open_run(root, KIND, key, force=force or folder.final.is_dir()) as run:
        note_inputs(run.folder, {"cwd": os.getcwd()})  # the recipe's paths may be relative
        if before is not None:
            say(f"{out} was written and checked before.")
            return PruneRun(_finish(planned, before, run), out, None)
        pruned = prune(planned, runs=root, force=force, say=say, tell=_both(run, tell))
        return PruneRun(_finish(planned, pruned.document(), run), out, pruned)


def _both(run: Run, tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def both(done: int, total: int) -> None:
        run.check_cancelled()
        run.progress(done, total, "asking" if done < total else "writing")
        tell(done, total)

    return both


def _finish(planned: Planned, found: Mapping[str, Any], run: Run) -> Path:
    """One row a head; metrics, if there are, in the row `pruned` and in the report."""
    if "pruned" not in run.done:
        run.append("pruned", dict(found))
    heads = polars.DataFrame(
        [{"layer": head.layer, "head": head.head} for head in planned.heads],
        schema={"layer": polars.Int64, "head": polars.Int64},
    )
    tables = {"Heads that left": heads}
    metrics = (found["evaluation"] or {}).get("metrics", ())
    if metrics:
        shown = [{**one, "random": str(one["random"])} for one in metrics]
        tables["Before and after"] = polars.DataFrame(shown, infer_schema_length=None)
    config = planned.config
    provenance = _origin(config)
    report = render_report(
        title=f"{config.source.name} without {len(planned.heads)} heads",
        claim=f"Written to {config.output.path} and checked; prune undo restores the original.",
        tables=tables,
        figures={},
        provenance=provenance,
        notes=planned.chosen.notes,
    )
    arrays = {"heads": np.array([(head.layer, head.head) for head in planned.heads])}
    return run.finish(heads, arrays, provenance, {}, report)


def _origin(config: PruneConfig) -> Provenance:
    """The weights are hashed in the folder's manifest, shard by shard."""
    return provenance_beyond_a_model(
        model_id=config.source.name,
        weights_sha256=None if config.source.sha256 == "auto" else config.source.sha256,
        seed=config.controls.seed,
        estimand=f"pruned checkpoint, mode {config.method.mode}",
        device="auto",
        dtype="the checkpoint's own",
    )
