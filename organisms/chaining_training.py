"""Train a toy model on the facts of the forward-chaining task, in a folder, and go on later.

    python -m mnemoscope.organisms.chaining_training --out FOLDER --arms tied surface --seeds 0

The model is told the numbers of core entities, a part of the relations among them, and all
relations of the problems, never a hidden entity's number: those are the test. A folder holds
`settings.json`, `loss.jsonl` (a line a step), `state.safetensors` and `final.json`, the same byte
for byte however often a CPU's training was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from ..models.errors import MnemoscopeError
from ..results.errors import RunFolderError
from ..results.statistics import chance_mrr
from ..results.storage import write_atomic
from .chaining_models import (
    CHAINING_ARMS,
    Items,
    build_chaining_model,
    chaining_arm,
    chaining_items,
)
from .chaining_oracle import solve
from .engram.training_state import Training, open_training, restore, save_state
from .forward_chaining import (
    LEVELS,
    ChainingSettings,
    ChainingWorld,
    CoreRelations,
    chaining_settings,
    core_relations,
    make_chaining_world,
)
from .reversal_arms import Arm
from .reversal_metrics import Recall, ranks, recall
from .reversal_models import NamePredictor, ToyModel
from .reversal_training import Progress, batch_rows

Asked = Literal["attributes", "relations", "held-out", "X", "level-1", "level-2"]
ASKED: tuple[Asked, ...] = ("attributes", "relations", "held-out", *LEVELS)
"""What is told (the first two), relations among core entities that are not, and numbers of hidden
entities."""
_CHUNK, _SAVE_EVERY = 256, 500


@dataclass(frozen=True)
class ChainingTraining:
    """How an arm is trained. `multiplicity`: how many entities share a name token.

    Evaluated every `eval_every` steps on `probes` random questions of every kind, on `name_probes`
    for language models, whose answers are whole names (every first name is tried); at the end on
    four times as many.
    """

    steps: int = 3000
    batch: int = 512
    warmup: int = 100
    rate: float = 3e-3
    decay: float = 1.0
    width: int = 64
    layers: int = 1
    multiplicity: int = 4
    eval_every: int = 500
    probes: int = 200
    name_probes: int = 40


@dataclass(frozen=True)
class ChainingMeasure:
    """How every kind of question is answered: ranks among all numbers of the world.

    For a relation, a number is as likely as the likeliest core entity of that number: which of
    them is said cannot follow.
    """

    step: int
    recall: dict[Asked, Recall]


@dataclass(frozen=True)
class ChainingResult:
    """A finished training; `chance` is the MRR of a random order of the numbers."""

    folder: Path
    arm: str
    settings: ChainingSettings
    training: ChainingTraining
    parameters: int
    loss: float
    curve: tuple[ChainingMeasure, ...]
    final: ChainingMeasure

    @property
    def chance(self) -> float:
        return chance_mrr(self.settings.modulus)


@dataclass(frozen=True, eq=False)
class Told:
    """A world, its items and its facts as rows of items."""

    world: ChainingWorld
    items: Items

    @cached_property
    def core(self) -> CoreRelations:
        """Relations among core entities."""
        return core_relations(self.world)

    @cached_property
    def facts(self) -> Int[np.ndarray, "fact 3"]:
        """Everything that is told."""
        problems = [problem.facts for problem in self.world.problems]
        return np.concatenate([self.asked("attributes"), self.core.told, *problems])

    def asked(self, kind: Asked) -> Int[np.ndarray, "fact 3"]:
        """The facts of one kind of question."""
        if kind == "relations":
            return self.core.told
        if kind == "held-out":
            return self.core.held_out
        if kind == "attributes":
            entities = np.arange(self.world.settings.n_core)
        else:
            entities = np.concatenate([problem.at(kind) for problem in self.world.problems])
        return self.items.attributes(entities, self.world.values)


def train_chaining(
    folder: Path,
    arm: str,
    settings: ChainingSettings,
    training: ChainingTraining | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ChainingResult:
    """Train an arm into `folder`, or go on where the same training stopped.

    With the same settings but more steps a finished training goes on. Raises `MnemoscopeError` for
    an arm that is none or no steps, `RunFolderError` where the folder holds another training or a
    damaged one.
    """
    how = training or ChainingTraining()
    if how.steps < 1:
        raise MnemoscopeError(f"a training needs one step at least, not {how.steps}.")
    chosen = chaining_arm(arm)
    written = {name: value for name, value in asdict(how).items() if name != "steps"}
    open_training(folder, {"arm": arm, "world": asdict(settings), "training": written})
    told = told_of(settings, how)
    model = _built(chosen, told, how).to(device)
    state = Training(model, (_optimizer(model, how),))
    done = restore(folder, state)
    _train(folder, state, told, how, done, progress)
    _finish(folder, model, told, how, max(done, how.steps))
    return _result(folder, arm, settings, how)


def load_chaining(folder: Path, device: str = "cpu") -> tuple[ToyModel, Told]:
    """A folder's model as it was last saved, in evaluation mode, and what it was told.

    Raises `RunFolderError` if the folder holds no training or a damaged one.
    """
    try:
        given = json.loads((folder / "settings.json").read_text())
        ranges = {name: tuple(given["world"][name]) for name in ("addends", "hidden")}
        settings = ChainingSettings(**{**given["world"], **ranges})
        arm, how = chaining_arm(given["arm"]), ChainingTraining(**given["training"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no training of forward chaining ({error}): give a folder that "
            "train_chaining wrote."
        ) from error
    told = told_of(settings, how)
    model = _built(arm, told, how).to(device)
    if not restore(folder, Training(model, ())):
        raise RunFolderError(f"{folder} holds no saved model yet: train it first.")
    return model.eval(), told


def hop_recall(model: ToyModel, told: Told) -> dict[int, Recall]:
    """How the hidden numbers are recalled by hop: how many steps of chaining each one takes."""
    world = told.world
    facts = np.concatenate([told.asked(level) for level in LEVELS])
    sums = np.concatenate([problem.facts for problem in world.problems])
    hops = solve(sums, world.known, world.settings.modulus).waves[facts[:, 0]]
    ranked = number_ranks(model, told, facts)
    return {int(hop): recall(ranked[hops == hop], facts[hops == hop]) for hop in np.unique(hops)}


def told_of(settings: ChainingSettings, training: ChainingTraining) -> Told:
    """The world of these settings as a model is told it."""
    world = make_chaining_world(settings)
    return Told(world, chaining_items(world, training.multiplicity))


def measure_chaining(model: ToyModel, told: Told, step: int, probes: int) -> ChainingMeasure:
    """Ask at most `probes` random questions of every kind. PyTorch's mode is put back."""
    was = model.training
    model.eval()
    found: dict[Asked, Recall] = {}
    for number, kind in enumerate(ASKED):
        facts = told.asked(kind)
        random = np.random.default_rng([told.world.settings.seed, 14, number])
        facts = random.permutation(facts)[:probes]
        found[kind] = recall(number_ranks(model, told, facts), facts)
    model.train(was)
    return ChainingMeasure(step, found)


@torch.no_grad()
def number_ranks(
    model: ToyModel, told: Told, facts: Int[np.ndarray, "fact 3"]
) -> Float[np.ndarray, " fact"]:
    """The rank of each fact's number among all, from 1; ties share the middle rank."""
    items, s = told.items, told.world.settings
    device = next(model.parameters()).device
    number = facts[:, 2] - items.n_entities
    related = number < 0
    number[related] = told.world.values[facts[related, 2]]
    found = []
    for start in range(0, len(facts), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = model.entity_scores(torch.from_numpy(facts[part, :2]).to(device))
        said = scores[:, items.n_entities : items.equals]
        best = scores[:, : s.n_core].unflatten(1, (s.modulus, s.multiplicity)).amax(-1)
        which = torch.from_numpy(related[part]).to(device)
        right = torch.from_numpy(number[part]).to(device)
        found.append(ranks(torch.where(which[:, None], best, said), right))
    return np.concatenate(found)


def _built(arm: Arm, told: Told, how: ChainingTraining) -> ToyModel:
    seed = told.world.settings.seed
    return build_chaining_model(arm, told.items, seed, width=how.width, layers=how.layers)


def _probes(model: ToyModel, how: ChainingTraining) -> int:
    return how.name_probes if isinstance(model, NamePredictor) else how.probes


def _optimizer(model: ToyModel, how: ChainingTraining) -> torch.optim.Optimizer:
    tables = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": tables, "weight_decay": how.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=how.rate, fused=True)


def _train(
    folder: Path,
    state: Training,
    told: Told,
    how: ChainingTraining,
    done: int,
    progress: Progress | None,
) -> None:
    model = state.model
    assert isinstance(model, ToyModel)
    model.train()
    facts = torch.from_numpy(told.facts)
    device = next(model.parameters()).device
    with (folder / "loss.jsonl").open("a") as curve:
        for step in range(done + 1, how.steps + 1):
            rows = batch_rows(len(facts), how.batch, step, told.world.settings.seed)
            line: dict[str, Any] = {
                "step": step,
                "loss": _step(state, facts[rows].to(device), step, how),
            }
            if step % how.eval_every == 0:
                line["measure"] = asdict(measure_chaining(model, told, step, _probes(model, how)))
            curve.write(json.dumps(line) + "\n")
            if step % _SAVE_EVERY == 0 or step == how.steps:
                curve.flush()
                save_state(folder, state, step)
            if progress:
                progress(step, how.steps)


def _step(state: Training, facts: Int[Tensor, "fact 3"], step: int, how: ChainingTraining) -> float:
    """One update; the batch's mean loss in nats."""
    model, (optimizer,) = state.model, state.optimizers
    assert isinstance(model, ToyModel)
    for group in optimizer.param_groups:
        group["lr"] = how.rate * min(1.0, step / how.warmup)
    loss = model.loss(facts)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return round(loss.item(), 5)


def _finish(folder: Path, model: ToyModel, told: Told, how: ChainingTraining, step: int) -> None:
    path = folder / "final.json"
    if path.is_file() and json.loads(path.read_text())["measure"]["step"] == step:
        return
    final = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "measure": asdict(measure_chaining(model, told, step, 4 * _probes(model, how))),
    }
    write_atomic(path, json.dumps(final, indent=1) + "\n")


def _result(
    folder: Path, arm: str, settings: ChainingSettings, how: ChainingTraining
) -> ChainingResult:
    try:
        final = json.loads((folder / "final.json").read_text())
        lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
        curve = tuple(_measure_of(line["measure"]) for line in lines if "measure" in line)
        measured = _measure_of(final["measure"])
        parameters = int(final["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no finished training ({error}): run the same training again."
        ) from error
    loss = float(np.mean([line["loss"] for line in lines[-100:]]))
    return ChainingResult(folder, arm, settings, how, parameters, loss, curve, measured)


def _measure_of(written: dict[str, Any]) -> ChainingMeasure:
    asked = {kind: Recall(**written["recall"][kind]) for kind in ASKED}
    return ChainingMeasure(written["step"], asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train arms one after the other; returns the exit code."""
    parser = argparse.ArgumentParser(description="Forward chaining, told to a toy model.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--arms", nargs="+", default=list(CHAINING_ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=ChainingTraining.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    try:
        for seed in given.seeds:
            settings = _seeded(chaining_settings(given.preset), seed)
            for arm in given.arms:
                folder = given.out / given.preset / arm / f"seed-{seed}"
                _with_bar(folder, arm, settings, given.steps, given.device)
    except MnemoscopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _seeded(settings: ChainingSettings, seed: int) -> ChainingSettings:
    return replace(settings, seed=seed)


def _with_bar(folder: Path, arm: str, settings: ChainingSettings, steps: int, device: str) -> None:
    with tqdm(desc=arm, unit="step", mininterval=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        how = ChainingTraining(steps=steps)
        train_chaining(folder, arm, settings, how, device=device, progress=show)


if __name__ == "__main__":
    sys.exit(main())
