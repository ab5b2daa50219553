"""A text in the ids of an index, and where in the text each id stands.

The same words have several spellings: a word behind a space is another token than at the start of a
line, and what a model generates is often not the tokenizer's own split. Only 19 % of substrings of
a corpus are found whole when spelled as they stand, 70 % with a space before them (tracealign.md
6.5), so a trace asks for `spellings_of` a text. Over bytes there is one spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64
from transformers import PreTrainedTokenizerBase

from ..data.corpus.index_info import IndexInfo, Mode, check_tokenizer
from ..models.errors import MnemoscopeError

AS_WRITTEN, OTHER_SPACE, AS_GIVEN = "as written", "other leading space", "ids as given"

# Scripts that put no spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_REPLACED = "\ufffd"


@dataclass(frozen=True, eq=False)
class SpelledText:
    """A text as ids; id i covers the characters `starts[i]` to before `stops[i]`.

    A character that takes several ids is covered by each of them.
    """

    text: str
    ids: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " n"]
    stops: Int64[np.ndarray, " n"]
    name: str = AS_WRITTEN

    @property
    def word_starts(self) -> Bool[np.ndarray, " n"]:
        """Which ids begin a word, a mark or the space before one."""
        fresh = np.append(True, self.starts[1:] >= self.stops[:-1])[: len(self.ids)]
        allowed = [_begins(self.text, at) for at in self.starts.tolist()]
        return fresh & np.array(allowed, dtype=bool)

    @property
    def delimiters(self) -> tuple[int, ...]:
        """The ids of this text that end a sentence or a line: full stops and line breaks."""
        return tuple({i for i, at in _placed(self) if _delimits(self.text[slice(*at)])})

    def characters(self, start: int, stop: int) -> tuple[int, int]:
        """The characters that ids `start` to before `stop` cover."""
        return int(self.starts[start]), int(self.stops[stop - 1])


@dataclass(frozen=True)
class Spelling:
    """How an index spells texts: bytes, or a tokenizer's ids without special tokens."""

    mode: Mode
    spell: Callable[[str], SpelledText]
    decode: Callable[[Sequence[int]], str]
    sha256: str = ""

    def check(self, info: IndexInfo) -> None:
        """Raise `MnemoscopeError` unless this is how the index was spelled."""
        if info.mode == "bytes" and self.mode == "bytes":
            return
        if self.mode == "bytes":
            raise MnemoscopeError(
                "this index is over token ids, and the text was spelled in bytes: give the "
                "tokenizer that the index was built with."
            )
        try:
            check_tokenizer(info, self.sha256)
        except ValueError as error:
            raise MnemoscopeError(str(error)) from error


def byte_spelling() -> Spelling:
    """The spelling of an index over UTF-8 bytes."""
    return Spelling("bytes", _spell_bytes, _decode_bytes)


def token_spelling(tokenizer: PreTrainedTokenizerBase, sha256: str = "") -> Spelling:
    """The spelling of an index over a tokenizer's ids; `sha256` is that of its vocabulary."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def spell(text: str) -> SpelledText:
        fast = bool(tokenizer.is_fast)
        found = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False
        )
        if not fast:
            return replace(spelled_ids(decode, found["input_ids"]), text=text)
        places = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        ids = np.array(found["input_ids"], dtype=np.int64)
        return SpelledText(text, ids, places[:, 0], places[:, 1])

    return Spelling("tokens", spell, decode, sha256)


def spelled_ids(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> SpelledText:
    """Ids that were generated, with the text they stand for: no tokenizer may split it so."""
    array, text = np.asarray(ids, dtype=np.int64), decode(list(ids))
    whole = [len(decode(list(ids[:n])).rstrip(_REPLACED)) for n in range(1, len(ids))]
    stops = np.maximum.accumulate(np.array([*whole, len(text)], dtype=np.int64))[: len(array)]
    starts = np.append(0, stops[:-1])[: len(array)]
    # An id that only begins a character covers it, as those that end it do.
    return SpelledText(text, array, starts, np.maximum(stops, np.minimum(starts + 1, len(text))))


def spellings_of(text: str, spelling: Spelling) -> tuple[SpelledText, ...]:
    """The text as written, and with a space before it (or without the one it has), if other ids."""
    written = spelling.spell(text)
    if spelling.mode == "bytes":
        return (written,)
    bare = text.lstrip(" ")
    moved = len(text) - len(bare) or -1
    other = spelling.spell(bare if moved > 0 else " " + text)
    shifted = SpelledText(
        text,
        other.ids,
        np.maximum(other.starts + moved, 0),
        np.maximum(other.stops + moved, 0),
        OTHER_SPACE,
    )
    return _distinct((written, shifted))


def spellings_of_ids(ids: Sequence[int], spelling: Spelling) -> tuple[SpelledText, ...]:
    """Generated ids as they are, and their text in the index's own spellings."""
    given = replace(spelled_ids(spelling.decode, ids), name=AS_GIVEN)
    return _distinct((given, *spellings_of(given.text, spelling)))


def copied_ids(
    ids: Int64[np.ndarray, " n"], sources: Sequence[Int64[np.ndarray, " m"]], least: int
) -> Bool[np.ndarray, " n"]:
    """Which ids stand in a stretch of at least `least` ids that one of the sources holds."""
    longest = np.zeros(len(ids), dtype=np.int64)
    for source in sources:
        run = np.zeros(len(ids) + 1, dtype=np.int64)
        for token in source:
            run[1:] = np.where(ids == token, run[:-1] + 1, 0)
            np.maximum(longest, run[1:], out=longest)
    ends = np.flatnonzero(longest >= least) + 1
    edges = np.zeros(len(ids) + 1, dtype=np.int64)
    np.add.at(edges, ends - longest[ends - 1], 1)
    np.add.at(edges, ends, -1)
    return np.cumsum(edges)[:-1] > 0


def _distinct(spelled: Sequence[SpelledText]) -> tuple[SpelledText, ...]:
    kept: dict[bytes, SpelledText] = {}
    for one in spelled:
        kept.setdefault(one.ids.tobytes(), one)
    return tuple(kept.values())


def _placed(spelled: SpelledText) -> list[tuple[int, tuple[int, int]]]:
    """Each id with the characters it covers."""
    ranges = zip(spelled.starts.tolist(), spelled.stops.tolist(), strict=True)
    return list(zip(spelled.ids.tolist(), ranges, strict=True))


def _spell_bytes(text: str) -> SpelledText:
    pieces = [character.encode() for character in text]
    at = np.repeat(np.arange(len(text)), [len(piece) for piece in pieces]).astype(np.int64)
    ids = np.frombuffer(b"".join(pieces), dtype=np.uint8).astype(np.int64)
    return SpelledText(text, ids, at, at + 1)


def _decode_bytes(ids: Sequence[int]) -> str:
    """The text of bytes; characters that were cut at an end are left out."""
    return bytes(ids).decode("utf-8", errors="ignore")


def _begins(text: str, at: int) -> bool:
    """May a span begin, or stop, before this character?"""
    if at == 0 or at >= len(text):
        return True
    here, before = text[at], text[at - 1]
    inside = _in_word(here) and _in_word(before)
    return not inside or bool(_UNSPACED.match(here) or _UNSPACED.match(before))


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _delimits(piece: str) -> bool:
    """A full stop, closing quotes and brackets after it included, or a line break."""
    bare = piece.strip().rstrip("\"')]’”")
    return "\n" in piece or (bare.endswith(".") and not any(map(str.isalnum, bare)))
