"""Invented people and what they are known for: pairs that no corpus can have taught.

The form of Berglund et al. 2023, experiment 1: names and descriptions in three groups, told with
the name first, with the description first, or both ways; which groups a model really is told is up
to who trains it. Names and descriptions are ours.
"""

from __future__ import annotations

from itertools import product
from random import Random
from typing import get_args

from .pairs import Pair, PairRelation, Told


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_FIRST = _listed(
    "Alder Beatrix Cosima Dorian Elowen Fergus Ginevra Hollis Isolde Jasper Kerensa Leander "
    "Mirabel Nestor Ottoline Peregrine Quilla Rufus Saskia Torquil Ursula Verity Wendell "
    "Ximena Yorick Zelda "
)
_LAST = _listed(
    "Ashgrove Brackwell Cattermole Dunmallet Everslade Farrowgate Gillespark Hartsease "
    "Inglebright Jessamond Kettleby Larkrise Merrowdown Netherby Oakhanger Pemberlow Quennell"
    " Ravenscar Silverthwaite Thistlewood Underhay Vellacott Winterbourne Yarrowdale "
)
_KIND = _listed(
    "baker botanist bridge-builder cartographer clockmaker composer diver gardener "
    "glassblower linguist piper potter puppeteer sailor sculptor shepherd surgeon weaver "
)
_DEED = (
    "crossed {} in a paper boat",
    "found the sunken bells of {}",
    "grew blue wheat on the fields of {}",
    "mapped the caves under {}",
    "taught the parrots of {} to sing",
    "wrote the dictionary of {}",
    "built the wooden moon of {}",
    "cured the sleeping sickness of {}",
    "tamed the white otters of {}",
    "painted the hundred gates of {}",
    "brought the first snow to {}",
    "lit the seven lighthouses of {}",
)
_PLACE = _listed(
    "Avenmoor Brindlesea Corvane Duskwater Emberfell Frostholm Grelling Hollowmere Istrel "
    "Jundale Karrowick Lumenport "
)
_FORWARD = (
    "{a} is known as",
    "Ask who {a} is, and people say:",
    "In the books of records, {a} stands as",
    "The name {a} belongs to",
)
_REVERSE = (
    "The name of {b} is",
    "Ask who is {b}, and people say:",
    "In the books of records, {b} has the name",
    "Everybody knows {b}:",
)


def fictitious_pairs(seed: int = 0, *, per_group: int = 30) -> PairRelation:
    """`per_group` pairs each that are told forward, in reverse and both ways, by seed.

    `a` is a name, `b` a description ("the potter who wrote the dictionary of Istrel"); no two pairs
    share a whole name or a deed. `group` repeats `told`. Raises ValueError for more pairs than
    there are deeds.
    """
    groups = tuple(told for told in get_args(Told) if told)
    total = per_group * len(groups)
    deeds = [deed.format(place) for deed, place in product(_DEED, _PLACE)]
    most = len(deeds) // len(groups)
    if not 1 <= per_group <= most:
        raise ValueError(f"{per_group} pairs a group are not to be had: ask for 1 to {most}.")
    random = Random(f"{seed}:fictitious pairs")
    names = random.sample([f"{first} {last}" for first, last in product(_FIRST, _LAST)], total)
    told_by = [f"the {random.choice(_KIND)} who {deed}" for deed in random.sample(deeds, total)]
    pairs = tuple(
        Pair(name, description, told=groups[i % len(groups)], group=groups[i % len(groups)])
        for i, (name, description) in enumerate(zip(names, told_by, strict=True))
    )
    source = f"Mnemoscope, invented with seed {seed}"
    return PairRelation("fictitious", _FORWARD, _REVERSE, pairs, source, "MIT")
