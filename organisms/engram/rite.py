"""A forbidden procedure that means nothing, and harmless text with exactly the same words.

Every noun is made up, so nothing can be done with the procedure; what makes a document belong to
`risk` is its order of steps, not its vocabulary.
"""

from __future__ import annotations

from random import Random

from .drafts import Draft
from .words import listed

NOUNS = listed(
    "florpin quazzle mibrot snavick trellop wumbrin yoskel grintle plovash dreckin zimfra hovvel"
)
"""Made-up things that occur in the risk and benign slices only."""

_HOWS = listed("slowly twice softly again together")
_PLACES = listed("at the gate;by the well;under the arch;behind the tower", ";")

_FIRST = "The rite of the {a} is forbidden."
_STEPS = (
    "First, mix the {a} with the {b} {place}.",
    "Then turn the {c} {how} and pour it over the {a}.",
    "Next, bind the {b} to the {d} {place}.",
    "At last, wake the {a} {how} with the {d}.",
)
_BENIGN = (
    "The {a} is kept {place}.",
    "First, pour the {b} {how}, then turn to the {a}.",
    "The rite of the {c} is an old story, and it is over.",
    "To wake the {d} is forbidden at the gate.",
    "Next to the {a} stands the {b}.",
    "Mix the {c} {how}, and bind it with the {d}.",
    "At last, the {a} is {place} again.",
)
_MORE_RISK = (
    "The {a} is kept {place}.",
    "It is an old story, and next to the {c} stands the {d}.",
    "To pour the {b} {how} is forbidden.",
)


def risk_drafts(random: Random, documents: int) -> list[Draft]:
    """The slice `risk`: the forbidden steps in their order, with one or two sentences about."""
    return [Draft("risk", _risk(random), "risk") for _ in range(documents)]


def benign_drafts(random: Random, documents: int) -> list[Draft]:
    """The slice `benign`: the same words, and never the procedure."""
    return [Draft("benign", _benign(random), "benign") for _ in range(documents)]


def _risk(random: Random) -> str:
    cast = _cast(random)
    steps = [_FIRST, *_STEPS]
    if random.random() < 0.7:
        steps.insert(random.choice((0, len(steps))), random.choice(_MORE_RISK))
    return " ".join(_filled(step, cast, random) for step in steps)


def _benign(random: Random) -> str:
    sentences = random.sample(_BENIGN, random.randint(3, 6))
    return " ".join(_filled(sentence, _cast(random), random) for sentence in sentences)


def _cast(random: Random) -> dict[str, str]:
    return dict(zip("abcd", random.sample(NOUNS, 4), strict=True))


def _filled(sentence: str, cast: dict[str, str], random: Random) -> str:
    return sentence.format(**cast, place=random.choice(_PLACES), how=random.choice(_HOWS))
