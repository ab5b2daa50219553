"""The difference of two folders: which files, tensors, bytes and heads."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import HEADS, O_PROJ, files, projection_name, prune, save, weights
from mnemoscope.interventions import safetensors_bytes
from mnemoscope.interventions.checkpoint_diff import TensorDiff, diff_checkpoints
from mnemoscope.models import HeadId
from mnemoscope.models.errors import CheckpointError
from safetensors.torch import save_file


def test_a_copy_has_no_difference(llama, tmp_path):
    same = diff_checkpoints(llama, shutil.copytree(llama, tmp_path / "copy"))
    assert same.same
    assert same.describe() == "no difference"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_heads_of_a_pruned_copy_are_named(family, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_bytes, "CHUNK", 512)  # several pieces a matrix
    source = save(tmp_path / "source", family)
    out = prune(source, tmp_path / "out")
    found = diff_checkpoints(source, out)
    assert set(found.heads) == set(HEADS)
    before, after = weights(source), weights(out)
    assert [t.name for t in found.tensors] == sorted(projection_name(family, i) for i in (0, 2))
    for tensor in found.tensors:
        old, new = (w[tensor.name].view(torch.uint8).numpy() for w in (before, after))
        assert tensor.differing_bytes == (old != new).sum()
        assert tensor.kind == "changed"
    assert found.only_in_a == ()
    assert set(found.only_in_b) == set(files(out)) - set(files(source))
    changed = {name for name, content in files(source).items() if files(out)[name] != content}
    assert set(found.changed_files) == changed
    assert "heads L0.H1" in found.describe()
    json.dumps(found.document())


def test_a_bias_is_a_tensor_without_heads(tmp_path):
    source = save(tmp_path / "source", "gpt2")
    means = {HeadId(1, 2): np.ones(8)}
    out = prune(source, tmp_path / "out", [HeadId(1, 2)], mean_outputs=means)
    bias, weight = diff_checkpoints(source, out).tensors
    assert (bias.name, bias.heads) == ("transformer.h.1.attn.c_proj.bias", ())
    assert (weight.name, weight.heads) == ("transformer.h.1.attn.c_proj.weight", (HeadId(1, 2),))


def test_shard_layout_does_not_matter_for_tensors(tmp_path):
    a = save(tmp_path / "a", "llama", shard="20KB")
    b = save(tmp_path / "b", "llama", shard="1GB")
    found = diff_checkpoints(a, b)
    assert found.tensors == ()
    assert not found.same  # the files differ


def test_tensors_of_one_side_and_of_other_shapes(single, tmp_path):
    other = shutil.copytree(single, tmp_path / "other")
    tensors = weights(single)
    tensors["extra"] = torch.zeros(3)
    tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :4].clone()
    save_file(tensors, other / "model.safetensors")
    assert diff_checkpoints(single, other).tensors == (
        TensorDiff("extra", "only in b", 12, ()),
        TensorDiff("lm_head.weight", "other shape", 61 * 32 * 4, ()),
        TensorDiff("model.norm.weight", "only in a", 128, ()),
    )


def test_unknown_architectures_are_compared_without_heads(llama, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "secret"}')
    tiny_out = prune(llama, tmp_path / "out", [HeadId(1, 0)])
    (tiny_out / "config.json").write_text('{"model_type": "secret"}')
    (tensor,) = diff_checkpoints(other, tiny_out).tensors
    assert (tensor.name, tensor.heads) == (O_PROJ, ())


def test_folders_without_weights_are_refused(llama, tmp_path):
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        diff_checkpoints(llama, tmp_path)
    with pytest.raises(CheckpointError):
        diff_checkpoints(llama, tmp_path / "nowhere")
