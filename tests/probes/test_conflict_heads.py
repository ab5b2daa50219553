"""The planted heads come first with the right sign, and a null model yields none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mnemoscope.interventions.path_patching import build_chain, end_states
from mnemoscope.models import HeadId, wrap, zero
from mnemoscope.models.edits import resample
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms import planted_model
from mnemoscope.probes import conflict_heads
from mnemoscope.probes.conflict_heads import head_set, measure_effects, summarise, table
from mnemoscope.results.run_folder import open_run

EXACT = 1e-8


def top(scores: np.ndarray, k: int) -> set[HeadId]:
    order = np.argsort(-scores, axis=None)[:k]
    return {HeadId(int(i), int(h)) for i, h in (np.unravel_index(j, scores.shape) for j in order)}


def test_the_right_heads_come_first_with_the_right_sign(planted: Any) -> None:
    heads = summarise(measure_effects(planted.chain, planted.items), estimand="direct")
    assert top(heads.scores("memory"), 1) == set(planted.planted.memory_heads)
    assert top(heads.scores("context"), 1) == set(planted.planted.context_heads)
    (memory,), (context,) = planted.planted.memory_heads, planted.planted.context_heads
    assert heads.memory.low[memory.layer, memory.head] > 1
    assert heads.context.low[context.layer, context.head] > 1
    assert heads.memory_q[memory.layer, memory.head] < 0.05


def test_noise_heads_do_nothing_that_matters(planted: Any) -> None:
    heads = summarise(measure_effects(planted.chain, planted.items), estimand="direct")
    noise = [(h.layer, h.head) for h in planted.planted.noise_heads]
    planted_effect = heads.memory.mean.max()
    assert max(abs(heads.memory.mean[at]) for at in noise) < 0.02 * planted_effect


def test_a_null_model_yields_no_heads(null: Any) -> None:
    """No score comes near a planted one (about 10 logits)."""
    heads = summarise(measure_effects(null.chain, null.items), estimand="direct")
    assert np.abs(heads.memory.mean).max() < 0.2
    assert np.abs(heads.context.mean).max() < 0.2


def test_one_head_with_both_roles_shows_both_components(superposed: Any) -> None:
    heads = summarise(measure_effects(superposed.chain, superposed.items), estimand="direct")
    (both,) = superposed.planted.memory_heads
    assert both in superposed.planted.context_heads
    assert heads.memory.mean[both.layer, both.head] > 1
    assert heads.context.mean[both.layer, both.head] > 1


def test_superposed_heads_are_flagged(superposed: Any, planted: Any) -> None:
    (both,) = superposed.planted.memory_heads
    for setting, expected in ((superposed, True), (planted, False)):
        heads = summarise(measure_effects(setting.chain, setting.items), estimand="direct")
        flagged = conflict_heads.superposed(heads)
        assert flagged[both.layer, both.head] == expected


def test_swapping_the_answers_flips_every_sign_and_nothing_else(planted: Any) -> None:
    swapped = [
        replace(item, mem_answer=item.ctx_answer, ctx_answer=item.mem_answer)
        for item in planted.items
    ]
    one = measure_effects(planted.chain, planted.items)
    other = measure_effects(planted.chain, swapped)
    assert np.allclose(one.memory, -other.memory, atol=EXACT)
    assert np.allclose(one.context, -other.context, atol=EXACT)


def test_the_previous_token_head_has_no_direct_effect_but_a_total_one(planted: Any) -> None:
    """Section 1.8: its work is done at other positions, so END-only patching misses it."""
    heads = summarise(measure_effects(planted.chain, planted.items), estimand="direct")
    head = planted.planted.previous_token_heads[0]
    assert abs(heads.context.mean[head.layer, head.head]) < 0.05
    item = planted.items[0]
    batch = planted.model.tokens(item.prompt_sub)
    pair = (item.mem_answer, item.ctx_answer)
    ids = [planted.model.answer_ids(item.prompt_sub, answer)[0] for answer in pair]
    before = planted.model.logits(batch, "end")[0, 0, ids]
    with planted.model.intervene([zero([head])]):
        after = planted.model.logits(batch, "end")[0, 0, ids]
    assert float((before[1] - before[0]) - (after[1] - after[0])) > 3


def test_total_end_equals_patching_each_head_by_an_edit(planted: Any) -> None:
    items = planted.items[:3]
    effects = measure_effects(planted.chain, items, estimand="total_end")
    (head,) = planted.planted.memory_heads
    for row, item in enumerate(items):
        batch = planted.model.tokens(item.prompt_sub)
        s = end_states(planted.model, planted.model.tokens(item.prompt_cf_subject)).z
        ids = [
            planted.model.answer_ids(item.prompt_sub, a)[0]
            for a in (item.mem_answer, item.ctx_answer)
        ]
        value = s[head.layer, :, head.head : head.head + 1]
        with planted.model.intervene([resample([head], value, "end", "prefill")]):
            after = planted.model.logits(batch, "end")[0, 0, ids]
        before = planted.model.logits(batch, "end")[0, 0, ids]
        want = (after - before).numpy()
        assert np.allclose(effects.change[0, row, head.layer, head.head], want, atol=1e-6)


def test_whole_answers_of_one_token_equal_first_token_log_probabilities(planted: Any) -> None:
    """On one-token answers the teacher-forced score is the log-probability of the first token."""
    items = planted.items[:4]
    whole = measure_effects(planted.chain, items, answers="whole")
    for row, item in enumerate(items):
        batch = planted.model.tokens(item.prompt_sub)
        log_probs = planted.model.logits(batch, "end")[0, 0].log_softmax(-1)
        for which, answer in enumerate((item.mem_answer, item.ctx_answer)):
            (token,) = planted.model.answer_ids(item.prompt_sub, answer)
            assert whole.clean[row, which] == pytest.approx(float(log_probs[token]), abs=1e-6)
    first = measure_effects(planted.chain, items)
    # The normaliser cancels in the difference of the two answers.
    assert np.allclose(whole.memory, first.memory, atol=1e-5)


def test_resumed_equals_uninterrupted(planted: Any, tmp_path: Path) -> None:
    """A run that dies in the middle of its units ends with the same arrays."""
    straight = measure_effects(planted.chain, planted.items)
    config = {"test": 1}

    def stop_after_one(done: int, total: int) -> None:
        if done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "effects", config) as run:
        measure_effects(planted.chain, planted.items, run=run, progress=stop_after_one)
    with open_run(tmp_path, "effects", config) as run:
        assert len(run.done) == 1
        resumed = measure_effects(planted.chain, planted.items, run=run)
        assert len(run.done) == 3
    assert np.array_equal(straight.change, resumed.change)
    assert np.array_equal(straight.clean, resumed.clean)


def test_order_and_batch_of_items_do_not_matter(planted: Any) -> None:
    effects = measure_effects(planted.chain, planted.items)
    backwards = measure_effects(planted.chain, planted.items[::-1])
    assert np.allclose(effects.change, backwards.change[:, ::-1], atol=EXACT)


def test_head_set_holds_the_best_heads_and_where_they_came_from(planted: Any) -> None:
    heads = summarise(measure_effects(planted.chain, planted.items), estimand="direct")
    found = head_set(heads, planted.model, "context", k=1, run_id="run-1", max_q=0.05)
    assert found.ids == planted.planted.context_heads
    assert (found.run_id, found.heads[0].role) == ("run-1", "context")
    with pytest.raises(MnemoscopeError, match="no memory heads found"):
        head_set(heads, planted.model, "memory", k=1, max_q=-1)


def test_table_has_one_row_a_head(planted: Any) -> None:
    heads = summarise(measure_effects(planted.chain, planted.items), estimand="direct")
    rows = table(heads, planted.model)
    assert len(rows) == 16
    best = rows.sort("memory", descending=True).row(0, named=True)
    assert HeadId(best["layer"], best["head"]) in planted.planted.memory_heads


def test_bad_input_is_refused(planted: Any) -> None:
    with pytest.raises(MnemoscopeError, match="no conflict items"):
        measure_effects(planted.chain, [])
    with pytest.raises(MnemoscopeError, match="direct effect only"):
        measure_effects(planted.chain, planted.items, answers="whole", estimand="total_end")
    same = [replace(planted.items[0], ctx_answer=planted.items[0].mem_answer)]
    with pytest.raises(MnemoscopeError, match="same token"):
        measure_effects(planted.chain, same)
    one = measure_effects(planted.chain, planted.items[:1])
    with pytest.raises(MnemoscopeError, match="one subject"):
        summarise(one, estimand="direct")


def test_float32_gives_the_same_ranking(planted: Any) -> None:
    """The scores do not hang on double precision."""
    small = planted_model(dtype=torch.float32)
    model = wrap(small.module, small.tokenizer)
    heads = summarise(measure_effects(build_chain(model), planted.items), estimand="direct")
    assert top(heads.scores("memory"), 1) == set(small.memory_heads)
