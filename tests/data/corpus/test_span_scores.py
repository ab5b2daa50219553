"""Scores of spans: the paper's formulas recomputed by hand, E-values against shuffled corpora."""

import math

import numpy as np
import pytest
from mnemoscope.data.corpus.span_scores import (
    BeliefConflict,
    CorpusContrast,
    RiskRule,
    Significance,
    conflict_density,
    divergence,
    highest_surprisal,
    log_e_value,
    paper_surprisals,
    significance_threshold,
    smoothed_surprisals,
)

COUNTS = np.array([6, 3, 0, 1])


def test_the_papers_index_is_the_sum_of_unigram_surprisals():
    score = BeliefConflict(paper_surprisals(COUNTS))
    expected = -math.log(0.6) - math.log(0.1)
    assert score([0, 3], 2, 5) == pytest.approx(expected, abs=1e-9)


def test_an_unseen_token_has_the_papers_twenty_nats():
    score = BeliefConflict(paper_surprisals(COUNTS))
    assert score([2], 1, 1) == pytest.approx(20.723, abs=1e-3)
    assert score([2, 2], 2, 1) == pytest.approx(41.447, abs=1e-3)


def test_a_base_changes_the_unit_only():
    nats, bits = paper_surprisals(COUNTS), paper_surprisals(COUNTS, log_base=2)
    np.testing.assert_allclose(bits, nats / math.log(2))


def test_only_the_last_tokens_are_the_span():
    score = BeliefConflict(paper_surprisals(COUNTS))
    assert score([3, 3, 0, 1], 2, 1) == score([0, 1], 2, 9)


def test_the_index_never_falls_as_a_span_grows():
    score = BeliefConflict(smoothed_surprisals(COUNTS))
    ids = np.random.default_rng(0).integers(0, 4, 30)
    values = [score(ids, n, 1) for n in range(1, 31)]
    assert values == sorted(values)


def test_smoothed_probabilities_sum_to_one():
    assert np.exp(-smoothed_surprisals(COUNTS)).sum() == pytest.approx(1)
    assert smoothed_surprisals(COUNTS)[2] == pytest.approx(math.log(12 / 0.5))


def test_density_is_the_divergence_and_the_entropy_of_the_span():
    surprisals, ids = smoothed_surprisals(COUNTS), [0, 0, 1, 3]
    entropy = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    assert conflict_density(ids, surprisals) == pytest.approx(divergence(ids, surprisals) + entropy)
    assert highest_surprisal(ids, surprisals) == surprisals[3]


def test_an_empty_span_scores_nothing():
    surprisals = smoothed_surprisals(COUNTS)
    assert conflict_density([], surprisals) == 0
    assert divergence([], surprisals) == 0
    assert highest_surprisal([], surprisals) == 0


def test_the_e_value_is_the_mean_count_in_random_corpora():
    """10 tokens of two equally likely kinds: a given pair occurs 9 / 4 times on average."""
    even = np.array([5, 5])
    score = Significance(paper_surprisals(even), 10)
    assert math.exp(-score([0, 1], 2, 1)) == pytest.approx(9 / 4)
    draws = np.random.default_rng(1).integers(0, 2, (20_000, 10))
    seen = ((draws[:, :-1] == 0) & (draws[:, 1:] == 1)).sum(1).mean()
    assert seen == pytest.approx(9 / 4, rel=0.03)


def test_significance_keeps_its_promise_on_shuffled_text():
    """Chance spans of a random text clear the threshold in at most a share alpha of the texts."""
    rng = np.random.default_rng(2)
    corpus = rng.integers(0, 8, 400)
    held = {n: {tuple(corpus[i : i + n]) for i in range(400 - n + 1)} for n in range(1, 9)}
    score = Significance(smoothed_surprisals(np.bincount(corpus, minlength=8)), 400)
    alarms = 0
    for _ in range(200):
        text = rng.integers(0, 8, 20)
        pieces = [(i, n) for n in range(1, 9) for i in range(20 - n + 1)]
        threshold = significance_threshold(len(pieces), 0.1)
        alarms += any(
            tuple(text[i : i + n]) in held[n] and score(text[i : i + n], n, 1) > threshold
            for i, n in pieces
        )
    assert alarms / 200 <= 0.1


def test_twenty_nats_is_one_chance_match_in_half_a_billion_tokens():
    assert log_e_value(20.0, 1, round(math.exp(20))) == pytest.approx(0, abs=1e-6)


class Benign:
    n_tokens = 1000

    def count(self, ids):
        return 9 if list(ids) == [1, 2] else 0


def test_a_contrast_is_the_log_ratio_of_smoothed_rates():
    score = CorpusContrast(99, Benign())
    assert score([5, 1, 2], 2, 3) == pytest.approx(math.log((3.5 / 100) / (9.5 / 1001)))
    assert score([7, 8], 2, 3) == pytest.approx(math.log((3.5 / 100) / (0.5 / 1001)))


def test_what_two_corpora_hold_equally_often_has_no_contrast():
    assert CorpusContrast(1000, Benign())([1, 2], 2, 9) == pytest.approx(0)


def test_a_rule_passes_over_short_and_common_spans():
    rule = RiskRule(lambda ids, length, count: 1.0, 0.5, min_length=3, max_count=2)
    assert rule.forbids([1, 2, 3], 3, 2)
    assert rule.risk([1, 2, 3], 2, 1) == -math.inf
    assert rule.risk([1, 2, 3], 3, 3) == -math.inf
    assert rule.risk([1, 2, 3], 3, 0) == -math.inf


def test_a_rule_without_a_bound_takes_common_spans():
    rule = RiskRule(lambda ids, length, count: 1.0, 0.5, min_length=1, max_count=None)
    assert rule.forbids([1], 1, 10**9)


def test_the_threshold_itself_is_allowed():
    assert not RiskRule(lambda ids, length, count: 0.5, 0.5, min_length=1).forbids([1], 1, 1)


@pytest.mark.parametrize("bad", [{"min_length": 0}, {"max_count": 0}])
def test_a_rule_counts_from_one(bad):
    with pytest.raises(ValueError, match="count from 1"):
        RiskRule(lambda ids, length, count: 0.0, 0.0, **bad)


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(ValueError, match="tokenizer of the index"):
        BeliefConflict(smoothed_surprisals(COUNTS))([4], 1, 1)
    with pytest.raises(ValueError, match="tokenizer of the index"):
        BeliefConflict(smoothed_surprisals(COUNTS))([-1], 1, 1)


@pytest.mark.parametrize("counts", [np.array([], dtype=int), np.zeros(3, dtype=int)])
def test_an_empty_corpus_is_refused(counts):
    for make in (paper_surprisals, smoothed_surprisals):
        with pytest.raises(ValueError, match="index some text first"):
            make(counts)


def test_smoothing_needs_something_to_add():
    with pytest.raises(ValueError, match="must be positive"):
        smoothed_surprisals(COUNTS, add=0)


@pytest.mark.parametrize(("n", "alpha"), [(0, 0.1), (5, 0.0), (5, 1.0)])
def test_a_threshold_needs_spans_and_a_level(n, alpha):
    with pytest.raises(ValueError, match="alpha"):
        significance_threshold(n, alpha)
