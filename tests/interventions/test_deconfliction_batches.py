"""Risks of a batch of answers: what a search through the documents says, put where it belongs."""

import numpy as np
import pytest
import torch
from corpus_truth import Truth, index_of
from families import tiny
from mnemoscope.data.corpus.span_scores import BeliefConflict, RiskRule, smoothed_surprisals
from mnemoscope.interventions.deconfliction_batches import (
    PairCollator,
    RiskCollator,
    RiskSpan,
    RiskStep,
    RiskTracer,
    take_risks,
    trace_batch,
)
from mnemoscope.interventions.deconfliction_losses import unlikelihood_loss
from mnemoscope.models.errors import MnemoscopeError

SECRET = [10, 11, 12, 13, 14]
DOCUMENTS = [[3, *SECRET, 4], [5, 10, 11, 12, 20], [6, 7, 8]]


def tracer(documents=DOCUMENTS, threshold=2.0, full_risk=2.0, min_length=3, **rule):
    settings = {"max_count": None, **rule}
    score = RiskRule(lambda ids, length, count: float(length), threshold, min_length, **settings)
    return RiskTracer(index_of([documents]), score, full_risk)


def test_spans_are_the_longest_risky_ones_and_their_risk_is_above_the_threshold():
    assert tracer().spans([1, *SECRET, 2, 6, 7, 8]) == (RiskSpan(1, 6, 3.0), RiskSpan(7, 10, 1.0))
    assert tracer().spans([1, 10, 11, 2]) == ()


def test_steps_are_all_tokens_that_would_complete_a_risky_span():
    """After 10 11 comes 12; after 10 11 12 come 13 and 20: each also as the end of a longer one."""
    assert set(tracer().steps([1, 10, 11, 12, 2])) == {
        RiskStep(3, 12, 1.0),
        RiskStep(4, 13, 2.0),
        RiskStep(4, 20, 2.0),
    }


def test_common_spans_are_passed_over():
    common = tracer([[5, 6, 7, 8], [5, 6, 7, 9]], max_count=1)
    assert common.spans([5, 6, 7]) == ()
    assert set(common.steps([5, 6, 7])) == set()
    assert common.spans([5, 6, 7, 9]) == (RiskSpan(0, 4, 2.0),)


@pytest.mark.parametrize("alphabet", [2, 4])
def test_steps_are_those_of_a_search_through_all_tokens(alphabet):
    rng = np.random.default_rng(alphabet)
    shards = [[rng.integers(0, alphabet, 25).tolist() for _ in range(2)] for _ in range(2)]
    index, truth = index_of(shards), Truth(tuple(shards))
    rule = RiskRule(BeliefConflict(smoothed_surprisals(index.unigram_counts)), 3.0, 3, 3)
    text = rng.integers(0, alphabet, 14).tolist()
    expected = {}
    for position in range(14):
        for token in range(alphabet):
            ids = [*text[:position], token]
            n = truth.longest_suffix(ids)
            count = truth.count(ids[len(ids) - n :])
            if n and rule.forbids(ids, n, count):
                expected[position, token] = rule.risk(ids, n, count) - 3.0
    found = {(s.position, s.token): s.risk for s in RiskTracer(index, rule, 3.0).steps(text)}
    assert found == pytest.approx(expected)
    assert expected


EXAMPLES = [
    {"prompt_ids": SECRET, "chosen_ids": [1, *SECRET, 2], "rejected_ids": [6, 7, 8]},
    {"prompt_ids": [9], "chosen_ids": [2, 2], "rejected_ids": [*SECRET[:4], 1]},
]


def test_pairs_are_laid_out_chosen_first_and_padded_on_the_right():
    batch = PairCollator()(EXAMPLES)
    assert batch["input_ids"].tolist() == [
        [*SECRET, 1, *SECRET, 2],
        [9, 2, 2, *[0] * 9],
        [*SECRET, 6, 7, 8, *[0] * 4],
        [9, *SECRET[:4], 1, *[0] * 6],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [12, 3, 8, 6]
    assert batch["completion_mask"].sum(1).tolist() == [7, 2, 3, 5]
    assert batch["completion_mask"][1].tolist() == [0, 1, 1, *[0] * 9]


def risks_of(answers="both", **settings):
    return take_risks(RiskCollator(PairCollator(), tracer(**settings), answers)(EXAMPLES))


def test_weights_stand_on_the_risky_tokens_of_the_answers_alone():
    """The prompt of row 0 is the same risky span, and weighs nothing."""
    _, risks = risks_of(full_risk=4.0)
    assert risks.weights[0].tolist() == [*[0] * 6, *[0.75] * 5, 0]
    assert risks.weights[1].tolist() == [0] * 12
    assert risks.weights[2].tolist() == [*[0] * 5, *[0.25] * 3, *[0] * 4]
    assert risks.weights[3].tolist() == [0, *[0.5] * 4, *[0] * 7]
    assert risks.levels.tolist() == [3.0, 0.0, 1.0, 2.0]


def test_a_weight_is_at_most_one_and_overlapping_spans_add_up():
    overlapping = tracer([[5, 6, 7, 8], [7, 8, 9, 9]], full_risk=0.1)
    ids = torch.tensor([[5, 6, 7, 8, 9, 9]] * 2)
    risks = trace_batch(overlapping, ids, torch.ones_like(ids))
    assert risks.weights[0].tolist() == [1, 1, 2, 2, 1, 1]


def test_steps_stand_at_their_places_of_the_row():
    _, risks = risks_of()
    steps = [
        (position, token)
        for position, token, value in zip(
            risks.positions[0].tolist(), risks.tokens[0].tolist(), risks.values[0], strict=True
        )
        if value > 0
    ]
    assert steps == [(8, 12), (9, 13), (9, 20), (10, 14), (11, 4)]


def test_only_the_preferred_answer_can_be_made_less_likely():
    _, risks = risks_of("chosen")
    assert risks.weights[0].sum() > 0
    assert risks.weights[2:].sum() == 0
    assert risks.values[2:].sum() == 0
    assert risks.levels.tolist() == [3.0, 0.0, 1.0, 2.0]  # the margin compares both all the same


def test_the_rest_of_the_batch_is_as_it_was():
    rest, _ = risks_of()
    plain = PairCollator()(EXAMPLES)
    assert rest.keys() == plain.keys()
    assert all(torch.equal(rest[key], plain[key]) for key in plain)


def test_a_batch_without_risk_has_zeros_of_the_right_shape():
    ids = torch.ones(2, 4, dtype=torch.long)
    risks = trace_batch(tracer(), ids, ids)
    assert risks.weights.shape == (2, 4)
    assert risks.values.tolist() == [[0.0], [0.0]]


def test_an_answer_that_was_cut_away_has_no_risk():
    ids = torch.tensor([[1, 2], [*SECRET[:2]]])
    assert trace_batch(tracer(), ids, torch.zeros_like(ids)).levels.tolist() == [0, 0]


def test_a_model_s_gradient_comes_from_the_positions_before_the_span_alone():
    """End to end: collator, model, loss. Logits elsewhere get exactly nothing."""
    batch, risks = risks_of()
    logits = tiny("gpt2")(batch["input_ids"]).logits
    logits.retain_grad()
    unlikelihood_loss(logits, batch["input_ids"], risks.weights).backward()
    moved = logits.grad.abs().sum(2) > 0
    expected = torch.zeros_like(moved)
    expected[:, :-1] = risks.weights[:, 1:] > 0
    assert torch.equal(moved, expected)
    assert moved.sum() == 5 + 3 + 4


def test_a_batch_of_another_collator_is_refused():
    with pytest.raises(MnemoscopeError, match="RiskCollator"):
        take_risks(PairCollator()(EXAMPLES))


@pytest.mark.parametrize("bad", [{"full_risk": 0.0}, {"min_length": 1}])
def test_a_tracer_needs_a_scale_and_spans_of_two_tokens(bad):
    with pytest.raises(MnemoscopeError, match="must be positive"):
        tracer(**bad)
