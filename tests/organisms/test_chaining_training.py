"""Told to weights: what is asked was never told, arms learn what they are told, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.chaining_models import (
    CHAINING_ARMS,
    build_chaining_model,
    chaining_arm,
    chaining_items,
)
from mnemoscope.organisms.chaining_training import (
    ASKED,
    ChainingTraining,
    hop_recall,
    load_chaining,
    main,
    measure_chaining,
    number_ranks,
    told_of,
    train_chaining,
)
from mnemoscope.organisms.forward_chaining import (
    LEVELS,
    PRESETS,
    ChainingSettings,
    make_chaining_world,
)
from mnemoscope.organisms.reversal_models import NamePredictor, ToyModel
from mnemoscope.results.errors import RunFolderError

TINY = ChainingSettings(2, 3, 31, 2, (1, 2), (8, 20), core_links=3)
SHORT = ChainingTraining(12, 32, 4, width=8, multiplicity=2, eval_every=5, probes=10)
KEPT = ("settings.json", "loss.jsonl", "state.safetensors", "final.json")


def test_no_hidden_number_and_no_held_out_relation_is_told() -> None:
    told = told_of(TINY, SHORT)
    rows = {tuple(row) for row in told.facts.tolist()}
    for kind in ("held-out", *LEVELS):
        assert not rows & {tuple(row) for row in told.asked(kind).tolist()}
    for kind in ("attributes", "relations"):
        assert {tuple(row) for row in told.asked(kind).tolist()} <= rows
    for problem in told.world.problems:
        assert {tuple(row) for row in problem.facts.tolist()} <= rows
    asked = np.concatenate([told.asked(level) for level in LEVELS])
    assert len(asked) == 3 * (1 + 2 + 4)
    numbers = asked[:, 2] - told.items.n_entities
    np.testing.assert_array_equal(numbers, told.world.values[asked[:, 0]])


def test_every_item_has_a_name_of_its_own_and_entities_share_tokens() -> None:
    world = make_chaining_world(TINY)
    items = chaining_items(world, 4)
    assert len(np.unique(items.names, axis=0)) == len(items.names) == items.equals + 1
    firsts, lasts = items.names.T
    assert firsts.max() == items.n_firsts - 1
    assert lasts.min() >= items.n_firsts
    assert items.n_tokens == lasts.max() + 2
    entities = slice(0, items.n_entities)
    assert (
        np.bincount(firsts[entities]).max()
        == np.unique(lasts[entities], return_counts=True)[1].max()
        == 4
    )
    assert not set(lasts[entities].tolist()) & set(lasts[items.n_entities :].tolist())


class Knowing(ToyModel):
    """Scores every item by what it is told to score; for the ranks alone."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def entity_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(queries), -1)

    loss = predicted = perceived = neurons = None  # type: ignore[assignment]


Knowing.__abstractmethods__ = frozenset()


def test_ranks_are_among_numbers_and_any_entity_of_a_number_will_do() -> None:
    told = told_of(TINY, SHORT)
    n, m = told.items.n_entities, TINY.multiplicity
    scores = torch.zeros(len(told.items.names))
    scores[5 * m + 1], scores[n + 7], scores[n + 8] = 3.0, 2.0, 1.0
    scores[TINY.n_core] = scores[told.items.equals] = 9.0  # neither a core entity nor a number
    a, b = told.world.addends
    relation = [[(5 - a) * m, a * m, 5 * m], [(6 - b) * m, b * m, 6 * m]]
    attribute = [[0, told.items.equals, n + 7], [0, told.items.equals, n + 8]]
    found = number_ranks(Knowing(scores), told, np.array(relation + attribute))
    np.testing.assert_array_equal(found, [1, 1 + (30 + 1) / 2, 1, 2])


@pytest.mark.parametrize("arm", CHAINING_ARMS)
def test_whole_names_are_scored_exactly_and_the_loss_is_theirs(arm: str) -> None:
    told = told_of(TINY, SHORT)
    model = build_chaining_model(chaining_arm(arm), told.items, 0, width=8, heads=2)
    facts = torch.from_numpy(told.facts[:6])
    with torch.no_grad():
        scores = model.entity_scores(facts[:, :2])
        loss = model.loss(facts)
    assert scores.shape == (6, len(told.items.names))
    own = scores.gather(1, facts[:, 2:])[:, 0]
    if isinstance(model, NamePredictor):
        torch.testing.assert_close(-own.mean() / 2, loss)
    elif arm == "tied":
        every = torch.cat([scores, (model.predicted(facts[:, :2]) @ model.keys.specials().T)], 1)
        torch.testing.assert_close(-(own - every.logsumexp(1)).mean(), loss)
    again = build_chaining_model(chaining_arm(arm), told.items, 0, width=8, heads=2)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("arm", CHAINING_ARMS)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(arm: str, tmp_path: Path) -> None:
    whole = train_chaining(tmp_path / "whole", arm, TINY, SHORT)
    train_chaining(tmp_path / "parts", arm, TINY, replace(SHORT, steps=7))
    with (tmp_path / "parts" / "loss.jsonl").open("a") as curve:
        curve.write('{"step": 8, "loss": 1.0}\n')  # a step after the last saved state
    parts = train_chaining(tmp_path / "parts", arm, TINY, SHORT)
    for name in KEPT:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert [m.step for m in whole.curve] == [5, 10]
    assert whole.final == parts.final
    assert set(whole.final.recall) == set(ASKED)


def test_a_saved_model_is_read_back_and_asked_by_hop(tmp_path: Path) -> None:
    result = train_chaining(tmp_path, "jepa", TINY, SHORT)
    model, told = load_chaining(tmp_path)
    assert not model.training
    assert measure_chaining(model, told, 12, 40) == result.final
    by_hop = hop_recall(model, told)
    hidden = np.concatenate([told.asked(level) for level in LEVELS])
    assert sum(found.asked for found in by_hop.values()) == len(hidden)
    assert by_hop[3].asked >= TINY.problems  # every X, and leaves that hang on live bridges alone
    ranked = number_ranks(model, told, hidden)
    total = sum(found.mrr * found.asked for found in by_hop.values())
    assert total == pytest.approx((1 / ranked).sum())
    with pytest.raises(RunFolderError, match="no training of forward chaining"):
        load_chaining(tmp_path / "nowhere")


def test_one_table_learns_to_read_the_sums_backwards(tmp_path: Path) -> None:
    settings, how = PRESETS["small"], ChainingTraining(150, eval_every=150)
    found = train_chaining(tmp_path, "tied", replace(settings, problems=10), how)
    asked = found.final.recall
    assert asked["attributes"].hit > 0.8
    assert asked["held-out"].mrr_low > 5 * found.chance
    assert asked["level-2"].mrr_low > 3 * found.chance


def test_other_settings_and_wrong_names_are_refused(tmp_path: Path) -> None:
    train_chaining(tmp_path, "tied", TINY, SHORT)
    with pytest.raises(RunFolderError, match="other settings"):
        train_chaining(tmp_path, "tied", replace(TINY, seed=1), SHORT)
    with pytest.raises(MnemoscopeError, match="choose one of"):
        train_chaining(tmp_path / "b", "untied", TINY, SHORT)
    with pytest.raises(MnemoscopeError, match="one step"):
        train_chaining(tmp_path / "b", "tied", TINY, replace(SHORT, steps=0))
    (tmp_path / "final.json").write_text(json.dumps({"measure": {"step": 12}}))
    with pytest.raises(RunFolderError, match="no finished training"):
        train_chaining(tmp_path, "tied", TINY, SHORT)


def test_the_command_trains_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path), "--arms"]
    assert main([*out, "nothing"]) == 1
    assert "choose one of" in capsys.readouterr().err
