"""`job.json`: on what a run that was started as a job worked, and what it took.

Written by the job's process when its work ends, however it ends; a process that was killed leaves
none. It is about the last process that worked on the run, and no part of the results.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .provenance import utc_now
from .storage import write_atomic

RECORD = "job.json"
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class JobRecord:
    """Device as torch names it, peaks of memory in bytes, and wall time of the work.

    `host_bytes` is the largest resident size of the whole process, None where the system does not
    tell; `device_bytes` what torch held on a GPU at most, None on the CPU. The memory is free
    again: the process has ended.
    """

    device: str
    device_name: str
    host_bytes: int | None
    device_bytes: int | None
    seconds: float
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    ended: str = field(default_factory=utc_now)

    @property
    def words(self) -> str:
        """The record in a line."""
        told = f"Took {self.seconds:,.0f} s on {self.device} ({self.device_name})"
        if self.host_bytes is not None:
            told += f", {self.host_bytes / 1e6:,.0f} MB of memory at most"
        if self.device_bytes is not None:
            told += f" and {self.device_bytes / 1e6:,.0f} MB on the device"
        return f"{told}; the process has ended, so all of it is free again."


def write_job_record(folder: Path, record: JobRecord) -> None:
    """Replace `folder/job.json`. Raises `RunFolderError` as `write_atomic` does."""
    write_atomic(folder / RECORD, json.dumps(asdict(record), indent=2) + "\n")


def read_job_record(folder: Path) -> JobRecord | None:
    """The record of a run's last job; None where there is none that can be read."""
    try:
        return JobRecord(**json.loads((folder / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def peak_host_bytes() -> int | None:
    """The largest resident size that this process has had.

    Linux is asked for this program's own peak: `getrusage` would count what the parent held when
    it started the process.
    """
    try:
        line = next(one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
