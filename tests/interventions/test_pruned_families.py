"""The proof: what stock transformers computes from a pruned folder is the hooked ablation.

For every family of `families.py`, in three data types, with stock `from_pretrained` and `generate`
(key/value cache, a batch of different lengths, padding on the left).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers as hf
from checkpoints import changed
from families import FAMILIES, tiny
from mnemoscope.interventions.checkpoint_surgery import (
    plan_pruning,
    prune_checkpoint,
    verify_pruned,
)
from mnemoscope.interventions.head_means import mean_head_outputs
from mnemoscope.models import HeadId, HookedModel, TokenBatch, load_model, mean, scale, wrap, zero
from mnemoscope.models.edits import Edit
from mnemoscope.models.errors import UnsupportedModelError
from mnemoscope.models.load import checkpoint_folder
from mnemoscope.models.packaged import smollm2_gguf
from mnemoscope.models.tokens import pad
from tokenizers import Tokenizer, models, pre_tokenizers

HEADS = (HeadId(0, 1), HeadId(1, 0), HeadId(2, 3), HeadId(2, 0))
TEXTS = ("w5 w6 w7 w8 w9 w10 w11", "w20 w21 w22", "w40 w3 w17 w31 w9")
LONG = ("w5 w6 w7 w8 w9 w10", "w50 w44 w12 w3 w3 w8 w21 w30", "w1 w2", "w33 w14 w15")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAMES = {FP32: "float32", BF16: "bfloat16", FP16: "float16"}
TOLERANCE = {FP32: 1e-5, BF16: 1e-2, FP16: 1e-2}
BIASED = ("gpt2", "neox", "neox-sequential", "opt", "opt-post-ln", "phi")
"""Families whose output projection has a bias; the others store none unless told to."""

Saved = Callable[..., Path]


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(58))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folders of tiny models, each written once: float32 and float16 in shards, bfloat16 whole."""
    made: dict[str, Path] = {}

    def folder(family: str, dtype: torch.dtype = FP32, **changes: Any) -> Path:
        name = f"{family}-{NAMES[dtype]}-{'-'.join(map(str, changes.items()))}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("saved") / "model"
            module = changed(family, **changes).to(dtype) if changes else tiny(family, dtype=dtype)
            shard = "1GB" if dtype == BF16 else "15KB"
            module.save_pretrained(made[name], max_shard_size=shard)
            word_tokenizer().save_pretrained(made[name])
        return made[name]

    return folder


def stock(folder: Path) -> Any:
    """Plain transformers; nothing of the folder may be missing or left over."""
    module, info = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return module.eval()


def hooked(folder: Path) -> HookedModel:
    return wrap(stock(folder), word_tokenizer(), self_test=False)


def left_padded(texts: Sequence[str]) -> TokenBatch:
    return pad([word_tokenizer()(text)["input_ids"] for text in texts], side="left")


@torch.no_grad()
def logits(module: Any, batch: TokenBatch) -> torch.Tensor:
    """Logits of the real tokens of a left-padded batch, by a plain call."""
    output = module(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids
    )
    return output.logits[batch.mask].float()


def greedy(module: Any, batch: TokenBatch) -> Any:
    """`generate` of transformers for a left-padded batch, with its cache; keeps the logits."""
    return module.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        max_new_tokens=8,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )


def first_difference(a: Any, b: Any, row: int) -> int | None:
    """The step at which two generations choose another token."""
    steps = range(min(len(a.logits), len(b.logits)))
    new = [run.sequences[row, -len(run.logits) :] for run in (a, b)]
    return next((i for i in steps if new[0][i] != new[1][i]), None)


def assert_equals_hooked(source: Path, out: Path, edit: Edit) -> None:
    """Logits and greedy text of `out` are those of `source` under the edit, which changes them.

    A mean is rounded to half precision on one side as a vector of the head, on the other as a part
    of the bias: there a choice may fall otherwise where two tokens are equally good.
    """
    model, pruned = hooked(source), stock(out)
    assert pruned.dtype == model.dtype
    batch = left_padded(TEXTS)
    plain = logits(model.module, batch)
    with model.intervene([edit]):
        want, text = logits(model.module, batch), greedy(model.module, batch)
    limit = TOLERANCE[model.dtype] * max(1.0, float(want.abs().max()))
    torch.testing.assert_close(logits(pruned, batch), want, atol=limit, rtol=0)
    assert (plain - want).abs().max() > 10 * limit
    got = greedy(pruned, batch)
    for row in range(len(batch)):
        step = first_difference(got, text, row)
        if edit.op == "mean" and model.dtype != FP32 and step is not None:
            best, second = text.logits[step][row].float().topk(2).values
            assert best - second < 2 * limit
        else:
            assert step is None


# -- zero and scale -------------------------------------------------------------------------------

EDITS = [(dtype, factor) for dtype in (FP32, BF16, FP16) for factor in (0.0, -1.0)]
EDITS += [(FP32, 0.5), (FP32, 2.0)]


@pytest.mark.parametrize(
    ("dtype", "factor"), EDITS, ids=[f"{NAMES[dtype]}-{factor:g}" for dtype, factor in EDITS]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_folder_is_the_hooked_ablation(
    family: str, dtype: torch.dtype, factor: float, saved: Saved, tmp_path: Path
) -> None:
    source = saved(family, dtype)
    plan = plan_pruning(source, HEADS, factor=factor)
    out = prune_checkpoint(plan, tmp_path / "out")
    assert_equals_hooked(source, out, zero(HEADS) if factor == 0 else scale(HEADS, factor))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "gemma2", "phi"])
def test_tied_and_untied_unembeddings(
    family: str, tied: bool, saved: Saved, tmp_path: Path
) -> None:
    source = saved(family, tie_word_embeddings=tied)
    out = prune_checkpoint(plan_pruning(source, HEADS), tmp_path / "out")
    assert_equals_hooked(source, out, zero(HEADS))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 6}),
        ("mistral", {"num_key_value_heads": 4}),
        ("phi", {"qk_layernorm": True, "partial_rotary_factor": 0.25}),
        ("gptj", {"tie_word_embeddings": False, "rotary_dim": 8}),
        ("neox", {"attention_bias": False}),
        ("mixtral", {"sliding_window": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variants_of_families(
    family: str, changes: dict[str, Any], saved: Saved, tmp_path: Path
) -> None:
    source = saved(family, **changes)
    out = prune_checkpoint(plan_pruning(source, HEADS), tmp_path / "out")
    assert_equals_hooked(source, out, zero(HEADS))


@pytest.mark.parametrize("family", FAMILIES)
def test_load_model_gives_the_same_text_and_logits(
    family: str, saved: Saved, tmp_path: Path
) -> None:
    source = saved(family, BF16)
    out = prune_checkpoint(plan_pruning(source, HEADS), tmp_path / "out")
    model, pruned = load_model(source), load_model(out)
    batch = left_padded(LONG)
    with model.intervene([zero(HEADS)]):
        want, new = model.logits(batch), model.generate(batch, 8)
    atol = 1e-5 * max(1.0, float(want[batch.mask].abs().max()))
    got = pruned.logits(batch)[batch.mask]
    torch.testing.assert_close(got, want[batch.mask], atol=atol, rtol=0)
    assert pruned.generate(batch, 8) == new
    assert pruned.tokenizer_sha256 == model.tokenizer_sha256


# -- mean -----------------------------------------------------------------------------------------


def assert_mean_equals_hooked(source: Path, out: Path) -> None:
    model = hooked(source)
    means = mean_head_outputs(model, LONG, HEADS)
    plan = plan_pruning(source, HEADS, mean_outputs=means)
    assert plan.mode == "mean"
    prune_checkpoint(plan, out)
    values = torch.stack([means[head] for head in HEADS])
    assert_equals_hooked(source, out, mean(HEADS, values))
    verify_pruned(out)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=NAMES.values())
@pytest.mark.parametrize("family", BIASED)
def test_mean_in_the_bias_is_the_hooked_mean_ablation(
    family: str, dtype: torch.dtype, saved: Saved, tmp_path: Path
) -> None:
    assert_mean_equals_hooked(saved(family, dtype), tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "olmo2", "granite"])
def test_mean_where_the_checkpoint_has_an_attention_bias(
    family: str, saved: Saved, tmp_path: Path
) -> None:
    assert_mean_equals_hooked(saved(family, attention_bias=True), tmp_path / "out")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(BIASED)))
def test_mean_needs_a_bias(family: str, saved: Saved) -> None:
    width = hooked(saved(family)).anatomy.d_v
    means = {head: torch.zeros(width, dtype=torch.float64) for head in HEADS}
    kind = FAMILIES[family].model_type
    with pytest.raises(UnsupportedModelError, match=rf"{kind} .*no bias .*use zero"):
        plan_pruning(saved(family), HEADS, mean_outputs=means)


# -- GGUF -----------------------------------------------------------------------------------------


def write_gguf(path: Path) -> None:
    """A tiny Llama in llama.cpp's format, with a tokenizer that knows some letters."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", *(f"Ġ{c}" for c in "abcdefgh")]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += [f"<{i}>" for i in range(61 - len(tokens))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(61)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 58)
    writer.add_token_merges([f"Ġ {c}" for c in "abcdefgh"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, tensor in tiny("llama", dtype=FP32).state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)) + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_pruned_gguf_is_a_normal_folder(path: Path, out: Path, texts: tuple[str, ...]) -> None:
    heads = (HeadId(0, 1), HeadId(2, 3))
    model = load_model(path)
    prune_checkpoint(plan_pruning(checkpoint_folder(path), heads), out)
    assert not list(out.rglob("*.gguf"))
    assert hf.AutoConfig.from_pretrained(out).model_type == "llama"
    pruned = wrap(stock(out), hf.AutoTokenizer.from_pretrained(out), self_test=False)
    batch = model.tokens(texts)
    plain = model.logits(batch)[batch.mask]
    with model.intervene([zero(heads)]):
        want, text = model.logits(batch)[batch.mask], model.continuations(texts, 6)
    got = pruned.logits(pruned.tokens(texts))[batch.mask]
    atol = 1e-5 * max(1.0, float(want.abs().max()))
    torch.testing.assert_close(got, want, atol=atol, rtol=0)
    assert pruned.continuations(texts, 6) == text
    assert (plain - want).abs().max() > 10 * atol
    verify_pruned(out)


def test_pruned_gguf_becomes_a_normal_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    texts = ("a b c d e", "hello", "face a")
    assert_pruned_gguf_is_a_normal_folder(tmp_path / "tiny.gguf", tmp_path / "out", texts)
    shutil.rmtree(tmp_path / "cache")  # the folder stands on its own
    assert stock(tmp_path / "out").config.num_attention_heads == 4


@pytest.mark.slow
def test_pruned_smollm2_gguf_becomes_a_normal_folder(tmp_path: Path) -> None:
    texts = ("The capital of France is", "Two and two are")
    assert_pruned_gguf_is_a_normal_folder(smollm2_gguf(), tmp_path / "out", texts)
