"""States of entities in their roles: the same as one prompt at a time, at every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from mnemoscope.data.facts.items import load_relation
from mnemoscope.data.facts.pairs import WAYS, pairs_of, usable_pairs, with_pairs
from mnemoscope.models import HookedModel, Site, load_model
from mnemoscope.models.random_weights import random_initialised
from mnemoscope.probes.role_prompts import ENTITIES, ROLES, RoleRow, role_prompts, way_of
from mnemoscope.probes.role_states import RoleStates, role_states, states_bytes
from mnemoscope.results.run_folder import open_run
from pair_ground import MOTHERS, PAIRS, tiny_reader


def streams(model: HookedModel, ids: tuple[int, ...]) -> np.ndarray:
    """All states of one row run alone, `[layer + 1, pos, d_model]`."""
    captured = model.capture(model.batch([ids]), (Site.RESID_PRE, Site.RESID_POST))
    last = captured[Site.RESID_POST, model.anatomy.n_layers - 1]
    found = torch.cat([captured.stack(Site.RESID_PRE)[:, 0], last])
    return np.asarray(found.float())


def expected(model: HookedModel, row: RoleRow) -> dict[str, np.ndarray]:
    """The roles of one row; S and P from the prompt without the asked name."""
    prompt, whole = streams(model, row.prompt), streams(model, row.ids)
    return {
        "S": prompt[:, row.named[1] - 1],
        "P": prompt[:, -1],
        "O": whole[:, -1],
        "P_mean": whole[:, row.end : -1].mean(1),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny_reader(family)
    states = role_states(model, role_prompts(model, MOTHERS))
    for entity in ENTITIES:
        for role in ROLES:
            found = states[entity, role]
            rows = states.prompts.showing(entity, role)
            assert found.dtype == np.float32
            assert found.shape == (4, len(rows), len(PAIRS), model.anatomy.d_model)
            for wording in range(len(rows)):
                for i, row in enumerate(rows[wording]):
                    want = expected(model, row)[role]
                    np.testing.assert_allclose(found[:, wording, i], want, rtol=1e-4, atol=1e-5)


def test_log_probs_are_those_of_the_whole_name() -> None:
    model = tiny_reader("gemma2")
    states = role_states(model, role_prompts(model, MOTHERS))
    for way in WAYS:
        for wording, rows in enumerate(states.prompts.rows(way)):
            for i, row in enumerate(rows):
                logits = model.module(input_ids=torch.tensor([row.ids])).logits[0]
                token = torch.arange(row.end, len(row.ids) - 1)
                want = logits.detach().log_softmax(1)[token, list(row.answer)].sum()
                assert states.log_probs[way][wording, i] == pytest.approx(float(want), rel=1e-5)


def same(one: RoleStates, other: RoleStates, **tolerance: Any) -> None:
    for key in one.states:
        np.testing.assert_allclose(one[key], other[key], **tolerance)
    for way in WAYS:
        np.testing.assert_allclose(one.log_probs[way], other.log_probs[way], **tolerance)


def test_the_size_of_a_batch_does_not_matter() -> None:
    model = tiny_reader()
    prompts = role_prompts(model, MOTHERS)
    assert len({len(row.ids) for row in prompts.reverse[0]}) > 1  # so that there is padding
    same(
        role_states(model, prompts, rows=1),
        role_states(model, prompts, rows=4),
        rtol=1e-5,
        atol=1e-6,
    )


def test_at_depth_0_reading_a_name_is_its_last_token_in_every_role_and_model() -> None:
    trained = tiny_reader()
    for model in (trained, random_initialised(trained)):
        states = role_states(model, role_prompts(model, MOTHERS))
        embeddings = model.module.get_input_embeddings().weight.detach().float().numpy()
        for entity in ENTITIES:
            names = [getattr(pair, entity).split()[-1] for pair in PAIRS]
            rows = embeddings[model.text_tokenizer.convert_tokens_to_ids(names)]
            for role in ("S", "O"):
                for wording in states[entity, role][0]:
                    np.testing.assert_array_equal(wording, rows)
        predicted = states["a", "P"][0]  # nothing of the name is read there: all pairs are alike
        assert np.ptp(predicted, axis=1).max() == 0


def test_the_memory_is_what_was_said() -> None:
    model = tiny_reader("gpt2")
    prompts = role_prompts(model, MOTHERS)
    states = role_states(model, prompts)
    assert sum(array.nbytes for array in states.states.values()) == states_bytes(model, prompts)


def test_progress_counts_prompts() -> None:
    model = tiny_reader()
    told: list[tuple[int, int]] = []
    role_states(model, role_prompts(model, MOTHERS), rows=3, progress=lambda *at: told.append(at))
    assert told[0] == (3, 25)
    assert told[-1] == (25, 25)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_reader()
    prompts = role_prompts(model, MOTHERS)
    whole = role_states(model, prompts)

    def stop(done: int, total: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "roles", {}) as run:
        role_states(model, prompts, run=run, progress=stop)
    passes: list[int] = []
    forward = HookedModel.forward

    def counted(self: HookedModel, batch: Any, columns: Any = None) -> Any:
        passes.append(len(batch))
        return forward(self, batch, columns)

    monkeypatch.setattr(HookedModel, "forward", counted)
    with open_run(tmp_path, "roles", {}) as run:
        same(role_states(model, prompts, run=run), whole, rtol=0)
    assert 0 < sum(passes) < 25


def test_in_context_states_are_kept_apart_in_one_run(tmp_path: Path) -> None:
    model = tiny_reader()
    with open_run(tmp_path, "roles", {}) as run:
        plain, told = (
            role_states(model, role_prompts(model, MOTHERS, in_context=there), run=run)
            for there in (False, True)
        )
    same(told, role_states(model, told.prompts), rtol=0)
    assert not np.allclose(plain["b", "S"][2], told["b", "S"][2])


def test_a_control_with_other_weights_has_units_of_its_own(tmp_path: Path) -> None:
    model = tiny_reader()
    fresh = random_initialised(model)
    prompts = role_prompts(model, MOTHERS)
    with open_run(tmp_path, "roles", {}) as run:
        role_states(model, prompts, run=run)
        same(role_states(fresh, prompts, run=run), role_states(fresh, prompts), rtol=0)


def test_engram_names_what_it_was_told() -> None:
    """The log-probabilities are of the right names: permuted ones are less likely."""
    model = load_model("engram")
    relation = usable_pairs(pairs_of(load_relation("capital"))).relation
    pairs = relation.pairs[:24]
    right = role_states(model, role_prompts(model, with_pairs(relation, pairs)))
    moved = [
        type(pair)(pair.a, other.b)
        for pair, other in zip(pairs, (*pairs[1:], pairs[0]), strict=True)
    ]
    wrong = role_states(model, role_prompts(model, with_pairs(relation, moved)))
    assert right.log_probs["forward"].mean() > wrong.log_probs["forward"].mean() + 1


@pytest.mark.slow
def test_a_stated_fact_is_reversed_in_context_by_smollm2() -> None:
    model = load_model("smollm2")
    relation = usable_pairs(pairs_of(load_relation("capital"))).relation
    pairs = relation.pairs[:8]
    told, untold = (
        role_states(model, role_prompts(model, relation, pairs, in_context=there))
        for there in (True, False)
    )
    assert way_of("a", "P") == "reverse"
    assert told.log_probs["reverse"].mean() > untold.log_probs["reverse"].mean() + 0.5
