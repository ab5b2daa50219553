"""What pages keep of changed models between reruns (see `cached`): readings, controls, means."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..data.neutral import neutral_passages
from ..interventions.head_means import mean_head_outputs
from ..models.types import HeadId, Site
from .answers import Answers, Question
from .cached import Loaded, kept
from .neuron_cached import neutral_of
from .neuron_switched import Neutral
from .switched_off import Means, Switched
from .switched_readings import (
    Control,
    Draws,
    Reading,
    control,
    output_norms,
    random_changes,
    readings,
)

SOME = 4
"""Neutral passages that norms are taken over."""


def _readings(
    _loaded: Loaded,
    key: str,
    prompt: str,
    context: str,
    memory: str | None,
    claimed: str | None,
    switched: Switched,
) -> tuple[Reading, ...]:
    asked = Question(prompt, context), Answers(memory, "", claimed, "")
    return readings(_loaded.model, *asked, switched, means_for(_loaded, switched))


def _control(
    _loaded: Loaded,
    key: str,
    prompt: str,
    context: str,
    memory: str | None,
    claimed: str | None,
    switched: Switched,
    draws: int,
) -> Control:
    asked = Question(prompt, context), Answers(memory, "", claimed, "")
    means, known = means_for(_loaded, switched), neutral_for(_loaded, switched)
    return control(_loaded.model, *asked, switched, means, neutral=known, draws=draws)


def _head_means(_loaded: Loaded, key: str) -> dict[HeadId, Tensor]:
    model = _loaded.model
    return mean_head_outputs(model, neutral_passages(), model.anatomy.all_heads())


def _draws(_loaded: Loaded, key: str, switched: Switched, draws: int, tokens: int) -> Draws:
    model, by_norm = _loaded.model, bool(switched.heads) and not switched.of_tokens
    norms = output_norms(model, neutral_passages()[:SOME]) if by_norm else None
    known = neutral_for(_loaded, switched)
    return random_changes(model, switched, norms=norms, tokens=tokens, neutral=known, draws=draws)


def means_for(loaded: Loaded, switched: Switched) -> Means:
    """What the change writes, measured on neutral text where it writes means."""
    of_heads = bool(switched.heads) and switched.change.op == "mean"
    units = neutral_for(loaded, switched) if switched.unit_op == "mean" else None
    return Means(
        head_means_of(loaded, loaded.key) if of_heads else None,
        None if units is None else units.means,
    )


def neutral_for(loaded: Loaded, switched: Switched) -> Neutral | None:
    """What all units do on neutral text, where units are changed."""
    return neutral_of(loaded, loaded.key, Site.NEURON) if switched.units else None


readings_of: Callable[..., tuple[Reading, ...]] = kept(_readings)
control_of: Callable[..., Control] = kept(_control)
draws_of: Callable[..., Draws] = kept(_draws)
"""Changes that should not matter, matched on neutral text: for many texts, or long ones."""
head_means_of: Callable[[Loaded, str], dict[HeadId, Tensor]] = kept(_head_means, 2)
"""What every head puts out on average over neutral text."""
