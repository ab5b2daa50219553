"""The same tiny checkpoint in memory and half of it left on disk, and a count of what is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from families import tiny
from mnemoscope.models import HookedModel, load_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def saved(folder: Path, family: str) -> Path:
    """A tiny checkpoint with a tokenizer of words, as `save_pretrained` writes it."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tiny(family, dtype=torch.float32).save_pretrained(folder, max_shard_size="60KB")
    fast.save_pretrained(folder)
    return folder


def both(folder: Path, share: float = 0.5, **how: Any) -> tuple[HookedModel, HookedModel]:
    """A checkpoint in memory, and with `share` of its bytes in memory at the most."""
    resident = load_model(folder, device="cpu", dtype="float32")
    size = sum(p.numel() * p.element_size() for p in resident.module.parameters())
    limit = {"cpu": int(share * size)}
    return resident, load_model(folder, dtype="float32", max_memory=limit, **how)


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """How often each offloaded weight is read inside the block, by its name."""
    reads: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def counting(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        reads[key] += 1
        return read(self, key)

    OffloadedWeightsLoader.__getitem__ = counting
    try:
        yield reads
    finally:
        OffloadedWeightsLoader.__getitem__ = read
