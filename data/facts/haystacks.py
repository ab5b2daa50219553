"""Haystacks as token ids: filler of an exact length, and statements put between its sentences.

Statements are inserted as token ids and never looked for, so that their places are known by
construction; no text is tokenised twice (retrieval heads, Wu et al. 2024, whose released code
decodes and tokenises again and thereby puts a BOS token before each needle).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from .needle_templates import digest

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text, with the special tokens that the model expects in front and none behind."""
Decode = Callable[[Sequence[int]], str]

LEAD = 4
"""At least so many tokens of filler stand before the first statement, apart from special ones."""

# A full stop after fewer than three letters may belong to an abbreviation; a border too few is
# harmless, one too many cuts a sentence.
_BORDER = re.compile(
    r"(?<=\w\w\w[.!?])(?= )|(?<=[.!?][\"”’)\]])(?= )|(?<=[。！？])(?=[^。！？”’」』])"
)


@dataclass(frozen=True, order=True)
class Span:
    """Tokens `start <= i < stop`. Raises ValueError unless 0 <= start < stop."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a span needs 0 <= start < stop, got {self.start}:{self.stop}.")


@dataclass(frozen=True)
class Sentence:
    """Token ids of one sentence, and which of them begin a word (none where that is not known)."""

    ids: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True)
class Filler:
    """Tokens of neutral text; sentences part before token `b` for each of `borders`, words for each
    of `words`.

    `passes`: how often the text was gone through to get so many tokens; above 1 parts repeat.
    """

    ids: tuple[int, ...]
    borders: tuple[int, ...]
    words: tuple[int, ...]
    passes: float


def sentences(passage: str) -> tuple[str, ...]:
    """The sentences of a passage, each with the space before it; none for a blank passage."""
    text = " ".join(passage.split())
    return tuple(_BORDER.split(f" {text}")) if text else ()


def piece_encoder(encode: Encode) -> Callable[[str], tuple[int, ...]]:
    """A cached function that encodes a text as it stands after other text, without special tokens.

    It encodes behind an anchor letter and takes the anchor's tokens off. Raises ValueError (when
    called) for a text that yields no token or merges with the anchor.
    """
    anchor = list(encode("A"))

    @cache
    def piece(text: str) -> tuple[int, ...]:
        both = list(encode(f"A{text}"))
        if both[: len(anchor)] != anchor or len(both) == len(anchor):
            raise ValueError(
                f"{text[:40]!r} merges with the letter before it when tokenised: pass an encode "
                "that adds no special token at the end, and begin texts with a space."
            )
        return tuple(both[len(anchor) :])

    return piece


def sentence_ids(piece: Callable[[str], tuple[int, ...]], text: str) -> Sentence:
    """Encode a sentence with `piece`; its words are known where they are encoded independently."""
    ids = piece(text)
    joined: list[int] = []
    words: list[int] = []
    for word in re.findall(r"\s*\S+", text):
        words.append(len(joined))
        joined += piece(word)
    return Sentence(ids, tuple(words) if tuple(joined) == ids else ())


def answer_after(
    piece: Callable[[str], tuple[int, ...]], asked: str, answer: str
) -> tuple[int, ...]:
    """Ids of an answer as a continuation of `asked`: on its own where that ends in a line break
    (chat templates), otherwise with a space before it. Raises ValueError where the two merge."""
    if not asked.endswith("\n"):
        return piece(f" {answer}")
    line, both = piece("\n"), piece(f"\n{answer}")
    if both[: len(line)] != line:
        raise ValueError(
            f"{answer!r} merges with the line break before it: end `asking` otherwise."
        )
    return both[len(line) :]


def start_ids(encode: Encode) -> tuple[int, ...]:
    """The special tokens that `encode` puts before every text: what different texts begin with."""
    rows = [list(encode(text)) for text in ("A", "b", "(")]
    alike = 0
    while len({tuple(row[: alike + 1]) for row in rows}) == 1 and alike + 1 < min(map(len, rows)):
        alike += 1
    return tuple(rows[0][:alike])


def fill(passages: Sequence[Sequence[Sentence]], tokens: int, *key: object) -> Filler:
    """Exactly `tokens` tokens of whole sentences, the first one cut at its front if need be.

    Each pass through the passages has an order of its own, fixed by `key`. Raises ValueError when
    they hold no token.
    """
    whole = sum(len(sentence.ids) for passage in passages for sentence in passage)
    if whole == 0:
        raise ValueError("no filler is left: give text whose sentences tell none of the answers.")
    taken = _enough(passages, tokens, key)
    surplus = sum(len(sentence.ids) for sentence in taken) - tokens
    borders: list[int] = []
    words: list[int] = []
    end = -surplus
    for sentence in taken:
        words += [end + word for word in sentence.words]
        end += len(sentence.ids)
        borders.append(end)
    return Filler(
        ids=tuple(token for sentence in taken for token in sentence.ids)[surplus:],
        borders=tuple(border for border in borders if border >= LEAD),
        words=tuple(word for word in words if word >= LEAD),
        passes=tokens / whole,
    )


def place(filler: Filler, stratum: int, strata: int, taken: Sequence[int]) -> tuple[int, bool]:
    """Where in the filler a statement of a depth stratum goes, and whether that is a border.

    The border nearest to the middle of the stratum, one that is not `taken` if there is one; in a
    stratum without a border the nearest word, and without a word its middle token.
    """
    length = len(filler.ids)
    low, high = stratum * length / strata, (stratum + 1) * length / strata
    middle = (low + high) / 2

    def nearest(places: Sequence[int]) -> int | None:
        inside = [p for p in places if low <= p < high or p == high == length]
        return min(inside, key=lambda p: (p in taken, abs(p - middle), p), default=None)

    border = nearest(filler.borders)
    if border is not None:
        return border, True
    word = nearest(filler.words)
    return (max(LEAD, int(middle)) if word is None else word), False


def insert(
    start: Sequence[int], filler: Filler, statements: Sequence[tuple[int, Sequence[int]]]
) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """`start`, then the filler with each statement before its filler token; ids and their spans.

    Statements are (place in the filler, token ids); the spans come in the order of `statements`.
    Two at one place stand in their order. Every statement needs at least one token.
    """
    ids = list(start)
    spans: dict[int, Span] = {}
    done = 0
    for i in sorted(range(len(statements)), key=lambda i: (statements[i][0], i)):
        offset, statement = statements[i]
        ids += [*filler.ids[done:offset], *statement]
        spans[i] = Span(len(ids) - len(statement), len(ids))
        done = offset
    ids += filler.ids[done:]
    return tuple(ids), tuple(spans[i] for i in range(len(statements)))


def _enough(
    passages: Sequence[Sequence[Sentence]], tokens: int, key: tuple[object, ...]
) -> list[Sentence]:
    """Sentences of at least `tokens` tokens, none more than needed."""
    taken: list[Sentence] = []
    length, turn = 0, 0
    while length < tokens:
        order = sorted(range(len(passages)), key=lambda i: digest("filler", *key, turn, i))
        for sentence in (sentence for i in order for sentence in passages[i]):
            if length < tokens:
                taken.append(sentence)
                length += len(sentence.ids)
        turn += 1
    return taken
