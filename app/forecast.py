"""Forecasts of waiting times, so that a page asks before it makes anybody wait.

Rough ones take two operations a weight and a token, at 5e10 operations a second on a CPU and 2e13
on an accelerator: right within a factor of several, on a busy machine too low. Where a wait may be
long the machine is asked first how fast it is just now (`measured_pace`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ..models.hooked import HookedModel
from ..models.tokens import encode
from .answers import Question

LONGEST_WAIT = 10.0
"""Seconds; what takes longer waits for a click."""

_CPU, _ACCELERATOR = 5e10, 2e13
_PROBE, _LONGEST_PROBE = 64, 2.0
"""Tokens of the pass that is timed, and seconds that it may be thought to take."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over one token, and of each further token of a pass."""

    step: float
    token: float


def rough_pace(model: HookedModel) -> Pace:
    """What the model's size alone says."""
    return Pace(_seconds(model, 1), _seconds(model, 1))


def measured_pace(model: HookedModel) -> Pace:
    """Timed on this machine as it is just now, by a short pass and one over a token.

    The rough pace where already that would be a wait.
    """
    rough = rough_pace(model)
    probe = min(_PROBE, model.anatomy.max_context or _PROBE)
    if rough.token * probe > _LONGEST_PROBE or probe < 2:
        return rough
    _pass_seconds(model, 1)  # the first one loads what later ones find loaded
    step = _pass_seconds(model, 1)
    return Pace(step, max(0.0, _pass_seconds(model, probe) - step) / (probe - 1))


def trial_seconds(model: HookedModel, pace: Pace, tokens: int, steps: int) -> float:
    """A prompt of so many tokens, each of which is held against each other, then single steps."""
    anatomy = model.anatomy
    looking = 4 * anatomy.n_layers * anatomy.n_heads * anatomy.d_v * tokens**2
    return tokens * pace.token + looking * _operation(model, pace) + steps * pace.step


def maps_seconds(model: HookedModel, pace: Pace, tokens: int) -> float:
    """The attention weights of all heads once more, and their pooling.

    About ten operations a width of a head and a weight that is seen.
    """
    anatomy = model.anatomy
    cells = anatomy.n_layers * anatomy.n_heads * tokens**2 / 2
    return 10 * anatomy.d_v * cells * _operation(model, pace)


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


def lens_seconds(model: HookedModel, positions: int) -> float:
    """Every layer's stream at so many positions through the unembedding."""
    anatomy = model.anatomy
    operations = 2 * (anatomy.n_layers + 1) * positions * anatomy.d_model * anatomy.d_vocab
    return operations / _speed(model)


def prompt_seconds(model: HookedModel, tokens: int) -> float:
    """One pass over so many tokens."""
    return _seconds(model, tokens)


def _pass_seconds(model: HookedModel, tokens: int) -> float:
    batch = model.batch([[0] * tokens])
    began = perf_counter()
    model.logits(batch, at="end").cpu()  # waits for an accelerator
    return perf_counter() - began


def _operation(model: HookedModel, pace: Pace) -> float:
    return pace.token / (2 * _weights(model))


def _seconds(model: HookedModel, tokens: float) -> float:
    return 2 * _weights(model) * tokens / _speed(model)


def _weights(model: HookedModel) -> int:
    return sum(p.numel() for p in model.module.parameters())


def _speed(model: HookedModel) -> float:
    return _CPU if model.device.type == "cpu" else _ACCELERATOR
