"""Mean in the bias, one matrix for all layers, a projection named by hand, odd sources."""

import json

import numpy as np
import pytest
import torch
from checkpoints import O_PROJ, batch, bits, edit_config, load, prune, rewrite, save, weights
from mnemoscope.interventions import safetensors_bytes
from mnemoscope.interventions.checkpoint_surgery import MANIFEST, plan_pruning, verify_pruned
from mnemoscope.interventions.checkpoint_undo import undo_pruning
from mnemoscope.models import HeadId, zero
from mnemoscope.models.errors import CheckpointError, UnsupportedModelError
from safetensors.torch import save_file

HEADS = (HeadId(0, 1), HeadId(2, 3), HeadId(2, 0))
PATTERN = "model.layers.{layer}.self_attn.o_proj.weight"


def means(seed: int = 0) -> dict[HeadId, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {head: torch.randn(8, generator=generator, dtype=torch.float64) for head in HEADS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "layer", "rows"),
    [
        ("gpt2", "transformer.h.{}.attn.c_proj", True),
        ("opt", "model.decoder.layers.{}.self_attn.out_proj", False),
        ("phi", "model.layers.{}.self_attn.dense", False),
        ("neox", "gpt_neox.layers.{}.attention.dense", False),
    ],
)
def test_mean_goes_into_the_bias(family, layer, rows, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_bytes, "CHUNK", 256)  # pieces of a few rows
    source = save(tmp_path / "source", family, dtype)
    out = prune(source, tmp_path / "out", HEADS, mean_outputs=means())
    before, after = weights(source), weights(out)
    for number in (0, 2):
        name = layer.format(number)
        old = before[f"{name}.weight"].double()
        blocks = old if rows else old.T
        shift = sum(
            means()[head] @ blocks[head.head * 8 : head.head * 8 + 8]
            for head in HEADS
            if head.layer == number
        )
        expected = (before[f"{name}.bias"].double() + shift).to(dtype)
        new = after[f"{name}.bias"]
        torch.testing.assert_close(new, expected, rtol=0, atol=torch.finfo(dtype).eps * 8)
        assert not torch.equal(new, before[f"{name}.bias"])
    touched = {f"{layer.format(i)}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    for name in set(before) - touched:
        assert bits(after[name]) == bits(before[name])
    record = json.loads((out / MANIFEST).read_text())
    assert record["mode"] == "mean"
    assert record["heads"][0]["mean_output"] == means()[HeadId(0, 1)].tolist()
    verify_pruned(out)
    assert verify_pruned(out, source).mode == "mean"


def test_mean_plan_says_what_changes(tmp_path):
    source = save(tmp_path / "source", "gpt2")
    plan = plan_pruning(source, HEADS, mean_outputs=means())
    assert plan.mode == "mean"
    assert plan.parameters == 3 * 8 * 32
    assert plan.edited_bytes == (3 * 8 * 32 + 2 * 32) * 4
    assert "leave the mean in the bias" in plan.describe()
    assert "transformer.h.2.attn.c_proj.bias F32 [32]" in plan.describe()


def test_mean_needs_a_bias(llama):
    with pytest.raises(UnsupportedModelError, match=r"llama stores no bias .* use zero"):
        plan_pruning(llama, HEADS, mean_outputs=means())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop(HEADS[0]), "exactly the heads: see L0.H1"),
        (lambda m: m.update({HeadId(1, 1): torch.zeros(8)}), "exactly the heads: see L1.H1"),
        (lambda m: m.update({HEADS[0]: torch.zeros(7)}), "must be 8 finite numbers"),
        (lambda m: m.update({HEADS[0]: torch.full((8,), torch.nan)}), "must be 8 finite"),
    ],
)
def test_wrong_means_are_refused(tmp_path, change, says):
    source = save(tmp_path / "source", "gpt2")
    given = means()
    change(given)
    with pytest.raises(CheckpointError, match=says):
        plan_pruning(source, HEADS, mean_outputs=given)
    with pytest.raises(CheckpointError, match="exclude each other"):
        plan_pruning(source, HEADS, mean_outputs=means(), factor=0.5)


def test_mean_that_overflows_the_bias_leaves_nothing(tmp_path):
    source = save(tmp_path / "source", "gpt2", torch.float16)
    huge = {head: value * 1e9 for head, value in means().items()}
    with pytest.raises(CheckpointError, match="bias beyond 65504"):
        prune(source, tmp_path / "out", HEADS, mean_outputs=huge)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# -- shared matrices and named projections ---------------------------------------------------------


def share(single) -> None:
    """Keep layer 0's output projection alone, as shared parameters are saved."""
    layers = [PATTERN.format(layer=i) for i in range(3)]
    rewrite(single, lambda tensors: [tensors.pop(name) for name in layers[1:]])


def test_a_matrix_of_all_layers_is_pruned_in_all_when_asked(single, tmp_path):
    full = weights(single)
    share(single)
    with pytest.raises(UnsupportedModelError, match="say all_shared"):
        plan_pruning(single, [HeadId(1, 2)])
    plan = plan_pruning(single, [HeadId(1, 2)], all_shared=True)
    assert plan.shared
    assert plan.heads == (HeadId(0, 2), HeadId(1, 2), HeadId(2, 2))
    assert "one matrix serves all layers" in plan.describe()
    assert plan.parameters == 8 * 32
    out = prune(single, tmp_path / "out", [HeadId(1, 2)], all_shared=True)
    verify_pruned(out, single)
    assert undo_pruning(out, tmp_path / "back")

    # the same module with the one matrix in every layer, hooked
    def tied(folder):
        one = weights(folder)[PATTERN.format(layer=0)]
        tensors = {**full, **{PATTERN.format(layer=i): one.clone() for i in range(3)}}
        target = save(tmp_path / f"tied-{folder.name}", "llama", shard="1GB")
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return load(target)

    model, pruned = tied(single), tied(out)
    with model.intervene([zero(plan.heads)]):
        hooked = model.logits(batch())
    real = batch().mask
    torch.testing.assert_close(pruned.logits(batch())[real], hooked[real], atol=1e-5, rtol=1e-5)


def test_shared_matrix_named_by_hand_needs_all_shared_too(single):
    share(single)
    name = PATTERN.format(layer=0)
    with pytest.raises(UnsupportedModelError, match="one matrix that all layers share"):
        plan_pruning(single, [HeadId(1, 2)], projection=name)
    assert plan_pruning(single, [HeadId(1, 2)], projection=name, all_shared=True).shared


def test_albert_is_refused(llama):
    edit_config(llama, model_type="albert")
    with pytest.raises(UnsupportedModelError, match="'albert' is not in the table"):
        plan_pruning(llama, HEADS, all_shared=True)


def test_ambiguous_projection_is_settled_by_name(single, tmp_path):
    twin = O_PROJ.removeprefix("model.")
    rewrite(single, lambda tensors: tensors.update({twin: tensors[O_PROJ].clone()}))
    with pytest.raises(UnsupportedModelError, match="--projection"):
        plan_pruning(single, HEADS)
    out = prune(single, tmp_path / "out", [HeadId(1, 0)], projection=PATTERN)
    after = weights(out)
    assert not after[O_PROJ][:, :8].any()
    assert after[twin][:, :8].any()
    verify_pruned(out, single)
    with pytest.raises(UnsupportedModelError, match="times, not once"):
        plan_pruning(single, HEADS, projection="model.h.{layer}.weight")


# -- what else is refused or allowed ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "multi-head latent attention"),
        ({"model_type": "jamba", "mamba_d_state": 16}, "hybrid layers"),
        ({"layer_types": ["linear_attention"] * 3}, "linear_attention layers"),
        ({"model_type": "qwen3_next", "linear_num_value_heads": 32}, "linear attention"),
    ],
)
def test_other_attention_is_refused(llama, changes, says):
    edit_config(llama, **changes)
    with pytest.raises(UnsupportedModelError, match=says):
        plan_pruning(llama, HEADS)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_quantisation_methods_are_named(single, method):
    edit_config(single, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=f"{method}.*is quantised"):
        plan_pruning(single, HEADS)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantisers_notes_are_enough(single, name):
    (single / name).write_text("{}")
    with pytest.raises(UnsupportedModelError, match="is quantised"):
        plan_pruning(single, HEADS)


def block_scaled(single, rows: int, columns: int) -> None:
    def change(tensors):
        for layer in range(3):
            name = PATTERN.format(layer=layer)
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones(-(-32 // rows), -(-32 // columns))

    rewrite(single, change)
    how = {"quant_method": "fp8", "weight_block_size": [rows, columns]}
    edit_config(single, quantization_config=how)


def test_scaled_eight_bit_floats_are_pruned_where_no_block_spans_heads(single, tmp_path):
    block_scaled(single, 16, 8)
    old = weights(single)[O_PROJ]
    out = prune(single, tmp_path / "out", [HeadId(1, 2)])
    new = weights(out)[O_PROJ].view(torch.uint8)
    assert not new[:, 16:24].any()
    assert torch.equal(new[:, 24:], old.view(torch.uint8)[:, 24:])
    with pytest.raises(UnsupportedModelError, match="use mode zero"):
        plan_pruning(single, [HeadId(1, 2)], factor=0.5)


def test_scaled_eight_bit_floats_are_refused_where_blocks_span_heads(single):
    block_scaled(single, 16, 16)
    with pytest.raises(UnsupportedModelError, match="its blocks span heads"):
        plan_pruning(single, [HeadId(1, 2)])


def test_missing_tokenizer_is_an_error_unless_allowed(llama, tmp_path):
    (llama / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="--no-tokenizer"):
        plan_pruning(llama, HEADS)
    verify_pruned(prune(llama, tmp_path / "out", allow_no_tokenizer=True), llama)


def test_document_holds_what_the_text_says(llama):
    (llama / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n")
    plan = plan_pruning(llama, [HeadId(1, 2), HeadId(1, 3)])
    found = json.loads(json.dumps(plan.document()))
    assert found["source"]["licence"] == "apache-2.0"
    assert found["heads"][0] == {"layer": 1, "head": 2, "kv_head": 1, "shares_kv_with": [3]}
    assert found["whole_kv_groups"] == [[1, 1]]
    assert found["parameters"] == 2 * 8 * 32
    assert found["disk_bytes"] - found["disk_bytes_if_linked"] == plan.untouched_bytes > 0
    assert found["about_seconds"] == pytest.approx(1 + found["disk_bytes_if_linked"] / 2e8, abs=0.1)
    (tensor,) = found["tensors"]
    assert tensor["ranges"] == [
        [r.offset, r.stride, r.length, r.count] for _, e in plan.edits for r in e.ranges
    ]
    for says in ("licence of the source: apache-2.0", "time: about 1 s", "memory: under 500 MB"):
        assert says in plan.describe()


def test_hub_origin_is_recorded_and_named_in_the_card(single, tmp_path):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / ("ab" * 20)
    snapshot.parent.mkdir(parents=True)
    single.rename(snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    out = prune(snapshot, tmp_path / "out")
    source = json.loads((out / MANIFEST).read_text())["source"]
    assert (source["hub_id"], source["revision"]) == ("acme/tiny", "ab" * 20)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nbase_model: acme/tiny\n---\n# Tiny\n")


def test_zeros_differ_nowhere(single, tmp_path):
    rewrite(single, lambda tensors: tensors.update({O_PROJ: torch.zeros(32, 32)}))
    out = prune(single, tmp_path / "out", [HeadId(1, 1)])
    report = verify_pruned(out, single)
    assert (report.differing_bytes, report.declared_bytes) == (0, 8 * 32 * 4)
    assert np.all(weights(out)[O_PROJ].numpy() == 0)
