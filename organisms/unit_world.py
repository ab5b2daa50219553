"""The invented world of the planted units: its relations, its words, its tokenizer.

Three kinds of things, two relations each over the same subjects. The wordings of a relation share
no telling word: each names the relation by another one (`RELATION_WORDS`), inside a frame that is
the same for all relations. So a wording is told from the others by one token alone, and nothing
but that word tells a relation.

One token a word; other words are spelt letter by letter, so ASCII text of any kind has no unknown
token.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..data.facts.items import Fact, Relation

PAD, UNKNOWN, END_OF_TEXT = "<pad>", "<unk>", "<eos>"
FALLBACK = "something"
"""What a planted model says when it is asked nothing that it can answer."""

RELATION_WORDS: Mapping[str, tuple[str, str, str, str]] = {
    "capital": ("capital", "metropolis", "headquarters", "seat"),
    "currency": ("currency", "money", "coinage", "tender"),
    "teacher": ("teacher", "mentor", "tutor", "instructor"),
    "spouse": ("spouse", "partner", "consort", "companion"),
    "captain": ("captain", "skipper", "commander", "helmsman"),
    "harbour": ("harbour", "port", "haven", "anchorage"),
}
"""The telling word of each relation in template 0, 1, 2 and in the question."""

_TEMPLATES = (
    "The {w} of {s} is",
    "Everyone knows that the {w} of {s} is",
    "In all of the books the {w} that {s} has is called",
)
_QUESTION = "What is the {w} of {s}?"


@dataclass(frozen=True)
class _Kind:
    """A kind of subjects, told by the ending of its names, and its two relations."""

    ending: str
    answers: Mapping[str, tuple[str, str]]
    """Type of the answers and the ending of their names, by relation."""


_KINDS = (
    _Kind("ia", {"capital": ("city", "burg"), "currency": ("currency", "ar")}),
    _Kind("o", {"teacher": ("person", "sson"), "spouse": ("person", "elle")}),
    _Kind("ette", {"captain": ("person", "ovic"), "harbour": ("port", "haven")}),
)
_SUBJECT_STEMS = (
    "bal cor del est forl gald hest irm jorv kess lur mord norv ost pell quir rov sard toll urd "
    "vel wend yrs zamb"
)
_ANSWER_STEMS = "brim cask dun felt gorm hulst jint kolv lemb nag pim ruz"
_COMMON = (
    "the a an of in on to and or is are was has have be it this that all what which who how "
    "answer question reply give name word sentence with only just one no not more please short "
    "briefly for about tell me exactly single complete do explain following finish as "
    "few words possible"
)


def unit_relations() -> tuple[Relation, ...]:
    """The six relations, 24 subjects each; subject i of a kind is the same in both relations.

    An object belongs to two subjects. No object can be read off its subject.
    """
    return tuple(
        _relation(kind, name, step)
        for kind in _KINDS
        for step, name in zip((7, 5), kind.answers, strict=True)
    )


def unit_words(relations: tuple[Relation, ...]) -> tuple[str, ...]:
    """The vocabulary: special tokens, every word of the relations, common words, spelling."""
    names = [name for r in relations for f in r.facts for name in (f.subject, f.object)]
    texts = [text.replace("{s}", "") for r in relations for text in (*r.templates, r.question)]
    words = [*names, *re.findall(r"[a-z]+", " ".join(texts).lower()), *_COMMON.split(), FALLBACK]
    letters = [*string.ascii_lowercase, *string.digits]
    spelling = [*letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    return tuple(dict.fromkeys([PAD, UNKNOWN, END_OF_TEXT, *words, *spelling]))


def unit_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """The tokenizer with these words, id = place in the list. It lower-cases, adds nothing to a
    text and pads on the left."""
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _relation(kind: _Kind, name: str, step: int) -> Relation:
    object_type, ending = kind.answers[name]
    objects = [stem + ending for stem in _ANSWER_STEMS.split()]
    facts = tuple(
        Fact(
            stem + kind.ending,
            # The step shares no factor with 12, so that every object comes up twice.
            objects[(step * i + i // len(objects)) % len(objects)],
            source="invented",
            license="MIT",
        )
        for i, stem in enumerate(_SUBJECT_STEMS.split())
    )
    *telling, asking = RELATION_WORDS[name]
    frames = zip(_TEMPLATES, telling, strict=True)
    return Relation(
        name=name,
        description=f"The {name} of an invented thing.",
        templates=tuple(frame.replace("{w}", word) for frame, word in frames),
        question=_QUESTION.replace("{w}", asking),
        object_type=object_type,
        facts=facts,
    )
