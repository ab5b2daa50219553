"""Control sets for MLP units: what would any units that write as much in these layers have done?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..models.types import NeuronId, Site
from .errors import StatisticsError

WriteSize = Float[np.ndarray, "layer unit"]

_DECILES = 10
_FAIR = (0.8, 1.25)  # controls that together write less or more than this are called unequal


@dataclass(frozen=True)
class MatchedNeurons:
    """Control sets: in each, unit `i` stands for target `i`, at the same site.

    `note` is empty, or says in words where matching fell short, to be shown beside the comparison.
    """

    draws: tuple[tuple[NeuronId, ...], ...]
    note: str


def matched_random_neurons(
    target: Sequence[NeuronId],
    write_size: WriteSize | Mapping[Site, WriteSize],
    *,
    draws: int = 20,
    seed: int,
    exclude: Iterable[NeuronId] = (),
) -> MatchedNeurons:
    """Random sets with as many units of each layer, site and decile of write size as `target`.

    `write_size` `[layer, unit]` is E|a_m| * ||W_down[:, m]|| (relation_neurons.md 6.5); deciles are
    those of all units of a layer. A plain array is that of the hidden units, which `gate_pre` and
    `up` units write through; targets at `mlp_out` need a mapping with a table for that site.
    Targets and `exclude` (massive-activation units) are never drawn, nor is the same unit at
    another of its sites, and no unit is drawn twice in a set.

    Where a decile has too few other units, the nearest decile of its layer lends some, then the
    nearest layers, and the note says so; it also says when the controls together write less than
    0.8 or more than 1.25 times what the targets do (the last decile has a long tail).

    Raises `StatisticsError` for no target or draw, a target named twice or not in the tables,
    values that are negative or not finite, and when too few other units are left.
    """
    target, exclude = tuple(target), tuple(exclude)
    tables = _tables(target, exclude, write_size, draws)
    rng = np.random.default_rng(seed)
    slots = np.zeros((draws, len(target), 2), dtype=np.int64)
    strayed = np.zeros((len(target), 2), dtype=bool)
    for kind, table in tables.items():
        mine = np.array([i for i, one in enumerate(target) if _kind(one.site) is kind])
        taken = [one for one in (*target, *exclude) if _kind(one.site) is kind]
        free = np.ones(table.shape, dtype=bool)
        free[tuple(np.array([(one.layer, one.index) for one in taken]).T)] = False
        pairs = np.array([(target[i].layer, target[i].index) for i in mine])
        slots[:, mine], strayed[mine] = _draw(pairs, table, free, draws, rng)
    sites = [one.site for one in target]
    sets = tuple(
        tuple(
            NeuronId(layer, index, site) for (layer, index), site in zip(drawn, sites, strict=True)
        )
        for drawn in slots.tolist()
    )
    return MatchedNeurons(sets, _note(target, sets, strayed, tables))


def uniform_random_neurons(
    count: int, n_layers: int, n_units: Mapping[Site, int], *, draws: int = 10, seed: int
) -> MatchedNeurons:
    """Sets of `count` units drawn evenly from all units of all layers at the sites of `n_units`
    (units a layer): the baseline of Liu et al. 2025.

    A weak one: most units write little, and they lie in other layers than a relation's; the note
    says so. Raises `StatisticsError` when there are fewer than `count` units.
    """
    sites = list(n_units)
    widths = np.array([n_units[site] for site in sites], dtype=np.int64)
    total = n_layers * int(widths.sum())
    if draws < 1 or not 1 <= count <= total:
        raise StatisticsError(
            f"cannot draw {count} of {total} units {draws} times: choose fewer units, one draw at "
            "least."
        )
    rng = np.random.default_rng(seed)
    ends = np.cumsum(widths)
    sets = []
    for _ in range(draws):
        layer, place = np.divmod(rng.choice(total, count, replace=False), ends[-1])
        of = np.searchsorted(ends, place, side="right")
        index = place - (ends - widths)[of]
        picked = zip(layer.tolist(), index.tolist(), of.tolist(), strict=True)
        sets.append(tuple(NeuronId(i, m, sites[s]) for i, m, s in picked))
    return MatchedNeurons(tuple(sets), "drawn evenly: not matched in layer or write size")


def _kind(site: Site) -> Site:
    """The table that a site's units are matched in: gate, up and hidden unit are one handle."""
    return Site.MLP_OUT if site is Site.MLP_OUT else Site.NEURON


def _draw(
    pairs: Int[np.ndarray, "slot 2"],
    table: WriteSize,
    free: Bool[np.ndarray, "layer unit"],
    draws: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "draw slot 2"], Bool[np.ndarray, "slot 2"]]:
    """Layer and index of a control for every slot, and which slots strayed: to another decile of
    their layer, to another layer. A cell is a decile of a layer, numbered layer * 10 + decile."""
    if free.sum() < len(pairs):
        raise StatisticsError(
            f"{len(pairs)} targets leave only {free.sum()} units to compare with: choose fewer."
        )
    cell = _deciles(table) + _DECILES * np.arange(len(table))[:, None]
    pool = np.argwhere(free)
    pool = pool[np.argsort(cell[free], kind="stable")]  # each cell's free units are one slice
    starts = np.searchsorted(cell[tuple(pool.T)], np.arange(_DECILES * len(table) + 1))
    wanted = cell[tuple(pairs.T)]
    given = _lenders(wanted, np.diff(starts))
    drawn = np.empty((draws, len(pairs), 2), dtype=np.int64)
    for lender in np.unique(given):
        here = np.flatnonzero(given == lender)
        keys = rng.random((draws, starts[lender + 1] - starts[lender]))
        drawn[:, here] = pool[starts[lender] + np.argsort(keys, axis=1)[:, : len(here)]]
    moved = given // _DECILES != wanted // _DECILES
    return drawn, np.stack([(given != wanted) & ~moved, moved], axis=1)


def _deciles(table: WriteSize) -> Int[np.ndarray, "layer unit"]:
    """0 for the tenth of a layer's units that write least, to 9; equal sizes share a decile."""
    inner = np.linspace(0, 1, _DECILES + 1)[1:-1]
    bounds = np.quantile(table, inner, axis=1).T
    return np.stack(
        [np.searchsorted(b, row, side="right") for b, row in zip(bounds, table, strict=True)]
    )


def _lenders(
    wanted: Int[np.ndarray, " slot"], room: Int[np.ndarray, " cell"]
) -> Int[np.ndarray, " slot"]:
    """The cell that serves each slot. Every cell serves its own slots before it lends to others,
    first in its layer, then in near layers."""
    given = np.full(len(wanted), -1)
    room = room.copy()
    cells = np.unique(wanted)
    # Rounds: the own cell, then the rest of the own layer, then everywhere else.
    for first, last in ((0, 1), (1, _DECILES), (_DECILES, len(room))):
        for cell in cells:
            waiting = np.flatnonzero((wanted == cell) & (given < 0))
            for lender in _nearest(cell, len(room))[first:last] if len(waiting) else ():
                taken, waiting = np.split(waiting, [room[lender]])
                given[taken] = lender
                room[lender] -= len(taken)
    return given


def _nearest(cell: int, n_cells: int) -> Int[np.ndarray, " cell"]:
    """All cells: its own, those of its layer, then layer by layer; each time nearest deciles
    first."""
    layer, decile = np.divmod(np.arange(n_cells), _DECILES)
    mine, tenth = divmod(cell, _DECILES)
    return np.lexsort((np.abs(decile - tenth), np.abs(layer - mine)))


def _tables(
    target: tuple[NeuronId, ...],
    exclude: tuple[NeuronId, ...],
    write_size: WriteSize | Mapping[Site, WriteSize],
    draws: int,
) -> dict[Site, WriteSize]:
    """The write sizes of each kind that the target has units of, checked."""
    if not target or draws < 1:
        raise StatisticsError("matched controls need a target unit and a draw at least.")
    twice = [str(one) for one, n in Counter(target).items() if n > 1]
    if twice:
        raise StatisticsError(f"units named twice: {', '.join(twice[:5])}; name each once.")
    given = write_size if isinstance(write_size, Mapping) else {Site.NEURON: write_size}
    tables = {}
    for kind in dict.fromkeys(_kind(one.site) for one in target):
        if kind not in given:
            raise StatisticsError(
                f"targets at {kind} need the write sizes of that site: give {{Site: table}}."
            )
        tables[kind] = np.asarray(given[kind], dtype=np.float64)
        _check_table((*target, *exclude), kind, tables[kind])
    return tables


def _check_table(target: tuple[NeuronId, ...], kind: Site, table: WriteSize) -> None:
    if table.ndim != 2 or not (np.isfinite(table) & (table >= 0)).all():
        raise StatisticsError("write sizes must be layers by units, finite and not negative.")
    for one in target:
        inside = 0 <= one.layer < table.shape[0] and 0 <= one.index < table.shape[1]
        if _kind(one.site) is kind and not inside:
            raise StatisticsError(
                f"{one} does not exist in {table.shape[0]} layers of {table.shape[1]} units: check "
                "the target and what is excluded."
            )


def _note(
    target: tuple[NeuronId, ...],
    sets: tuple[tuple[NeuronId, ...], ...],
    strayed: Bool[np.ndarray, "slot 2"],
    tables: Mapping[Site, WriteSize],
) -> str:
    notes = []
    in_layer, moved = strayed.sum(axis=0)
    if in_layer:
        notes.append(f"{in_layer} of {len(target)} controls from near deciles of write size")
    if moved:
        layers = sorted({one.layer for one, far in zip(target, strayed[:, 1], strict=True) if far})
        named = ", ".join(map(str, layers))
        notes.append(f"too few other units in layer {named}: {moved} controls from near layers")
    for kind, table in tables.items():
        notes += _write_note(kind, table, target, sets)
    different = len({frozenset(controls) for controls in sets})
    if different < len(sets):
        notes.append(f"{different} different control sets in {len(sets)} draws")
    return "; ".join(notes)


def _write_note(
    kind: Site,
    table: WriteSize,
    target: tuple[NeuronId, ...],
    sets: tuple[tuple[NeuronId, ...], ...],
) -> list[str]:
    """Says so where the controls of a kind write much less or more than the targets, in sum."""

    def written(units: tuple[NeuronId, ...]) -> float:
        at = np.array([(one.layer, one.index) for one in units if _kind(one.site) is kind])
        return float(table[tuple(at.T)].sum())

    wanted = written(target)
    if wanted == 0:
        return []
    ratio = float(np.mean([written(controls) for controls in sets])) / wanted
    if _FAIR[0] <= ratio <= _FAIR[1]:
        return []
    return [f"controls at {kind} write {ratio:.2g} times as much as the targets"]
