"""QRHead's lists and CoRe's scores: read as their projects write them, written as they read."""

import json

import pytest
import yaml
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.query_head_files import (
    QueryHeadList,
    load_core_head_scores,
    load_query_head_list,
    query_head_set,
    save_core_head_scores,
    save_query_head_list,
)
from mnemoscope.results.score_sidecars import Sidecar, load_sidecar

HEADS = (HeadId(13, 18), HeadId(8, 11), HeadId(2, 0))
SIZE = {"name": "qr", "model_id": "m", "n_layers": 32, "n_heads": 32, "n_kv_heads": 8}
# The form of their files.
FILE = """# a comment

attn_head_set: "13-18,8-11,2-0" # top3
model_base_class: "Some-Model"
model_name_or_path: "owner/Some-Model"
"""


def written(tmp_path, content):
    path = tmp_path / "heads.yaml"
    path.write_text(content)
    return path


def test_a_list_is_read_in_its_order(tmp_path):
    found = load_query_head_list(written(tmp_path, FILE))
    assert found == QueryHeadList(HEADS, "owner/Some-Model", "Some-Model")


@pytest.mark.parametrize(
    "heads",
    ['"13_18,8_11,2_0"', "13_18, 8_11, 2_0", '["13-18", "8-11", "2-0"]', "[13_18, 8_11, 2_0]"],
)
def test_other_ways_of_writing_heads(tmp_path, heads):
    # YAML alone would read 13_18 as the number 1318.
    path = written(tmp_path, f"attn_head_set: {heads}\n")
    assert load_query_head_list(path) == QueryHeadList(HEADS, "", "")


def test_a_list_is_written_as_it_is_read(tmp_path, provenance):
    path = tmp_path / "ours.yaml"
    save_query_head_list(path, HEADS, model_name="owner/Some-Model", sidecar=Sidecar(provenance))
    assert load_query_head_list(path) == QueryHeadList(HEADS, "owner/Some-Model", "Some-Model")
    assert yaml.safe_load(path.read_text())["attn_head_set"] == "13-18,8-11,2-0"
    assert load_sidecar(path) == Sidecar(provenance)
    with pytest.raises(RunFolderError, match="exists already"):
        save_query_head_list(path, HEADS, model_name="m")
    with pytest.raises(UnitSetError, match="at least one"):
        save_query_head_list(path, (), model_name="m", force=True)
    with pytest.raises(MnemoscopeError, match="twice"):
        save_query_head_list(path, (*HEADS, HEADS[0]), model_name="m", force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("attn_head_set: [", "YAML"),
        ("- 1", "attn_head_set"),
        ("model_name_or_path: m", "attn_head_set"),
        ("attn_head_set: full_heads", "chooses none"),
        ('attn_head_set: ""', "must list heads"),
        ("attn_head_set: {a: 1}", "must list heads"),
        ('attn_head_set: "13-18,,8-11"', "no head"),
        ('attn_head_set: "13.18"', "no head"),
        ('attn_head_set: "13-18,13_18"', "twice"),
        ("attn_head_set: [[13, 18]]", "no head"),
        ("attn_head_set: !!python/object:os.system 1", "no head"),
    ],
)
def test_other_lists_are_refused(tmp_path, content, message):
    with pytest.raises(UnitSetError, match=message):
        load_query_head_list(written(tmp_path, content))


def test_files_that_are_not_there_or_no_text(tmp_path):
    with pytest.raises(UnitSetError, match="cannot be read"):
        load_query_head_list(tmp_path / "none.yaml")
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnitSetError, match="UTF-8"):
        load_query_head_list(path)


SCORES = {HeadId(0, 0): 0.0175, HeadId(0, 1): 3.5e-11, HeadId(13, 18): 0.0817}


def test_core_scores_both_ways(tmp_path):
    path = tmp_path / "core.json"
    save_core_head_scores(path, SCORES)
    assert json.loads(path.read_text()) == {"0-0": 0.0175, "0-1": 3.5e-11, "13-18": 0.0817}
    assert load_core_head_scores(path) == SCORES
    with pytest.raises(UnitSetError, match="finite"):
        save_core_head_scores(path, {HeadId(0, 0): float("nan")}, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ('{"0-0": 1}{"0-0": 2}', "several objects"),
        ("[]", "one object"),
        ("{}", "no head"),
        ('{"L0H1": 1}', "no head"),
        ('{"0-0": 1, "0-0": 2}', "twice"),
        ('{"0-0": [0.1, 0.2]}', "Retrieval_Head"),
        ('{"0-0": "0.1"}', "finite number"),
    ],
)
def test_other_score_files_are_refused(tmp_path, content, message):
    path = tmp_path / "core.json"
    path.write_text(content)
    with pytest.raises(UnitSetError, match=message):
        load_core_head_scores(path)


def test_head_sets_keep_order_and_scores():
    listed = query_head_set(HEADS, **SIZE)
    assert listed.top(3).ids == HEADS
    assert [scored.score for scored in listed.heads] == [3, 2, 1]
    scored = query_head_set(SCORES, **SIZE)
    assert scored.top(1).ids == (HeadId(13, 18),)
    assert {head.role for head in (*listed.heads, *scored.heads)} == {"query"}
    assert listed.method != scored.method
    with pytest.raises(UnitSetError, match="does not exist"):
        query_head_set(HEADS, **{**SIZE, "n_layers": 12})
