"""The lens ends in the model's own prediction and reads earlier layers by the model's own norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.app.lens import (
    SHUFFLES,
    answer_table,
    lens_states,
    lens_table,
    logit_lens,
    read_states,
    shuffled_prompts,
    shuffled_table,
)
from mnemoscope.app.unit_text import token_table, unit_over_text
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models.errors import MnemoscopeError, UnitOutOfRangeError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.load import load_model
from mnemoscope.models.types import NeuronId, Site
from planted_ground import CLAIM, CONTEXT, PROMPT, STORED

TEXT = f"{CONTEXT} {PROMPT}"


def test_the_last_row_is_what_the_model_predicts(model: HookedModel) -> None:
    ids = {"memory": 5, "context": 9}
    found = logit_lens(build_chain(model), TEXT, 4, ids)
    p = model.logits(model.tokens(TEXT))[0, -4:].softmax(-1)
    assert found.top[-1].tolist() == p.argmax(-1).tolist()
    assert found.probability[-1] == pytest.approx(p.max(-1).values.numpy(), abs=1e-5)
    assert found.named["context"][-1] == pytest.approx(p[:, 9].numpy(), abs=1e-5)
    assert found.probability.shape == (model.anatomy.n_layers + 1, 4)
    assert found.positions[-1] == model.tokens(TEXT).ids.shape[1] - 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "opt"])
def test_every_family_is_read_by_its_own_norm_and_caps(family: str) -> None:
    model = wrap(tiny(family, dtype=torch.float32).requires_grad_(False))
    batch = model.batch([[5, 7, 9, 11]])
    states = lens_states(model, batch, (0, 1, 2, 3))
    best, probability, named = read_states(build_chain(model), states[-1], {"x": 3})
    p = model.logits(batch)[0].softmax(-1)
    assert best.tolist() == p.argmax(-1).tolist()
    assert probability.numpy() == pytest.approx(p.max(-1).values.numpy(), abs=1e-5)
    assert named[:, 0].numpy() == pytest.approx(p[:, 3].numpy(), abs=1e-5)


def test_tables_hold_every_cell_and_the_answers_at_the_end(model: HookedModel) -> None:
    ids = {
        role: model.answer_ids(TEXT, word)[0]
        for role, word in {"memory": STORED, "context": CLAIM}.items()
    }
    found = logit_lens(build_chain(model), TEXT, 3, ids)
    cells = lens_table(found)
    assert cells.height == 3 * (model.anatomy.n_layers + 1)
    last = cells.filter(layer=model.anatomy.n_layers, position=found.positions[-1])
    assert CLAIM in last["token"][0]
    rows = answer_table(found).filter(layer=model.anatomy.n_layers)
    by_role = dict(rows.select("answer", "probability").iter_rows())
    assert by_role["context answer"] > by_role["memory answer"]
    assert answer_table(logit_lens(build_chain(model), TEXT, 3, {})).is_empty()
    with pytest.raises(MnemoscopeError, match="at least one"):
        logit_lens(build_chain(model), TEXT, 0, {})


def test_the_control_is_the_same_lens_on_the_tokens_in_random_order(model: HookedModel) -> None:
    chain, claim = build_chain(model), model.answer_ids(TEXT, CLAIM)[0]
    found = logit_lens(chain, TEXT, 2, {"context": claim})
    prompt = model.tokens(TEXT).ids[0].tolist()
    orders = shuffled_prompts(prompt)
    assert len({tuple(order) for order in [prompt, *orders]}) == SHUFFLES + 1
    for i, order in enumerate(orders):
        assert (order[0], sorted(order), order[-1]) == (prompt[0], sorted(prompt), prompt[-1])
        p = model.logits(model.batch([order]), at="end")[0, 0].softmax(-1)
        assert found.shuffled["context"][i, -1] == pytest.approx(float(p[claim]), abs=1e-5)
    rows = shuffled_table(found)
    assert rows.columns == ["layer", "answer", "mean", "low", "high"]
    last = rows.row(-1, named=True)
    draws = found.shuffled["context"][:, -1]
    assert last["layer"] == model.anatomy.n_layers
    assert [last[end] for end in ("mean", "low", "high")] == pytest.approx(
        [draws.mean(), draws.min(), draws.max()]
    )


def test_a_prompt_too_short_to_shuffle_has_no_control(model: HookedModel) -> None:
    assert shuffled_prompts([5, 6, 7]) == shuffled_prompts([5, 6, 6, 7]) == []
    assert shuffled_prompts([5, 6, 8, 7]) == [[5, 8, 6, 7]] * SHUFFLES, "never the text's own order"
    word = PROMPT.split()[0]
    found = logit_lens(build_chain(model), word, 1, {"memory": 5})
    assert found.shuffled["memory"].shape == (0, model.anatomy.n_layers + 1)
    assert shuffled_table(found).is_empty()


@pytest.mark.parametrize("site", [Site.NEURON, Site.GATE_PRE, Site.MLP_OUT])
def test_a_unit_over_a_text_is_what_capture_says(site: Site) -> None:
    model = load_model("engram")
    text = "The capital of France is Paris."
    unit = NeuronId(3, 17, site)
    tokens, values = unit_over_text(model, text, unit)
    kept = model.capture(model.tokens(text), [site])[site, 3][0, :, 17]
    assert values == pytest.approx(kept.numpy(), abs=1e-6)
    assert len(tokens) == len(values)
    table = token_table(tokens, values)
    assert table["activation"][0] == pytest.approx(values[np.abs(values).argmax()])
    with pytest.raises(UnitOutOfRangeError):
        unit_over_text(model, text, NeuronId(99, 0))
