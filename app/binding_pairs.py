"""The pairs that the page about binding asks about: which relations there are, and a bounded few
of their pairs, in the order in which the `binding` commands take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from ..cli.binding_pairs import ENGRAM, PairsConfig, relation_named
from ..data.facts.pair_sources import FICTITIOUS, pair_relation_names
from ..data.facts.pairs import Pair, PairRelation, usable_pairs, with_pairs
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..organisms.engram.pairs import engram_pair_names
from ..probes.role_prompts import role_prompts

FEWEST, USUAL, MOST = 16, 48, 128
"""How many pairs a page takes; more are the business of `mnemoscope binding`."""
WORDINGS = 4
"""Wordings of each direction that the page uses."""
TOLD = {
    "both": "both ways",
    "forward": "forward only",
    "reverse": "reverse only",
    "": "nobody knows",
}
"""`Pair.told` in words."""


@dataclass(frozen=True, eq=False)
class PairSet:
    """The pairs on show, in their wordings, and what else there was.

    `told` says whether the relation knows in which directions its pairs were told.
    """

    relation: PairRelation
    dropped: dict[str, int]
    whole: int

    @property
    def told(self) -> bool:
        """Whether training is known."""
        return any(pair.told for pair in self.relation.pairs)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs on show."""
        return self.relation.pairs

    def labels(self) -> tuple[str, ...]:
        """A name of each pair for a list; they differ, since no entity has two partners."""
        return tuple(f"{pair.a} – {pair.b}" for pair in self.pairs)


def relation_names(place: str) -> tuple[str, ...]:
    """Relations that are offered for a model: the organism's own first, those of which it was told
    each pair one way or both ways in front; then the shipped ones."""
    own = engram_pair_names()[::-1] if place == ENGRAM else ()
    shipped = sorted(pair_relation_names(), key=lambda name: name != "capital")
    return (*own, *(name for name in shipped if name not in own), FICTITIOUS)


def pair_set(model: HookedModel, place: str, name: str, most: int) -> PairSet:
    """The first `most` pairs, in random order of seed 0, that can be asked both ways and are clean
    in the model's tokens. Raises `MnemoscopeError` where fewer than 16 are left."""
    relation = relation_named(PairsConfig(place, name, wordings=WORDINGS))
    try:
        usable = usable_pairs(relation)
    except ValueError as error:
        raise MnemoscopeError(str(error)) from error
    drawn = list(usable.relation.pairs)
    Random(0).shuffle(drawn)
    clean = role_prompts(model, with_pairs(usable.relation, drawn))
    dropped = {**usable.dropped, **clean.dropped}
    kept = clean.relation.pairs[:most]
    if len(kept) < FEWEST:
        why = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none dropped"
        raise MnemoscopeError(
            f"{len(kept)} pairs of {name!r} can be asked both ways in the tokens of {model.name} "
            f"({why}), but this page needs {FEWEST}: choose another relation."
        )
    return PairSet(replace(clean.relation, pairs=kept), dropped, len(relation.pairs))
