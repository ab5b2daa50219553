"""Path patching equals its definition, by an oracle that uses plain hooks and nothing of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.interventions import end_chain, end_sweep
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    frozen_mlp_effects,
    head_sets,
)
from mnemoscope.models import HeadId, wrap
from mnemoscope.models.anatomy import part
from mnemoscope.models.errors import MnemoscopeError, UnsupportedModelError

LENGTH, OTHER_LENGTH = 9, 7
VOCAB = 61
# Gemma-2, GPT-J and the RMS norms compute parts in single precision whatever the model's type is.
EXACT = 1e-10
SINGLE = 2e-6


def run(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A plain full pass; a cache would change the memory layout that GPT-J rounds by."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model.module(
            tokens,
            attention_mask=torch.ones_like(tokens),
            position_ids=positions,
            use_cache=False,
        ).logits


def oracle(
    model: Any, tokens: torch.Tensor, s: torch.Tensor, head: HeadId, everywhere: bool = False
) -> torch.Tensor:
    """Naive path patching: one full pass, every o_proj input frozen, one head's slice replaced."""
    blocks = part(model.module, model.anatomy.spec.blocks)
    projections = [part(block, model.anatomy.spec.o_proj) for block in blocks]
    clean: dict[int, torch.Tensor] = {}
    handles = [
        p.register_forward_pre_hook(lambda _, a, i=i: clean.__setitem__(i, a[0].clone()))
        for i, p in enumerate(projections)
    ]
    run(model, tokens)
    for handle in handles:
        handle.remove()
    width = model.anatomy.d_v
    cells = slice(head.head * width, (head.head + 1) * width)
    where = slice(None) if everywhere else slice(-1, None)

    def freeze(_: Any, args: Any, i: int) -> Any:
        z = clean[i].clone()
        if i == head.layer:
            z[:, where, cells] = s[i, :, None, head.head]
        return (z,)

    handles = [
        p.register_forward_pre_hook(lambda m, a, i=i: freeze(m, a, i))
        for i, p in enumerate(projections)
    ]
    logits = run(model, tokens)[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@pytest.fixture(scope="module", params=list(FAMILIES))
def setting(request: Any) -> Any:
    model = wrap(tiny(request.param), name=request.param)
    tokens, other = ids(2, LENGTH), ids(2, OTHER_LENGTH, seed=5)
    org = end_states(model, model.batch(tokens.tolist()))
    cf = end_states(model, model.batch(other.tolist()))
    every = torch.arange(VOCAB).expand(2, -1)
    effects = direct_effects(build_chain(model), org, cf.z, every)
    return model, tokens, org, cf, effects


def test_every_head_equals_the_naive_full_pass(setting: Any) -> None:
    """All heads, full vocabulary; the corrupted prompts have another length."""
    model, tokens, _, cf, effects = setting
    for row, head in enumerate(model.anatomy.all_heads()):
        want = oracle(model, tokens, cf.z, head)
        assert torch.allclose(effects.patched[:, row], want, atol=EXACT, rtol=0)


def test_clean_row_is_the_models_own_run(setting: Any) -> None:
    model, tokens, _, _, effects = setting
    want = run(model, tokens)[:, -1]
    assert torch.allclose(effects.clean, want, atol=EXACT, rtol=0)


def test_patching_all_positions_gives_the_same(setting: Any) -> None:
    model, tokens, _, cf, effects = setting
    head = HeadId(1, 2)
    want = oracle(model, tokens, cf.z, head, everywhere=True)
    row = model.anatomy.all_heads().index(head)
    assert torch.allclose(effects.patched[:, row], want, atol=EXACT, rtol=0)


def test_heads_matter_so_the_equality_could_fail(setting: Any) -> None:
    model, _, _, _, effects = setting
    assert effects.change.abs().amax(dim=(0, 2)).min() > 1e-4, model.name


def test_end_total_effect_equals_activation_patching_at_end(setting: Any) -> None:
    model, tokens, _, cf, _ = setting
    every = torch.arange(VOCAB).expand(2, -1)
    got = end_total_effects(model, model.batch(tokens.tolist()), cf.z, every, rows_per_call=5)
    width = model.anatomy.d_v
    gaps = []
    for row, head in enumerate(model.anatomy.all_heads()):
        block = part(model.module, model.anatomy.spec.blocks)[head.layer]

        def patch(_: Any, args: Any, head: HeadId = head) -> Any:
            z = args[0].clone()
            z[:, -1, head.head * width : (head.head + 1) * width] = cf.z[head.layer, :, head.head]
            return (z,)

        handle = part(block, model.anatomy.spec.o_proj).register_forward_pre_hook(patch)
        want = run(model, tokens)[:, -1]
        handle.remove()
        gaps.append(float((got.patched[:, row] - want).abs().max()))
    single_precision = model.name in ("gptj", "gemma2")
    assert max(gaps) < (SINGLE * 10 if single_precision else EXACT)


def test_frozen_mlps_equal_the_closed_form_by_hooks(setting: Any) -> None:
    """Oracle: freeze the MLP output too, patch one head, run the full pass."""
    model, tokens, org, cf, _ = setting
    chain = build_chain(model)
    every = torch.arange(VOCAB).expand(2, -1)
    if model.anatomy.post_ln:
        with pytest.raises(UnsupportedModelError, match="post-LN"):
            frozen_mlp_effects(chain, org, cf.z, every)
        return
    got = frozen_mlp_effects(chain, org, cf.z, every)
    blocks = part(model.module, model.anatomy.spec.blocks)
    outs: dict[int, torch.Tensor] = {}
    mlps = [part(block, model.anatomy.spec.mlp_out) for block in blocks]
    handles = [
        m.register_forward_hook(lambda _, __, o, i=i: outs.__setitem__(i, o.clone()))
        for i, m in enumerate(mlps)
    ]
    run(model, tokens)
    for handle in handles:
        handle.remove()
    handles = [m.register_forward_hook(lambda _, __, o, i=i: outs[i]) for i, m in enumerate(mlps)]
    for row in (0, 5, 11):
        want = oracle(model, tokens, cf.z, model.anatomy.all_heads()[row])
        assert torch.allclose(got.patched[:, row], want, atol=EXACT, rtol=0)
    for handle in handles:
        handle.remove()


def test_a_set_of_heads_is_one_row() -> None:
    """A set in two layers equals replacing both in the oracle's frozen pass."""
    model = wrap(tiny("gemma2"))
    tokens, other = ids(1, LENGTH), ids(1, LENGTH, seed=5)
    org = end_states(model, model.batch(tokens.tolist()))
    cf = end_states(model, model.batch(other.tolist()))
    pair = [HeadId(0, 1), HeadId(2, 3)]
    rows = head_sets(model, [pair, [pair[1]]])
    every = torch.arange(VOCAB)[None]
    got = direct_effects(build_chain(model), org, cf.z, every, senders=rows)
    full = frozen_with(model, tokens, org.z, cf.z, pair)
    assert torch.allclose(got.patched[:, 0], full, atol=EXACT, rtol=0)
    assert torch.allclose(got.patched[:, 1], oracle(model, tokens, cf.z, pair[1]), atol=EXACT)


def frozen_with(model: Any, tokens: Any, z: Any, s: Any, heads: list[HeadId]) -> torch.Tensor:
    """Freeze END's z in every layer, with several heads replaced."""
    blocks = part(model.module, model.anatomy.spec.blocks)
    handles = []
    for i, block in enumerate(blocks):
        end = z[i].clone()
        for head in heads:
            if head.layer == i:
                end[:, head.head] = s[i, :, head.head]

        def freeze(_: Any, args: Any, end: torch.Tensor = end) -> Any:
            x = args[0].clone()
            x[:, -1] = end.flatten(1)
            return (x,)

        handles.append(part(block, model.anatomy.spec.o_proj).register_forward_pre_hook(freeze))
    logits = run(model, tokens)[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cutting_to_the_memory_budget_does_not_change_the_result(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrap(tiny(family))
    org = end_states(model, model.batch(ids(3, LENGTH).tolist()))
    cf = end_states(model, model.batch(ids(3, LENGTH, seed=5).tolist()))
    tokens = torch.tensor([[4, 9], [8, 5], [3, 60]])
    chain = build_chain(model)
    whole = direct_effects(chain, org, cf.z, tokens)
    pieces = [(slice(c, c + 1), slice(r, r + 5)) for c in range(3) for r in range(0, 12, 5)]
    monkeypatch.setattr(end_sweep, "_cuts", lambda *_: pieces)
    monkeypatch.setattr(end_chain, "_rows_per_call", lambda *_: 3)
    cut = direct_effects(chain, org, cf.z, tokens)
    assert torch.allclose(whole.patched, cut.patched, atol=EXACT)
    assert torch.allclose(whole.clean, cut.clean, atol=EXACT)


def test_padding_does_not_change_the_result() -> None:
    model = wrap(tiny("llama"))
    rows = [r.tolist()[:n] for r, n in zip(ids(3, 12), (12, 7, 10), strict=True)]
    tokens = torch.tensor([[4, 9]] * 3)
    chain = build_chain(model)
    results = []
    for side in ("left", "right"):
        states = end_states(model, model.batch(rows, side))
        results.append(direct_effects(chain, states, torch.zeros_like(states.z), tokens).patched)
    for i, row in enumerate(rows):
        alone = end_states(model, model.batch([row]))
        got = direct_effects(chain, alone, torch.zeros_like(alone.z), tokens[:1]).patched[0]
        for padded in results:
            assert torch.allclose(padded[i], got, atol=EXACT)


def test_several_answer_tokens_by_teacher_forcing() -> None:
    """Chains at the answer positions; their log-probabilities sum to the whole answer's."""
    model = wrap(tiny("neox"))
    tokens = ids(1, LENGTH)
    answer = tokens[0, -3:]
    at = torch.arange(LENGTH - 4, LENGTH - 1)[None]  # positions that predict the answer's tokens
    org = end_states(model, model.batch(tokens.tolist()), at=at)
    zeros = torch.zeros_like(org.z)
    chain = build_chain(model)
    got = direct_effects(chain, org, zeros, answer[:, None], log_probs=True)
    log_probs = run(model, tokens).log_softmax(-1)
    want = log_probs[0, at[0], answer]
    assert torch.allclose(got.clean[:, 0], want, atol=EXACT)
    assert torch.allclose(got.clean.sum(), want.sum(), atol=EXACT)


def test_guard_refuses_a_model_whose_positions_mix() -> None:
    """A convolution over positions inside the MLP breaks the identity and must be refused."""
    module = tiny("llama")
    inner = module.model.layers[1].mlp.forward
    module.model.layers[1].mlp.forward = lambda x: inner(x) + 0.5 * x.roll(1, dims=1)
    model = wrap(module, self_test=False)
    with pytest.raises(UnsupportedModelError, match="not exact"):
        build_chain(model)


def test_replaced_forwards_are_put_back() -> None:
    model = wrap(tiny("phi3"))
    before = model.logits(model.batch(ids(2).tolist()))
    build_chain(model)
    assert torch.equal(model.logits(model.batch(ids(2).tolist())), before)
    assert not any("forward" in m.__dict__ for m in model.module.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, t: (z[:, :1], t), "replacement z has shape"),
        (lambda z, t: (z, t[:1]), "token_ids must be"),
        (lambda z, t: (z, t + 1000), "token ids must lie in"),
    ],
)
def test_bad_input_is_refused(change: Any, message: str) -> None:
    model = wrap(tiny("gpt2"))
    states = end_states(model, model.batch(ids(2).tolist()))
    z, tokens = change(states.z, torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(MnemoscopeError, match=message):
        direct_effects(build_chain(model), states, z, tokens)
