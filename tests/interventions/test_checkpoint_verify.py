"""Verification finds whatever differs from the manifest and, with the source, any byte."""

import json
import shutil

import pytest
import torch
from checkpoints import (
    HEADS,
    O_PROJ,
    hash_of,
    prune,
    save,
    weights,
)
from mnemoscope.interventions.checkpoint_surgery import (
    DELTA,
    MANIFEST,
    CheckpointError,
    plan_pruning,
    verify_pruned,
)
from mnemoscope.interventions.prune_manifest import edit_record
from mnemoscope.models import HeadId
from mnemoscope.models.errors import DamagedCheckpointError
from safetensors.torch import load_file, save_file


def test_verification_names_what_was_changed(llama, tmp_path):
    out = prune(llama, tmp_path / "out")
    (out / "README.md").write_text("a better card")
    verify_pruned(out)
    (out / "tokenizer.json").write_text("{}")
    (out / "chat_template.jinja").unlink()
    shard = next(s.name for s in plan_pruning(llama, HEADS).shards if s.edits)
    shutil.copy(llama / shard, out / shard)
    with pytest.raises(DamagedCheckpointError) as caught:
        verify_pruned(out)
    for says in ("tokenizer.json has changed", "template.jinja is missing", f"{shard} has changed"):
        assert says in str(caught.value)


def test_verification_finds_heads_that_are_not_zero(llama, tmp_path):
    """A manifest whose hashes fit but which claims one head too many, with or without its bytes."""
    out = prune(llama, tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())
    record["heads"].append({"layer": 1, "head": 2, "kv_head": 1})
    (out / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match=r"its declared edits of .* agree"):
        verify_pruned(out)
    for shard in plan_pruning(llama, [*HEADS, HeadId(1, 2)]).shards:
        record["shards"][shard.name]["edits"] = [edit_record(edit) for edit in shard.edits]
    (out / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match=f"{O_PROJ} is not zero in columns 16:24"):
        verify_pruned(out)


@pytest.mark.parametrize("how", [{}, {"factor": -2.0}])
def test_verification_with_the_source_counts_the_differing_bytes(llama, tmp_path, how):
    out = prune(llama, tmp_path / "out", **how)
    alone, report = verify_pruned(out), verify_pruned(out, llama)
    old, new = weights(llama), weights(out)
    expected = sum(int((old[n].view(torch.uint8) != new[n].view(torch.uint8)).sum()) for n in old)
    assert report.differing_bytes == expected > 0
    assert alone.differing_bytes is None
    assert report.declared_bytes == 3 * 8 * 32 * 4
    assert report.heads == HEADS
    assert f"{expected:,} bytes differ" in report.describe()
    assert "the source was not compared" in alone.describe()


@pytest.mark.parametrize("place", ["outside", "inside", "delta", "size"])
def test_a_forged_folder_is_found_with_the_source(llama, tmp_path, place):
    """Hashes adapted to a changed byte: only the source tells."""
    out = prune(llama, tmp_path / "out", factor=0.5, copy_untouched=True)
    record = json.loads((out / MANIFEST).read_text())
    shard = next(s for s in plan_pruning(llama, HEADS).shards if s.edits)
    run = shard.edits[0].ranges[0]
    name = DELTA if place == "delta" else shard.name
    content = bytearray((out / name).read_bytes())
    content[{"outside": run.offset + run.length, "inside": run.offset}.get(place, -1)] ^= 1
    (out / name).write_bytes(content)
    noted = hash_of(content)
    if place == "delta":
        record["undo"][DELTA] = noted
    else:
        record["shards"][name]["hash_after"] = noted
    if place == "size":
        record["shards"][name]["bytes"] += 1
    (out / MANIFEST).write_text(json.dumps(record))
    says = {
        "outside": "differs from its source outside the heads",
        "inside": "does not hold the edited numbers",
        "delta": "does not hold the old",
        "size": "has another size",
    }
    if place != "size":
        verify_pruned(out)
    with pytest.raises(DamagedCheckpointError, match=says[place]):
        verify_pruned(out, llama)


def test_another_source_is_found(llama, tmp_path):
    out = prune(llama, tmp_path / "out")
    other = save(tmp_path / "other", "llama")
    tensors = weights(other)
    shard = next(s for s in plan_pruning(llama, HEADS).shards if s.edits)
    named = {t: tensors[t] * 2 for t in load_file(other / shard.name)}
    save_file(named, other / shard.name, metadata={"format": "pt"})
    with pytest.raises(DamagedCheckpointError, match="differs from its source"):
        verify_pruned(out, other)


def test_verification_needs_a_readable_manifest(llama, tmp_path):
    with pytest.raises(CheckpointError, match="was not written by prune_checkpoint"):
        verify_pruned(llama)
    out = prune(llama, tmp_path / "out")
    (out / MANIFEST).write_text("{")
    with pytest.raises(DamagedCheckpointError, match="not JSON"):
        verify_pruned(out)
    (out / MANIFEST).write_text("{}")
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        verify_pruned(out)
    (out / MANIFEST).write_text('{"schema": "mnemoscope/prune-manifest/9"}')
    with pytest.raises(CheckpointError, match=r"manifest/9.*use the Mnemoscope that wrote it"):
        verify_pruned(out)
