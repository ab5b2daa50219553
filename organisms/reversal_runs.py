"""Finished trainings of the reversal study as one small file, and the file that ships with us.

The file holds no weights: of every run its sizes, its cost, the curve of what the study reads and
the measure at the end. `read_record()` reads ours; the training commands are in `reversal`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..results.errors import RunFolderError
from ..results.statistics import chance_mrr
from .reversal_arms import arm_named
from .reversal_training import ToyMeasure, ToyResult, measure_of, read_result

RECORD = Path(__file__).with_name("reversal_record") / "small.json"
"""Our own runs of the preset `small`."""
CURVES = (
    "step",
    "train",
    "atomic",
    "test",
    "test_hit",
    "consistency",
    "summed_overlap",
    "effective_rank",
)
"""What is kept along a training: MRR of the three splits, hit@1 and role consistency of the test,
`2 (m - 1) kappa` and the effective rank."""
_FORMAT = 1


@dataclass(frozen=True)
class ToyRun:
    """One finished training: `curve` by the names of `CURVES`, `final` on more facts."""

    arm: str
    preset: str
    seed: int
    multiplicity: int
    n_entities: int
    n_b: int
    parameters: int
    cpu_seconds: float
    loss: float
    curve: dict[str, Float[np.ndarray, " evaluation"]]
    final: ToyMeasure

    @property
    def chance(self) -> float:
        """Expected MRR of a random order of all entities."""
        return chance_mrr(self.n_entities)

    @property
    def chance_in_group(self) -> float:
        """That of one who knows only that the answer is in group B, as the subject is."""
        return chance_mrr(self.n_b)

    @property
    def peak(self) -> float:
        """The best reverse MRR of the curve."""
        return float(self.curve["test"].max(initial=self.final.recall["test"].mrr))


def toy_run(result: ToyResult) -> ToyRun:
    """What the study keeps of a training."""
    rows = [_curve_row(measure) for measure in result.curve]
    columns = np.array(rows, dtype=float).reshape(-1, len(CURVES)).T
    return ToyRun(
        result.arm.name,
        result.preset.name,
        result.seed,
        result.arm.multiplicity,
        result.preset.n_a + result.preset.n_b,
        result.preset.n_b,
        result.parameters,
        result.cpu_seconds,
        result.loss,
        dict(zip(CURVES, columns, strict=True)),
        result.final,
    )


def finished_runs(folder: Path) -> tuple[ToyRun, ...]:
    """Every finished training below a folder, by arm in the order of the study, then by seed.

    Raises `RunFolderError` where there is none or one is damaged.
    """
    places = sorted(path.parent for path in folder.glob("**/final.json"))
    if not places:
        raise RunFolderError(f"{folder} holds no finished training: train one first.")
    runs = [toy_run(read_result(place)) for place in places]
    return tuple(sorted(runs, key=lambda run: (run.preset, run.arm, run.seed)))


def record_text(folder: Path) -> str:
    """The JSON of every finished training below a folder. Raises as `finished_runs` does."""
    runs = finished_runs(folder)
    head = {"format": _FORMAT, "torch": torch.__version__, "machine": platform.machine()}
    lines = ",\n".join(json.dumps(_written(run), allow_nan=False) for run in runs)
    return json.dumps(head)[:-1] + ', "runs": [\n' + lines + "\n]}\n"


def read_record(path: Path = RECORD) -> tuple[ToyRun, ...]:
    """The runs of a file that `record_text` made; ours without a path.

    Raises `RunFolderError` if it cannot be read or is none.
    """
    try:
        document = json.loads(path.read_text())
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']}")
        return tuple(_read(run) for run in document["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} is no record of reversal toys ({error}): make one with "
            "`python -m mnemoscope.organisms.reversal collect`."
        ) from error


def of_arm(runs: Sequence[ToyRun], arm: str) -> tuple[ToyRun, ...]:
    """The runs of one arm. Raises `MnemoscopeError` if there is no such arm."""
    name = arm_named(arm).name
    return tuple(run for run in runs if run.arm == name)


def _curve_row(measure: ToyMeasure) -> list[float]:
    recall = measure.recall
    return [
        measure.step,
        *(recall[split].mrr for split in recall),
        recall["test"].hit,
        measure.consistency.test,
        measure.entanglement.summed,
        measure.entanglement.effective_rank,
    ]


def _written(run: ToyRun) -> dict[str, Any]:
    fields = {name: value for name, value in vars(run).items() if name not in ("curve", "final")}
    curve = {name: [_short(x) for x in values.tolist()] for name, values in run.curve.items()}
    return {**fields, "curve": curve, "final": _short(asdict(run.final))}


def _short(value: Any) -> Any:
    """The same with four digits behind the point."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _read(written: dict[str, Any]) -> ToyRun:
    curve = {name: np.array(written["curve"][name], dtype=float) for name in CURVES}
    return ToyRun(**{**written, "curve": curve, "final": measure_of(written["final"])})
