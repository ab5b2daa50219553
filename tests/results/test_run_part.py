"""Two parts of one run name their units alike and never meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mnemoscope.results.errors import RunCancelled
from mnemoscope.results.run_folder import open_run, request_cancel
from mnemoscope.results.run_part import RunPart


def test_parts_keep_units_of_one_name_apart(tmp_path: Path) -> None:
    with open_run(tmp_path, "study", {}) as run:
        first, second = RunPart(run, "first"), RunPart(run, "second")
        for number, part in enumerate((first, second)):
            part.save_unit_arrays("haystack", {"x": np.array([number])})
            part.append("haystack", {"number": number})
        assert set(run.done) == {"first: haystack", "second: haystack"}
        assert dict(first.done)["haystack"]["number"] == 0
        assert second.load_unit_arrays("haystack")["x"] == [1]
    with open_run(tmp_path, "study", {}) as again:
        assert RunPart(again, "second").load_unit_arrays("haystack")["x"] == [1]
        assert RunPart(again, "sec").done == {}


def test_all_else_is_the_run(tmp_path: Path) -> None:
    with open_run(tmp_path, "study", {}) as run:
        part = RunPart(run, "first")
        assert (part.id, part.folder, part.finished) == (run.id, run.folder, False)
        part.progress(1, 3, "reading")
        assert (run.state.done, part.state.message) == (1, "reading")
        request_cancel(run.folder)
        with pytest.raises(RunCancelled):
            part.check_cancelled()
