"""Between which tokens a place in a text lies: the way from character spans to token spans."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .tokens import encode, encode_with_offsets

Cuts = tuple[int, ...]


def token_cuts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cuts: Sequence[Sequence[int]]
) -> list[tuple[list[int], Cuts | None]]:
    """Token ids of each text, and how many of its tokens lie before each cut.

    A cut is an index of a character (0 is before the first one); special tokens at the front lie
    before every cut, and a space belongs to the word behind it where the tokenizer has it so. None
    in place of the cuts where letters from both sides of one of them merge into one token. From the
    tokenizer's character offsets, or, where it gives none, by encoding what stands before each cut.
    Raises `PromptError` for an empty text.
    """
    if not tokenizer.is_fast:
        return [
            _by_prefixes(tokenizer, text, where) for text, where in zip(texts, cuts, strict=True)
        ]
    return [
        (ids, _all_or_none([_tokens_before(text, offsets, cut) for cut in where]))
        for text, where, (ids, offsets) in zip(
            texts, cuts, encode_with_offsets(tokenizer, texts), strict=True
        )
    ]


def _tokens_before(text: str, offsets: Sequence[tuple[int, int]], cut: int) -> int | None:
    before = 0
    for start, end in offsets:
        left, right = text[start : min(end, cut)].strip(), text[max(start, cut) : end].strip()
        if left and right:
            return None
        before += end <= cut or bool(left)
    return before


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase, text: str, where: Sequence[int]
) -> tuple[list[int], Cuts | None]:
    ids = encode(tokenizer, text)
    return ids, _all_or_none([_tokens_of(tokenizer, text[:cut], ids) for cut in where])


def _tokens_of(tokenizer: PreTrainedTokenizerBase, prefix: str, ids: list[int]) -> int | None:
    if not prefix.strip():
        return int(ids[0] == tokenizer.bos_token_id)
    before = encode(tokenizer, prefix.rstrip())
    return len(before) if ids[: len(before)] == before else None


def _all_or_none(counts: Sequence[int | None]) -> Cuts | None:
    known = tuple(count for count in counts if count is not None)
    return known if len(known) == len(counts) else None
