"""A stated rate of false refusals holds on new harmless texts, whatever the score means."""

import math

import numpy as np
import pytest
from mnemoscope.probes.conformal_thresholds import conformal_p, conformal_threshold
from mnemoscope.results.errors import StatisticsError


def test_the_threshold_is_the_order_statistic():
    assert conformal_threshold(range(99), 0.01).threshold == 98
    assert conformal_threshold(range(199), 0.01).threshold == 197
    assert conformal_threshold([3.0, 1.0, 2.0], 0.25).threshold == 3.0


def test_the_rate_holds_on_average_over_draws():
    random = np.random.default_rng(0)
    rates = []
    for _ in range(4000):
        threshold = conformal_threshold(random.exponential(size=39), 0.1).threshold
        rates.append(math.exp(-threshold))  # the exact rate of a new text
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(0.1, abs=0.005)


def test_the_rate_of_the_texts_at_hand_is_below_upper_in_95_of_100_draws():
    random = np.random.default_rng(1)
    below = []
    for _ in range(4000):
        found = conformal_threshold(random.exponential(size=59), 0.05)
        below.append(math.exp(-found.threshold) <= found.upper)
    assert np.mean(below) == pytest.approx(0.95, abs=0.015)


def test_texts_without_a_span_are_counted_and_never_refused():
    found = conformal_threshold([-math.inf] * 95 + [1.0, 2.0, 3.0, 4.0], 0.05)
    assert found.threshold == -math.inf
    assert not -math.inf > found.threshold


def test_too_few_texts_say_how_many_are_needed():
    with pytest.raises(StatisticsError, match="at least 99"):
        conformal_threshold(range(98), 0.01)
    with pytest.raises(StatisticsError, match="NaN"):
        conformal_threshold([math.nan] * 100, 0.1)
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        conformal_threshold(range(10), 0.0)


def test_the_p_of_a_text_counts_those_that_score_as_high():
    assert conformal_p([1.0, 2.0, 3.0], 2.0) == 3 / 4
    assert conformal_p([1.0, 2.0, 3.0], 9.0) == 1 / 4
