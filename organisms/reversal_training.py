"""Train one arm of the reversal study in a folder, and go on where it was interrupted.

A folder holds `settings.json`, `loss.jsonl` (a line a step; every so many steps it also holds what
the model knew), `state.safetensors` (what a resumed training starts from), `cost.json` and, at the
end, `final.json`. All but the cost are the same byte for byte however often the training of a CPU
was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..models.errors import MnemoscopeError
from ..results.errors import RunFolderError
from ..results.storage import write_atomic
from .engram.training_state import Training, open_training, restore, save_state
from .reversal_arms import Arm, Preset, arm_named, build_model, preset_named, world_of
from .reversal_data import SPLITS, ReversalWorld, Split
from .reversal_metrics import (
    Consistency,
    Entanglement,
    Recall,
    consistency,
    entanglement,
    entity_ranks,
    probe_facts,
    recall,
    token_mrr,
)
from .reversal_models import NamePredictor, ToyModel

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
_SAVE_EVERY = 500
# How many times more facts are asked about at the end than along the way.
_FINAL = 4


@dataclass(frozen=True)
class ToyMeasure:
    """What a model knew after a step.

    `recall` and, for language models, the teacher-forced `token_mrr` by split.
    """

    step: int
    recall: dict[Split, Recall]
    token_mrr: dict[Split, float] | None
    consistency: Consistency
    entanglement: Entanglement


@dataclass(frozen=True)
class ToyResult:
    """A finished training. `final` asks about more facts than the measures of the `curve`."""

    folder: Path
    arm: Arm
    preset: Preset
    seed: int
    parameters: int
    cpu_seconds: float
    loss: float
    """Nats, mean over the last hundred steps."""
    curve: tuple[ToyMeasure, ...]
    final: ToyMeasure

    @property
    def peak(self) -> ToyMeasure:
        """Where the reverse was answered best."""
        return max((*self.curve, self.final), key=lambda measure: measure.recall["test"].mrr)


@dataclass(frozen=True)
class TrainedToy:
    """A model with the world it was trained on."""

    model: ToyModel
    world: ReversalWorld
    arm: Arm
    preset: Preset
    seed: int
    step: int


def train_toy(
    folder: Path,
    arm: str | Arm,
    preset: str | Preset = "small",
    seed: int = 0,
    *,
    steps: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ToyResult:
    """Train an arm into `folder`, or go on where the same training stopped, up to `steps`.

    Without `steps` the preset's, or else the arm's. A training that is done already is only read,
    and one with more steps asked for goes on. Raises `MnemoscopeError` for an unknown name or no
    steps, `RunFolderError` where the folder holds another training or a damaged state.
    """
    arm = arm_named(arm) if isinstance(arm, str) else arm
    preset = preset_named(preset) if isinstance(preset, str) else preset
    steps = (preset.steps or arm.steps) if steps is None else steps
    if steps < 1:
        raise MnemoscopeError(f"a training needs one step at least, not {steps}.")
    open_training(folder, _settings(arm, preset, seed))
    toy = _begun(arm, preset, seed, device)
    training = Training(toy.model, (_optimizer(toy.model, arm, preset),))
    done = restore(folder, training)
    _train(folder, toy, training, (done, steps), progress)
    _measure_end(folder, toy, max(done, steps))
    return read_result(folder)


def load_toy(folder: Path, device: str = "cpu") -> TrainedToy:
    """The model of a training folder as it was last saved, in evaluation mode, and its world.

    Raises `RunFolderError` if the folder holds no training or a damaged one.
    """
    arm, preset, seed = _read_settings(folder)
    toy = _begun(arm, preset, seed, device)
    step = restore(folder, Training(toy.model, ()))
    if not step:
        raise RunFolderError(f"{folder} holds no saved model yet: train it first.")
    return TrainedToy(toy.model.eval(), toy.world, arm, preset, seed, step)


def read_result(folder: Path) -> ToyResult:
    """What a finished training left. Raises `RunFolderError` where it is not finished."""
    arm, preset, seed = _read_settings(folder)
    try:
        final = json.loads((folder / "final.json").read_text())
        cost = json.loads((folder / "cost.json").read_text())
        lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
        curve = tuple(measure_of(line["measure"]) for line in lines if "measure" in line)
        measured = measure_of(final["measure"])
        ends = final["parameters"], cost["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no finished training ({error}): run the same training again to finish "
            "it."
        ) from error
    loss = float(np.mean([line["loss"] for line in lines[-100:]]))
    return ToyResult(folder, arm, preset, seed, *ends, loss, curve, measured)


def measure(toy: TrainedToy, *, more: int = 1) -> ToyMeasure:
    """What a model knows now, asked about `more` times as many facts as the preset says."""
    tokens = isinstance(toy.model, NamePredictor)
    limit = more * (toy.preset.name_probes if tokens else toy.preset.probes)
    many = more * toy.preset.probes
    was = toy.model.training
    toy.model.eval()
    facts = {split: probe_facts(toy.world, split, limit) for split in SPLITS}
    answered = {split: recall(entity_ranks(toy.model, f), f) for split, f in facts.items()}
    forced: dict[Split, float] | None = None
    if isinstance(toy.model, NamePredictor):
        forced = {s: token_mrr(toy.model, probe_facts(toy.world, s, many)) for s in SPLITS}
    roles = consistency(toy.model, toy.world, toy.preset.probes)
    entangled = entanglement(toy.model, toy.world)
    toy.model.train(was)
    return ToyMeasure(toy.step, answered, forced, roles, entangled)


def _begun(arm: Arm, preset: Preset, seed: int, device: str) -> TrainedToy:
    world = world_of(arm, preset, seed)
    model = build_model(arm, preset, world, seed).to(device).train()
    return TrainedToy(model, world, arm, preset, seed, 0)


def _optimizer(model: ToyModel, arm: Arm, preset: Preset) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) do not decay."""
    kind = 0 if arm.predicts == "concepts" and arm.reads == "names" else 1
    tables = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": tables, "weight_decay": preset.decays[kind]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=preset.rates[kind], fused=True)
    for group in optimizer.param_groups:
        group["full_lr"] = group["lr"]
    return optimizer


def _train(
    folder: Path,
    toy: TrainedToy,
    training: Training,
    span: tuple[int, int],
    progress: Progress | None,
) -> None:
    """The steps after `span[0]` up to `span[1]`, logged and saved."""
    device = next(toy.model.parameters()).device
    told = torch.from_numpy(toy.world.told)
    cost = _Cost(folder)
    with (folder / "loss.jsonl").open("a") as curve:
        for step in range(span[0] + 1, span[1] + 1):
            chosen = batch_rows(len(told), toy.preset.batch, step, toy.seed)
            loss = _step(training, told[chosen].to(device), toy, step)
            line: dict[str, Any] = {"step": step, "loss": loss}
            if step % toy.preset.eval_every == 0:
                line["measure"] = asdict(measure(_at(toy, step)))
            curve.write(json.dumps(line) + "\n")
            if step % min(_SAVE_EVERY, toy.preset.eval_every) == 0 or step == span[1]:
                curve.flush()
                save_state(folder, training, step)
                cost.write()
            if progress:
                progress(step, span[1])


def _step(training: Training, facts: Int[Tensor, "fact 3"], toy: TrainedToy, step: int) -> float:
    """One update; the batch's mean loss in nats."""
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * min(1.0, step / toy.preset.warmup)
    if toy.preset.dropout:
        torch.manual_seed(1_000_003 * toy.seed + step)
    half = facts.device.type == "cuda"
    with torch.autocast(facts.device.type, torch.bfloat16, enabled=half):
        loss = toy.model.loss(facts)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(toy.model.parameters(), 1.0)
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return round(loss.item(), 5)


def batch_rows(n: int, batch: int, step: int, seed: int) -> Int[np.ndarray, " batch"]:
    """Which of `n` facts step `step` (from 1) sees: each once an epoch, in a new order each."""
    places = np.arange((step - 1) * batch, step * batch)
    epochs = places // n
    parts = [_order(n, seed, int(e))[places[epochs == e] % n] for e in np.unique(epochs)]
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, 3, epoch]).permutation(n)


class _Cost:
    """CPU seconds of this process since it took the training up, added to those before."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cost.json"
        before = json.loads(self.path.read_text())["cpu_seconds"] if self.path.is_file() else 0.0
        self.offset = before - time.process_time()

    def write(self) -> None:
        seconds = round(self.offset + time.process_time(), 1)
        write_atomic(self.path, json.dumps({"cpu_seconds": seconds}) + "\n")


def _measure_end(folder: Path, toy: TrainedToy, step: int) -> None:
    path = folder / "final.json"
    if path.is_file() and json.loads(path.read_text())["measure"]["step"] == step:
        return
    final = {
        "parameters": sum(p.numel() for p in toy.model.parameters()),
        "measure": asdict(measure(_at(toy, step), more=_FINAL)),
    }
    write_atomic(path, json.dumps(final, indent=1) + "\n")


def _at(toy: TrainedToy, step: int) -> TrainedToy:
    return TrainedToy(toy.model, toy.world, toy.arm, toy.preset, toy.seed, step)


def _settings(arm: Arm, preset: Preset, seed: int) -> dict[str, Any]:
    return {
        "arm": asdict(arm),
        "preset": asdict(preset),
        "seed": seed,
        "torch_version": torch.__version__,
    }


def _read_settings(folder: Path) -> tuple[Arm, Preset, int]:
    path = folder / "settings.json"
    try:
        given = json.loads(path.read_text())
        preset: dict[str, Any] = given["preset"]
        pairs = {name: tuple(preset[name]) for name in ("rates", "decays")}
        return Arm(**given["arm"]), Preset(**{**preset, **pairs}), given["seed"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{folder} holds no training of a reversal toy ({error}): give a folder that "
            "train_toy wrote."
        ) from error


def measure_of(written: Mapping[str, Any]) -> ToyMeasure:
    """A measure from what `asdict` made of it. Raises KeyError or TypeError for anything else."""
    return ToyMeasure(
        written["step"],
        {split: Recall(**written["recall"][split]) for split in SPLITS},
        written["token_mrr"],
        Consistency(**written["consistency"]),
        Entanglement(**written["entanglement"]),
    )
