"""A needle trial with heads or edges changed, on engram: what is read, and what is random."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.app import needle_switched
from mnemoscope.app.needle_switched import (
    needle_control,
    needle_reading,
    needle_verdicts,
    placed,
    verdict_table,
)
from mnemoscope.app.needle_trial import Asked, NeedleTrial, run_trial, score_frame
from mnemoscope.app.switched_off import NOTHING, HeadChange, Means, Switched, edits_in
from mnemoscope.app.switched_readings import random_changes
from mnemoscope.interventions.head_ablation import run_answer
from mnemoscope.models.edits import zero
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import HeadId

ASKED = Asked(length=128, depth=2, kind="literal", topic="password", seed=1, rival=False)
NO_MEANS = Means()


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def found(engram: HookedModel) -> NeedleTrial:
    return run_trial(engram, ASKED)


@pytest.fixture(scope="module")
def readers(found: NeedleTrial) -> tuple[HeadId, ...]:
    """The heads that copied the answer most."""
    best = score_frame(found, "forced", "copied").sort("score", descending=True).head(6)
    return tuple(HeadId(row[0], row[1]) for row in best.iter_rows())


def test_unchanged_it_is_the_trial_itself(engram: HookedModel, found: NeedleTrial) -> None:
    one = needle_reading(engram, found.design, found.trial)
    assert (one.said, one.verdict) == (found.said, found.verdict)
    assert one.verdict == "needle"
    assert 0.5 < one.first <= 1
    assert one.log_p <= np.log(one.first) + 1e-6


def test_a_change_holds_from_the_haystack_to_the_answer(
    engram: HookedModel, found: NeedleTrial, readers: tuple[HeadId, ...]
) -> None:
    trial, ids = found.trial, found.design.haystacks[found.trial.haystack].ids
    one = needle_reading(engram, found.design, trial, edits_in(Switched(readers), 0, NO_MEANS))
    wanted = run_answer(engram, ids, trial.question_ids, trial.answer_ids, [zero(readers)])
    assert one.log_p == pytest.approx(float(wanted.log_probs.sum()), abs=1e-4)
    assert one.first < needle_reading(engram, found.design, trial).first


def test_a_needle_that_nobody_may_see_is_not_found(engram: HookedModel, found: NeedleTrial) -> None:
    every = tuple(engram.anatomy.all_heads())
    hidden = HeadChange("edges off", hidden=tuple(range(*found.spans["needle"])))
    edits = edits_in(Switched(every, hidden), 0, NO_MEANS)
    blind = needle_reading(engram, found.design, found.trial, edits)
    assert blind.verdict != "needle"
    assert blind.first < 0.2


def test_random_heads_do_less_than_the_readers(
    engram: HookedModel, found: NeedleTrial, readers: tuple[HeadId, ...]
) -> None:
    changed = Switched(readers)
    drawn = random_changes(engram, changed, norms=None, tokens=0, neutral=None, draws=4)
    control = needle_control(engram, found, drawn, NO_MEANS)
    after = needle_reading(engram, found.design, found.trial, edits_in(changed, 0, NO_MEANS))
    assert len(control.log_p) == len(control.first) == 4
    assert after.log_p < min(control.log_p)
    assert control.chance_outside == pytest.approx(2 / (control.different + 1))


def test_rates_of_edges_hide_each_needle_s_own_tokens(
    engram: HookedModel, found: NeedleTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All heads lose sight of the needle: it is found nowhere; of as many other tokens: it is."""
    monkeypatch.setattr(needle_switched, "DEPTHS", 3)
    monkeypatch.setattr(needle_switched, "SEEDS", 1)
    anatomy = engram.anatomy
    heads = tuple(
        HeadId(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)
    )
    here = tuple(range(*found.spans["needle"]))
    switched = Switched(heads, HeadChange("edges off", 0.0, here, span="needle"))
    before, after, beside = needle_verdicts(engram, ASKED, switched, (switched,), NO_MEANS)
    assert before.count("needle") == 3
    assert after.count("needle") == 0
    assert beside != after


def test_placed_changes_hide_as_many_tokens_of_another_text() -> None:
    spans = {"needle": (5, 8), "question": (40, 44)}
    switched = Switched((HeadId(0, 0),), HeadChange("edges scale", 0.5, (1, 2), span="needle"))
    first, *others = placed((switched, switched, switched), spans, 0)
    assert first.change.hidden == (5, 6, 7)
    assert all(len(one.change.hidden) == 3 for one in others)
    assert not {5, 6, 7} & {key for one in others for key in one.change.hidden}
    assert placed((NOTHING, NOTHING), spans, 0) == (NOTHING, NOTHING)


def test_rates_count_the_same_needles(engram: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needle_switched, "DEPTHS", 2)
    monkeypatch.setattr(needle_switched, "SEEDS", 1)
    heard: list[float] = []
    before, again = needle_verdicts(
        engram, ASKED, NOTHING, (), NO_MEANS, lambda share, _: heard.append(share)
    )
    assert len(before) == len(heard) == 2
    assert before == again
    after = ("other",) * 8 + ("needle",) * 2
    table = verdict_table(("needle",) * 10, after, [("needle",) * 10, ("rival",) * 10])
    assert table["unchanged"].to_list() == [1, 0, 0]
    assert table["changed"].to_list() == [0.2, 0, 0.8]
    assert table["random, low"].to_list() == [0, 0, 0]
    assert table["random, high"].to_list() == [1, 1, 0]
    bare = verdict_table(before, before, [])
    assert bare["random, low"].null_count() == 3
