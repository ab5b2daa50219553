"""The tables of the scale guide are what its script makes, and paper is near what was measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.cli.retrieval_gates import GateConfig, find_gates
from mnemoscope.cli.scoring import ScoreConfig, score_heads
from mnemoscope.interventions import end_total_effect
from mnemoscope.models.memory_limits import MAX_MEMORY
from mnemoscope.probes.conflict_heads import ITEMS_PER_UNIT, Estimand
from placed import counted_reads

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402
from costs import LLAMA3_8B, SHAPES, weight_bytes  # noqa: E402
from measuring import RESULTS  # noqa: E402
from recorded import recorded, tables  # noqa: E402
from scale_jobs import (  # noqa: E402
    CLOSED_BOOK_ROWS,
    H100,
    JOBS,
    LAPTOP,
    MACHINES,
    READS_AT_START,
    STEP_READS,
    STEPS,
    Corpus,
    Job,
    scoring_reads,
)

GUIDE = scale.GUIDE.read_text("utf-8")


@pytest.mark.parametrize("name", scale.sections())
def test_the_guide_holds_what_the_script_makes(name: str) -> None:
    _, _, rest = GUIDE.partition(f"<!-- begin {name} -->\n")
    found = rest.partition(f"\n<!-- end {name} -->")[0]
    told = f"run `python benchmarks/scale.py --write`: the {name} tables of docs/scale.md are old"
    assert found == scale.sections()[name], told


def test_paper_is_within_a_factor_of_two_of_every_measured_point() -> None:
    for what, _, paper, measured in scale.points(RESULTS):
        assert 0.5 < measured / paper < 2, what


def sections_read(monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """Which sections of RESULTS.md the points are asked of, and which give some."""
    asked: set[str] = set()

    def noting(results: Path, section: str) -> Any:
        asked.add(section)
        return recorded(results, section)

    monkeypatch.setattr(scale, "recorded", noting)
    found = {name for point in scale.points(RESULTS) for name in point[1].split(", ")}
    return asked, found


def test_every_section_that_points_come_from_is_in_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, found = sections_read(monkeypatch)
    assert asked == {
        *("path_patching", "head_scoring", "attention_rows", "streaming_cache"),
        *("suffix_index", "average_precision", "gpu_small"),
    }
    assert found == asked, f"run the benchmark with --write: {', '.join(asked - found)}"


def test_make_bench_writes_every_section_that_needs_no_gpu() -> None:
    line = re.search(
        r"for script in (.*?); do", (BENCHMARKS.parent / "Makefile").read_text("utf-8")
    )
    assert line is not None
    writing = re.compile(r"^\s+(report|write_section)\((given|RESULTS)", re.MULTILINE)
    scripts = {p.stem for p in BENCHMARKS.glob("*.py") if writing.search(p.read_text("utf-8"))}
    assert set(line[1].split()) == scripts - {"measuring", "gpu"}


def test_the_checks_are_read_from_the_results(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(
        RESULTS.read_text("utf-8").replace("| 45.0    |", "| 90.0    |"), "utf-8"
    )
    ratios = {what: m / p for what, _, p, m in scale.points(tmp_path / "RESULTS.md")}
    assert ratios["keys and values of 1024 tokens, SmolLM2, MiB"] == pytest.approx(2, rel=0.01)


def test_work_or_moving_bytes_decide_whichever_is_longer() -> None:
    def job(flops: float, reads: int) -> Job:
        return Job("m", "w", lambda _: flops, None, lambda _: 0, reads)

    weights = (READS_AT_START + 10) * weight_bytes(LLAMA3_8B)
    assert job(H100.flops * 100, 1).seconds(LLAMA3_8B, H100) == pytest.approx(100)
    assert job(0, 10).seconds(LLAMA3_8B, H100) == pytest.approx(weights / H100.bytes)


def test_weights_that_do_not_fit_come_from_the_disk_once_a_read() -> None:
    job = Job("m", "w", lambda _: 0, None, lambda _: 0, 3)
    big = SHAPES[-1]
    weights = (READS_AT_START + 3) * weight_bytes(big)
    assert not job.fits(big, H100)
    assert job.seconds(big, H100) == pytest.approx(weights / H100.disk)
    assert job.fits(SHAPES[0], LAPTOP)


def test_training_gates_reads_a_model_on_disk_as_often_as_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command."""
    monkeypatch.setenv(MAX_MEMORY, "cpu=0KB")
    config = GateConfig("engram", "train", lengths=(192,), passkeys=1, words=2, steps=2, seeds=1)
    with counted_reads() as reads:
        find_gates(config, tmp_path, memory_mb=64, force=False, say=_silent, tell=_silent)
    blocks = {n for name, n in reads.items() if ".mlp." in name}
    assert blocks == {READS_AT_START + STEP_READS * config.steps}
    (gates,) = (job for job in JOBS if job.method == "streaming gates")
    assert gates.reads == STEP_READS * STEPS


HALF = {"bfloat16": True, "float32": False}


@pytest.mark.parametrize(
    ("estimand", "dtype"),
    [("direct", "float32"), ("total_end", "float32"), ("total_end", "bfloat16")],
)
def test_heads_score_reads_a_model_on_disk_as_often_as_counted(
    estimand: Estimand, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with two batches of closed-book prompts and more than one unit."""
    monkeypatch.setenv(MAX_MEMORY, "cpu=0KB")
    # In half precision let every row be checked against rounding: a bound is what is counted.
    monkeypatch.setitem(end_total_effect._TOLERANCE, False, -1.0)
    config = ScoreConfig("engram", subjects=11, dtype=dtype, estimand=estimand)
    with counted_reads() as reads:
        told = score_heads(config, tmp_path, force=False, say=_silent, tell=_silent).facts
    items = told["items"]
    asked = items + sum(told["dropped"].values())
    assert asked > CLOSED_BOOK_ROWS
    assert items > ITEMS_PER_UNIT
    mlps = {n for name, n in reads.items() if ".mlp." in name}
    counted = scoring_reads(estimand, asked, items, half=HALF[dtype])
    assert mlps == {READS_AT_START + counted}
    assert max(n for name, n in reads.items() if ".norm" not in name) <= max(mlps) + 1  # o_proj


def _silent(*_: object) -> None:
    """Tells nobody."""


def test_costs_rise_with_the_model_and_every_job_is_told_for_every_machine() -> None:
    for job in JOBS:
        work = [job.flops(shape) for shape in SHAPES]
        assert work == sorted(work)
        (rows,) = tables(scale.job_table(job))
        assert [row["model"] for row in rows] == [shape.name for shape in SHAPES]
        assert all(row[machine.name] for row in rows for machine in MACHINES)


def test_an_index_in_shards() -> None:
    corpus = Corpus(1e9, width=2, shard=2.5e8)
    assert corpus.shards == 4
    assert corpus.sort_memory == 2.5e8 * 10
    assert corpus.reads == 44
    assert Corpus(1e12, 2, 2e9).sort_memory == 2e9 * 18  # places of eight bytes
    assert Corpus(1e12).build_hours == pytest.approx(55.6, abs=0.1)


def test_a_missing_section_gives_no_points(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text("# Benchmarks\n", "utf-8")
    assert list(scale.points(tmp_path / "RESULTS.md")) == []
    assert recorded(tmp_path / "RESULTS.md", "path_patching") == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3, "< 10 s"), (50, "50 s"), (119, "119 s"), (5400, "90 min"), (3e5, "3.5 days")],
)
def test_durations_are_spoken(seconds: float, told: str) -> None:
    assert scale.spoken(seconds) == told
