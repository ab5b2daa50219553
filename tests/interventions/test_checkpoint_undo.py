"""Undoing gives back the very bytes that were pruned, from the pruned folder alone."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from checkpoints import HEADS, files, prune, save
from mnemoscope.interventions.checkpoint_surgery import DELTA, MANIFEST
from mnemoscope.interventions.checkpoint_undo import undo_pruning
from mnemoscope.models import HeadId
from mnemoscope.models.errors import CheckpointError, DamagedCheckpointError

CARD = "---\nlicense: mit\n---\n# Größe\n"


@pytest.mark.parametrize("how", [{}, {"factor": -2.0}, {"copy_untouched": True}, {"mean": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_undo_restores_every_byte(family, dtype, how, tmp_path):
    source = save(tmp_path / "source", family, dtype)
    (source / "README.md").write_text(CARD)
    how = dict(how)
    if how.pop("mean", False):
        how["mean_outputs"] = {head: np.linspace(-1, 1, 8) for head in HEADS}
    pruned = prune(source, tmp_path / "pruned", **how)
    before = files(source)
    shutil.rmtree(source)
    assert files(undo_pruning(pruned, tmp_path / "back")) == before


def test_undo_of_a_twice_pruned_folder_gives_the_once_pruned_and_then_the_source(llama, tmp_path):
    (llama / "README.md").write_text(CARD)
    once = prune(llama, tmp_path / "once", [HeadId(0, 1), HeadId(2, 0)])
    twice = prune(once, tmp_path / "twice", [HeadId(0, 2)])
    thrice = prune(twice, tmp_path / "thrice", [HeadId(0, 2), HeadId(1, 1)], factor=0.5)
    back = undo_pruning(thrice, tmp_path / "to-twice")
    assert files(back) == files(twice)
    back = undo_pruning(back, tmp_path / "to-once")
    assert files(back) == files(once)
    assert files(undo_pruning(back, tmp_path / "to-source")) == files(llama)


def test_undo_of_a_folder_without_a_card_has_none(llama, tmp_path):
    back = undo_pruning(prune(llama, tmp_path / "out"), tmp_path / "back")
    assert not (back / "README.md").exists()
    assert files(back) == files(llama)


def test_the_delta_holds_the_old_columns_and_nothing_else(single, tmp_path):
    from checkpoints import O_PROJ, weights
    from safetensors.torch import load_file

    out = prune(single, tmp_path / "out", [HeadId(1, 3), HeadId(1, 0)])
    kept = load_file(out / DELTA)
    old = weights(single)[O_PROJ]
    assert set(kept) == {O_PROJ}
    assert torch.equal(kept[O_PROJ], torch.cat([old[:, :8], old[:, 24:]], dim=1))


def test_undo_refuses_what_has_changed_since(llama, tmp_path):
    for name in ("tokenizer.json", DELTA, next(iter(_edited(llama, tmp_path)))):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        out = prune(llama, tmp_path / "out")
        content = bytearray((out / name).read_bytes())
        content[-1] ^= 1
        (out / name).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=f"{name} has changed since"):
            undo_pruning(out, tmp_path / "back")
        assert sorted(os.listdir(tmp_path)) == ["llama", "out"]


def _edited(llama, tmp_path):
    out = prune(llama, tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())
    return [name for name, entry in record["shards"].items() if entry["edits"]]


def test_undo_refuses_missing_files_and_unpruned_folders(llama, tmp_path):
    with pytest.raises(CheckpointError, match="was not written by prune_checkpoint"):
        undo_pruning(llama, tmp_path / "back")
    out = prune(llama, tmp_path / "out")
    (out / DELTA).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"lacks {DELTA}"):
        undo_pruning(out, tmp_path / "back")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\b", "c:evil"])
def test_file_names_that_leave_the_folder_are_refused(llama, tmp_path, name):
    out = prune(llama, tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())
    record["files"][name] = "0" * 64
    (out / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match="does not stay inside"):
        undo_pruning(out, tmp_path / "back")


def test_manifest_that_disagrees_with_the_weights_is_refused(llama, tmp_path):
    out = prune(llama, tmp_path / "out")
    path = out / MANIFEST
    record = json.loads(path.read_text())
    entry = next(e for e in record["shards"].values() if e["edits"])
    entry["edits"][0]["blocks"] = [[0, 8]]
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match="disagree about"):
        undo_pruning(out, tmp_path / "back")


def test_undo_overwrites_nothing_but_an_earlier_result(llama, tmp_path):
    out = prune(llama, tmp_path / "out")
    back = undo_pruning(out, tmp_path / "back")
    with pytest.raises(CheckpointError, match="exists already"):
        undo_pruning(out, back)
    (back / "tokenizer.json").write_text("spoilt")
    assert files(undo_pruning(out, back, force=True)) == files(llama)
    (back / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="force does not replace it"):
        undo_pruning(out, back, force=True)
    with pytest.raises(CheckpointError, match="inside the source"):
        undo_pruning(out, out, force=True)
