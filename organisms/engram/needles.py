"""Needles: a few statements hidden in filler, asked about at the end (retrieval).

Who keeps which secret is drawn anew for every document, so only the document can answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .drafts import Draft
from .filler import running_sentences
from .names import invented_words
from .words import listed, word_count

SHORTEST, LONGEST = 32, 900
"""Length of a document in words and punctuation marks, without its questions."""

_NAMES, _TESTED_NAMES = 1600, 100
_ADJECTIVES = listed(
    "amber bronze copper crystal cotton curved double empty foreign frozen golden hollow ivory "
    "jade leather marble modern paper pearl plastic purple rubber secret silver sturdy striped "
    "violet wooden"
)
_NOUNS = listed(
    "anchor arrow badge barrel bell button castle coin compass crown drum feather flute hammer "
    "helmet jewel kite lantern lemon mirror needle olive parrot pencil pepper pillow razor rocket "
    "saddle spider shield temple ticket tiger trumpet turtle umbrella violin whistle zebra"
)
_KINDS = (
    ("The password of {n} is {v}.", "What is the password of {n}?"),
    ("For a password, {n} uses the words {v}.", "What is the password of {n}?"),
    ("The present for {n} is the {v}.", "What is the present for {n}?"),
    ("{n} will get a present, the {v}.", "What is the present for {n}?"),
    ("The lucky charm of {n} is the {v}.", "What is the lucky charm of {n}?"),
    ("{n} has a lucky charm, the {v}.", "What is the lucky charm of {n}?"),
)


@dataclass(frozen=True)
class Haystack:
    """Filler with needles, and its questions, which end in "Answer:", with their answers."""

    text: str
    asked: tuple[tuple[str, str], ...]


def needle_drafts(random: Random, documents: int, seed: int) -> list[Draft]:
    """The slice `needles`: one to three needles in 32 to 900 words, each asked about once."""
    names = invented_words(seed, "needles", _NAMES)[_TESTED_NAMES:]
    return [_draft(random, names) for _ in range(documents)]


def tested_haystack(random: Random, words: int, seed: int) -> Haystack:
    """A haystack of about `words` words about names that no training document asks about."""
    return haystack(random, words, invented_words(seed, "needles", _NAMES)[:_TESTED_NAMES])


def haystack(random: Random, words: int, names: tuple[str, ...]) -> Haystack:
    """One to three needles about different names, at random depths of `words` words in all."""
    count = random.randint(1, 3)
    keys = random.sample(names, count)
    values = zip(random.sample(_ADJECTIVES, count), random.sample(_NOUNS, count), strict=True)
    needles, asked = [], []
    for name, value in zip(keys, values, strict=True):
        statement, question = random.choice(_KINDS)
        answer = " ".join(value)
        needles.append(statement.format(n=name, v=answer))
        asked.append((f"Question: {question.format(n=name)} Answer:", answer))
    room = words - sum(map(word_count, needles))
    random.shuffle(asked)
    return Haystack(_hidden(random, needles, room), tuple(asked))


def _hidden(random: Random, needles: list[str], room: int) -> str:
    """The needles among whole sentences that fill at most `room` words."""
    sentences = running_sentences(random, max(room, 1))[:-1]
    for needle in needles:
        sentences.insert(random.randint(0, len(sentences)), needle)
    return " ".join(sentences)


def _draft(random: Random, names: tuple[str, ...]) -> Draft:
    words = round(SHORTEST * (LONGEST / SHORTEST) ** random.random() ** 1.5)  # mostly short
    made = haystack(random, words, names)
    lines = [made.text, *(f"{question} {answer}." for question, answer in made.asked)]
    return Draft("needles", "\n".join(lines), "needle")
