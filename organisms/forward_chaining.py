"""Hidden numbers behind a tree of sums: the forward-chaining task of Wang and Sun, with a seed.

"Is the Reversal Curse a Binding Problem?" (2025, first version), the arithmetic task. Core entities
are told their numbers. A problem is a hidden entity X, bridges that are linked to it, bridges that
are linked to those, and leaves that are linked to core entities. Every link is a fact
`e1 + e2 = e3`, one of the addends being a core entity of one of two small numbers. Most branches
are cut, so that X can be found through the few live ones only, and half of the links have to be
read backwards (`e1 = e3 - e2`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from ..models.errors import MnemoscopeError

Level = Literal["X", "level-1", "level-2"]
LEVELS: tuple[Level, ...] = ("X", "level-1", "level-2")
KILLED = 0.6
"""The share of bridges that are cut, at either level."""
# How many links there are from X down to a core entity, and how far from the addends is banned.
_DEPTH, _BANNED_STEPS = 3, 4


@dataclass(frozen=True)
class ChainingSettings:
    """What decides a world; the defaults are the paper's, at its smallest branching.

    Numbers are modulo `modulus`. Each belongs to `multiplicity` core entities. The two addends are
    drawn from `addends`, the numbers of the X's, all different, from `hidden` (both ends included).
    A leaf is linked to `core_links` core entities. Of the relations among core entities the share
    `told` is told, the rest held out. Raises `MnemoscopeError` for sizes that do not fit.
    """

    branching: int = 10
    problems: int = 20
    modulus: int = 10_007
    multiplicity: int = 10
    addends: tuple[int, int] = (10, 49)
    hidden: tuple[int, int] = (200, 800)
    core_links: int = 6
    told: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.branching < 2 or self.problems < 1:
            raise MnemoscopeError("give at least one problem and a branching of 2, or none lives.")
        low, high = self.addends
        if not 1 <= low < high:
            raise MnemoscopeError(f"two addends cannot be drawn from {low} to {high}.")
        if not 1 <= self.core_links <= 4 * self.multiplicity:
            raise MnemoscopeError(
                f"a leaf has {4 * self.multiplicity} core entities within reach, not "
                f"{self.core_links}: ask for fewer core links, or at least one."
            )
        reach = _DEPTH * high
        if self.hidden[0] - reach <= 0 or self.hidden[1] + reach >= self.modulus:
            raise MnemoscopeError(
                f"numbers {reach} away from {self.hidden[0]} to {self.hidden[1]} leave the range "
                f"1 to {self.modulus - 1}: move the hidden numbers, or take a larger modulus."
            )
        if not 0 < self.told < 1:
            raise MnemoscopeError(f"told={self.told} is no share between 0 and 1.")

    @property
    def killed(self) -> int:
        """How many of `branching` bridges are cut."""
        return round(KILLED * self.branching)

    @property
    def n_core(self) -> int:
        """Core entities."""
        return self.modulus * self.multiplicity

    @property
    def n_entities(self) -> int:
        """Core entities and the hidden ones of all problems."""
        return self.n_core + self.problems * (1 + self.branching + self.branching**2)


PRESETS: dict[str, ChainingSettings] = {
    "paper": ChainingSettings(),
    "small": ChainingSettings(4, 40, 101, 4, (2, 5), (18, 65)),
    "context": ChainingSettings(2, 20, core_links=2),
}
"""The paper's world; one for a toy model in minutes; one whose problems fit a short prompt."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One hidden entity, its bridges, and what is told of them: rows `e1 + e2 = e3`.

    A bridge of level 1 that is not live has only dead bridges below it. A dead one of level 2 has
    lost either the link to its parent or those to core entities.
    """

    hidden: int
    level_1: Int[np.ndarray, " b"]
    level_2: Int[np.ndarray, "b b"]
    live_1: Bool[np.ndarray, " b"]
    live_2: Bool[np.ndarray, "b b"]
    facts: Int[np.ndarray, "fact 3"]

    def at(self, level: Level) -> Int[np.ndarray, " entity"]:
        """The hidden entities of a level."""
        parts = {"X": np.array([self.hidden]), "level-1": self.level_1}
        return parts.get(level, self.level_2.ravel())

    def core(self, n_core: int) -> Int[np.ndarray, " entity"]:
        """The core entities that its facts speak of, in order."""
        spoken = np.unique(self.facts)
        return spoken[spoken < n_core]


@dataclass(frozen=True, eq=False)
class ChainingWorld:
    """All entities' numbers, and the problems.

    Core entity `v * multiplicity + k` is the k-th of number v; hidden entities come behind them.
    """

    settings: ChainingSettings
    addends: tuple[int, int]
    values: Int[np.ndarray, " entity"]
    problems: tuple[Problem, ...]

    @property
    def known(self) -> Int[np.ndarray, " entity"]:
        """What is told outright: the numbers of core entities, -1 for all others."""
        core = np.arange(len(self.values)) < self.settings.n_core
        return np.where(core, self.values, -1)


@dataclass(frozen=True, eq=False)
class CoreRelations:
    """Facts among core entities: those that are told, and those that are held out."""

    told: Int[np.ndarray, "told 3"]
    held_out: Int[np.ndarray, "held 3"]


def chaining_settings(name: str) -> ChainingSettings:
    """A preset. Raises `MnemoscopeError` for a name that is none."""
    if name not in PRESETS:
        raise MnemoscopeError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def make_chaining_world(settings: ChainingSettings) -> ChainingWorld:
    """Draw the addends and the problems; the same for the same settings.

    Raises `MnemoscopeError` where there are fewer numbers for the X's than problems.
    """
    random = np.random.default_rng([settings.seed, 11])
    low, high = settings.addends
    a, b = random.choice(np.arange(low, high + 1), 2, replace=False).tolist()
    usable = [x for x in range(settings.hidden[0], settings.hidden[1] + 1) if _free(x, a, b)]
    if len(usable) < settings.problems:
        raise MnemoscopeError(
            f"{settings.problems} problems need as many hidden numbers, but only {len(usable)} are "
            f"usable from {settings.hidden[0]} to {settings.hidden[1]}: widen the range."
        )
    values = np.full(settings.n_entities, -1)
    values[: settings.n_core] = np.repeat(np.arange(settings.modulus), settings.multiplicity)
    problems = []
    for number, x in enumerate(random.choice(usable, settings.problems, replace=False).tolist()):
        builder = _Builder(settings, (a, b), values, np.random.default_rng([settings.seed, number]))
        size = 1 + settings.branching + settings.branching**2
        problems.append(builder.problem(settings.n_core + number * size, x))
    return ChainingWorld(settings, (a, b), values, tuple(problems))


def core_relations(world: ChainingWorld) -> CoreRelations:
    """Every allowed number plus either addend, in all pairs of the entities of both ends.

    The addend is a random one of its entities. About 2 * modulus * multiplicity^2 facts; the share
    `told` of them, in random order, is told. Our reading of which numbers are banned: those from
    which up to four additions of the addends lead to one of the addends, modulo.
    """
    s = world.settings
    random = np.random.default_rng([s.seed, 12])
    banned = _banned(*world.addends, s.modulus)
    i, v, k1, k3 = np.meshgrid(
        np.setdiff1d(np.arange(s.modulus), list(banned)),
        np.array(world.addends),
        *[np.arange(s.multiplicity)] * 2,
        indexing="ij",
    )
    first, total = i * s.multiplicity + k1, (i + v) % s.modulus * s.multiplicity + k3
    addend = v * s.multiplicity + random.integers(s.multiplicity, size=v.shape)
    facts = np.stack([first, addend, total], axis=-1).reshape(-1, 3)
    facts = _swapped(random.permutation(facts), random)
    told = round(s.told * len(facts))
    return CoreRelations(facts[:told], facts[told:])


def expected_facts(branching: int, core_links: int = 6) -> float:
    """The expected number of relational facts of a problem: 416 at a branching of 10.

    Every link from X is kept. Of b bridges below a live one, the live ones have 1 + c facts each
    and the dead ones on average half of that; below a dead bridge all are dead.
    """
    dead = round(KILLED * branching)
    live, whole = branching - dead, 1 + core_links
    return branching + live * whole * (live + dead / 2) + dead * branching * whole / 2


@dataclass(frozen=True, eq=False)
class _Builder:
    """Makes one problem; the numbers of its entities go into `values`."""

    settings: ChainingSettings
    addends: tuple[int, int]
    values: Int[np.ndarray, " entity"]
    random: np.random.Generator
    facts: list[tuple[int, int, int]] = field(default_factory=list)

    def problem(self, first: int, x: int) -> Problem:
        b = self.settings.branching
        self.values[first] = x
        level_1 = first + 1 + np.arange(b)
        level_2 = (first + 1 + b + np.arange(b * b)).reshape(b, b)
        live_1 = self._survivors()
        live_2 = np.array([self._survivors() & live for live in live_1])
        for node, below, alive in zip(level_1, level_2, live_2, strict=True):
            self._bridge(first, int(node), told=True)
            for leaf, whole in zip(below, alive, strict=True):
                keeps_parent, keeps_core = (True, True) if whole else self._coin()
                self._bridge(int(node), int(leaf), told=keeps_parent)
                if keeps_core:
                    self._core(int(leaf))
        facts = _swapped(np.array(self.facts), self.random)
        return Problem(first, level_1, level_2, live_1, live_2, facts)

    def _survivors(self) -> Bool[np.ndarray, " b"]:
        order = self.random.permutation(self.settings.branching)
        return order >= self.settings.killed

    def _coin(self) -> tuple[bool, bool]:
        parent = bool(self.random.integers(2))
        return parent, not parent

    def _bridge(self, parent: int, child: int, *, told: bool) -> None:
        """Give the child its number; the fact only where it is told."""
        sign, addend, copy = self._steps(1)[0]
        self.values[child] = self.values[parent] + sign * addend
        if told:
            self._fact(parent, child, sign, addend * self.settings.multiplicity + copy)

    def _core(self, leaf: int) -> None:
        m = self.settings.multiplicity
        for sign, addend, copy in self._steps(self.settings.core_links):
            entity = (int(self.values[leaf]) + sign * addend) * m + copy
            self._fact(leaf, entity, sign, addend * m + int(self.random.integers(m)))

    def _fact(self, parent: int, child: int, sign: int, addend: int) -> None:
        self.facts.append((parent, addend, child) if sign > 0 else (child, addend, parent))

    def _steps(self, n: int) -> list[tuple[int, int, int]]:
        """Different (sign, addend, which of the entities) at random."""
        every = list(product((1, -1), self.addends, range(self.settings.multiplicity)))
        return [every[i] for i in self.random.choice(len(every), n, replace=False)]


def _swapped(
    facts: Int[np.ndarray, "fact 3"], random: np.random.Generator
) -> Int[np.ndarray, "fact 3"]:
    """The two terms of every sum in random order."""
    swap = random.integers(2, size=len(facts)).astype(bool)
    return np.where(swap[:, None], facts[:, [1, 0, 2]], facts)


def _banned(a: int, b: int, modulus: int) -> set[int]:
    """Numbers from which up to four additions of the addends lead to one of them."""
    counts = product(range(_BANNED_STEPS + 1), repeat=2)
    back = [i * a + j * b for i, j in counts if i + j <= _BANNED_STEPS]
    return {(start - steps) % modulus for start, steps in product((a, b), back)}


def _free(x: int, a: int, b: int) -> bool:
    """Whether no entity of a problem of this number can have the number of an addend."""
    counts = product(range(-_DEPTH, _DEPTH + 1), repeat=2)
    reached = {x + i * a + j * b for i, j in counts if abs(i) + abs(j) <= _DEPTH}
    return not reached & {a, b}
