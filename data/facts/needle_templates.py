"""Needles as text: one statement with its answer, its questions, and the words that must stay rare.

Literal needles (templates of several answer types, invented names) can be found by the words of the
question; non-literal ones cannot: the question shares no content word with the statement and takes
a piece of common knowledge (the form of NoLiMa, Modarressi et al. 2025; the wording is ours).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import lcm
from typing import Literal

from .answers import leaks, normalise

NeedleKind = Literal["literal", "non-literal"]


@dataclass(frozen=True)
class Needle:
    """One statement, `before + answer + after`, and what is asked about it.

    `told` is not empty where the statement has the answer's words in another order (`reordered`).
    `questions` holds the plain question first, then paraphrases. `topic` names the template's
    subject matter. No text of `terms` (the answer among them) may stand anywhere else in a
    haystack; what counts as standing there is `answers.leaks`. Raises ValueError for an empty
    answer, one that the rest of the statement or a question tells as well, and for a non-literal
    needle that shares a content word with a question.
    """

    id: str
    kind: NeedleKind
    topic: str
    before: str
    answer: str
    after: str
    questions: tuple[str, ...]
    terms: tuple[str, ...]
    told: str = ""

    def __post_init__(self) -> None:
        if self.told and sorted(self.told.split()) != sorted(self.answer.split()):
            raise ValueError(
                f"needle {self.id!r} tells {self.told!r} for {self.answer!r}: use the same words."
            )
        if not normalise(self.answer) or self.answer != self.answer.strip():
            raise ValueError(f"needle {self.id!r} has the answer {self.answer!r}: give it a word.")
        if not self.questions or self.answer not in self.terms:
            raise ValueError(
                f"needle {self.id!r} needs a question, and its answer among its terms."
            )
        if leaks(self.before, [self.answer]) or leaks(self.after, [self.answer]):
            raise ValueError(f"needle {self.id!r} tells its answer twice: tell it once.")
        for question in self.questions:
            if leaks(question, [self.answer]):
                raise ValueError(f"needle {self.id!r} has its answer in {question!r}: reword it.")
            shared = shared_content(self.statement, question)
            if self.kind == "non-literal" and shared:
                raise ValueError(
                    f"needle {self.id!r} is non-literal, but shares {', '.join(sorted(shared))} "
                    f"with {question!r}: reword one of them."
                )

    @property
    def statement(self) -> str:
        """The needle's sentence."""
        return f"{self.before}{self.written}{self.after}"

    @property
    def written(self) -> str:
        """The answer as the statement has it."""
        return self.told or self.answer


def reordered(needles: Sequence[Needle]) -> tuple[Needle, ...]:
    """The needles with their answers' words in reverse order in the statement, not in the answer.

    No word of the answer then stands behind the one before it, so that a head which looks for what
    followed the present token (induction) cannot copy forward; one that finds the words by what was
    asked can. The right order is told nowhere: read forced rows, among all trials. Raises
    ValueError for an answer of one word.
    """
    for needle in needles:
        if len(needle.answer.split()) < 2:
            raise ValueError(
                f"needle {needle.id!r} has an answer of one word, {needle.answer!r}: only longer "
                f"ones can be reordered (topics {', '.join(WORDY)})."
            )
    return tuple(
        replace(needle, told=" ".join(reversed(needle.answer.split()))) for needle in needles
    )


def make_needles(
    kind: NeedleKind,
    count: int,
    seed: int,
    *,
    topics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Needle, ...]:
    """`count` needles of one kind about `count` people; the same ones for the same arguments.

    Templates take turns, so that each serves equally often, within one; no answer comes twice.
    Literal needles take their names from the front of the seed's order and non-literal ones from
    its end, so that both can be put in one design. `topics` keeps to some topics of `TOPICS` (an
    organism that was taught three of them cannot answer the rest), `names` replaces the invented
    names. Raises ValueError for an unknown kind or topic and where names, values or (non-literal)
    pairs do not suffice.
    """
    if kind not in TOPICS:
        raise ValueError(f"unknown kind of needle {kind!r}: use {' or '.join(TOPICS)}.")
    chosen = TOPICS[kind] if topics is None else tuple(topics)
    if not chosen or set(chosen) - set(TOPICS[kind]):
        raise ValueError(
            f"topics {chosen} of {kind} needles: choose from {', '.join(TOPICS[kind])}."
        )
    if count < 1:
        raise ValueError(f"{count} needles asked for: ask for at least 1.")
    people = _ordered(seed, "name", _invented_names() if names is None else tuple(names))
    if len(set(people)) < len(people):
        raise ValueError("a name is given twice: give each once.")
    if count > len(people):
        raise ValueError(f"there are {len(people)} names for {count} needles: give more names.")
    if kind == "literal":
        return _literal(people[:count], seed, chosen)
    return _non_literal(people[::-1][:count], seed, chosen)


def content_words(text: str) -> frozenset[str]:
    """The folded words of a text that are no function words."""
    return frozenset(normalise(text).split()) - _FUNCTION_WORDS


def shared_content(a: str, b: str) -> frozenset[str]:
    """Content words of `b` that agree with one of `a` in their first five letters.

    Five letters stand in for a stem: "travels" and "travelling" are the same word.
    """
    stems = {word[:5] for word in content_words(a)}
    return frozenset(word for word in content_words(b) if word[:5] in stems)


def digest(*parts: object) -> str:
    """SHA-256 (hex) of the parts, a line each: what every choice of a design is sorted by."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class _Template:
    topic: str
    statement: str
    questions: tuple[str, str]
    values: str


@dataclass(frozen=True)
class _Hop:
    """A statement about {n} with a clue {c}; the question asks for what the clue implies, {a}."""

    topic: str
    statement: str
    question: str
    pairs: tuple[tuple[str, str], ...]


def _listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_FUNCTION_WORDS = frozenset(
    _listed(
        "a an and are as at be been by can did do does for from had has have his her in is it its "
        "may must next not of on or that the their them they this to was were what when where "
        "which who whom will with would"
    )
)

# password, present and charm are what engram was taught, in its words; see docs/engram.md.
_PASSWORD = ("What is the password of {n}?", "What must {n} say to be let in?")
_PRESENT = ("What is the present for {n}?", "Which gift has been chosen for {n}?")
_CHARM = ("What is the lucky charm of {n}?", "What does {n} carry to ward off misfortune?")
_TOWN = ("Where did {n} grow up?", "In which city did {n} spend childhood?")
_LOCKER = ("What is the locker number of {n}?", "Which digits lead to the belongings of {n}?")
_TRAIN = ("When does the train of {n} leave?", "At what time must {n} be on the platform?")
_BOAT = ("What is the boat of {n} called?", "Under which name does {n} sail?")
_TEMPLATES = (
    _Template("password", "The password of {n} is {v}.", _PASSWORD, "phrase"),
    _Template("present", "The present for {n} is the {v}.", _PRESENT, "phrase"),
    _Template("town", "{n} grew up in {v}.", _TOWN, "city"),
    _Template("charm", "The lucky charm of {n} is the {v}.", _CHARM, "phrase"),
    _Template("locker", "The locker number of {n} is {v}.", _LOCKER, "number"),
    _Template("train", "The train of {n} leaves at {v} every day.", _TRAIN, "time"),
    _Template("boat", "The boat of {n} is called the {v}.", _BOAT, "phrase"),
    _Template("password", "For a password, {n} uses the words {v}.", _PASSWORD, "phrase"),
    _Template("present", "{n} will get a present, the {v}.", _PRESENT, "phrase"),
    _Template("town", "It was in {v} that {n} grew up.", _TOWN, "city"),
    _Template("charm", "{n} has a lucky charm, the {v}.", _CHARM, "phrase"),
    _Template("locker", "{n} uses the locker with the number {v} on it.", _LOCKER, "number"),
    _Template("train", "At {v} the train of {n} leaves.", _TRAIN, "time"),
    _Template("boat", "{n} has a boat called the {v}.", _BOAT, "phrase"),
)
_ADJECTIVES = _listed(
    "amber bronze copper crystal cotton curved double empty foreign frozen golden hollow ivory "
    "jade leather marble modern paper pearl plastic purple rubber secret silver sturdy striped "
    "violet wooden"
)
_NOUNS = _listed(
    "anchor arrow badge barrel bell button castle coin compass crown drum feather flute hammer "
    "helmet jewel kite lantern lemon mirror needle olive parrot pencil pepper pillow razor rocket "
    "saddle spider shield temple ticket tiger trumpet turtle umbrella violin whistle zebra"
)
# In none of the countries that a non-literal question asks about.
_CITIES = _listed(
    "Accra Algiers Almaty Amman Auckland Baghdad Baku Bangkok Beirut Belgrade Bogota Bratislava "
    "Bucharest Budapest Caracas Casablanca Chisinau Colombo Dakar Damascus Dhaka Doha Dublin "
    "Gdansk Gothenburg Hanoi Harare Havana Helsinki Jakarta Kampala Karachi Kigali Kyiv Lagos "
    "Lahore Lima Lisbon Ljubljana Luanda Lusaka Manila Minsk Montevideo Nairobi Oslo Porto Quito "
    "Riga Sarajevo Seoul Skopje Sofia Stockholm Taipei Tallinn Tashkent Tbilisi Tehran Tirana "
    "Tunis Vilnius Warsaw Wellington Yerevan Zagreb Zurich"
)
_PLACES = (
    "the Eiffel Tower=France;the Colosseum=Italy;the Taj Mahal=India;Big Ben=England;"
    "the Brandenburg Gate=Germany;the Acropolis=Greece;the Kremlin=Russia;the Great Sphinx=Egypt;"
    "the Grand Canyon=Arizona;Angkor Wat=Cambodia;the Alhambra=Spain;"
    "the Sydney Opera House=Australia;Hagia Sophia=Turkey;the Atomium=Belgium;"
    "the Little Mermaid=Denmark;Christ the Redeemer=Brazil;the Forbidden City=China;"
    "the CN Tower=Canada;Mount Fuji=Japan;the Charles Bridge=the Czech Republic;"
    "the Petronas Towers=Malaysia;Schönbrunn Palace=Austria;the Rijksmuseum=the Netherlands;"
    "the Burj Khalifa=the Emirates"
)
_TRADES = (
    "a cardiologist=treats hearts;an orthodontist=straightens teeth;a beekeeper=harvests honey;"
    "a cobbler=repairs shoes;a sommelier=recommends wine;a seismologist=measures earthquakes;"
    "a lepidopterist=studies butterflies;a barista=makes coffee;an astronomer=observes stars;"
    "a cartographer=draws maps;a choreographer=invents dances;a lumberjack=fells trees;"
    "a florist=sells flowers;an optician=fits spectacles"
)
_ALLERGIES = (
    "milk=cheese;wheat=spaghetti;peanuts=satay;eggs=omelettes;shellfish=prawns;soya=tofu;"
    "sesame=tahini;almonds=marzipan;cocoa=chocolate"
)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    rows = (row.split("=") for row in text.split(";"))
    return tuple((clue, implied) for clue, implied in rows)


_HOPS = (
    _Hop("place", "{n} lives next to {c}.", "Who has been to {a}?", _pairs(_PLACES)),
    _Hop("trade", "{n} works as {c}.", "Who {a}?", _pairs(_TRADES)),
    _Hop("allergy", "{n} is allergic to {c}.", "Who must not have {a}?", _pairs(_ALLERGIES)),
)


TOPICS: dict[NeedleKind, tuple[str, ...]] = {
    "literal": tuple(dict.fromkeys(template.topic for template in _TEMPLATES)),
    "non-literal": tuple(hop.topic for hop in _HOPS),
}
"""The topics of each kind of needle."""
WORDY = tuple(dict.fromkeys(t.topic for t in _TEMPLATES if t.values == "phrase"))
"""Topics of literal needles whose answers have two words."""


def _literal(people: Sequence[str], seed: int, topics: Sequence[str]) -> tuple[Needle, ...]:
    pools = {kind: iter(values) for kind, values in _values(seed).items()}
    templates = [template for template in _TEMPLATES if template.topic in topics]
    return tuple(
        _from_template(templates[i % len(templates)], name, pools) for i, name in enumerate(people)
    )


def _from_template(template: _Template, name: str, pools: Mapping[str, Iterator[str]]) -> Needle:
    value = next(pools[template.values], None)
    if value is None:
        raise ValueError(f"no {template.values} is left for another needle: ask for fewer needles.")
    before, after = template.statement.split("{v}")
    return Needle(
        id=f"literal:{template.topic}:{name}",
        kind="literal",
        topic=template.topic,
        before=before.replace("{n}", name),
        answer=value,
        after=after.replace("{n}", name),
        questions=tuple(question.replace("{n}", name) for question in template.questions),
        terms=(value, name),
    )


def _non_literal(people: Sequence[str], seed: int, topics: Sequence[str]) -> tuple[Needle, ...]:
    """Topics are mixed by the seed; each pair serves once, since its question must stay unique."""
    hops = [hop for hop in _HOPS if hop.topic in topics]
    rows = {(hop.topic, clue): (hop, clue, a) for hop in hops for clue, a in hop.pairs}
    if len(people) > len(rows):
        raise ValueError(
            f"there are {len(rows)} non-literal needles, not {len(people)}: ask for fewer."
        )
    order = sorted(rows, key=lambda key: digest(seed, "hop", *key))
    return tuple(_from_hop(*rows[key], name) for key, name in zip(order, people, strict=False))


def _from_hop(hop: _Hop, clue: str, implied: str, name: str) -> Needle:
    before, after = hop.statement.replace("{c}", clue).split("{n}")
    return Needle(
        id=f"non-literal:{hop.topic}:{name}",
        kind="non-literal",
        topic=hop.topic,
        before=before,
        answer=name,
        after=after,
        questions=(hop.question.replace("{a}", implied),),
        terms=(name, _without_article(clue), _without_article(implied)),
    )


def _without_article(text: str) -> str:
    first, _, rest = text.partition(" ")
    return rest if first in ("a", "an", "the") else text


def _values(seed: int) -> dict[str, tuple[str, ...]]:
    return {
        "phrase": _phrases(seed),
        "city": _ordered(seed, "city", _CITIES),
        "number": _ordered(seed, "number", tuple(str(n) for n in range(2101, 9900))),
        "time": _ordered(
            seed, "time", tuple(f"{h}:{m:02}" for h in range(5, 23) for m in range(1, 60) if m % 5)
        ),
    }


def _phrases(seed: int) -> tuple[str, ...]:
    """All pairs of an adjective and a noun; neighbours in the row share no word."""
    first, second = _ordered(seed, "adjective", _ADJECTIVES), _ordered(seed, "noun", _NOUNS)
    round_trip = lcm(len(first), len(second))
    return tuple(
        f"{first[(i + i // round_trip) % len(first)]} {second[i % len(second)]}"
        for i in range(len(first) * len(second))
    )


@lru_cache(maxsize=1)
def _invented_names() -> tuple[str, ...]:
    """Names of six letters in two syllables, with a middle that no English word has there."""
    vowels = "aeiou"
    syllables = product("bdfgklmnprstvz", vowels, _listed("zd zl zm vr"), vowels, "dklmnrtx")
    return tuple("".join(letters).capitalize() for letters in syllables)


@lru_cache(maxsize=8)
def _ordered(seed: int, role: str, items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(items, key=lambda item: digest(seed, role, item)))
