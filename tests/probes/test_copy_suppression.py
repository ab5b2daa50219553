"""Copy suppression against its definition, written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel, load_model, wrap
from mnemoscope.models.anatomy import head_output_weights
from mnemoscope.models.errors import MnemoscopeError, UnsupportedModelError
from mnemoscope.models.types import Site
from mnemoscope.probes import copy_suppression
from mnemoscope.probes.copy_suppression import measure_copy_suppression, neutral_rows

TEXTS = [[3, 7, 9, 7, 11, 3, 9, 12, 7, 5, 11, 9, 3], [21, 22, 21, 23, 22, 24, 21, 25]]
TOP = 12


def expected(model: HookedModel, text: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Score and attention `[layer, head]` of a tiny Llama or GPT-2."""
    module, anatomy = model.module, model.anatomy
    norm = module.model.norm if hasattr(module, "model") else module.transformer.ln_f
    unembed = module.get_output_embeddings().weight
    batch = model.batch([text])
    captured = model.capture(batch, (Site.RESID_PRE, Site.RESID_POST, Site.V))
    rows = model.rows(batch, "all")[:, 0]
    final = captured[Site.RESID_POST, anatomy.n_layers - 1][0]
    score, attention = np.zeros((2, anatomy.n_layers, anatomy.n_heads))
    for layer in range(anatomy.n_layers):
        logits = norm(captured[Site.RESID_PRE, layer][0]) @ unembed.T
        block = (module.model.layers if hasattr(module, "model") else module.transformer.h)[layer]
        o_proj = block.self_attn.o_proj if hasattr(block, "self_attn") else block.attn.c_proj
        w_o = head_output_weights(o_proj, anatomy.n_heads)
        used = 0
        for t in range(len(text)):
            predicted = logits[t].topk(TOP).indices.tolist()
            sources = [j for j in range(t) if text[j] in predicted and text[j] != text[t]]
            used += bool(sources)
            for j in sources:
                direction = unembed[text[j]] * norm.weight
                stream = final[t]
                if norm.__class__.__name__ == "LayerNorm":
                    direction = direction - direction.mean()
                    stream = stream - stream.mean()
                direction = direction / stream.pow(2).mean().sqrt()
                for head in range(anatomy.n_heads):
                    value = captured[Site.V, layer][0, j, head // anatomy.heads_per_kv]
                    p = float(rows[layer, head, t, j])
                    score[layer, head] -= p * float(value @ w_o[head] @ direction)
                    attention[layer, head] += p
        score[layer] /= used
        attention[layer] /= used
    return score, attention


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_the_score_is_what_is_taken_off_predicted_earlier_tokens(family: str) -> None:
    model = wrap(tiny(family))
    found = measure_copy_suppression(build_chain(model), TEXTS, top=TOP)
    for i, text in enumerate(TEXTS):
        score, attention = expected(model, text)
        np.testing.assert_allclose(found.score[i], score, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(found.attention[i], attention, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "qwen3", "phi", "granite"])
def test_working_in_pieces_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = build_chain(wrap(tiny(family)))
    whole = measure_copy_suppression(chain, TEXTS, top=TOP)
    monkeypatch.setattr(copy_suppression, "_NUMBERS", 130)
    pieces = measure_copy_suppression(chain, TEXTS, top=TOP)
    np.testing.assert_allclose(pieces.score, whole.score, rtol=1e-4, atol=1e-5)
    assert (np.isfinite(whole.score).all(-1) == (whole.rows > 0)).all()
    assert whole.rows.sum() > 15


def test_only_the_asked_rows_count_and_none_is_no_score() -> None:
    chain = build_chain(wrap(tiny("llama")))
    every = [[*range(len(text))] for text in TEXTS]
    np.testing.assert_array_equal(
        measure_copy_suppression(chain, TEXTS, positions=every, top=TOP).score,
        measure_copy_suppression(chain, TEXTS, top=TOP).score,
    )
    first = measure_copy_suppression(chain, TEXTS, positions=[[0], [0]], top=TOP)
    assert (first.rows == 0).all()  # nothing stands before the first token
    assert np.isnan(first.score).all()


def test_engram_has_heads_that_suppress() -> None:
    model = load_model("engram")
    rows = neutral_rows(model, longest=64)
    assert max(map(len, rows)) <= 64
    found = measure_copy_suppression(build_chain(model), rows).statistics()
    best = np.unravel_index(np.nanargmax(found.mean), found.mean.shape)
    assert found.interval.low[best] > 0.03  # logits
    assert found.q[best] < 0.05


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        ([], {}, "at least one text"),
        (TEXTS, {"positions": [[0]]}, "one list of positions a text"),
        (TEXTS, {"positions": [[0], [8]]}, "from 0 to 7"),
        (TEXTS, {"positions": [[0], []]}, "name some"),
        (TEXTS, {"top": 0}, "use 1 to 61"),
    ],
)
def test_bad_input_is_refused(
    texts: list[list[int]], options: dict[str, object], error: str
) -> None:
    chain = build_chain(wrap(tiny("llama")))
    with pytest.raises(MnemoscopeError, match=error):
        measure_copy_suppression(chain, texts, **options)  # type: ignore[arg-type]


def test_post_norm_stacks_are_refused() -> None:
    chain = build_chain(wrap(tiny("opt-post-ln")))
    with pytest.raises(UnsupportedModelError, match="post-LN"):
        measure_copy_suppression(chain, TEXTS, top=TOP)
