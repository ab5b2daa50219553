"""Logistic regression of few numbers on yes and no, with a ridge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

from .errors import StatisticsError


def fit_logistic(
    features: Float[np.ndarray, "n f"], labels: Bool[np.ndarray, " n"], *, ridge: float = 1.0
) -> Float[np.ndarray, " f1"]:
    """Weights of the features and, last, the intercept, which the ridge leaves alone.

    Minimises the sum of log losses plus `ridge / 2` times the squared weights: scikit-learn's
    `LogisticRegression(C=1 / ridge)`. Bring features to one scale before. Raises `StatisticsError`
    for features that are not finite or labels that are all the same.
    """
    features, y = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    if features.ndim != 2 or len(features) != len(y) or not np.isfinite(features).all():
        raise StatisticsError(f"features {features.shape} do not fit {len(y)} labels as numbers.")
    if len({*y.tolist()}) < 2:
        raise StatisticsError("all labels are the same: nothing can be told apart.")
    design = np.column_stack([features, np.ones(len(y))])

    def loss(w: Float[np.ndarray, " f1"]) -> tuple[float, Float[np.ndarray, " f1"]]:
        logits, kept = design @ w, np.append(w[:-1], 0.0)
        value = np.logaddexp(0.0, logits).sum() - y @ logits + ridge / 2 * kept @ kept
        return float(value), design.T @ (expit(logits) - y) + ridge * kept

    return np.asarray(minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B").x)


def logistic_probability(
    features: Float[np.ndarray, "n f"], weights: Float[np.ndarray, " f1"]
) -> Float[np.ndarray, " n"]:
    """The probability of yes for each row."""
    return np.asarray(expit(np.asarray(features) @ weights[:-1] + weights[-1]))
