"""Neuron sets that the explorer saves, and the command that measures what they do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.neuron_set import NeuronScore, NeuronSet, save_neuron_set
from .head_files import plain_path
from .neuron_switched import Change


def part_of(whole: NeuronSet, units: Sequence[NeuronId]) -> NeuronSet:
    """Some units of a set with their scores, under the set's name, by which `neurons ablate` knows
    the relation. Raises `MnemoscopeError` when none is chosen."""
    chosen = frozenset(units)
    scored = tuple(one for one in whole.neurons if one.neuron in chosen)
    if not scored:
        raise MnemoscopeError("no units are chosen: choose one at least.")
    return replace(whole, neurons=scored)


def units_by_hand(model: HookedModel, units: Sequence[NeuronId], relation: str) -> NeuronSet:
    """Units that somebody named, without scores, under a relation's name as `neurons ablate` reads
    it. Raises `MnemoscopeError` when none is chosen."""
    wide = model.anatomy.d_mlp
    if not units or wide is None:
        raise MnemoscopeError("no units are chosen: name one at least.")
    return NeuronSet(
        name=relation,
        model_id=model.name,
        n_layers=model.anatomy.n_layers,
        d_mlp=wide,
        method="chosen by hand in the explorer",
        run_id=None,
        neurons=tuple(NeuronScore(unit, 0.0, "chosen") for unit in units),
    )


def save_units(folder: Path, file_name: str, neuron_set: NeuronSet, *, force: bool) -> Path:
    """Write the set into the folder under a plain name; `.json` is added where it is missing.

    Raises `MnemoscopeError` for a name with separators, `RunFolderError` when the file is there
    and `force` is not given.
    """
    path = plain_path(folder, file_name)
    folder.mkdir(parents=True, exist_ok=True)
    save_neuron_set(path, neuron_set, force=force)
    return path


def ablate_command(
    model: str, file: Path, n_units: int, change: Change, factor: float, runs: Path
) -> str:
    """The command that asks many facts without the first units of this file, quoted for a shell."""
    sizes = sorted({max(1, n_units // 4), max(1, n_units // 2), n_units})
    how = ["--factors", f"{factor:g}"] if change == "scale" else ["--mode", change]
    parts = ["mnemoscope", "neurons", "ablate", model, "--sets", str(file)]
    return shlex.join([*parts, "--sizes", ",".join(map(str, sizes)), *how, "--runs", str(runs)])
