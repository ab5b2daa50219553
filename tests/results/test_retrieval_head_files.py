"""Retrieval_Head's score files: lists of trials a head, values above 1 included."""

import json

import pytest
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.retrieval_head_files import (
    load_retrieval_head_scores,
    retrieval_head_set,
    save_retrieval_head_scores,
)

TRIALS = {HeadId(16, 19): (0.94, 1.25, 0.9), HeadId(0, 3): (0.0, 0.0, 0.5), HeadId(2, 2): ()}
SIZE = {"name": "wu", "model_id": "m", "n_layers": 32, "n_heads": 32, "n_kv_heads": 32}


def test_round_trip_in_their_layout(tmp_path):
    path = tmp_path / "llama.json"
    save_retrieval_head_scores(path, TRIALS)
    assert json.loads(path.read_text()) == {
        "16-19": [0.94, 1.25, 0.9],
        "0-3": [0.0, 0.0, 0.5],
        "2-2": [],
    }
    assert load_retrieval_head_scores(path) == TRIALS
    with pytest.raises(RunFolderError, match="exists already"):
        save_retrieval_head_scores(path, TRIALS)


def test_the_set_holds_the_mean_of_the_trials():
    heads = retrieval_head_set(TRIALS, **SIZE)
    assert heads.top(1).ids == (HeadId(16, 19),)
    assert [scored.score for scored in heads.heads] == pytest.approx([3.09 / 3, 0.5 / 3])
    assert HeadId(2, 2) not in heads.ids
    with pytest.raises(UnitSetError, match=r"L16\.H19 does not exist"):
        retrieval_head_set(TRIALS, **{**SIZE, "n_layers": 12})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ("[]", "one object"),
        ("{}", "no trial qualified"),
        ('{"1-2": [], "1-3": []}', "no trial qualified"),
        ('{"1.2": [1]}', "no head"),
        ('{"1-2": 0.5}', "must be a list"),
        ('{"1-2": [NaN]}', "finite"),
        ('{"1-2": [1], "01-2": [1]}', "twice"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UnitSetError, match=message):
        load_retrieval_head_scores(path)
