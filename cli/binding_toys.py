"""The work behind `binding train-toy`: arms of the reversal toy, trained in one resumable run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..models.errors import MnemoscopeError
from ..organisms.reversal import toy_folder
from ..organisms.reversal_arms import ARMS, Arm, Preset, arm_named, preset_named
from ..organisms.reversal_runs import RECORD, ToyRun, finished_runs, of_arm, read_record
from ..organisms.reversal_study import arm_table
from ..organisms.reversal_training import train_toy
from ..probes.elicitation import Progress
from ..results.figures import dose_figure
from ..results.provenance import Provenance, provenance_beyond_a_model, sha256_of_json
from ..results.run import Run
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "reversal-toy"
_CLAIM = (
    "Every model is told each fact in one direction and is asked the other one about facts whose "
    "subjects it knows. MRR is over all entities, hits are whole names; intervals are over seeds. "
    "Chance is a random order of all entities, or of those that can be the answer."
)


@dataclass(frozen=True)
class ToyConfig:
    """Everything that decides the numbers of a `binding train-toy` run, and nothing else."""

    arms: tuple[str, ...] = ("surface", "tied", "untied", "jepa")
    preset: str = "small"
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a name that is not offered."""
        preset_named(self.preset)
        for arm in self.arms:
            arm_named(arm)
        if not self.arms or not self.seeds:
            raise MnemoscopeError(f"name one arm and seed at least; arms are {', '.join(ARMS)}.")
        if len({*self.arms}) < len(self.arms) or len({*self.seeds}) < len(self.seeds):
            raise MnemoscopeError("an arm or a seed is named twice: name each once.")

    def steps_of(self, arm: Arm, preset: Preset) -> int:
        """Steps that an arm is trained for."""
        return self.steps or preset.steps or arm.steps


@dataclass(frozen=True)
class ToyCost:
    """What a training costs; `seconds` of one core from our own runs, None where there are none."""

    arm: str
    steps: int
    seeds: int
    seconds: float | None


def train_toys(
    config: ToyConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Train every arm with every seed and lay them side by side; an interrupted run goes on."""

    def measure(run: Run, phase: Phases) -> Findings:
        places = [(seed, arm) for seed in config.seeds for arm in config.arms]
        for done, (seed, arm) in enumerate(places):
            run.check_cancelled()
            train_toy(
                toy_folder(run.folder / "toys", config.preset, arm, seed),
                arm,
                config.preset,
                seed,
                steps=config.steps,
                device=config.device,
                progress=phase(f"{arm}, seed {seed} ({done + 1} of {len(places)})"),
            )
        return _findings(config, finished_runs(run.folder / "toys"))

    return binding_run(KIND, asdict(config), root, measure, force=force, say=say, tell=tell)


def toy_costs(config: ToyConfig) -> list[ToyCost]:
    """Steps of every arm, and the time that they took us, where our record has the preset."""
    preset = preset_named(config.preset)
    recorded = read_record() if RECORD.is_file() else ()
    found = []
    for name in config.arms:
        steps = config.steps_of(arm_named(name), preset)
        same = [one for one in of_arm(recorded, name) if one.preset == config.preset]
        a_step = [one.cpu_seconds / one.final.step for one in same]
        seconds = float(np.mean(a_step)) * steps * len(config.seeds) if a_step else None
        found.append(ToyCost(name, steps, len(config.seeds), seconds))
    return found


def _findings(config: ToyConfig, runs: Sequence[ToyRun]) -> Findings:
    table = arm_table(runs)
    rows = table.to_dicts()
    return Findings(
        title=f"The reversal curse in a toy, preset {config.preset}",
        claim=_CLAIM,
        summary={"preset": config.preset, "seeds": list(config.seeds), "arms": rows},
        table=table,
        provenance=_provenance(config),
        tables={"Arms": table},
        figures={
            name: _curve(runs, name, label)
            for name, label in (
                ("test", "MRR of the reverse"),
                ("train", "MRR of what was told in the other direction"),
                ("consistency", "centred cosine of predicted and perceived"),
            )
        },
        notes=[_sentence(row) for row in rows],
    )


def _curve(runs: Sequence[ToyRun], name: str, label: str) -> go.Figure:
    """One line a training."""
    parts = [
        polars.DataFrame(
            {
                "series": [f"{run.arm} {run.seed}"] * len(run.curve["step"]),
                "dose": run.curve["step"],
                "value": run.curve[name],
                "low": run.curve[name],
                "high": run.curve[name],
            }
        )
        for run in runs
    ]
    return dose_figure(
        polars.concat(parts), title=f"{label} in training", dose_label="step", axis_label=label
    )


def _sentence(row: dict[str, Any]) -> str:
    held = row["chance_in_group"]
    low = row["reverse_low"] if row["reverse_low"] is not None else row["reverse"]
    verdict = "above chance" if low > 2 * held else "near chance"
    return (
        f"{row['arm']}: forward MRR {row['told']:.2f}, reverse {row['reverse']:.3f} ({verdict}: "
        f"{held:.3f} for any entity that can be the answer)."
    )


def _provenance(config: ToyConfig) -> Provenance:
    """The data are drawn from preset and seed, so these stand for them."""
    return provenance_beyond_a_model(
        model_id=f"reversal toys: {', '.join(config.arms)}",
        data_sha256=sha256_of_json({**asdict(preset_named(config.preset))}),
        seed=config.seeds[0],
        estimand="recall of entities in the direction that was not told, by split",
        device=config.device,
        dtype="float32",
    )
