"""The verdict on a traced text in three parts that stay apart: chance, contrast, policy.

- verbatim: is a span found that the corpus would hardly hold by chance?
- contrast: does this corpus hold it more often, for its size, than a benign one?
- policy: does the sentence around it contradict a policy?

The latter two are asked of spans beyond chance only (by the fixed threshold of the rules): whether
an accident is commoner here than there says nothing. Each part has its own threshold. `calibrate`
sets them on harmless texts, so that each part alone goes off on at most the stated share of them; a
text is flagged only where all parts that were asked for go off on one span, which is rarer still.
Without calibration only chance has a threshold, and nothing is decided: idioms are beyond chance
too (59 % of harmless 100-token passages of program code held such a match, in an index of 7 million
tokens of other code). And more parts are stricter: a span told once has a contrast of ln 3 at most
(corpora of one size), which spans that are merely local to one corpus exceed.

All of it speaks of verbatim occurrence, not of cause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data.corpus.span_scores import significance_threshold
from ..models.errors import MnemoscopeError
from .conformal_thresholds import ConformalThreshold, conformal_threshold
from .traced_spans import PARTS, Part, TracedSpan

CLAIM = "Verbatim occurrence, not cause."


@dataclass(frozen=True)
class Calibration:
    """Thresholds set on harmless texts that were traced with the same rules and corpora."""

    thresholds: Mapping[Part, ConformalThreshold]
    false_refusal: float


@dataclass(frozen=True)
class VerdictPart:
    """The highest score of any span in one part, its threshold, and whether it is exceeded.

    `score` is `-inf` without a span and None where the part was not asked for; `threshold` and
    `holds` are None where nothing says how high is too high.
    """

    part: Part
    score: float | None
    threshold: float | None
    holds: bool | None
    words: str


@dataclass(frozen=True)
class Verdict:
    """The three parts, and the spans (numbers in `Trace.spans`) on which all asked parts hold.

    `flagged` is None, and no span agreed, without calibration of every part that was asked for.
    `false_refusal` is the share of harmless texts that are flagged at most, None without
    calibration.
    """

    verbatim: VerdictPart
    contrast: VerdictPart
    policy: VerdictPart
    agreed: tuple[int, ...]
    flagged: bool | None
    false_refusal: float | None

    @property
    def words(self) -> str:
        """The verdict in sentences."""
        parts = " ".join(part.words for part in (self.verbatim, self.contrast, self.policy))
        if self.flagged is None:
            return f"{CLAIM} {parts} Not decided: calibrate on harmless texts first."
        spans = "1 span" if len(self.agreed) == 1 else f"{len(self.agreed)} spans"
        found = f"Flagged by {spans}" if self.flagged else "Not flagged"
        return f"{CLAIM} {parts} {found} (harmless texts: at most {self.false_refusal:g})."


def text_score(spans: Sequence[TracedSpan], part: Part) -> float | None:
    """The highest score of a text's spans in a part, of those that it is asked of.

    `-inf` without any; None where the part was not asked for.
    """
    scores = [span.score(part) for span in spans if _counts(span, part)]
    if any(score is None for score in scores):
        return None
    return max((score for score in scores if score is not None), default=-math.inf)


def calibrate(harmless: Sequence[Sequence[TracedSpan]], false_refusal: float = 0.01) -> Calibration:
    """Thresholds from the spans of harmless texts, one entry a text (texts without spans too).

    A part that was not asked for when they were traced gets no threshold. Where hardly a harmless
    text has a span, the threshold is `-inf`: any span is above it. Raises `StatisticsError`
    where there are too few texts for the rate, `MnemoscopeError` where a part was asked for in some
    texts only.
    """
    thresholds: dict[Part, ConformalThreshold] = {}
    for part in PARTS:
        scores = [text_score(spans, part) for spans in harmless]
        known = [score for score in scores if score is not None]
        if len(known) == len(scores):
            thresholds[part] = conformal_threshold(known, false_refusal)
        elif any(map(math.isfinite, known)):
            raise MnemoscopeError(
                f"the {part} part was scored in some harmless texts and not in others: trace all "
                "of them with the same corpora and policy."
            )
    return Calibration(thresholds, false_refusal)


def judge(
    spans: Sequence[TracedSpan],
    asked: Sequence[Part],
    n_tests: int,
    *,
    alpha: float,
    calibration: Calibration | None = None,
) -> Verdict:
    """The verdict on a text with these spans, in the parts that were asked for.

    Without calibration chance has the threshold `ln(n_tests / alpha)`: a text of chance matches
    exceeds it with probability at most `alpha`; whether to flag the text is then not decided.
    """
    limits = {part: _threshold(part, n_tests, alpha, calibration) for part in asked}
    parts = {part: _part(part, spans, part in asked, limits.get(part)) for part in PARTS}
    agreed = tuple(i for i, span in enumerate(spans) if _agree(span, limits))
    undecided = calibration is None or any(limit is None for limit in limits.values())
    return Verdict(
        verbatim=parts["verbatim"],
        contrast=parts["contrast"],
        policy=parts["policy"],
        agreed=() if undecided else agreed,
        flagged=None if undecided else bool(agreed),
        false_refusal=None if calibration is None else calibration.false_refusal,
    )


def _counts(span: TracedSpan, part: Part) -> bool:
    """Is the part asked of this span? Never of echoes of the prompt."""
    return not span.echo and (part == "verbatim" or span.beyond_chance)


def _threshold(
    part: Part, n_tests: int, alpha: float, calibration: Calibration | None
) -> float | None:
    if calibration is not None and part in calibration.thresholds:
        return calibration.thresholds[part].threshold
    if part == "verbatim" and calibration is None:
        return significance_threshold(max(1, n_tests), alpha)
    return None


def _agree(span: TracedSpan, limits: Mapping[Part, float | None]) -> bool:
    """Is the span above every threshold?"""
    return all(
        _counts(span, part) and limit is not None and (span.score(part) or 0.0) > limit
        for part, limit in limits.items()
    )


def _part(
    part: Part, spans: Sequence[TracedSpan], asked: bool, threshold: float | None
) -> VerdictPart:
    score = text_score(spans, part) if asked else None
    holds = None if score is None or threshold is None else score > threshold
    return VerdictPart(part, score, threshold, holds, _words(part, score, threshold, holds))


def _words(part: Part, score: float | None, threshold: float | None, holds: bool | None) -> str:
    if score is None:
        return _UNASKED[part]
    if score == -math.inf:
        return _NO_SPAN[part]
    limit = "no threshold" if threshold is None else f"threshold {threshold:.2f}"
    state = {True: "yes", False: "no", None: "not decided"}[holds]
    return f"{_QUESTION[part]} {state} ({score:.2f}, {limit})."


_QUESTION: dict[Part, str] = {
    "verbatim": "Found verbatim beyond chance:",
    "contrast": "More frequent here than in the benign corpus:",
    "policy": "Contradicts the policy:",
}
_NO_SPAN: dict[Part, str] = {
    "verbatim": "No span found verbatim (beside echoes of the prompt).",
    "contrast": "No span beyond chance to compare with the benign corpus.",
    "policy": "No span beyond chance to hold against the policy.",
}
_UNASKED: dict[Part, str] = {
    "verbatim": "Chance was not judged.",
    "contrast": "No benign corpus was given.",
    "policy": "No policy was given.",
}
