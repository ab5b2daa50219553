"""RM, RC, RO and MR: on the planted model, pruning a circuit does what its removal must."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.conflicts import Outcome
from mnemoscope.models import zero
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.elicitation import conflict_items, greedy_texts, known_items
from mnemoscope.probes.head_selection import (
    head_edits,
    mean_outputs,
    ranked,
    select_size,
    size_grid,
)
from mnemoscope.probes.knowledge_conflict import (
    Answer,
    answer_items,
    balanced,
    compare,
    rates_table,
    restrict,
    usage,
)


def rates(setting: Any, edits: Any = ()) -> tuple[float, float, float]:
    used = usage(
        answer_items(setting.model, setting.items, ["substitution"], edits), "substitution"
    )
    return used.rm.value, used.rc.value, used.ro.value


def test_the_planted_conflict_is_balanced_and_closed_book_is_right(planted: Any) -> None:
    assert rates(planted) == (0.5, 0.5, 0.0)
    answers = answer_items(planted.model, planted.items, ["closed", "agree"])
    assert usage(answers, "closed").rm.value == 1
    assert usage(answers, "agree").rm.value == 1


def test_pruning_context_heads_gives_memory_and_the_other_way_round(planted: Any) -> None:
    assert rates(planted, [zero(planted.planted.context_heads)]) == (1.0, 0.0, 0.0)
    assert rates(planted, [zero(planted.planted.memory_heads)]) == (0.0, 1.0, 0.0)


def test_pruning_no_heads_reproduces_the_base_bit_for_bit(planted: Any) -> None:
    plain = answer_items(planted.model, planted.items, ["substitution"])
    assert answer_items(planted.model, planted.items, ["substitution"], head_edits(())) == plain


def test_random_heads_stay_within_the_interval_of_the_base(planted: Any) -> None:
    """Section 1.8: 20 draws of noise heads move nothing."""
    base = usage(answer_items(planted.model, planted.items, ["substitution"]), "substitution")
    noise = [h for h in planted.planted.noise_heads if h.layer == 1]
    for head in noise:
        rm, _, _ = rates(planted, [zero([head])])
        assert base.rm.low <= rm <= base.rm.high


def test_rates_sum_to_one_and_mr_ignores_other_answers() -> None:
    kinds = ["memory"] * 3 + ["context"] + ["other"] * 4
    answers = [
        Answer(str(i), str(i), "qa", "", Outcome(kind, False)) for i, kind in enumerate(kinds)
    ]
    used = usage(answers, "qa")
    assert (used.rm.value, used.rc.value, used.ro.value) == (3 / 8, 1 / 8, 4 / 8)
    assert used.mr == 3 / 4
    assert used.rm.low <= used.rm.value <= used.rm.high
    assert math.isnan(usage(answers[4:], "qa").mr)


def test_the_balanced_set_has_as_many_of_either_kind(planted: Any) -> None:
    answers = answer_items(planted.model, planted.items[:20], ["substitution"])
    chosen = restrict(answers, balanced(answers, "substitution"))
    kinds = [a.outcome.kind for a in chosen]
    n = min(sum(a.outcome.kind == k for a in answers) for k in ("memory", "context"))
    assert kinds.count("memory") == kinds.count("context") == n
    only_memory = [a for a in answers if a.outcome.kind == "memory"]
    with pytest.raises(MnemoscopeError, match="no balanced set"):
        balanced(only_memory, "substitution")


def test_a_paired_comparison_sees_what_changed(planted: Any) -> None:
    before = answer_items(planted.model, planted.items, ["substitution"])
    edits = [zero(planted.planted.context_heads)]
    after = answer_items(planted.model, planted.items, ["substitution"], edits)
    change = compare(before, after, "substitution", "memory")
    assert change.change.value == 0.5
    assert change.change.low > 0
    assert change.mcnemar_p < 0.01
    same = compare(before, before, "substitution", "memory")
    assert (same.change.value, same.mcnemar_p) == (0.0, 1.0)
    with pytest.raises(MnemoscopeError, match="not to the same items"):
        compare(before, after[:3], "substitution", "memory")


def test_rates_table_has_a_row_a_label_condition_and_answer(planted: Any) -> None:
    answers = answer_items(planted.model, planted.items[:4], ["closed", "substitution"])
    table = rates_table({"before": answers, "again": answers})
    assert table.shape == (2 * 2 * 3, 8)
    assert (table["low"] <= table["rate"]).all()


def test_elicitation_keeps_what_the_model_knows(planted: Any, null: Any) -> None:
    known = known_items(planted.model, planted.items)
    assert len(known.items) == len(planted.items)
    said = greedy_texts(null.model, [item.prompt_closed for item in null.items])
    unknown = [i for i, text in zip(null.items, said, strict=True) if i.mem_answer not in text]
    with pytest.raises(MnemoscopeError, match="knows none"):
        known_items(null.model, unknown)


def test_conflict_items_drop_demonstrated_subjects(planted: Any) -> None:
    known = conflict_items(
        planted.model, planted.relation, planted.relation.facts[4:], demonstrations=2
    )
    shown = {fact.subject for fact in planted.relation.facts[:4]}
    assert known.items
    assert not {item.subject for item in known.items} & shown


def test_greedy_texts_do_not_depend_on_the_batch(planted: Any) -> None:
    prompts = [i.prompt_closed for i in planted.items[:5]] + [planted.items[0].prompt_coh]
    assert greedy_texts(planted.model, prompts, rows=6) == greedy_texts(
        planted.model, prompts, rows=1
    )


def test_the_size_is_chosen_by_use_under_the_harm_limit(planted: Any) -> None:
    """The one context head helps; adding the memory head would harm closed-book answers."""
    (context,), (memory,) = planted.planted.context_heads, planted.planted.memory_heads
    passages = [item.prompt_agree for item in planted.items[:3]]
    found = select_size(
        planted.model,
        (context, memory),
        planted.items,
        passages,
        wanted="memory",
        sizes=(1, 2),
    )
    assert found.chosen == 1
    assert [e.k for e in found.effects] == [0, 1, 2]
    assert found.effects[1].target == 1.0
    assert not found.effects[2].harmless


def test_nothing_is_chosen_when_nothing_helps(planted: Any) -> None:
    noise = planted.planted.noise_heads[:1]
    passages = [planted.items[0].prompt_agree]
    found = select_size(planted.model, noise, planted.items, passages, wanted="memory", sizes=(1,))
    assert found.chosen == 0


def test_edit_modes(planted: Any) -> None:
    heads = planted.planted.context_heads
    means = mean_outputs(planted.model, [i.prompt_sub for i in planted.items], rows=5)
    whole = mean_outputs(planted.model, [i.prompt_sub for i in planted.items], rows=50)
    assert torch.allclose(means, whole)
    assert rates(planted, head_edits(heads, "scale", factor=0.0)) == rates(planted, [zero(heads)])
    assert rates(planted, head_edits(heads, "mean", means=means))[0] > 0.9
    with pytest.raises(MnemoscopeError, match="mean outputs"):
        head_edits(heads, "mean")


def test_ranking_and_size_grid(planted: Any) -> None:
    scores = np.array([[0.0, 3.0], [-1.0, 5.0]])
    assert [str(h) for h in ranked(scores)] == ["L1.H1", "L0.H1"]
    assert size_grid(planted.model, (1, 50, 100)) == [1, 8, 16]
