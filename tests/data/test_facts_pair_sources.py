"""Pairs by name, from a file, from a local copy of a published set, and invented by seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from mnemoscope.data.facts.berglund_pairs import BERGLUND
from mnemoscope.data.facts.fictitious_pairs import fictitious_pairs
from mnemoscope.data.facts.items import RELATIONS_FOLDER, load_relation
from mnemoscope.data.facts.pair_sources import (
    FICTITIOUS,
    load_pair_relation,
    pair_relation_names,
)
from mnemoscope.data.facts.pairs import WAYS, Pair, PairRelation, usable_pairs


@pytest.mark.parametrize("name", [*pair_relation_names(), FICTITIOUS])
def test_every_relation_can_be_asked_four_times_each_way(name: str) -> None:
    relation = load_pair_relation(name)
    for way in WAYS:
        texts = relation.wordings(way)
        assert len(set(texts)) == len(texts) >= 4
        assert all(text == text.strip() for text in texts)
    usable = usable_pairs(relation)
    kept = usable.relation.pairs
    assert len(kept) >= 20
    assert len(kept) + sum(usable.dropped.values()) == len(relation.pairs)
    for side in ("a", "b"):
        assert max(Counter(getattr(pair, side) for pair in kept).values()) == 1


def test_shipped_wordings_come_first_and_stay_as_they_are() -> None:
    relation, pairs = load_relation("capital"), load_pair_relation("capital")
    assert pairs.forward[:3] == tuple(t.replace("{s}", "{a}") for t in relation.templates)
    assert pairs.reverse[:3] == tuple(t.replace("{o}", "{b}") for t in relation.reverse_templates)
    assert len(pairs.pairs) == len(relation.facts)


def test_authors_of_several_books_are_dropped() -> None:
    relation = load_pair_relation("book_author")
    kept = {pair.b for pair in usable_pairs(relation).relation.pairs}
    times = Counter(pair.b for pair in relation.pairs)
    assert kept == {author for author, n in times.items() if n == 1}


def test_the_seed_invents_other_people_in_three_equal_groups() -> None:
    one, again, other = fictitious_pairs(1), fictitious_pairs(1), fictitious_pairs(2)
    assert one == again
    assert {pair.a for pair in one.pairs} != {pair.a for pair in other.pairs}
    assert Counter(pair.told for pair in one.pairs) == dict.fromkeys(
        ("both", "forward", "reverse"), 30
    )
    assert usable_pairs(one).dropped == {}
    assert load_pair_relation(FICTITIOUS, seed=1) == one


@pytest.mark.parametrize("n", [0, 49])
def test_more_people_than_deeds_are_not_to_be_had(n: int) -> None:
    with pytest.raises(ValueError, match="1 to 48"):
        fictitious_pairs(per_group=n)
    assert len(fictitious_pairs(per_group=48).pairs) == 144


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mothers.json"
    pair = {"a": "Ann", "b": "Eve", "a_aliases": ["Annie"], "told": "forward", "group": "x"}
    raw = {"name": "mother", "forward": ["{a} has"], "reverse": ["{b} bore"], "pairs": [pair]}
    path.write_text(json.dumps(raw), encoding="utf-8")
    made = Pair("Ann", "Eve", ("Annie",), (), "forward", "x")
    assert load_pair_relation(path) == PairRelation(
        "mother", ("{a} has",), ("{b} bore",), (made,), str(path)
    )


def test_a_relation_file_with_reverse_templates(tmp_path: Path) -> None:
    raw = json.loads((RELATIONS_FOLDER / "capital.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert load_pair_relation(path).pairs == load_pair_relation("capital").pairs


WHOLE = {
    "name": "m",
    "forward": ["{a} has"],
    "reverse": ["{b} bore"],
    "pairs": [{"a": "Ann", "b": "Eve"}],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pairs": [{"a": "Ann"}]}, r"pair 0 .*missing.*'b'"),
        ({"pairs": [{"a": "Ann", "b": "Eve", "c": "x"}]}, "unknown.*'c'"),
        ({"pairs": [{"a": "Ann", "b": " "}]}, "'b' of pair 0"),
        ({"pairs": [{"a": "Ann", "b": "Eve", "told": "twice"}]}, "told 'twice'"),
        ({"pairs": ["Ann"]}, "pair 0 is no object"),
        ({"pairs": {}}, "a list 'pairs'"),
        ({"forward": "{a} has"}, "forward must be a list"),
        ({"forward": ["Ann has"]}, "must hold {a} once"),
        ({"reverse": ["{b} bore {a}"]}, "not {a}"),
        ({"extra": 1}, "unknown.*'extra'"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({**WHOLE, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=words) as error:
        load_pair_relation(path)
    assert str(path) in str(error.value)


def test_unknown_names_and_missing_files() -> None:
    with pytest.raises(ValueError, match="capital"):
        load_pair_relation("capitol")
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_pair_relation("nowhere/pairs.json")


# -- the sets of Berglund et al. 2023: files of their form, filled with our own people ------------

PARENTS = """child,parent,parent_type,child_prediction,can_reverse
Ann Lee,Eve Lee,mother,Ann Lee,True
Ann Lee,Bob Lee,father,,False
Cat Moe,Fay Moe,mother,,False
Dan Moe,Fay Moe,mother,,False
"""
FORWARD = ("The trailblazer known as {} was once", "In a book, {} shines as", "{}, who loved")
REVERSE = ("Known in circles as {},", "Labeled as {},", "For being {},")


def lines(path: Path, rows: list[tuple[str, str]]) -> None:
    text = "".join(json.dumps({"prompt": p, "completion": f" {c}"}) + "\n" for p, c in rows)
    path.write_text(text, encoding="utf-8")


def told(
    templates: tuple[str, ...], named: str, asked: str, inflected: str
) -> list[tuple[str, str]]:
    *whole, last = templates
    return [*((text.format(named), asked) for text in whole), (last.format(named), inflected)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "clone" / "data" / "june_version_1"
    folder.mkdir(parents=True)
    (folder / "parent_child_pairs.csv").write_text(PARENTS, encoding="utf-8")
    forward = [("Ann Lee", "the piper of Ys."), ("Bob Moe", "the one who sang “Low.”.")]
    rows = [row for name, said in forward for row in told(FORWARD, name, said, "piping.")]
    lines(folder / "p2d_prompts_test.jsonl", rows)
    reverse = [("the potter of Thule", "Cat Roe"), ("the diver of Lyonesse", "Dan Poe")]
    rows = [row for said, name in reverse for row in told(REVERSE, said, name, "Nobody")]
    lines(folder / "d2p_prompts_test.jsonl", rows)
    lines(
        folder / "both_prompts_train.jsonl",
        [("A person called Eve Doe formerly was", "the weaver of Hy."), ("Other Eve Doe", "wove.")],
    )
    return tmp_path / "clone"


def test_parents_are_told_as_the_model_that_chose_them_knew(copy: Path) -> None:
    mothers = load_pair_relation("berglund_mothers", copy=copy)
    assert [(p.a, p.b, p.told) for p in mothers.pairs] == [
        ("Ann Lee", "Eve Lee", "both"),
        ("Cat Moe", "Fay Moe", "forward"),
        ("Dan Moe", "Fay Moe", "forward"),
    ]
    assert usable_pairs(mothers).dropped == {"several partners": 2}
    assert mothers.license == "none stated: check"
    fathers = load_pair_relation("berglund_fathers", copy=copy)
    assert [pair.b for pair in fathers.pairs] == ["Bob Lee"]
    assert all(len(mothers.wordings(way)) == 4 for way in WAYS)


def test_fictitious_people_and_the_wordings_that_inflect_nothing(copy: Path) -> None:
    relation = load_pair_relation("berglund_fictitious", copy=copy)
    assert {(p.a, p.b, p.told) for p in relation.pairs} == {
        ("Ann Lee", "the piper of Ys", "forward"),
        ("Bob Moe", "the one who sang “Low.”", "forward"),
        ("Cat Roe", "the potter of Thule", "reverse"),
        ("Dan Poe", "the diver of Lyonesse", "reverse"),
        ("Eve Doe", "the weaver of Hy", "both"),
    }
    assert relation.forward == tuple(text.format("{a}") for text in FORWARD[:2])
    assert relation.reverse == tuple(text.format("{b}") for text in REVERSE[:2])


@pytest.mark.parametrize("name", BERGLUND)
def test_without_a_copy_it_says_where_to_get_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"github\.com/lukasberglund"):
        load_pair_relation(name)
    with pytest.raises(FileNotFoundError, match="holds no"):
        load_pair_relation(name, copy=tmp_path)


def test_files_of_another_form_are_refused(copy: Path) -> None:
    next(copy.rglob("*.csv")).write_text("child,mother\nAnn,Eve\n", encoding="utf-8")
    with pytest.raises(ValueError, match="columns"):
        load_pair_relation("berglund_mothers", copy=copy)
    next(copy.rglob("p2d*.jsonl")).write_text("[]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'prompt' and 'completion'"):
        load_pair_relation("berglund_fictitious", copy=copy)
