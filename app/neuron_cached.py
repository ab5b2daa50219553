"""What the page about relation neurons keeps between reruns (see `cached`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..data.facts.designs import Prompt
from ..data.neutral import neutral_passages
from ..models.types import NeuronId, Site
from ..probes.unit_prompts import unit_activations
from .cached import Loaded, kept
from .neuron_runs import NeuronRun, neuron_run, run_prompts
from .neuron_switched import (
    Change,
    Neutral,
    UnitControl,
    UnitReading,
    neutral,
    unit_control,
    unit_edits,
    unit_reading,
)
from .unit_text import unit_over_text


def _run(folder: str, updated: str) -> NeuronRun:
    return neuron_run(Path(folder))


def _prompts(_run: NeuronRun, key: str) -> tuple[Prompt, ...]:
    return run_prompts(_run)


def _activations(
    _loaded: Loaded, _run: NeuronRun, _prompts: tuple[Prompt, ...], key: tuple[str, str]
) -> Float[np.ndarray, "unit prompt"]:
    return unit_activations(_loaded.model, _prompts, _run.units, _run.summary["pooling"])


def _neutral(_loaded: Loaded, key: str, site: Site) -> Neutral:
    return neutral(_loaded.model, site, neutral_passages())


def _reading(
    _loaded: Loaded,
    key: str,
    _known: Neutral,
    prompt: str,
    units: tuple[NeuronId, ...],
    change: Change,
    factor: float,
) -> UnitReading:
    edits = unit_edits(units, change, factor, _known.means) if units else ()
    return unit_reading(_loaded.model, prompt, edits)


def _unit_text(
    _loaded: Loaded, key: str, text: str, unit: NeuronId
) -> tuple[list[str], Float[np.ndarray, " token"]]:
    return unit_over_text(_loaded.model, text, unit)


def _control(
    _loaded: Loaded,
    key: str,
    _known: Neutral,
    prompt: str,
    units: tuple[NeuronId, ...],
    change: Change,
    factor: float,
    token: int,
    spared: tuple[NeuronId, ...],
    draws: int,
) -> UnitControl:
    model = _loaded.model
    return unit_control(
        model, prompt, units, change, factor, _known, token, spared=spared, draws=draws
    )


run_of: Callable[[str, str], NeuronRun] = kept(_run)
prompts_of: Callable[[NeuronRun, str], tuple[Prompt, ...]] = kept(_prompts, 4)
activations_of: Callable[..., Float[np.ndarray, "unit prompt"]] = kept(_activations, 2)
neutral_of: Callable[[Loaded, str, Site], Neutral] = kept(_neutral, 4)
unit_reading_of: Callable[..., UnitReading] = kept(_reading)
unit_text_of: Callable[..., tuple[list[str], Float[np.ndarray, " token"]]] = kept(_unit_text)
unit_control_of: Callable[..., UnitControl] = kept(_control)
