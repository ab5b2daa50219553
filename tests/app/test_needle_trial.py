"""One trial on engram: what it keeps agrees with the library's own readings, head by head."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.app.background import StoppedError
from mnemoscope.app.needle_trial import (
    MOST_BYTES,
    SCORES,
    Asked,
    Mode,
    NeedleTrial,
    answer_weights,
    lengths_for,
    run_trial,
    score_frame,
    step_table,
    trial_design,
)
from mnemoscope.app.own_haystack import DEPTHS
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.pooled_maps import held_bytes
from mnemoscope.models.types import HeadId
from mnemoscope.probes.retrieval_trials import measure_trials

ASKED = Asked(length=256, depth=2, kind="literal", topic="password", seed=1, rival=True)
MODES: tuple[Mode, ...] = ("forced", "free")


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def found(engram: HookedModel) -> NeedleTrial:
    return run_trial(engram, ASKED)


def best(found: NeedleTrial, score: str = "copied") -> HeadId:
    row = score_frame(found, "forced", score).sort("score", descending=True).row(0)
    return HeadId(row[0], row[1])


def test_the_needle_stands_where_it_was_asked_for(engram: HookedModel, found: NeedleTrial) -> None:
    spans, ids = found.spans, found.forced.asked.ids
    assert found.trial.stratum == ASKED.depth
    assert len(found.design.haystacks[found.trial.haystack].ids) == ASKED.length
    for name, text in (("needle", found.needle.statement), ("answer", found.needle.answer)):
        start, stop = spans[name]
        assert engram.text_tokenizer.decode(list(ids[start:stop])).strip() == text
    assert spans["question"][0] == ASKED.length
    assert not set(range(*spans["rival"])) & set(range(*spans["needle"]))


def test_every_depth_and_no_rival(engram: HookedModel) -> None:
    depths = [
        trial_design(engram, Asked(256, depth, "literal", "charm", 3, False))[1].depth
        for depth in range(DEPTHS)
    ]
    assert depths == sorted(depths)
    design, trial = trial_design(engram, Asked(256, 0, "non-literal", None, 3, False))
    assert design.rivals(trial) == ()
    assert trial.kind == "non-literal"


def test_scores_are_those_of_the_library(engram: HookedModel, found: NeedleTrial) -> None:
    whole = measure_trials(engram, found.design)
    at = found.design.trials.index(found.trial)
    assert (found.verdict, found.said) == (whole.verdicts[at], whole.continuations[at])
    assert found.known == whole.known[at]
    for mode in MODES:
        readings = {"forced": whole.forced, "free": whole.free}[mode]
        for score, (name, _) in SCORES.items():
            expected = getattr(readings, name, whole.question.needle_mass)[at]
            shown = score_frame(found, mode, score)["score"].to_numpy().reshape(expected.shape)
            assert np.allclose(shown, expected, atol=1e-5, equal_nan=True), (mode, score)


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_kept_queries_and_keys_are_the_model_s_own(
    engram: HookedModel, found: NeedleTrial, mode: Mode
) -> None:
    asked, head = found.followed(mode).asked, best(found)
    rows = engram.rows(engram.batch([asked.ids]), "all", heads=[head])[0, 0, 0].numpy()
    first = ASKED.length + asked.answer_rows.start
    assert np.allclose(answer_weights(found, mode, head), rows[first:], atol=1e-5)
    assert len(rows) - first == len(asked.following)


def test_steps_say_what_was_read_and_copied(engram: HookedModel, found: NeedleTrial) -> None:
    head = best(found)
    steps, weights = (
        step_table(engram, found, "forced", head),
        answer_weights(found, "forced", head),
    )
    assert steps["position"].to_list() == weights.argmax(1).tolist()
    assert steps["weight"].to_numpy() == pytest.approx(weights.max(1), abs=1e-5)
    start, stop = found.spans["needle"]
    assert steps["needle"].to_numpy() == pytest.approx(weights[:, start:stop].sum(1), abs=1e-5)
    assert steps["copied"].all(), "the best head of this score copies every token"
    assert set(steps["where"]) == {"answer"}
    assert (steps["token"] == steps["read"]).all()
    first = step_table(engram, found, "forced", HeadId(0, 0))
    assert not first["copied"].any()


def test_a_model_that_ended_at_once_has_no_free_rows(found: NeedleTrial) -> None:
    from dataclasses import replace

    silent = replace(found, free=None)
    with pytest.raises(MnemoscopeError, match="choose forced"):
        silent.followed("free")
    assert silent.followed("forced") is found.forced


def test_offered_lengths_fit_the_context_and_what_a_page_keeps(engram: HookedModel) -> None:
    lengths = lengths_for(engram)
    assert lengths == tuple(sorted(lengths))
    assert max(lengths) + 128 <= 1024
    assert held_bytes(engram, max(lengths)) <= MOST_BYTES
    for length in lengths:
        trial_design(engram, Asked(length, 4, "literal", "present", 7, True))


def test_a_haystack_that_does_not_fit_is_refused_in_words(engram: HookedModel) -> None:
    with pytest.raises(MnemoscopeError, match="tokens"):
        run_trial(engram, Asked(2048, 0, "literal", "password", 1, False))
    with pytest.raises(MnemoscopeError, match="haystack"):
        run_trial(engram, Asked(16, 0, "literal", "password", 1, False))


def test_a_trial_tells_how_far_it_is_and_ends_when_it_is_stopped(engram: HookedModel) -> None:
    told: list[float] = []

    def hear(share: float, words: str) -> None:
        assert words
        told.append(share)

    asked = Asked(length=128, depth=0, kind="literal", topic="password", seed=2, rival=False)
    run_trial(engram, asked, hear)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] < 1

    def stop(share: float, _: str) -> None:
        if share > 0:
            raise StoppedError("enough.")

    with pytest.raises(StoppedError):
        run_trial(engram, asked, stop)
    assert run_trial(engram, asked).said, "nothing is left hooked"
