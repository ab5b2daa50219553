"""For the tests of the model floor: one thread, and no network where a test asks for `calls`."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The test has no network; the list holds every attempt to use one."""
    tried: list[str] = []

    def refuse(*args: Any, **_: Any) -> None:
        tried.append(repr(args))
        raise socket.gaierror("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried
