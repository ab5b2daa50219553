"""Which heads are pruned: head sets narrowed by role, SQL and rank, and random ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from mnemoscope.cli.prune_config import Heads
from mnemoscope.cli.prune_selection import SelectionError, choose_heads, model_shape, where
from mnemoscope.models import HeadId
from mnemoscope.models.errors import CheckpointError
from mnemoscope.results.errors import UnitSetError
from mnemoscope.results.head_set import HeadScore, HeadSet, save_head_set

SCORES = (
    (HeadId(1, 2), 3.0, "memory", 0.001, (2.0, 4.0)),
    (HeadId(0, 1), 1.0, "memory", 0.20, None),
    (HeadId(1, 5), 5.0, "context", 0.002, (4.0, 6.0)),
    (HeadId(0, 7), 0.5, "context", None, None),
    (HeadId(0, 4), 2.0, "memory", 0.03, None),
)


def head_set(n_layers: int = 2) -> HeadSet:
    scores = tuple(HeadScore(*row) for row in SCORES)
    return HeadSet("found", "planted", n_layers, 8, 8, "direct", "head-scores-1", scores)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "headset.json"
    save_head_set(path, head_set())
    return path


def chosen(world: Any, **asked: object) -> tuple[HeadId, ...]:
    return choose_heads(Heads.model_validate(asked), world.checkpoint).heads


@pytest.mark.parametrize(
    ("condition", "heads"),
    [
        ("role = 'memory' AND q < 0.05", {(1, 2), (0, 4)}),
        ("role == 'memory' and q < 0.05", {(1, 2), (0, 4)}),
        ("p IS NULL OR score > 4", {(1, 5), (0, 7)}),
        ("low > 0 AND layer = 1", {(1, 2), (1, 5)}),
        ("layer IN (0) AND NOT head = 7", {(0, 1), (0, 4)}),
        ("role LIKE 'mem%' AND high < 5", {(1, 2)}),
    ],
)
def test_where_is_sql_over_the_columns(condition: str, heads: set[tuple[int, int]]) -> None:
    assert {(h.layer, h.head) for h in where(head_set(), condition).ids} == heads


@pytest.mark.parametrize(
    "condition",
    [
        "colour = 'red'",
        "score >",
        "score",
        "score > 'high'",
        "",
        "1 = 1; DROP TABLE heads",
        "read_csv('/etc/passwd')",
        "(SELECT 1)",
        "row = 1",
        "__import__('os').system('true')",
        "unknown_function(score) > 1",
    ],
)
def test_what_is_no_condition_names_the_columns(condition: str) -> None:
    with pytest.raises(SelectionError, match="Columns: layer, head, kv_head, score, role, p, q"):
        where(head_set(), condition)


def test_role_where_and_top_narrow_one_after_the_other(world: Any, file: Path) -> None:
    given = {"from": str(file)}
    assert chosen(world, **given) == head_set().ids
    assert chosen(world, **given, role="memory", top=2) == (HeadId(1, 2), HeadId(0, 4))
    assert chosen(world, **given, where="layer = 0", top=1) == (HeadId(0, 4),)
    # 2 layers of 8 heads: 15 % are 2.4, so 2
    assert chosen(world, **given, top="15%") == (HeadId(1, 5), HeadId(1, 2))
    assert chosen(world, **given, top="1%") == (HeadId(1, 5),)


def test_the_manifest_learns_where_the_heads_are_from(world: Any, file: Path) -> None:
    from mnemoscope.models.checkpoint_files import file_sha256

    asked = Heads.model_validate({"from": str(file), "role": "context", "top": 9})
    found = choose_heads(asked, world.checkpoint)
    assert found.origin["head_set_sha256"] == file_sha256(file)
    assert (found.origin["run_id"], found.origin["model_id"]) == ("head-scores-1", "planted")
    assert found.origin["scores"] == {"L1.H5": 5.0, "L0.H7": 0.5}
    (note,) = found.notes
    assert "9 heads were asked for" in note


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"role": "poetry"}, "roles are 'context', 'memory'"),
        ({"where": "score > 100"}, "widen --where"),
        ({"random": {"n": 4}, "top": 2}, "use --random 2"),
    ],
)
def test_a_choice_without_heads_is_refused(
    asked: dict[str, object], message: str, world: Any, file: Path
) -> None:
    with pytest.raises(SelectionError, match=message):
        chosen(world, **{"from": str(file)}, **asked)


def test_a_head_set_of_another_model_is_refused(world: Any, tmp_path: Path) -> None:
    save_head_set(tmp_path / "other.json", head_set(n_layers=3))
    with pytest.raises(UnitSetError, match="this model has 2 of 8"):
        chosen(world, **{"from": str(tmp_path / "other.json")})


def test_random_heads_are_matched_by_layer(world: Any, file: Path) -> None:
    picked = [HeadId(1, 2), HeadId(0, 1), HeadId(1, 5)]
    pairs = [[head.layer, head.head] for head in picked]
    drawn = chosen(world, list=pairs, random={"n": 3, "seed": 4})
    assert Counter(h.layer for h in drawn) == Counter(h.layer for h in picked)
    assert not set(drawn) & set(picked)
    assert drawn == chosen(world, list=pairs, random={"n": 3, "seed": 4})
    draws = {chosen(world, list=pairs, random={"n": 3, "seed": seed}) for seed in range(5)}
    assert len(draws) > 1
    # of a head set without top, the best n are the ones to match
    matched = chosen(world, **{"from": str(file)}, random={"n": 2})
    assert [head.layer for head in matched] == [1, 1]


def test_random_heads_alone_are_any_heads(world: Any) -> None:
    drawn = chosen(world, random={"n": 16, "seed": 1})
    assert drawn == tuple(HeadId(layer, head) for layer in range(2) for head in range(8))
    with pytest.raises(SelectionError, match="has 16 heads"):
        chosen(world, random={"n": 17})
    seen = {head for seed in range(40) for head in chosen(world, random={"n": 2, "seed": seed})}
    assert len(seen) == 16


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_shape_is_read_from_the_configuration(family: str, tmp_path: Path) -> None:
    from families import tiny
    from mnemoscope.models.anatomy import resolve_anatomy

    module = tiny(family)
    module.config.save_pretrained(tmp_path)
    shape, anatomy = model_shape(tmp_path), resolve_anatomy(module)
    assert (shape.n_layers, shape.n_heads, shape.d_v) == (
        anatomy.n_layers,
        anatomy.n_heads,
        anatomy.d_v,
    )


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model_shape(tmp_path)
