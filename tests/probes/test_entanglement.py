"""Overlap of hidden activations at names: kappa, by classes of names, against a null."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.models import HookedModel, Site, wrap
from mnemoscope.models.errors import MnemoscopeError, UnsupportedSiteError
from mnemoscope.probes.entanglement import EVERYONE, entanglement, name_neurons, pair_classes
from role_rows import fact, prompts_of, some_facts

WITH_NEURONS = sorted(set(FAMILIES) - {"mixtral"})


def tiny_model(family: str = "llama") -> HookedModel:
    return wrap(tiny(family), name=family)


def brute_kappa(model: HookedModel, layer: int, ids: list[tuple[int, ...]]) -> np.ndarray:
    alpha = []
    for row in ids:
        captured = model.capture(model.batch([row]), [Site.NEURON], layers=[layer])
        alpha.append(captured[Site.NEURON, layer][0, -1].double())
    return np.array([[float(a @ b / (a @ a)) for b in alpha] for a in alpha])


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_kappa_is_read_at_the_last_token_of_each_name(family: str) -> None:
    model, facts = tiny_model(family), some_facts()
    found = entanglement(model, prompts_of(facts), masks={}, rows=3, draws=10)
    names = [(1, 5, 9, *name) for name in ((11,), (12, 13), (14, 13), (15, 16, 17), (18,))]
    for layer in range(3):
        expected = brute_kappa(model, layer, names)
        assert found.kappa[layer] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_kappa_is_averaged_over_wordings() -> None:
    model = tiny_model()
    one, two = some_facts(), tuple(fact((20, *f.ids[3:5]), (40,)) for f in some_facts())
    apart = [entanglement(model, prompts_of(w), masks={}, draws=10).kappa for w in (one, two)]
    both = entanglement(model, prompts_of(one, two), masks={}, draws=10)
    assert both.kappa == pytest.approx((apart[0] + apart[1]) / 2)
    assert not np.allclose(apart[0], apart[1])


def test_what_stands_behind_a_name_and_how_rows_are_batched_does_not_matter() -> None:
    model, facts = tiny_model("gpt2"), some_facts()
    longer = tuple(fact(f.ids[f.named[0] : f.named[1]], (50, 51, 52)) for f in facts)
    alone = name_neurons(model, longer, layers=[2, 0], rows=1)
    together = name_neurons(model, facts, layers=[2, 0], rows=8)
    assert alone == pytest.approx(together, rel=1e-5, abs=1e-6)
    assert alone.shape == (2, 5, model.anatomy.d_mlp)


def test_names_that_end_in_the_same_token_overlap_more_and_random_classes_do_not() -> None:
    model = tiny_model()
    facts = tuple(fact((10 + i, 40 + i % 4), (30,)) for i in range(24))
    last = np.arange(24) % 4
    random = np.random.default_rng(0).permutation(last)
    masks = {"same last": last[:, None] == last, "random": random[:, None] == random}
    found = entanglement(model, prompts_of(facts), masks=masks, draws=300)
    same, null = found.classes["same last"], found.classes["random"]
    assert (same.q < 0.05).all()
    assert (same.mean.mean > 1.5 * found.classes[EVERYONE].mean.mean).all()
    assert same.n_pairs == 24 * 5
    assert (null.q > 0.05).all()


def test_a_class_tells_mean_tail_and_sum_of_sizes() -> None:
    values = np.array([[[9.0, -1, 2, 0], [3, 9, 0, 0], [4, 0, 9, 0], [0, 0, 0, 9]]])
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 1] = mask[1, 0] = mask[0, 2] = mask[2, 0] = mask[3, 3] = True
    found = pair_classes(values, {"some": mask, "none": np.zeros((4, 4), bool)}, draws=50)
    some = found["some"]
    assert list(found) == [EVERYONE, "some"]
    assert some.n_pairs == 4
    assert some.mean.mean.tolist() == [2.5]
    assert some.p95 == pytest.approx(np.quantile([1, 2, 3, 4], 0.95))
    assert some.summed.mean.tolist() == [(3 + 3 + 4 + 0) / 4]
    assert np.isnan(found[EVERYONE].p).all()


def test_the_table_has_a_row_for_each_layer_and_class() -> None:
    same = np.ones((5, 5), dtype=bool)
    same[0] = same[:, 0] = False
    prompts = prompts_of(some_facts())
    found = entanglement(tiny_model(), prompts, layers=[2, 1], masks={"kin": same}, draws=20)
    table = found.table()
    assert table.shape[0] == 4
    assert table["layer"].to_list() == [2, 1, 2, 1]
    assert table["class"].to_list() == [EVERYONE, EVERYONE, "kin", "kin"]
    assert table["mean"][3] == found.classes["kin"].mean.mean[1]
    assert found.names == tuple(f"b{i}" for i in range(5))
    assert found.kappa.diagonal(axis1=1, axis2=2) == pytest.approx(1)


def test_fused_experts_and_masks_of_other_names_are_refused() -> None:
    prompts = prompts_of(some_facts())
    with pytest.raises(UnsupportedSiteError, match="experts fused"):
        entanglement(tiny_model("mixtral"), prompts, masks={})
    with pytest.raises(MnemoscopeError, match="same names in the same order"):
        entanglement(tiny_model(), prompts, masks={"kin": np.ones((4, 4), bool)})


def test_half_precision_gives_float32_overlap() -> None:
    model = wrap(tiny("llama", dtype=torch.bfloat16))
    found = name_neurons(model, some_facts(), layers=[0])
    assert found.dtype == np.float32
