"""`load_model` over two devices that refuse to mix: every operation gives the numbers of one.

The devices are host memory under other names (`tests/pretend_devices.py`), so that this needs no
accelerator: a tensor left on the wrong device raises, as it does on CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "two_devices.py"
FAMILIES = ("gpt2", "neox", "llama")
ROUNDING = 1e-5


@cache
def told() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *FAMILIES],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_fits_one_device_is_loaded_there_alone(family: str) -> None:
    at = told()[family]["unasked"]
    assert len(at) == 4  # three blocks, and what is outside
    assert all(devices == ["pretend:0"] for devices in at.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_limits_fill_the_devices_in_their_order_by_whole_blocks(family: str) -> None:
    at = told()[family]["spread"]
    assert [at[block] for block in "012"] == [["pretend:0"], ["pretend:1"], ["pretend:1"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_gives_the_numbers_of_one_device(family: str) -> None:
    gaps = told()[family]["gaps"]
    assert len(gaps) == 8
    wrong = {name: gap for name, gap in gaps.items() if isinstance(gap, str) or gap > ROUNDING}
    assert not wrong
