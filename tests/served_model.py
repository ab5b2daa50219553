"""A model behind `nnsight_server.py`, for the length of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

KEY = "a-key"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Start a server for a checkpoint folder that wants `KEY`; its address."""
    script = Path(__file__).with_name("nnsight_server.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with TemporaryDirectory() as empty:
        port = Path(empty) / "port"
        command = [sys.executable, script, folder, port, KEY]
        server = subprocess.Popen(command, env=environment, cwd=empty)
        try:
            while not port.exists():
                assert server.poll() is None, "the server ended before it listened"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port.read_text()}"
        finally:
            server.kill()
            server.wait()
