"""The sweep on a model whose layers are read from disk: one read a pass against one pass a head."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from measuring import arguments, report, table
from mnemoscope.interventions.path_patching import build_chain, direct_effects, end_states
from mnemoscope.models import HeadId, HookedModel, wrap
from mnemoscope.models.placement import devices
from naive import frozen_pass, keep_z
from shapes import LLAMA, TINY_LLAMA, random_batch, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM

CLAIM = (
    "All heads' direct effects on a model that is left on disk cost one read of each layer, as "
    "many bytes as its weights at the most, and give the numbers of the model in memory; a hooked "
    "pass a head reads the model as often as it has heads (random weights, float32)."
)
NOTE = (
    "*read*: bytes taken from the checkpoint's files in one sweep, over the bytes of the weights "
    "that are not kept in memory; below 1, because a sweep takes no query, key and value "
    "projections and no embeddings. *most reads*: of any one weight in a sweep. *naive*: mean "
    "seconds of a hooked full pass of {heads} heads (first, middle, last layer), times the number "
    "of heads; *naive read* likewise. *slower*: sweep over sweep in memory. *faster*: naive over "
    "sweep, both from disk. *difference*: largest absolute difference to the sweep in memory. The "
    "page cache was told to drop the files before each timing ({dropped}), but what lies below may "
    "cache too. Medians of {rounds} rounds; runs that collect states are left out."
)
COLUMNS = (
    *("model", "B", "T", "on disk", "weights MB", "in memory s", "sweep s", "slower", "read"),
    *("most reads", "naive, extrapolated s", "naive read", "faster", "difference"),
)
ROWS, LENGTH, ROUNDS = 4, 20, 3


@dataclass
class Reads:
    """What was read of offloaded weights."""

    size: int = 0
    times: dict[str, int] = field(default_factory=dict)


def main() -> None:
    given = arguments(CLAIM)
    name = TINY_LLAMA if given.toy else LLAMA
    with TemporaryDirectory() as folder:
        resident = random_model(name)
        resident.module.save_pretrained(folder, max_shard_size="200MB")
        size = sum(p.numel() * p.element_size() for p in resident.module.parameters())
        rows = [_measure(resident, Path(folder), int(share * size)) for share in (0.5, 0.0)]
    dropped = "POSIX_FADV_DONTNEED" if hasattr(os, "posix_fadvise") else "not possible here"
    note = NOTE.format(heads=3, dropped=dropped, rounds=ROUNDS)
    report(given, "offload", CLAIM, f"{table(COLUMNS, rows)}\n\n{note}")


def _measure(resident: HookedModel, folder: Path, limit: int) -> tuple[object, ...]:
    """One row: `limit` bytes of the model in memory, the rest on disk."""
    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="auto", max_memory={"cpu": limit}
    )
    spread = wrap(module, name=resident.name)
    batch, corrupted = (random_batch(resident, ROWS, LENGTH, seed) for seed in (1, 2))
    original, replacement = end_states(resident, batch), end_states(resident, corrupted).z
    ids = torch.randint(
        resident.anatomy.d_vocab, (ROWS, 2), generator=torch.Generator().manual_seed(3)
    )
    chains = {"memory": build_chain(resident), "disk": build_chain(spread)}
    sweeps = {
        where: partial(direct_effects, chain, original, replacement, ids)
        for where, chain in chains.items()
    }
    difference = (sweeps["disk"]().patched - sweeps["memory"]().patched).abs().max()
    seconds = {where: [] for where in (*sweeps, "naive")}
    for _ in range(ROUNDS):
        seconds["memory"].append(_timed(sweeps["memory"], folder))
        with counted() as reads:
            seconds["disk"].append(_timed(sweeps["disk"], folder))
    clean = keep_z(resident, batch)
    last = resident.anatomy.n_layers - 1
    heads = (HeadId(0, 0), HeadId(last // 2, 1), HeadId(last, resident.anatomy.n_heads - 1))
    with counted() as naive_reads:
        for head in heads:
            run = partial(frozen_pass, spread, batch, clean, replacement, head)
            seconds["naive"].append(_timed(run, folder))
    every = len(resident.anatomy.all_heads())
    on_disk = _bytes_on_disk(spread)
    naive = every * fmean(seconds["naive"])
    sweep = median(seconds["disk"])
    return (
        *(resident.name, ROWS, LENGTH, f"{on_disk / _bytes(resident):.0%}", on_disk / 2**20),
        *(median(seconds["memory"]), sweep, sweep / median(seconds["memory"])),
        *(reads.size / on_disk, max(reads.times.values()), naive),
        *(every * naive_reads.size / len(heads) / on_disk, naive / sweep, float(difference)),
    )


def _timed(call: partial[object] | partial[Tensor], folder: Path) -> float:
    for file in folder.glob("*.safetensors") if hasattr(os, "posix_fadvise") else ():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = perf_counter()
    call()
    return perf_counter() - start


def _bytes(model: HookedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _bytes_on_disk(model: HookedModel) -> int:
    assert "disk" in devices(model.module)
    away = (p for p in model.module.parameters() if p.device.type == "meta")
    return sum(p.numel() * p.element_size() for p in away)


@contextmanager
def counted() -> Iterator[Reads]:
    """Count what is read of offloaded weights inside the block."""
    reads, read = Reads(), OffloadedWeightsLoader.__getitem__

    def counting(self: OffloadedWeightsLoader, key: str) -> Tensor:
        tensor = read(self, key)
        reads.size += tensor.numel() * tensor.element_size()
        reads.times[key] = reads.times.get(key, 0) + 1
        return tensor

    OffloadedWeightsLoader.__getitem__ = counting
    try:
        yield reads
    finally:
        OffloadedWeightsLoader.__getitem__ = read


if __name__ == "__main__":
    main()
