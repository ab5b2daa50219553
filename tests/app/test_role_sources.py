"""Roles of heads from runs, head sets and files of other projects, on the planted model."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from head_vis_contract import check_tree
from mnemoscope.app.role_exports import head_vis_tree, zipped
from mnemoscope.app.role_imports import keep_import
from mnemoscope.app.role_overlap import (
    BY_CHOICE,
    HIGHER,
    NOT_BETTER,
    overlap_table,
    profile_table,
)
from mnemoscope.app.role_scores import RoleScores, Rule, frame_of, mask_of, members, tidy
from mnemoscope.app.role_sources import (
    RoleSource,
    found_sources,
    imports_folder,
    named_apart,
    read_source,
    word,
)
from mnemoscope.app.settings import Settings
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.results.attention_patterns import AttentionPattern, save_pattern_folder
from mnemoscope.results.head_set import HeadScore, HeadSet, save_head_set
from mnemoscope.results.head_vis import head_vis_files, load_head_vis, save_head_vis
from mnemoscope.results.query_head_files import save_core_head_scores, save_query_head_list
from mnemoscope.results.retrieval_head_files import save_retrieval_head_scores
from mnemoscope.results.run_folder import load_run
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD

MEMORY, CONTEXT = HeadId.parse(MEMORY_HEAD), HeadId.parse(CONTEXT_HEAD)


@pytest.fixture
def served(settings: Settings, scored: Path) -> Settings:
    """A run, and a file of each other project in the imports folder."""
    shutil.copytree(scored, settings.runs_root)
    imports_folder(settings).mkdir()
    return settings


def roles_of(settings: Settings, model: HookedModel, key: str) -> tuple[RoleScores, ...]:
    (source,) = [one for one in found_sources(settings, model) if one.key == key]
    return read_source(source, model)


def shape(model: HookedModel) -> tuple[int, int]:
    return model.anatomy.n_layers, model.anatomy.n_heads


def test_a_run_gives_memory_and_context_with_their_tests(
    served: Settings, model: HookedModel
) -> None:
    (source,) = found_sources(served, model)
    memory, context = read_source(source, model)
    assert (memory.name, context.name) == ("memory", "context")
    assert memory.run_id == source.key == memory.source
    table = load_run(source.path).table.sort("layer", "head")
    np.testing.assert_array_equal(memory.grid.ravel(), table["memory"].to_numpy())
    np.testing.assert_array_equal(context.q.ravel(), table["context_q"].to_numpy())
    assert members(memory, Rule(by="top", k=1))[MEMORY.layer, MEMORY.head]


def test_runs_of_other_weights_are_left_out(served: Settings, model: HookedModel) -> None:
    (source,) = found_sources(served, model)
    config = source.path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "weights_sha256": "other"}))
    assert found_sources(served, model) == ()


def test_saved_sets_are_roles_under_their_own_names(served: Settings, model: HookedModel) -> None:
    anatomy = model.anatomy
    sizes = (anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads)
    heads = (HeadScore(MEMORY, 2.0, "memory", 0.01, (1.0, 3.0)), HeadScore(CONTEXT, 1.0, "odd one"))
    found = HeadSet("mine", model.name, *sizes, "by hand", None, heads)
    served.head_sets.mkdir()
    save_head_set(served.head_sets / "mine.json", found)
    other = HeadSet("other", "other", 40, *sizes[1:], "by hand", None, heads)
    save_head_set(served.head_sets / "other.json", other)
    memory, odd = roles_of(served, model, "mine.json")
    assert (memory.name, odd.name, odd.family) == ("memory", "mine_odd_one", "imported")
    assert members(memory, Rule()).sum() == 1
    assert memory.frame["low"].max() == 1.0
    assert [one.key for one in found_sources(served, model)][1:] == ["mine.json"]


def test_files_of_other_projects_keep_their_own_thresholds(
    served: Settings, model: HookedModel
) -> None:
    folder, anatomy = imports_folder(served), model.anatomy
    trials = {head: [0.0, 0.1] for head in anatomy.all_heads()} | {MEMORY: [0.2, 0.4]}
    save_retrieval_head_scores(folder / "wu-2024.json", trials)
    save_core_head_scores(folder / "core.json", {MEMORY: 0.5, CONTEXT: 0.25})
    save_query_head_list(folder / "qr.yaml", [CONTEXT, MEMORY], model_name="planted")
    gates = np.ones((anatomy.n_layers, anatomy.n_kv_heads))
    gates[0] = 0.25
    pattern = AttentionPattern(gates, 4, 16, {"threshold": 0.5})
    save_pattern_folder(folder / "duo", pattern)
    (wu,) = roles_of(served, model, "wu-2024.json")
    assert (wu.name, wu.family) == ("wu_2024", "retrieval")
    assert np.array_equal(members(wu, Rule()), mask_of([MEMORY], shape(model)))
    (core,) = roles_of(served, model, "core.json")
    assert core.listed is None
    assert members(core, Rule(k=1)).sum() == 1
    (listed,) = roles_of(served, model, "qr.yaml")
    assert np.array_equal(members(listed, Rule()), mask_of([MEMORY, CONTEXT], shape(model)))
    assert listed.grid[CONTEXT.layer, CONTEXT.head] > listed.grid[MEMORY.layer, MEMORY.head]
    (streams,) = roles_of(served, model, "duo")
    assert streams.name == "streaming"
    assert members(streams, Rule())[0].all()
    assert not members(streams, Rule())[1:].any()
    assert streams.grid[0, 0] == 0.75


def test_head_vis_goes_out_and_comes_back(served: Settings, model: HookedModel) -> None:
    (source,) = found_sources(served, model)
    roles = read_source(source, model)
    chosen = members(roles[0], Rule(by="top", k=2))
    tree = head_vis_tree(model, roles, chosen, "memory", texts=2)
    content = zipped(tree)
    path = keep_import(imports_folder(served), "my tree.zip", content)
    assert path.name == "my-tree"
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "scatter_data.json"]
    back = {one.name: one for one in roles_of(served, model, "my-tree")}
    np.testing.assert_allclose(back["memory"].grid, roles[0].grid, rtol=1e-5)
    assert np.array_equal(back["in_set"].grid == 1, chosen)
    assert back["induction_score"].family == "induction"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        head = json.loads(archive.read("heads/L1H2.json"))
        check_tree({name: archive.read(name) for name in archive.namelist()})
    plain = head_vis_tree(model, roles, chosen, "memory")
    check_tree(head_vis_files(plain))
    first = head["sequences"][0]
    assert len(head["sequences"]) == 2
    assert len(first["tokens"]) == first["seq_len"]
    rows = np.zeros(first["seq_len"] ** 2)
    rows[first["attention_indices"]] = first["attention_values"]
    sums = rows.reshape(first["seq_len"], -1).sum(axis=1)
    assert (sums <= 1.01).all()
    with pytest.raises(MnemoscopeError, match="exists already"):
        keep_import(imports_folder(served), "my tree.zip", content)


def archive_of(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


def test_archives_write_nothing_outside_their_folder(tmp_path: Path) -> None:
    hostile = archive_of(
        {"../../out/config.json": "{}", "../../out/scatter_data.json": "[]", "../evil.py": "x"}
    )
    path = keep_import(tmp_path / "imports", "../../up.zip", hostile)
    assert path == tmp_path / "imports" / "up"
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == ["imports/up/config.json", "imports/up/scatter_data.json"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.exe", b"", "of no kind that is read"),
        ("x.zip", b"no zip", "is damaged"),
        ("x.zip", archive_of({"readme.md": "x"}), "holds neither"),
        ("???.json", b"{}", "no plain file name"),
    ],
)
def test_what_is_not_read_is_not_kept(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(MnemoscopeError, match=reason):
        keep_import(tmp_path / "imports", name, content)
    assert not (tmp_path / "imports").exists()


def test_files_of_another_size_say_so(served: Settings, model: HookedModel) -> None:
    folder = imports_folder(served)
    (folder / "big.json").write_text('{"90-1": [0.5]}')
    (folder / "odd.json").write_text("[1]")
    for key, reason in (("big.json", "of another model"), ("odd.json", "one object")):
        with pytest.raises(MnemoscopeError, match=reason):
            roles_of(served, model, key)
    grid = {"a": np.zeros((2, 3))}
    tree = head_vis_tree(model, [role("a", grid["a"])], np.zeros((2, 3), bool), "a")
    save_head_vis(folder / "small", tree)
    assert load_head_vis(folder / "small").shape == (2, 3)
    source = RoleSource("small", "import", folder / "small", "")
    with pytest.raises(MnemoscopeError, match="2 layers of 3 heads"):
        read_source(source, model)


def role(name: str, grid: np.ndarray, q: np.ndarray | None = None) -> RoleScores:
    return RoleScores(name, "imported", "file", "method", frame_of(grid, q=q))


def test_rules() -> None:
    grid = np.array([[3.0, -1.0, np.nan], [2.0, 0.5, 0.0]])
    q = np.array([[0.01, 0.01, np.nan], [0.2, 0.05, 0.01]])
    tested, bare = role("a", grid, q), role("b", grid)
    assert members(tested, Rule()).tolist() == [[True, False, False], [False, True, False]]
    assert members(tested, Rule(q=0.3)).sum() == 3
    assert members(bare, Rule(k=2)).tolist() == [[True, False, False], [True, False, False]]
    assert members(bare, Rule(by="top", k=9)).sum() == 3  # never a score that is not positive
    assert Rule().of(tested) == "score > 0 and q <= 0.05"
    assert Rule(k=2).of(bare) == "the 2 best positive scores"


def test_two_sources_of_a_role_have_two_names() -> None:
    grid = np.zeros((1, 2))
    named = named_apart([role("x", grid), role("memory", grid), role("memory", grid)])
    assert [one.name for one in named] == ["memory", "memory_2", "x"]
    assert [word(text) for text in ("QR-Head 2", "13b", "and", "??")] == [
        "qr_head_2",
        "s_13b",
        "s_and",
        "scores",
    ]


def test_profile_tells_a_planted_score_from_noise_and_from_choice() -> None:
    rng = np.random.default_rng(0)
    chosen = np.zeros((6, 20), dtype=bool)
    chosen[2:4, :3] = True
    signal = rng.normal(size=chosen.shape) * 0.1 + 5 * chosen
    roles = [role("signal", signal), role("noise", np.ones(chosen.shape)), role("by", signal)]
    table, note = profile_table(roles, chosen, ["by"])
    assert dict(zip(table["role"], table["verdict"], strict=True)) == {
        "signal": HIGHER,
        "noise": NOT_BETTER,
        "by": BY_CHOICE,
    }
    assert note == ""
    full, reason = profile_table(roles, np.ones_like(chosen), [])
    assert "choose fewer" in reason
    assert full["random, low"].is_null().all()


def test_overlaps_beyond_chance_and_without() -> None:
    rng = np.random.default_rng(1)
    a = np.zeros((8, 16), dtype=bool)
    a[:, :3] = True
    apart = np.zeros_like(a)
    apart[:, 8:11] = True
    drawn = rng.permuted(a, axis=1)
    table = overlap_table({"a": a, "same": a, "drawn": drawn, "empty": np.zeros_like(a)})
    told = {(r["role"], r["other"]): r["verdict"] for r in table.iter_rows(named=True)}
    assert told == {
        ("a", "same"): "more than random",
        ("a", "drawn"): NOT_BETTER,
        ("same", "drawn"): NOT_BETTER,
    }
    assert overlap_table({"a": a, "apart": apart})["verdict"].to_list() == ["fewer than random"]
    assert overlap_table({"a": a}).is_empty()


def test_the_table_holds_what_is_on_show() -> None:
    grid = np.array([[3.0, -1.0], [2.0, 0.5]])
    roles = [role("a", grid), role("b", -grid)]
    rule = Rule(by="top", k=1)
    chosen = members(roles[0], rule)
    table = tidy(roles, rule, chosen)
    assert table.height == 8
    assert table.filter("has_role")["score"].to_list() == [3.0, 1.0]
    assert table.filter("in_set")["role"].to_list() == ["a", "b"]
