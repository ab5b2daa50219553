"""Steering names towards what predicts them helps where the reader reads that code, only there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.reverse_steering import (
    DIRECTIONS,
    ReverseSteering,
    measure_reverse_steering,
    steering_steps,
)
from mnemoscope.probes.role_maps import fit_role_map
from mnemoscope.probes.role_prompts import role_prompts
from mnemoscope.probes.role_states import RoleStates, role_states
from mnemoscope.probes.swap_vectors import swap_vectors
from mnemoscope.results.run_folder import open_run
from role_swap_ground import Ground, Kind, ground


@cache
def planted(kind: Kind) -> tuple[Ground, RoleStates]:
    """Names carry half of their code where it is shared, and all of it elsewhere."""
    made = ground(kind, faint=0.5 if kind == "consistent" else 1.0, sharpness=5.0)
    return made, role_states(made.model, role_prompts(made.model, made.relation))


@cache
def steered(kind: Kind) -> ReverseSteering:
    made, states = planted(kind)
    return measure_reverse_steering(made.model, states, strengths=(0.5, 1.0))


def test_a_shared_code_gains_from_the_map_and_from_nothing_else() -> None:
    found = steered("consistent")
    assert found.gain("map")[1, 1].mean() > 0.5
    assert found.gain("map")[1, 1].mean() > found.gain("map")[1, 0].mean()
    for control in ("shuffled", "shift", "noise"):
        assert abs(found.gain(control)[1].mean()) < 0.1, control
    rows = found.table().filter(direction="map", layer=1)
    assert (rows["p_grid"] < 0.01).all()
    assert (rows["beyond_low"] > 0).all()


@pytest.mark.parametrize("kind", ["rotated", "absent"])
def test_where_predictions_have_another_code_nothing_gains(kind: Kind) -> None:
    found = steered(kind)
    assert found.gain("map").max() < 0.05
    rows = found.table().filter(direction="map")
    assert (rows["accuracy_gain"] <= 0).all()


def test_at_the_embeddings_predictions_say_nothing() -> None:
    np.testing.assert_allclose(steered("consistent").gain("map")[0], 0, atol=1e-6)


def test_the_steps_come_from_maps_of_the_other_half() -> None:
    _, states = planted("consistent")
    vectors = swap_vectors(states)
    steps = steering_steps(vectors, 1)
    slot, predicted = vectors.slot[1].numpy(), vectors.predicted[1].numpy()
    seen = (vectors.half == 1).numpy()
    role_map = fit_role_map(slot[seen], predicted[seen])
    want = role_map.apply(slot[~seen]) - role_map.apply(slot[seen].mean(0))
    np.testing.assert_allclose(steps[0][~seen], want, atol=1e-5)
    shift = predicted[seen].mean(0) - slot[seen].mean(0)
    np.testing.assert_allclose(steps[2][~seen], np.broadcast_to(shift, want.shape), atol=1e-5)
    torch.testing.assert_close(steps[3].norm(dim=1), steps[0].norm(dim=1))
    assert not torch.allclose(steps[1], steps[0])


def test_the_scores_are_those_of_the_unedited_model_at_strength_zero() -> None:
    made, states = planted("consistent")
    found = measure_reverse_steering(made.model, states, layers=(1,), strengths=(0.0,))
    assert found.log_prob.shape == (len(DIRECTIONS), 1, 1, 32)
    np.testing.assert_allclose(
        found.log_prob, np.broadcast_to(found.clean_log_prob, found.log_prob.shape), atol=1e-9
    )
    np.testing.assert_allclose(found.clean_log_prob, states.log_probs["reverse"][0], atol=1e-4)
    assert found.chance == pytest.approx(sum(1 / i for i in range(1, 33)) / 32)
    np.testing.assert_array_equal(found.right("map")[0, 0], found.clean_rank == 1)


def test_a_resumed_run_gives_the_same(tmp_path: Path) -> None:
    made, states = planted("consistent")
    seen: list[tuple[int, int]] = []
    with open_run(tmp_path, "steer", {"probe": "steer"}) as run:
        first = measure_reverse_steering(
            made.model,
            states,
            strengths=(1.0,),
            run=run,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert sorted(run.done) == ["steer-000", "steer-001"]
        again = measure_reverse_steering(made.model, states, strengths=(1.0,), run=run)
    assert seen[-1] == (320, 320)  # 32 pairs, unedited and 4 directions, 2 layers
    np.testing.assert_array_equal(first.log_prob, again.log_prob)


def test_no_strength_is_refused() -> None:
    made, states = planted("consistent")
    with pytest.raises(MnemoscopeError, match="no strength"):
        measure_reverse_steering(made.model, states, strengths=())
