"""The organism that ships with the package loads by name, in any place, with no network."""

import json
from pathlib import Path

import pytest
import torch
from mnemoscope.models import load_model
from mnemoscope.models.load import checkpoint_folder
from mnemoscope.models.packaged import DEFAULT_MODEL, PACKAGED, engram_folder


def test_it_is_the_default_of_the_packaged_models() -> None:
    assert DEFAULT_MODEL == "engram"
    assert list(PACKAGED) == ["engram", "smollm2"]


def test_it_loads_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_model("engram", device="cpu")
    assert model.name == "engram"
    assert model.dtype == torch.float32
    assert model.identity["model_id"] == "engram"
    anatomy = model.anatomy
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads) == (6, 8, 4)
    assert model.continuations(["The capital of France is"], 2)[0].startswith(" Paris")
    assert calls == []


def test_its_source_is_no_path_of_this_machine() -> None:
    assert json.loads((engram_folder() / "source.json").read_text()).startswith("engram")


def test_its_checkpoint_folder_can_be_pruned_and_copied() -> None:
    folder = checkpoint_folder("engram")
    assert folder == engram_folder()
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
