"""Retrieval_Head's score files: lists of trials a head, values above 1 included."""

import json

import pytest
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.retrieval_head_files import (
    check_retrieval_scores,
    load_retrieval_head_scores,
    retrieval_head_set,
    save_retrieval_head_scores,
    without_silent_trials,
)
from mnemoscope.results.score_sidecars import Sidecar, load_sidecar

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
        ('{"1-2": [1], "1-2": [0]}', "twice"),
        ('{"1-2": [1]}\n{"1-2": [0]}', "several objects"),
        ('{"1-2": 0.5}', "CoRe"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UnitSetError, match=message):
        load_retrieval_head_scores(path)


def test_the_sidecar_lists_the_trials_in_the_order_of_the_scores(tmp_path, provenance):
    path = tmp_path / "scores.json"
    trials = {head: scores for head, scores in TRIALS.items() if scores}
    listed = tuple({"needle": name, "length": 512} for name in "abc")
    save_retrieval_head_scores(path, trials, sidecar=Sidecar(provenance, listed))
    assert load_retrieval_head_scores(path) == trials
    assert load_sidecar(path).trials == listed
    with pytest.raises(UnitSetError, match="16-19 has 3 scores, but the sidecar lists 2"):
        save_retrieval_head_scores(
            path, trials, sidecar=Sidecar(provenance, listed[:2]), force=True
        )


# What released files of Retrieval_Head and its forks hold beside plain scores.
ODD = {
    HeadId(0, 0): (0.0, 1.65, 0.0, 0.2),
    HeadId(0, 1): (0.0, 0.04, 0.0, 0.0),
    HeadId(1, 0): (0.0, 0.0, 0.0, 0.4),
}


def test_the_marks_of_how_a_file_was_made_are_told():
    found = check_retrieval_scores(ODD)
    assert (found.trials, found.heads, found.above_threshold) == (4, 3, 2)
    assert found.above_one == 1
    assert found.silent_trials == (0, 2)
    assert not found.uneven
    assert [note.split()[0] for note in found.notes] == ["1", "in"]
    plain = check_retrieval_scores({HeadId(0, 0): (0.5, 0.2)})
    assert plain.notes == ()
    uneven = check_retrieval_scores({**ODD, HeadId(1, 1): (0.5,)})
    assert uneven.uneven
    assert uneven.silent_trials == ()
    assert "appended" in uneven.notes[-1]


def test_trials_without_a_single_hit_can_be_left_out():
    kept = without_silent_trials(ODD)
    assert kept == {HeadId(0, 0): (1.65, 0.2), HeadId(0, 1): (0.04, 0.0), HeadId(1, 0): (0.0, 0.4)}
    assert check_retrieval_scores(kept).silent_trials == ()
    with pytest.raises(UnitSetError, match="nothing to rank by"):
        without_silent_trials({HeadId(0, 0): (0.0, 0.0)})
    with pytest.raises(UnitSetError, match="differ in length"):
        without_silent_trials({**ODD, HeadId(1, 1): (0.5,)})
