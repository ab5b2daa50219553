"""Shared by all tests: the folder of test models, one thread a process, and who runs what.

With several processes each takes a whole file, so that models are loaded once; all browser tests
are one group, since they share a server and two browsers at once would slow each other down.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for the processes, long ones first: one that is begun last leaves a core idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        group = "browser" if item.get_closest_marker("browser") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (not item.get_closest_marker("browser"), item.path not in slow))
