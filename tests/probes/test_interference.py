"""One small step on one fact: what it does to the others, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError, UnsupportedSiteError
from mnemoscope.probes.entanglement import entanglement
from mnemoscope.probes.gradient_crosstalk import gradient_crosstalk
from mnemoscope.probes.interference import (
    Interference,
    Stepped,
    explain_interference,
    interference,
    stepped_weights,
)
from mnemoscope.results.run_folder import open_run
from role_rows import fact, loss_of, prompts_of, some_facts

MANY = prompts_of(tuple(fact((10 + i, 40 + i % 5), (25 + i, 34)) for i in range(12)))


def tiny_model(family: str = "gpt2") -> HookedModel:
    return wrap(tiny(family), name=family)


@contextmanager
def unchanged(model: HookedModel) -> Iterator[None]:
    """Every weight and buffer stays the same object with the same bits."""
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    places = {name: p.data_ptr() for name, p in model.module.named_parameters()}
    yield
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: p.data_ptr() for name, p in model.module.named_parameters()} == places


# -- the step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_a_step_is_the_one_that_an_optimiser_takes(family: str) -> None:
    model, facts = tiny_model(family), some_facts()
    found = interference(model, prompts_of(facts), sources=2, gain=0.05)
    source, rate = found.sources[1], float(found.rate[1])
    copy = wrap(deepcopy(model.module))
    optimiser = torch.optim.SGD(copy.module.parameters(), lr=rate)
    loss_of(copy, facts[source]).backward()
    squared = sum(float((p.grad**2).sum()) for p in copy.module.parameters() if p.grad is not None)
    optimiser.step()
    with torch.no_grad():
        after = [-float(loss_of(copy, row)) for row in facts]
        before = [-float(loss_of(model, row)) for row in facts]
    assert rate == pytest.approx(0.05 / squared, rel=1e-5)
    assert found.before == pytest.approx(before, rel=1e-5)
    assert found.change[1] == pytest.approx(np.subtract(after, before), abs=1e-5)
    assert found.own[1] == found.change[1, source]


def test_weights_are_the_same_bits_afterwards_and_as_frozen_as_before() -> None:
    model = tiny_model("llama")
    model.module.lm_head.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.module.parameters()]
    with unchanged(model):
        interference(model, MANY, sources=2)
    assert [p.requires_grad for p in model.module.parameters()] == wanted
    assert all(p.grad is None for p in model.module.parameters())


def test_weights_are_restored_when_the_work_inside_a_step_fails() -> None:
    model = tiny_model()
    weights = list(model.module.parameters())
    batch = model.batch([some_facts()[0].ids])
    clean = model.logits(batch)
    inside: list[torch.Tensor] = []

    def fail() -> None:
        with stepped_weights(weights, weights, 0.5):
            inside.append(model.logits(batch))
            raise ZeroDivisionError

    with unchanged(model), pytest.raises(ZeroDivisionError):
        fail()
    assert not torch.equal(inside[0], clean)
    assert torch.equal(model.logits(batch), clean)


def test_weights_are_restored_when_a_run_is_stopped_in_the_middle_of_a_step() -> None:
    model, passes = tiny_model(), [0]

    def stop(*_: object) -> None:
        passes[0] += 1
        if passes[0] == 3:  # all facts once, the first step's loss, all facts after it
            raise KeyboardInterrupt

    handle = model.module.register_forward_hook(stop)
    wanted = [p.requires_grad for p in model.module.parameters()]
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        interference(model, MANY, sources=2)
    handle.remove()
    assert [p.requires_grad for p in model.module.parameters()] == wanted


def test_an_almost_certain_fact_is_to_lose_a_tenth_of_its_loss_at_most() -> None:
    model = tiny_model()
    found = interference(model, MANY, sources=3, gain=1e6)
    at = list(found.places)
    assert found.expected == pytest.approx(-found.before[at] / 10)
    small = interference(model, MANY, sources=3, gain=1e-3)
    assert small.expected == pytest.approx(1e-3)
    assert small.linearity == pytest.approx(1, abs=0.01)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = tiny_model()
    whole = interference(model, MANY, sources=4)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "interference", {"a": 1}) as run:
        interference(model, MANY, sources=4, run=run, progress=stop)
    told: list[tuple[int, int]] = []
    with open_run(tmp_path, "interference", {"a": 1}) as run:
        kept = len(run.done)
        again = interference(
            model, MANY, sources=4, run=run, progress=lambda done, total: told.append((done, total))
        )
    assert kept == 2
    assert told[-1] == (4, 4)
    assert np.array_equal(again.change, whole.change)
    assert np.array_equal(again.rate, whole.rate)


# -- what explains it ------------------------------------------------------------------------------


def test_a_step_on_the_down_projections_does_what_their_gradients_say() -> None:
    model = tiny_model()
    found = interference(model, MANY, sources=5, gain=1e-6, stepped="down")
    predicted = gradient_crosstalk(model, MANY, masks={}, draws=10).together
    assert found.share == pytest.approx(predicted[0][list(found.sources)], abs=1e-4)
    explained = explain_interference(found, {"together": predicted}, draws=50)
    assert explained.predictors["together"].r2[0] > 0.999999
    assert explained.predictors["together"].low[0] > 0.999


def test_gradients_explain_a_whole_step_in_part_and_shuffled_facts_explain_nothing() -> None:
    model = tiny_model("llama")
    found = interference(model, MANY, sources=12, gain=1e-3)
    gradients = gradient_crosstalk(model, MANY, masks={}, draws=10).together
    mixed = np.random.default_rng(1).permutation(12)
    predictors = {
        "gradient": gradients,
        "shuffled": gradients[:, mixed][:, :, mixed],
        "kappa": entanglement(model, MANY, way="forward", masks={}, draws=10).kappa,
    }
    table = explain_interference(found, predictors, draws=200).table()
    by_name = {row["predictor"]: row for row in table.iter_rows(named=True)}
    assert by_name["gradient"]["r2"] > by_name["gradient"]["r2_null"]
    assert by_name["gradient"]["p"] < 0.01
    assert by_name["shuffled"]["p"] > 0.05
    assert table.shape[0] == 1 + 1 + 3


def made_up(n_sources: int) -> Interference:
    share = np.random.default_rng(0).normal(size=(n_sources, 20))
    return Interference(
        "none", "forward", tuple(map(str, range(30))), "all", tuple(range(1, 1 + n_sources)),
        tuple(range(20)), np.zeros(20), share, np.ones(n_sources), np.ones(n_sources),
    )  # fmt: skip


def test_a_predictor_is_read_at_the_pair_that_learned_and_was_asked() -> None:
    measured = made_up(8)
    truth = np.random.default_rng(1).normal(size=(3, 30, 30))
    truth[1, 1:9, :20] = measured.share
    found = explain_interference(measured, {"x": truth, "turned": truth.swapaxes(1, 2)}, draws=100)
    assert found.predictors["x"].r[1] == pytest.approx(1)
    assert found.predictors["x"].p_any < 0.05
    assert abs(found.predictors["turned"].r[1]) < 0.9
    assert found.predictors["x"].n_pairs == 8 * 19


def test_the_table_leaves_out_what_a_step_did_to_its_own_fact() -> None:
    measured = made_up(2)
    table = measured.table()
    assert table.shape[0] == 2 * 19
    assert table["learned"].to_list()[:1] == ["1"]
    assert not (table["learned"] == table["asked"]).any()
    assert measured.own.tolist() == [measured.change[0, 1], measured.change[1, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": 0.0}, "a gain above 0"),
        ({"sources": 0}, "one source at least"),
        ({"targets": 1}, "two facts to ask"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MnemoscopeError, match=message):
        interference(tiny_model(), MANY, **settings)  # type: ignore[arg-type]


def test_half_precision_fused_experts_and_other_facts_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="dtype='float32'"):
        interference(wrap(tiny("llama", dtype=torch.bfloat16)), MANY)
    down: Stepped = "down"
    with pytest.raises(UnsupportedSiteError, match="experts fused"):
        interference(tiny_model("mixtral"), MANY, stepped=down)
    with pytest.raises(MnemoscopeError, match="of the same prompts"):
        explain_interference(made_up(3), {"x": np.ones((2, 20, 20))})
