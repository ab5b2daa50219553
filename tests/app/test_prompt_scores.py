"""Scores of one prompt are differences of logits that a plain ablation gives."""

from __future__ import annotations

import polars
import pytest
from mnemoscope.app.answers import Answers, Question, first_ids
from mnemoscope.app.forecast import control_seconds, sweep_seconds
from mnemoscope.app.prompt_scores import prompt_scores, quantity
from mnemoscope.app.run_scores import grid_frame, run_scores, runs_with_scores
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models.edits import zero
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from planted_ground import (
    CLAIM,
    CONTEXT,
    CONTEXT_HEAD,
    ESTIMAND,
    MEMORY_HEAD,
    PROMPT,
    STORED,
)

GIVEN = Question(PROMPT, CONTEXT).given or ""


@pytest.fixture(scope="module")
def scores(model: HookedModel) -> polars.DataFrame:
    ids = first_ids(model, GIVEN, Answers(STORED, "", CLAIM, ""))
    return prompt_scores(build_chain(model), GIVEN, ids)


def best(table: polars.DataFrame, column: str) -> str:
    row = table.sort(column, descending=True).row(0, named=True)
    return str(HeadId(row["layer"], row["head"]))


def test_the_planted_heads_lead_and_one_ablation_gives_mirror_images(
    scores: polars.DataFrame, model: HookedModel
) -> None:
    assert best(scores, "memory") == MEMORY_HEAD
    assert best(scores, "context") == CONTEXT_HEAD
    assert scores["memory"].to_list() == [-x for x in scores["context"]]
    assert scores.height == model.anatomy.n_layers * model.anatomy.n_heads


def test_in_the_last_layer_the_direct_effect_is_the_whole_effect(
    scores: polars.DataFrame, model: HookedModel
) -> None:
    """Heads of the last layer reach END's logits in no other way, so a hooked pass must agree."""
    ids = first_ids(model, GIVEN, Answers(STORED, "", CLAIM, ""))

    def difference(head: HeadId | None) -> float:
        batch = model.tokens(GIVEN)
        if head is None:
            logits = model.logits(batch, at="end")
        else:
            with model.intervene([zero([head], positions="end", phase="prefill")]):
                logits = model.logits(batch, at="end")
        return float(logits[0, 0, ids["memory"]] - logits[0, 0, ids["context"]])

    clean = difference(None)
    for row in scores.filter(polars.col("layer") == 1).iter_rows(named=True):
        head = HeadId(row["layer"], row["head"])
        assert row["memory"] == pytest.approx(clean - difference(head), abs=1e-3)


def test_with_one_answer_the_score_is_the_fall_of_its_logit(model: HookedModel) -> None:
    ids = first_ids(model, PROMPT, Answers(STORED, "", None, ""))
    table = prompt_scores(build_chain(model), PROMPT, ids)
    assert "context" not in table.columns
    assert best(table, "memory") == MEMORY_HEAD
    assert "logit(context)" not in quantity(ids, "memory")
    with pytest.raises(MnemoscopeError, match="no answer"):
        prompt_scores(build_chain(model), PROMPT, {})


def test_the_model_is_left_without_hooks(scores: polars.DataFrame, model: HookedModel) -> None:
    assert all(not module._forward_hooks for module in model.module.modules())
    assert all("forward" not in module.__dict__ for module in model.module.modules())


def test_the_forecast_counts_weights_and_tokens(model: HookedModel) -> None:
    weights = sum(p.numel() for p in model.module.parameters())
    assert sweep_seconds(model) == pytest.approx(weights * 16 / 5e10)
    alone, both = Question(PROMPT, ""), Question(PROMPT, CONTEXT)
    assert control_seconds(model, alone, 20) == pytest.approx(2 * weights * 5 * 20 / 5e10)
    assert control_seconds(model, both, 5) == pytest.approx(2 * weights * (5 + 12) * 5 / 5e10)


def test_runs_with_scores_are_found_by_model(scored, model: HookedModel) -> None:
    (run,) = runs_with_scores(scored, model.name)
    assert run.estimand == ESTIMAND
    assert runs_with_scores(scored, "another") == ()
    assert runs_with_scores(scored / "nowhere") == ()
    assert run_scores(run.folder).id == run.id


def test_a_grid_frame_has_intervals_only_where_they_were_measured(
    scored, scores: polars.DataFrame
) -> None:
    (run,) = runs_with_scores(scored)
    tested, single = grid_frame(run.table, "memory"), grid_frame(scores, "memory")
    assert tested.columns == single.columns == ["layer", "head", "score", "low", "high", "q"]
    assert tested["q"].null_count() == 0
    assert single["q"].null_count() == single.height
    assert tested["score"].to_list() == run.table["memory"].to_list()


def test_a_damaged_run_is_left_out_of_the_sources(scored, tmp_path, model: HookedModel) -> None:
    import shutil

    root = tmp_path / "runs"
    shutil.copytree(scored, root)
    (table,) = root.glob("*/table.parquet")
    table.write_bytes(b"nothing")
    assert runs_with_scores(root, model.name) == ()
