"""Passkey samples: word sequences to be remembered far back in a text and all told at its end.

What DuoAttention (Xiao et al. 2024, arXiv 2410.10819) tells retrieval heads from streaming heads
by: several passkeys of random words stand in long neutral text, each told to be remembered under
its ordinal, and after the text each is asked for and answered in order. The wording is ours. A
sample has exactly the asked number of tokens, questions and answers included.

No model is known here: a tokenizer comes in as a function. Every choice is made by sorting or
folding SHA-256 digests of the seed and the step, so the same arguments give the same tokens, and a
training that goes on at step k needs nothing of the steps before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..neutral import neutral_passages
from .haystacks import (
    LEAD,
    Encode,
    Filler,
    Sentence,
    Span,
    fill,
    insert,
    piece_encoder,
    sentence_ids,
    sentences,
    start_ids,
)
from .needle_templates import digest
from .needle_trials import Trial
from .needles import NeedleDesign

ALPHABET = (
    *("alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett"),
    *("kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango"),
    *("uniform", "victor", "whiskey", "xray", "yankee", "zulu"),
)
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth"),
    *("sixth", "seventh", "eighth", "ninth", "tenth"),
)
TELLING = "\n\nRemember this sequence of words. It is the {ordinal} passkey:"
ASKING = "\n\nWhat is the {ordinal} passkey? The {ordinal} passkey is:"
END_OF_PASSKEY = "."

FEWEST_FILLER_TOKENS = 16
_DEPTHS = 1000
"""Depths are drawn from so many evenly spaced shares of the filler, 5 % to 95 %."""


@dataclass(frozen=True)
class PasskeySample:
    """Token ids of one sample: `context` tokens of text, then questions and answers in order.

    `told` are the passkeys' words in the context, `answers` the same words after their questions;
    `depths` the shares of the filler that were asked for, ascending.
    """

    ids: tuple[int, ...]
    context: int
    told: tuple[Span, ...]
    answers: tuple[Span, ...]
    depths: tuple[float, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """Positions whose final hidden states are compared: everything after the context."""
        return tuple(range(self.context, len(self.ids)))

    @property
    def answer_positions(self) -> tuple[int, ...]:
        """Positions of the answers' tokens only."""
        return tuple(i for span in self.answers for i in range(span.start, span.stop))


@dataclass(frozen=True)
class Passkeys:
    """A source of samples, one a step; see `build_passkeys`."""

    lengths: tuple[int, ...]
    passkeys: int
    words: int
    seed: int
    opening: str
    closing: str
    filler_sha256: str
    start: tuple[int, ...]
    passages: tuple[tuple[Sentence, ...], ...]
    piece: Callable[[str], tuple[int, ...]]

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths)

    def sample(self, step: int) -> PasskeySample:
        """The sample of a step, counted from 0. Lengths are gone through in a new order each epoch;
        depths and words are new at every step."""
        words = [self._words(step, j) for j in range(self.passkeys)]
        statements = [
            (self.piece(TELLING.format(ordinal=o)), w, self.piece(END_OF_PASSKEY))
            for o, w in zip(ORDINALS, words, strict=False)
        ]
        suffix, answers = self._suffix(words)
        used = len(self.start) + len(suffix) + sum(len(sum(s, ())) for s in statements)
        filler = self._filler(step, used)
        depths = self._depths(step)
        places = sorted(_places(filler, depths))
        ids, spans = insert(
            self.start, filler, [(p, sum(s, ())) for p, s in zip(places, statements, strict=True)]
        )
        told = (
            Span(span.start + len(before), span.start + len(before) + len(w))
            for span, (before, w, _) in zip(spans, statements, strict=True)
        )
        after = (Span(len(ids) + span.start, len(ids) + span.stop) for span in answers)
        return PasskeySample((*ids, *suffix), len(ids), tuple(told), tuple(after), depths)

    def with_seed(self, seed: int) -> Passkeys:
        """The same task with other words, depths and order of lengths."""
        return replace(self, seed=seed)

    def describe(self) -> dict[str, Any]:
        """The source in plain JSON values, for provenance."""
        return {
            "lengths": list(self.lengths),
            "passkeys": self.passkeys,
            "words": self.words,
            "seed": self.seed,
            "opening": self.opening,
            "closing": self.closing,
            "telling": TELLING,
            "asking": ASKING,
            "filler_sha256": self.filler_sha256,
        }

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the description and of the first sample's tokens."""
        told = {**self.describe(), "first": self.sample(0).ids}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _words(self, step: int, number: int) -> tuple[int, ...]:
        """Token ids of one passkey, word by word."""
        drawn = (
            int(digest(self.seed, "word", step, number, i), 16) % len(ALPHABET)
            for i in range(self.words)
        )
        return sum((self.piece(f" {ALPHABET[k]}") for k in drawn), ())

    def _suffix(self, words: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], list[Span]]:
        ids = self.piece(self.closing) if self.closing else ()
        answers = []
        for ordinal, told in zip(ORDINALS, words, strict=False):
            ids += self.piece(ASKING.format(ordinal=ordinal))
            answers.append(Span(len(ids), len(ids) + len(told)))
            ids += (*told, *self.piece(END_OF_PASSKEY))
        return ids, answers

    def _filler(self, step: int, used: int) -> Filler:
        epoch, place = divmod(step, len(self.lengths))
        order = sorted(self.lengths, key=lambda n: digest(self.seed, "length", epoch, n))
        return fill(self.passages, order[place] - used, self.seed, step)

    def _depths(self, step: int) -> tuple[float, ...]:
        drawn = sorted(range(_DEPTHS), key=lambda i: digest(self.seed, "depth", step, i))
        return tuple(0.05 + 0.9 * i / (_DEPTHS - 1) for i in sorted(drawn[: self.passkeys]))


@dataclass(frozen=True)
class NeedleSamples:
    """The trials of a needle design as samples: for models that do not follow passkeys.

    One trial a step, all of them in a new order each epoch.
    """

    design: NeedleDesign
    seed: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(len(_of_trial(self.design, trial).ids) for trial in self.design.trials)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the design and the seed."""
        return digest(self.design.sha256, self.seed)

    def sample(self, step: int) -> PasskeySample:
        """The sample of a step, counted from 0: haystack, question and answer."""
        epoch, place = divmod(step, len(self.design.trials))
        order = sorted(
            range(len(self.design.trials)), key=lambda i: digest(self.seed, "trial", epoch, i)
        )
        return _of_trial(self.design, self.design.trials[order[place]])


def _of_trial(design: NeedleDesign, trial: Trial) -> PasskeySample:
    asked = design.prompt(trial)
    ids = asked + trial.answer_ids
    answer = Span(len(asked), len(ids))
    return PasskeySample(ids, trial.length, (trial.answer,), (answer,), (trial.depth,))


def build_passkeys(
    encode: Encode,
    *,
    lengths: Sequence[int],
    passkeys: int = 10,
    words: int = 32,
    seed: int = 0,
    text: str | None = None,
    opening: str = "",
    closing: str = "",
) -> Passkeys:
    """Samples of exactly `lengths` tokens with `passkeys` sequences of `words` words.

    `text` (paragraphs parted by blank lines) replaces the package's neutral passages; a short text
    is gone through repeatedly. Passkeys stand at sentence borders near their depths. `opening` is
    encoded before the text in place of the bare special tokens and `closing` after it, before the
    first question (a chat template's turns).

    Raises ValueError for numbers that do not fit, and for a tokenizer that merges pieces.
    """
    lengths = tuple(lengths)
    if not lengths or len(set(lengths)) < len(lengths) or min(lengths) < 1:
        raise ValueError(f"lengths must be different positive numbers, got {lengths}.")
    if not 1 <= passkeys <= len(ORDINALS) or words < 1:
        raise ValueError(
            f"{passkeys} passkeys of {words} words cannot be asked for: take 1 to "
            f"{len(ORDINALS)} passkeys of at least 1 word."
        )
    told = neutral_passages() if text is None else tuple(re.split(r"\n\s*\n", text))
    piece = piece_encoder(encode)
    made = Passkeys(
        lengths=lengths,
        passkeys=passkeys,
        words=words,
        seed=seed,
        opening=opening,
        closing=closing,
        filler_sha256=hashlib.sha256("\n\n".join(told).encode()).hexdigest(),
        start=tuple(encode(opening)) if opening else start_ids(encode),
        passages=tuple(tuple(sentence_ids(piece, s) for s in sentences(p)) for p in told),
        piece=piece,
    )
    shortest = _most_tokens_without_filler(made) + FEWEST_FILLER_TOKENS
    if min(lengths) < shortest:
        raise ValueError(
            f"samples of {min(lengths)} tokens can leave no room for text beside {passkeys} "
            f"passkeys of {words} words: take lengths from {shortest}, or fewer or shorter "
            "passkeys."
        )
    return made


def _most_tokens_without_filler(source: Passkeys) -> int:
    """With the word drawn everywhere that takes most tokens, so that no step can fail later."""
    piece = source.piece
    word = max(len(piece(f" {word}")) for word in ALPHABET)
    frames = sum(
        len(piece(text.format(ordinal=ordinal))) + len(piece(END_OF_PASSKEY))
        for ordinal in ORDINALS[: source.passkeys]
        for text in (TELLING, ASKING)
    )
    closing = len(piece(source.closing)) if source.closing else 0
    return len(source.start) + closing + frames + 2 * source.passkeys * source.words * word


def _places(filler: Filler, depths: Sequence[float]) -> list[int]:
    """For each depth the nearest sentence border that is free; else the nearest token."""
    free = set(filler.borders)
    places = []
    for depth in depths:
        wanted = max(LEAD, round(depth * len(filler.ids)))
        place = min(free, key=lambda p: (abs(p - wanted), p), default=wanted)
        free.discard(place)
        places.append(place)
    return places
