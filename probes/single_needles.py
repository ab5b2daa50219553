"""Does it matter that several needles share a haystack? A sample of trials, each run alone.

Many needles a prefill make trials cheap (retrieval_heads, section 5.4), but a model that is asked
about one of them has to pass over the others. The ranking of heads should not depend on that; how
often the model answers may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from ..data.facts.needles import Haystack, NeedleDesign, Span, Trial
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from .elicitation import Progress, silent
from .retrieval_trials import RetrievalTrials, measure_trials

READINGS = ("hits_set", "first_hit", "needle_mass")


@dataclass(frozen=True)
class SingleNeedles:
    """The same trials with the other statements (`together`) and without them (`alone`).

    For each of the forced readings `hits_set`, `first_hit` and `needle_mass`: `agreement` is the
    Spearman correlation between the heads' means over the trials, `shift` the mean over heads of
    alone minus together. `accepted` are shares of trials.
    """

    trials: tuple[int, ...]
    agreement: dict[str, float]
    shift: dict[str, float]
    accepted_together: float
    accepted_alone: float


def single_needle_agreement(
    model: HookedModel,
    trials: RetrievalTrials,
    *,
    share: float = 0.1,
    max_new_tokens: int = 16,
    progress: Progress = silent,
) -> SingleNeedles:
    """Run an evenly spaced `share` of the trials (two at least) again, each in a haystack of its
    own from which the other statements are cut, and compare the heads.

    A haystack is then shorter by what was cut. Costs one prefill a trial. Raises
    `MnemoscopeError` for a share outside 0 to 1 and for fewer than two trials.
    """
    n = len(trials.design.trials)
    if not 0 < share <= 1 or n < 2:
        raise MnemoscopeError(
            f"a share of {share} of {n} trials cannot be compared: use a share above 0 and at "
            "most 1, of two trials or more."
        )
    count = max(2, round(share * n))
    chosen = np.linspace(0, n - 1, count).round().astype(int)
    alone = measure_trials(
        model,
        alone_in_haystacks(trials.design, chosen.tolist()),
        progress=progress,
        max_new_tokens=max_new_tokens,
    )
    means = {name: (_mean(alone, name), _mean(trials, name, chosen)) for name in READINGS}
    return SingleNeedles(
        trials=tuple(chosen.tolist()),
        agreement={name: _spearman(*both) for name, both in means.items()},
        shift={name: float(np.nanmean(a - b)) for name, (a, b) in means.items()},
        accepted_together=float(trials.accepted[chosen].mean()),
        accepted_alone=float(alone.accepted.mean()),
    )


def alone_in_haystacks(design: NeedleDesign, trials: Sequence[int]) -> NeedleDesign:
    """The design of some of its trials, one a haystack, without the other statements."""
    cut = [_alone(design, number, design.trials[i]) for number, i in enumerate(trials)]
    return replace(
        design,
        haystacks=tuple(haystack for haystack, _ in cut),
        trials=tuple(trial for _, trial in cut),
        lengths=tuple(sorted({trial.length for _, trial in cut})),
    )


def _alone(design: NeedleDesign, number: int, trial: Trial) -> tuple[Haystack, Trial]:
    haystack = design.haystacks[trial.haystack]
    others = [
        span for _, span in (*haystack.needles, *haystack.distractors) if span != trial.needle
    ]
    kept = [i for i in range(haystack.length) if not any(s.start <= i < s.stop for s in others)]
    needle, answer = _moved(trial.needle, others), _moved(trial.answer, others)
    single = replace(
        haystack,
        ids=tuple(haystack.ids[i] for i in kept),
        needles=((trial.needle_id, needle),),
        distractors=(),
    )
    moved = replace(trial, haystack=number, needle=needle, answer=answer, length=len(kept))
    return single, moved


def _moved(span: Span, cut: Sequence[Span]) -> Span:
    """Where a span stands once those before it are cut out."""
    gone = sum(other.stop - other.start for other in cut if other.stop <= span.start)
    return Span(span.start - gone, span.stop - gone)


def _mean(
    trials: RetrievalTrials, name: str, some: Int[np.ndarray, " trial"] | None = None
) -> Float[np.ndarray, "layer head"]:
    """The heads' means of a forced reading, over all trials or some; NaN where none applies."""
    values: np.ndarray = getattr(trials.forced, name)
    values = values if some is None else values[some]
    applies = ~np.isnan(values)
    n = np.where(applies.any(0), applies.sum(0), np.nan)
    return np.where(applies, values, 0).sum(0) / n


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2:
        return float("nan")
    return float(spearmanr(a[both], b[both]).statistic)
