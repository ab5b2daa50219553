"""Scores of trials: who is counted, what is kept apart, what does not apply."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mnemoscope.data.facts.needles import NeedleDesign
from mnemoscope.models import load_model
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.probes.answer_steps import no_steps
from mnemoscope.probes.retrieval_designs import design_for
from mnemoscope.probes.retrieval_heads import SCORES, recalled, score_trials
from mnemoscope.probes.retrieval_readings import AnswerReadings, QuestionReadings, joined
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials
from mnemoscope.probes.single_needles import alone_in_haystacks, single_needle_agreement
from mnemoscope.results.retrieval_head_files import (
    load_retrieval_head_scores,
    save_retrieval_head_scores,
)

N = 6
QUESTION_SCORES = {"locate", "locate_mass", "locate_lead", "locate_rival"}


@cache
def engram() -> HookedModel:
    return load_model("engram")


@cache
def design() -> NeedleDesign:
    return design_for(engram(), lengths=(192,), needles=N, seed=1)


@cache
def measured() -> RetrievalTrials:
    return measure_trials(engram(), design())


def readings(kind: Any, start: float) -> Any:
    """Readings of 2 x 3 heads, every number different: field and trial can be told from it."""
    shape, values = (N, 2, 3), {}
    for i, f in enumerate(fields(kind)):
        cells = start + 100 * i + np.arange(N * 6, dtype=np.float32).reshape(shape)
        values[f.name] = cells[:, 0, 0] if f.name in ("own_choice", "steps") else cells
    return kind(**values)


def made(**changes: Any) -> RetrievalTrials:
    """Trials 0, 1 and 4 are accepted, of which 4 is known without its haystack."""
    trials = RetrievalTrials(
        design=design(),
        accepted=np.array([1, 1, 0, 0, 1, 0], bool),
        known=np.array([0, 0, 0, 1, 1, 0], bool),
        continuations=("",) * N,
        verdicts=("other",) * N,
        forced_logprob=np.zeros(N, np.float32),
        control_logprob=np.zeros(N, np.float32),
        forced=readings(AnswerReadings, 0),
        free=readings(AnswerReadings, 5000),
        question=readings(QuestionReadings, 10000),
        forced_steps=joined([no_steps(2, 3)] * N),
        free_steps=joined([no_steps(2, 3)] * N),
    )
    return replace(trials, **changes)


# -- who is counted -------------------------------------------------------------------------------


def test_accepted_and_rejected_trials_are_apart_and_known_ones_left_out() -> None:
    trials = made()
    for among, kept in (("accepted", [0, 1]), ("rejected", [2, 5]), ("all", [0, 1, 2, 5])):
        scores = score_trials(trials, among=among)
        assert scores.trials.tolist() == kept
        assert scores.needles == tuple(design().trials[i].needle_id for i in kept)
        assert scores.depths.tolist() == [design().trials[i].depth for i in kept]
        assert scores.lengths.tolist() == [192] * len(kept)
        assert np.array_equal(scores.values["copy"], trials.free.hits_set[kept])
        assert scores.counts == {"asked": 6, "accepted": 3, "known": 2, "kept": len(kept)}


def test_forced_and_free_rows_are_never_mixed() -> None:
    trials = made()
    forced, free = (score_trials(trials, mode=mode) for mode in ("forced", "free"))
    for score in set(SCORES) - QUESTION_SCORES:
        assert (forced.values[score] < 5000).all()
        assert ((free.values[score] >= 5000) & (free.values[score] < 10000)).all()
    for score in QUESTION_SCORES:  # question rows have no mode
        assert np.array_equal(forced.values[score], free.values[score])
        assert (free.values[score] >= 10000).all()


def test_every_score_is_the_reading_it_names() -> None:
    trials = made()
    scores = score_trials(trials, mode="forced")
    assert set(scores.values) == set(SCORES)
    for score, cells in {
        "event": trials.forced.hits_event,
        "first": trials.forced.first_hit,
        "continuation": trials.forced.later_hits,
        "emit": trials.forced.needle_mass,
        "locate": trials.question.contrast,
        "sink": trials.forced.sink_mass,
    }.items():
        assert np.array_equal(scores.values[score], cells[:2]), score


def test_no_accepted_trial_is_an_error_with_the_counts() -> None:
    none = made(accepted=np.zeros(N, bool))
    with pytest.raises(MnemoscopeError, match=r"6 were asked, 0 answered .* and 2 without it"):
        score_trials(none)
    assert score_trials(none, among="rejected").counts["kept"] == 4
    with pytest.raises(MnemoscopeError, match=r"6 were asked, 3 answered .* and 6 without it"):
        score_trials(made(known=np.ones(N, bool)), among="all")


def test_the_recall_gate_counts_words_of_the_answer() -> None:
    answers = [design().needle(trial.needle_id).answer for trial in design().trials]
    assert all(len(answer.split()) == 2 for answer in answers)
    first, second = (list(words) for words in zip(*map(str.split, answers), strict=True))
    said = (
        f"It is the {answers[0].upper()}!",  # both words, folded
        first[1],  # one of two is no more than half
        f"{second[2]}, {first[2]}",  # in any order
        f"{first[3]} {first[3]}",  # the same one twice
        f"{answers[0]}, then {answers[4]}",  # anywhere, a rival before it or not
        "",
    )
    trials = made(continuations=said, known=np.zeros(N, bool))
    assert recalled(trials).tolist() == [True, False, True, False, True, False]
    assert score_trials(trials, gate="recall").trials.tolist() == [0, 2, 4]


# -- what does not apply --------------------------------------------------------------------------


def blinded(heads: Any, trials: Any = slice(None)) -> RetrievalTrials:
    """Trials in which some heads could not see the needle."""

    def hide(kind: Any) -> Any:
        values = {f.name: getattr(kind, f.name).copy() for f in fields(kind)}
        for name, cells in values.items():
            if name not in ("own_choice", "steps"):
                cells[(trials, *heads)] = np.nan
        return type(kind)(**values)

    whole = made()
    return replace(whole, free=hide(whole.free), question=hide(whole.question))


def test_a_head_that_cannot_see_has_no_score_and_no_zero() -> None:
    scores = score_trials(blinded((0, 1)))
    mean, active = scores.mean("copy"), scores.active("copy")
    assert np.isnan(mean[0, 1])
    assert np.isnan(active[0, 1])
    assert np.isnan(mean).sum() == np.isnan(active).sum() == 1
    assert any("1 of 6 heads never see a needle" in note for note in scores.notes)


def test_means_are_over_the_trials_that_apply() -> None:
    scores = score_trials(blinded((0, 1), trials=0))
    values = made().free.hits_set
    assert scores.mean("copy")[0, 1] == pytest.approx(values[1, 0, 1])
    assert scores.mean("copy")[1, 1] == pytest.approx(values[:2, 1, 1].mean())
    assert not any("never see" in note for note in scores.notes)


def test_a_model_that_sees_no_needle_at_all_is_an_error() -> None:
    with pytest.raises(MnemoscopeError, match="no head of this model can see a needle"):
        score_trials(blinded((slice(None), slice(None))))


def test_activation_is_the_share_of_trials_above_zero() -> None:
    free = made().free
    free.hits_set[0] = 0
    free.hits_set[1] = [[0, 0.5, 1], [0, 0, 0]]
    active = score_trials(made(free=free)).active()
    assert active.tolist() == [[0, 0.5, 0.5], [0, 0, 0]]


def test_scores_go_into_files_of_the_field_trial_by_trial(tmp_path: Path) -> None:
    scores = score_trials(blinded((0, 1), trials=0))
    per_head = scores.per_head("event")
    assert len(per_head) == 6
    assert len(per_head[HeadId(0, 1)]) == 1  # the trial that did not apply is absent
    save_retrieval_head_scores(tmp_path / "scores.json", per_head)
    assert load_retrieval_head_scores(tmp_path / "scores.json") == per_head


# -- engram ---------------------------------------------------------------------------------------


def test_engram_copies_with_few_heads_of_its_last_layers() -> None:
    scores = score_trials(measured())
    copy, first = scores.mean("copy"), scores.mean("first")
    assert np.nanmax(copy) > 0.7
    assert {int(layer) for layer in np.argwhere(copy > 0.7)[:, 0]} <= {3, 4, 5}
    assert np.median(copy) < 0.4
    assert ((copy >= 0) & (copy <= 1)).all()
    assert set(np.unique(first * scores.counts["kept"])) <= set(range(N + 1))
    # Question rows read the needle less than answer rows: the answer is fetched at the end.
    assert scores.mean("emit").max() > scores.mean("locate_mass").max()


def test_a_needle_alone_stands_where_it_stood_and_nothing_else_was_cut() -> None:
    alone = alone_in_haystacks(design(), (0, 4))
    for trial, old in zip(alone.trials, (design().trials[0], design().trials[4]), strict=True):
        haystack, before = alone.haystacks[trial.haystack], design().haystacks[old.haystack]
        assert (
            haystack.ids[slice(trial.needle.start, trial.needle.stop)]
            == (before.ids[old.needle.start : old.needle.stop])
        )
        assert haystack.ids[slice(trial.answer.start, trial.answer.stop)] == old.answer_ids
        cut = sum(s.stop - s.start for id_, s in before.needles if id_ != old.needle_id)
        assert haystack.length == trial.length == before.length - cut
        text = engram().text_tokenizer.decode(list(haystack.ids))
        rivals = design().rivals(old)
        assert len(rivals) == 2
        assert not any(rival.answer in text for rival in rivals)
        assert alone.rivals(trial) == ()


def test_heads_agree_between_single_and_several_needles() -> None:
    check = single_needle_agreement(engram(), measured(), share=0.5)
    assert check.trials == (0, 2, 5)
    assert check.accepted_alone >= check.accepted_together
    assert check.agreement["needle_mass"] > 0.7
    # With nobody to confuse it with, the heads read the needle more.
    assert check.shift["needle_mass"] > 0


def test_a_sample_of_nothing_is_refused() -> None:
    for share in (0, 1.5):
        with pytest.raises(MnemoscopeError, match="use a share above 0"):
            single_needle_agreement(engram(), measured(), share=share)
