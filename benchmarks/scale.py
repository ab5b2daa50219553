"""The tables of `docs/scale.md`: what jobs cost on paper, and how far paper is from measurements.

    python benchmarks/scale.py           # print them
    python benchmarks/scale.py --write   # put them into docs/scale.md

Nothing is measured here: the points come from `RESULTS.md`, the costs from the shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from costs import (
    SHAPES,
    SMOLLM2,
    Shape,
    prefill_flops,
    rows_flops,
    states_flops,
    sweep_flops,
    total_end_flops,
)
from measuring import RESULTS, table, write_section
from mnemoscope.probes.conflict_heads import Estimand
from recorded import Row, recorded
from scale_jobs import (
    JOBS,
    LAPTOP,
    MACHINES,
    READS_AT_START,
    Corpus,
    Hardware,
    Job,
    prune_seconds,
    scoring_flops,
)

GUIDE = Path(__file__).parents[1] / "docs" / "scale.md"
BENCH_LLAMA = Shape("Llama (16 x 16, 4 kv, x 1024)", 16, 16, 4, 1024, 2816, 32000)
SMOLLM2_BLOCKS = Shape("SmolLM2-135M's shape, 6 of 30 blocks", 6, 9, 3, 576, 1536, 49152, tied=True)
CORPORA = (
    *(Corpus(tokens) for tokens in (1e8, 1e9, 1e10)),
    *(Corpus(1e11, width, 1e9) for width in (2, 4)),
    *(Corpus(1e12, 2, shard) for shard in (1e9, 1e10)),
    Corpus(1e12, 4, 1e9),
)
Point = tuple[str, str, float, float]
"""What, where it was measured, on paper, measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {GUIDE}")
    write = parser.parse_args().write
    for name, text in sections().items():
        print(f"{text}\n")
        if write:
            write_section(GUIDE, name, text)


def sections() -> dict[str, str]:
    """Every generated table of the guide, by the name of its markers."""
    return {
        "models": models_table(),
        "machines": machines_table(),
        "jobs": "\n\n".join(job_table(job) for job in JOBS),
        "pruning": pruning_table(),
        "corpora": corpora_table(),
        "checks": checks_table(),
    }


def models_table() -> str:
    rows = [
        (
            *(shape.name, f"{shape.weights / 1e9:.3g}", 2 * shape.weights / 1e9),
            *(shape.all_heads, f"{shape.units:,}", shape.kv_bytes(1024) / 1e6),
            ", ".join(m.name for m in MACHINES if JOBS[0].fits(shape, m)) or "none of these",
        )
        for shape in SHAPES
    ]
    columns = ("model", "weights, billions", "GB in bfloat16", "heads", "MLP units")
    return table((*columns, "MB of keys and values a 1,024 tokens", "weights fit"), rows)


def machines_table() -> str:
    rows = [
        (m.name, m.flops / 1e12, m.bytes / 1e9, m.memory / 1e9, m.disk / 1e9, m.keys / 1e6, m.basis)
        for m in MACHINES
    ]
    columns = ("machine", "TFLOP/s", "GB/s", "memory GB", "disk GB/s", "million keys/s")
    return table((*columns, "where from"), rows)


def job_table(job: Job) -> str:
    rows = [
        (
            *(shape.name, job.flops(shape) / 1e15),
            "" if job.naive is None else job.naive(shape) / job.flops(shape),
            job.memory(shape) / 1e9,
            *(_duration(job, shape, machine) for machine in MACHINES),
        )
        for shape in SHAPES
    ]
    columns = ("model", "PFLOP", "naive / ours", "GB beside the weights")
    names = tuple(machine.name for machine in MACHINES)
    reads = f"{READS_AT_START + job.reads:,} reads of all weights"
    return f"**{job.method}** ({job.what}; {reads})\n\n{table((*columns, *names), rows)}"


def _duration(job: Job, shape: Shape, machine: Hardware) -> str:
    mark = "" if job.fits(shape, machine) else " (weights from disk)"
    return spoken(job.seconds(shape, machine)) + mark


def spoken(seconds: float) -> str:
    """A duration in its unit. Below ten seconds starting kernels, files and Python decide."""
    for size, unit in ((86400 * 365.25, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else "< 10 s"


def pruning_table() -> str:
    rows = [
        (
            shape.name,
            2 * shape.weights / 1e9,
            *(spoken(prune_seconds(shape, d)) for d in (2e9, 1e10)),
        )
        for shape in SHAPES
    ]
    return table(("model", "GB", "disk of 1 GB/s each way", "of 5 GB/s each way"), rows)


def corpora_table() -> str:
    rows = [
        (
            *(f"{corpus.tokens:.0e}", corpus.width, f"{corpus.shard:.2g}", corpus.shards),
            *(spoken(3600 * corpus.build_hours), corpus.sort_memory / 1e9, corpus.disk / 1e9),
            *(f"{corpus.reads:,}", 1e3 * corpus.find_seconds()),
        )
        for corpus in CORPORA
    ]
    columns = ("tokens", "bytes an id", "tokens a shard", "shards", "one core sorts in")
    return table((*columns, "GB a worker", "GB on disk", "reads a search", "cold search ms"), rows)


# -- paper and measurement --------------------------------------------------------------------


def checks_table() -> str:
    """Every point of `RESULTS.md` that a formula speaks of, with the ratio."""
    rows = [(*point, point[3] / point[2]) for point in points(RESULTS)]
    return table(("what", "section", "on paper", "measured", "measured / paper"), rows)


def points(results: Path) -> Iterator[Point]:
    """All points of a results file."""
    yield from _path_patching(recorded(results, "path_patching"))
    yield from _head_scoring(recorded(results, "head_scoring"))
    yield from _attention_rows(recorded(results, "attention_rows"))
    yield from _streaming_cache(recorded(results, "streaming_cache"))
    yield from _suffix_index(recorded(results, "suffix_index"))
    yield from _small(recorded(results, "gpu_small"))
    yield from _sustained(results)


def plain_rates(results: Path) -> list[float]:
    """FLOP/s of every plain pass on the two cores that `RESULTS.md` holds."""
    rates = []
    for found in recorded(results, "path_patching")[:2]:
        for row in (row for row in found if row["model"] == BENCH_LLAMA.name):
            work = prefill_flops(BENCH_LLAMA, int(row["T"]), int(row["B"]))
            rates.append(work / float(row["plain pass s"]))
    for found in recorded(results, "attention_rows")[:1]:
        for row in (row for row in found if row["model"] == SMOLLM2_BLOCKS.name):
            work = prefill_flops(SMOLLM2_BLOCKS, int(row["tokens"]))
            rates.append(work / float(row["plain s"]))
    return rates


def _sustained(results: Path) -> Iterator[Point]:
    """What the CPU's line in the table of machines says."""
    if rates := plain_rates(results):
        what = f"GFLOP/s of plain passes on 2 cores, median of {len(rates)}"
        where = "path_patching, attention_rows"
        yield what, where, LAPTOP.flops / 1e9, median(rates) / 1e9
    for row in (recorded(results, "average_precision") or [[]])[0]:
        keys = int(row["units"]) * int(row["prompts"]) / float(row["ranking s"])
        what = "million keys/s of the ranking on one core"
        yield what, "average_precision", LAPTOP.keys / 1e6, keys / 1e6


def _path_patching(tables: list[list[Row]]) -> Iterator[Point]:
    """Work in units of a plain pass of the same batch, which takes the machine out of it."""
    for name, found in zip(("direct", "END total"), tables, strict=False):
        for row in found:
            if row["model"] != BENCH_LLAMA.name:
                continue
            tokens = int(row["T"])
            plain = prefill_flops(BENCH_LLAMA, tokens)
            sweep = sweep_flops(BENCH_LLAMA)
            ours = sweep + states_flops(BENCH_LLAMA, tokens)
            if name == "END total":
                ours = total_end_flops(BENCH_LLAMA, tokens) + 4 * plain
            what = f"{name} effects, {BENCH_LLAMA.name}, T = {tokens}: plain passes"
            yield what, "path_patching", ours / plain, float(row["ours passes"])
            naive = BENCH_LLAMA.all_heads + 2
            yield f"{what}, naive", "path_patching", naive, float(row["naive passes"])


def _head_scoring(tables: list[list[Row]]) -> Iterator[Point]:
    for row in tables[0] if tables else []:
        shape, tokens = SMOLLM2, int(row["T"])
        estimand: Estimand = "direct" if row["estimand"] == "direct" else "total_end"
        paper = scoring_flops(shape, estimand, 1, tokens) / prefill_flops(shape, tokens)
        what = f"heads score, SmolLM2, {estimand}: plain passes"
        yield what, "head_scoring", paper, float(row["ours, passes"])


def _attention_rows(tables: list[list[Row]]) -> Iterator[Point]:
    for row in tables[0] if tables else []:
        if row["model"] == SMOLLM2_BLOCKS.name:
            tokens = int(row["tokens"])
            plain = prefill_flops(SMOLLM2_BLOCKS, tokens)
            paper = 1 + rows_flops(SMOLLM2_BLOCKS, tokens, 32, 12) / plain
            what = f"prefill with 32 rows, {SMOLLM2_BLOCKS.name}, {tokens} tokens: plain prefills"
            yield what, "attention_rows", paper, float(row["ratio"])


def _streaming_cache(tables: list[list[Row]]) -> Iterator[Point]:
    full = {row["tokens"]: row["full MB"] for row in tables[0]} if tables else {}
    for tokens, measured in full.items():
        paper = SMOLLM2.kv_bytes(int(tokens), 4) / 2**20
        what = f"keys and values of {tokens} tokens, SmolLM2, MiB"
        yield what, "streaming_cache", paper, float(measured)


def _suffix_index(tables: list[list[Row]]) -> Iterator[Point]:
    if not tables:
        return
    sorting = {row["sorting by"]: row for row in tables[1]}["ours"]
    rate = float(sorting["M tokens / cpu s"])
    corpus = Corpus(1e9)
    sort = corpus.build_hours * 3.6
    yield "core seconds to sort a million tokens", "suffix_index", sort, 1 / rate
    cold = {row["cold find of 8 tokens"]: row for row in tables[2]}["with directory"]
    reads = corpus.reads / corpus.shards
    yield "reads a cold search, one shard", "suffix_index", reads, float(cold["major faults"])


def _small(tables: list[list[Row]]) -> Iterator[Point]:
    """SmolLM2's shape: each part in units of plain or naive passes of its own rounds, and a step of
    gates at the share of the product's peak that the plain passes of the run reached."""
    rows = [row for found in tables for row in found if "what" in row]
    for row in rows:
        what = f"{row['model']}, {row['what']}"
        if row.get("naive TFLOP"):
            paper = float(row["naive TFLOP"]) / float(row["TFLOP"])
            yield f"{what}: naive / ours", "gpu_small", paper, float(row["naive / ours"])
        elif row.get("paper"):
            paper = float(row["paper"])
            yield f"{what}: plain prefills", "gpu_small", paper, float(row["rows / plain"])
        elif row["naive is"] == "the plain passes":
            yield f"{what}: plain passes", "gpu_small", 1.0, 1 / float(row["naive / ours"])
    yield from _gates(rows, {row["part"]: row for row in tables[-1]} if tables else {})


def _gates(rows: list[Row], peaks: dict[str, Row]) -> Iterator[Point]:
    for plain in (row for row in rows if row["naive is"] == "the plain passes"):
        reached = float(plain["TFLOP"]) / float(plain["naive s"])
        share = reached / float(peaks["ap"]["product TFLOP/s"])
        for row in (row for row in rows if row["what"].startswith("a step on")):
            paper = float(row["TFLOP"]) / (share * float(peaks["gates"]["product TFLOP/s"]))
            yield f"{row['model']}, {row['what']}: s", "gpu_small", paper, float(row["s"])


if __name__ == "__main__":
    main()
