"""Every score of retrieval, on a model whose heads were set by hand: each head is what it is."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.data.facts.needles import NeedleDesign
from mnemoscope.interventions.head_ablation import Where, ablation_edits, run_answer
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.attention_basin import basin_prompts, measure_basin
from mnemoscope.probes.copy_suppression import measure_copy_suppression
from mnemoscope.probes.document_prompts import needle_documents
from mnemoscope.probes.induction_heads import measure_induction
from mnemoscope.probes.query_heads import measure_query_heads
from mnemoscope.probes.retrieval_heads import RetrievalScores, score_trials
from mnemoscope.probes.retrieval_statistics import locate_emit, summarise_scores
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials
from mnemoscope.probes.write_scores import WriteScores, head_roles, measure_writes


class Planted:
    """The planted model, its trials, and its heads by role."""

    def __init__(self, planted: PlantedRetrieval) -> None:
        self.planted = planted
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted retrieval")
        self.design: NeedleDesign = planted_retrieval_design(planted, lengths=(96, 160), rounds=1)
        self.trials: RetrievalTrials = measure_trials(self.model, self.design, max_new_tokens=5)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(planted_retrieval_model())


@pytest.fixture(scope="module")
def null() -> Planted:
    return Planted(null_retrieval_model())


@pytest.fixture(scope="module", params=["forced", "free"])
def scores(request: pytest.FixtureRequest, planted: Planted) -> RetrievalScores:
    return score_trials(planted.trials, mode=request.param)


@pytest.fixture(scope="module")
def writes(planted: Planted) -> WriteScores:
    return measure_writes(build_chain(planted.model), planted.design)


def at(grid: np.ndarray, heads: tuple[HeadId, ...]) -> float:
    """The value of the one head of a role."""
    (head,) = heads
    return float(grid[head.layer, head.head])


def most(grid: np.ndarray, count: int = 1) -> set[HeadId]:
    """The heads with the highest values."""
    order = np.argsort(-np.nan_to_num(grid, nan=-np.inf).ravel(), kind="stable")[:count]
    return {HeadId(int(i) // grid.shape[1], int(i) % grid.shape[1]) for i in order}


def others(grid: np.ndarray, *roles: tuple[HeadId, ...]) -> np.ndarray:
    """The values of all heads of no role named."""
    rest = grid.copy()
    for head in (head for role in roles for head in role):
        rest[head.layer, head.head] = np.nan
    return rest[np.isfinite(rest)]


# -- attention: literal copies, and who locates ---------------------------------------------------


def test_all_needles_are_found_and_none_is_known(planted: Planted) -> None:
    assert planted.trials.accepted.all()
    assert not planted.trials.known.any()


def test_three_heads_copy_in_wus_sense_and_only_one_of_them_does(
    planted: Planted, scores: RetrievalScores
) -> None:
    """The literal score sees where heads look: inert and suppressing readers pass it as well."""
    truth = planted.planted
    copy = scores.mean("copy")
    readers = (truth.copy_heads, truth.inert_readers, truth.suppression_heads)
    for role in readers:
        assert at(copy, role) == 1.0
        assert at(scores.mean("first"), role) == 1.0
        assert at(scores.mean("soft"), role) > 0.99
        assert at(scores.mean("margin"), role) > 1.0
    assert at(copy, truth.induction_heads) == 0.5
    assert others(copy, *readers, truth.induction_heads).max() < 0.3


def test_induction_continues_and_never_begins(planted: Planted, scores: RetrievalScores) -> None:
    truth = planted.planted
    assert at(scores.mean("continuation"), truth.induction_heads) == 1.0
    assert at(scores.mean("first"), truth.induction_heads) == 0.0
    assert at(scores.mean("continuation"), truth.copy_heads) == 1.0


def test_locating_and_emitting_are_told_apart(planted: Planted, scores: RetrievalScores) -> None:
    truth = planted.planted
    assert most(scores.mean("locate")) == set(truth.locate_heads)
    assert at(scores.mean("locate_mass"), truth.locate_heads) == pytest.approx(1 / 3, abs=0.01)
    assert at(scores.mean("emit"), truth.locate_heads) < 0.01
    assert at(scores.mean("emit"), truth.copy_heads) > 0.99
    roles = locate_emit(
        *(summarise_scores(scores.values[name], scores.needles) for name in ("locate", "contrast")),
        floor=0.3,
    )
    (locate,), (copy,) = truth.locate_heads, truth.copy_heads
    assert roles[locate.layer, locate.head] == "locate"
    assert roles[copy.layer, copy.head] == "emit"
    assert (np.argwhere(roles == "locate") == [locate.layer, locate.head]).all()


def test_the_sink_head_reads_the_sink(planted: Planted, scores: RetrievalScores) -> None:
    assert at(scores.mean("sink"), planted.planted.sink_heads) > 0.99
    assert at(scores.mean("emit"), planted.planted.sink_heads) < 1e-3


def test_query_heads_are_the_locating_ones(planted: Planted) -> None:
    documents = needle_documents(planted.design, planted.planted.encode, passage=16)
    found = measure_query_heads(planted.model, documents[:12])
    for name in ("gold", "core"):
        assert most(getattr(found, name).mean(0)) == set(planted.planted.locate_heads)
    assert at(found.ndcg.mean(0), planted.planted.locate_heads) == 1.0
    assert others(found.gold.mean(0), planted.planted.locate_heads).max() < 0.15


# -- what is written ------------------------------------------------------------------------------


def test_writes_are_the_planted_logits(planted: Planted, writes: WriteScores) -> None:
    truth = planted.planted
    locos = writes.contrast.mean(0)
    assert at(locos, truth.copy_heads) == pytest.approx(10.0, abs=0.1)
    assert at(locos, truth.induction_heads) == pytest.approx(2.5, abs=0.1)  # 5 at every other step
    assert at(locos, truth.suppression_heads) == pytest.approx(-4.0, abs=0.1)
    known = (truth.copy_heads, truth.induction_heads, truth.suppression_heads)
    assert np.abs(others(locos, *known)).max() < 0.2


def test_reading_and_writing_make_the_role(planted: Planted, writes: WriteScores) -> None:
    truth, roles = planted.planted, head_roles(writes)
    expected = np.full(roles.role.shape, "inert", dtype="<U8")
    for heads, role in (
        (truth.copy_heads, "copy"),
        (truth.induction_heads, "copy"),
        (truth.suppression_heads, "suppress"),
    ):
        expected[heads[0].layer, heads[0].head] = role
    np.testing.assert_array_equal(roles.role, expected)
    assert at(roles.read, truth.inert_readers) > 0.99  # it reads as the copy head does


# -- other scores ---------------------------------------------------------------------------------


def test_induction_and_echo_on_random_tokens(planted: Planted) -> None:
    truth = planted.planted
    found = measure_induction(planted.model, sequences=6, length=40)
    induction, echo = (found.statistics(score) for score in ("induction", "echo"))
    assert most(induction.mean) == set(truth.induction_heads)
    assert at(induction.interval.low, truth.induction_heads) > 0.99
    assert at(induction.mean, truth.copy_heads) < 0.01
    assert most(echo.mean) == set(truth.duplicate_heads)
    # Half of its attention; the rest is on the token itself.
    assert at(echo.mean, truth.duplicate_heads) == pytest.approx(0.5, abs=0.01)
    # The suppression head goes where the induction head's prediction stands.
    known = (truth.induction_heads, truth.suppression_heads)
    assert others(induction.mean, *known).max() < 0.05


def test_copy_suppression_finds_who_writes_against(planted: Planted) -> None:
    truth, design = planted.planted, planted.design
    texts = [design.prompt(trial) + trial.answer_ids[:-1] for trial in design.trials[:8]]
    found = measure_copy_suppression(
        build_chain(planted.model),
        texts,
        positions=[range(len(text) - 2, len(text)) for text in texts],
    ).statistics()
    assert most(found.mean) == set(truth.suppression_heads)
    assert at(found.mean, truth.suppression_heads) == pytest.approx(4.0, abs=0.1)
    assert at(found.q, truth.suppression_heads) < 0.1
    assert at(found.mean, truth.copy_heads) < -3  # it says what induction said before it
    assert others(found.mean, truth.suppression_heads).max() < 0.1


def test_the_copy_depends_on_locating_in_the_question(planted: Planted) -> None:
    """Serial dependence: locate heads matter while the question is read, the copy head after."""
    truth, model, design = planted.planted, planted.model, planted.design
    trial = design.trials[3]
    parts = design.haystacks[trial.haystack].ids, trial.question_ids, trial.answer_ids
    cached = model.prefill(parts[0])

    def first(heads: tuple[HeadId, ...], where: Where) -> float:
        edits = ablation_edits("zero", heads)
        return float(run_answer(model, *parts, edits, where, cached=cached).log_probs[0, 0])

    whole = first((), "decode")
    assert whole > -0.5
    assert first(truth.locate_heads, "question") < whole - 3
    assert first(truth.copy_heads, "decode") < whole - 3
    assert first(truth.locate_heads, "decode") == pytest.approx(whole, abs=0.01)
    assert first(truth.copy_heads, "question") == pytest.approx(whole, abs=0.01)


# -- the null -------------------------------------------------------------------------------------


def test_a_model_that_finds_nothing_has_no_scores(null: Planted) -> None:
    assert not null.trials.accepted.any()
    with pytest.raises(MnemoscopeError, match="24"):
        score_trials(null.trials)


def test_noise_heads_have_no_role(null: Planted) -> None:
    forced = score_trials(null.trials, mode="forced", among="rejected")
    assert np.nanmax(forced.mean("copy")) < 0.3
    assert np.nanmax(forced.mean("emit")) < 0.2
    found = measure_induction(null.model, sequences=6, length=40)
    assert np.nanmax(found.statistics("induction").mean) < 0.1
    writes = measure_writes(build_chain(null.model), null.design, trials=range(12))
    assert np.abs(writes.contrast.mean(0)).max() < 0.2
    prompts = basin_prompts(
        null.model, documents=4, length=20, rounds=3, texts=null.planted.filler.split("\n\n")
    )
    level = measure_basin(null.model, prompts, max_new_tokens=2).profile("question")
    np.testing.assert_allclose(level.mean((0, 1)), level.mean(), atol=0.05)
