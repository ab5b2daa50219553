"""A running explorer on the planted checkpoint, and a Chromium to look at it with."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

try:
    import streamlit as _  # noqa: F401
except ModuleNotFoundError:
    collect_ignore_glob = ["test_*.py"]  # without the extra `app` there is nothing to test
sys.path.insert(0, str(Path(__file__).parents[1] / "app"))
sys.path.insert(0, str(Path(__file__).parent))

from visit import Visit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = """
[server]
address = "0.0.0.0"
allowedHosts = []
[browser]
gatherUsageStats = true
[[theme.fontFaces]]
family = "outside"
url = "http://example.org/outside.woff2"
[theme]
font = "outside"
"""


@dataclass(frozen=True)
class Explorer:
    """A started explorer: where it is, what it says, and the folder it was started in."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    run_id: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """Started by `launch` in a folder whose Streamlit configuration wants to open everything."""
    from mnemoscope.models.load import load_model
    from planted_ground import index, neuron_run_of_engram, planted_checkpoint, score_run

    folder = tmp_path_factory.mktemp("explorer")
    checkpoint = planted_checkpoint(folder / "planted")
    neuron_run_of_engram(folder / "runs")
    run_id = score_run(folder / "runs", load_model(checkpoint))
    index(folder / "indexes" / "risky", label="risk")
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(HOSTILE)
    with served(folder, [str(checkpoint), "engram"], run_id) as started:
        yield started


@pytest.fixture(scope="session")
def serve() -> Any:
    """`served`, for tests that need an explorer of their own."""
    return served


@contextmanager
def served(folder: Path, models: Sequence[str], run_id: str = "") -> Iterator[Explorer]:
    """An explorer of these models, started in the folder and ended with the block."""
    port = free_port()
    code = (
        "from mnemoscope.app.launch import launch; "
        f"launch({list(models)!r}, port={port}, runs_root='runs')"
    )
    environment = {
        **os.environ,
        "STREAMLIT_SERVER_ADDRESS": "0.0.0.0",
        "OMP_NUM_THREADS": "1",
        "MNEMOSCOPE_CACHE": str(folder / "cache"),  # where nothing is built yet
    }
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], cwd=folder, stderr=said, env=environment
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", process)
        yield Explorer(port, process, folder, run_id)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, headless; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visits(browser: Any, explorer: Any) -> Iterator[Any]:
    """Opens pages; at the end none of them may have asked for anything outside."""
    from planted_ground import CONTEXT, PROMPT

    opened: list[Visit] = []

    def visit(path: str = "", *, dark: bool = False, **address: str) -> Visit:
        query = {"prompt": PROMPT, "context": CONTEXT, **address} if not path else address
        place = {"": "explore", "ask": ""}.get(path, path)  # the entry page is at the root
        opened.append(Visit(browser, f"{explorer.url}/{place}?{urlencode(query)}", dark=dark))
        return opened[-1]

    yield visit
    for one in opened:
        one.page.close()
    assert [one.outside for one in opened] == [[]] * len(opened)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the address answers, a minute at most."""
    for _ in range(300):
        assert process.poll() is None, "the explorer ended before it answered"
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within a minute")
