"""What the effects of ablating a relation's units allow to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVEL = 0.05
CARRIES = "hurts this relation more than random units, and more than others"
ALONE = "hurts more than random units; no other relation was asked"
UNSPECIFIC = "hurts more than random units, but not this relation more than others"
NO_WORSE = "hurts no more than random units"
HELPS = "helps more than random units"
UNTESTED = "not tested: 19 controls are needed at least"
SHORT = {
    CARRIES: "specific loss",
    ALONE: "loss",
    UNSPECIFIC: "unspecific loss",
    NO_WORSE: "no loss",
    HELPS: "gain",
    UNTESTED: "not tested",
}
"""Verdicts in a word or two."""


def verdict_of(row: Mapping[str, Any], specificity_low: float | None, controls: int) -> str:
    """What the area between curve and controls, and the specificity index, allow to say."""
    if 1 / (controls + 1) > LEVEL:
        return UNTESTED
    if row["high"] < 0 and row["p gain"] <= LEVEL:
        return HELPS
    if not (row["low"] > 0 and row["p"] <= LEVEL):
        return NO_WORSE
    if specificity_low is None:
        return ALONE
    return CARRIES if specificity_low > 0 else UNSPECIFIC
