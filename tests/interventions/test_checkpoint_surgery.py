"""A pruned folder is its source with the heads' output weights at zero; all else is the same."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
import transformers as hf
from families import FAMILIES, ids, tiny
from mnemoscope.interventions import checkpoint_surgery as surgery
from mnemoscope.interventions import safetensors_bytes
from mnemoscope.interventions.checkpoint_surgery import (
    MANIFEST,
    CheckpointError,
    plan_pruning,
    prune_checkpoint,
    verify_pruned,
)
from mnemoscope.models import HeadId, TokenBatch, scale, wrap, zero
from mnemoscope.models.anatomy import ARCHITECTURES
from mnemoscope.models.errors import (
    DamagedCheckpointError,
    MnemoscopeError,
    UnitOutOfRangeError,
    UnsupportedModelError,
)
from safetensors.torch import load_file, save_file

HEADS = (HeadId(0, 1), HeadId(2, 3), HeadId(2, 0))


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = "20KB"):
    """A tiny random checkpoint with what else such folders hold."""
    tiny(family, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("x = 1\n")
    return folder


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "llama", "llama")


@pytest.fixture
def llama(saved_llama, tmp_path):
    """A sharded float32 Llama with grouped queries that the test may spoil."""
    return shutil.copytree(saved_llama, tmp_path / "llama")


@pytest.fixture
def single(tmp_path):
    """A Llama in one file."""
    return save(tmp_path / "single", "llama", shard="1GB")


def prune(source: Path, out: Path, heads=HEADS, **how) -> Path:
    factor = how.pop("factor", 0.0)
    return prune_checkpoint(plan_pruning(source, heads, factor=factor), out, **how)


def load(folder: Path, family: str = "llama"):
    kernel = "eager" if family in ("gemma2", "gptj") else "sdpa"
    module, info = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=kernel, output_loading_info=True
    )
    assert not info["missing_keys"]
    return wrap(module, name=str(folder), self_test=False)


def batch() -> TokenBatch:
    tokens = ids(batch=2, length=8)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :3] = False
    return TokenBatch(tokens.masked_fill(~mask, 0), mask)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for shard in loaded for name, tensor in shard.items()}


def head_block(weight: torch.Tensor, family: str, head: int, n_heads: int = 4) -> torch.Tensor:
    """The head's `[d_v, d_model]` output weights, taken the long way round."""
    rows = weight if family == "gpt2" else weight.T
    d_v = rows.shape[0] // n_heads
    return rows[head * d_v : (head + 1) * d_v]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def projection_name(family: str, layer: int) -> str:
    spec = ARCHITECTURES[FAMILIES[family].model_type]
    return f"{spec.blocks}.{layer}.{spec.o_proj}.weight"


# -- what the result computes ---------------------------------------------------------------------


def test_every_architecture_of_the_table_is_tested():
    assert {config.model_type for config in FAMILIES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_checkpoint_computes_what_the_zeroing_hook_computes(family, dtype, tmp_path):
    source = save(tmp_path / "source", family, dtype)
    out = prune(source, tmp_path / "out")
    model, pruned = load(source, family), load(out, family)
    plain = model.logits(batch())
    with model.intervene([zero(HEADS)]):
        hooked = model.logits(batch())
    real = batch().mask
    torch.testing.assert_close(pruned.logits(batch())[real], hooked[real], atol=1e-5, rtol=1e-5)
    assert (plain - hooked)[real].abs().max() > 1e-2

    before, after = weights(source), weights(out)
    assert set(before) == set(after)
    touched = {projection_name(family, head.layer) for head in HEADS}
    for name in set(before) - touched:
        assert bits(after[name]) == bits(before[name])
    for layer in range(3):
        name = projection_name(family, layer)
        for head in range(4):
            old = head_block(before[name], family, head)
            new = head_block(after[name], family, head)
            if HeadId(layer, head) in HEADS:
                assert not any(bits(new))
                assert old.abs().max() > 0
            else:
                assert bits(new) == bits(old)
    verify_pruned(out)


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2"])
def test_scaled_checkpoint_computes_what_the_scaling_hook_computes(family, factor, tmp_path):
    source = save(tmp_path / "source", family)
    out = prune(source, tmp_path / "out", factor=factor)
    model, scaled = load(source, family), load(out, family)
    with model.intervene([scale(HEADS, factor)]):
        hooked = model.logits(batch())
    real = batch().mask
    torch.testing.assert_close(scaled.logits(batch())[real], hooked[real], atol=1e-5, rtol=1e-5)
    verify_pruned(out)
    assert json.loads((out / MANIFEST).read_text())["mode"] == "scale"


def test_scaled_bfloat16_weights_are_rounded_once(tmp_path):
    source = save(tmp_path / "source", "llama", torch.bfloat16)
    out = prune(source, tmp_path / "out", [HeadId(1, 2)], factor=0.3)
    name = projection_name("llama", 1)
    before, after = weights(source)[name], weights(out)[name]
    expected = before.clone()
    expected[:, 16:24] = (before[:, 16:24].double() * 0.3).to(torch.bfloat16)
    assert bits(after) == bits(expected)


def test_generation_with_the_cache_works(llama, tmp_path):
    model, pruned = load(llama), load(prune(llama, tmp_path / "out"))
    prompt = TokenBatch(ids(batch=2, length=5), torch.ones(2, 5, dtype=torch.bool))
    with model.intervene([zero(HEADS)]):
        hooked = model.generate(prompt, max_new_tokens=6)
    assert pruned.generate(prompt, max_new_tokens=6) == hooked


def test_whole_kv_group(llama, tmp_path):
    group = [HeadId(1, 2), HeadId(1, 3)]
    plan = plan_pruning(llama, group)
    assert plan.whole_groups() == ((1, 1),)
    assert "warning: all query heads of kv head 1 in layer 1 are named" in plan.describe()
    model, pruned = load(llama), load(prune_checkpoint(plan, tmp_path / "out"))
    with model.intervene([zero(group)]):
        hooked = model.logits(batch())
    real = batch().mask
    torch.testing.assert_close(pruned.logits(batch())[real], hooked[real], atol=1e-5, rtol=1e-5)


def test_base_model_checkpoint_without_the_leading_prefix(tmp_path):
    module = tiny("gpt2", dtype=torch.float32)
    module.transformer.save_pretrained(tmp_path / "base")
    assert "h.0.attn.c_proj.weight" in weights(tmp_path / "base")
    out = prune(tmp_path / "base", tmp_path / "out")
    model, pruned = load(tmp_path / "base"), load(out)
    with model.intervene([zero(HEADS)]):
        hooked = model.logits(batch())
    real = batch().mask
    torch.testing.assert_close(pruned.logits(batch())[real], hooked[real], atol=1e-5, rtol=1e-5)


def test_eight_bit_floats_are_edited_exactly(tmp_path, single):
    tensors = {name: w.to(torch.float8_e4m3fn) for name, w in weights(single).items()}
    save_file(tensors, single / "model.safetensors", metadata={"format": "pt"})
    out = prune(single, tmp_path / "out", [HeadId(0, 1)])
    name = projection_name("llama", 0)
    expected = tensors[name].clone()
    expected[:, 8:16] = 0
    assert bits(weights(out)[name]) == bits(expected)
    verify_pruned(out)


# -- what else is in the folder -------------------------------------------------------------------


def test_everything_else_is_byte_identical(llama, tmp_path):
    (llama / "README.md").write_bytes("---\nlicense: mit\n---\n# Größe".encode())
    before = files(llama)
    after = files(prune(llama, tmp_path / "out"))
    assert set(after) == {*before, MANIFEST}
    touched = {shard.name for shard in plan_pruning(llama, HEADS).shards if shard.edits}
    assert {name for name in before if before[name] != after[name]} == {*touched, "README.md"}
    assert "config.json" in before
    assert "model.safetensors.index.json" in before
    assert files(llama) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "out"]


def test_model_card_is_continued_or_begun(llama, tmp_path):
    fresh = (prune(llama, tmp_path / "a") / "README.md").read_text("utf-8")
    assert fresh.startswith("# llama")
    assert "L0.H1, L2.H3, L2.H0" in fresh
    (llama / "README.md").write_bytes("---\nlicense: mit\n---\n# Größe".encode())
    card = (prune(llama, tmp_path / "b") / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: mit\n---\n# Größe\n\n## Attention heads set to zero")


def test_manifest_records_what_was_done(llama, tmp_path):
    out = prune(
        llama, tmp_path / "out", manifest_extra={"run_id": "ph3-12", "head_set_sha256": "ab"}
    )
    record = json.loads((out / MANIFEST).read_text())
    assert record["schema"] == "mnemoscope/prune-manifest/1"
    assert record["source"]["path"] == str(llama)
    assert record["source"]["manifest"] is None
    assert record["extra"] == {"run_id": "ph3-12", "head_set_sha256": "ab"}
    assert record["factor"] == 0
    assert record["heads"][1] == {"layer": 2, "head": 3, "kv_head": 1}
    for name, entry in record["shards"].items():
        assert entry["sha256_before"] == hashlib.sha256((llama / name).read_bytes()).hexdigest()
        assert entry["sha256_after"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert (entry["sha256_before"] == entry["sha256_after"]) == (not entry["edits"])
    assert record["files"]["config.json"] == hashlib.sha256(files(llama)["config.json"]).hexdigest()


def test_pruning_twice_changes_no_weight_and_nests_the_manifest(llama, tmp_path):
    once = prune(llama, tmp_path / "once")
    twice = prune(once, tmp_path / "twice")
    for name in files(once):
        if name not in (MANIFEST, "README.md"):
            assert files(once)[name] == files(twice)[name]
    record = json.loads((twice / MANIFEST).read_text())
    assert record["source"]["manifest"] == json.loads((once / MANIFEST).read_text())
    verify_pruned(twice)


def test_weights_in_other_formats_stay_behind_and_are_named(llama, tmp_path):
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf"):
        (llama / name).write_bytes(b"weights")
    (llama / ".git").mkdir()
    (llama / ".git" / "object").write_bytes(b"weights")
    plan = plan_pruning(llama, HEADS)
    left = (".git/", "consolidated.safetensors", "model.gguf", "pytorch_model.bin")
    assert plan.left_out == left
    assert ", ".join(left) in plan.describe()
    out = prune_checkpoint(plan, tmp_path / "out")
    assert not {*left, ".git/object"} & set(files(out))
    assert json.loads((out / MANIFEST).read_text())["left_out"] == list(left)


def test_links_into_a_download_cache_become_files(llama, tmp_path):
    blobs = llama.rename(tmp_path / "blobs")
    llama.mkdir()
    for path in blobs.iterdir():
        if path.is_file():
            (llama / path.name).symlink_to(path)
    before = files(blobs)
    out = prune(llama, tmp_path / "out")
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert files(blobs) == before
    verify_pruned(out)


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


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(single: Path, change) -> None:
    """Save the one-file checkpoint again with `change` applied to its tensors."""
    tensors = weights(single)
    change(tensors)
    save_file(tensors, single / "model.safetensors", metadata={"format": "pt"})


O_PROJ = "model.layers.1.self_attn.o_proj.weight"


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


# -- refusals: the target --------------------------------------------------------------------------


def test_target_on_or_around_the_source_is_refused(llama, tmp_path):
    before = files(tmp_path)
    (tmp_path / "alias").symlink_to(llama)
    for out in (
        llama,
        llama / "out",
        tmp_path,
        tmp_path / "x" / ".." / "llama",
        tmp_path / "alias",
    ):
        for force in (False, True):
            with pytest.raises(CheckpointError, match="inside the source"):
                prune(llama, out, force=force)
    (tmp_path / "alias").unlink()
    assert files(tmp_path) == before


def test_existing_target_needs_force_and_must_be_a_pruned_folder(llama, tmp_path):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    (out / "note.txt").write_text("mine")
    before = files(out)
    with pytest.raises(CheckpointError, match="exists already: choose another name, or use force"):
        prune(llama, out)
    assert files(out) == before
    prune(llama, out, force=True)
    verify_pruned(out)
    assert not (out / "note.txt").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "file").write_text("x")
    for other in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="is not a pruned checkpoint, so force does not"):
            prune(llama, tmp_path / other, force=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "llama", "out", "thesis"]


def test_parents_are_made(llama, tmp_path):
    verify_pruned(prune(llama, tmp_path / "a" / "b" / "out"))


def test_target_below_a_file_is_refused(llama, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        prune(llama, tmp_path / "file" / "out")


def test_too_small_disk_is_refused_before_writing(llama, tmp_path, monkeypatch):
    plan = plan_pruning(llama, HEADS)
    usage = shutil.disk_usage(tmp_path)._replace(free=plan.disk_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs .* MB but .* MB are free"):
        prune_checkpoint(plan, tmp_path / "a" / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_manifest_extra_must_be_json(llama, tmp_path):
    with pytest.raises(CheckpointError, match="not plain JSON"):
        prune(llama, tmp_path / "out", manifest_extra={"score": float("nan")})
    assert os.listdir(tmp_path) == ["llama"]


# -- interruptions ---------------------------------------------------------------------------------


class Failing:
    """Stands in for a function and raises at its n-th call, after doing half of its work."""

    def __init__(self, real, at: int, error: BaseException):
        self.real, self.left, self.error = real, at, error

    def __call__(self, *args, **kwargs):
        result = self.real(*args, **kwargs)
        self.left -= 1
        if self.left == 0:
            raise self.error
        return result


PLACES = [
    (safetensors_bytes, "_edited", 5),
    (safetensors_bytes, "_check_piece", 7),
    (surgery, "compare_edited", 3),
    (surgery, "_write", 1),
    (surgery, "_not_zero", 1),
    (os, "fsync", 2),
]
ERRORS = [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.ENOSPC, "No space left"), CheckpointError, "is full .* nothing was left behind"),
    (OSError(errno.EROFS, "Read-only"), CheckpointError, "Read-only.*nothing was left behind"),
]


@pytest.mark.parametrize(("error", "raised", "says"), ERRORS, ids=["ctrl-c", "full", "read-only"])
@pytest.mark.parametrize("place", PLACES, ids=[name for _, name, _ in PLACES])
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_interruption_leaves_nothing(
    llama, tmp_path, monkeypatch, place, error, raised, says, replacing
):
    out = tmp_path / "a" / "out"
    if replacing:
        prune(llama, out, [HeadId(0, 0)])
    before = files(tmp_path)
    module, name, at = place
    monkeypatch.setattr(module, name, Failing(getattr(module, name), at, error))
    with pytest.raises(raised, match=says):
        prune(llama, out, force=True)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == (["a", "llama"] if replacing else ["llama"])


@pytest.mark.parametrize("at", [1, 2])
def test_interrupted_rename_puts_the_old_folder_back(llama, tmp_path, monkeypatch, at):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    before, calls, rename = files(tmp_path), [], os.rename

    def fails_once(old, new):
        calls.append(new)
        if len(calls) == at:
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt):
        prune(llama, out, force=True)
    assert files(tmp_path) == before


def test_read_only_place_is_refused(llama, tmp_path, monkeypatch):
    def refuses(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    plan = plan_pruning(llama, HEADS)
    monkeypatch.setattr(os, "mkdir", refuses)
    with pytest.raises(CheckpointError, match=r"Permission denied.*make its folder writable"):
        prune_checkpoint(plan, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_copy_that_was_spoilt_on_the_way_is_refused(llama, tmp_path, monkeypatch):
    real = surgery.copy_edited

    def spoils(source, target, edits=(), factor=0.0):
        digest = real(source, target, edits, factor)
        if edits:
            content = bytearray(target.read_bytes())
            content[-1] ^= 1
            target.write_bytes(content)
        return digest

    monkeypatch.setattr(surgery, "copy_edited", spoils)
    with pytest.raises(CheckpointError, match="differs from its source outside the heads"):
        prune(llama, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_wrong_byte_ranges_are_caught_by_the_second_reader(llama, tmp_path, monkeypatch):
    """Ranges off by one number agree with themselves; the safetensors library finds the rest."""
    real = safetensors_bytes.TensorEdit.ranges.fget

    def shifted(edit):
        return tuple(dataclasses.replace(part, offset=part.offset + 4) for part in real(edit))

    monkeypatch.setattr(safetensors_bytes.TensorEdit, "ranges", property(shifted))
    with pytest.raises(CheckpointError, match=r"is not zero in columns 8:16"):
        prune(llama, tmp_path / "out", [HeadId(0, 1)])
    assert os.listdir(tmp_path) == ["llama"]


# -- verification afterwards -----------------------------------------------------------------------


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
    """A manifest whose hashes fit but which claims one head too many."""
    out = prune(llama, tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())
    record["heads"].append({"layer": 1, "head": 2, "kv_head": 1})
    (out / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match=f"{O_PROJ} is not zero in columns 16:24"):
        verify_pruned(out)


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


# -- memory ----------------------------------------------------------------------------------------


def test_no_shard_is_ever_held_whole(tmp_path, monkeypatch):
    config = hf.LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    size = (tmp_path / "source" / "model.safetensors").stat().st_size
    monkeypatch.setattr(safetensors_bytes, "CHUNK", 2**16)
    tracemalloc.start()
    out = prune(tmp_path / "source", tmp_path / "out", [HeadId(1, 3), HeadId(1, 4)])
    verify_pruned(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10
