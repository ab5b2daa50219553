"""Neuron sets that the explorer saves, and the command that measures what they do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..models.errors import MnemoscopeError
from ..models.types import NeuronId
from ..results.neuron_set import NeuronSet, save_neuron_set
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
