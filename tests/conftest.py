"""Shared by all tests: the folder of test models, one thread a process, and who runs what.

With several processes each takes a whole file, so that models are loaded once; all browser tests
go to one process, since they share a server and two browsers at once would slow each other down;
studies share nothing and go one by one.
"""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Kernels of studies and other child processes too: two processes whose threads wait for each other
# on the same cores take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


class WholeFiles(LoadScopeScheduling):
    """Deals out files, the folder of browser tests as one, studies test by test."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        if path.startswith("tests/browser/"):
            return "tests/browser"
        return nodeid if path.startswith("tests/studies/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    """Called by xdist; its own grouping by mark does nothing with pytest 9.2."""
    return WholeFiles(config, log)


def pytest_collection_finish() -> None:
    """Thousands of tests and modules stay: no collection of garbage need look at them again."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: a long file that is begun last leaves a core idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    folders = ("browser", "studies")

    def place(item: pytest.Item) -> tuple[int, bool]:
        folder = item.path.parent.name
        rank = folders.index(folder) if folder in folders else len(folders)
        return rank, item.path not in slow

    items.sort(key=place)
