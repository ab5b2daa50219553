"""What an interrupted training goes on from: parameters, optimisers and the number of steps done.

Kept as safetensors, so that nothing has to be unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from ...results.errors import RunFolderError
from ...results.storage import storage_errors, write_atomic

_STATE, _SETTINGS, _CURVE = "state.safetensors", "settings.json", "loss.jsonl"


@dataclass(frozen=True)
class Training:
    """A model and the optimisers of its parameters, which change in place."""

    model: Module
    optimizers: tuple[Optimizer, ...]


def open_training(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of a training, or check that its settings are the same.

    Raises `RunFolderError` where it holds a training with other settings or cannot be made.
    """
    path = folder / _SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if path.is_file():
        if path.read_text() != text:
            raise RunFolderError(
                f"{folder} holds a training with other settings ({path.name}): "
                "give another folder, or the settings it was begun with."
            )
        return
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError(f"{folder} is or lies in a file: give a folder.") from error
    write_atomic(path, text)


def save_state(folder: Path, training: Training, step: int) -> None:
    """Write everything that `restore` reads, in one file and at once."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(training)}
    write_atomic(folder / _STATE, save(tensors, metadata={"step": str(step)}))


def restore(folder: Path, training: Training) -> int:
    """Put the saved state into `training`; the number of steps done, 0 without a saved state.

    Lines of the loss curve after that step are dropped. Raises `RunFolderError` for a damaged file.
    """
    path = folder / _STATE
    try:
        step = _read_state(path, training) if path.is_file() else 0
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunFolderError(
            f"{path} is damaged or of another model ({error}): delete it to train from the start."
        ) from error
    _shorten(folder / _CURVE, step)
    return step


def _read_state(path: Path, training: Training) -> int:
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        for name, parameter in training.model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"model.{name}"))
        for number, optimizer in enumerate(training.optimizers):
            _restore_optimizer(optimizer, f"optimizer{number}", file)
    return step


def _restore_optimizer(optimizer: Optimizer, prefix: str, file: Any) -> None:
    names = file.keys()
    for number, parameter in enumerate(_parameters(optimizer)):
        start = f"{prefix}.{number}."
        optimizer.state[parameter] = {
            name.removeprefix(start): file.get_tensor(name).to(parameter.device)
            for name in names
            if name.startswith(start)
        }


def _tensors(training: Training) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in training.model.named_parameters():
        yield f"model.{name}", parameter
    for index, optimizer in enumerate(training.optimizers):
        for number, owner in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state[owner].items():
                yield f"optimizer{index}.{number}.{key}", value


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _shorten(curve: Path, step: int) -> None:
    lines = curve.read_text().splitlines(keepends=True) if curve.is_file() else []
    write_atomic(curve, "".join(lines[:step]))
