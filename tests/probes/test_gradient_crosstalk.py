"""Inner products of per-fact gradients in closed form, against gradients that are really formed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.anatomy import part
from mnemoscope.models.errors import MnemoscopeError, UnsupportedSiteError
from mnemoscope.probes.gradient_crosstalk import gradient_crosstalk, gradient_inner
from mnemoscope.probes.role_prompts import RoleRow
from role_rows import loss_of, prompts_of, some_facts

WITH_NEURONS = sorted(set(FAMILIES) - {"mixtral"})


def tiny_model(family: str = "llama") -> HookedModel:
    return wrap(tiny(family), name=family)


def brute(model: HookedModel, facts: Sequence[RoleRow], layer: int) -> np.ndarray:
    """One backward pass a fact, its gradient of the weight formed and kept."""
    blocks = part(model.module, model.anatomy.spec.blocks)
    weight = part(blocks[layer], str(model.anatomy.spec.down)).weight
    gradients = [
        torch.autograd.grad(loss_of(model, fact), weight)[0].flatten().double() for fact in facts
    ]
    return torch.stack([torch.stack([a @ b for b in gradients]) for a in gradients]).numpy()


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_the_closed_form_equals_gradients_formed_fact_by_fact(family: str) -> None:
    model, facts = tiny_model(family), some_facts()
    inner, log_prob = gradient_inner(model, facts, layers=[0, 1, 2], rows=3)
    # Some families compute norms or attention in float32 whatever their type; there batched and
    # single rows differ by its rounding.
    exact = family in ("gpt2", "neox", "neox-sequential", "opt", "opt-post-ln", "phi")
    near = 1e-10 if exact else 1e-5
    for layer in range(3):
        expected = brute(model, facts, layer)
        assert np.abs(inner[layer] - expected).max() < near * np.abs(expected).max()
    with torch.no_grad():
        losses = [float(loss_of(model, fact)) for fact in facts]
    assert log_prob == pytest.approx([-loss for loss in losses], rel=1e-6)


def test_blocks_of_layers_and_sizes_of_batches_change_nothing() -> None:
    model, facts = tiny_model("gpt2"), some_facts()
    whole, _ = gradient_inner(model, facts, layers=[0, 1, 2], rows=8)
    tokens = sum(len(fact.ids) - 1 for fact in facts)
    one_layer = tokens * (model.anatomy.d_mlp + model.anatomy.d_model) * 8
    ticks: list[tuple[int, int]] = []
    apart, _ = gradient_inner(
        model,
        facts,
        layers=[2, 0, 1],
        rows=2,
        memory_bytes=one_layer,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert apart == pytest.approx(whole[[2, 0, 1]], rel=1e-10)
    assert ticks[-1] == (15, 15)


def test_frozen_weights_are_measured_too_and_stay_without_gradients() -> None:
    model = tiny_model("gpt2")
    free, _ = gradient_inner(model, some_facts(), layers=[1])
    model.module.requires_grad_(False)
    frozen, _ = gradient_inner(model, some_facts(), layers=[1])
    assert frozen == pytest.approx(free, rel=1e-12)
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())


def test_cosines_and_kappa_come_from_the_inner_products() -> None:
    found = gradient_crosstalk(tiny_model("gpt2"), prompts_of(some_facts()), masks={}, draws=20)
    inner = found.inner
    length = np.sqrt(inner.diagonal(axis1=1, axis2=2))
    assert found.cosine == pytest.approx(inner / length[:, :, None] / length[:, None])
    assert found.kappa == pytest.approx(inner / length[:, :, None] ** 2)
    summed = inner.sum(0)
    assert found.together[0] == pytest.approx(summed / summed.diagonal()[:, None])
    assert found.names == tuple(f"a{i}" for i in range(5))
    sizes = np.abs(found.cosine[1][~np.eye(5, dtype=bool)])
    assert found.table().row(1, named=True)["mean"] == pytest.approx(sizes.mean())


def test_a_fact_told_twice_has_a_cosine_of_one_with_itself() -> None:
    facts = some_facts()
    inner, _ = gradient_inner(tiny_model("gpt2"), (*facts, facts[1]), layers=[0])
    assert inner[0, 1, 5] == pytest.approx(inner[0, 1, 1], rel=1e-10)
    assert inner[0, 5] == pytest.approx(inner[0, 1], rel=1e-10)


def test_fused_experts_and_too_little_memory_are_refused() -> None:
    with pytest.raises(UnsupportedSiteError, match="experts fused"):
        gradient_crosstalk(tiny_model("mixtral"), prompts_of(some_facts()), masks={})
    with pytest.raises(MnemoscopeError, match="allow that much or ask fewer facts"):
        gradient_inner(tiny_model(), some_facts(), layers=[0], memory_bytes=10)
