"""`--backend` and `--remote` reach every load of a command, and are refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from mnemoscope.models import load_model
from mnemoscope.models.load import checkpoint_folder
from served_model import KEY, serving

pytest.importorskip("nnsight")

WEIGHTS = ("locos", "suppression", "write", "copied")
"""Columns that need the weights, missing or NaN without them."""
COMMANDS = (["heads", "score"], ["neurons", "find"], ["retrieval", "score"])


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the options leave in the environment is taken back after the test."""
    for name in ("MNEMOSCOPE_BACKEND", "MNEMOSCOPE_REMOTE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("asked", COMMANDS, ids=lambda words: words[0])
def test_an_unknown_back_end_or_address_is_refused(asked: list[str], command: Any) -> None:
    done = command(*asked, "engram", "--backend", "jax")
    assert done.code == 1
    assert "use local or nnsight" in " ".join(done.err.split())
    done = command(*asked, "engram", "--backend", "nnsight", "--remote", "ftp://host")
    assert done.code == 1
    assert "is no address" in " ".join(done.err.split())


@pytest.mark.parametrize("asked", COMMANDS, ids=lambda words: words[0])
def test_a_data_type_cannot_be_chosen_for_a_server(asked: list[str], command: Any) -> None:
    server = ("--remote", "http://127.0.0.1:9")  # nobody is there, and nobody is asked
    done = command(*asked, "engram", *server, "--dtype", "float16", "--device", "cpu")
    assert done.code == 1
    assert "device and dtype cannot be chosen" in " ".join(done.err.split())


def test_heads_score_gives_the_same_table(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--relation", world.relation, "--templates", "0", "--subjects", "6")
    tables = []
    for runs, engine in (("here", ()), ("traced", ("--backend", "nnsight"))):
        done = command("heads", "score", world.checkpoint, *asked, "--runs", runs, *engine)
        assert done.code == 0, done.err
        (table,) = Path(runs).glob("head-scores-*/table.parquet")
        tables.append(polars.read_parquet(table))
        assert ("nnsight" in (table.parent / "provenance.json").read_text()) == bool(engine)
    assert tables[0].equals(tables[1])


@pytest.fixture
def quiet_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the test's server, and no status lines."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


def tables_of(
    command: Any, argv: list[str], kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[polars.DataFrame]:
    """What a command finds in this process, and with a server that runs the model."""
    found = []
    with serving(folder) as url:
        for runs, engine in (("here", ()), ("there", ("--remote", url))):
            done = command(*argv, "--runs", runs, *engine)
            assert done.code == 0, done.err
            (table,) = Path(runs).glob(f"{kind}-*/table.parquet")
            found.append(polars.read_parquet(table))
    monkeypatch.delenv("MNEMOSCOPE_REMOTE")
    return found


def largest_gap(here: polars.DataFrame, there: polars.DataFrame) -> float:
    """Between the numbers of two tables of the same rows and columns."""
    assert here.columns == there.columns
    assert len(here) == len(there)
    names = [name for name, kind in here.schema.items() if kind.is_float()]
    gaps = (here.select(names).to_numpy() - there.select(names).to_numpy()).astype(float)
    assert (here.select(names).null_count().row(0)) == there.select(names).null_count().row(0)
    return float(np.nanmax(np.abs(gaps)))


def told(table: polars.DataFrame, name: str) -> bool:
    """Whether the table says anything in this column."""
    if name not in table.columns:
        return False
    column = table[name]
    return not (column.dtype.is_float() and column.is_nan().all())


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_key")
def test_heads_score_on_a_server(command: Any, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights here: path patching by whole passes, from end to end."""
    asked = ["heads", "score", str(world.checkpoint), "--relation", str(world.relation)]
    argv = [*asked, "--templates", "0", "--subjects", "3"]
    here, there = tables_of(command, argv, "head-scores", world.checkpoint, monkeypatch)
    scale = max(float(here[role].abs().max()) for role in ("memory", "context"))  # type: ignore[arg-type]
    effects = [name for name in here.columns if not name.endswith("_q")]  # no p-value of rounding
    assert largest_gap(here.select(effects), there.select(effects)) < 1e-3 * scale


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_key")
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "neurons find engram --relations capital,currency,continent --subjects 4 --pseudo 2 "
            "--resamples 2",
            "relation-neurons",
        ),
        pytest.param(
            "retrieval score engram --lengths 96 --needles 2 --per-haystack 2 --depths 2 "
            "--rounds 1",
            "retrieval-scores",
            marks=pytest.mark.skipif(
                "MNEMOSCOPE_LONG_TESTS" not in os.environ,
                reason="every answer token is a request of its own: over two minutes",
            ),
        ),
    ],
    ids=["neurons", "retrieval"],
)
def test_engram_on_a_server(
    words: str, kind: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tables_of(command, words.split(), kind, checkpoint_folder("engram"), monkeypatch)
    weightless = [name for name in here.columns if not told(there, name)]
    assert all(name.startswith(WEIGHTS) for name in weightless), weightless
    shared = [name for name in here.columns if name not in weightless]
    assert largest_gap(here.select(shared), there.select(shared)) < 1e-4


def test_the_environment_chooses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOSCOPE_BACKEND", "nnsight")
    assert type(load_model("engram")).__name__ == "TracedModel"
    assert type(load_model("engram", backend="local")).__name__ == "HookedModel"
