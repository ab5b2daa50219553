"""Is an entity that is read the same vector as an entity about to be said, and at which depth?

The reversal curse as a binding problem (Wang & Sun 2025): a model that learned "A's mother is B"
holds B as a prediction (role P), while "B's child is" makes it read B as a subject (role S). Where
the two are not one code, the reverse fact is out of reach. Here both are compared at every layer of
any decoder, with the controls without which no number of them means anything (reversal_binding
3.5):

a. ceiling: the same role in other wordings; b. floor: entities permuted; c. candidates by overlap
of names; d. by frequency; e. the same prompts in a model with random weights; f. the fact in the
prompt; g. pairs told (or known) both ways against one way, the contrast that carries the claim.

States are means over half of the wordings: S of one half is compared with P of the other, and, for
the ceiling, with S of the other, so that the two have the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data.facts.pairs import WAYS, PairRelation, Way, pairs_sha256, usable_pairs, with_pairs
from ..interventions.end_chain import EndChain
from ..interventions.path_patching import build_chain
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.kept_units import kept_arrays
from ..results.provenance import Provenance, collect_provenance
from ..results.run import Run
from ..results.statistics import bootstrap_mean
from .elicitation import Progress, silent
from .embedding_tie import EmbeddingTie, embedding_tie
from .pair_knowledge import known_pairs
from .role_controls import contrasts, measurements, null_lines, told_curves, told_groups
from .role_curves import Effort
from .role_maps import binding_gap, binding_reading, binding_readings
from .role_prompts import Entity, RolePrompts, role_prompts
from .role_report import Behaviour, RoleConfig, RoleConsistency
from .role_states import RoleStates, role_states
from .vocabulary_readout import VocabularyReadout, vocabulary_readout

__all__ = ["RoleConfig", "RoleConsistency", "role_consistency"]

_STEPS = 1000


def role_consistency(
    model: HookedModel,
    relation: PairRelation,
    config: RoleConfig | None = None,
    *,
    run: Run | None = None,
    progress: Progress = silent,
) -> RoleConsistency:
    """Compare the roles of a relation's entities at every layer, with all controls.

    Work: a forward pass over each prompt with its answer (two directions, every wording and pair),
    once more for the random-initialised model and once for the fact in the prompt, and logits of
    every layer for the read-out. Memory: `role_states.states_bytes`, twice. What a `run` has done
    is read back. `progress` counts thousandths of the parts.

    Raises `MnemoscopeError` when too few pairs are left (known to the model, and clean in its
    tokens) and `StatisticsError` below 16.
    """
    config = config or RoleConfig()
    effort = Effort(config.draws, config.permutations, config.seed)
    watch = _Watch(progress, 4 + config.random_control + config.in_context)
    chain = build_chain(model, seed=config.seed)
    with watch.part("knowledge") as tell:
        chosen = _chosen_pairs(model, relation, config, run, tell)
    prompts = role_prompts(model, chosen.relation)
    null = _random(model, prompts, config, effort, run, watch)
    context = _context(model, prompts, config, run, watch)
    with watch.part("states") as tell:
        states = role_states(model, prompts, rows=config.rows, run=run, progress=tell)
    with watch.part("read-out") as tell:
        readout, behaviour = _said(chain, states, context, effort, tell)
    with watch.part("comparison"):
        measured = measurements(model, states, context, null, config.entity, effort)
        groups = told_groups(prompts, chosen.known)
        compared, missing = contrasts(groups, measured, readout, null, effort)
        main = measured.main.mapped
        reading = binding_reading(main, draws=config.draws, seed=config.seed)
    return RoleConsistency(
        relation=relation.name,
        config=config,
        n_pairs=len(prompts.kept),
        dropped={**chosen.dropped, **prompts.dropped},
        told={name: int(members.sum()) for name, members in groups.members.items()},
        told_by=groups.source,
        same_tokens=_same_tokens(prompts, config.entity),
        curves=measured.curves + told_curves(groups, measured, effort),
        contrasts=compared,
        behaviour=behaviour,
        readout=readout,
        tie=_tie(model, prompts, config),
        binding_gap=binding_gap(main),
        reading=reading,
        readings=binding_readings(main, draws=config.draws, seed=config.seed),
        skipped={**measured.skipped, **missing},
        seconds=watch.seconds,
        provenance=_provenance(model, prompts.relation, config),
    )


def _random(
    model: HookedModel,
    prompts: RolePrompts,
    config: RoleConfig,
    effort: Effort,
    run: Run | None,
    watch: _Watch,
) -> Mapping[str, np.ndarray]:
    """The lines of the random-initialised control; none where it is not asked for."""
    if not config.random_control:
        return {}
    with watch.part("random initialised") as tell:
        return kept_arrays(
            run,
            "role null",
            lambda: null_lines(
                model, prompts, config.entity, effort, rows=config.rows, progress=tell
            ),
        )


def _context(
    model: HookedModel,
    prompts: RolePrompts,
    config: RoleConfig,
    run: Run | None,
    watch: _Watch,
) -> RoleStates | None:
    """The states with the fact in the prompt, where they are asked for."""
    if not config.in_context:
        return None
    with watch.part("fact in the prompt") as tell:
        inside = role_prompts(model, prompts.relation, in_context=True)
        return role_states(model, inside, rows=config.rows, run=run, progress=tell)


def _same_tokens(prompts: RolePrompts, entity: Entity) -> float:
    named = [[row.ids[slice(*row.named)] for row in rows] for rows in prompts.showing(entity, "S")]
    asked = [row.answer for row in prompts.showing(entity, "O")[0]]
    return float(np.mean([[a == b for a, b in zip(rows, asked, strict=True)] for rows in named]))


def _tie(model: HookedModel, prompts: RolePrompts, config: RoleConfig) -> EmbeddingTie:
    """Of the first tokens of the names that are asked for."""
    rows = [row for rows in prompts.showing(config.entity, "P") for row in rows]
    return embedding_tie(
        model, [row.answer[0] for row in rows], draws=config.draws, seed=config.seed
    )


# -- which pairs ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Chosen:
    relation: PairRelation
    dropped: dict[str, int]
    known: Mapping[Way, Bool[np.ndarray, " pair"]]


def _chosen_pairs(
    model: HookedModel,
    relation: PairRelation,
    config: RoleConfig,
    run: Run | None,
    progress: Progress,
) -> _Chosen:
    """Pairs with one partner each that the model knows in a direction it was told them in."""
    usable = usable_pairs(relation)
    clean = role_prompts(model, usable.relation)
    pairs, dropped = clean.relation.pairs, {**usable.dropped, **clean.dropped}
    _enough(len(pairs), config, model, "clean in the model's tokens")
    known = kept_arrays(run, "pairs known", lambda: _known(model, clean.relation, progress))
    keep = np.ones(len(pairs), dtype=bool)
    if config.known_only:
        told = {way: [pair.told in ("", "both", way) for pair in pairs] for way in WAYS}
        gold = any(pair.told for pair in pairs)
        keep = known["forward"] & told["forward"]
        keep = keep | (known["reverse"] & told["reverse"] & gold)
        dropped["not known"] = int((~keep).sum())
    places = np.flatnonzero(keep)
    if config.most_pairs is not None and len(places) > config.most_pairs:
        dropped["more than asked for"] = len(places) - config.most_pairs
        places = places[: config.most_pairs]
    _enough(len(places), config, model, "known to the model")
    return _Chosen(
        with_pairs(clean.relation, [pairs[i] for i in places]),
        {why: n for why, n in dropped.items() if n},
        {way: known[way][places] for way in WAYS},
    )


def _known(
    model: HookedModel, relation: PairRelation, progress: Progress
) -> dict[str, Bool[np.ndarray, " pair"]]:
    found: dict[str, Bool[np.ndarray, " pair"]] = {}
    for way in WAYS:

        def tell(done: int, total: int, before: int = len(found)) -> None:
            progress(before * total + done, len(WAYS) * total)

        known = known_pairs(model, relation, way=way, min_pairs=0, progress=tell)
        found[str(way)] = known.known
    return found


def _enough(n: int, config: RoleConfig, model: HookedModel, what: str) -> None:
    if n < config.least_pairs:
        raise MnemoscopeError(
            f"{n} pairs are {what} ({model.name}), but {config.least_pairs} are asked for: take "
            "another relation, more pairs, a larger model, or a smaller least_pairs."
        )


# -- what the model says ----------------------------------------------------------------------


def _said(
    chain: EndChain,
    states: RoleStates,
    context: RoleStates | None,
    effort: Effort,
    progress: Progress,
) -> tuple[VocabularyReadout, tuple[Behaviour, ...]]:
    """The read-out at every layer, and the behaviour with and without the fact in the prompt."""
    readout = vocabulary_readout(
        chain, _ends(states), _targets(states), seed=effort.seed, progress=progress
    )
    behaviour = _behaviours(states, readout, effort)
    if context is not None:
        last = {way: ends[-1:] for way, ends in _ends(context).items()}
        inside = vocabulary_readout(chain, last, _targets(context), seed=effort.seed)
        behaviour += _behaviours(context, inside, effort)
    return readout, behaviour


def _ends(states: RoleStates) -> dict[Way, Float[np.ndarray, "layer wording pair d_model"]]:
    """Residual streams at the last tokens of the prompts."""
    return {"forward": states["b", "P"], "reverse": states["a", "P"]}


def _targets(states: RoleStates) -> dict[Way, Int[np.ndarray, "wording pair"]]:
    """First tokens of the names that the prompts ask for."""
    return {
        way: np.array([[row.answer[0] for row in rows] for rows in states.prompts.rows(way)])
        for way in WAYS
    }


def _behaviours(
    states: RoleStates, readout: VocabularyReadout, effort: Effort
) -> tuple[Behaviour, ...]:
    made = []
    for way in WAYS:
        first = (readout.ranks[way][-1] == 1).mean(axis=0)
        values = np.stack([states.log_probs[way].mean(axis=0), first], axis=1)
        units = range(len(values))
        line = bootstrap_mean(values, units, draws=effort.draws, seed=effort.seed)
        made.append(
            Behaviour(
                way=way,
                in_context=states.prompts.in_context,
                log_prob=float(line.mean[0]),
                log_prob_low=float(line.low[0]),
                log_prob_high=float(line.high[0]),
                hit=float(line.mean[1]),
                hit_low=float(line.low[1]),
                hit_high=float(line.high[1]),
                chance_hit=float(np.mean(readout.null[way][-1] == 1)),
            )
        )
    return tuple(made)


# -- bookkeeping ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Watch:
    """Wall time of each part, and progress through all of them in thousandths of a part."""

    progress: Progress
    parts: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[Progress]:
        before, began = len(self.seconds) * _STEPS, perf_counter()

        def tell(done: int, total: int) -> None:
            self.progress(before + _STEPS * done // max(1, total), self.parts * _STEPS)

        yield tell
        self.seconds[name] = round(perf_counter() - began, 3)
        self.progress(before + _STEPS, self.parts * _STEPS)


def _provenance(model: HookedModel, relation: PairRelation, config: RoleConfig) -> Provenance:
    return collect_provenance(
        **model.identity,
        data_sha256=pairs_sha256(relation),
        prompt_template=" | ".join((*relation.forward, *relation.reverse)),
        seed=config.seed,
        estimand=f"role consistency of entity {config.entity}: states of one half of the wordings "
        "against the other role's states of the other half, centred by role",
    )
