"""A plan names the exact bytes, and refuses what would be pruned wrongly."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
import transformers as hf
from checkpoints import (
    HEADS,
    O_PROJ,
    edit_config,
    files,
    prune,
    rewrite,
    save,
    weights,
)
from families import FAMILIES
from mnemoscope.interventions.checkpoint_surgery import (
    CheckpointError,
    plan_pruning,
    prune_checkpoint,
)
from mnemoscope.models import HeadId
from mnemoscope.models.errors import (
    DamagedCheckpointError,
    MnemoscopeError,
    UnitOutOfRangeError,
    UnsupportedModelError,
)

# -- the plan -------------------------------------------------------------------------------------


def test_plan_reads_headers_only(single):
    """A file of 40 GB (a hole, mostly) is planned in the memory of its header."""
    path = single / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["big"] = {"dtype": "U8", "shape": [40 * 10**9], "data_offsets": [end, end + 40 * 10**9]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    os.truncate(path, 8 + len(text) + end + 40 * 10**9)
    tracemalloc.start()
    plan = plan_pruning(single, HEADS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.disk_bytes > 40 * 10**9
    assert peak < 2**21


def test_plan_counts(llama):
    plan = plan_pruning(llama, HEADS)
    assert plan.parameters == 3 * 8 * 32
    assert plan.edited_bytes == 3 * 8 * 32 * 4
    assert sum(map(len, files(llama).values())) <= plan.disk_bytes
    layer_2 = next(edit for _, edit in plan.edits if "layers.2" in edit.tensor.name)
    at = layer_2.tensor.offset
    assert [(r.offset - at, r.stride, r.length, r.count) for r in layer_2.ranges] == [
        (0, 128, 32, 32),
        (96, 128, 32, 32),
    ]


def test_gpt2_heads_are_contiguous_rows(tmp_path):
    plan = plan_pruning(save(tmp_path / "gpt2", "gpt2"), [HeadId(1, 2)])
    ((_, edit),) = plan.edits
    (run,) = edit.ranges
    assert (run.offset - edit.tensor.offset, run.length, run.count) == (16 * 32 * 4, 8 * 32 * 4, 1)


def test_plan_describes_sharing_of_kv_heads(tmp_path):
    config = {**FAMILIES["llama"].to_dict(), "num_attention_heads": 8, "head_dim": 4}
    module = hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    module.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    text = plan_pruning(tmp_path / "m", [HeadId(1, 5)]).describe()
    assert "query head 5 of layer 1 shares kv head 1 with query heads 4, 6, 7" in text
    assert "model.layers.1.self_attn.o_proj.weight F32 [32, 32]" in text
    assert "32 runs of 16 bytes, every 128" in text
    assert "128 weights in 512 bytes change" in text
    assert "disk needed" in text
    assert "warning" not in text


def test_plan_says_nothing_of_sharing_without_groups(tmp_path):
    assert "shares" not in plan_pruning(save(tmp_path / "gpt2", "gpt2"), HEADS).describe()


# -- refusals: the source --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "error", "says"),
    [
        ([HeadId(3, 0)], UnitOutOfRangeError, "layers 0 to 2"),
        ([HeadId(0, 4)], UnitOutOfRangeError, "query heads 0 to 3"),
        ([HeadId(0, -1)], UnitOutOfRangeError, "query heads 0 to 3"),
        ([HeadId(0, 1), HeadId(0, 1)], MnemoscopeError, "heads named twice: L0.H1"),
        ([], CheckpointError, "no heads given"),
    ],
)
def test_wrong_heads_are_refused(llama, heads, error, says):
    with pytest.raises(error, match=says):
        plan_pruning(llama, heads)


@pytest.mark.parametrize("factor", [1.0, float("nan"), float("inf")])
def test_pointless_factors_are_refused(llama, factor):
    with pytest.raises(CheckpointError, match="makes no new model"):
        plan_pruning(llama, HEADS, factor=factor)


def test_overflowing_factor_leaves_nothing(tmp_path):
    source = save(tmp_path / "source", "llama", torch.float16)
    with pytest.raises(CheckpointError, match="the largest F16 number"):
        prune(source, tmp_path / "out", factor=1e9)
    assert os.listdir(tmp_path) == ["source"]


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.json"):
        plan_pruning(tmp_path, HEADS)


def test_unreadable_source_is_refused(llama, monkeypatch):
    def refuses(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuses)
    with pytest.raises(CheckpointError, match=r"cannot read .*Permission denied"):
        plan_pruning(llama, HEADS)


def test_broken_config_is_refused(llama):
    (llama / "config.json").write_text("[]")
    with pytest.raises(DamagedCheckpointError, match="no JSON object"):
        plan_pruning(llama, HEADS)
    (llama / "config.json").write_text('{"model_type": "llama", "num_attention_heads": "four"}')
    with pytest.raises(DamagedCheckpointError, match="not valid"):
        plan_pruning(llama, HEADS)


def test_unknown_architecture_is_refused(llama):
    edit_config(llama, model_type="mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba' is not in the table"):
        plan_pruning(llama, HEADS)


def test_adapter_folder_is_refused(llama):
    (llama / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge it into its base model first"):
        plan_pruning(llama, HEADS)


def test_pickled_weights_are_refused(llama):
    for path in (*llama.glob("*.safetensors"), llama / "model.safetensors.index.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors weights: give"):
        plan_pruning(llama, HEADS)
    (llama / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only pytorch_model.bin.*convert first"):
        plan_pruning(llama, HEADS)


def test_quantised_checkpoints_are_refused(single):
    config = (single / "config.json").read_text()
    edit_config(single, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedModelError, match="is quantised"):
        plan_pruning(single, HEADS)
    (single / "config.json").write_text(config)
    rewrite(single, lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].to(torch.int8)}))
    with pytest.raises(UnsupportedModelError, match=r"\(I8\) is quantised"):
        plan_pruning(single, HEADS)


@pytest.mark.parametrize("form", ["qweight", "weight_scale", "lora_A.weight", "base_layer.weight"])
def test_packed_and_adapted_projections_are_refused(single, form):
    name = O_PROJ.removesuffix("weight") + form
    rewrite(single, lambda tensors: tensors.update({name: tensors[O_PROJ].clone()}))
    with pytest.raises(UnsupportedModelError, match="quantised or has an unmerged adapter inside"):
        plan_pruning(single, HEADS)


def test_shared_blocks_are_refused(single):
    rewrite(single, lambda tensors: tensors.pop(O_PROJ))
    with pytest.raises(UnsupportedModelError, match=r"layer 1 has no output projection .* shared"):
        plan_pruning(single, HEADS)


def test_ambiguous_projections_are_refused(single):
    twin = O_PROJ.removeprefix("model.")
    rewrite(single, lambda tensors: tensors.update({twin: tensors[O_PROJ].clone()}))
    with pytest.raises(UnsupportedModelError, match="layer 1 has several output projections"):
        plan_pruning(single, HEADS)


def test_projections_under_a_strange_path_are_refused(single):
    rewrite(single, lambda t: t.update({f"vision.{O_PROJ}": t.pop(O_PROJ)}))
    with pytest.raises(UnsupportedModelError, match=r"expected model.layers.1.*found vision"):
        plan_pruning(single, HEADS)


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 8}, {"head_dim": 16}, {"hidden_size": 64}]
)
def test_shapes_that_contradict_the_configuration_are_refused(llama, changes):
    edit_config(llama, **changes)
    with pytest.raises(UnsupportedModelError, match="do not belong together"):
        plan_pruning(llama, HEADS)


def test_more_layers_than_configured_are_refused(llama):
    edit_config(llama, num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match="promises 2 layers but the weights have 3"):
        plan_pruning(llama, HEADS)


def test_renumbered_heads_are_refused(llama):
    edit_config(llama, pruned_heads={"0": [1]})
    with pytest.raises(UnsupportedModelError, match="pruned_heads"):
        plan_pruning(llama, HEADS)


def test_truncated_shard_is_refused(llama):
    path = sorted(llama.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=f"{path.name} is truncated"):
        plan_pruning(llama, HEADS)


def test_missing_shard_is_refused(llama):
    path = sorted(llama.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{path.name} is missing"):
        plan_pruning(llama, HEADS)


def test_index_that_names_an_absent_tensor_is_refused(llama):
    path = llama / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(DamagedCheckpointError, match=r"promises model.extra in"):
        plan_pruning(llama, HEADS)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_broken_index_is_refused(llama, text):
    (llama / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DamagedCheckpointError, match=r"index.json"):
        plan_pruning(llama, HEADS)


def test_two_sets_of_weights_are_refused(llama, single):
    shutil.copy(single / "model.safetensors", llama)
    with pytest.raises(CheckpointError, match="holds both"):
        plan_pruning(llama, HEADS)


def test_broken_link_is_refused(llama, tmp_path):
    (llama / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(DamagedCheckpointError, match=r"vocab.json is a broken link"):
        plan_pruning(llama, HEADS)


def test_source_that_changed_after_planning_is_refused(llama, tmp_path):
    plan = plan_pruning(llama, HEADS)
    (llama / "added.txt").write_text("later")
    with pytest.raises(CheckpointError, match="has changed since it was planned"):
        prune_checkpoint(plan, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "..",
        "a\\b.safetensors",
        "a\0.safetensors",
        "config.json",
        "",
        5,
        ["x"],
    ],
)
def test_index_names_that_are_no_weight_files_are_refused(llama, name):
    path = llama / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    path.write_text(json.dumps(index))
    with pytest.raises(DamagedCheckpointError, match=r"index.json"):
        plan_pruning(llama, HEADS)


@pytest.mark.parametrize("kind", ["folder", "fifo", "broken link", "loop"])
def test_shards_that_are_no_files_are_refused(single, kind):
    path = single / "model.safetensors"
    index = {"weight_map": dict.fromkeys(weights(single), "w.safetensors")}
    (single / "model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()
    path = single / "w.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else single / "gone")
    with pytest.raises(CheckpointError, match=r"no regular file|is missing|cannot read"):
        plan_pruning(single, HEADS)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**8 + 1, 10**6])
def test_headers_of_huge_length_are_refused(single, length):
    path = single / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DamagedCheckpointError, match="header longer than the file"):
        plan_pruning(single, HEADS)


def test_overlapping_tensors_are_refused(single):
    path = single / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[O_PROJ]["data_offsets"] = header["model.layers.0.self_attn.o_proj.weight"][
        "data_offsets"
    ]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    with pytest.raises(DamagedCheckpointError, match=r"shared bytes|unnamed bytes"):
        plan_pruning(single, HEADS)


def test_gguf_beside_a_configuration_is_named(llama):
    for path in (*llama.glob("*.safetensors"), llama / "model.safetensors.index.json"):
        path.unlink()
    (llama / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="give that file, it will be converted"):
        plan_pruning(llama, HEADS)
