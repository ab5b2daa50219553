"""Provenance: everything filled in, nothing heavy imported, the same back from its file."""

import json
import subprocess
import sys

import pytest
from mnemoscope.results.errors import RunFolderError
from mnemoscope.results.provenance import Provenance, sha256_of_json


def test_round_trip(provenance):
    assert Provenance.from_json(provenance.to_json()) == provenance


def test_versions_and_command_are_filled_in(provenance):
    assert set(provenance.versions) == {"mnemoscope", "torch", "transformers", "numpy", "python"}
    assert provenance.versions["python"] == sys.version.split()[0]
    assert provenance.command == tuple(sys.argv)
    assert provenance.created.endswith("+00:00")


def test_missing_and_unknown_fields_are_named(provenance):
    record = json.loads(provenance.to_json())
    del record["seed"]
    with pytest.raises(RunFolderError, match="seed"):
        Provenance.from_json(json.dumps(record))
    with pytest.raises(RunFolderError, match="colour"):
        Provenance.from_json(json.dumps({**record, "seed": 1, "colour": "red"}))
    with pytest.raises(RunFolderError, match="not JSON"):
        Provenance.from_json("{")


def test_hash_ignores_key_order_and_tuples():
    assert sha256_of_json({"a": (1, 2), "b": "é"}) == sha256_of_json({"b": "é", "a": [1, 2]})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        sha256_of_json({"a": float("nan")})


def test_the_results_floor_does_not_import_torch():
    code = (
        "import sys, mnemoscope.results.run_folder, mnemoscope.results.head_set, "
        "mnemoscope.results.statistics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
