"""What a job took is written in one step, read back, and never in the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mnemoscope.results.job_record import (
    JobRecord,
    peak_host_bytes,
    read_job_record,
    write_job_record,
)


def test_a_record_is_read_as_it_was_written_and_damage_is_none(tmp_path: Path) -> None:
    assert read_job_record(tmp_path) is None
    record = JobRecord("cuda:0", "some GPU", 3_000_000, 2_000_000, 1.5)
    write_job_record(tmp_path, record)
    assert read_job_record(tmp_path) == record
    assert "3 MB of memory at most and 2 MB on the device" in record.words
    (tmp_path / "job.json").write_text("{}")
    assert read_job_record(tmp_path) is None


def test_the_peak_is_that_of_the_process_itself_also_after_memory_was_let_go() -> None:
    """A small child of a process that once held much does not take over its peak."""
    held = bytearray(b"x" * (300 << 20))
    mine = peak_host_bytes()
    assert mine is not None
    assert mine > len(held)
    code = "from mnemoscope.results.job_record import peak_host_bytes as p; {}; print(p())"
    for work, least, most in (
        ("pass", 1 << 20, 200 << 20),
        ("b'x' * (250 << 20)", 250 << 20, mine),
    ):
        told = subprocess.check_output([sys.executable, "-c", code.format(work)], text=True)
        assert least < int(told) < most
    del held
