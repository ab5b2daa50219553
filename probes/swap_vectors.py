"""What a role swap writes into a name's slot: vectors by origin, owner, form and rank.

*Origin* is where the vector was read (layer l of a prompt), *of* whose it is, *form* how it is
fitted to the slot, *rank* how much of the slot gives way. Every arm has the same arm of another
entity as its control, so that a gain counts only beyond what any such vector does. Halves of the
pairs are kept apart: the map that a pair meets was fitted on the other half, and its other entity
comes from its own half.

A predicted state was computed from a prompt that names the asked entity A, so it can carry A itself
(leakage). Three origins bound that: `without_asked` lacks the span of A's own perceived states (a
code of A in other directions survives it), `elsewhere` was read from another fact that does not
name A, and `asked` is A's perceived state itself: what plain leakage can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.answers import leaks, normalise
from ..interventions.role_swap import (
    halves_and_others,
    matched_noise,
    principal_directions,
    replaced_component,
    without_directions,
)
from ..models.errors import MnemoscopeError
from .role_maps import RoleMap, fit_role_map
from .role_states import RoleStates

Origin = Literal["predicted", "without_asked", "elsewhere", "asked", "same_role"]
"""`predicted`: END of a forward prompt that asks for B. `same_role`: the slot itself in another
reverse wording, the ceiling of what a vector can do there."""
Owner = Literal["own", "other", "noise"]
"""`noise` is the slot's own state, moved in a random direction as far as `own` would move it."""
Form = Literal["raw", "centred", "mapped"]
"""`raw`: as it is; `centred`: with the mean of its role exchanged for that of the slot's role;
`mapped`: through the linear map from predicted states to slot states."""


@dataclass(frozen=True)
class Arm:
    """One kind of vector.

    `rank` None replaces the whole state; a number only its component along that many directions:
    those in which slot states differ most, or of the map those that carry most.
    """

    origin: Origin
    of: Owner = "own"
    form: Form = "raw"
    rank: int | None = None

    def __str__(self) -> str:
        return f"{self.origin} {self.of} {self.form} {self.rank or 'full'}"

    @property
    def control(self) -> Arm:
        """The same vector of another entity."""
        return replace(self, of="other")


@dataclass(frozen=True, eq=False)
class SwapVectors:
    """States of the pairs (A, B) that swaps are made of, in one slot and one source wording.

    `slot` are the states of B's name that a swap writes over, `predicted` those that predict B,
    `asked` those where A is perceived. `same_role` and `elsewhere` may be missing; rows of
    `elsewhere` that no other fact elicits are NaN. `half` and `other` as `halves_and_others`.
    """

    slot: Float[Tensor, "layer pair d_model"]
    predicted: Float[Tensor, "layer pair d_model"]
    asked: Float[Tensor, "layer pair d_model"]
    same_role: Float[Tensor, "layer pair d_model"] | None
    elsewhere: Float[Tensor, "layer pair d_model"] | None
    half: Int[Tensor, " pair"]
    other: Int[Tensor, " pair"]
    seed: int


def swap_vectors(
    states: RoleStates,
    *,
    slot_wording: int = 0,
    source_wording: int = 0,
    elsewhere: RoleStates | None = None,
    seed: int = 0,
) -> SwapVectors:
    """The vectors of one reverse wording (the slot) and one forward wording (the source).

    `same_role` is the slot in the next reverse wording, where there is one. `elsewhere` are states
    of another relation that asks for the same B; its prompts that name A are left out, the others
    averaged. Raises `MnemoscopeError` for fewer than four pairs, a wording that is not there, or
    where no other fact asks for any B.
    """
    slots, sources = states["b", "S"], states["b", "P"]
    if not 0 <= slot_wording < slots.shape[1] or not 0 <= source_wording < sources.shape[1]:
        raise MnemoscopeError(
            f"there are {slots.shape[1]} reverse and {sources.shape[1]} forward wordings, counted "
            f"from 0: no reverse {slot_wording} with forward {source_wording}."
        )
    half, other = halves_and_others(slots.shape[2], seed)
    again = (slot_wording + 1) % slots.shape[1]
    return SwapVectors(
        slot=torch.from_numpy(slots[:, slot_wording]),
        predicted=torch.from_numpy(sources[:, source_wording]),
        asked=torch.from_numpy(states["a", "S"][:, source_wording]),
        same_role=None if again == slot_wording else torch.from_numpy(slots[:, again]),
        elsewhere=None if elsewhere is None else _elsewhere(states, elsewhere),
        half=half,
        other=other,
        seed=seed,
    )


def swap_arms(
    vectors: SwapVectors,
    forms: Sequence[Form] = ("raw", "mapped"),
    ranks: Sequence[int | None] = (1, 4, 16, None),
) -> tuple[Arm, ...]:
    """Every arm that can be run, each `own` one with its control: the predicted state in all forms
    and ranks; noise and the leakage arms in all forms; the same role as it is."""
    arms = [Arm("predicted", "own", form, rank) for form in forms for rank in ranks]
    leak_free: tuple[Origin, ...] = ("without_asked", "asked")
    if vectors.elsewhere is not None:
        leak_free = (*leak_free, "elsewhere")
    arms += [Arm(origin, "own", form) for origin in leak_free for form in forms]
    if vectors.same_role is not None:
        arms.append(Arm("same_role"))
    noise = [Arm("predicted", "noise", form) for form in forms]
    return (*arms, *(arm.control for arm in arms), *noise)


def arm_values(
    vectors: SwapVectors, arms: Sequence[Arm], source: int, target: int
) -> Float[Tensor, "arm pair d_model"]:
    """What each arm writes into each pair's slot at layer `target` from layer `source`; NaN where
    it has nothing to write.

    Raises `MnemoscopeError` for an origin that these vectors lack.
    """
    maps = _maps(vectors, source, target) if any(arm.form == "mapped" for arm in arms) else ()
    return torch.stack([_value(vectors, arm, source, target, maps) for arm in arms])


def _value(
    vectors: SwapVectors, arm: Arm, source: int, target: int, maps: Sequence[RoleMap]
) -> Float[Tensor, "pair d_model"]:
    slot = vectors.slot[target]
    new = _in_form(vectors, arm, source, target, maps)
    if arm.of == "other":
        new = new[vectors.other]
    elif arm.of == "noise":
        new = matched_noise(slot, new, vectors.seed + 1000 * source + target)
    if arm.rank is None:
        return new
    value = slot.clone()
    for half in (0, 1):
        mine = vectors.half == half
        basis = (
            _tensor(maps[half].rank_k(arm.rank).basis_p, slot)
            if arm.form == "mapped"
            else principal_directions(slot, arm.rank)
        )
        value[mine] = replaced_component(slot[mine], new[mine], basis)
    return value


def _in_form(
    vectors: SwapVectors, arm: Arm, source: int, target: int, maps: Sequence[RoleMap]
) -> Float[Tensor, "pair d_model"]:
    """Each pair's own vector, fitted to the slot."""
    read = _read(vectors, arm.origin, source, target)
    if arm.form == "raw":
        return read
    centred = read - read.nanmean(0)
    if arm.form == "centred":
        return centred + vectors.slot[target].mean(0)
    as_predicted = (centred + vectors.predicted[source].mean(0)).numpy()
    new = torch.empty_like(read)
    for half, role_map in enumerate(maps):
        mine = vectors.half == half
        new[mine] = _tensor(role_map.apply(as_predicted[mine.numpy()]), read)
    return new


def _read(
    vectors: SwapVectors, origin: Origin, source: int, target: int
) -> Float[Tensor, "pair d_model"]:
    if origin == "without_asked":
        predicted, asked = vectors.predicted[source], vectors.asked[: source + 1]
        own = (asked - asked.mean(1, keepdim=True)).transpose(0, 1)
        mean = predicted.mean(0)
        return mean + without_directions(predicted - mean, own)
    if origin == "same_role":
        return _there(vectors.same_role, origin)[target]
    held = {
        "predicted": vectors.predicted,
        "asked": vectors.asked,
        "elsewhere": vectors.elsewhere,
    }
    return _there(held[origin], origin)[source]


def _there(states: Tensor | None, origin: Origin) -> Tensor:
    if states is None:
        raise MnemoscopeError(
            f"there are no states for {origin!r} swaps: give a second reverse wording for "
            "'same_role', states of another relation for 'elsewhere'."
        )
    return states


def _maps(vectors: SwapVectors, source: int, target: int) -> tuple[RoleMap, RoleMap]:
    """From predicted to slot states: what each half meets, fitted on the other one."""

    def fitted_without(half: int) -> RoleMap:
        seen = (vectors.half != half).numpy()
        return fit_role_map(
            vectors.predicted[source].numpy()[seen], vectors.slot[target].numpy()[seen]
        )

    return fitted_without(0), fitted_without(1)


def _elsewhere(states: RoleStates, elsewhere: RoleStates) -> Float[Tensor, "layer pair d_model"]:
    """The mean of B's predicted states over the other facts whose prompt does not name A."""
    told, found = elsewhere.prompts.relation, elsewhere["b", "P"]
    rows = np.full((found.shape[0], len(states.prompts.relation.pairs), found.shape[3]), np.nan)
    for i, pair in enumerate(states.prompts.relation.pairs):
        read = [
            found[:, wording, j]
            for j, fact in enumerate(told.pairs)
            if normalise(fact.b) == normalise(pair.b)
            for wording in range(found.shape[1])
            if not leaks(told.prompt(fact, "forward", wording), pair.answers("reverse"))
        ]
        if read:
            rows[:, i] = np.mean(read, axis=0)
    if np.isnan(rows).all():
        raise MnemoscopeError(
            f"{told.name!r} asks for none of the names of {states.prompts.relation.name!r} without "
            "naming what is asked: choose a relation with the same answers."
        )
    return torch.from_numpy(rows.astype(np.float32))


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like)
