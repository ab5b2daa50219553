"""The second file beside foreign score files: provenance that is never believed of other scores."""

import json

import pytest
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.score_sidecars import (
    Sidecar,
    load_sidecar,
    sidecar_path,
    write_with_sidecar,
)

TRIALS = ({"needle": "a", "length": 512, "depth": 0.5}, {"needle": "b", "length": 512, "depth": 0})


def test_round_trip(tmp_path, provenance):
    path = tmp_path / "scores.json"
    sidecar = Sidecar(provenance, TRIALS, ("two trials only",))
    write_with_sidecar(path, "{}", sidecar)
    assert path.read_text() == "{}"
    assert sidecar_path(path).name == "scores.json.provenance.json"
    assert load_sidecar(path) == sidecar
    record = json.loads(sidecar_path(path).read_text())
    assert record["file"] == "scores.json"
    assert record["provenance"]["weights_sha256"] == "ab" * 32


def test_scores_without_a_sidecar_have_none(tmp_path):
    path = tmp_path / "scores.json"
    write_with_sidecar(path, "{}", None)
    assert load_sidecar(path) is None


def test_a_sidecar_is_not_believed_of_other_scores(tmp_path, provenance):
    path = tmp_path / "scores.json"
    write_with_sidecar(path, "{}", Sidecar(provenance))
    path.write_text("[]")
    with pytest.raises(UnitSetError, match="other scores"):
        load_sidecar(path)


@pytest.mark.parametrize("content", ["{", "{}", '{"schema": 1}', "[1]"])
def test_damaged_sidecars_are_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text("{}")
    sidecar_path(path).write_text(content)
    with pytest.raises(UnitSetError, match="damaged"):
        load_sidecar(path)


def test_nothing_is_overwritten_by_halves(tmp_path, provenance):
    path = tmp_path / "scores.json"
    sidecar_path(path).write_text("someone else's")
    with pytest.raises(RunFolderError, match="exists already"):
        write_with_sidecar(path, "{}", Sidecar(provenance))
    assert not path.exists()
    write_with_sidecar(path, "{}", Sidecar(provenance), force=True)
    with pytest.raises(RunFolderError, match="exists already"):
        write_with_sidecar(path, "[]", Sidecar(provenance))
    assert path.read_text() == "{}"
    # New scores without a sidecar do not keep that of the old ones.
    write_with_sidecar(path, "[]", None, force=True)
    assert load_sidecar(path) is None
