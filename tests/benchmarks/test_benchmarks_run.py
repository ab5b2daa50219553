"""Each benchmark runs at toy size and prints its table; the sections of RESULTS.md stay apart."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measuring  # noqa: E402
from recorded import tables  # noqa: E402

AGREEMENT = 1e-4

linux = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from /proc"
)


@cache
def toy(name: str) -> str:
    """What `python benchmarks/NAME.py --toy` prints."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--toy"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"## {name}" in done.stdout
    assert f"`python benchmarks/{name}.py --toy`" in done.stdout
    return done.stdout


def test_hook_overhead_compares_every_site_with_the_plain_pass() -> None:
    (rows,) = tables(toy("hook_overhead"))
    sites = {(row["captured"], row["kept at"]) for row in rows}
    assert sites == {
        (s, at) for s in ("nothing", "z", "neuron", "resid_pre") for at in ("all", "end")
    }
    for row in rows:
        assert 0 < float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"])
        rounded = 0.005  # the table shows three digits
        assert float(row["ratio"]) < 1.10 + rounded or row["within 1.10"] == "NO"
        assert float(row["ratio"]) > 1.10 - rounded or row["within 1.10"] == "yes"
        assert (float(row["MB kept"]) > 0) == (row["captured"] != "nothing")
        assert float(row["largest difference"]) < AGREEMENT


@pytest.mark.slow
def test_engines_give_the_same_bits_and_whole_passes_the_sweeps_effects() -> None:
    pytest.importorskip("nnsight")
    (rows,) = tables(toy("engines"))
    assert len(rows) == 2 * 3 + 2  # two lengths by three engines, two ways of path patching
    for row in rows:
        passes = row["what"].startswith("pass")
        assert float(row["difference"]) <= (0 if passes else AGREEMENT)


@pytest.mark.slow
def test_a_sweep_reads_an_offloaded_model_once() -> None:
    (rows,) = tables(toy("offload"))
    half, whole = rows
    assert whole["on disk"] == "100%"
    assert float(half["weights MB"]) < float(whole["weights MB"])
    for row in rows:
        assert int(row["most reads"]) == 1
        assert 0.3 < float(row["read"]) < 1
        assert float(row["naive read"]) >= 11.9  # heads of the toy, less what stays in memory
        assert float(row["difference"]) == 0


@pytest.mark.slow
def test_path_patching_agrees_with_the_naive_way() -> None:
    direct, total, extrapolation = tables(toy("path_patching"))
    assert len(direct) == len(total) == 4  # two models, two lengths
    for row in direct + total:
        assert float(row["difference"]) < AGREEMENT
        assert float(row["effect"]) > 100 * AGREEMENT  # the equality could fail
        assert all(float(row[key]) > 0 for key in ("faster", "+ runs", "ours passes"))
    for row in extrapolation:
        assert int(row["heads"]) == 12
        assert float(row["difference over all heads"]) < AGREEMENT


@pytest.mark.slow
def test_flops_of_the_direct_sweep_follow_the_formula() -> None:
    """GPT-2's block has 4 d^2 attention and 8 d^2 MLP weights: ratio 2 T (12 / 8) L / (L + 1)."""
    direct, _, _ = tables(toy("path_patching"))
    row = direct[0]
    want = 2 * int(row["T"]) * 12 / 8 * 3 / 4
    assert float(row["by FLOPs"]) == pytest.approx(want, rel=1e-2)


@linux
@pytest.mark.slow  # every figure is a process of its own
def test_memory_is_measured_against_the_bound() -> None:
    ((row,),) = tables(toy("path_patching_memory"))
    live, bound = float(row["live MB"]), float(row["memory_mb"])
    assert float(row["ratio"]) == pytest.approx(live / bound, rel=2e-2)
    assert row["within bound"] == ("yes" if live < bound else "NO")
    assert live > 0.5  # the sweep was seen


@pytest.mark.slow
def test_head_scoring_counts_in_forward_passes() -> None:
    text = toy("head_scoring")
    (rows,) = tables(text)
    assert [row["estimand"] for row in rows] == ["direct", "total_end"]
    for row in rows:
        assert int(row["naive, passes"]) == 2 * 16
        assert float(row["ours, passes"]) > 0
        assert float(row["ratio"]) > 0
        assert f"{row['estimand']}: 16 heads x 2 corruptions cost" in text


@linux
@pytest.mark.slow  # every figure of memory is a process of its own
def test_ranking_neurons_is_measured_in_forward_passes() -> None:
    pytest.importorskip("sklearn")
    (speed,), (memory,) = tables(toy("average_precision"))
    assert int(speed["units"]) == 3 * 48
    assert int(speed["prompts"]) == 12 * 4
    assert 0 < float(speed["lowest"]) <= float(speed["ratio"]) <= float(speed["highest"])
    rounded = 0.005  # the table shows three digits
    assert float(speed["ratio"]) < 1 + rounded or speed["within 1.0"] == "NO"
    assert float(speed["ratio"]) > 1 - rounded or speed["within 1.0"] == "yes"
    assert float(speed["faster"]) > 1
    peak, bound = float(memory["peak MB"]), float(memory["memory_bytes MB"])
    assert memory["within bound"] == ("yes" if peak <= bound else "NO")


@linux
@pytest.mark.slow  # every figure of memory is a process of its own
def test_attention_rows_are_compared_with_a_prefill_and_with_all_patterns() -> None:
    ((row,),) = tables(toy("attention_rows"))
    assert int(row["tokens"]) == 32
    assert 0 < float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"])
    rounded = 0.005  # the table shows three digits
    assert float(row["ratio"]) < 1.05 + rounded or row["within 1.05"] == "NO"
    assert float(row["ratio"]) > 1.05 - rounded or row["within 1.05"] == "yes"
    assert float(row["patterns / rows"]) > 0
    assert row["within 64"] == ("yes" if float(row["rows add MB"]) <= 64 else "NO")
    assert float(row["difference"]) < AGREEMENT


@pytest.mark.slow
def test_a_streaming_cache_holds_its_formula_and_says_what_masked_heads_say() -> None:
    costs, texts = tables(toy("streaming_cache"))
    assert [int(row["tokens"]) for row in costs] == [64, 256]
    for row in costs:
        length = int(row["tokens"])
        want = 1 / (0.5 + 0.5 * (4 + 16 - 1) / length)
        assert float(row["smaller"]) == pytest.approx(want, abs=0.01)
        assert row["as formula"] == "yes"
        assert 0 < float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"])
    assert [row["prefill"] for row in texts] == ["streaming", "full"]
    for row in texts:
        assert float(row["difference"]) < AGREEMENT < float(row["logits sd"])
        assert row["text as masked"] == "yes"


@pytest.mark.slow  # processes of their own sort, and read cold
def test_index_queries_are_held_against_their_targets() -> None:
    pytest.importorskip("numba")
    operations, builders, faults = tables(toy("suffix_index"))
    targets = {row["operation"].partition(",")[0]: row["target us"] for row in operations}
    assert targets["count"] == "10.0"
    assert targets["maximal spans"] == "3000"
    for row in operations:
        if row["target us"]:
            assert row["within"] == (
                "yes" if float(row["cpu us"]) <= float(row["target us"]) else "NO"
            )
        assert row["equal"] in ("yes", "")
    assert builders[0]["sorting by"] == "ours"
    assert int(builders[0]["places unlike the index"]) == 0
    assert [row["cold find of 8 tokens"] for row in faults] == ["with directory", "without"]


@pytest.mark.slow
def test_parts_and_ranged_reads_answer_as_the_whole_index_here() -> None:
    (rows,) = tables(toy("sharded_index"))
    assert len(rows) == 4 * (2 + 2 + 1)  # an index and its parts, here and there; one only there
    for row in rows:
        assert row["equal"] == "yes"
        assert float(row["queries/s"]) > 0
        assert bool(row["reads"]) == (row["where"] == "http")
        if row["reads"]:
            assert 0 <= float(row["rounds"]) <= float(row["reads"])


def test_toy_figures_are_never_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hook_overhead.py", "--toy", "--write"])
    with pytest.raises(SystemExit) as stop:
        measuring.arguments("what every script reads its command line with")
    assert stop.value.code == 2
    assert "toy figures" in capsys.readouterr().err


def test_a_script_replaces_its_own_section_only(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    measuring.write_section(path, "first", "## first\n\nold")
    measuring.write_section(path, "second", "## second\n\nkept")
    before = path.read_text()
    measuring.write_section(path, "first", "## first\n\nnew")
    assert path.read_text() == before.replace("old", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]


def test_a_section_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("<!-- begin first -->\nlost\n")
    with pytest.raises(ValueError, match="put the end marker back"):
        measuring.write_section(path, "first", "new")
    assert "lost" in path.read_text()


def test_rounds_are_interleaved_after_one_warm_up() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measuring.interleaved(calls, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that slows down threefold between rounds changes no ratio."""
    assert measuring.over((2.0, 6.0, 18.0), (1.0, 3.0, 9.0)) == 2.0


def test_figures_keep_three_digits() -> None:
    text = measuring.table(("a", "b", "c", "d"), [(0.0001234, 1.23456, 1234.5, "x")])
    assert text.splitlines()[-1].split() == ["|", "1e-04", "|", "1.23", "|", "1234", "|", "x", "|"]
