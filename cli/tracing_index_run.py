"""`trace index` as a run: watched, cancelled and resumed like any other.

The run says what was built, and where; the index itself is the folder that was asked for, whose
unfinished shards the build keeps beside it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..probes.elicitation import Progress
from ..results.provenance import Provenance, provenance_beyond_a_model
from ..results.run import Run, RunFolder
from ..results.run_folder import open_run, run_id_of
from ..results.run_inputs import note_inputs
from ..results.run_reading import load_run
from .tracing_index import IndexPlan, IndexResult, check_out, make_index

KIND = "trace-index"
TELL_SECONDS = 0.5


@dataclass(frozen=True)
class IndexRun:
    """A finished run: its folder, and the index as JSON."""

    folder: Path
    index: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.index}


def index_corpus(
    plan: IndexPlan,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> IndexRun:
    """Build the index, or go on with an interrupted build. Raises as `make_index` does.

    The run of an index that was built and is gone starts anew.
    """
    plan = replace(plan, out=plan.out.expanduser().absolute())
    check_out(plan, force=force)
    key = json.loads(json.dumps(asdict(plan), default=str))
    gone = RunFolder(root, run_id_of(KIND, key)).final.is_dir()
    with open_run(root, KIND, key, force=force or gone) as run:
        note_inputs(run.folder, {"cwd": os.getcwd()})  # sources may be relative, and name documents
        return _built(plan, run, force=force, say=say, tell=tell)


def _built(
    plan: IndexPlan, run: Run, *, force: bool, say: Callable[[str], None], tell: Progress
) -> IndexRun:
    built = make_index(plan, force=force, tell=_now_and_then(run, tell))
    document = built.document()
    if "index" not in run.done:
        run.append("index", document)
    folder = run.finish(_table(built), {"tokens": np.array(built.info.n_tokens)}, _origin(plan))
    say(f"run      {folder}")
    return IndexRun(folder, dict(load_run(folder).rows["index"]))


def _now_and_then(run: Run, tell: Progress) -> Progress:
    """Tell the terminal of every document, the run's watchers twice a second."""
    last = float("-inf")

    def both(done: int, total: int) -> None:
        nonlocal last
        tell(done, total)
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            run.check_cancelled()
            run.progress(done, total or None, "documents")

    return both


def _table(built: IndexResult) -> polars.DataFrame:
    """Every file of the index with its size."""
    files = built.info.files.items()
    return polars.DataFrame(
        [{"file": name, "bytes": record.bytes} for name, record in files],
        schema={"file": polars.String, "bytes": polars.Int64},
    )


def _origin(plan: IndexPlan) -> Provenance:
    return provenance_beyond_a_model(
        model_id=plan.spelled_by or "bytes",
        estimand=f"index of {', '.join(plan.sources)}",
        device="cpu",
        dtype="",
    )
