"""Leave-one-out costs: equal to a restricted run by hand, signed, additive where they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import ids, tiny
from mnemoscope.data.facts.haystacks import Span
from mnemoscope.data.facts.passkeys import NeedleSamples, PasskeySample
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.attention_edits import streaming
from mnemoscope.models.errors import MnemoscopeError, PromptError, UnsupportedModelError
from mnemoscope.models.types import HeadId, KVHeadId
from mnemoscope.organisms.planted_retrieval import (
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.streaming_costs import (
    MEASURES,
    agreement,
    pair_costs,
    restriction_costs,
    single_head_costs,
)
from mnemoscope.results.run_folder import open_run

SINK, RECENT = 1, 4


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return wrap(tiny("llama"))


def samples(n: int = 2, seed: int = 1) -> list[PasskeySample]:
    return [
        PasskeySample(tuple(row), 16, (Span(3, 6),), (Span(19, 24),), (0.1,))
        for row in ids(n, 24, seed).tolist()
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "mistral", "qwen3"])
def test_equals_the_attention_edit_behind_the_same_cache(family):
    """The sums are written out; the restricted run is `intervene` with a streaming edit."""
    model = wrap(tiny(family))
    sample = samples(1)[0]
    found = single_head_costs(model, [sample], sink=SINK, recent=RECENT)
    prompt, suffix = model.prefill(sample.ids[:16]), sample.ids[16:]
    full = model.suffix_logits(prompt, suffix)[0].log_softmax(-1)
    group = model.anatomy.heads_per_kv
    for layer, kv in [(0, 0), (1, 1), (2, model.anatomy.n_kv_heads - 1)]:
        heads = [HeadId(layer, kv * group + g) for g in range(group)]
        with model.intervene([streaming(heads, SINK, RECENT)]):
            cut = model.suffix_logits(prompt, suffix)[0].log_softmax(-1)
        kl = (full.exp() * (full - cut)).sum(-1).mean()
        told = [(full - cut)[i - 1, suffix[i]] for i in range(3, 8)]
        assert found.by_head("kl", 3)[0, layer, kv] == pytest.approx(float(kl), rel=1e-8)
        rise = float(torch.stack(told).mean())
        assert found.by_head("nll", 3)[0, layer, kv] == pytest.approx(rise, rel=1e-8)


def test_a_window_over_everything_costs_nothing(model):
    found = single_head_costs(model, samples(), sink=0, recent=24)
    for measure in MEASURES:
        np.testing.assert_allclose(getattr(found, measure), 0, atol=1e-12)


def test_the_size_of_a_batch_does_not_matter(model):
    many = single_head_costs(model, samples(), sink=SINK, recent=RECENT)
    one = single_head_costs(model, samples(), sink=SINK, recent=RECENT, memory_mb=0)
    for measure in MEASURES:
        np.testing.assert_allclose(getattr(many, measure), getattr(one, measure), atol=1e-12)
    assert (many.kl > 0).any()
    assert (many.nll < 0).any()
    assert (many.nll > 0).any()


def test_planted_heads_that_read_the_needle_cost_and_a_sink_head_does_not():
    planted = planted_retrieval_model()
    model = wrap(planted.module, planted.tokenizer)
    design = planted_retrieval_design(planted, lengths=(64,), needles_per_haystack=2)
    asked = [NeedleSamples(design).sample(step) for step in range(4)]
    nll = single_head_costs(model, asked, sink=1, recent=8).by_head("nll", 5).mean(0)
    reading = {(h.layer, h.head) for h in (*planted.copy_heads, *planted.locate_heads)}
    order = np.argsort(-nll, axis=None)[:2]
    assert {divmod(int(i), nll.shape[1]) for i in order} == reading
    assert nll.ravel()[order].min() > 1
    assert all(abs(nll[h.layer, h.head]) < 1e-3 for h in planted.sink_heads)
    # Locating and copying are one path: cutting both costs hardly more than cutting one.
    (copy,), (locate,) = planted.copy_heads, planted.locate_heads
    pair = (KVHeadId(copy.layer, copy.head), KVHeadId(locate.layer, locate.head))
    both = pair_costs(model, asked, [pair], sink=1, recent=8, measure="nll")
    assert both.excess[0] < -0.3 * both.summed[0]


def test_pairs_are_joint_minus_single(model):
    pair = (KVHeadId(0, 1), KVHeadId(2, 0))
    found = pair_costs(model, samples(), [pair], sink=SINK, recent=RECENT)
    single = single_head_costs(model, samples(), sink=SINK, recent=RECENT).by_head("kl", 3).mean(0)
    grid = np.zeros((1, 3, 2), dtype=bool)
    grid[0, 0, 1] = grid[0, 2, 0] = True
    joint = restriction_costs(model, samples(), grid, sink=SINK, recent=RECENT).kl.mean()
    assert found.joint[0] == pytest.approx(joint)
    assert found.excess[0] == pytest.approx(joint - single[0, 1] - single[2, 0])


def test_resumed_equals_uninterrupted(tmp_path, model):
    whole = single_head_costs(model, samples(3), sink=SINK, recent=RECENT)

    def opened():
        return open_run(tmp_path, "costs", {"samples": 3})

    with opened() as run:
        single_head_costs(model, samples(3)[:2], sink=SINK, recent=RECENT, run=run)
    with opened() as run:
        again = single_head_costs(model, samples(3), sink=SINK, recent=RECENT, run=run)
        assert len(run.done) == 3
    for measure in MEASURES:
        assert np.array_equal(getattr(again, measure), getattr(whole, measure))
    with opened() as run, pytest.raises(MnemoscopeError, match="other samples"):
        single_head_costs(model, samples(3), sink=SINK, recent=RECENT + 1, run=run)


def test_agreement_is_a_rank_correlation_with_mean_costs():
    costs = np.array([[[1.0, 5.0], [2.0, 0.0]], [[3.0, 5.0], [4.0, 0.0]]])
    assert agreement(np.array([[0.2, 0.9], [0.3, 0.1]]), costs) == pytest.approx(1)
    assert agreement(-costs.mean(0), costs) == pytest.approx(-1)


def test_what_cannot_be_measured_is_refused_before_anything_runs(model):
    with pytest.raises(MnemoscopeError, match="need samples"):
        single_head_costs(model, [])
    with pytest.raises(MnemoscopeError, match="need samples"):
        restriction_costs(model, samples(), np.zeros((1, 3, 4), dtype=bool))
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        single_head_costs(wrap(tiny("gptj")), samples())
    with pytest.raises(MnemoscopeError, match="own key"):
        single_head_costs(model, samples(), recent=0)
    at_once = PasskeySample(samples()[0].ids, 19, (), (Span(19, 24),), ())
    with pytest.raises(PromptError, match="follow a question"):
        single_head_costs(model, [at_once])
    long = PasskeySample(tuple(ids(1, 70)[0].tolist()), 60, (), (Span(65, 70),), ())
    with pytest.raises(PromptError, match="reads at most 64"):
        single_head_costs(model, [long])
    with pytest.raises(MnemoscopeError, match="two different heads"):
        pair_costs(model, samples(), [(KVHeadId(0, 0), KVHeadId(0, 0))])
    with pytest.raises(MnemoscopeError, match=r"L0\.KV2"):
        pair_costs(model, samples(), [(KVHeadId(0, 0), KVHeadId(0, 2))])
