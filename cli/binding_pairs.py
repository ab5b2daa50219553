"""Which pairs a `binding` command asks about: from where, in which wordings, known or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import get_args

import numpy as np

from ..data.facts.pair_sources import load_pair_relation
from ..data.facts.pairs import WAYS, PairRelation, Way, pairs_sha256, usable_pairs, with_pairs
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..organisms.engram.pairs import engram_pair_names, engram_pairs
from ..probes.elicitation import Progress, silent
from ..probes.pair_knowledge import known_pairs
from ..probes.role_prompts import RolePrompts, role_prompts
from ..results.kept_units import kept_arrays
from ..results.run import Run

ENGRAM = "engram"


@dataclass(frozen=True)
class PairsConfig:
    """The model and its pairs.

    `wordings` of each direction are used, 0 for all. `n` pairs are taken, 0 for all; with `known`
    only those that the model knows. `least` of them, or `n` if that is fewer, have to remain.
    `seed` draws which pairs come first, and what a command draws besides.
    """

    model: str
    pairs: str = "capital"
    n: int = 128
    least: int = 64
    wordings: int = 0
    known: bool = True
    copy: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    @property
    def needed(self) -> int:
        """How many pairs have to remain."""
        return min(self.least, self.n) if self.n else self.least


@dataclass(frozen=True, eq=False)
class Asked:
    """The model, and its usable pairs in the wordings asked for, in random order."""

    config: PairsConfig
    model: HookedModel
    relation: PairRelation
    dropped: dict[str, int]

    @property
    def identity(self) -> dict[str, str | None]:
        """What names a run besides its options."""
        return {
            "weights_sha256": self.model.weights_sha256,
            "pairs_sha256": pairs_sha256(self.relation),
        }


@dataclass(frozen=True, eq=False)
class Chosen:
    """Prompts of the pairs that are taken; `dropped` are all others, by reason."""

    prompts: RolePrompts
    dropped: dict[str, int]


def asked_pairs(config: PairsConfig, model: HookedModel | None = None) -> Asked:
    """Load model (unless it is given) and pairs. Raises `MnemoscopeError` with the reason where
    either is not to be had or no pair can be asked both ways."""
    relation = relation_named(config)  # a wrong name need not wait for the model
    if model is None:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    try:
        usable = usable_pairs(relation)
    except ValueError as error:
        raise MnemoscopeError(str(error)) from error
    drawn = list(usable.relation.pairs)
    Random(config.seed).shuffle(drawn)
    return Asked(config, model, with_pairs(usable.relation, drawn), usable.dropped)


def relation_named(config: PairsConfig) -> PairRelation:
    """The relation by name, or from a file. The organism's own relations know how they were told.

    Raises `MnemoscopeError` with the loader's reason.
    """
    if config.model == ENGRAM and config.pairs in engram_pair_names():
        relation = engram_pairs(relations=(config.pairs,))[config.pairs]
    else:
        try:
            relation = load_pair_relation(config.pairs, copy=config.copy, seed=config.seed)
        except (ValueError, OSError) as error:
            own = f" ({ENGRAM} also has {', '.join(engram_pair_names())}.)"
            hint = own if config.model == ENGRAM and not isinstance(error, OSError) else ""
            raise MnemoscopeError(f"{error}{hint}") from error
    kept = {way: relation.wordings(way)[: config.wordings or None] for way in WAYS}
    return replace(relation, forward=kept["forward"], reverse=kept["reverse"])


def chosen_pairs(
    asked: Asked, *, way: Way = "forward", run: Run | None = None, progress: Progress = silent
) -> Chosen:
    """The first `n` pairs that are clean in the model's tokens and known in this direction.

    Raises `MnemoscopeError` where too few remain.
    """
    config = asked.config
    clean = role_prompts(asked.model, asked.relation)
    pairs, dropped = clean.relation.pairs, {**asked.dropped, **clean.dropped}
    places = np.arange(len(pairs))
    if config.known:
        known = kept_arrays(
            run,
            f"pairs known {way}",
            lambda: {
                "known": known_pairs(
                    asked.model, clean.relation, way=way, min_pairs=0, progress=progress
                ).known
            },
        )["known"]
        dropped["not known"] = int((~known).sum())
        places = np.flatnonzero(known)
    taken = places[: config.n or None]
    dropped["more than asked for"] = len(places) - len(taken)
    if len(taken) < config.needed:
        raise MnemoscopeError(_too_few(asked, len(taken), {k: n for k, n in dropped.items() if n}))
    relation = with_pairs(clean.relation, [pairs[i] for i in taken])
    return Chosen(role_prompts(asked.model, relation), {k: n for k, n in dropped.items() if n})


def told_counts(relation: PairRelation) -> dict[str, int]:
    """How many pairs were told in which directions, where the relation says it."""
    told = [pair.told for pair in relation.pairs if pair.told]
    return {name: told.count(name) for name in ("both", "forward", "reverse") if name in told}


def way_named(word: str) -> Way:
    """A direction. Raises `MnemoscopeError` for another word."""
    for way in get_args(Way):
        if word == way:
            return way  # type: ignore[no-any-return]
    raise MnemoscopeError(f"--way is {word!r}: use forward or reverse.")


def _too_few(asked: Asked, n: int, dropped: dict[str, int]) -> str:
    fell = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "none"
    return (
        f"{n} pairs of {asked.relation.name!r} are left for {asked.model.name} (dropped: {fell}), "
        f"but {asked.config.needed} are needed: take another relation, a larger model, a smaller "
        "--least, or --unknown to ask about all pairs."
    )
