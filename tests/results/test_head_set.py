"""Head sets and neuron sets: files that travel, algebra, and refusal of what does not fit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.models.types import HeadId, NeuronId, Site
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.head_set import (
    HeadScore,
    HeadSet,
    check_fits,
    difference,
    intersection,
    load_head_set,
    save_head_set,
    union,
)
from mnemoscope.results.neuron_set import (
    NeuronScore,
    NeuronSet,
    check_neurons_fit,
    load_neuron_set,
    save_neuron_set,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
p_values = st.none() | st.floats(0, 1)
intervals = st.none() | st.tuples(finite, finite).map(lambda pair: tuple(sorted(pair)))


@st.composite
def head_sets(draw):
    n_layers, n_kv, group = draw(st.tuples(*[st.integers(1, 6)] * 3))
    ids = st.tuples(st.integers(0, n_layers - 1), st.integers(0, n_kv * group - 1))
    return HeadSet(
        name=draw(st.text(max_size=6)),
        model_id=draw(st.text(max_size=6)),
        n_layers=n_layers,
        n_heads=n_kv * group,
        n_kv_heads=n_kv,
        method=draw(st.text(max_size=6)),
        run_id=draw(st.none() | st.text(max_size=6)),
        heads=tuple(
            HeadScore(
                HeadId(*pair),
                draw(finite),
                draw(st.text(max_size=6)),
                draw(p_values),
                draw(intervals),
            )
            for pair in draw(st.lists(ids, unique=True, max_size=8))
        ),
    )


def make(*heads, name="a", **changes):
    fields = {
        "name": name,
        "model_id": "engram",
        "n_layers": 4,
        "n_heads": 6,
        "n_kv_heads": 2,
        "method": "direct effect",
        "run_id": "paths-0123456789",
        "heads": tuple(HeadScore(HeadId(*head), score, role) for head, score, role in heads),
    }
    return HeadSet(**{**fields, **changes})


A = make(((0, 1), 0.5, "memory"), ((3, 5), -1.0, "context"), ((1, 1), 0.5, "memory"))
B = make(((3, 5), 2.0, "retrieval"), ((2, 0), 1.0, "retrieval"), name="b", run_id="other-1")


@settings(max_examples=60, deadline=None)
@given(head_set=head_sets())
def test_round_trip(tmp_path_factory, head_set):
    path = tmp_path_factory.mktemp("sets") / "heads.json"
    save_head_set(path, head_set)
    assert load_head_set(path) == head_set


def test_the_file_writes_the_kv_head_out(tmp_path):
    save_head_set(tmp_path / "a.json", A)
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["schema"] == "mnemoscope/head-set/1"
    assert [(h["layer"], h["head"], h["kv_head"]) for h in record["heads"]] == [
        (0, 1, 0),
        (3, 5, 1),
        (1, 1, 0),
    ]


def test_nothing_is_overwritten_without_force(tmp_path):
    save_head_set(tmp_path / "a.json", A)
    with pytest.raises(RunFolderError, match="exists already"):
        save_head_set(tmp_path / "a.json", B)
    assert load_head_set(tmp_path / "a.json") == A
    save_head_set(tmp_path / "a.json", B, force=True)
    assert load_head_set(tmp_path / "a.json") == B


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    head = HeadScore(HeadId(np.int64(1), np.int64(2)), np.float32(0.5), p=np.float64(0.25))
    save_head_set(tmp_path / "a.json", make(heads=(head,)))
    assert load_head_set(tmp_path / "a.json").heads == (HeadScore(HeadId(1, 2), 0.5, p=0.25),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "mnemoscope/head-set/2"}, "head-set/2"),
        ({"name": 3}, "name must be text"),
        ({"n_layers": 2}, r"L3\.H5 does not exist"),
        ({"n_layers": 2.5}, "whole number"),
        ({"n_kv_heads": 4}, "must divide"),
        ({"n_kv_heads": 6}, "reads kv head"),
        ({"heads": {}}, "must be a list"),
        ({"more": 1}, "needs the fields"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, change, message):
    path = tmp_path / "a.json"
    save_head_set(path, A)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnitSetError, match=message) as caught:
        load_head_set(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 4}, r"L4\.H1 does not exist"),
        ({"head": -1}, "whole number from 0"),
        ({"layer": True}, "whole number"),
        ({"layer": 3, "head": 5, "kv_head": 1}, r"twice: L3\.H5"),
        ({"score": None}, "finite number"),
        ({"score": float("nan")}, "finite number"),
        ({"p": 1.5}, "between 0 and 1"),
        ({"ci": [2, 1]}, "low, high"),
        ({"role": None}, "role must be text"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_head_is_refused(tmp_path, change, message):
    path = tmp_path / "a.json"
    save_head_set(path, A)
    record = json.loads(path.read_text())
    record["heads"][0].update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(UnitSetError, match=message):
        load_head_set(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b'{"heads": []}'])
def test_what_is_no_head_set_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnitSetError, match=r"a\.json"):
        load_head_set(tmp_path / "a.json")
    with pytest.raises(UnitSetError, match=r"b\.json"):
        load_head_set(tmp_path / "b.json")


def test_top_and_where():
    assert A.top(2).ids == (HeadId(0, 1), HeadId(1, 1))  # a tie goes by layer and head
    assert A.top(9).ids == (HeadId(0, 1), HeadId(1, 1), HeadId(3, 5))
    assert A.where(role="context").ids == (HeadId(3, 5),)
    assert A.where(role="nothing").heads == ()
    with pytest.raises(UnitSetError, match="top 0"):
        A.top(0)


def test_algebra_keeps_the_scores_of_the_first():
    assert union(A, B).ids == (HeadId(0, 1), HeadId(3, 5), HeadId(1, 1), HeadId(2, 0))
    assert intersection(A, B).heads == (HeadScore(HeadId(3, 5), -1.0, "context"),)
    assert difference(A, B).ids == (HeadId(0, 1), HeadId(1, 1))
    assert union(A, B).name == "a | b"
    assert union(A, B, name="both").name == "both"
    assert (union(A, B).run_id, union(A, A).run_id) == (None, A.run_id)
    with pytest.raises(UnitSetError, match="different models"):
        union(A, make(model_id="other"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_algebra_is_that_of_sets(data):
    pairs = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)))
    one, other = data.draw(pairs), data.draw(pairs)
    a, b = (make(*((pair, 0.0, "") for pair in sorted(chosen))) for chosen in (one, other))
    for combined, expected in [
        (union(a, b), one | other),
        (intersection(a, b), one & other),
        (difference(a, b), one - other),
    ]:
        assert {(head.layer, head.head) for head in combined.ids} == expected


def test_a_set_for_another_size_does_not_fit():
    check_fits(A, 4, 6)
    with pytest.raises(UnitSetError, match=r"L3\.H5 does not exist"):
        check_fits(A, 3, 6)
    with pytest.raises(UnitSetError, match="this model has 8 of 6"):
        check_fits(A, 8, 6)


def test_neuron_sets_travel_alike(tmp_path):
    neurons = NeuronSet(
        name="capitals",
        model_id="engram",
        n_layers=2,
        d_mlp=8,
        method="average precision",
        run_id=None,
        neurons=(
            NeuronScore(NeuronId(0, 7), 0.9, "capital", 0.01, (0.8, 1.0)),
            NeuronScore(NeuronId(0, 7, Site.MLP_OUT), 0.95),
        ),
    )
    path = tmp_path / "neurons.json"
    save_neuron_set(path, neurons)
    assert load_neuron_set(path) == neurons
    assert neurons.top(1).ids == (NeuronId(0, 7, Site.MLP_OUT),)
    assert neurons.where(role="capital").ids == (NeuronId(0, 7),)
    with pytest.raises(UnitSetError, match="this model has 2 of 16"):
        check_neurons_fit(neurons, 2, 16)
    with pytest.raises(UnitSetError, match=r"L0\.N7 does not exist"):
        check_neurons_fit(neurons, 2, 7)
    with pytest.raises(UnitSetError, match="head-set/1"):
        load_head_set(path)
    record = json.loads(path.read_text())
    record["neurons"][0]["site"] = "elsewhere"
    path.write_text(json.dumps(record))
    with pytest.raises(UnitSetError, match="site must be one of"):
        load_neuron_set(path)
