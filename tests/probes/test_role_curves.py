"""Curves and contrasts on states whose roles are known: one code, a rotated code, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.probes.role_contrast import (
    by_entity,
    candidate_curves,
    contrast,
    entity_curves,
)
from mnemoscope.probes.role_curves import Curve, Effort, compare, curve_table, curves
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.role_figures import CURVE_COLUMNS, role_curves_figure

LAYERS, ENTITIES, WIDTH = 3, 48, 40
EFFORT = Effort(draws=200, permutations=40)
ROTATED, SAME, ABSENT = range(LAYERS)
"""What the roles share at each layer of `roles`."""


def roles(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Subject and predicted states: a rotated code at layer 0, the same at 1, unrelated at 2."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(LAYERS, ENTITIES, 8)) @ rng.normal(size=(8, WIDTH))
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    other = rng.normal(size=(ENTITIES, 8)) @ rng.normal(size=(8, WIDTH))
    predicted = np.stack([content[ROTATED] @ turn, content[SAME], other])
    offset = 5 * rng.normal(size=(2, LAYERS, 1, WIDTH))
    noise = 0.1 * rng.normal(size=(2, LAYERS, ENTITIES, WIDTH))
    return content + offset[0] + noise[0], predicted + offset[1] + noise[1]


def test_one_code_a_rotated_code_and_nothing_are_told_apart() -> None:
    found = compare(*roles(), EFFORT).quantities
    mrr, mapped = found["mrr"], found["mapped_mrr"]
    assert mrr.value[SAME] > 0.95
    assert mrr.value[ROTATED] < mrr.floor_high[ROTATED] + 0.1
    assert mapped.value[ROTATED] > 0.8
    assert mapped.value[ABSENT] < mapped.floor_high[ABSENT] + 0.1
    assert found["cka"].value[SAME] > 0.9
    assert found["cka"].value[ROTATED] > 0.9
    assert abs(found["cka"].value[ABSENT]) < 0.3
    assert found["score"].value[SAME] > 2


def test_every_quantity_has_a_value_and_a_floor_at_every_layer() -> None:
    for name, line in compare(*roles(), EFFORT).quantities.items():
        assert np.isfinite(line.value).all(), name
        assert np.isfinite(line.floor).all(), name
        assert line.value.shape == line.low.shape == line.floor_low.shape == (LAYERS,), name


def test_a_bare_effort_gives_the_same_values() -> None:
    full, bare = (compare(*roles(), effort).quantities for effort in (EFFORT, EFFORT.bare))
    for name in full:
        assert np.allclose(full[name].value, bare[name].value), name


def test_curves_stand_beside_their_ceiling_and_null_and_go_into_one_table() -> None:
    a, b = roles()
    own = compare(a, b, EFFORT.bare).quantities
    top = compare(a, a, EFFORT.bare).quantities
    made = curves("S-P", own, top, {"mrr": np.full(LAYERS, 0.25)})
    table = curve_table(made)
    assert tuple(table.columns) == CURVE_COLUMNS
    assert len(table) == len(own) * LAYERS
    mrr = next(one for one in made if one.quantity == "mrr")
    assert np.allclose(mrr.ceiling, 1)
    assert np.allclose(mrr.null, 0.25)
    rows = table.filter(quantity="cka")
    assert rows["null"].is_null().all()  # not measured is null, not a number
    role_curves_figure(table, "mrr", title="", axis_label="")


def planted_contrast(gap: float, groups: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    first = np.arange(40) < 20
    values = rng.normal(size=(40, 5))
    values[first, 3] += gap
    return {"values": values, "first": first}


def test_a_contrast_finds_the_layer_where_the_groups_differ() -> None:
    given = planted_contrast(3.0)
    made = contrast(
        "mrr", "S-P", given["values"], ("x", "y"), (given["first"], ~given["first"]), EFFORT
    )
    assert made.best == 3
    assert made.p[3] < 0.01
    assert made.low[3] < made.difference[3] < made.high[3]
    assert made.low[3] > 0
    assert made.difference[3] == pytest.approx(
        given["values"][given["first"], 3].mean() - given["values"][~given["first"], 3].mean()
    )


def test_groups_that_do_not_differ_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(2)
    first = np.arange(40) < 20
    alarms = [
        contrast(
            "mrr", "S-P", rng.normal(size=(40, 5)), ("x", "y"), (first, ~first), EFFORT
        ).p.min()
        < 0.05
        for _ in range(60)
    ]
    assert np.mean(alarms) < 0.15  # family-wise 0.05, three standard errors above


def test_a_difference_of_frequencies_does_not_pass_for_one_of_telling() -> None:
    rng = np.random.default_rng(3)
    often = np.arange(80) < 40
    first = np.where(often, np.arange(80) % 4 != 0, np.arange(80) % 4 == 0)
    values = rng.normal(size=(80, 2)) * 0.3 + often[:, None]
    members = (first, ~first)
    plain = contrast("mrr", "S-P", values, ("x", "y"), members, EFFORT)
    strata = ["often" if one else "seldom" for one in often]
    matched = contrast("mrr", "S-P", values, ("x", "y"), members, EFFORT, strata)
    assert plain.p.min() < 0.05
    assert matched.p.min() > 0.05


def test_only_groups_that_both_sides_have_are_compared() -> None:
    given = planted_contrast(0.0)
    strata = ["once"] * 8 + ["often"] * 32
    made = contrast(
        "mrr", "S-P", given["values"], ("x", "y"), (given["first"], ~given["first"]), EFFORT, strata
    )
    assert (made.n_first, made.n_second) == (12, 20)


def test_too_few_entities_are_no_contrast() -> None:
    first = np.arange(40) < 7
    with pytest.raises(StatisticsError, match="too few to contrast"):
        contrast("mrr", "S-P", np.zeros((40, 2)), ("x", "y"), (first, ~first), EFFORT)


def test_groups_of_entities_share_the_candidates_of_all() -> None:
    a, b = roles()
    shares = by_entity(a, b, compare(a, b, EFFORT.bare).mapped)
    groups = {"even": np.arange(ENTITIES) % 2 == 0, "one": np.arange(ENTITIES) == 0}
    made = {
        (one.quantity, one.stratum): one for one in entity_curves("S-P", shares, groups, EFFORT)
    }
    assert {stratum for _, stratum in made} == {"even (24)"}  # one entity is no group
    assert np.allclose(made["mrr", "even (24)"].value, shares["mrr"][::2].mean(axis=0))
    assert shares["margin"].shape == (ENTITIES, LAYERS)
    assert shares["margin"][:, SAME].mean() > 0.9
    assert abs(shares["margin"][:, ABSENT].mean()) < 0.2


def test_candidates_of_a_stratum_have_its_own_chance() -> None:
    a, b = roles()
    near = np.arange(ENTITIES)[:, None] // 4 == np.arange(ENTITIES)[None] // 4
    masks = {"block": near, "nobody": np.zeros((ENTITIES, ENTITIES), dtype=bool)}
    (made,) = candidate_curves("S-P", a, b, masks, EFFORT)
    assert isinstance(made, Curve)
    assert made.stratum == f"among block ({ENTITIES})"
    assert np.allclose(made.floor, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert made.value[SAME] > 0.95
