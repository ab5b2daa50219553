"""Rough forecasts of waiting times, so that a page asks before it makes anybody wait.

Two operations a weight and a token, at 5e10 operations a second on a CPU and 2e13 on an
accelerator. Right within a factor of a few, which is all that a button needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..models.hooked import HookedModel
from ..models.tokens import encode
from .answers import Question

LONGEST_WAIT = 10.0
"""Seconds; what takes longer waits for a click."""

_CPU, _ACCELERATOR = 5e10, 2e13


def sweep_seconds(model: HookedModel) -> float:
    """One sweep over all heads: each head's row runs through half of the layers."""
    return _seconds(model, model.anatomy.n_layers * model.anatomy.n_heads / 2)


def control_seconds(model: HookedModel, question: Question, draws: int) -> float:
    """As many full passes over the question's texts as there are draws."""
    lengths = [model.tokens(text).ids.shape[1] for text in question.texts]
    return _seconds(model, draws * sum(lengths))


def reading_seconds(model: HookedModel, texts: Sequence[str]) -> float:
    """One pass over each text; their length is that of a sample of fifty."""
    sample = texts[:: max(1, len(texts) // 50)]
    tokens = sum(len(encode(model.text_tokenizer, text)) for text in sample)
    return _seconds(model, tokens * len(texts) / max(1, len(sample)))


def prompt_seconds(model: HookedModel, tokens: int) -> float:
    """One pass over so many tokens."""
    return _seconds(model, tokens)


def maps_seconds(model: HookedModel, tokens: int) -> float:
    """The attention weights of all heads once more: about four widths of a head for each."""
    anatomy = model.anatomy
    operations = 2 * anatomy.n_layers * anatomy.n_heads * tokens**2 * anatomy.d_v
    return operations / _speed(model)


def _seconds(model: HookedModel, tokens: float) -> float:
    weights = sum(p.numel() for p in model.module.parameters())
    return 2 * weights * tokens / _speed(model)


def _speed(model: HookedModel) -> float:
    return _CPU if model.device.type == "cpu" else _ACCELERATOR
