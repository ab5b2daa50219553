"""What a part of `gpu.py` reports, kept as JSON, and as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_device import Call, Peaks, on_device, peak_bytes
from measuring import over, table
from mnemoscope.models import HookedModel
from mnemoscope.results.storage import write_atomic
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

COLUMNS = (
    *("model", "what", "TFLOP", "GB", "s", "lowest", "highest", "of product peak", "of copy peak"),
    *("naive s", "naive / ours", "naive is", "memory GB"),
)


@dataclass(frozen=True)
class Figure:
    """One thing measured: what it has to do on paper, and what it took."""

    what: str
    flops: float
    """On paper, with a causal kernel."""
    bytes: float
    """On paper, at least."""
    seconds: tuple[float, ...]
    """Of every round."""
    naive: tuple[float, ...] | None = None
    naive_is: str = ""
    memory: float | None = None
    """Bytes at the highest, beyond what was there before."""
    more: Mapping[str, float | str] | None = None
    """Further columns of the part's table."""
    counted: float | None = None
    """FLOPs by torch's counter over the same call, which takes attention as a whole square."""
    expected: float | None = None
    """The paper's count taken so."""


@dataclass(frozen=True)
class Bench:
    """What the parts measure on."""

    model: HookedModel
    device: str
    rounds: int
    count: bool
    """Whether torch's counter goes over every call too."""

    def seconds(self, calls: Mapping[str, Call]) -> dict[str, tuple[float, ...]]:
        """Of all calls in interleaved rounds."""
        return on_device(self.device, calls, self.rounds)

    def memory(self, call: Call) -> float | None:
        return peak_bytes(self.device, call)

    def counted(self, call: Call) -> float | None:
        """FLOPs of a call by torch's counter, None where it is not asked."""
        return counted_flops(call) if self.count else None


def counted_flops(call: Call) -> float:
    """Every matrix product and attention that a call runs, by `torch.utils.flop_counter`."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        call()
    return float(counter.get_total_flops())


def _of_first(count: Callable[..., int], shapes: int) -> Callable[..., int]:
    """A count from the shapes of the first arguments, as the counter calls it."""
    return lambda *args, **_: count(*args[:shapes])


_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_first(sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _of_first(
        sdpa_backward_flop_count, 4
    ),
}
"""The counter knows the attention kernels of GPUs only."""


@dataclass(frozen=True)
class Unit:
    """One part on one shape, whole: the unit that a run is resumed by."""

    part: str
    shape: str
    setting: Mapping[str, Any]
    place: Mapping[str, str]
    """`gpu_device.place_of` where it was measured; empty in a file that does not tell."""
    device: str
    peaks: Peaks
    figures: tuple[Figure, ...]

    def stale(self, here: Mapping[str, str]) -> str:
        """What was another there than it is here, in words; nothing where all is alike."""
        return ", ".join(
            f"{name} {self.place.get(name, 'unknown')} (here {value})"
            for name, value in here.items()
            if self.place.get(name) != value
        )


def kept(path: Path, setting: Mapping[str, Any]) -> Unit | None:
    """A unit that was measured under this setting, if there is one; `Unit.stale` says where."""
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    if told["setting"] != json.loads(json.dumps(setting)):
        return None
    figures = tuple(
        Figure(**{key: tuple(v) if isinstance(v, list) else v for key, v in figure.items()})
        for figure in told["figures"]
    )
    return Unit(**{"place": {}, **told, "peaks": Peaks(**told["peaks"]), "figures": figures})


def keep(path: Path, unit: Unit) -> None:
    """Write a unit at once, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(unit), indent=1) + "\n")


def figures_table(units: Sequence[Unit]) -> str:
    """All figures of one part, a row each."""
    further = list(dict.fromkeys(k for u in units for f in u.figures for k in f.more or {}))
    rows = [
        (unit.shape, *_cells(unit, figure), *((figure.more or {}).get(key, "") for key in further))
        for unit in units
        for figure in unit.figures
    ]
    counts = any(figure.counted is not None for unit in units for figure in unit.figures)
    if counts:
        agree = [_agreement(f) for unit in units for f in unit.figures]
        rows = [(*row, ratio) for row, ratio in zip(rows, agree, strict=True)]
    return table((*COLUMNS, *further, *(("counter / paper",) if counts else ())), rows)


def _cells(unit: Unit, figure: Figure) -> tuple[object, ...]:
    seconds = median(figure.seconds)
    naive = figure.naive
    return (
        *(figure.what, figure.flops / 1e12, figure.bytes / 1e9),
        *(seconds, min(figure.seconds), max(figure.seconds)),
        *(_share(figure.flops, seconds, unit.peaks.flops),),
        *(_share(figure.bytes, seconds, unit.peaks.bytes),),
        "" if naive is None else median(naive),
        "" if naive is None else over(naive, figure.seconds),
        *(figure.naive_is, "" if figure.memory is None else figure.memory / 1e9),
    )


def _share(done: float, seconds: float, peak: float) -> object:
    return done / seconds / peak if done else ""


def _agreement(figure: Figure) -> object:
    return "" if not figure.counted or not figure.expected else figure.counted / figure.expected


def miscounted(unit: Unit, tolerance: float) -> list[str]:
    """Figures whose count on paper is not what torch's counter found."""
    return [
        f"{unit.shape}, {figure.what}: {figure.counted:.4g} counted, {figure.expected:.4g} on paper"
        for figure in unit.figures
        if figure.counted and figure.expected
        if abs(figure.counted / figure.expected - 1) > tolerance
    ]


def free(device: str) -> None:
    """Give cached memory back before another model is made."""
    if device == "cuda":
        torch.cuda.empty_cache()


Measure = Callable[[Bench, Any, Any], tuple[Figure, ...]]
"""Measures a part: bench, shape, the part's setting."""
