"""The invented world of the planted retrieval model: its needles, its filler, its tokenizer.

One token a word, text is lower-cased, and one `<bos>` stands before every text. A needle is "The
code of NAME is FIRST SECOND."; no name and no word of a code belongs to two needles. A question
shares the name with its needle and nothing else. The filler says nothing about codes.
"""

from __future__ import annotations

from itertools import permutations

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ..data.facts.needle_templates import Needle
from .world import PAD, UNKNOWN, world_tokenizer


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOS, END_OF_TEXT = "<bos>", "<eos>"
NAMES = _listed(
    "aldo bruna celik dorit emeka farah goran hilde imran jutta kofi leona "
    "milos nadia oskar petra quirin rosa stefan tamar ulrik vesna wanda yusuf"
)
FIRST = _listed(
    "amber bronze copper crystal cotton curved double empty foreign frozen golden hollow "
    "ivory jade leather marble modern paper pearl plastic purple rubber silver violet"
)
SECOND = _listed(
    "anchor arrow badge barrel button castle compass crown drum feather flute hammer "
    "helmet jewel kite lantern mirror needle parrot pencil rocket saddle turtle zebra"
)
_QUESTIONS = ("Which words did {n} choose?", "What did {n} choose?")
_WORDS = _listed("the code of is which words what did choose question answer . ? :")
_THINGS = _listed("river mill boat field road bird")
_VERBS = _listed("passes meets follows leaves")
_SENTENCES_A_PASSAGE = 8


def retrieval_needles() -> tuple[Needle, ...]:
    """The 24 needles, each with a plain question and a paraphrase."""
    return tuple(
        Needle(
            id=f"code:{name}",
            kind="literal",
            topic="code",
            before=f"The code of {name} is ",
            answer=f"{first} {second}",
            after=".",
            questions=tuple(question.replace("{n}", name) for question in _QUESTIONS),
            terms=(f"{first} {second}", name),
        )
        for name, first, second in zip(NAMES, FIRST, SECOND, strict=True)
    )


def retrieval_filler() -> str:
    """Fifteen paragraphs of eight sentences, no two of them alike; 7 tokens a sentence."""
    sentences = [
        f"The old {a} {verb} the {b}." for a, b in permutations(_THINGS, 2) for verb in _VERBS
    ]
    # Neighbours differ in more than the verb.
    mixed = [sentences[i * 47 % len(sentences)] for i in range(len(sentences))]
    starts = range(0, len(mixed), _SENTENCES_A_PASSAGE)
    return "\n\n".join(" ".join(mixed[i : i + _SENTENCES_A_PASSAGE]) for i in starts)


def retrieval_words() -> tuple[str, ...]:
    """The vocabulary: special tokens, names, words of codes, all other words."""
    special = (PAD, UNKNOWN, BOS, END_OF_TEXT)
    return (*special, *NAMES, *FIRST, *SECOND, *_WORDS, "old", *_THINGS, *_VERBS)


def retrieval_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer, id = place in `retrieval_words`, that puts `<bos>` in front."""
    words = retrieval_words()
    tokenizer = world_tokenizer(words)
    tokenizer.add_special_tokens({"bos_token": BOS, "eos_token": END_OF_TEXT})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    return tokenizer
