"""On which prompts is a unit most active? A look at what a score stands for.

A unit that tells a relation from others may hear a word, a format or a kind of name; the prompts
at its top say which sooner than any number does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars
from jaxtyping import Float

from ..data.facts.designs import Prompt
from ..interventions.neuron_ablation import places_by_site
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from .elicitation import Progress, silent
from .pooled_activations import Pooling, pooled_activations

_AT_ONCE = 256  # prompts whose activations are held for whole layers


def top_prompts(
    model: HookedModel,
    prompts: Sequence[Prompt],
    neuron: NeuronId,
    pooling: Pooling = "mean_nobos",
    n: int = 10,
    *,
    sign: int = 1,
) -> polars.DataFrame:
    """The `n` prompts on which the unit's pooled activation is highest, or with sign -1 lowest.

    See `strongest` for the columns. Runs the model once on every prompt. Raises what
    `unit_activations` and `strongest` raise.
    """
    (values,) = unit_activations(model, prompts, [neuron], pooling)
    return strongest(prompts, values, n, sign=sign)


def strongest(
    prompts: Sequence[Prompt], values: Float[np.ndarray, " n"], n: int = 10, *, sign: int = 1
) -> polars.DataFrame:
    """The first `n` prompts by `sign * values`, ties in the order of the prompts.

    Columns: `rank` from 1, `activation` (as measured, whatever the sign), `relation`, `wording`,
    `subject`, `prompt`. Raises `MnemoscopeError` for a sign other than 1 and -1, and for values
    that are not one a prompt.
    """
    if sign not in (1, -1):
        raise MnemoscopeError(f"a unit's sign is 1 or -1, not {sign}.")
    if values.shape != (len(prompts),):
        raise MnemoscopeError(f"values {values.shape} do not fit {len(prompts)} prompts.")
    order = np.argsort(-sign * values, kind="stable")[:n]
    chosen = [prompts[i] for i in order]
    return polars.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "activation": values[order].astype(np.float64),
            "relation": [prompt.relation for prompt in chosen],
            "wording": [prompt.wording for prompt in chosen],
            "subject": [prompt.subject for prompt in chosen],
            "prompt": [prompt.text for prompt in chosen],
        }
    )


def unit_activations(
    model: HookedModel,
    prompts: Sequence[Prompt],
    neurons: Sequence[NeuronId],
    pooling: Pooling = "mean_nobos",
    *,
    progress: Progress = silent,
) -> Float[np.ndarray, "unit n"]:
    """Pooled activations (float32) of some units, of any layers, on every prompt: one run of the
    model over the prompts for each site.

    Memory: the result, and the layers of the units on 256 prompts. Raises what
    `pooled_activations` raises, `UnitOutOfRangeError` for a unit the model does not have.
    """
    for neuron in neurons:
        model.anatomy.check_neuron(neuron)
    values = np.empty((len(neurons), len(prompts)), dtype=np.float32)
    # Prompts of one length run together, so neighbours should be of like length.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].text))
    for start in range(0, len(order), _AT_ONCE):
        places = order[start : start + _AT_ONCE]
        chunk = [prompts[i] for i in places]
        for site, rows in places_by_site(neurons).items():
            chosen = [neurons[row] for row in rows]
            layers = sorted({one.layer for one in chosen})
            pooled = pooled_activations(model, chunk, site=site, pooling=pooling, layers=layers)
            at = [layers.index(one.layer) for one in chosen], [one.index for one in chosen]
            values[np.ix_(rows, places)] = pooled[at].cpu().numpy()
        progress(start + len(places), len(prompts))
    return values
