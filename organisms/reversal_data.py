"""A world of relations that hold both ways: which entities, names and facts a toy model is given.

The generator of Wang and Sun, "Is the Reversal Curse a Binding Problem?" (2025), data set of
section 4: entities of group A are told every fact in both directions, so that a model can learn
which relation is the inverse of which; those of group B in one direction only. The other direction
of group B is the test. Unlike theirs it has a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from ..models.errors import MnemoscopeError

Split = Literal["train", "atomic", "test"]
SPLITS: tuple[Split, ...] = ("train", "atomic", "test")


@dataclass(frozen=True)
class WorldSettings:
    """What decides a world.

    Each pair of relations has a token for either direction; with `symmetric` one token serves both
    (`x spouse y`, `y spouse x`). An entity's name is a first and a last name, and each of these is
    borne by `multiplicity` entities.
    """

    n_a: int
    n_b: int
    relation_pairs: int
    multiplicity: int
    symmetric: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_a, self.n_b) < 2 or self.n_a % 2 or self.n_b % 2:
            raise MnemoscopeError(
                f"every entity needs a partner in its own group: give even sizes from 2 on, not "
                f"{self.n_a} and {self.n_b}."
            )
        if self.relation_pairs < 1:
            raise MnemoscopeError("a world needs one pair of relations at least.")
        n, m = self.n_a + self.n_b, self.multiplicity
        if m < 1 or n % m or 4 * m * m > n:
            raise MnemoscopeError(
                f"{n} entities cannot share each first and last name among {m}: the multiplicity "
                "must divide their number, and four times its square must not exceed it, or there "
                "are too few names to draw from."
            )


@dataclass(frozen=True)
class ReversalWorld:
    """Facts by split, rows of (subject, relation, object), and every entity's two name tokens.

    Entities `0 .. n_a - 1` are group A. `train` holds both directions of A, `atomic` the direction
    in which B was told, `test` the other direction of the same pairs, which nobody was told.
    First names are tokens `0 .. n / m - 1`, last names the `n / m` tokens behind them.
    """

    settings: WorldSettings
    train: Int[np.ndarray, "train 3"]
    atomic: Int[np.ndarray, "told 3"]
    test: Int[np.ndarray, "told 3"]
    names: Int[np.ndarray, "entity 2"]

    @property
    def n_entities(self) -> int:
        return len(self.names)

    @property
    def n_relations(self) -> int:
        """Relation tokens: two a pair, one where they are symmetric."""
        return self.settings.relation_pairs * (1 if self.settings.symmetric else 2)

    @property
    def n_firsts(self) -> int:
        """First names, and as many last names."""
        return self.n_entities // self.settings.multiplicity

    @property
    def told(self) -> Int[np.ndarray, "fact 3"]:
        """Everything that training shows."""
        return np.concatenate([self.train, self.atomic])

    def split(self, split: Split) -> Int[np.ndarray, "fact 3"]:
        """The facts of one split."""
        return {"train": self.train, "atomic": self.atomic, "test": self.test}[split]


def make_world(settings: WorldSettings) -> ReversalWorld:
    """The world of these settings: the same everywhere for the same seed.

    Within each relation the entities of a group are matched at random, so that every entity has
    exactly one partner; a fair coin says in which direction a pair of group B is told.
    """
    random = np.random.default_rng([settings.seed, 0])
    a, b = np.arange(settings.n_a), settings.n_a + np.arange(settings.n_b)
    pairs = range(settings.relation_pairs)
    train = [fact for i in pairs for fact in _both_ways(_matched(a, random), i, settings)]
    one_way = [_told_and_not(_matched(b, random), i, settings, random) for i in pairs]
    n, m = settings.n_a + settings.n_b, settings.multiplicity
    return ReversalWorld(
        settings,
        np.concatenate(train),
        np.concatenate([told for told, _ in one_way]),
        np.concatenate([untold for _, untold in one_way]),
        shared_names(n, m, np.random.default_rng([settings.seed, 1])),
    )


def shared_names(n: int, m: int, random: np.random.Generator) -> Int[np.ndarray, "n 2"]:
    """Names of `n` entities: each first and each last name with `m` of them, no full name twice.

    The last names are dealt at random; while two entities share a full name, theirs are dealt anew
    together with as many others.
    """
    k = n // m
    firsts = np.repeat(np.arange(k), m)
    lasts = random.permutation(np.repeat(np.arange(k), m))
    while (clashing := _repeats(firsts * k + lasts)).any():
        chosen = clashing | (random.random(n) < clashing.mean())
        lasts[chosen] = random.permutation(lasts[chosen])
    names = np.stack([firsts, k + lasts], axis=1)
    return random.permutation(names, axis=0)


def shared_tokens(names: Int[np.ndarray, "entity 2"]) -> Int[np.ndarray, "entity entity"]:
    """How many name tokens two entities share, 2 for an entity with itself."""
    return (names[:, None] == names[None]).sum(-1)


def _repeats(values: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _matched(
    entities: Int[np.ndarray, " n"], random: np.random.Generator
) -> Int[np.ndarray, "pair 2"]:
    return random.permutation(entities).reshape(-1, 2)


def _both_ways(
    pairs: Int[np.ndarray, "pair 2"], relation: int, settings: WorldSettings
) -> tuple[Int[np.ndarray, "pair 3"], Int[np.ndarray, "pair 3"]]:
    """`x r y` and `y r_inverse x` of every pair."""
    forward, back = (relation,) * 2 if settings.symmetric else (2 * relation, 2 * relation + 1)
    x, y = pairs.T
    return (
        np.stack([x, np.full_like(x, forward), y], axis=1),
        np.stack([y, np.full_like(x, back), x], axis=1),
    )


def _told_and_not(
    pairs: Int[np.ndarray, "pair 2"],
    relation: int,
    settings: WorldSettings,
    random: np.random.Generator,
) -> tuple[Int[np.ndarray, "pair 3"], Int[np.ndarray, "pair 3"]]:
    forward, back = _both_ways(pairs, relation, settings)
    coin = random.random(len(pairs)) < 0.5
    return np.where(coin[:, None], forward, back), np.where(coin[:, None], back, forward)
