"""Are a relation's units the same in every language?

Units are detected in each language by itself, and once in all languages together, over the same
facts in the same number of wordings; each set is then judged in every language on other subjects
and another wording (relation_neurons.md, section 6.7). Beside the overlap of two languages' sets
stand what halves of one language share (the ceiling), what sets drawn at random share (k / units),
and what *different* relations of one language share: units that tell the language are no units of
the relation.

Detection finds the units that tell a relation from the others within one language, by the smaller
average precision over wordings, for the better sign. Prompts of two languages are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars
import torch
from jaxtyping import Float, Int

from ..data.facts.items import Relation
from ..data.facts.wordings import Wording
from ..interventions.neuron_ablation import neuron_edits, values_at
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId, Site
from ..results.run import Run
from .asked_facts import Asked, asked_facts
from .average_precision import average_precision
from .elicitation import Progress, silent
from .language_prompts import LanguagePlan, Reading, plan_languages
from .languages import in_language, translated
from .neuron_effects import Effects, effect_matrix
from .pooled_activations import Pooling, layer_blocks, pooled_activations

POOLED = "pooled"
"""The source that is detected in all languages together."""

PAPER_SHARE = 0.00359
"""Share of all units that a set holds by default: 3,000 of Llama-2-7B's (Liu et al. 2025)."""


@dataclass(frozen=True, eq=False)
class LanguageUnits:
    """Sets of `k` units of each relation by `source`: each language, then `POOLED`.

    Units are numbered `layer * n_units + index`. `top` holds the sets, best first, and `sign` how
    each of their units stands (+1 high, -1 low for the relation). `halves` are the sets from each
    half of the finding subjects. `test_ap` is the mean average precision of a source's set in a
    language, each unit by its sign, on other subjects and in another wording. `test_subjects` are
    those subjects by relation, in English.
    """

    languages: tuple[str, ...]
    relations: tuple[str, ...]
    site: Site
    n_units: int
    n_total: int
    k: int
    top: Int[np.ndarray, "source relation k"]
    sign: Int[np.ndarray, "source relation k"]
    score: Float[np.ndarray, "source relation k"]
    halves: Int[np.ndarray, "2 language relation k"]
    test_ap: Float[np.ndarray, "source language relation"]
    find_subjects: Mapping[str, tuple[str, ...]]
    test_subjects: Mapping[str, tuple[str, ...]]

    @property
    def sources(self) -> tuple[str, ...]:
        """What sets were detected in."""
        return (*self.languages, POOLED)

    def neurons(self, relation: str, source: str) -> tuple[NeuronId, ...]:
        """A set, best unit first. Raises `MnemoscopeError` for an unknown relation or source."""
        if relation not in self.relations or source not in self.sources:
            raise MnemoscopeError(
                f"no units of {relation!r} in {source!r}: there are {', '.join(self.relations)} in "
                f"{', '.join(self.sources)}."
            )
        row = self.top[self.sources.index(source), self.relations.index(relation)]
        return tuple(NeuronId(*divmod(int(i), self.n_units), self.site) for i in row)


@dataclass(frozen=True, eq=False)
class LanguageOverlaps:
    """Shares of `k` units that two sets have in common, each set from another half of the subjects.

    `across[a, b]` is one relation in two languages; its diagonal is the ceiling, what the halves of
    one language share. `limited` divides by the geometric mean of the two ceilings (NaN where one
    is 0): 1 means as alike as a language is to itself. `control` is two *different* relations in
    one language, the mean over the other relations. `chance` is k / units.
    """

    languages: tuple[str, ...]
    relations: tuple[str, ...]
    chance: float
    across: Float[np.ndarray, "language language relation"]
    limited: Float[np.ndarray, "language language relation"]
    control: Float[np.ndarray, "language relation"]


def detect_in_languages(
    model: HookedModel,
    relations: Sequence[Relation],
    languages: Sequence[str],
    *,
    site: Site = Site.NEURON,
    pooling: Pooling = "mean_nobos",
    k: int | None = None,
    subjects: int | None = None,
    detection: Sequence[int] = (0, 1),
    evaluation: Sequence[int] = (2,),
    seed: int = 0,
    memory_bytes: int = 2**30,
    rows: int = 32,
    progress: Progress = silent,
) -> LanguageUnits:
    """Detect and judge the units of each relation in each language.

    Give the languages that the model knows (`languages.measure_knowledge`). Every language asks
    the same facts, `subjects` of each relation in each part at most; the finding and the judging
    part share no English subject. `detection` and `evaluation` number templates. `k` is by default
    `PAPER_SHARE` of all units. `memory_bytes` bounds the pooled activations held at once; beside
    them stand 8 numbers a unit, language and relation.

    Raises `MnemoscopeError` for fewer than two relations or languages, a template that is used
    twice or missing, `k` out of range, and fewer than four subjects with names everywhere.
    """
    plan = plan_languages(relations, languages, detection, evaluation, subjects, seed)
    n_units, n_layers = model.anatomy.n_units(site), model.anatomy.n_layers
    n_total = n_units * n_layers
    k = max(1, round(PAPER_SHARE * n_total)) if k is None else k
    if not 1 <= k <= n_total:
        raise MnemoscopeError(f"a set of {k} from {n_total} units: choose k in between.")
    scores = _Scores.empty(len(plan.languages), len(plan.relations), n_total)
    blocks = layer_blocks(model, max(len(one.prompts) for one in plan.readings), site, memory_bytes)
    done = 0
    for layers in blocks:
        cells = slice(layers.start * n_units, layers.stop * n_units)
        for reading in plan.readings:
            pooled = pooled_activations(
                model, reading.prompts, site=site, pooling=pooling, layers=layers, rows=rows
            )
            scores.fold(pooled.flatten(0, 1), reading, plan, cells)
            done += 1
            progress(done, len(blocks) * len(plan.readings))
    return _units(scores, plan, site, n_units, k, seed)


def overlaps(found: LanguageUnits) -> LanguageOverlaps:
    """Overlap of sets across languages, against chance, ceiling and other relations.

    Always one half's set against the other half's, so that no pair has subjects in common and all
    cells, the diagonal too, come from sets of the same quality.
    """
    shared = _shared(found)  # [relation, language, relation, language]
    n_relations, n_languages = len(found.relations), len(found.languages)
    across = np.stack([shared[r, :, r, :] for r in range(n_relations)], axis=-1)
    ceiling = np.einsum("aar->ar", across)
    both = np.sqrt(ceiling[:, None] * ceiling[None, :])
    limited = np.divide(across, both, out=np.full_like(across, np.nan), where=both > 0)
    here = np.stack([shared[:, a, :, a] for a in range(n_languages)])
    others = here.sum(2) - np.einsum("arr->ar", here)
    control = others / (n_relations - 1)
    chance = found.k / found.n_total
    return LanguageOverlaps(found.languages, found.relations, chance, across, limited, control)


def overlap_table(found: LanguageUnits) -> polars.DataFrame:
    """One row a relation and pair of languages, with ceilings, control and chance beside it."""
    shared = overlaps(found)
    rows = [
        {
            "relation": name,
            "language": a,
            "other": b,
            "overlap": float(shared.across[i, j, r]),
            "ceiling": float(np.sqrt(shared.across[i, i, r] * shared.across[j, j, r])),
            "limited": float(shared.limited[i, j, r]),
            "other_relations": float((shared.control[i, r] + shared.control[j, r]) / 2),
            "chance": shared.chance,
        }
        for r, name in enumerate(found.relations)
        for i, a in enumerate(found.languages)
        for j, b in enumerate(found.languages)
        if i < j
    ]
    return polars.DataFrame(rows)


def transfer_table(found: LanguageUnits) -> polars.DataFrame:
    """One row a relation, source of detection and language of judging: `test_ap`."""
    rows = [
        {"relation": name, "detected": source, "tested": language, "ap": float(ap)}
        for r, name in enumerate(found.relations)
        for source, by_language in zip(found.sources, found.test_ap[:, :, r], strict=True)
        for language, ap in zip(found.languages, by_language, strict=True)
    ]
    return polars.DataFrame(rows)


def language_effects(
    model: HookedModel,
    found: LanguageUnits,
    relation: Relation,
    means: Float[torch.Tensor, "layer unit"],
    *,
    template: int = 2,
    rows: int = 128,
    run: Run | None = None,
    progress: Progress = silent,
) -> Effects:
    """What each source's units do to the relation's facts in each language when they are set to
    their neutral means: the transfer matrix of losses, on the judging subjects.

    Facts of language l are named "capital (l)" and compared with objects in that language; the set
    of a source s is named "s". Answers are scored after a space in every language. Read it beside
    matched controls, as any loss. Raises `MnemoscopeError` when the relation was not detected.
    """
    asked: list[Asked] = []
    for language in found.languages:
        there, facts = in_language(relation, language), translated(relation, language)
        wording = Wording(f"cloze {template}", "cloze", there.templates[template])
        chosen = [facts[subject] for subject in found.test_subjects[relation.name]]
        asked += asked_facts(model, there, chosen, wording)
    edits = {}
    for source in found.sources:
        units = found.neurons(relation.name, source)
        edits[source] = neuron_edits(units, "mean", values=values_at(means, units))
    label = f"languages of {relation.name}"
    return effect_matrix(model, asked, edits, rows=rows, run=run, label=label, progress=progress)


# -- the scores -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scores:
    """Smallest AP over wordings so far, of the score and of its negative; float32. In the finding
    part the columns are the relations, then the relations within either half."""

    find: Float[np.ndarray, "2 language column unit"]
    test: Float[np.ndarray, "2 language relation unit"]

    @classmethod
    def empty(cls, n_languages: int, n_relations: int, n_total: int) -> _Scores:
        def ones(n_columns: int) -> np.ndarray:
            return np.ones((2, n_languages, n_columns, n_total), dtype=np.float32)

        return cls(ones(3 * n_relations), ones(n_relations))

    def fold(
        self,
        pooled: Float[torch.Tensor, "unit n"],
        reading: Reading,
        plan: LanguagePlan,
        cells: slice,
    ) -> None:
        positive, member = (x.to(pooled.device) for x in plan.columns(reading.part))
        found = average_precision(pooled, positive, member)
        kept = self.find if reading.part == "find" else self.test
        for side, ap in enumerate((found.above, found.below)):
            here = kept[side, reading.language, :, cells]
            np.minimum(here, ap.numpy(), out=here, casting="same_kind")


def _units(
    scores: _Scores, plan: LanguagePlan, site: Site, n_units: int, k: int, seed: int
) -> LanguageUnits:
    n_relations, n_total = len(plan.relations), scores.find.shape[-1]
    alone = scores.find[:, :, :n_relations]
    by_source = np.concatenate([alone, alone.min(1, keepdims=True)], axis=1)
    best = by_source.max(0)
    sign = np.where(by_source[0] >= by_source[1], 1, -1).astype(np.int8)
    top = np.argsort(-best, axis=-1, kind="stable")[..., :k]
    top_sign = np.take_along_axis(sign, top, -1)
    halves = scores.find[:, :, n_relations:].max(0)
    halves = halves.reshape(len(plan.languages), 2, n_relations, n_total).swapaxes(0, 1)
    return LanguageUnits(
        plan.languages,
        plan.relations,
        site,
        n_units,
        n_total,
        k,
        top,
        top_sign,
        np.take_along_axis(best, top, -1),
        _tops_of_halves(halves, k, seed),
        _test_ap(scores.test, top, top_sign),
        plan.subjects["find"],
        plan.subjects["test"],
    )


def _tops_of_halves(
    halves: Float[np.ndarray, "2 language relation unit"], k: int, seed: int
) -> Int[np.ndarray, "2 language relation k"]:
    """Equal scores are ordered at random in each half: a fixed order would make ties agree."""
    rng = np.random.default_rng(seed)
    flat = halves.reshape(-1, halves.shape[-1])
    orders = [np.lexsort((rng.permutation(flat.shape[1]), -row))[:k] for row in flat]
    return np.stack(orders).reshape(*halves.shape[:-1], k)


def _test_ap(
    test: Float[np.ndarray, "2 language relation unit"],
    top: Int[np.ndarray, "source relation k"],
    sign: Int[np.ndarray, "source relation k"],
) -> Float[np.ndarray, "source language relation"]:
    relation = np.arange(test.shape[2])[:, None]
    chosen = [
        np.where(signs > 0, *(side[:, relation, units] for side in test)).mean(-1, dtype=np.float64)
        for units, signs in zip(top, sign, strict=True)
    ]
    return np.stack(chosen)


def _shared(
    found: LanguageUnits,
) -> Float[np.ndarray, "relation language relation language"]:
    """Share of k that set i of one half and set j of the other have in common, both ways round."""
    n_languages, n_relations = len(found.languages), len(found.relations)
    flat = found.halves.swapaxes(1, 2).reshape(2, n_languages * n_relations, found.k)
    sets = np.zeros((2, flat.shape[1], found.n_total), dtype=np.float32)
    np.put_along_axis(sets, flat, 1.0, axis=-1)
    shared = sets[0] @ sets[1].T / found.k
    shape = (n_relations, n_languages, n_relations, n_languages)
    return np.asarray((shared + shared.T) / 2, dtype=np.float64).reshape(shape)
