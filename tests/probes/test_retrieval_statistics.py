"""Scores of heads over trials: intervals that keep their level when needles are the sampled unit,
nulls, trials that do not apply, shrinkage, the mixed model and what induction explains."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.probes.retrieval_mixed_model import fit_mixed_model
from mnemoscope.probes.retrieval_statistics import (
    HeadStatistics,
    cluster_error,
    locate_emit,
    needle_means,
    one_sided_p,
    partial_correlation,
    shrunken,
    summarise_scores,
)
from mnemoscope.results.errors import StatisticsError

N_NEEDLES, TRIALS = 24, 4
NEEDLES = [f"needle {i}" for i in range(N_NEEDLES) for _ in range(TRIALS)]


def scores(
    truth: np.ndarray, seed: int, *, between: float = 0.2, within: float = 0.1
) -> np.ndarray:
    """Scores `[trial, layer, head]` about `truth`, with an effect of the needle on each head."""
    rng = np.random.default_rng(seed)
    needle = rng.normal(scale=between, size=(N_NEEDLES, *truth.shape)).repeat(TRIALS, axis=0)
    return truth + needle + rng.normal(scale=within, size=needle.shape)


# -- intervals -------------------------------------------------------------------------------------


def test_the_interval_over_needles_covers_what_it_says() -> None:
    """Acceptance test 10: 95 +- 3 % over synthetic scores with a random effect of the needle."""
    truth = np.full((40, 50), 0.3)
    found = summarise_scores(scores(truth, 1), NEEDLES)
    covered = (found.interval.low <= truth) & (truth <= found.interval.high)
    assert 0.92 <= covered.mean() <= 0.98


def test_a_naive_interval_would_not() -> None:
    truth = np.full((40, 50), 0.3)
    values = scores(truth, 1)
    naive = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - truth) <= naive).mean() < 0.8
    found = summarise_scores(values, NEEDLES)
    assert (found.interval.high - found.interval.low).mean() > 1.5 * 2 * naive.mean()


@pytest.mark.parametrize("n", [6, 12])
def test_the_interval_keeps_its_level_for_few_needles(n: int) -> None:
    truth = np.zeros((40, 50))
    found = summarise_scores(scores(truth, 2)[: n * TRIALS], NEEDLES[: n * TRIALS])
    covered = (found.interval.low <= truth) & (truth <= found.interval.high)
    assert 0.9 <= covered.mean() <= 0.98
    assert found.interval.n_units == n


def test_the_cluster_error_is_that_of_the_needle_means() -> None:
    """With as many trials of each needle it is the standard error of the needles' means."""
    values = scores(np.zeros((2, 3)), 3)
    means = values.reshape(N_NEEDLES, TRIALS, 2, 3).mean(axis=1)
    expected = means.std(axis=0, ddof=1) / np.sqrt(N_NEEDLES)
    np.testing.assert_allclose(cluster_error(values, NEEDLES), expected, rtol=1e-12)


# -- tests against a null --------------------------------------------------------------------------


def test_a_head_is_tested_against_its_own_score_on_control_spans() -> None:
    """Head 0 reads needle and rivals alike, head 1 the needle only, head 2 rivals only."""
    truth, control = np.array([[0.4, 0.4, 0.1]]), np.array([[0.4, 0.1, 0.4]])
    found = summarise_scores(
        scores(truth, 4), NEEDLES, null=scores(control, 6), null_name="mass on rivals"
    )
    assert found.q[0, 1] < 0.01
    assert found.q[0, 0] > 0.05
    assert found.q[0, 2] > 0.9
    assert found.null_name == "mass on rivals"
    np.testing.assert_allclose(found.mean, truth, atol=0.15)


def test_few_false_alarms_among_many_heads_that_do_nothing() -> None:
    found = summarise_scores(scores(np.zeros((30, 30)), 6), NEEDLES)
    assert (found.p <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (found.q <= 0.05).sum() <= 2


def test_a_number_can_be_the_null() -> None:
    values = scores(np.array([[0.5, 0.1]]), 7, between=0.05)
    found = summarise_scores(values, NEEDLES, null=0.3, null_name="0.3")
    assert found.q[0, 0] < 0.01
    assert found.q[0, 1] > 0.9


def test_p_is_one_sided_and_counts_sign_patterns_of_whole_needles() -> None:
    """Three needles of two trials, all positive: one of the eight patterns reaches the mean."""
    gaps = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])[:, None]
    units = ["a", "a", "b", "b", "c", "c"]
    assert one_sided_p(gaps, units, seed=0)[0] == pytest.approx(1 / 8)
    assert one_sided_p(-gaps, units, seed=0)[0] == pytest.approx(7 / 8)
    assert one_sided_p(0 * gaps, units, seed=0)[0] == 1.0


# -- trials that do not apply ----------------------------------------------------------------------


def test_a_trial_that_a_head_cannot_see_is_no_zero() -> None:
    values = scores(np.full((1, 2), 0.5), 8)
    values[::2, 0, 1] = np.nan
    found = summarise_scores(values, NEEDLES)
    kept = [needle for i, needle in enumerate(NEEDLES) if i % 2]
    alone = summarise_scores(values[1::2, :, 1:], kept)
    for name in ("mean", "se", "p"):
        np.testing.assert_allclose(
            getattr(found, name)[0, 1], getattr(alone, name)[0, 0], err_msg=name
        )
    assert found.interval.low[0, 1] == pytest.approx(alone.interval.low[0, 0])
    assert found.n_trials.tolist() == [[N_NEEDLES * TRIALS, N_NEEDLES * TRIALS // 2]]


def test_a_head_that_sees_one_needle_has_no_score() -> None:
    values = scores(np.full((1, 3), 0.5), 9)
    values[TRIALS:, 0, 0] = np.nan
    values[:, 0, 1] = np.nan
    found = summarise_scores(values, NEEDLES)
    for name in ("mean", "p", "q", "se", "shrunk"):
        assert np.isnan(getattr(found, name)[0, :2]).all(), name
        assert np.isfinite(getattr(found, name)[0, 2]), name
    assert found.n_needles.tolist() == [[1, 0, N_NEEDLES]]


def test_no_head_with_two_needles_is_refused() -> None:
    with pytest.raises(StatisticsError, match="no head sees two needles"):
        summarise_scores(np.zeros((3, 1, 2)), ["a", "a", "a"])


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StatisticsError, match="do not fit 2 needle names"):
        summarise_scores(np.zeros((3, 1, 2)), ["a", "b"])


def test_needle_means_skip_what_does_not_apply() -> None:
    values = np.array([[[1.0]], [[np.nan]], [[3.0]], [[5.0]], [[np.nan]]])
    means = needle_means(values, ["a", "a", "b", "b", "c"])
    np.testing.assert_array_equal(means[:, 0, 0], [1.0, 4.0, np.nan])


# -- reliability and shrinkage ---------------------------------------------------------------------


def test_reliability_is_high_where_heads_differ_and_none_where_they_do_not() -> None:
    rng = np.random.default_rng(10)
    apart = summarise_scores(scores(rng.normal(size=(6, 8)), 11), NEEDLES)
    alike = summarise_scores(scores(np.zeros((6, 8)), 11), NEEDLES)
    assert apart.reliability > 0.95
    assert alike.reliability < 0.6


def test_shrinkage_comes_closer_to_the_truth_than_the_means() -> None:
    rng = np.random.default_rng(12)
    truth = rng.normal(scale=0.05, size=(20, 20))
    found = summarise_scores(scores(truth, 13, between=0.4), NEEDLES)
    assert ((found.shrunk - truth) ** 2).mean() < 0.7 * ((found.mean - truth) ** 2).mean()


def test_shrinkage_follows_its_formula() -> None:
    mean, se = np.array([[0.0, 1.0, 5.0]]), np.array([[1.0, 2.0, 0.0]])
    between = mean.var(ddof=1) - (0 + 1 + 4) / 3
    weight = between / (between + se**2)
    np.testing.assert_allclose(shrunken(mean, se), 2 + weight * (mean - 2))
    assert shrunken(mean, se)[0, 2] == 5


# -- the mixed model -------------------------------------------------------------------------------


def test_the_mixed_model_tells_needle_length_and_depth_apart() -> None:
    """Head 0: 0.5 + 0.1 a doubling - 0.3 from front to end, needles vary by 0.2."""
    rng = np.random.default_rng(14)
    n, repeats = 200, 6
    needles = [i for i in range(n) for _ in range(repeats)]
    lengths = rng.choice([512, 1024, 2048, 4096], size=n * repeats)
    depths = rng.random(n * repeats)
    by_needle = rng.normal(scale=0.2, size=(n, 1, 2)).repeat(repeats, axis=0) * [1, 0]
    values = 0.5 + by_needle + rng.normal(scale=0.1, size=(n * repeats, 1, 2))
    values[:, 0, 0] += 0.1 * (np.log2(lengths) - np.log2(lengths).mean())
    values[:, 0, 0] -= 0.3 * (depths - depths.mean())
    fit = fit_mixed_model(values, needles, lengths.tolist(), depths.tolist())
    np.testing.assert_allclose(fit.effect[:, 0, 0], [0.5, 0.1, -0.3], atol=0.04)
    np.testing.assert_allclose(fit.effect[:, 0, 1], [0.5, 0.0, 0.0], atol=0.04)
    np.testing.assert_allclose(fit.needle_share, [[0.8, 0.0]], atol=0.06)
    assert fit.error[0, 0, 0] == pytest.approx(0.2 / np.sqrt(n), rel=0.2)


def test_the_mixed_model_of_a_balanced_design_is_the_analysis_of_variance() -> None:
    values = scores(np.full((1, 1), 0.3), 15)
    fit = fit_mixed_model(values, NEEDLES, [64] * len(values), [0.5] * len(values))
    by_needle = values[:, 0, 0].reshape(N_NEEDLES, TRIALS)
    within = by_needle.var(axis=1, ddof=1).mean()
    between = by_needle.mean(axis=1).var(ddof=1) - within / TRIALS
    assert fit.rest_variance[0, 0] == pytest.approx(within)
    assert fit.needle_variance[0, 0] == pytest.approx(between)
    assert fit.effect[0, 0, 0] == pytest.approx(values.mean())
    assert fit.error[0, 0, 0] == pytest.approx(cluster_error(values, NEEDLES)[0, 0])
    assert np.isnan(fit.effect[1:]).all()


def test_a_head_that_always_scores_the_same_has_no_error() -> None:
    values = np.full((len(NEEDLES), 1, 1), 0.25)
    depths = np.random.default_rng(16).random(len(NEEDLES))
    fit = fit_mixed_model(values, NEEDLES, [64] * len(values), depths.tolist())
    np.testing.assert_allclose(fit.effect[[0, 2], 0, 0], [0.25, 0], atol=1e-9)
    assert np.isnan(fit.needle_share[0, 0])


def test_one_trial_a_needle_cannot_tell_needles_from_errors() -> None:
    with pytest.raises(StatisticsError, match="more trials than needles"):
        fit_mixed_model(np.random.default_rng(0).random((4, 1, 1)), "abcd", [8] * 4, [0.5] * 4)


# -- classes and correlations ----------------------------------------------------------------------


def test_heads_locate_emit_do_both_or_neither() -> None:
    locate = summarise_scores(scores(np.array([[0.9, 0.0, 0.9, 0.0]]), 17, between=0.1), NEEDLES)
    emit = summarise_scores(scores(np.array([[0.0, 0.5, 0.5, 0.0]]), 18, between=0.1), NEEDLES)
    assert locate_emit(locate, emit).tolist() == [["locate", "emit", "both", ""]]


def test_a_small_but_certain_score_gives_no_role() -> None:
    """Significant, but a fiftieth of the best head's."""
    one: HeadStatistics = summarise_scores(
        scores(np.array([[0.5, 0.01]]), 19, between=0.001, within=0.001), NEEDLES
    )
    assert one.q[0, 1] < 0.01
    assert locate_emit(one, one).tolist() == [["both", ""]]


def test_induction_can_explain_why_first_and_later_tokens_agree() -> None:
    rng = np.random.default_rng(20)
    induction = rng.normal(size=(20, 20))
    first, other = (induction + 0.3 * rng.normal(size=(20, 20)) for _ in range(2))
    found = partial_correlation(first, other, induction)
    assert found.raw > 0.8
    assert abs(found.partial) < 0.15
    shared = rng.normal(size=(20, 20))
    apart = partial_correlation(first + shared, other + shared, induction)
    assert apart.partial > 0.7
    assert apart.n_heads == 400


def test_a_partial_correlation_leaves_out_heads_without_a_score() -> None:
    rng = np.random.default_rng(21)
    grids = rng.normal(size=(3, 4, 4))
    holes = grids.copy()
    holes[0, 0, 0] = holes[2, 1, 1] = np.nan
    kept = np.isfinite(holes).all(axis=0)
    expected = partial_correlation(*(grid[kept][None] for grid in grids))
    assert partial_correlation(*holes) == expected


def test_a_partial_correlation_of_a_constant_does_not_exist() -> None:
    flat = np.zeros((2, 3))
    assert np.isnan(partial_correlation(flat, np.arange(6.0).reshape(2, 3), flat).partial)
