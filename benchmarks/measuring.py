"""Interleaved timing, resident memory, plain tables, the section of `RESULTS.md` of a script."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

from mnemoscope.results.storage import write_atomic

RESULTS = Path(__file__).parent / "RESULTS.md"
HEADING = (
    "# Benchmarks\n\nEach script writes its own section (`python benchmarks/NAME.py --write`).\n"
)


@dataclass(frozen=True)
class Arguments:
    """What every script takes: toy sizes for a quick look, and whether to keep the figures."""

    toy: bool
    write: bool
    text: Path | None = None


def arguments(claim: str, *, takes_text: bool = False) -> Arguments:
    """Read `--toy` and `--write`; toy figures are never written. `takes_text`: also `--text`."""
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, a few seconds")
    parser.add_argument("--write", action="store_true", help=f"replace the section in {RESULTS}")
    if takes_text:
        parser.add_argument("--text", type=Path, metavar="FOLDER", help="use the text files in it")
    given = parser.parse_args()
    if given.toy and given.write:
        parser.error("toy figures mean nothing: leave out --toy to write a section.")
    return Arguments(given.toy, given.write, given.text if takes_text else None)


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Seconds of every call in every round, after one warm-up of each.

    Each round runs all calls once, starting one further on, so that noise and drift of the machine
    meet all of them alike: compare calls within a round (`over`).
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        calls[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = perf_counter()
            calls[name]()
            seconds[name].append(perf_counter() - start)
    return {name: tuple(times) for name, times in seconds.items()}


def added(*series: Sequence[float]) -> tuple[float, ...]:
    """Seconds of several calls of one round together, round by round."""
    return tuple(map(sum, zip(*series, strict=True)))


def times(factor: float, series: Sequence[float]) -> tuple[float, ...]:
    """A series of seconds, multiplied."""
    return tuple(factor * value for value in series)


def ratios(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, ...]:
    """`upper / lower` within each round."""
    return tuple(a / b for a, b in zip(upper, lower, strict=True))


def over(upper: Sequence[float], lower: Sequence[float]) -> float:
    """Median over rounds of `upper / lower`."""
    return median(ratios(upper, lower))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; floats get three significant digits."""
    cells = [list(columns), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def report(given: Arguments, name: str, claim: str, body: str) -> None:
    """Print a script's tables and, with `--write`, replace its section in `RESULTS.md`."""
    command = f"python benchmarks/{name}.py" + (" --toy" if given.toy else "")
    command += " --text FOLDER" if given.text else ""
    text = f"## {name}\n\n{claim}\n\n{body}\n\n`{command}`, {machine()}\n"
    print(text)
    if given.write:
        write_section(RESULTS, name, text)


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of `name`, leaving all other sections as they are.

    Raises `ValueError` when a begin marker has no end marker after it.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    old = path.read_text() if path.exists() else HEADING
    if begin not in old:
        write_atomic(path, f"{old.rstrip()}\n\n{section}\n")
        return
    before, rest = old.split(begin, 1)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path} has {begin!r} without {end!r}: put the end marker back.")
    write_atomic(path, before + section + after)


def machine() -> str:
    """Processor, cores, threads, load, versions and date, in one line."""
    import torch  # here, so that scripts which only count and print start at once
    import transformers

    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load at the "
        f"end {load}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {sys.version.split()[0]}, {datetime.now(UTC):%Y-%m-%d}."
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def fresh_processes(workers: int = 1, imported: str = "mnemoscope.models") -> ProcessPoolExecutor:
    """A new process for every call, forked from one that has imported a module and run nothing.

    What it measures is its own as in a process started from nothing; only the imports, which take
    longer than a toy, happen once.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([imported])
    return ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1)


def resident_after_cleaning() -> float:
    """Resident MiB of this process after free heap went back to the system; `highest_resident`
    starts here. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def highest_resident() -> float:
    """The most MiB that were resident at once since `resident_after_cleaning`."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}: peak memory is measured on Linux only.")
