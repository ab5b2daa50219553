"""Plain running text from a small grammar: short scenes of everyday life that state no fact."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random

from .drafts import Draft
from .words import listed, word_count

WOMEN = ("Anna", "Clara", "Emma", "Grace", "Julia", "Laura", "Nora", "Paula", "Rosa", "Sarah")
MEN = ("Ben", "David", "Frank", "Henry", "Karl", "Martin", "Oscar", "Peter", "Simon", "Thomas")

_PLACES = listed(
    "market garden school kitchen river station library park harbour bridge church field mill "
    "hill square shop stable yard forest beach"
)
_THINGS = listed(
    "basket book loaf bottle cup hat coat letter map ladder table chair box candle blanket "
    "cake apple shoe bag rope"
)
_LOOKS = listed("round new small large heavy light clean warm cold red green blue white brown")
_ANIMALS = listed("dog cat horse bird goat duck hen cow")
_MOODS = listed("happy tired hungry calm busy late early quiet glad sad")
_WEATHER = listed("raining snowing sunny windy foggy cloudy hot dark")
_TIMES = listed(
    "in the morning;in the evening;after lunch;before dinner;on Monday;on Friday;on Sunday;"
    "at noon;in the spring;in the winter",
    ";",
)
_WENT = listed("walked ran went drove hurried came")
_TOOK = listed("bought found carried sold lost cleaned painted dropped")
_NUMBERS = listed("two three four five six seven eight nine ten")

_OPENING = "{who} {went} to the {place} {time}."
_SCENES = (
    _OPENING,
    "{They} {took} a {look} {thing} and put it on the {thing2}.",
    "The {thing} was {look}, but the {thing2} was {look2}.",
    "It was {weather} {time}, so {they} stayed near the {place}.",
    "{who} and {friend} met at the {place} and talked about the {thing}.",
    "A {look} {animal} stood next to the {place}.",
    "{They} felt {mood} because it was {weather}.",
    "{friend} gave {them} {number} apples and a {look} {thing}.",
    "Then {they} {went} back to the {place} with the {thing}.",
    "The {animal} was {mood} and slept under the {thing}.",
    "{friend} asked for the {thing}, and {who} said that it was at the {place}.",
    "There were {number} people at the {place} {time}.",
    "{They} {took} the {thing} and waited for {friend}.",
    "When it was {weather}, the {place} was {look} and the {animal} was {mood}.",
    "{who} looked at the {place} for a long time and then {went} home.",
    "Nobody at the {place} had seen the {look} {thing}.",
)

COMMON_WORDS = " ".join(
    (*WOMEN, *MEN, *_PLACES, *_THINGS, *_LOOKS, *_ANIMALS, *_MOODS, *_WEATHER, *_TIMES, *_SCENES)
)
"""Every word that the scenes use, in one string."""


def running_text(random: Random, words: int) -> str:
    """One scene of at least `words` words and marks, ending with a full sentence.

    The scene keeps its people, its place and its things, so that later words follow from earlier
    ones.
    """
    return " ".join(running_sentences(random, words))


def running_sentences(random: Random, words: int) -> list[str]:
    """The sentences of one scene, at least `words` words and marks together."""
    cast = _cast(random)
    sentences: list[str] = []
    length = 0
    while length < words:
        scene = random.choice(_SCENES) if sentences else _OPENING
        sentences.append(_sentence(scene, random, cast))
        length += word_count(sentences[-1])
    return sentences


def running_drafts(random: Random, documents: int) -> list[Draft]:
    """The slice `running`: scenes of 40 to 400 words, in paragraphs."""
    return [Draft("running", _story(random), "running") for _ in range(documents)]


def public_drafts(texts: Iterable[str], longest: int = 2400) -> list[Draft]:
    """Given texts as documents of whole sentences.

    A document has at most `longest` characters, unless a single sentence is longer than that.
    """
    return [
        Draft("running", piece, "running_public") for text in texts for piece in _cut(text, longest)
    ]


def _story(random: Random) -> str:
    paragraphs = random.randint(1, 5)
    return "\n".join(running_text(random, random.randint(40, 80)) for _ in range(paragraphs))


def _cut(text: str, longest: int) -> list[str]:
    pieces: list[str] = []
    for sentence in re.split(r"(?<=[.?!]) +", text):
        if pieces and len(pieces[-1]) + len(sentence) < longest:
            pieces[-1] += f" {sentence}"
        else:
            pieces.append(sentence)
    return pieces


def _cast(random: Random) -> dict[str, list[str]]:
    """The few people and things of one scene."""
    woman = random.random() < 0.5
    who = random.choice(WOMEN if woman else MEN)
    return {
        "who": [who],
        "they": ["she" if woman else "he"],
        "them": ["her" if woman else "him"],
        "friend": [random.choice(MEN if woman else WOMEN)],
        "place": random.sample(_PLACES, 2),
        "thing": random.sample(_THINGS, 3),
        "animal": [random.choice(_ANIMALS)],
    }


def _sentence(scene: str, random: Random, cast: dict[str, list[str]]) -> str:
    choose = random.choice
    things = random.sample(cast["thing"], 2)
    looks = random.sample(_LOOKS, 2)
    (they,) = cast["they"]
    return scene.format(
        who=cast["who"][0],
        they=they,
        They=they.capitalize(),
        them=cast["them"][0],
        friend=cast["friend"][0],
        place=choose(cast["place"]),
        thing=things[0],
        thing2=things[1],
        look=looks[0],
        look2=looks[1],
        animal=cast["animal"][0],
        mood=choose(_MOODS),
        weather=choose(_WEATHER),
        time=choose(_TIMES),
        went=choose(_WENT),
        took=choose(_TOOK),
        number=choose(_NUMBERS),
    )
