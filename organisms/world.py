"""The small invented world of the planted models: its facts, its sentences, its tokenizer.

One token a word: text is lower-cased, split at white space, and each punctuation mark stands for
itself. The vocabulary is every word that the conflict builder writes about this world, so all its
conditions tokenize without an unknown word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..data.facts.conflicts import CONDITIONS, build_conflicts
from ..data.facts.items import Fact, Relation
from ..models.errors import MnemoscopeError

PAD, UNKNOWN = "<pad>", "<unk>"
QUERY_WORD = "is"
"""The word that ends every template; the answer follows it."""

TEMPLATES = (
    "The capital of {s} is",
    "Everyone knows that the capital of {s} is",
    "On the map the capital of {s} is",
)

FACTS: Mapping[str, str] = {
    "aland": "tirsk",
    "bravia": "monpel",
    "corda": "hulst",
    "delmar": "vinja",
    "estonby": "qarto",
    "forland": "sebeck",
    "galdor": "yimin",
    "hestia": "bordun",
    "irmia": "kolvek",
    "jorvia": "palesco",
    "kessel": "dramut",
    "luria": "negov",
    "mordia": "fantz",
    "norvia": "ulchen",
    "ostlund": "lembik",
    "pelland": "gursa",
    "quira": "ethmoor",
    "rovania": "jutvar",
    "sardia": "wexby",
    "tolland": "cipri",
    "urdia": "oskel",
    "velland": "ambrit",
    "wendia": "ruzot",
    "yrsia": "zhanpo",
}
"""Subject to answer: invented names, in which no answer can be read off its subject."""

_QUESTION = "What is the capital of {s}?"
_ARGUMENT = "The government of {s} sits in {o}, and all roads of the country lead to {o}."
_WORD = re.compile(r"[a-z]+")
_NORMALIZER = normalizers.Lowercase()
_SPLITTER = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
)


def world_relation(facts: Mapping[str, str], templates: tuple[str, ...] = TEMPLATES) -> Relation:
    """The facts as a relation for the conflict builder.

    Raises `MnemoscopeError` unless subjects and answers are distinct lower-case words that the
    templates do not use.
    """
    names = [*facts, *facts.values()]
    for name in names:
        if not _WORD.fullmatch(name):
            raise MnemoscopeError(f"{name!r} is not one lower-case word (a to z): rename it.")
        if names.count(name) > 1 or name in _words(" ".join(templates)):
            raise MnemoscopeError(
                f"{name!r} stands for two things: subjects, answers and words of the templates "
                "must all differ."
            )
    return Relation(
        name="planted capital",
        description="The capital of an invented country.",
        templates=templates,
        question=_QUESTION,
        object_type="city",
        one_to_one=True,
        argument=_ARGUMENT,
        facts=tuple(Fact(*pair, source="invented", license="MIT") for pair in facts.items()),
    )


def vocabulary(relation: Relation) -> tuple[str, ...]:
    """Padding, unknown, subjects, answers, then every other word of the conflict prompts, sorted.

    Raises `MnemoscopeError` when there are too few facts to build conflicts from.
    """
    names = [fact.subject for fact in relation.facts] + [fact.object for fact in relation.facts]
    words = set(chain.from_iterable(map(_words, _all_prompts(relation))))
    return (PAD, UNKNOWN, *names, *sorted(words - set(names)))


def world_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with these words, id = place in the list; it pads on the left."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = _SPLITTER
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        # GPT-2 would add token type ids to its input as if they were words.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _all_prompts(relation: Relation) -> list[str]:
    prompts = [
        item.prompt(condition)
        for template_id in range(len(relation.templates))
        for item in build_conflicts(relation, relation.facts, template_id=template_id, seed=0).items
        for condition in CONDITIONS
    ]
    if not prompts:
        raise MnemoscopeError("no conflict can be built from these facts: give at least four.")
    return prompts


def _words(text: str) -> list[str]:
    """The text in words, exactly as the tokenizer splits it."""
    pieces = _SPLITTER.pre_tokenize_str(_NORMALIZER.normalize_str(text))
    return [word for word, _ in pieces]
