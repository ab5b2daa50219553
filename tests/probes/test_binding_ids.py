"""Binding IDs: a model that binds by index shows what they predict, a null model nothing.

Held contexts with changed tokens are compared with the naive way: the whole prompt run with every
context token set at every layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import ids, tiny
from mnemoscope.data.facts.binding_contexts import Attribute, BindingContext
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.edits import Edit, StreamId
from mnemoscope.models.errors import MnemoscopeError, UnsupportedModelError
from mnemoscope.models.types import Site
from mnemoscope.organisms.planted_binding import PlantedBinding, planted_binding
from mnemoscope.probes.binding_ids import (
    factorizability,
    mean_differences,
    mean_swaps,
    position_shifts,
)
from mnemoscope.probes.binding_probe import probe_binding_ids
from mnemoscope.probes.binding_prompts import (
    BindingPrompts,
    SlotColumns,
    binding_prompts,
    prompts_of,
    source_and_target,
    usable_words,
)
from mnemoscope.probes.binding_readings import BindingReadings, Measure
from mnemoscope.probes.binding_states import Change, changed, hold, read_behind
from mnemoscope.results.run import Run
from mnemoscope.results.run_folder import open_run
from torch import Tensor

CONTEXTS = 40


class Setting:
    def __init__(self, planted: PlantedBinding) -> None:
        self.task = planted.task
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted")
        self.target, self.source = source_and_target(self.model, self.task, CONTEXTS)


@pytest.fixture(scope="module")
def binder() -> Setting:
    return Setting(planted_binding())


@pytest.fixture(scope="module")
def null() -> Setting:
    return Setting(planted_binding(binds=False))


# -- contexts held as data ------------------------------------------------------------------------


def naive_logits(
    model: HookedModel,
    context: Tensor,
    question: Tensor,
    states: Tensor,
    positions: list[int],
) -> Tensor:
    """END logits of the whole prompt with every context token set at every layer."""
    n, length = context.shape
    units = tuple(StreamId(layer, Site.RESID_PRE) for layer in range(model.anatomy.n_layers))
    whole = torch.cat([context, question], 1)
    value = torch.zeros(n, whole.shape[1], len(units), model.anatomy.d_model, dtype=states.dtype)
    value[:, :length] = states.permute(1, 2, 0, 3)
    stand = torch.tensor([[*positions, *range(length, whole.shape[1])]]).expand(n, -1)
    edit = Edit("set", units, value, tuple(range(length)), "prefill")
    with model.intervene([edit]), torch.no_grad():
        return model.module(
            input_ids=whole, attention_mask=torch.ones_like(whole), position_ids=stand
        ).logits[:, -1]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "opt", "llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("moved", [False, True])
def test_changed_contexts_read_as_a_whole_run_with_all_states_set(family: str, moved: bool) -> None:
    if moved and family in ("gpt2", "opt"):
        pytest.skip("positions are in the embeddings")
    model = wrap(tiny(family), name=family)
    context, question, other = ids(3, 8), ids(3, 4, seed=2), ids(3, 8, seed=3)
    held, source = (hold(model, x, range(8)) for x in (context, other))
    columns, stand = (2, 3, 6), (4, 5, 3) if moved else (2, 3, 6)
    change = Change(columns, source.at(columns), stand if moved else None)
    found = read_behind(model, changed(model, held, change), question[:, None])[:, 0]
    states, positions = held.states.clone(), list(range(8))
    states[:, :, list(columns)] = source.at(columns)
    for column, position in zip(columns, stand, strict=True):
        positions[column] = position
    expected = naive_logits(model, context, question, states, positions)
    precision = 1e-5 if family == "gptj" else 1e-10  # GPT-J scores attention in float32
    torch.testing.assert_close(found, expected, atol=precision, rtol=0)


def test_holding_leaves_the_answer_and_the_first_holding_as_they_are() -> None:
    model = wrap(tiny("llama"), name="llama")
    context, question = ids(3, 8), ids(3, 4, seed=2)
    plain = model.logits(model.batch(torch.cat([context, question], 1).tolist()), at="end")[:, 0]
    held = hold(model, context, (2, 3))
    torch.testing.assert_close(
        read_behind(model, held, question[:, None])[:, 0], plain, atol=1e-10, rtol=0
    )
    changed(model, held, Change((2, 3), torch.zeros_like(held.states)))
    torch.testing.assert_close(
        read_behind(model, held, question[:, None])[:, 0], plain, atol=1e-10, rtol=0
    )


def test_a_context_longer_than_a_sliding_window_is_refused() -> None:
    model = wrap(tiny("mistral"), name="mistral")  # its window is 6 tokens
    with pytest.raises(UnsupportedModelError, match="shorter than its sliding window"):
        hold(model, ids(2, 12), (1,))


# -- prompts --------------------------------------------------------------------------------------


def test_columns_hold_the_names_and_the_attributes(binder: Setting) -> None:
    prompts = binder.target
    words = binder.model.pieces(prompts.ids[0].tolist())
    context = prompts.contexts[0]
    for slot in range(2):
        (entity,), (attribute,) = (
            prompts.columns.entities[slot],
            prompts.columns.attributes[slot],
        )
        assert words[entity] == context.entities[slot]
        assert words[attribute] == context.attributes[slot].text
        asked = binder.model.pieces(prompts.questions[0, slot].tolist())
        assert asked[-1] == context.entities[slot]
        assert binder.model.pieces([int(prompts.answers[0, slot])]) == [words[attribute]]


def test_words_of_another_width_and_shared_first_tokens_are_counted(binder: Setting) -> None:
    task = replace(
        binder.task,
        entities=(*binder.task.entities, "alice bob"),
        attributes=(
            *binder.task.attributes,
            Attribute("red red", "red"),
            Attribute("carol", "amber"),
        ),
    )
    words = usable_words(binder.model, task)
    assert words.entities == binder.task.entities
    assert words.attributes == binder.task.attributes
    assert words.dropped == {
        "entity of another width": 1,
        "attribute of another width": 1,
        "answer's first token shared": 1,
    }


def test_contexts_of_unequal_width_are_refused(binder: Setting) -> None:
    wide = BindingContext(("alice bob", "carol"), binder.target.contexts[0].attributes)
    with pytest.raises(MnemoscopeError, match="not equally wide"):
        prompts_of(binder.model, binder.task, [binder.target.contexts[0], wide])


def test_more_slots_than_words_are_refused(binder: Setting) -> None:
    with pytest.raises(MnemoscopeError, match="30 slots cannot be filled"):
        binding_prompts(binder.model, binder.task, 4, slots=30)


def test_source_and_target_share_no_word(binder: Setting) -> None:
    for one, other in zip(binder.target.contexts, binder.source.contexts, strict=True):
        assert not {*one.entities, *one.attributes} & {*other.entities, *other.attributes}


# -- factorizability ------------------------------------------------------------------------------


def mean_accuracy(
    found: BindingReadings, condition: int, measure: Measure, *, calibrated: bool = False
) -> float:
    accuracy = found.accuracy(condition, measure, calibrated=calibrated)
    assert accuracy is not None
    return float(accuracy.mean)


def test_a_binder_answers_the_other_name_with_the_slots_attribute(binder: Setting) -> None:
    found = factorizability(binder.model, binder.target, binder.source)
    behaviour = found.behaviour()
    assert behaviour.mean == 1
    for i in range(1, len(found.conditions)):
        assert mean_accuracy(found, i, "moved") == 1, found.conditions[i]
        assert mean_accuracy(found, i, "moved", calibrated=True) == 1, found.conditions[i]
        kept = found.accuracy(i, "kept")
        assert kept is None or kept.mean == 1, found.conditions[i]


def test_the_replaced_name_becomes_unknown(binder: Setting) -> None:
    found = factorizability(binder.model, binder.target, binder.source)
    table = found.changes()
    row = {(r["condition"], r["query"], r["answer"]): r for r in table.to_dicts()}
    assert row["entity 0", "e0", "a0"]["change"] < -2
    assert row["entity 0", "e'0", "a0"]["change"] > 2
    assert row["entity 0", "e'0", "a0"]["predicted"]
    assert row["attribute 1", "e1", "a'1"]["change"] > 2
    assert abs(row["entity 0", "e1", "a1"]["change"]) < 0.1


def test_the_prediction_of_each_patch(binder: Setting) -> None:
    found = factorizability(
        binder.model, binder.target.part(range(4)), binder.source.part(range(4))
    )
    predicted = dict(zip(found.conditions, found.predicted.tolist(), strict=True))
    assert predicted["clean"] == [0, 1, -1, -1]
    assert predicted["entity 0"] == [-1, 1, 0, -1]
    assert predicted["every entity"] == [-1, -1, 0, 1]
    assert predicted["attribute 1"] == [0, 3, -1, -1]
    assert predicted["every attribute"] == [2, 3, -1, -1]


def test_a_null_model_shows_nothing(null: Setting) -> None:
    found = factorizability(null.model, null.target, null.source)
    assert abs(float(found.behaviour().mean) - 0.25) < 0.15
    for i in range(1, len(found.conditions)):
        assert mean_accuracy(found, i, "moved") < 0.45, found.conditions[i]
    changes = found.changes()["change"].to_numpy()
    assert np.abs(changes).max() < 0.5


def test_contexts_that_share_words_cannot_be_patched(binder: Setting) -> None:
    with pytest.raises(MnemoscopeError, match="source_and_target"):
        factorizability(binder.model, binder.target, binder.target)


def test_an_interrupted_run_gives_the_same(binder: Setting, tmp_path: Path) -> None:
    whole = factorizability(binder.model, binder.target, binder.source, rows=16)

    def tell(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def runs() -> Run:
        return open_run(tmp_path, "binding", {"seed": 0})

    with pytest.raises(KeyboardInterrupt), runs() as run:
        factorizability(binder.model, binder.target, binder.source, rows=16, run=run, progress=tell)
    with runs() as run:
        assert len(run.done) == 1
        again = factorizability(binder.model, binder.target, binder.source, rows=16, run=run)
    np.testing.assert_array_equal(again.log_prob, whole.log_prob)


# -- mean interventions ---------------------------------------------------------------------------


def swapped(setting: Setting) -> BindingReadings:
    other = binding_prompts(setting.model, setting.task, 120, seed=9)
    return mean_swaps(setting.model, setting.target, mean_differences(setting.model, other))


def test_one_sided_differences_swap_and_both_restore(binder: Setting) -> None:
    found = swapped(binder)
    told = {c: mean_accuracy(found, i, "as told") for i, c in enumerate(found.conditions)}
    assert told["clean"] == told["both"] == 1
    assert told["entities"] == told["attributes"] == 0
    assert min(told[f"random {part}"] for part in ("entities", "attributes", "both")) > 0.9
    gaps = found.gap_table()
    by_name = dict(zip(gaps["condition"], gaps["gap"], strict=True))
    assert by_name["entities"] < -5 < 5 < by_name["both"]


def test_a_null_model_is_not_swapped(null: Setting) -> None:
    found = swapped(null)
    assert np.abs(found.gap_table()["gap"].to_numpy()).max() < 0.2


def test_differences_are_those_of_the_plain_mean_states(binder: Setting) -> None:
    found = mean_differences(binder.model, binder.target, rows=7)
    columns = binder.target.columns
    batch = binder.model.batch(binder.target.ids.tolist())
    states = binder.model.capture(batch, [Site.RESID_PRE]).stack(Site.RESID_PRE).double()
    (first,), (second,) = columns.attributes
    expected = states[:, :, second].mean(1) - states[:, :, first].mean(1)
    torch.testing.assert_close(found.attributes[:, 0], expected, atol=1e-5, rtol=0)
    assert found.n == CONTEXTS


# -- positions ------------------------------------------------------------------------------------


def random_prompts(model: HookedModel, task_like: BindingPrompts) -> BindingPrompts:
    """Random tokens in the layout of two slots, for a model without a tokenizer."""
    return replace(
        task_like,
        columns=SlotColumns(((1,), (5,)), ((3,), (7,)), 8),
        ids=ids(CONTEXTS, 8),
        questions=ids(CONTEXTS * 2, 3, seed=4).reshape(CONTEXTS, 2, 3),
        answers=torch.tensor([[5, 6]]).expand(CONTEXTS, -1),
    )


def test_a_full_shift_exchanges_the_positions_of_the_two_words(binder: Setting) -> None:
    model = wrap(tiny("llama"), name="llama")
    prompts = random_prompts(model, binder.target)
    found = position_shifts(model, prompts, "entities", shifts=(0, 4))
    assert found.conditions == ("clean", "shift 4")
    states = hold(model, prompts.ids, range(8)).states
    stand = [0, 5, 2, 3, 4, 1, 6, 7]
    for query in range(2):
        logits = naive_logits(model, prompts.ids, prompts.questions[:, query], states, stand)
        expected = logits.log_softmax(-1)[:, [5, 6]]
        np.testing.assert_allclose(found.log_prob[1, :, query], expected.numpy(), atol=1e-9)


def test_positions_in_the_embeddings_cannot_be_shifted(binder: Setting) -> None:
    with pytest.raises(UnsupportedModelError, match="rotary models only"):
        position_shifts(binder.model, binder.target, "entities")


# -- readings -------------------------------------------------------------------------------------


def test_calibration_takes_a_liking_for_one_slot_away() -> None:
    rng = np.random.default_rng(0)
    log_prob = rng.normal(0, 0.1, (1, 50, 2, 2))
    log_prob[0, :, 0, 0] += 1  # each query prefers its own answer by one nat ...
    log_prob[0, :, 1, 1] += 1
    log_prob[..., 1] += 3  # ... and everything prefers the last slot by three
    told = np.array([0, 1])
    found = BindingReadings(("clean",), ("e0", "e1"), ("a0", "a1"), log_prob, told[None], told)
    assert found.behaviour().mean == 0.5
    assert found.behaviour(calibrated=True).mean > 0.9
    assert abs(found.gaps().mean() - 1) < 0.1


def test_the_whole_probe_says_what_it_asked_and_why_it_refused(binder: Setting) -> None:
    found = probe_binding_ids(binder.model, binder.task, contexts=20)
    assert found.behaviour().mean == 1
    assert found.shifts == {}
    assert "rotary models only" in found.shifts_refused
    assert set(found.table()["intervention"]) == {"patches", "mean swaps"}
    assert "20 contexts" in found.provenance.estimand
