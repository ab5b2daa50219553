"""Before and after on the planted model, where the truth about every head is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.cli.prune_config import CONFLICTS, KINDS, Controls, Evaluate, Gate, Method
from mnemoscope.cli.prune_eval import (
    Evaluation,
    Ground,
    Metric,
    evaluate,
    failed_gates,
    ground_of,
    head_edits,
    reload_gap,
)
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.head_means import mean_head_outputs
from mnemoscope.models import HeadId, load_model
from mnemoscope.models.perplexity import perplexity

MEMORY, CONTEXT = HeadId(1, 2), HeadId(1, 5)
ZERO, THREE = Method(), Controls(matched_random=3)


@pytest.fixture(scope="module")
def ground(world: Any) -> Ground:
    return ground_of(load_model(world.checkpoint), Evaluate(relation=str(world.relation)))


def measured(
    ground: Ground,
    heads: Sequence[HeadId],
    root: Path,
    method: Method = ZERO,
    controls: Controls = THREE,
    force: bool = False,
) -> Evaluation:
    return evaluate(
        ground,
        method,
        heads,
        controls,
        root,
        means_of=lambda them: mean_head_outputs(ground.model, neutral_passages(), them),
        force=force,
        tell=lambda done, total: None,
    )


def by_name(found: Evaluation) -> dict[str, Metric]:
    return {metric.name: metric for metric in found.metrics}


def test_pruning_the_memory_head_takes_memory_away(ground: Ground, tmp_path: Path) -> None:
    found = by_name(measured(ground, [MEMORY], tmp_path))
    assert (found["closed"].before, found["closed"].after) == (1.0, 0.0)
    substitution = found["memory_rate.substitution"]
    assert substitution.before > 0 == substitution.after
    assert found["context_rate.substitution"].after == 1.0
    assert substitution.change == -substitution.before
    assert substitution.low is not None
    assert substitution.low <= substitution.change
    assert found["closed"].beyond_random
    assert found["closed"].random == (0.0, 0.0, 0.0)


def test_pruning_the_context_head_leaves_memory(ground: Ground, tmp_path: Path) -> None:
    found = by_name(measured(ground, [CONTEXT], tmp_path))
    assert found["closed"].after == 1.0
    assert found["memory_rate.substitution"].after == 1.0


def test_rates_sum_to_one_and_ppl_is_that_of_the_probe(ground: Ground, tmp_path: Path) -> None:
    found = by_name(measured(ground, [MEMORY], tmp_path))
    for form in CONFLICTS:
        for moment in ("before", "after"):
            rates = [getattr(found[f"{kind}_rate.{form}"], moment) for kind in KINDS]
            assert sum(rates) == pytest.approx(1.0)
    passages = neutral_passages()
    was = perplexity(ground.model, passages)
    now = perplexity(ground.model, passages, head_edits(ZERO, [MEMORY], {}))
    assert (found["ppl"].before, found["ppl"].after) == (was, now)
    assert found["ppl"].change == pytest.approx(now / was - 1)


def test_reports_say_what_was_measured(ground: Ground, tmp_path: Path) -> None:
    found = measured(ground, [MEMORY], tmp_path)
    record = json.loads((found.run / "report.json").read_text("utf-8"))
    assert record["heads"] == [str(MEMORY)]
    assert record["items"] == len(ground.items)
    told = {metric["name"]: metric for metric in record["metrics"]}
    assert told["closed"]["after"] == 0.0
    page = (found.run / "report.html").read_text("utf-8")
    assert "closed" in page
    assert "Content-Security-Policy" in page
    table = polars.read_parquet(found.run / "table.parquet")
    assert set(table["name"]) == set(told)
    assert {"before", "after", "random_low", "random_high", "p"} <= set(table.columns)


def test_a_second_time_nothing_is_asked_again(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(ground, [MEMORY], tmp_path)
    monkeypatch.setattr("mnemoscope.cli.prune_eval.answer_items", None)
    assert measured(ground, [MEMORY], tmp_path) == first


def test_an_interrupted_evaluation_goes_on(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemoscope.cli import prune_eval

    whole = measured(ground, [MEMORY], tmp_path / "whole")
    real, asked = prune_eval.answer_items, []

    def dying(*args: Any) -> Any:
        asked.append(args)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(prune_eval, "answer_items", dying)
    with pytest.raises(KeyboardInterrupt):
        measured(ground, [MEMORY], tmp_path / "parts")
    again = measured(ground, [MEMORY], tmp_path / "parts")
    assert again.metrics == whole.metrics
    assert len(asked) == 3 + 2, "of pruned and three draws the first two were kept"


def test_a_scaled_head_is_measured_scaled(ground: Ground, tmp_path: Path) -> None:
    halved = by_name(measured(ground, [MEMORY], tmp_path, Method(mode="scale", factor=0.25)))
    assert halved["memory_rate.substitution"].after < halved["memory_rate.substitution"].before
    boosted = by_name(measured(ground, [MEMORY], tmp_path, Method(mode="scale", factor=4.0)))
    assert boosted["memory_rate.substitution"].after == 1.0


def test_a_mean_ablated_head_says_nothing_of_its_own(ground: Ground, tmp_path: Path) -> None:
    found = by_name(measured(ground, [MEMORY], tmp_path, Method(mode="mean")))
    assert found["closed"].after < found["closed"].before


def test_other_controls_are_another_run(ground: Ground, tmp_path: Path) -> None:
    one = measured(ground, [MEMORY], tmp_path)
    other = measured(ground, [MEMORY], tmp_path, controls=Controls(matched_random=3, seed=1))
    assert one.run != other.run


def test_reloading_is_compared_with_the_hooks(ground: Ground, world: Any) -> None:
    same = load_model(world.checkpoint)
    prompt = ground.items[0].prompt("closed")
    assert reload_gap(ground.model, same, (), prompt) == 0
    assert reload_gap(ground.model, same, head_edits(ZERO, [MEMORY], {}), prompt) > 0.1


METRICS = (
    Metric("closed", 0.9, 0.8, -0.1, -0.2, 0.0, 0.1, 0.1, (0.0,)),
    Metric("context_rate.substitution", 0.2, 0.5, 0.3, 0.1, 0.4, 0.0, 0.0, (0.0,)),
    Metric("context_rate.qa", 0.2, 0.2, 0.0, 0.1, 0.4, 0.0, 0.0, (0.0,)),
    Metric("ppl", 20.0, 21.0, 0.05, None, None, None, None, (0.0,)),
)


@pytest.mark.parametrize(
    ("gate", "holds"),
    [
        (Gate(metric="ppl", max_increase=0.05), True),
        (Gate(metric="ppl", max_increase=0.04), False),
        (Gate(metric="closed", max_drop=0.1), True),
        (Gate(metric="closed", max_drop=0.09), False),
        (Gate(metric="context_rate", min_increase=0.3), True),
        (Gate(metric="context_rate", min_increase=0.31), False),
        (Gate(metric="context_rate.qa", min_increase=0.1), False),
        (Gate(metric="closed", min=0.8), True),
        (Gate(metric="closed", min=0.81), False),
    ],
)
def test_a_gate_holds_or_says_by_how_much_it_does_not(gate: Gate, holds: bool) -> None:
    failed = failed_gates([gate], METRICS)
    assert (not failed) == holds
    if failed:
        assert failed[0].startswith(f"gate {gate.metric}: ")
        assert "off by" in failed[0]


def test_a_number_that_is_none_holds_no_gate() -> None:
    broken = [Metric("ppl", 20.0, float("nan"), float("nan"), None, None, None, None, (0.0,))]
    assert failed_gates([Gate(metric="ppl", max_increase=0.5)], broken)
