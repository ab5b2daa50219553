"""Relation-specific neurons exactly as Liu et al. 2025 select them, for comparison.

For each relation: the prompts that the model answers right are positives, four times as many of
the other relations' are negatives; every output coordinate of the gate, up and down projections is
scored by the average precision of its mean over all prompt tokens, signed; the highest k are the
relation's neurons (paper, section 3). What is known to be wrong with that is in docs; use
`relation_neurons` for conclusions of your own and `paper_relation_effects` for the ablations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.facts.designs import Prompt
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId, Site
from ..results.neuron_controls import uniform_random_neurons
from .average_precision import average_precision
from .elicitation import Progress, greedy_texts, silent
from .paper_relations import (
    PaperPreset,
    PaperPrompt,
    PaperRelation,
    is_right,
    labels,
    prompts_of,
    split_triples,
)
from .pooled_activations import layer_blocks, pooled_activations

Ranks = Int[np.ndarray, "relation rank"]


@dataclass(frozen=True)
class UnitPool:
    """The units that are ranked together, numbered layer by layer, in it site by site."""

    n_layers: int
    sites: tuple[Site, ...]
    widths: tuple[int, ...]

    @property
    def per_layer(self) -> int:
        """Units of one layer over all sites."""
        return sum(self.widths)

    def __len__(self) -> int:
        return self.n_layers * self.per_layer

    def place(self, site: Site) -> slice:
        """Where a site's units stand among those of a layer."""
        at = self.sites.index(site)
        return slice(sum(self.widths[:at]), sum(self.widths[: at + 1]))

    def neurons(self, numbers: Int[np.ndarray, " unit"]) -> tuple[NeuronId, ...]:
        """The units of these numbers, in their order."""
        layers, within = np.divmod(numbers, self.per_layer)
        ends = np.cumsum(self.widths)
        at = np.searchsorted(ends, within, side="right")
        index = within - (ends - self.widths)[at]
        rows = zip(layers.tolist(), index.tolist(), at.tolist(), strict=True)
        return tuple(NeuronId(layer, i, self.sites[site]) for layer, i, site in rows)


@dataclass(frozen=True, eq=False)
class PaperNeurons:
    """The relations' highest units, and the prompts that chose them and will test them.

    `ranking` holds unit numbers of `pool`, best first, and `ap` their average precision, both as
    deep as the largest budget of the preset. The paper leaves ties to chance; here the larger gap
    (mean of positives minus mean of negatives, in standard deviations) goes first, then the lower
    number. `n_tied` counts the units whose AP is that of rank k: where it is much above 1 (few
    positives, many units at AP 1), the cut is no property of the relation. `detection` are
    the prompts that the model answers right, `n_asked` how many of each relation it was asked;
    `held_out` and `reworded` are the facts kept apart, in the old and the new wording, unfiltered.
    `n_negatives` below `preset.negatives` times the positives means that the other relations had
    no more.
    """

    preset: PaperPreset
    model_id: str
    relations: tuple[str, ...]
    pool: UnitPool
    ranking: Ranks
    ap: Float[np.ndarray, "relation rank"]
    detection: tuple[PaperPrompt, ...]
    held_out: tuple[PaperPrompt, ...]
    reworded: tuple[PaperPrompt, ...]
    n_asked: Int[np.ndarray, " relation"]
    n_positives: Int[np.ndarray, " relation"]
    n_negatives: Int[np.ndarray, " relation"]
    n_tied: Int[np.ndarray, " relation"]

    @property
    def k(self) -> int:
        """How many units a relation's set holds."""
        return self.preset.set_size(len(self.pool))

    def row(self, relation: str) -> int:
        """The relation's row in the arrays. Raises `MnemoscopeError` for one that was not asked."""
        if relation not in self.relations:
            raise MnemoscopeError(
                f"relation {relation!r} was not asked: use one of {', '.join(self.relations)}."
            )
        return self.relations.index(relation)

    def neurons(
        self, relation: str, k: int | None = None, *, after: int = 0
    ) -> tuple[NeuronId, ...]:
        """Ranks `after` + 1 to `k` (the preset's k without one) of a relation, best first.

        Raises `MnemoscopeError` for ranks that were not kept.
        """
        k = self.k if k is None else k
        if not 0 <= after < k <= self.ranking.shape[1]:
            raise MnemoscopeError(
                f"ranks {after + 1} to {k} were not kept: choose from 1 to "
                f"{self.ranking.shape[1]}, or give the preset larger sizes."
            )
        return self.pool.neurons(self.ranking[self.row(relation), after:k])

    def random_sets(self, k: int | None = None) -> tuple[tuple[NeuronId, ...], ...]:
        """The paper's control: the preset's number of draws of k units each, even over the pool."""
        units = dict(zip(self.pool.sites, self.pool.widths, strict=True))
        return uniform_random_neurons(
            self.k if k is None else k,
            self.pool.n_layers,
            units,
            draws=self.preset.random_draws,
            seed=self.preset.seed,
        ).draws

    def overlaps(self) -> Int[np.ndarray, "relation relation"]:
        """How many units two relations' sets share; by chance `k ** 2 / len(pool)`."""
        sets = [np.sort(row) for row in self.ranking[:, : self.k]]
        return np.array([[len(np.intersect1d(a, b, True)) for b in sets] for a in sets])

    def layers(self) -> Int[np.ndarray, "relation layer"]:
        """How many units of each relation's set lie in each layer."""
        layers = self.ranking[:, : self.k] // self.pool.per_layer
        return np.stack([np.bincount(row, minlength=self.pool.n_layers) for row in layers])

    def table(self) -> polars.DataFrame:
        """One row a relation and rank, to rank k: relation, rank, layer, site, index, ap."""
        frames = []
        for relation, ap in zip(self.relations, self.ap, strict=True):
            chosen = self.neurons(relation)
            columns = {
                "relation": [relation] * self.k,
                "rank": range(1, self.k + 1),
                "layer": [unit.layer for unit in chosen],
                "site": [str(unit.site) for unit in chosen],
                "index": [unit.index for unit in chosen],
                "ap": ap[: self.k],
            }
            frames.append(polars.DataFrame(columns))
        return polars.concat(frames)


def find_paper_neurons(
    model: HookedModel,
    relations: Sequence[PaperRelation],
    preset: PaperPreset | None = None,
    *,
    rows: int = 32,
    memory_bytes: int = 2**30,
    progress: Progress = silent,
) -> PaperNeurons:
    """Score every unit of the pool for every relation and keep the highest.

    `memory_bytes` bounds the pooled activations (`[unit, prompt]`, float32) that are held at once;
    the model runs again for each block of layers and each site. `progress` counts the prompts of
    the filter first, then the layers of all sites.

    Raises `MnemoscopeError` for fewer than two relations, names that occur twice, a relation with
    too few facts or of which the model answers nothing, `UnsupportedSiteError` for an MLP without
    a gate.
    """
    preset = preset or PaperPreset()
    names = _checked_names(relations)
    pool = _pool(model, preset.sites)
    k = preset.set_size(len(pool))
    depth = max(k, *preset.budgets(len(pool)), 1)
    asked, held_out, reworded = _prompts(relations, preset)
    detection = answered_right(model, asked, preset.new_tokens, rows=rows, progress=progress)
    _check_answered(model, names, asked, detection)
    positive, member = labels(names, detection, preset.negatives, preset.seed)
    ap, gap = _scores(model, detection, positive, member, pool, memory_bytes, rows, progress)
    ranking = np.lexsort((-gap, -ap), axis=1)[:, :depth]
    at_cut = np.take_along_axis(ap, ranking[:, k - 1 : k], axis=1)
    return PaperNeurons(
        preset=preset,
        model_id=model.name,
        relations=names,
        pool=pool,
        ranking=ranking,
        ap=np.take_along_axis(ap, ranking, axis=1),
        detection=detection,
        held_out=held_out,
        reworded=reworded,
        n_asked=_counts(names, asked),
        n_positives=positive.sum(1),
        n_negatives=(member & ~positive).sum(1),
        n_tied=(ap == at_cut).sum(1),
    )


def answered_right(
    model: HookedModel,
    prompts: Sequence[PaperPrompt],
    new_tokens: int,
    *,
    rows: int = 32,
    progress: Progress = silent,
) -> tuple[PaperPrompt, ...]:
    """The prompts whose greedy continuation of a few tokens is a beginning of the gold object."""
    texts = greedy_texts(
        model, [p.text for p in prompts], rows=rows, new_tokens=new_tokens, progress=progress
    )
    return tuple(p for p, said in zip(prompts, texts, strict=True) if is_right(said, p.gold))


def _checked_names(relations: Sequence[PaperRelation]) -> tuple[str, ...]:
    names = tuple(relation.name for relation in relations)
    if len(set(names)) < len(names) or len(names) < 2:
        raise MnemoscopeError(
            f"a relation's neurons are found against other relations': give two or more, each "
            f"once, not {', '.join(names) or 'none'}."
        )
    return names


def _pool(model: HookedModel, sites: tuple[Site, ...]) -> UnitPool:
    widths = tuple(model.anatomy.n_units(site) for site in sites)
    return UnitPool(model.anatomy.n_layers, sites, widths)


def _prompts(
    relations: Sequence[PaperRelation], preset: PaperPreset
) -> tuple[tuple[PaperPrompt, ...], ...]:
    """Prompts for detection, for evaluation, and of the evaluation facts in the new wording."""
    asked: list[PaperPrompt] = []
    held_out: list[PaperPrompt] = []
    reworded: list[PaperPrompt] = []
    for relation in relations:
        detection, kept = split_triples(relation, preset.held_out, preset.seed)
        asked += prompts_of(relation, detection, relation.templates)
        held_out += prompts_of(relation, kept, relation.templates)
        reworded += prompts_of(relation, kept, relation.new_templates)
    return tuple(asked), tuple(held_out), tuple(reworded)


def _counts(names: Sequence[str], prompts: Sequence[PaperPrompt]) -> Int[np.ndarray, " relation"]:
    asked = [prompt.relation for prompt in prompts]
    return np.array([asked.count(name) for name in names])


def _check_answered(
    model: HookedModel,
    names: Sequence[str],
    asked: Sequence[PaperPrompt],
    right: Sequence[PaperPrompt],
) -> None:
    counts = zip(names, _counts(names, asked), _counts(names, right), strict=True)
    nothing = [f"{name} (0 of {n})" for name, n, known in counts if known == 0]
    if nothing:
        raise MnemoscopeError(
            f"{model.name} answers no detection prompt of {', '.join(nothing)}: leave these "
            "relations out or take a larger model."
        )


def _scores(
    model: HookedModel,
    prompts: Sequence[PaperPrompt],
    positive: np.ndarray,
    member: np.ndarray,
    pool: UnitPool,
    memory_bytes: int,
    rows: int,
    progress: Progress,
) -> tuple[Float[np.ndarray, "relation unit"], Float[np.ndarray, "relation unit"]]:
    """AP and gap of the signed mean over all tokens, of every unit of the pool."""
    asked = [_pooled(prompt) for prompt in prompts]
    is_positive, is_member = torch.from_numpy(positive), torch.from_numpy(member)
    ap = np.empty((len(positive), pool.n_layers, pool.per_layer))
    gap = np.empty_like(ap, dtype=np.float32)
    done, total = 0, pool.n_layers * len(pool.sites)
    for site, block in _blocks(model, len(prompts), pool, memory_bytes):
        means = pooled_activations(
            model, asked, site=site, pooling="mean_all", layers=block, rows=rows
        )
        here = (slice(None), slice(block.start, block.stop), pool.place(site))
        units = means.flatten(0, 1)
        scored = average_precision(units, is_positive, is_member).above
        ap[here] = scored.unflatten(1, means.shape[:2]).numpy()
        gap[here] = _gaps(units, is_positive, is_member).unflatten(1, means.shape[:2]).numpy()
        done += len(block)
        progress(done, total)
    return ap.reshape(len(positive), -1), gap.reshape(len(positive), -1)


def _gaps(
    units: Float[Tensor, "unit n"],
    positive: Bool[Tensor, "relation n"],
    member: Bool[Tensor, "relation n"],
) -> Float[Tensor, "relation unit"]:
    """(mean of positives - mean of negatives) / pooled sd of each unit; 0 where nothing varies."""
    gaps = []
    for own, design in zip(positive, member, strict=True):
        here, there = (units[:, chosen.to(units.device)] for chosen in (own, design & ~own))
        spread = ((here.var(1, correction=0) + there.var(1, correction=0)) / 2).sqrt()
        gaps.append(((here.mean(1) - there.mean(1)) / spread).nan_to_num(0.0))
    return torch.stack(gaps).cpu()


def _blocks(
    model: HookedModel, n_prompts: int, pool: UnitPool, memory_bytes: int
) -> Iterator[tuple[Site, range]]:
    for site in pool.sites:
        for block in layer_blocks(model, n_prompts, site, memory_bytes):
            yield site, block


def _pooled(prompt: PaperPrompt) -> Prompt:
    start = prompt.subject_start
    return Prompt(
        text=prompt.text,
        relation=prompt.relation,
        subject=prompt.subject,
        wording=prompt.wording,
        subject_start=start,
        subject_end=start + len(prompt.subject),
    )
