"""A checkpoint folder and a relation file of the planted model, and a way to run commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mnemoscope.cli import output
from mnemoscope.cli.main import main
from mnemoscope.data.facts.items import relation_to_json
from mnemoscope.organisms import PlantedModel, planted_model, planted_relation


@dataclass(frozen=True)
class World:
    """The planted model on disk."""

    planted: PlantedModel
    checkpoint: Path
    relation: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    planted = planted_model()
    planted.module.save_pretrained(folder / "planted")
    planted.tokenizer.save_pretrained(folder / "planted")
    relation = folder / "relation.json"
    relation.write_text(json.dumps(relation_to_json(planted_relation(planted))), "utf-8")
    return World(planted, folder / "planted", relation)


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run `mnemoscope ARGS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output.console, "width", 200)  # no line breaks in what tests look for

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mnemoscope", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        code = stop.value.code
        return Done(code if isinstance(code, int) else int(bool(code)), captured.out, captured.err)

    return run
