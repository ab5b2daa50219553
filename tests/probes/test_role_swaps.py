"""Role swaps find what was planted: a shared code, a rotated one, none, and mere leakage."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.pairs import Pair, PairRelation, with_pairs
from mnemoscope.models import Edit, Site
from mnemoscope.models.edits import StreamId
from mnemoscope.models.errors import MnemoscopeError, UnitOutOfRangeError
from mnemoscope.probes.role_prompts import role_prompts
from mnemoscope.probes.role_states import RoleStates, role_states
from mnemoscope.probes.role_swaps import (
    SwapConfig,
    measure_role_swaps,
    strided_layers,
    whole_name_ranks,
)
from mnemoscope.probes.swap_results import RoleSwaps
from mnemoscope.probes.swap_vectors import Arm, arm_values, swap_arms, swap_vectors
from mnemoscope.results.run_folder import open_run
from role_swap_ground import Ground, Kind, ground

CONFIG = SwapConfig(source_layers=(0, 1), target_layers=(0, 1), ranks=(4, None))
OWN = {form: Arm("predicted", "own", form) for form in ("raw", "mapped")}


@cache
def planted(kind: Kind, faint: float = 1.0) -> tuple[Ground, RoleStates]:
    made = ground(kind, faint=faint)
    return made, role_states(made.model, role_prompts(made.model, made.relation))


@cache
def swaps(kind: Kind, faint: float = 1.0) -> RoleSwaps:
    made, states = planted(kind, faint)
    return measure_role_swaps(made.model, states, CONFIG)


def _beyond(found: RoleSwaps, arm: Arm) -> float:
    """In the cell where the planted heads write and read, nats."""
    return float(found.beyond(arm)[1, 1].mean())


# -- ground truth ---------------------------------------------------------------------------------


def test_where_names_and_predictions_share_a_code_the_prediction_answers() -> None:
    found = swaps("consistent", 0.1)  # the name alone says hardly anything
    assert found.clean_log_prob.mean() < -2
    assert found.gain(OWN["raw"])[1, 1].min() > 2
    assert (found.rank[found.arms.index(OWN["raw"])][1, 1] == 1).all()
    best = found.held_out(OWN["raw"])
    assert {source for source, _ in best.cells} == {1}
    assert best.beyond.low > 15
    assert best.p < 0.001
    assert found.gain(Arm("predicted", "noise"))[1, 1].mean() < 0


def test_it_still_answers_when_what_is_known_of_a_is_taken_out() -> None:
    found = swaps("consistent", 0.1)
    assert _beyond(found, Arm("without_asked")) > 15
    assert abs(_beyond(found, Arm("asked"))) < 0.1


def test_in_a_rotated_code_only_the_mapped_prediction_answers() -> None:
    found = swaps("rotated")
    assert abs(_beyond(found, OWN["raw"])) < 0.1
    assert found.held_out(OWN["raw"]).p > 0.01
    assert _beyond(found, OWN["mapped"]) > 15
    assert found.held_out(OWN["mapped"]).p < 0.001
    assert 1 < _beyond(found, Arm("predicted", "own", "mapped", 4)) < 15  # 4 of 8 dimensions


def test_where_predictions_say_nothing_of_the_name_no_swap_is_found_to_work() -> None:
    found = swaps("absent")
    for arm in found.arms:
        if arm.of == "own" and arm.origin in ("predicted", "without_asked"):
            assert abs(_beyond(found, arm)) < 0.5, arm
            assert found.held_out(arm).p > 0.01, arm


def test_a_prediction_that_carries_a_itself_is_seen_through() -> None:
    found = swaps("leaky")
    assert _beyond(found, OWN["raw"]) > 15  # it looks as if the fact were stored ...
    assert _beyond(found, Arm("asked")) > 15  # ... but A's own state does the same
    assert abs(_beyond(found, Arm("without_asked"))) < 0.1
    assert found.held_out(Arm("without_asked")).p > 0.01


def test_a_prediction_at_the_embeddings_is_the_same_for_every_entity() -> None:
    found = swaps("consistent", 0.1)
    for form in OWN:
        np.testing.assert_allclose(found.beyond(OWN[form])[0], 0, atol=1e-9)


def test_the_same_role_in_another_wording_is_the_ceiling() -> None:
    found = swaps("rotated")
    arm = Arm("same_role")
    np.testing.assert_allclose(found.gain(arm), 0, atol=1e-3)  # the token says it all
    assert _beyond(found, arm) > 15
    np.testing.assert_array_equal(found.gain(arm)[0], found.gain(arm)[1])  # has no source layer


# -- the measurement ------------------------------------------------------------------------------


def test_a_cell_equals_an_edit_by_hand() -> None:
    made, states = planted("consistent", 0.1)
    found, row = swaps("consistent", 0.1), states.prompts.reverse[0][5]
    value = torch.from_numpy(states["b", "P"][1, 0, 5]).double()
    edit = Edit("set", (StreamId(1, Site.RESID_PRE),), value[None], (row.named[1] - 1,), "prefill")
    with made.model.intervene([edit]):
        logits = made.model.logits(made.model.batch([row.prompt]), "end")[0, 0]
    names = [rows.answer[0] for rows in states.prompts.reverse[0]]
    told = logits.log_softmax(-1)[names]
    at = found.arms.index(OWN["raw"]), 1, 1, 5
    assert found.log_prob[at] == pytest.approx(float(told[5]), abs=1e-5)
    assert found.first[at] == found.log_prob[at]  # names of one token
    assert found.rank[at] == 1 + int((told > told[5]).sum())


def test_every_own_arm_has_its_control_and_the_arms_are_those_asked_for() -> None:
    _, states = planted("consistent")
    arms = swap_arms(swap_vectors(states), ("raw",), (1, None))
    assert len(set(arms)) == len(arms)
    assert {arm.control for arm in arms if arm.of == "own"} <= set(arms)
    own = {str(arm) for arm in arms if arm.of == "own"}
    assert own == {
        "predicted own raw 1",
        "predicted own raw full",
        "without_asked own raw full",
        "asked own raw full",
        "same_role own raw full",
    }


def test_the_map_that_a_pair_meets_has_not_seen_it() -> None:
    _, states = planted("rotated")
    vectors = swap_vectors(states)
    before = arm_values(vectors, [OWN["mapped"]], 1, 1)[0]
    mine = vectors.half == vectors.half[0]
    changed = {key: value.copy() for key, value in states.states.items()}
    own = np.flatnonzero(mine.numpy())
    changed["b", "S"][:, :, own] = changed["b", "S"][:, :, np.roll(own, 1)]
    again = swap_vectors(RoleStates(states.prompts, changed, states.log_probs))
    after = arm_values(again, [OWN["mapped"]], 1, 1)[0]
    torch.testing.assert_close(after[mine], before[mine])
    assert not torch.allclose(after[~mine], before[~mine])


def test_the_table_has_a_row_for_every_arm_and_cell() -> None:
    found = swaps("rotated")
    table = found.table()
    assert len(table) == len(found.arms) * 4
    row = table.row(
        by_predicate=(pl_is(origin="predicted", of="own", form="mapped", rank="full")),
        named=True,
    )
    assert row["gain"] == pytest.approx(found.gain(OWN["mapped"])[1, 1].mean())
    assert row["beyond_low"] < row["beyond"] < row["beyond_high"]
    assert row["p_grid"] < 0.01
    assert row["pairs"] == 32
    noise = table.filter(of="noise")
    assert noise["p"].is_nan().all()


def pl_is(**wanted: str) -> object:
    """Rows of these values in the last cell of the grid."""
    import polars as pl

    where = (pl.col("source_layer") == 1) & (pl.col("target_layer") == 1)
    for name, value in wanted.items():
        where &= pl.col(name) == value
    return where


def test_whole_names_are_ranked_among_all_of_them() -> None:
    made, states = planted("consistent", 0.1)
    arms = [OWN["raw"], OWN["raw"].control]
    ranks = whole_name_ranks(made.model, states, arms, 1, 1, CONFIG)
    found = swaps("consistent", 0.1)
    np.testing.assert_array_equal(ranks[0], found.clean_rank)
    for arm, got in zip(arms, ranks[1:], strict=True):
        np.testing.assert_array_equal(got, found.rank[found.arms.index(arm), 1, 1])


# -- another fact about the same entity -----------------------------------------------------------


def test_predictions_from_another_fact_serve_pairs_that_have_one() -> None:
    made, states = planted("consistent", 0.1)
    pairs = made.relation.pairs
    shifted = [Pair(pairs[i + 1].a, pairs[i].b) for i in range(20)]
    other = role_states(made.model, role_prompts(made.model, with_pairs(made.relation, shifted)))
    vectors = swap_vectors(states, elsewhere=other)
    assert vectors.elsewhere is not None
    known = torch.isfinite(vectors.elsewhere).all(2).all(0)
    assert known.tolist() == [True] * 20 + [False] * 12
    arm = Arm("elsewhere")
    found = measure_role_swaps(
        made.model, states, CONFIG, elsewhere=other, arms=[arm, arm.control, OWN["raw"]]
    )
    # "anna1 mother" predicts bert1 here: whoever is asked about bert0 hears of anna1.
    assert np.isnan(found.gain(arm)[..., 20:]).all()
    assert found.gain(arm)[1, 1, :20].max() < 0
    assert found.table().filter(origin="elsewhere", of="own")["pairs"].unique().to_list() != [32]
    mean = other["b", "P"][:, :, 3].mean(1)
    torch.testing.assert_close(vectors.elsewhere[:, 3], torch.from_numpy(mean))


def test_prompts_that_name_a_are_no_other_fact() -> None:
    _, states = planted("consistent")
    with pytest.raises(MnemoscopeError, match="without naming what is asked"):
        swap_vectors(states, elsewhere=states)


# -- resuming and errors --------------------------------------------------------------------------


def test_a_resumed_run_gives_the_same_and_counts_its_rows(tmp_path: Path) -> None:
    made, states = planted("consistent")
    arms = [OWN["raw"], OWN["raw"].control]
    seen: list[tuple[int, int]] = []
    config = {"probe": "swap"}
    with open_run(tmp_path, "swap", config) as run:
        first = measure_role_swaps(made.model, states, CONFIG, arms=arms, run=run)
        assert sorted(run.done) == ["target-000", "target-001"]
        again = measure_role_swaps(made.model, states, CONFIG, arms=arms, run=run)
    plain = measure_role_swaps(
        made.model, states, CONFIG, arms=arms, progress=lambda n, of: seen.append((n, of))
    )
    assert seen[-1] == (256, 256)  # 32 pairs, 2 arms, 2 source and 2 target layers
    np.testing.assert_array_equal(first.log_prob, again.log_prob)
    np.testing.assert_array_equal(first.log_prob, plain.log_prob)


def test_what_cannot_be_swapped_is_refused_with_the_reason() -> None:
    made, states = planted("consistent")
    with pytest.raises(UnitOutOfRangeError):
        measure_role_swaps(made.model, states, SwapConfig(target_layers=(2,)))
    with pytest.raises(MnemoscopeError, match="no reverse 2"):
        measure_role_swaps(made.model, states, SwapConfig(slot_wording=2))
    with pytest.raises(MnemoscopeError, match="no states for 'elsewhere'"):
        measure_role_swaps(made.model, states, CONFIG, arms=[Arm("elsewhere")])
    with pytest.raises(MnemoscopeError, match="no swap"):
        swaps("consistent").gain(Arm("elsewhere"))
    told = role_states(made.model, role_prompts(made.model, made.relation, in_context=True))
    with pytest.raises(MnemoscopeError, match="without in_context"):
        measure_role_swaps(made.model, told, CONFIG)


def test_one_reverse_wording_leaves_the_same_role_out() -> None:
    made, _ = planted("consistent")
    given = made.relation
    single = PairRelation("one", given.forward, given.reverse[:1], given.pairs)
    states = role_states(made.model, role_prompts(made.model, single))
    assert not any(arm.origin == "same_role" for arm in swap_arms(swap_vectors(states)))


def test_strided_layers_hold_first_and_last() -> None:
    assert strided_layers(31) == (0, 6, 12, 18, 24, 30)
    assert strided_layers(3) == (0, 1, 2)
    assert strided_layers(1) == (0,)
