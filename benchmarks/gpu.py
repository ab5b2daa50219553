"""What do the heavy methods cost on a GPU, beside what they cost on paper and the naive way?

One command measures everything on the models' shapes with random weights (which change no speed):

    python benchmarks/gpu.py                # all parts on a CUDA device, bfloat16
    python benchmarks/gpu.py --part ph3     # one of ph3, ap, rows, gates
    python benchmarks/gpu.py --small        # SmolLM2's shape in float32, for a CPU
    python benchmarks/gpu.py --toy          # seconds on any machine; checks the counts

A part on one shape is a unit: it is written to `--out` when it is done, and not measured again when
the command is run again (`--force` does), unless the device or the version of a library is another
by then. Once all are there the command only prints the tables, also where there is no device for
them; `--write` puts them into `RESULTS.md`. Needs the library and its core dependencies, no
checkpoint, no network; scikit-learn, where it is installed, is the naive ranking.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_ap
import gpu_gates
import gpu_ph3
import gpu_rows
import torch
from costs import LLAMA2_7B, LLAMA3_8B, SMOLLM2, Shape
from gpu_ap import NeuronSetting
from gpu_device import device_words, measured_peaks, place_of
from gpu_figures import Bench, Measure, Unit, figures_table, free, keep, kept, miscounted
from gpu_gates import GateBenchSetting
from gpu_model import random_model
from gpu_ph3 import HeadSetting
from gpu_rows import RowSetting
from measuring import RESULTS, table, write_section

CLAIM = (
    "What the heavy methods take on one device, beside their FLOPs and bytes on paper, the "
    "measured peak of the device, and the naive way on the same inputs."
)
NOTE = (
    "*TFLOP*, *GB*: on paper (`costs.py`), attention as a causal kernel does it, bytes that move "
    "at least (weights once a call, named arrays once in or out; of the ranking every step's). "
    "*s*: median of {rounds} interleaved rounds after a warm-up, fewer for long prompts. *of "
    "product peak*, *of copy peak*: FLOP/s and bytes/s over the best of ten products of square "
    "matrices and ten copies, measured before each part. *naive / ours*: median of ratios within "
    "rounds. *memory*: at the highest, beyond model and inputs. Random weights and tokens, {dtype}."
)
PARTS: Mapping[str, Measure] = {
    "ph3": gpu_ph3.measure,
    "ap": gpu_ap.measure,
    "rows": gpu_rows.measure,
    "gates": gpu_gates.measure,
}
TITLES = {
    "ph3": "Direct effects of all heads (PH3), both runs included",
    "ap": "Relation neurons: activations, and AP of every unit",
    "rows": "Attention rows of a long prompt, folded over 12 spans",
    "gates": "DuoAttention gates: one training step",
}
NAIVE = {
    "ph3": "one hooked full pass a head, z frozen",
    "ap": "plain passes without a hook; scikit-learn in a loop",
    "rows": "eager attention with `output_attentions=True`, the same sums",
    "gates": "streaming attention by masks over all keys",
}
MISCOUNT = 0.02
"""How far paper and torch's counter may be apart: norms' and rotary products are left out."""


@dataclass(frozen=True)
class Preset:
    """What is measured: shapes, data type, size of the peak's matrices, rounds, and each part."""

    shapes: tuple[Shape, ...]
    dtype: str
    peak_size: int
    rounds: int
    parts: Mapping[str, Any]
    count: bool = False

    @property
    def context(self) -> int:
        """Tokens that the models must read."""
        return max((*self.parts["rows"].tokens, *self.parts["gates"].tokens))


TOY = Preset(
    (Shape("toy", 3, 4, 2, 64, 192, 256),),
    *("float32", 256, 2),
    {
        "ph3": HeadSetting(6, (20, 40), 2, 512),
        "ap": NeuronSetting(48, 20, 16, 2, 2**26),
        "rows": RowSetting((128, 512), 8, 128, 2),
        "gates": GateBenchSetting((128, 256), 16, 128, sink=8, recent=32),
    },
    count=True,
)
SMALL = Preset(
    (SMOLLM2,),
    *("float32", 1024, 3),
    {
        "ph3": HeadSetting(2, (20, 60), 1, 512),
        "ap": NeuronSetting(48, 20, 16, 2, 2**28),
        "rows": RowSetting((256, 768), 32, 256, 2),
        "gates": GateBenchSetting((256,), 64, 256, sink=32, recent=64),
    },
)
FULL = Preset(
    (LLAMA3_8B, LLAMA2_7B),
    *("bfloat16", 8192, 3),
    {
        "ph3": HeadSetting(200, (20, 200), 20, 8192),
        "ap": NeuronSetting(8192, 20, 256, 20, 2**32),
        "rows": RowSetting((4096, 32768, 131072), 32, 4096, 2),
        "gates": GateBenchSetting((4096, 16384, 32768), 512, 4096),
    },
)


@dataclass(frozen=True)
class Asked:
    """The command line."""

    preset: str
    parts: tuple[str, ...]
    out: Path
    force: bool
    write: bool

    @property
    def sizes(self) -> Preset:
        return {"toy": TOY, "small": SMALL, "full": FULL}[self.preset]

    @property
    def command(self) -> str:
        return "python benchmarks/gpu.py" + ("" if self.preset == "full" else f" --{self.preset}")


def main() -> None:
    asked = read_arguments()
    units = measured(asked)
    wrong = [line for unit in units for line in miscounted(unit, MISCOUNT)]
    text = report(asked, units)
    print(text)
    if wrong:
        sys.exit("The counts on paper are off: " + "; ".join(wrong))
    if asked.write:
        write_section(RESULTS, section(asked), text)


def read_arguments() -> Asked:
    parser = argparse.ArgumentParser(description=CLAIM)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--toy", action="store_true", help="tiny sizes, seconds; checks the counts")
    sizes.add_argument("--small", action="store_true", help="SmolLM2's shape, minutes on a CPU")
    parser.add_argument("--part", choices=tuple(PARTS), help="one part only")
    parser.add_argument("--out", type=Path, help="folder of the figures (JSON)")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument("--write", action="store_true", help=f"replace the section in {RESULTS}")
    given = parser.parse_args()
    preset = "toy" if given.toy else "small" if given.small else "full"
    if given.write and (given.toy or given.part):
        parser.error("only a whole run is written: leave out --toy and --part.")
    return Asked(
        preset,
        (given.part,) if given.part else tuple(PARTS),
        given.out or Path("build") / f"gpu-figures-{preset}",
        given.force,
        given.write,
    )


# -- the units ----------------------------------------------------------------------------------


def measured(asked: Asked) -> list[Unit]:
    """All units asked for, those that were measured here already read back."""
    found = []
    for shape in asked.sizes.shapes:
        waiting = []
        for part in asked.parts:
            unit = None if asked.force else _kept_here(asked, part, shape)
            if unit is None:
                waiting.append(part)
            else:
                found.append(unit)
        found += _measured_on(asked, shape, waiting) if waiting else []
    order = [(part, shape.name) for part in PARTS for shape in asked.sizes.shapes]
    return sorted(found, key=lambda unit: order.index((unit.part, unit.shape)))


def _kept_here(asked: Asked, part: str, shape: Shape) -> Unit | None:
    """A unit of this setting, unless it has to be measured again for its device or libraries; it is
    taken as it is where it could not be."""
    unit = kept(path_of(asked, part, shape), setting_of(asked, part))
    device = device_of(asked)
    if unit is None or device is None:
        return unit
    stale = unit.stale(place_of(device))
    if not stale:
        return unit
    print(f"{part} on {shape.name} is measured again: {stale}.", file=sys.stderr, flush=True)
    return None


def _measured_on(asked: Asked, shape: Shape, parts: list[str]) -> list[Unit]:
    sizes = asked.sizes
    device = device_of(asked)
    if device is None:
        sys.exit("There is no CUDA device here: use --small or --toy on a CPU.")
    dtype = getattr(torch, sizes.dtype)
    model = random_model(shape, device, dtype, sizes.context)
    bench = Bench(model, device, sizes.rounds, sizes.count)
    units = []
    for part in parts:
        print(f"{part} on {shape.name} ...", file=sys.stderr, flush=True)
        peaks = measured_peaks(device, dtype, sizes.peak_size)
        figures = PARTS[part](bench, shape, sizes.parts[part])
        where = place_of(device), device_words(device)
        units.append(Unit(part, shape.name, setting_of(asked, part), *where, peaks, figures))
        keep(path_of(asked, part, shape), units[-1])
        free(device)
    return units


def device_of(asked: Asked) -> str | None:
    """CUDA where there is one; the full sizes cannot be measured without it (None)."""
    if torch.cuda.is_available():
        return "cuda"
    return None if asked.preset == "full" else "cpu"


def setting_of(asked: Asked, part: str) -> dict[str, Any]:
    """What a unit's figures hang on."""
    sizes = asked.sizes
    return {"preset": asked.preset, "rounds": sizes.rounds, **asdict(sizes.parts[part])}


def path_of(asked: Asked, part: str, shape: Shape) -> Path:
    return asked.out / f"{part}-{shape.name.lower()}.json"


# -- the report -----------------------------------------------------------------------------------


def section(asked: Asked) -> str:
    return "gpu" if asked.preset == "full" else f"gpu_{asked.preset}"


def report(asked: Asked, units: list[Unit]) -> str:
    """The section of `RESULTS.md`."""
    sizes = asked.sizes
    parts = [part for part in PARTS if any(unit.part == part for unit in units)]
    tables = [
        f"### {TITLES[part]}\n\n{figures_table([u for u in units if u.part == part])}\n\n"
        f"*naive*: {NAIVE[part]}."
        for part in parts
    ]
    peaks = table(
        ("part", "model", "product TFLOP/s", "copy GB/s"),
        [(u.part, u.shape, u.peaks.flops / 1e12, u.peaks.bytes / 1e9) for u in units],
    )
    note = NOTE.format(rounds=sizes.rounds, dtype=sizes.dtype)
    devices = "\n".join(dict.fromkeys(f"{', '.join(_on(units, d))}: {d}" for d in _devices(units)))
    body = "\n\n".join([*tables, "### Peaks of the device", peaks, note])
    return f"## {section(asked)}\n\n{CLAIM}\n\n{body}\n\n`{asked.command}`\n\n{devices}\n"


def _devices(units: list[Unit]) -> list[str]:
    return list(dict.fromkeys(unit.device for unit in units))


def _on(units: list[Unit], device: str) -> list[str]:
    return [f"{unit.part} {unit.shape}" for unit in units if unit.device == device]


if __name__ == "__main__":
    main()
