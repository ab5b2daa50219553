"""`gpu.py` measures every part at toy size, counts as torch does, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
from costs import (  # noqa: E402
    LLAMA2_7B,
    LLAMA3_8B,
    SHAPES,
    SMOLLM2,
    Shape,
    attention_flops,
    gates_flops,
    naive_sweep_flops,
    prefill_flops,
    streaming_flops,
    sweep_flops,
)
from gpu_device import Peaks  # noqa: E402
from gpu_figures import Figure, Unit, keep, kept, miscounted  # noqa: E402
from gpu_model import random_module  # noqa: E402
from recorded import tables  # noqa: E402

AGREEMENT = 1e-4
PARTS = ("ph3", "ap", "rows", "gates")
HERE = {"device": "here", "torch": "2.0"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole toy run, and what it printed."""
    out = tmp_path_factory.mktemp("figures")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # it stops where a count is off
    return out, done.stdout


def test_every_part_is_measured_against_paper_and_the_naive_way(toy: tuple[Path, str]) -> None:
    ph3, ap, rows, gates, peaks = tables(toy[1])
    assert [row["part"] for row in peaks] == list(PARTS)
    assert all(float(row["product TFLOP/s"]) > 0 for row in peaks)
    assert [row["what"] for row in ph3] == [
        "6 prompts of 20 tokens",
        "6 prompts of 40 tokens",
        "2 prompts of 20 tokens",
    ]
    assert ph3[-1]["naive is"] == "run for all heads"
    assert all(float(row["difference"]) < AGREEMENT for row in ph3)
    activations, ranking = ap
    assert activations["naive is"] == "the plain passes"
    assert "AP of 576 units" in ranking["what"]
    assert float(rows[0]["difference"]) < AGREEMENT
    assert rows[1]["naive is"].startswith("not run")
    assert rows[1]["naive s"] == ""
    assert float(gates[0]["difference"]) < AGREEMENT
    for row in (*ph3, *ap, *rows, *gates):
        assert 0 < float(row["lowest"]) <= float(row["s"]) <= float(row["highest"])
        assert float(row["GB"]) > 0


def test_flops_on_paper_are_those_of_torchs_counter(toy: tuple[Path, str]) -> None:
    for part, count in zip(PARTS, (3, 1, 2, 2), strict=True):
        unit = kept(toy[0] / f"{part}-toy.json", _setting(toy[0], part))
        assert unit is not None
        counted = [figure for figure in unit.figures if figure.counted]
        assert len(counted) == count, part
        for figure in counted:
            assert figure.counted == pytest.approx(figure.expected, rel=0.02), figure.what
            assert 0 < figure.flops <= figure.expected * 1.001


def _setting(out: Path, part: str) -> dict[str, Any]:
    return json.loads((out / f"{part}-toy.json").read_text())["setting"]


def test_a_stopped_run_goes_on_with_the_missing_part(
    toy: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed = toy
    before = {part: (out / f"{part}-toy.json").read_bytes() for part in PARTS}
    (out / "rows-toy.json").unlink()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--out", str(out)])
    gpu.main()
    done = capsys.readouterr()
    assert "rows on toy" in done.err
    assert not any(f"{part} on toy" in done.err for part in ("ph3", "ap", "gates"))
    for part in ("ph3", "ap", "gates"):
        assert (out / f"{part}-toy.json").read_bytes() == before[part]
    first, again = list(tables(printed)), list(tables(done.out))
    assert [again[i] for i in (0, 1, 3)] == [first[i] for i in (0, 1, 3)]


def test_a_unit_of_another_setting_is_measured_again(tmp_path: Path) -> None:
    figure = Figure("a", 1.0, 2.0, (3.0, 4.0), more={"difference": 0.5})
    unit = Unit("ph3", "toy", {"tokens": (20, 40)}, HERE, "here", Peaks(1.0, 2.0), (figure,))
    keep(tmp_path / "unit.json", unit)
    found = kept(tmp_path / "unit.json", {"tokens": (20, 40)})
    assert found is not None
    assert found.figures == (figure,)
    assert found.peaks == unit.peaks
    assert not found.stale(HERE)
    assert kept(tmp_path / "unit.json", {"tokens": (20, 80)}) is None
    assert kept(tmp_path / "none.json", {}) is None


@pytest.mark.parametrize("other", [{"device": "another GPU"}, {"torch": "1.0"}])
def test_a_unit_of_another_device_or_library_is_told_and_measured_again(
    other: dict[str, str],
    toy: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = json.loads((toy[0] / "ap-toy.json").read_text())
    told["place"] |= other
    (tmp_path / "ap-toy.json").write_text(json.dumps(told))
    monkeypatch.setattr(gpu, "PARTS", {"ap": lambda *_: (Figure("new", 1.0, 2.0, (3.0,)),)})
    asked = gpu.Asked("toy", ("ap",), tmp_path, False, False)
    (unit,) = gpu.measured(asked)
    assert [figure.what for figure in unit.figures] == ["new"]
    ((name, value),) = other.items()
    assert f"ap on toy is measured again: {name} {value} (here" in capsys.readouterr().err
    assert gpu.measured(asked) == [unit]  # it was kept with what is here now
    assert "again" not in capsys.readouterr().err


def test_a_file_that_does_not_tell_where_it_was_measured_is_stale(
    toy: tuple[Path, str], tmp_path: Path
) -> None:
    told = json.loads((toy[0] / "ap-toy.json").read_text())
    del told["place"]
    (tmp_path / "old.json").write_text(json.dumps(told))
    unit = kept(tmp_path / "old.json", told["setting"])
    assert unit is not None
    assert "device unknown (here here)" in unit.stale(HERE)


def test_figures_of_a_gpu_are_printed_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = gpu.Asked("full", ("ap",), tmp_path, False, False)
    figures = (Figure("a", 1.0, 2.0, (3.0,)),)
    for shape in gpu.FULL.shapes:
        setting = gpu.setting_of(asked, "ap")
        unit = Unit("ap", shape.name, setting, HERE, "a GPU", Peaks(1.0, 2.0), figures)
        keep(gpu.path_of(asked, "ap", shape), unit)
    assert "ap Llama-3-8B, ap Llama-2-7B: a GPU" in gpu.report(asked, gpu.measured(asked))
    gpu.path_of(asked, "ap", gpu.FULL.shapes[0]).unlink()
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.measured(asked)


def test_a_miscount_is_told() -> None:
    figures = tuple(
        Figure(what, 1.0, 1.0, (1.0,), counted=counted, expected=1e9)
        for what, counted in (("right", 1.01e9), ("wrong", 1.5e9))
    )
    unit = Unit("ph3", "toy", {}, HERE, "here", Peaks(1.0, 1.0), figures)
    (line,) = miscounted(unit, 0.02)
    assert "wrong" in line


@pytest.mark.parametrize("options", [("--toy",), ("--part", "ph3"), ("--small", "--part", "ap")])
def test_toy_and_single_parts_are_never_written(
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--write"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert "only a whole run is written" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [SMOLLM2, LLAMA2_7B, LLAMA3_8B], ids=lambda shape: shape.name)
def test_a_shape_is_the_model_and_is_made_on_its_device_only(shape: Shape) -> None:
    module = random_module(shape, "meta", torch.bfloat16, 131072)
    tensors = [*module.parameters(), *module.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in module.parameters()) == shape.weights
    block = module.model.layers[0]
    assert shape.mlp == sum(p.numel() for p in block.mlp.parameters())
    assert shape.attention == sum(p.numel() for p in block.self_attn.parameters())


def test_shapes_have_the_published_numbers_of_weights() -> None:
    assert {shape.name: shape.weights for shape in SHAPES} == {
        "SmolLM2-135M": 134_515_008,
        "Llama-3.2-1B": 1_235_814_400,
        "Llama-2-7B": 6_738_415_616,
        "Llama-3-8B": 8_030_261_248,
        "Llama-2-13B": 13_015_864_320,
        "Llama-3-70B": 70_553_706_496,
    }


def test_costs_by_hand() -> None:
    tiny = Shape("tiny", 2, 2, 1, 8, 6, 10)  # d_head 4
    assert (tiny.attention, tiny.mlp) == (8 * 8 + 2 * 8 * 4 + 8 * 8, 3 * 8 * 6)
    linear = 2 * 5 * 2 * (tiny.attention + tiny.mlp) + 2 * 8 * 10
    pairs = 5 * 6 // 2
    assert prefill_flops(tiny, 5) == linear + 2 * 2 * (2 * 4 * 2) * pairs
    assert attention_flops(tiny, 5, causal=False) == 2 * 2 * 16 * 25
    rows = 2 + 4  # rows of the first layer, and of both
    select, outputs = 2 * 2 * 8 * rows, 4 * 2 * (8 * 8)
    read = 2 * 2 * 8 * (4 + 1)
    assert sweep_flops(tiny) == 2 * tiny.mlp * (rows + 2) + select + outputs + read
    assert naive_sweep_flops(tiny, 5, 3) == 4 * 3 * prefill_flops(tiny, 5)
    assert streaming_flops(tiny, 100, sink=2, recent=10) == 4 * 4 * 4 * 128 * (2 + 9 + 64)
    assert gates_flops(tiny, 100) > 4 * 2 * 100 * tiny.blocks


def test_the_sweep_of_a_seven_billion_model_is_a_few_teraflops() -> None:
    """2 p_mlp H L (L + 1) / 2: 4.6 TFLOP a prompt for Llama-2-7B, 5.9 for Llama-3-8B."""
    assert sweep_flops(LLAMA2_7B) / 1e12 == pytest.approx(4.6, abs=0.05)
    assert sweep_flops(LLAMA3_8B) / 1e12 == pytest.approx(5.95, abs=0.05)
    ratio = naive_sweep_flops(LLAMA2_7B, 20) / sweep_flops(LLAMA2_7B)
    assert ratio == pytest.approx(58, abs=2)
