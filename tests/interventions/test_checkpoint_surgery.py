"""A pruned folder is its source with the heads' output weights at zero; all else is the same."""

import json
import tracemalloc

import pytest
import torch
from checkpoints import (
    HEADS,
    batch,
    bits,
    files,
    hash_of,
    head_block,
    load,
    projection_name,
    prune,
    save,
    save_wide,
    weights,
)
from families import FAMILIES, ids, tiny
from mnemoscope.interventions import edited_copies, safetensors_bytes
from mnemoscope.interventions.checkpoint_surgery import (
    DELTA,
    MANIFEST,
    plan_pruning,
    prune_checkpoint,
    verify_pruned,
)
from mnemoscope.models import HeadId, TokenBatch, scale, zero
from mnemoscope.models.anatomy import ARCHITECTURES
from safetensors.torch import save_file

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
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
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
    added = {MANIFEST, DELTA, "prune_undo/before/README.md"}
    assert set(after) == {*before, *added}
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
        llama,
        tmp_path / "out",
        manifest_extra={"run_id": "ph3-12", "scores": {"L2.H3": 0.25}},
        copy_untouched=True,
    )
    record = json.loads((out / MANIFEST).read_text())
    assert record["schema"] == "mnemoscope/prune-manifest/3"
    assert record["source"]["path"] == str(llama)
    assert record["source"]["manifest"] is None
    assert record["extra"] == {"run_id": "ph3-12", "scores": {"L2.H3": 0.25}}
    assert record["factor"] == 0
    assert record["heads"][1] == {"layer": 2, "head": 3, "kv_head": 1, "score": 0.25}
    assert record["heads"][0] == {"layer": 0, "head": 1, "kv_head": 0}
    for name, entry in record["shards"].items():
        assert entry["how"] == ("edited" if entry["edits"] else "copied")
        assert entry["bytes"] == (out / name).stat().st_size
        assert entry["hash_before"] == hash_of((llama / name).read_bytes())
        assert entry["hash_after"] == hash_of((out / name).read_bytes())
        assert (entry["hash_before"] == entry["hash_after"]) == (not entry["edits"])
    for name, noted in record["undo"].items():
        assert noted == hash_of((out / name).read_bytes())
    assert record["command"]
    assert record["environment"]["torch"] == torch.__version__
    assert record["files"]["config.json"] == hash_of(files(llama)["config.json"])


def test_pruning_twice_changes_no_weight_and_nests_the_manifest(llama, tmp_path):
    once = prune(llama, tmp_path / "once")
    twice = prune(once, tmp_path / "twice")
    for name in files(once):
        if name not in (MANIFEST, "README.md") and not name.startswith("prune_undo/"):
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


# -- memory ----------------------------------------------------------------------------------------


def test_no_shard_is_ever_held_whole(tmp_path, monkeypatch):
    size = save_wide(tmp_path / "source")
    for module in (safetensors_bytes, edited_copies):
        monkeypatch.setattr(module, "CHUNK", 2**16)
    tracemalloc.start()
    out = prune(tmp_path / "source", tmp_path / "out", [HeadId(1, 3), HeadId(1, 4)])
    verify_pruned(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10
