"""`--lm-eval`: tasks of EleutherAI's harness on the checkpoint before and after pruning."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.errors import MnemoscopeError

_NAME = "lm-eval.json"


class LmEvalMissingError(MnemoscopeError):
    """The optional extra is not installed."""


def check_lm_eval() -> None:
    """Raise `LmEvalMissingError` before any work is done when the harness is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise LmEvalMissingError(
            "--lm-eval needs the extra of that name: pip install 'mnemoscope[lm-eval]', then run "
            "the same command again."
        )


def run_tasks(source: Path, pruned: Path, tasks: Sequence[str]) -> list[tuple[object, ...]]:
    """(task, metric, before, after) of both folders by `lm_eval.simple_evaluate`.

    The harness loads each folder itself with its own defaults; tasks that it has no data for are
    fetched by it. Raises `MnemoscopeError` with its reason when it fails.
    """
    check_lm_eval()
    harness: Any = importlib.import_module("lm_eval")
    before, after = (_scores(harness, folder, tasks) for folder in (source, pruned))
    return [
        (task, metric, value, after.get(task, {}).get(metric))
        for task, metrics in before.items()
        for metric, value in metrics.items()
    ]


def save_tasks(folder: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    """Write the rows as JSON beside the checkpoint, not into it, and return the file."""
    from ..results.storage import write_atomic

    path = folder.with_name(f"{folder.name}.{_NAME}")
    named = [dict(zip(("task", "metric", "before", "after"), row, strict=True)) for row in rows]
    write_atomic(path, json.dumps({"schema": "mnemoscope/lm-eval/1", "rows": named}, indent=1))
    return path


def _scores(harness: Any, folder: Path, tasks: Sequence[str]) -> Mapping[str, dict[str, float]]:
    try:
        found = harness.simple_evaluate(
            model="hf", model_args={"pretrained": str(folder)}, tasks=list(tasks)
        )
    except Exception as error:  # the harness has no error class of its own
        raise MnemoscopeError(
            f"lm-eval failed on {folder} ({type(error).__name__}: {error}): check the task names "
            "with `lm-eval ls tasks` and that their data is at hand."
        ) from error
    return {
        task: {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}
        for task, metrics in found["results"].items()
    }
