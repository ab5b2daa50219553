"""Records of runs, and what several runs say together: recomputed, planted, and our own runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.reversal_arms import ARMS, PRESETS
from mnemoscope.organisms.reversal_metrics import Consistency, Entanglement, Recall
from mnemoscope.organisms.reversal_runs import (
    CURVES,
    RECORD,
    ToyRun,
    finished_runs,
    of_arm,
    read_record,
    record_text,
)
from mnemoscope.organisms.reversal_study import (
    arm_table,
    at_train_mrr,
    matched_table,
    mediation,
    over_seeds,
)
from mnemoscope.organisms.reversal_training import ToyMeasure, train_toy
from mnemoscope.results.errors import RunFolderError
from mnemoscope.results.statistics import chance_mrr
from scipy import stats

TINY = replace(
    PRESETS["miniature"], n_a=40, n_b=24, width=8, batch=32, eval_every=5, probes=10, steps=10
)


def _recall(mrr: float) -> Recall:
    return Recall(mrr, mrr - 0.01, mrr + 0.01, mrr / 2, 0.0, 1.0, 100)


def _run(arm: str, seed: int, train: list[float], test: list[float]) -> ToyRun:
    """A run whose curve is given."""
    recall = {"train": _recall(train[-1]), "atomic": _recall(0.9), "test": _recall(test[-1])}
    final = ToyMeasure(
        100 * len(train), recall, None, Consistency(0.7, 0.7, 0.5, 0.0), Entanglement(0, 0, 0, 9.0)
    )
    columns = {name: np.zeros(len(train)) for name in CURVES}
    columns |= {"train": np.array(train), "test": np.array(test)}
    return ToyRun(arm, "small", seed, 10, 3200, 1200, 1000, 30.0, 0.5, columns, final)


def test_a_record_gives_the_runs_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        for arm in ("surface", "jepa-memory"):
            small = replace(ARMS[arm], multiplicity=2)
            train_toy(tmp_path / arm / str(seed), small, TINY, seed)
    runs = finished_runs(tmp_path)
    path = tmp_path / "record.json"
    path.write_text(record_text(tmp_path))
    again = read_record(path)
    assert [(run.arm, run.seed) for run in again] == [(run.arm, run.seed) for run in runs]
    for run, read in zip(runs, again, strict=True):
        assert read.chance == chance_mrr(64)
        assert read.chance_in_group == chance_mrr(24)
        assert read.curve["step"].tolist() == [5, 10]
        assert all(np.allclose(read.curve[name], run.curve[name], atol=1e-4) for name in CURVES)
        assert read.final.recall["test"].mrr == pytest.approx(
            run.final.recall["test"].mrr, abs=1e-4
        )
    assert json.loads(path.read_text())["format"] == 1


def test_missing_and_damaged_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no finished training"):
        finished_runs(tmp_path)
    for content in ("{}", "not json", '{"format": 99, "runs": []}', '{"format": 1, "runs": [3]}'):
        path = tmp_path / "record.json"
        path.write_text(content)
        with pytest.raises(RunFolderError, match="no record"):
            read_record(path)


def test_intervals_over_seeds_are_students() -> None:
    values = [0.5, 0.6, 0.8]
    found = over_seeds(values)
    wanted = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert over_seeds([0.4]).low is None
    with pytest.raises(MnemoscopeError, match="one seed"):
        over_seeds([])


def test_reverse_at_equal_fit_is_read_between_evaluations() -> None:
    run = _run("jepa", 0, [0.2, 0.6, 0.5, 0.9], [0.0, 0.3, 0.4, 0.5])
    assert at_train_mrr(run, 0.4) == pytest.approx(0.15)
    assert at_train_mrr(run, 0.2) == pytest.approx(0.0)
    assert at_train_mrr(run, 0.75) == pytest.approx(0.4 + 0.1 * 0.25 / 0.4)
    assert at_train_mrr(run, 0.95) is None
    assert at_train_mrr(run, 0.1) is None  # passed before the first evaluation


def test_tables_keep_the_order_of_the_arms_and_only_levels_that_all_seeds_reach() -> None:
    runs = [
        _run("jepa", 0, [0.1, 0.9], [0.0, 0.8]),
        _run("jepa", 1, [0.1, 0.7], [0.0, 0.3]),
        _run("surface", 0, [0.1, 0.9], [0.0, 0.0]),
    ]
    table = arm_table(runs)
    assert table["arm"].to_list() == ["surface", "jepa"]
    jepa = table.row(1, named=True)
    assert jepa["seeds"] == 2
    assert jepa["reverse"] == pytest.approx(0.55)
    assert jepa["reverse_low"] < 0.55 < jepa["reverse_high"]
    assert jepa["chance"] < jepa["chance_in_group"]
    matched = matched_table(runs, [0.5, 0.8])
    assert matched.select("arm", "train_mrr").rows() == [
        ("surface", 0.5),
        ("surface", 0.8),
        ("jepa", 0.5),
    ]


def test_the_peak_may_come_before_the_end() -> None:
    assert _run("tied", 0, [0.1, 0.9, 1.0], [0.0, 0.5, 0.3]).peak == 0.5


def _variables(carried: float, straight: float, runs: int = 200) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    cause = random.normal(size=runs)
    mediator = 0.8 * cause + 0.6 * random.normal(size=runs)
    outcome = carried * mediator + straight * cause + 0.5 * random.normal(size=runs)
    return cause, mediator, outcome


def test_mediation_finds_a_planted_path_and_none_where_there_is_none() -> None:
    through = mediation(*_variables(1.0, 0.0))
    assert through.low > 0.3
    assert abs(through.direct) < 0.15
    assert through.r2_mediator > through.r2_cause
    past = mediation(*_variables(0.0, 1.0))
    assert past.low < 0 < past.high
    assert past.direct > 0.7


def test_the_parts_of_a_mediation_are_plain_regressions() -> None:
    x, m, y = (v / v.std() for v in (v - v.mean() for v in _variables(0.7, 0.4, runs=30)))
    found = mediation(x, m, y, draws=50)
    slopes = np.linalg.lstsq(np.stack([x, m], axis=1), y, rcond=None)[0]
    assert found.total == pytest.approx((x @ y) / (x @ x))
    assert found.direct == pytest.approx(slopes[0])
    assert found.indirect == pytest.approx((x @ m) / (x @ x) * slopes[1])
    assert found.r2_mediator == pytest.approx(np.corrcoef(m, y)[0, 1] ** 2)


def test_too_few_or_equal_runs_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="five"):
        mediation(*(np.arange(4.0),) * 3)
    with pytest.raises(MnemoscopeError, match="the same in every run"):
        mediation(np.ones(6), np.arange(6.0), np.arange(6.0))


def _reverse(arm: str) -> np.ndarray:
    return np.array([run.final.recall["test"].mrr for run in of_arm(read_record(), arm)])


def test_our_record_is_small_and_shows_the_signature_with_every_seed() -> None:
    assert RECORD.stat().st_size < 200_000
    chance = chance_mrr(3200)
    for arm in ("surface", "untied", "two-tables", "lm-memory"):
        runs = of_arm(read_record(), arm)
        assert len(runs) >= 1, arm
        assert all(run.final.recall["atomic"].mrr > 0.9 for run in runs), arm
        assert (_reverse(arm) < 10 * chance).all(), arm
    for arm in ("tied", "jepa", "jepa-m2", "jepa-m20", "jepa-memory"):
        assert (_reverse(arm) > 50 * chance).all(), arm
    assert _reverse("jepa-m2").min() > _reverse("jepa").max() > _reverse("jepa-m20").max()
    assert _reverse("jepa-memory").mean() > _reverse("jepa-m20").max()
