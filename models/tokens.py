"""Text becomes token ids here and nowhere else, so that the BOS rule is one rule.

The rule: the tokenizer's own special tokens at the front are kept as its authors set them (Gemma
adds BOS, SmolLM2 does not), a trailing EOS is removed, and nothing is added. `bos_rule` words it
for the provenance of a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .errors import PromptError


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids of several prompts, padded to one length; `mask` is True on real tokens."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def starts(self) -> Int[Tensor, " batch"]:
        """Column of each row's first real token."""
        return self.mask.int().argmax(dim=1)

    @property
    def ends(self) -> Int[Tensor, " batch"]:
        """Column of END, each row's last real token."""
        return self.mask.shape[1] - 1 - self.mask.flip(1).int().argmax(dim=1)

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Positions counted from each row's first real token; 0 on padding."""
        return (self.mask.long().cumsum(1) - 1) * self.mask

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    def row(self, i: int) -> Int[Tensor, " pos"]:
        """The real token ids of row i."""
        return self.ids[i][self.mask[i]]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one text under the BOS rule above. Raises `PromptError` when it is empty."""
    if not text.strip():
        raise PromptError("the prompt is empty: give at least one word.")
    return _without_eos(tokenizer, tokenizer(text, verbose=False)["input_ids"])


def _without_eos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    kept = list(ids)
    while len(kept) > 1 and kept[-1] == tokenizer.eos_token_id:
        kept.pop()
    return kept


def encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """`encode` of each text, and where its tokens stand: first and one-after-last character.

    A token that stands for no text (BOS) has (0, 0). Needs a fast tokenizer. Raises `PromptError`
    for an empty text.
    """
    if not all(text.strip() for text in texts):
        raise PromptError("a prompt is empty: give at least one word.")
    given = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    rows = [_without_eos(tokenizer, ids) for ids in given["input_ids"]]
    return [
        (ids, [(int(start), int(end)) for start, end in offsets[: len(ids)]])
        for ids, offsets in zip(rows, given["offset_mapping"], strict=True)
    ]


def pad(
    rows: Sequence[Sequence[int]], pad_id: int = 0, side: Literal["left", "right"] = "left"
) -> TokenBatch:
    """Pad rows of token ids to one length. Raises `PromptError` for an empty row or batch."""
    if not rows or any(len(row) == 0 for row in rows):
        raise PromptError("no tokens to run: every row needs at least one token.")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        cells = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, cells] = torch.tensor(row, dtype=torch.long)
        mask[i, cells] = True
    return TokenBatch(ids, mask)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, separator: str = " "
) -> tuple[int, ...]:
    """Token ids that `answer` adds after `prompt`, found by encoding both ways (ph3.md 1.3).

    Raises `PromptError` when the answer is empty or its first letters merge into the prompt's
    last token, so that no position of the prompt predicts it.
    """
    if not answer.strip():
        raise PromptError("the answer is empty.")
    before = encode(tokenizer, prompt)
    both = encode(tokenizer, f"{prompt}{separator}{answer}")
    if both[: len(before)] != before or len(both) == len(before):
        raise PromptError(
            f"{answer!r} merges with the end of the prompt {prompt[-30:]!r} when tokenised: end "
            "the prompt at a word boundary, without a trailing space."
        )
    return tuple(both[len(before) :])


def bos_rule(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS rule in words, for provenance."""
    first = encode(tokenizer, "a")[0]
    added = first == tokenizer.bos_token_id
    return f"tokenizer default ({tokenizer.bos_token!r} added)" if added else "no BOS added"


def text_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, for axis labels; never interpreted as markup."""
    return [tokenizer.decode([i]) for i in ids]


@dataclass(frozen=True)
class PlainEncoder:
    """Text to ids without special tokens, as corpora are indexed; other processes can have it."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, text: str) -> list[int]:
        """The ids of a text, which may be empty."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary, id by id."""
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(repr(vocab).encode()).hexdigest()
