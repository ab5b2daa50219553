"""The tables of the scale guide are what its script makes, and paper is near what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402
from costs import LLAMA3_8B, SHAPES, weight_bytes  # noqa: E402
from measuring import RESULTS  # noqa: E402
from recorded import recorded, tables  # noqa: E402
from scale_jobs import H100, JOBS, LAPTOP, MACHINES, Corpus, Job  # noqa: E402

GUIDE = scale.GUIDE.read_text("utf-8")


@pytest.mark.parametrize("name", scale.sections())
def test_the_guide_holds_what_the_script_makes(name: str) -> None:
    _, _, rest = GUIDE.partition(f"<!-- begin {name} -->\n")
    found = rest.partition(f"\n<!-- end {name} -->")[0]
    told = f"run `python benchmarks/scale.py --write`: the {name} tables of docs/scale.md are old"
    assert found == scale.sections()[name], told


def test_paper_is_within_a_factor_of_two_of_every_measured_point() -> None:
    found = list(scale.points(RESULTS))
    assert {point[1] for point in found} >= {"path_patching", "attention_rows", "streaming_cache"}
    for what, _, paper, measured in found:
        assert 0.5 < measured / paper < 2, what


def test_the_checks_are_read_from_the_results(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(
        RESULTS.read_text("utf-8").replace("| 45.0    |", "| 90.0    |"), "utf-8"
    )
    ratios = {what: m / p for what, _, p, m in scale.points(tmp_path / "RESULTS.md")}
    assert ratios["keys and values of 1024 tokens, SmolLM2, MiB"] == pytest.approx(2, rel=0.01)


def test_work_or_moving_bytes_decide_whichever_is_longer() -> None:
    def job(flops: float, reads: float) -> Job:
        return Job("m", "w", lambda _: flops, None, lambda _: 0, lambda _: reads)

    weights = weight_bytes(LLAMA3_8B)
    assert job(H100.flops * 100, 1).seconds(LLAMA3_8B, H100) == pytest.approx(100)
    assert job(0, 10).seconds(LLAMA3_8B, H100) == pytest.approx(10 * weights / H100.bytes)


def test_weights_that_do_not_fit_come_from_the_disk_once_a_read() -> None:
    job = Job("m", "w", lambda _: 0, None, lambda _: 0, lambda _: 3)
    big = SHAPES[-1]
    assert not job.fits(big, H100)
    assert job.seconds(big, H100) == pytest.approx(3 * weight_bytes(big) / H100.disk)
    assert job.fits(SHAPES[0], LAPTOP)


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
