"""A sliced folder is a smaller model that computes what the source computes with heads zeroed."""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import checkpoints
import pytest
import torch
import transformers as hf
from checkpoints import batch, files, save, save_wide, weights
from families import FAMILIES, ids, tiny
from mnemoscope.interventions import head_slicing, safetensors_cuts
from mnemoscope.interventions.head_slicing import (
    plan_slicing,
    slice_checkpoint,
    verify_sliced,
)
from mnemoscope.interventions.pruning_plan import MANIFEST
from mnemoscope.models import HeadId, zero
from mnemoscope.models.errors import (
    CheckpointError,
    DamagedCheckpointError,
    UnitOutOfRangeError,
    UnsupportedModelError,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

DECLARED = ("llama", "mistral", "mixtral", "qwen3", "gemma2", "gemma3")
OBEYED = ("qwen2", "phi", "granite")  # head_dim is read, but is no field of the configuration
REFUSED = {
    "gpt2": r"no q_proj of its own but c_attn\.bias.*fused",
    "gptj": "cannot state head_dim",
    "neox": r"no q_proj of its own.*query_key_value.*fused",
    "neox-sequential": "fused",
    "opt": "cannot state head_dim",
    "opt-post-ln": "cannot state head_dim",
    "phi3": r"qkv_proj.weight, where queries, keys and values are fused",
    "olmo2": r"self_attn\.k_norm\.weight spans all heads",
}

GROUPS = tuple(HeadId(layer, head) for layer in range(3) for head in (0, 1))
"""Query heads 0 and 1 are the first of two kv groups, 2 and 3 the second."""
MIXED = tuple(HeadId(*pair) for pair in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 1)))


def load(folder: Path, family: str = "llama"):
    """With the self-test of the anatomy, which a wrong head count would not pass."""
    return checkpoints.load(folder, family, self_test=True)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def slice_heads(source: Path, out: Path, heads=MIXED, **how) -> Path:
    return slice_checkpoint(plan_slicing(source, heads), out, **how)


# -- what the result computes ---------------------------------------------------------------------


def same_as_zeroed(source: Path, out: Path, family: str, heads=MIXED) -> None:
    """Logits with left padding and greedy ids with the cache equal the hooked ablation's."""
    model, small = load(source, family), load(out, family)
    plain = model.logits(batch())
    with model.intervene([zero(heads)]):
        hooked, greedy = model.logits(batch()), model.generate(batch(), 6)
    real = batch().mask
    atol = 1e-5 * max(1.0, float(hooked[real].abs().max()))
    torch.testing.assert_close(small.logits(batch())[real], hooked[real], atol=atol, rtol=0)
    assert small.generate(batch(), 6) == greedy
    assert (plain - hooked)[real].abs().max() > 1e-2


def test_every_family_is_sliced_or_refused():
    assert {*DECLARED, *OBEYED, *REFUSED} == set(FAMILIES)


@pytest.mark.parametrize("family", [*DECLARED, *OBEYED])
def test_sliced_checkpoint_computes_what_the_zeroing_hook_computes(family, tmp_path):
    source = save(tmp_path / "source", family)
    plan = plan_slicing(source, MIXED)
    assert plan.declared == (family in DECLARED)
    out = slice_checkpoint(plan, tmp_path / "out")
    same_as_zeroed(source, out, family)
    assert load(out, family).anatomy.n_heads == 2
    assert load(out, family).anatomy.d_v == load(source, family).anatomy.d_v
    verify_sliced(out, source)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "phi"])
def test_without_groups_each_head_goes_alone(family, tmp_path):
    source = save(tmp_path / "source", family, num_key_value_heads=4)
    heads = [HeadId(layer, h) for layer, pair in enumerate([(0, 3), (1, 2), (2, 0)]) for h in pair]
    out = slice_heads(source, tmp_path / "out", heads)
    same_as_zeroed(source, out, family, heads)
    assert config_of(out)["num_key_value_heads"] == 2


def test_one_key_value_head_for_eight_query_heads_of_two_groups(tmp_path):
    source = save(
        tmp_path / "source", "llama", num_attention_heads=8, num_key_value_heads=4, head_dim=6
    )
    heads = [HeadId(layer, h) for layer in range(3) for h in (0, 1, 4, 5, 6, 7)]
    out = slice_heads(source, tmp_path / "out", heads)
    same_as_zeroed(source, out, "llama", heads)
    assert (config_of(out)["num_attention_heads"], config_of(out)["num_key_value_heads"]) == (2, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_biases_of_queries_keys_and_values_are_cut_and_the_output_bias_stays(family, tmp_path):
    source = save(tmp_path / "source", family, attention_bias=True)
    out = slice_heads(source, tmp_path / "out")
    same_as_zeroed(source, out, family)
    before, after = weights(source), weights(out)
    width = after["model.layers.0.self_attn.q_proj.bias"].shape[0]
    assert width == before["model.layers.0.self_attn.q_proj.bias"].shape[0] // 2
    name = "model.layers.0.self_attn.o_proj.bias"
    assert torch.equal(after[name], before[name])


def test_base_model_checkpoint_without_the_leading_prefix(tmp_path):
    tiny("qwen3", dtype=torch.float32).model.save_pretrained(tmp_path / "base")
    assert "layers.0.self_attn.q_proj.weight" in weights(tmp_path / "base")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        plan_slicing(tmp_path / "base", MIXED)
    plan = plan_slicing(tmp_path / "base", MIXED, allow_no_tokenizer=True)
    out = slice_checkpoint(plan, tmp_path / "out")
    before, after = (hf.AutoModel.from_pretrained(f).eval() for f in (tmp_path / "base", out))
    assert after.config.num_attention_heads == before.config.num_attention_heads // 2
    assert torch.isfinite(after(input_ids=ids()).last_hidden_state).all()


# -- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["20KB", "1GB"], ids=["sharded", "single"])
def test_tensors_are_the_blocks_that_stay(dtype, shard, tmp_path):
    source = save(tmp_path / "source", "llama", dtype, shard)
    before, after = weights(source), weights(slice_heads(source, tmp_path / "out"))
    assert list(before) == list(after)
    stays = {0: [2, 3], 1: [0, 1], 2: [2, 3]}  # query heads, eight wide
    for name, old in before.items():
        want = old
        if "self_attn" in name:
            heads = stays[int(name.split(".")[2])]
            rows, axis = [8 * h + i for h in heads for i in range(8)], 0
            if "o_proj" in name:
                axis = 1
            elif "q_proj" not in name:
                rows = rows[:8] if heads == [0, 1] else [8 + i for i in range(8)]
            want = old.index_select(axis, torch.tensor(rows))
        assert after[name].dtype == dtype
        assert torch.equal(after[name], want), name


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3"])
def test_files_are_those_that_transformers_would_write(family, tmp_path):
    """Shards as `save_file` writes them; the index as `save_pretrained` counts it (tied, too)."""
    source = save(tmp_path / "source", family)
    out = slice_heads(source, tmp_path / "out")
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 1
    for name in shards:
        with safe_open(out / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        save_file(load_file(out / name), tmp_path / "again", metadata={"format": "pt"})
        assert (tmp_path / "again").read_bytes() == (out / name).read_bytes()
    load(out, family).module.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    index, own = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (tmp_path / "saved", out)
    )
    assert own["metadata"] == index["metadata"]
    assert set(own["weight_map"]) == set(index["weight_map"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64])
def test_other_float_types_are_cut_exactly(dtype, tmp_path):
    source = save(tmp_path / "source", "llama", shard="1GB")
    path = source / "model.safetensors"
    save_file({name: w.to(dtype) for name, w in load_file(path).items()}, path, {"format": "pt"})
    out = slice_heads(source, tmp_path / "out")
    name = "model.layers.1.self_attn.o_proj.weight"
    kept = weights(source)[name].view(torch.uint8)[:, : 16 * dtype.itemsize]
    assert torch.equal(weights(out)[name].view(torch.uint8), kept)


def test_configuration_changes_in_its_head_counts_only(llama, tmp_path):
    out = slice_heads(llama, tmp_path / "out")
    before, after = config_of(llama), config_of(out)
    assert list(before) == list(after)
    assert {key for key in after if before[key] != after[key]} == {
        "num_attention_heads",
        "num_key_value_heads",
    }
    assert (after["num_attention_heads"], after["num_key_value_heads"], after["head_dim"]) == (
        2,
        1,
        8,
    )


def test_configuration_without_head_dim_gets_one(tmp_path):
    source = save(tmp_path / "source", "qwen2")
    assert "head_dim" not in config_of(source)
    out = slice_heads(source, tmp_path / "out")
    assert config_of(out)["head_dim"] == 8
    assert set(config_of(out)) - set(config_of(source)) == {"head_dim"}


def test_everything_else_is_byte_identical(llama, tmp_path):
    (llama / "pytorch_model.bin").write_bytes(b"weights")
    before, after = files(llama), files(slice_heads(llama, tmp_path / "out"))
    assert set(after) == {*before, MANIFEST, "README.md"} - {"pytorch_model.bin"}
    same = {name for name in before if before[name] == after.get(name)}
    assert same >= {"tokenizer.json", "code/modeling.py", "generation_config.json"}
    assert files(llama) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "out"]


def test_manifest_and_card_record_what_was_done(llama, tmp_path):
    out = slice_heads(llama, tmp_path / "out", GROUPS, manifest_extra={"run_id": "r1"})
    record = json.loads((out / MANIFEST).read_text())
    assert record["mode"] == "slice"
    assert record["heads_per_layer"] == {"before": 4, "after": 2}
    assert record["kv_heads_per_layer"] == {"before": 2, "after": 1}
    assert record["extra"] == {"run_id": "r1"}
    cut = next(c for s in record["shards"].values() for c in s["cuts"] if "1.self_attn.o" in str(c))
    assert cut["shape"] == {"before": [32, 32], "after": [32, 16]}
    assert (cut["axis"], cut["kept"]) == (1, [[16, 24], [24, 32]])
    card = (out / "README.md").read_text()
    assert "lacks 6 attention heads" in card
    assert "2 query heads and 1 key/value head are left in each layer, of width 8" in card


def test_plan_says_what_goes(llama):
    plan = plan_slicing(llama, MIXED)
    assert plan.removed_parameters == 3 * (16 * 32 + 2 * 8 * 32 + 32 * 16)
    assert plan.removed_bytes == 4 * plan.removed_parameters
    text = plan.describe()
    assert "each layer keeps 2 of 4 query heads and 1 of 2 kv heads, of width 8" in text
    assert "model.layers.2.self_attn.k_proj.weight [16, 32] becomes [8, 32]" in text
    assert "does not declare head_dim" not in text


def test_plan_warns_where_head_dim_is_undeclared(tmp_path):
    text = plan_slicing(save(tmp_path / "m", "qwen2"), MIXED).describe()
    assert "configuration of qwen2 does not declare head_dim; transformers obeys it" in text


def test_slicing_twice_nests_the_manifest(tmp_path):
    source = save(tmp_path / "source", "llama", num_key_value_heads=4)
    first = [HeadId(layer, head) for layer in range(3) for head in (1, 3)]
    once = slice_heads(source, tmp_path / "once", first)
    twice = slice_heads(once, tmp_path / "twice", [HeadId(layer, 0) for layer in range(3)])
    record = json.loads((twice / MANIFEST).read_text())
    assert record["source"]["manifest"] == json.loads((once / MANIFEST).read_text())
    both = [HeadId(layer, head) for layer in range(3) for head in (0, 1, 3)]
    same_as_zeroed(source, twice, "llama", both)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", REFUSED)
def test_architectures_that_cannot_be_sliced_say_why(family, tmp_path):
    source = save(tmp_path / "source", family)
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]) as caught:
        plan_slicing(source, MIXED)
    assert "Masking (mode zero) needs none of this." in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        (MIXED[:4], "layer 0 loses 2 heads, layer 2 loses 0: .* the same number from each"),
        ([*MIXED, HeadId(1, 0)], "layer 1 loses 3 heads, layer 0 loses 2"),
        (
            [HeadId(layer, head) for layer in range(3) for head in (1, 2)],
            r"layer 0 loses L0\.H1 but keeps L0\.H0, which shares its kv head 0: .* whole",
        ),
        (
            [HeadId(layer, head) for layer in range(3) for head in range(4)],
            "no head would be left",
        ),
    ],
)
def test_heads_that_cannot_go_are_refused(llama, heads, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        plan_slicing(llama, heads)
    assert "Masking (mode zero) needs none of this." in str(caught.value)


def test_heads_that_do_not_exist_are_refused(llama):
    with pytest.raises(UnitOutOfRangeError, match="query heads 0 to 3"):
        plan_slicing(llama, [HeadId(0, 4)])


def test_counts_that_the_configuration_class_refuses(tmp_path):
    """Llama wants hidden_size to be a multiple of the head count, even where head_dim is given."""
    source = save(tmp_path / "source", "llama", num_key_value_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"llama does not accept 3 heads \(.*hidden"):
        plan_slicing(source, [HeadId(layer, 0) for layer in range(3)])


def test_quantised_checkpoints_are_refused(llama):
    """8-bit floats with block scales can be masked, but their scales would not fit what stays."""
    quantised = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    config = {**config_of(llama), "quantization_config": quantised}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="is quantised and its scales would not fit"):
        plan_slicing(llama, MIXED)


def test_projections_of_another_size_are_refused(tmp_path):
    source = save(tmp_path / "source", "llama", shard="1GB")
    path, name = source / "model.safetensors", "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name][:8].clone()}, path, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"k_proj.weight is F32 \[8, 32\].*16 rows"):
        plan_slicing(source, MIXED)


def test_output_folder_is_checked_as_for_pruning(llama, tmp_path):
    out = slice_heads(llama, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists already"):
        slice_heads(llama, out)
    slice_heads(llama, out, GROUPS, force=True)
    verify_sliced(out, llama)
    with pytest.raises(CheckpointError, match="inside the source"):
        slice_heads(llama, llama / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="not a pruned checkpoint"):
        slice_heads(llama, tmp_path / "mine", force=True)


def test_source_that_changed_after_planning_is_refused(llama, tmp_path):
    plan = plan_slicing(llama, MIXED)
    (llama / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has changed since it was planned"):
        slice_checkpoint(plan, tmp_path / "out")


# -- interruptions and checks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), CheckpointError)],
    ids=["ctrl-c", "full"],
)
@pytest.mark.parametrize(
    ("module", "name"), [(safetensors_cuts, "_chunks"), (head_slicing, "write_file"), (os, "fsync")]
)
def test_interruption_leaves_nothing(llama, tmp_path, monkeypatch, module, name, error, raised):
    before = files(tmp_path)

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(raised):
        slice_heads(llama, tmp_path / "a" / "out")
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["llama"]


@pytest.mark.parametrize("cut_too", [False, True], ids=["untouched tensor", "cut tensor"])
def test_copy_that_was_spoilt_on_the_way_is_refused(llama, tmp_path, monkeypatch, cut_too):
    real = safetensors_cuts._chunks

    def spoils(reader, tensor, cut, path):
        for chunk, kept in real(reader, tensor, cut, path):
            wrong = (cut is not None) == cut_too and "layers.1" in tensor.name
            yield chunk, bytes([kept[0] ^ 1]) + kept[1:] if wrong else kept

    monkeypatch.setattr(safetensors_cuts, "_chunks", spoils)
    with pytest.raises(CheckpointError, match="is not its source with the heads cut out"):
        slice_heads(llama, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_wrong_rows_are_caught_by_the_second_reader(llama, tmp_path, monkeypatch):
    real = safetensors_cuts.TensorCut.kept_rows

    def shifted(cut, start, stop):
        return real(cut, start, stop)[::-1] if cut.axis == 0 else real(cut, start, stop)

    monkeypatch.setattr(safetensors_cuts.TensorCut, "kept_rows", shifted)
    with pytest.raises(CheckpointError, match="is not its source with the heads cut out"):
        slice_heads(llama, tmp_path / "out")


def test_verification_names_what_was_changed(llama, tmp_path):
    out = slice_heads(llama, tmp_path / "out")
    (out / "README.md").write_text("a better card")
    verify_sliced(out, llama)
    (out / "tokenizer.json").write_text("{}")
    (out / "generation_config.json").unlink()
    says = "generation_config.json is missing; tokenizer.json has changed"
    with pytest.raises(DamagedCheckpointError, match=says):
        verify_sliced(out)
    with pytest.raises(CheckpointError, match="was not sliced"):
        verify_sliced(llama)


def test_verification_against_another_source_fails(llama, tmp_path):
    out = slice_heads(llama, tmp_path / "out")
    other = save(tmp_path / "other", "llama", torch.bfloat16)
    with pytest.raises(CheckpointError):
        verify_sliced(out, other)


def test_small_chunks_and_little_memory(tmp_path, monkeypatch):
    size = save_wide(tmp_path / "source")
    heads = [HeadId(layer, head) for layer in range(2) for head in range(4, 8)]
    plan = plan_slicing(tmp_path / "source", heads, allow_no_tokenizer=True)
    monkeypatch.setattr(safetensors_cuts, "CHUNK", 2**16)
    source, target = tmp_path / "source" / "model.safetensors", tmp_path / "target"
    tracemalloc.start()
    safetensors_cuts.copy_cut(source, target, plan.shards[0].cuts)
    safetensors_cuts.compare_cut(source, target, plan.shards[0].cuts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10
