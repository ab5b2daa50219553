"""Where the weights of a model are: on one device, on several, in host memory, or still on disk.

The placement itself is accelerate's: a map from parts to devices, and hooks that bring a part's
inputs to its device and, where it is offloaded, its weights for as long as it runs. Offloaded
weights are read from the checkpoint's own safetensors files.

Everything here that looks at weights does it through `materialised`: inside, the named modules
have their weights in memory, read once however often they run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import convert_file_size_to_int, get_max_memory
from torch import Tensor, nn

from .errors import PlacementError
from .memory_limits import MAX_MEMORY, OFFLOAD_FOLDER, Memory, parse_memory

_SHARE = 0.9
"""Of what is free, for weights; the rest is for what a pass computes and keeps."""

_IN_ORDER = "sequential"
"""transformers' word for filling one device before the next; its "auto" spreads what would fit on
one device evenly over all."""


@dataclass(frozen=True)
class Placement:
    """What transformers is told of devices."""

    device_map: Any
    max_memory: dict[int | str, int] | None
    """Most bytes of weights a device; None with a device that was named, which takes all."""
    offload_folder: str | None
    on_cpu: bool
    """The model computes on the CPU."""
    limited: bool = False
    """Somebody asked for limits of memory; otherwise they are those of the machine."""


def placement(
    device: str, max_memory: Memory | None = None, offload_folder: str | Path | None = None
) -> Placement:
    """Check a wish for devices. What is left out is taken from the environment, see
    `memory_limits`.

    "auto" fills the CUDA devices in their order, then host memory, then leaves the rest on disk;
    without CUDA it takes host memory, then disk. Without limits it fills nine tenths of what is
    free on each. Raises `PlacementError`.
    """
    if max_memory is None:
        max_memory = parse_memory(os.environ.get(MAX_MEMORY, ""))
    folder = offload_folder or os.environ.get(OFFLOAD_FOLDER) or None
    folder = None if folder is None else str(Path(folder).expanduser())
    if device != "auto":
        if max_memory:
            raise PlacementError(
                f"max_memory spreads a model over devices, but device is {device!r}: use "
                "device='auto' with it, or leave max_memory out."
            )
        return Placement({"": _one_device(device)}, None, folder, device == "cpu")
    n_cuda = _n_cuda()
    limits = _limits(max_memory, n_cuda) if max_memory else _share_of_free(n_cuda)
    on_cpu = not any(isinstance(key, int) for key in limits)
    return Placement(_IN_ORDER, limits, folder, on_cpu, bool(max_memory))


def _n_cuda() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _share_of_free(n_cuda: int) -> dict[int | str, int]:
    """Bytes for weights on each device where nobody asked for limits.

    A CUDA device that shares the host's memory counts once: accelerate names no "cpu" beside it.
    """
    free = get_max_memory()
    if not n_cuda:
        return {"cpu": int(_SHARE * int(free.get("cpu", free.get("mps", 0))))}
    room: dict[int | str, int] = {
        i: int(free[i]) + _held_unused(i) for i in range(n_cuda) if i in free
    }
    if "cpu" in free:
        room["cpu"] = int(free["cpu"])
    return {key: int(_SHARE * size) for key, size in room.items()}


def _held_unused(device: int) -> int:
    """Bytes that torch took for tensors that are gone: free to us, and to nobody else."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _limits(memory: Memory, n_cuda: int) -> dict[int | str, int]:
    for key in memory:
        if key != "cpu" and not (isinstance(key, int) and 0 <= key < n_cuda):
            raise PlacementError(
                f"max_memory names the device {key!r}: this machine has "
                + (f"CUDA devices 0 to {n_cuda - 1} and " if n_cuda else "no CUDA device, only ")
                + "'cpu'."
            )
    return {key: _size(size) for key, size in memory.items()}


def _size(size: int | str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError:
        raise PlacementError(
            f"{size!r} is no size of memory: give bytes, or for example 20GiB."
        ) from None


def _one_device(device: str) -> str:
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise PlacementError(f"{device!r} is no device: use auto, cpu, cuda or cuda:1.") from None
    if kind.type == "cuda":
        n_cuda = _n_cuda()
        if (kind.index or 0) >= n_cuda:
            raise PlacementError(
                f"device {device!r} is not there: this machine has {n_cuda} CUDA devices; use "
                "device='cpu' or 'auto'."
            )
    return device


# -- a placed model -------------------------------------------------------------------------------


def is_offloaded(module: nn.Module) -> bool:
    """True when some weights are brought to their device only while their part runs."""
    return any(_offloading(part) for part in module.modules())


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes, also while its weights are elsewhere."""
    for hook in _aligning(module):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    return next(module.parameters()).device


def devices(module: Any) -> tuple[str, ...]:
    """Where the weights are, each place once: `("cuda:0", "cuda:1", "disk")`."""
    held = [str(weight.device) for weight in module.parameters() if weight.device.type != "meta"]
    mapped = getattr(module, "hf_device_map", {}).values() if is_offloaded(module) else ()
    return tuple(dict.fromkeys([*held, *(str(at) for at in mapped if at in ("cpu", "disk"))]))


@contextmanager
def materialised(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block these modules' own weights are on the devices they compute on.

    Each is read once, on entering, and let go on leaving; weights that are in place stay there.
    Modules below them are not meant: pass `module.modules()`. Memory: the weights named.
    """
    held: list[tuple[nn.Module, AlignDevicesHook]] = []
    try:
        for module in modules:
            for hook in _offloading(module):
                hook.pre_forward(module)
                hook.offload = False  # it goes on to bring inputs to their device
                held.append((module, hook))
        yield
    finally:
        for module, hook in reversed(held):
            hook.offload = True
            hook.post_forward(module, None)


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state dict in name order, with the weights of one part in memory at a time."""
    tensors = sorted(module.state_dict().items())
    for prefix, together in groupby(tensors, lambda item: item[0].rpartition(".")[0]):
        owner = module.get_submodule(prefix)
        with materialised([owner]):
            for name, tensor in together:
                away = tensor.device.type == "meta"
                yield name, getattr(owner, name.rpartition(".")[2]).detach() if away else tensor


def _aligning(module: nn.Module) -> tuple[AlignDevicesHook, ...]:
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several hooks of one module come as one
    return tuple(hook for hook in hooks if isinstance(hook, AlignDevicesHook))


def _offloading(module: nn.Module) -> tuple[AlignDevicesHook, ...]:
    return tuple(hook for hook in _aligning(module) if hook.offload)
