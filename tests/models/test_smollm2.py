"""SmolLM2 from its registry package: converted once, then a plain local checkpoint."""

from __future__ import annotations

import pytest
import torch
from mnemoscope.models import HookedModel, load_model

WEIGHTS = "908d00480351233b0c3feda0c3b31bd6cdccda9c2492078fabfa153db7164b0c"
pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture(scope="module")
def smollm2() -> HookedModel:
    return load_model("smollm2")


def test_smollm2_answers(smollm2: HookedModel) -> None:
    prompt = "The capital of France is"
    first = int(smollm2.logits(smollm2.tokens(prompt), at="end")[0, 0].argmax())
    assert smollm2.pieces([first]) == [" Paris"]
    assert smollm2.answer_ids(prompt, "Paris") == (first,)
    assert smollm2.continuations([prompt], 1) == [" Paris"]


def test_smollm2_has_nine_query_and_three_key_value_heads(smollm2: HookedModel) -> None:
    anatomy = smollm2.anatomy
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads) == (30, 9, 3)
    assert (anatomy.d_model, anatomy.d_v, anatomy.d_mlp) == (576, 64, 1536)
    assert smollm2.bos_rule == "no BOS added"


def test_smollm2_loads_the_same_weights_again(smollm2: HookedModel, calls: list[str]) -> None:
    again = load_model("smollm2")
    assert again.weights_sha256 == smollm2.weights_sha256
    assert "gguf" in again.source
    assert calls == []


def test_the_weights_are_those_of_the_record(smollm2: HookedModel) -> None:
    """The package is pinned and dequantised element by element, so every machine gets these bits,
    whichever versions converted what lies in its cache."""
    assert smollm2.weights_sha256 == WEIGHTS


def test_smollm2_padded_batch_equals_single_prompts(smollm2: HookedModel) -> None:
    texts = ["The capital of France is", "Two and two make", "Once upon a time, in a small town,"]
    for side in ("left", "right"):
        together = smollm2.logits(smollm2.tokens(texts, side), at="end")  # type: ignore[arg-type]
        for row, text in enumerate(texts):
            alone = smollm2.logits(smollm2.tokens(text), at="end")
            torch.testing.assert_close(together[row], alone[0], atol=1e-3, rtol=0)
