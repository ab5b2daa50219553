"""Training: the signature in miniature, resuming byte for byte, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms import reversal_training
from mnemoscope.organisms.reversal import main, toy_folder
from mnemoscope.organisms.reversal_arms import ARMS, PRESETS
from mnemoscope.organisms.reversal_metrics import entity_ranks, probe_facts
from mnemoscope.organisms.reversal_training import (
    ToyResult,
    batch_rows,
    load_toy,
    measure,
    read_result,
    train_toy,
)
from mnemoscope.results.errors import RunFolderError
from mnemoscope.results.statistics import chance_mrr

TINY = replace(
    PRESETS["miniature"], n_a=40, n_b=24, width=8, batch=32, warmup=4, eval_every=5, probes=10
)
TINY = replace(TINY, name_probes=5, steps=12)
ARM = replace(ARMS["jepa"], multiplicity=2)
KEPT = ("settings.json", "loss.jsonl", "state.safetensors", "final.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ToyResult]:
    out = tmp_path_factory.mktemp("toys")
    arms = {"tied": 200, "untied": 100, "jepa-memory": 120, "two-tables": 100, "lm-memory": 150}
    return {
        arm: train_toy(out / arm, arm, "miniature", seed=0, steps=steps)
        for arm, steps in arms.items()
    }


CHANCE = chance_mrr(1600)


@pytest.mark.parametrize("arm", ["tied", "jepa-memory"])
def test_one_space_for_both_roles_learns_the_reverse(
    trained: dict[str, ToyResult], arm: str
) -> None:
    found = trained[arm].final.recall
    assert found["atomic"].mrr > 0.7
    assert found["test"].mrr_low > 30 * CHANCE
    assert found["test"].hit_low > 0.1


@pytest.mark.parametrize("arm", ["untied", "two-tables", "lm-memory"])
def test_two_spaces_learn_the_forward_facts_and_stay_at_chance_in_reverse(
    trained: dict[str, ToyResult], arm: str
) -> None:
    found = trained[arm].final.recall
    assert found["atomic"].mrr > 0.7
    assert found["test"].mrr < 5 * CHANCE
    assert found["test"].hit < 0.01


def test_role_consistency_follows_success(trained: dict[str, ToyResult]) -> None:
    for arm in ("tied", "jepa-memory"):
        roles = trained[arm].final.consistency
        assert roles.test > 0.4
        assert abs(roles.permuted) < 0.02
    for arm in ("untied", "two-tables"):
        assert abs(trained[arm].final.consistency.test) < 0.05


def test_the_mean_over_tokens_hides_that_no_name_is_right(trained: dict[str, ToyResult]) -> None:
    final = trained["lm-memory"].final
    assert final.token_mrr is not None
    assert final.token_mrr["test"] > 5 * final.recall["test"].mrr


def test_a_trained_toy_is_loaded_as_it_was_measured(trained: dict[str, ToyResult]) -> None:
    result = trained["tied"]
    toy = load_toy(result.folder)
    assert toy.step == 200
    assert not toy.model.training
    facts = probe_facts(toy.world, "test", 4 * toy.preset.probes)
    mrr = (1 / entity_ranks(toy.model, facts)).mean()
    assert mrr == pytest.approx(result.final.recall["test"].mrr)
    assert measure(toy, more=4) == result.final


def test_peak_is_the_best_reverse_of_curve_and_end(trained: dict[str, ToyResult]) -> None:
    result = trained["jepa-memory"]
    assert [m.step for m in result.curve] == [100]
    best = max(m.recall["test"].mrr for m in (*result.curve, result.final))
    assert result.peak.recall["test"].mrr == best


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("arm", [ARM, ARMS["lm-memory"], ARMS["two-tables"]])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_interrupted_training_ends_in_the_same_bytes(
    tmp_path: Path, arm: str, dropout: float
) -> None:
    preset = replace(TINY, dropout=dropout, symmetric=dropout > 0)
    arm = replace(arm, multiplicity=2)
    train_toy(tmp_path / "whole", arm, preset, seed=3)

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        train_toy(tmp_path / "parts", arm, preset, seed=3, progress=stop)
    train_toy(tmp_path / "parts", arm, preset, seed=3)
    for name in KEPT:
        whole, parts = ((tmp_path / f / name).read_bytes() for f in ("whole", "parts"))
        assert whole == parts, name


def test_a_finished_training_is_only_read_and_goes_on_when_more_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_toy(tmp_path / "a", ARM, TINY)
    longer = train_toy(tmp_path / "a", ARM, TINY, steps=17)
    assert [m.step for m in longer.curve] == [5, 10, 15]
    assert longer.final.step == 17
    at_once = train_toy(tmp_path / "b", ARM, TINY, steps=17)
    assert at_once.final == longer.final
    assert first.final.step == 12
    monkeypatch.setattr(reversal_training, "_step", None)
    assert train_toy(tmp_path / "a", ARM, TINY, steps=17) == longer


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path, ARM, TINY, steps=1)
    with pytest.raises(RunFolderError, match="other settings"):
        train_toy(tmp_path, ARM, TINY, seed=1, steps=1)


def test_wrong_names_and_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MnemoscopeError, match="no arm 'jep'"):
        train_toy(tmp_path, "jep")
    with pytest.raises(MnemoscopeError, match="no preset 'tiny'"):
        train_toy(tmp_path, "jepa", "tiny")
    with pytest.raises(MnemoscopeError, match="one step"):
        train_toy(tmp_path, ARM, TINY, steps=0)


def test_an_unfinished_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no training"):
        read_result(tmp_path)
    train_toy(tmp_path, ARM, TINY, steps=2)
    (tmp_path / "final.json").unlink()
    with pytest.raises(RunFolderError, match="no finished training"):
        read_result(tmp_path)
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(RunFolderError, match="train it first"):
        load_toy(tmp_path)


def test_each_fact_comes_once_an_epoch_in_a_new_order() -> None:
    rows = np.concatenate([batch_rows(25, 10, step, seed=1) for step in range(1, 11)])
    epochs = rows.reshape(4, 25)
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert (batch_rows(3, 8, 1, seed=0) < 3).all()


def test_vectors_do_not_decay_and_the_rate_warms_up() -> None:
    toy = reversal_training._begun(ARM, TINY, 0, "cpu")
    optimizer = reversal_training._optimizer(toy.model, ARM, TINY)
    tables, vectors = optimizer.param_groups
    assert tables["weight_decay"] == TINY.decays[0]
    assert vectors["weight_decay"] == 0
    assert {p.ndim for p in tables["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    training = reversal_training.Training(toy.model, (optimizer,))
    reversal_training._step(training, torch.from_numpy(toy.world.told[:8]), toy, 1)
    assert tables["lr"] == TINY.rates[0] / 4


def test_the_command_trains_and_collects(tmp_path: Path) -> None:
    out, record = tmp_path / "out", tmp_path / "record.json"
    train = ["train", "--out", str(out), "--arms", "tied", "--seeds", "0", "1"]
    options = ["--preset", "miniature", "--steps", "3", "--device", "cpu"]
    assert main([*train, *options]) == 0
    assert (toy_folder(out, "miniature", "tied", 1) / "final.json").is_file()
    assert main(["collect", str(out), "--record", str(record)]) == 0
    assert [run["seed"] for run in json.loads(record.read_text())["runs"]] == [0, 1]
    assert main(["collect", str(out), "--record", str(record)]) == 1  # never overwritten unasked
    assert main(["collect", str(out), "--record", str(record), "--force"]) == 0
