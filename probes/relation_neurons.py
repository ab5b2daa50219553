"""Which units tell the prompts of a relation from those of all others, whatever the wording?

A unit's score for a relation is its average precision in the *worst* detection wording, for the
better of its two signs (a unit may go up or down). A perfect score in one wording says little: with
a single wording per relation, label and wording are the same thing (relation_neurons.md 7, 11).

    for every block of layers that fits the memory:               (runs the model again)
        pooled activations [layer, unit, prompt] of the prompts that find, then of those that judge
            for every layer and every wording:
                one sort -> AP of every column, both signs, folded into the worst case so far
        one row a layer in the run

Real relations share their columns' sort with fake ones glued from two halves, with halves and
subsamples of the subjects, and with nulls of wording and of subject length; `neuron_nulls` turns
these into p-values, ceilings and a verdict, `relation_neuron_tables` into tables and sets.

Source: Liu et al. 2025 (arXiv 2502.17355) for the score; the worst case over wordings, both signs,
the hidden site and the nulls are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int, Int8

from ..data.facts.designs import Design
from ..interventions.neuron_ablation import write_norms
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import Site
from ..results.provenance import JSON
from ..results.run import Run
from .elicitation import Progress, silent
from .neuron_nulls import adjusted_by_relation, exchangeable_p, merged_tops, times_selected
from .pooled_activations import Pooling, pooled_activations
from .relation_neuron_layers import GRIDS, LayerScores, Plan, Stage, plan_of

DEFAULT_SHARE = 0.00359
"""The share of a site's units that counts as a relation's set: the paper's 3,000 of 835,584."""


@dataclass(frozen=True, eq=False)
class RelationNeurons:
    """Scores of every unit for every relation, with their nulls. NaN where a design lacks a part.

    Arrays are float32 unless said otherwise. "Signed" means: of the activation times the unit's
    sign, so that high always means high for the relation. Unit ids are `layer * n_units + unit`.
    """

    model_id: str
    site: Site
    pooling: Pooling
    design_sha256: str
    relations: tuple[str, ...]
    wordings: tuple[str, ...]
    """Detection wordings, the axis `wording` of `ap`."""
    new_wordings: tuple[str, ...]
    k: int
    """Size of a relation's set."""
    resamples: int
    score: Float[np.ndarray, "relation layer unit"]
    """AP in the worst detection wording, for the better sign."""
    sign: Int8[np.ndarray, "relation layer unit"]
    """+1 where the unit is high for the relation, -1 where it is low."""
    ap: Float[np.ndarray, "relation wording layer unit"]
    """Signed AP in each detection wording."""
    p: Float[np.ndarray, "relation layer unit"]
    """Against exchangeable labels: the largest p over wordings, doubled for the choice of sign."""
    q: Float[np.ndarray, "relation layer unit"]
    """`p` adjusted by Benjamini and Hochberg over the units of each relation."""
    half: Float[np.ndarray, "half relation layer unit"]
    """The score from either half of the subjects."""
    ap_same: Float[np.ndarray, "relation layer unit"]
    """Signed AP on new subjects, mean over the detection wordings."""
    ap_new: Float[np.ndarray, "relation layer unit"]
    """Signed AP on new subjects, mean over the new wordings."""
    wording_ap: Float[np.ndarray, "relation layer unit"]
    """AP of wording A against wording B within the relation (base rate 1/2), for the better sign
    of each pair, mean over pairs: high for a detector of wordings."""
    length_ap: Float[np.ndarray, "relation layer unit"]
    """AP of long against short subjects within the relation, worst wording, better sign."""
    dprime: Float[np.ndarray, "relation layer unit"]
    """Standardised gap (mean inside minus mean outside the relation, over the pooled sd), not
    signed, mean over detection wordings."""
    mean_in: Float[np.ndarray, "relation layer unit"]
    """Mean pooled activation on the relation's prompts, mean over detection wordings."""
    mean_out: Float[np.ndarray, "relation layer unit"]
    """The same on all other relations' prompts."""
    selected: Int[np.ndarray, "relation layer unit"]
    """In how many of `resamples` subsamples of the subjects the unit is in the top k (int16)."""
    write_norm: Float[np.ndarray, "layer unit"]
    """Length of what the unit writes per unit of hidden activation; NaN without weights."""
    pseudo: tuple[str, ...]
    """Names of the fake relations."""
    pseudo_scores: Float[np.ndarray, "pseudo k"]
    """Scores of the fake relations' best k units, highest first."""
    top_same: Int[np.ndarray, "relation k"]
    """Ids of the k best units on new subjects in the detection wordings, best first."""
    top_new: Int[np.ndarray, "relation k"]
    """The same in the new wordings."""

    @property
    def n_units(self) -> int:
        """Units of the site in one layer."""
        return int(self.score.shape[-1])

    @property
    def n_total(self) -> int:
        """Units of the site in all layers."""
        return int(self.score[0].size)

    def row(self, relation: str) -> int:
        """Place of a relation on the axis `relation`. Raises `MnemoscopeError` if unknown."""
        if relation not in self.relations:
            raise MnemoscopeError(
                f"no units were sought for {relation!r}: choose among {', '.join(self.relations)}."
            )
        return self.relations.index(relation)


@dataclass(frozen=True)
class _Search:
    design: str
    site: Site
    pooling: Pooling
    k: int
    rows: int
    memory_bytes: int

    @property
    def identity(self) -> dict[str, JSON]:
        """What the kept scores depend on."""
        named = {"design": self.design, "site": str(self.site), "pooling": self.pooling}
        return {**named, "k": self.k}


def find_relation_neurons(
    model: HookedModel,
    design: Design,
    *,
    site: Site = Site.NEURON,
    pooling: Pooling = "mean_nobos",
    k: int | None = None,
    memory_bytes: int = 2**31,
    rows: int = 32,
    run: Run | None = None,
    progress: Progress = silent,
) -> RelationNeurons:
    """Score every unit of a site for every relation of the design (module docstring).

    `k` is the size of a relation's set; by default `DEFAULT_SHARE` of all units.

    Memory: `memory_bytes`, beside the model's forward pass on `rows` prompts and the kept results,
    which take at most `10 * (17 + wordings)` bytes a relation and unit and `8 k` bytes a resample
    and pseudo-relation of each layer. Three quarters hold the pooled activations and running worst
    cases of as many layers at once as fit, one quarter sorts. The result does not depend on it.

    With a `run` (whose configuration names the model too), each layer's scores are kept and an
    interrupted search continues, with any `memory_bytes`; a finished run is read back without
    running the model.

    Raises `MnemoscopeError` when not even one layer fits, for a `k` out of range, for a design
    without relations, and for a run of another search; `UnsupportedSiteError` where the
    model has no such units.
    """
    plan = plan_of(design)
    n_layers, n_units = model.anatomy.n_layers, model.anatomy.n_units(site)
    size = _set_size(k, n_layers * n_units)
    search = _Search(design.sha256, site, pooling, size, rows, memory_bytes)
    at_once = _layers_at_once(plan, n_units, memory_bytes)
    kept = {} if run is None else _kept_layers(run, n_layers, search)
    todo = [layer for layer in range(n_layers) if layer not in kept]
    for start in range(0, len(todo), at_once):
        layers = todo[start : start + at_once]

        def tell(done: int, before: int = start) -> None:
            progress(before * plan.n_prompts + done, len(todo) * plan.n_prompts)

        for layer, scores in zip(
            layers, _score_layers(model, plan, search, layers, run, tell), strict=True
        ):
            kept[layer] = scores.arrays(size)
            if run is not None:
                _keep(run, layer, kept[layer], search)
    return _assembled(model, plan, search, [kept[layer] for layer in range(n_layers)])


# -- one block of layers ------------------------------------------------------------------------


def _score_layers(
    model: HookedModel,
    plan: Plan,
    search: _Search,
    layers: Sequence[int],
    run: Run | None,
    progress: Callable[[int], None],
) -> list[LayerScores]:
    """Fold all prompts of the design into the scores of these layers."""
    n_units = model.anatomy.n_units(search.site)
    scores = [LayerScores(plan, n_units, search.memory_bytes // 4) for _ in layers]
    before = 0

    def tell(n_layers: int, earlier: int, done: int, total: int) -> None:
        progress(n_layers * (earlier + done))

    for stage in plan.stages:
        if run is not None:
            run.check_cancelled()
        _add_stage(model, stage, search, layers, scores, partial(tell, len(layers), before))
        before += len(stage.prompts)
    return scores


def _add_stage(
    model: HookedModel,
    stage: Stage,
    search: _Search,
    layers: Sequence[int],
    scores: Sequence[LayerScores],
    progress: Progress,
) -> None:
    """Run the stage's prompts and fold them in; their activations live no longer than this."""
    pooled = pooled_activations(
        model,
        stage.prompts,
        site=search.site,
        pooling=search.pooling,
        layers=layers,
        rows=search.rows,
        progress=progress,
    )
    for layer, values in zip(scores, pooled, strict=True):
        for block, rows in zip(stage.blocks, stage.rows, strict=True):
            layer.add(block, values, rows)


def _layers_at_once(plan: Plan, n_units: int, memory_bytes: int) -> int:
    """How many layers fit three quarters of the memory; the last quarter sorts."""
    layer_bytes = n_units * plan.unit_bytes
    fitting = memory_bytes * 3 // 4 // layer_bytes
    if fitting < 1:
        raise MnemoscopeError(
            f"memory_bytes={memory_bytes} does not hold one layer of {n_units} units: allow at "
            f"least {layer_bytes * 4 // 3 + 4}, or ask about fewer subjects."
        )
    return fitting


def _set_size(k: int | None, n_total: int) -> int:
    if k is None:
        return max(1, round(DEFAULT_SHARE * n_total))
    if not 1 <= k <= n_total:
        raise MnemoscopeError(f"k={k} is out of range: this site has 1 to {n_total} units.")
    return k


# -- the run ------------------------------------------------------------------------------------


def _key(layer: int) -> str:
    return f"relation-neurons-{layer:03d}"


def _keep(run: Run, layer: int, arrays: Mapping[str, np.ndarray], search: _Search) -> None:
    run.check_cancelled()
    run.save_unit_arrays(_key(layer), arrays)
    run.append(_key(layer), {"layer": layer, **search.identity})


def _kept_layers(run: Run, n_layers: int, search: _Search) -> dict[int, dict[str, np.ndarray]]:
    """The layers that the run holds. Raises `MnemoscopeError` if they belong to another search."""
    kept = {}
    for layer in (i for i in range(n_layers) if _key(i) in run.done):
        row = run.done[_key(layer)]
        if any(row.get(name) != value for name, value in search.identity.items()):
            raise MnemoscopeError(
                f"run {run.id} holds layer {layer} of another design, site, pooling or k: put them "
                "into the run's configuration, so that each search has a run of its own."
            )
        kept[layer] = run.load_unit_arrays(_key(layer))
    return kept


# -- all layers ---------------------------------------------------------------------------------


def _assembled(
    model: HookedModel,
    plan: Plan,
    search: _Search,
    layers: Sequence[Mapping[str, np.ndarray]],
) -> RelationNeurons:
    """Stack the layers and draw what needs all units at once."""
    grids = {name: np.stack([layer[name] for layer in layers], axis=-2) for name in GRIDS}
    values, units = merged_tops(layers, search.k)
    tops, n_relations = plan.tops, len(plan.relations)
    p = exchangeable_p(grids["ap"], plan.sizes)
    return RelationNeurons(
        model_id=model.name,
        site=search.site,
        pooling=search.pooling,
        design_sha256=search.design,
        relations=plan.relations,
        wordings=plan.wordings,
        new_wordings=plan.new_wordings,
        k=search.k,
        resamples=plan.draws,
        p=p,
        q=adjusted_by_relation(p),
        selected=times_selected(units[tops.resample], n_relations, p.shape[1:]),
        write_norm=_write_norms(model, search.site),
        pseudo=plan.pseudo,
        pseudo_scores=values[tops.pseudo],
        top_same=units[tops.same],
        top_new=units[tops.new],
        **grids,
    )


def _write_norms(model: HookedModel, site: Site) -> Float[np.ndarray, "layer unit"]:
    """NaN where the engine has no weights to read."""
    if not model.capabilities.weights:
        return np.full((model.anatomy.n_layers, model.anatomy.n_units(site)), np.nan, np.float32)
    return np.asarray(write_norms(model, site).float().numpy())
