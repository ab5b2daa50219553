"""The measurements and controls of role consistency, made from the states of a model's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..data.facts.pairs import Way
from ..models.hooked import HookedModel
from ..models.random_weights import random_initialised
from ..results.errors import StatisticsError
from .elicitation import Progress
from .name_overlap import group_strata, name_overlap, same_group
from .role_contrast import (
    LEAST,
    ByEntity,
    Contrast,
    by_entity,
    candidate_curves,
    contrast,
    entity_curves,
)
from .role_curves import Compared, Curve, Effort, Measured, States, alike, compare, curves, found
from .role_prompts import Entity, Role, RolePrompts
from .role_states import RoleStates, role_states
from .vocabulary_readout import VocabularyReadout

NULL_ROLES: tuple[Role, ...] = ("P", "O")
_ENTITIES = "entities"


@dataclass(frozen=True, eq=False)
class Measurements:
    """Curves between the roles, S-P in full, and each entity's own share of it."""

    main: Compared
    curves: tuple[Curve, ...]
    entities: Mapping[str, ByEntity]
    skipped: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ToldGroups:
    """Entities by the directions in which their pairs were told, or are known."""

    members: Mapping[str, Bool[np.ndarray, " entity"]]
    """"both", "forward" and "reverse"."""
    source: str
    """"training" or "knowledge"."""
    frequencies: tuple[str, ...]
    """Each pair's group where it says how often it was told; else empty."""

    @property
    def word(self) -> str:
        """ "told" or "known"."""
        return "told" if self.source == "training" else "known"


def halves(states: Float[np.ndarray, "layer wording pair d_model"]) -> tuple[States, States]:
    """Means over the wordings of even and of odd number; one wording alone stands for both."""
    one, other = states[:, 0::2].mean(axis=1), states[:, 1::2]
    return one, other.mean(axis=1) if other.shape[1] else one


def measurements(
    model: HookedModel,
    states: RoleStates,
    context: RoleStates | None,
    null: Mapping[str, np.ndarray],
    entity: Entity,
    effort: Effort,
) -> Measurements:
    """All curves of one entity: S with P, O and the mean P, with ceiling, floor, null and strata.

    `null` are the lines of `null_lines`, or nothing. Raises `StatisticsError` below 16 pairs.
    """
    subject, once_more = halves(states[entity, "S"])
    again, predicted = halves(states[entity, "P"])
    several = states[entity, "S"].shape[1] > 1
    ceiling = compare(subject, once_more, effort.without_null).quantities if several else {}
    skipped = {} if several else {"ceiling": "the subject role has one wording only"}
    main = compare(subject, predicted, effort)
    perceived = compare(subject, halves(states[entity, "O"])[1], effort.brief).quantities
    pairs = states.prompts.relation.pairs
    entities = by_entity(subject, predicted, main.mapped)
    return Measurements(
        main,
        (
            *curves("S-P", main.quantities, ceiling, _of(null, "P")),
            *curves("S-O", perceived, ceiling, _of(null, "O")),
            *curves("S-P_mean", _cheap(states, entity, "P_mean", effort), ceiling, {}),
            *curves("P-P", {**alike(again, predicted, effort), **found(again, predicted, effort)}),
            *candidate_curves("S-P", subject, predicted, _masks(model, states, entity), effort),
            *entity_curves("S-P", entities, group_strata(pairs), effort),
            *_inside(context, entity, effort),
        ),
        entities,
        skipped,
    )


def null_lines(
    model: HookedModel,
    prompts: RolePrompts,
    entity: Entity,
    effort: Effort,
    *,
    rows: int,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Every quantity in a model with random weights: `role/quantity` `[layer]`, and what each
    entity's MRR was there, `[entity, layer]`.

    The prompts and the tokenizer are the model's own, so whatever is above the floor here comes
    from the tokens alone.
    """
    states = role_states(
        random_initialised(model, effort.seed), prompts, rows=rows, progress=progress
    )
    subject = halves(states[entity, "S"])[0]
    lines: dict[str, np.ndarray] = {}
    for role in NULL_ROLES:
        other = halves(states[entity, role])[1]
        compared = compare(subject, other, effort.bare)
        lines |= {f"{role}/{name}": one.value for name, one in compared.quantities.items()}
        if role == "P":
            own = by_entity(subject, other, compared.mapped)
            lines |= {f"{_ENTITIES}/{name}": values for name, values in own.items()}
    return lines


def told_groups(prompts: RolePrompts, known: Mapping[Way, Bool[np.ndarray, " pair"]]) -> ToldGroups:
    """The groups of the kept pairs: by training where the relation says how they were told, else by
    what the model knows (`known`, for the pairs given to the prompts)."""
    pairs = prompts.relation.pairs
    kept = list(prompts.kept)
    if any(pair.told for pair in pairs):
        told = np.array([pair.told for pair in pairs])
        members = {name: told == name for name in ("both", "forward", "reverse")}
        return ToldGroups(members, "training", tuple(pair.group for pair in pairs))
    forward, reverse = known["forward"][kept], known["reverse"][kept]
    members = {
        "both": forward & reverse,
        "forward": forward & ~reverse,
        "reverse": reverse & ~forward,
    }
    return ToldGroups(members, "knowledge", ())


def told_curves(groups: ToldGroups, measured: Measurements, effort: Effort) -> tuple[Curve, ...]:
    """S-P of each group, looked for among all entities."""
    named = {f"{groups.word} {name}": members for name, members in groups.members.items()}
    return entity_curves("S-P", measured.entities, named, effort)


def contrasts(
    groups: ToldGroups,
    measured: Measurements,
    readout: VocabularyReadout,
    null: Mapping[str, np.ndarray],
    effort: Effort,
) -> tuple[tuple[Contrast, ...], dict[str, str]]:
    """Pairs told both ways against those told one way, for role consistency and for the read-out
    (`log10 rank`: lower is better), and the same in the random-initialised model.

    Also returns the contrasts that could not be made, and why.
    """
    values = {("S-P", name): one for name, one in measured.entities.items()}
    values |= {
        (f"{way} read-out", "log10 rank"): np.log10(ranks).mean(axis=1).T
        for way, ranks in readout.ranks.items()
    }
    if f"{_ENTITIES}/mrr" in null:
        values["S-P, random initialised", "mrr"] = null[f"{_ENTITIES}/mrr"]
    made: list[Contrast] = []
    missing: dict[str, str] = {}
    for name, members in _one_way(groups).items():
        sides = (f"{groups.word} both ways", f"{groups.word} {name}")
        both = (groups.members["both"], members)
        try:
            made += [
                contrast(what, roles, one, sides, both, effort, groups.frequencies)
                for (roles, what), one in values.items()
            ]
        except StatisticsError as error:
            missing[" against ".join(sides)] = str(error)
    return tuple(made), missing


def _one_way(groups: ToldGroups) -> dict[str, Bool[np.ndarray, " entity"]]:
    forward, reverse = groups.members["forward"], groups.members["reverse"]
    sides = {"one way": forward | reverse}
    if min(forward.sum(), reverse.sum()) >= LEAST:
        sides |= {"forward only": forward, "reverse only": reverse}
    return sides


def _inside(context: RoleStates | None, entity: Entity, effort: Effort) -> Sequence[Curve]:
    if context is None:
        return ()
    own = _cheap(context, entity, "P", effort)
    return curves("S-P", own, stratum=f"fact in the prompt ({len(context.prompts.kept)})")


def _cheap(states: RoleStates, entity: Entity, role: Role, effort: Effort) -> dict[str, Measured]:
    subject, other = halves(states[entity, "S"])[0], halves(states[entity, role])[1]
    return {**alike(subject, other, effort), **found(subject, other, effort)}


def _masks(
    model: HookedModel, states: RoleStates, entity: Entity
) -> dict[str, Bool[np.ndarray, "entity entity"]]:
    """Whom an entity is ranked among: names that overlap with its own in some way, or not; entities
    that are as frequent."""
    pairs = states.prompts.relation.pairs
    masks = dict(name_overlap(model, [getattr(pair, entity) for pair in pairs]).masks())
    if any(pair.group for pair in pairs):
        masks["same group"] = same_group(pairs)
    return masks


def _of(null: Mapping[str, np.ndarray], role: Role) -> dict[str, np.ndarray]:
    start = f"{role}/"
    return {name.removeprefix(start): line for name, line in null.items() if name.startswith(start)}
