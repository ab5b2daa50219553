"""`--max-memory` and `--offload-folder` travel in the environment; the same numbers come out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mnemoscope.models.memory_limits import MAX_MEMORY, OFFLOAD_FOLDER


@pytest.fixture(autouse=True)
def no_limits_before_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MAX_MEMORY, OFFLOAD_FOLDER):
        monkeypatch.setenv(name, "")


def shown(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_model_is_shown_where_it_is(world: Any, command: Any) -> None:
    whole = shown(command("models", "show", world.checkpoint, "--json"))
    limits = ("--max-memory", "cpu=100KB", "--offload-folder", "offloaded")
    spread = shown(command("models", "show", world.checkpoint, *limits, "--json"))
    assert (whole["device"], spread["device"]) == ("cpu", "disk")
    assert spread["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("limits", "code", "message"),
    [("cpu", 2, "write 0=20GiB,cpu=30GiB"), ("77=1GiB", 1, "names the device 77")],
)
def test_limits_that_make_no_sense_are_refused(
    world: Any, command: Any, limits: str, code: int, message: str
) -> None:
    done = command("models", "show", world.checkpoint, "--max-memory", limits)
    assert done.code == code
    assert message in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("heads", "score"),
        ("neurons", "find"),
        ("neurons", "ablate"),
        ("retrieval", "score"),
        ("retrieval", "compare"),
        ("trace", "text"),
    ],
)
def test_every_command_that_takes_a_large_model_has_them(
    command: Any, words: tuple[str, ...]
) -> None:
    told = command(*words, "--help").out
    assert "--max-memory" in told
    assert "--offload-folder" in told
