"""Cutting one head's look at the needle costs the planted answer what that look is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mnemoscope.data.facts.needles import NeedleDesign
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.errors import UnitOutOfRangeError
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.edge_knockouts import (
    EdgeKnockouts,
    control_span,
    measure_knockouts,
    trials_of_needles,
)
from mnemoscope.results.run_folder import open_run

TRIALS = tuple(range(10))


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def design(planted: PlantedRetrieval) -> NeedleDesign:
    return planted_retrieval_design(planted, lengths=(96,), rounds=1)


@pytest.fixture(scope="module")
def cut(model: HookedModel, design: NeedleDesign) -> EdgeKnockouts:
    return measure_knockouts(model, design, TRIALS)


def at(grid: np.ndarray, heads: tuple[HeadId, ...]) -> float:
    (head,) = heads
    return float(grid[head.layer, head.head])


def test_the_answer_hangs_on_two_edges_and_reading_alone_is_none(
    planted: PlantedRetrieval, cut: EdgeKnockouts
) -> None:
    drop = cut.drop.mean(0)
    assert at(drop, planted.copy_heads) > 5
    assert at(drop, planted.locate_heads) > 5
    assert abs(at(drop, planted.inert_readers)) < 0.01  # it reads the needle and writes nothing
    assert at(drop, planted.suppression_heads) < -0.005  # it writes against what it reads
    assert all(abs(at(drop, (head,))) < 0.1 for head in planted.noise_heads)


def test_other_tokens_cost_nothing(cut: EdgeKnockouts) -> None:
    assert np.abs(cut.control).max() < 0.1


def test_roles_are_needed_and_hindering(planted: PlantedRetrieval, cut: EdgeKnockouts) -> None:
    roles = cut.roles()
    needed = {HeadId(*map(int, cell)) for cell in np.argwhere(roles == "needed")}
    hinders = {HeadId(*map(int, cell)) for cell in np.argwhere(roles == "hinders")}
    assert needed == {*planted.copy_heads, *planted.locate_heads}
    assert set(planted.suppression_heads) <= hinders
    assert not hinders & {*planted.inert_readers, *planted.sink_heads}


def test_edges_of_the_question_and_of_the_answer_are_apart(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> None:
    heads = (*planted.locate_heads, *planted.copy_heads)
    for where, needed, idle in (
        ("question", planted.locate_heads, planted.copy_heads),
        ("decode", planted.copy_heads, planted.locate_heads),
    ):
        found = measure_knockouts(model, design, TRIALS[:2], heads=heads, where=where)  # type: ignore[arg-type]
        assert at(found.drop.mean(0), needed) > 3
        assert abs(at(found.drop.mean(0), idle)) < 0.01
        # heads that were not cut have no number
        assert np.isfinite(found.drop).sum() == 2 * len(heads)


def test_finished_haystacks_are_read_back(
    model: HookedModel, design: NeedleDesign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path, "knockouts", {})
    told: list[tuple[int, int]] = []
    heads = [HeadId(3, 2)]
    first = measure_knockouts(
        model, design, TRIALS[:2], heads=heads, run=run, progress=lambda *at: told.append(at)
    )
    assert told[-1] == (4, 4)  # two trials, needle and control
    monkeypatch.setattr(HookedModel, "prefill", None)  # nothing may run
    again = measure_knockouts(model, design, TRIALS[:2], heads=heads, run=run)
    assert np.array_equal(first.drop, again.drop, equal_nan=True)


def test_control_spans_hold_no_statement(design: NeedleDesign) -> None:
    for number, trial in enumerate(design.trials):
        haystack = design.haystacks[trial.haystack]
        span = control_span(design, trial, (0, number))
        assert span.stop - span.start == trial.needle.stop - trial.needle.start
        assert span.start >= 4
        assert span.stop <= haystack.length
        for _, other in haystack.needles:
            assert span.stop <= other.start or span.start >= other.stop


def test_a_trial_for_each_needle(design: NeedleDesign) -> None:
    twice = planted_retrieval_design(planted_retrieval_model(), lengths=(96,), rounds=2)
    kept = np.ones(len(twice.trials), dtype=bool)
    kept[0] = False
    chosen = trials_of_needles(twice, kept, 10)
    assert len({twice.trials[i].needle_id for i in chosen}) == len(chosen) == 10
    assert chosen == tuple(sorted(chosen))
    assert 0 not in chosen


def test_nothing_to_cut_is_refused(model: HookedModel, design: NeedleDesign) -> None:
    with pytest.raises(MnemoscopeError, match="a trial and a control span"):
        measure_knockouts(model, design, ())
    with pytest.raises(MnemoscopeError, match="a trial and a control span"):
        measure_knockouts(model, design, (0,), controls=0)
    with pytest.raises(UnitOutOfRangeError):
        measure_knockouts(model, design, (0,), heads=[HeadId(9, 0)])
