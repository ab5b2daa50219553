"""The device: what it can do at most, how long a call takes on it, and how much memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import mnemoscope
import torch
import transformers
from measuring import (
    highest_resident,
    interleaved,
    machine,
    resident_after_cleaning,
)

Call = Callable[[], object]


@dataclass(frozen=True)
class Peaks:
    """The best of some rounds of one large product, and of copying one large array."""

    flops: float
    """FLOP/s of a square product of random numbers in the model's data type."""
    bytes: float
    """Bytes/s of a copy on the device, read and written ones together."""


def measured_peaks(device: str, dtype: torch.dtype, size: int, rounds: int = 10) -> Peaks:
    """Multiply `size` x `size` matrices, and copy as much memory as eight of them take."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2)
    )
    source = torch.randn(8, size, size, generator=generator, device=device, dtype=dtype)
    target = torch.empty_like(source)
    seconds = on_device(
        device, {"product": partial(torch.mm, a, b), "copy": partial(target.copy_, source)}, rounds
    )
    moved = 2 * source.numel() * source.element_size()
    return Peaks(2 * size**3 / min(seconds["product"]), moved / min(seconds["copy"]))


def on_device(device: str, calls: Mapping[str, Call], rounds: int) -> dict[str, tuple[float, ...]]:
    """`interleaved`, each call timed until the device has done what it was given."""
    return interleaved(
        {name: partial(_finished, device, call) for name, call in calls.items()}, rounds
    )


def _finished(device: str, call: Call) -> None:
    call()
    if device == "cuda":
        torch.cuda.synchronize()


def spread(seconds: tuple[float, ...]) -> dict[str, float]:
    """Median, lowest and highest of some rounds."""
    return {"median": median(seconds), "lowest": min(seconds), "highest": max(seconds)}


def peak_bytes(device: str, call: Call) -> float | None:
    """Memory that a call holds at most beyond what was there before it.

    On a GPU what torch's allocator gave out, on Linux resident memory; None where neither is known.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    resident = resident_after_cleaning()
    call()
    return max(0.0, highest_resident() - resident) * 2**20


def device_words(device: str) -> str:
    """The device, and the line of `machine`."""
    if device != "cuda":
        return machine()
    return f"{device_name(device)}, CUDA {torch.version.cuda}; {machine()}"


def device_name(device: str) -> str:
    """A GPU with its memory, or the processor."""
    if device != "cuda":
        return machine().partition(", ")[0]
    found = torch.cuda.get_device_properties(0)
    return f"{found.name} ({found.total_memory / 2**30:.0f} GiB)"


def place_of(device: str) -> dict[str, str]:
    """What figures hang on beside their setting: the device, and the versions of the libraries."""
    return {
        "device": device_name(device),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "mnemoscope": mnemoscope.__version__,
    }
