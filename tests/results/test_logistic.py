"""Logistic regression: scikit-learn's, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.logistic import fit_logistic, logistic_probability
from sklearn.linear_model import LogisticRegression


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
def test_weights_are_those_of_scikit_learn(ridge: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 3))
    labels = features @ [1.0, -2.0, 0.0] + rng.normal(size=80) > 0.5
    weights = fit_logistic(features, labels, ridge=ridge)
    theirs = LogisticRegression(C=1 / ridge, tol=1e-9).fit(features, labels)
    np.testing.assert_allclose(weights, [*theirs.coef_[0], *theirs.intercept_], atol=1e-3)
    p = logistic_probability(features, weights)
    np.testing.assert_allclose(p, theirs.predict_proba(features)[:, 1], atol=1e-3)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(StatisticsError, match="all labels are the same"):
        fit_logistic(np.zeros((3, 1)), np.array([True, True, True]))
    with pytest.raises(StatisticsError, match="do not fit"):
        fit_logistic(np.full((2, 1), np.nan), np.array([True, False]))
