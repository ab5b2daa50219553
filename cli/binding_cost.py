"""What a `binding` command will cost, measured on a few pairs before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from ..data.facts.pairs import WAYS, PairRelation, Way, with_pairs
from ..models.hooked import HookedModel
from ..probes.name_scores import score_names
from ..probes.role_prompts import RolePrompts, role_prompts
from ..probes.role_states import role_states, states_bytes
from .binding_entangling import EntangleConfig
from .binding_pairs import PairsConfig, asked_pairs, way_named
from .binding_probing import ProbeConfig
from .binding_swapping import SwapConfig

_TRIED = 8
_STEERED, _STRIDE = 4, 6  # directions of steering, layers by default
# A backward pass costs two forward ones.
_BACKWARD = 3


@dataclass(frozen=True)
class Cost:
    """An estimate: seconds of every part on this machine as it is now, bytes of the states.

    Statistics come on top, and pairs that turn out unknown are not yet left out.
    """

    model: str
    pairs: int
    prompts: int
    seconds: dict[str, float]
    states_bytes: int

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class _Tried:
    """The prompts, seconds of one with its answer, and of filtering all pairs in one direction."""

    model: HookedModel
    prompts: RolePrompts
    row: float
    known: dict[Way, float]


def probe_cost(config: ProbeConfig) -> Cost:
    """States of the model, of random weights, and with the fact in twice as long a prompt."""
    tried = _tried(config.pairs)
    rows = _rows(tried.prompts)
    parts = {"knowledge": _knowledge(config.pairs, tried, *WAYS), "states": rows * tried.row}
    if config.random_control:
        parts["random initialised"] = rows * tried.row
    if config.in_context:
        parts["fact in the prompt"] = 2 * rows * tried.row
    return _cost(tried, parts)


def swap_cost(config: SwapConfig) -> Cost:
    """States, then a prompt a pair, arm, source and target layer."""
    tried = _tried(config.pairs)
    n, layers = len(tried.prompts.kept), tried.model.anatomy.n_layers
    origins = 3 if config.elsewhere else 2
    arms = len(config.forms) * (2 * len(config.ranks) + 2 * origins + 1) + 2
    grid = (len(config.sources) or min(_STRIDE, layers + 1)) * (
        len(config.targets) or min(_STRIDE, layers)
    )
    parts = {"states": _rows(tried.prompts) * tried.row}
    parts["knowledge"] = _knowledge(config.pairs, tried, "forward")
    parts["swaps"] = n * arms * grid * tried.row
    if config.steer:
        each = 1 + len(config.strengths) * _STEERED
        parts["steering"] = min(_STRIDE, layers) * each * tried.known["reverse"]
    return _cost(tried, parts)


def entangle_cost(config: EntangleConfig) -> Cost:
    """Overlaps with their control, gradients, and the steps."""
    tried = _tried(config.pairs)
    n, rows = len(tried.prompts.kept), _rows(tried.prompts)
    passes = rows * (2 if config.control else 1)
    parts = {"states": rows * tried.row, "overlap": passes * tried.row}
    parts["knowledge"] = _knowledge(config.pairs, tried, way_named(config.way))
    parts["gradients"] = _BACKWARD * n * tried.row
    parts["steps"] = min(config.sources, n) * (_BACKWARD + min(config.targets, n)) * tried.row
    return _cost(tried, parts)


def _tried(config: PairsConfig) -> _Tried:
    asked = asked_pairs(config)
    clean = role_prompts(asked.model, asked.relation)
    pairs = clean.relation.pairs
    few = role_prompts(asked.model, with_pairs(clean.relation, pairs[:_TRIED]))
    role_states(asked.model, few)  # the first pass of a process is slow
    began = perf_counter()
    role_states(asked.model, few)
    row = (perf_counter() - began) / _rows(few)
    known = {way: _filter(asked.model, clean.relation, way) for way in WAYS}
    taken = with_pairs(clean.relation, pairs[: config.n or None])
    return _Tried(asked.model, role_prompts(asked.model, taken), row, known)


def _filter(model: HookedModel, relation: PairRelation, way: Way) -> float:
    """Seconds of the knowledge filter, from some of its prompts."""
    pairs, few = relation.pairs, relation.pairs[:_TRIED]
    began = perf_counter()
    score_names(
        model,
        [relation.prompt(pair, way) for pair in few],
        [pair.asked(way) for pair in pairs],
        whole=[(i,) for i in range(len(few))],
    )
    return (perf_counter() - began) / len(few) * len(pairs)


def _knowledge(config: PairsConfig, tried: _Tried, *ways: Way) -> float:
    """Seconds of the filter in these directions; none where all pairs are taken."""
    return sum(tried.known[way] for way in ways) if config.known else 0.0


def _rows(prompts: RolePrompts) -> int:
    return sum(len(rows) for way in WAYS for rows in prompts.rows(way))


def _cost(tried: _Tried, parts: dict[str, float]) -> Cost:
    return Cost(
        tried.model.name,
        len(tried.prompts.kept),
        _rows(tried.prompts),
        {name: round(seconds, 1) for name, seconds in parts.items()},
        states_bytes(tried.model, tried.prompts),
    )
