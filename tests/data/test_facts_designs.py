"""Designs: equal numbers, no subject twice, and what each column sets against what."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mnemoscope.data.facts import Fact, Relation, load_relation, split_subjects
from mnemoscope.data.facts.designs import Block, Column, Design, Prompt, build_design
from mnemoscope.data.facts.wordings import DETECTION, EVALUATION


def relation(name: str, subjects: list[str]) -> Relation:
    return Relation(
        name=name,
        description="",
        templates=(f"The {name} of {{s}} is", f"{{s}} has the {name}", f"As {name}, {{s}} has"),
        question=f"Which {name} has {{s}}?",
        facts=tuple(Fact(subject, f"{name}@{i}") for i, subject in enumerate(subjects)),
    )


PLACES = [f"place {'x' * (i % 9)}{i}" for i in range(90)]
THINGS = [f"thing {i}" for i in range(120)]
# Two relations ask about the same subjects.
RELATIONS = (
    relation("colour", PLACES),
    relation("shape", PLACES),
    relation("weight", THINGS),
    relation("taste", [f"dish {i}" for i in range(100)]),
)
DESIGN = build_design(RELATIONS, subjects=20, seed=3)
FIND = DESIGN.find_blocks[0]


def prompts(block: Block, indices: tuple[int, ...]) -> list[Prompt]:
    return [block.prompts[i] for i in indices]


def asked(block: Block, indices: tuple[int, ...]) -> set[tuple[str, str]]:
    return {(p.relation, p.subject) for p in prompts(block, indices)}


# -- prompts -------------------------------------------------------------------------------------


def test_each_wording_and_part_is_one_block() -> None:
    assert [block.wording for block in DESIGN.find_blocks] == list(DETECTION)
    assert [block.wording for block in DESIGN.test_blocks] == [*DETECTION, *EVALUATION]
    assert DESIGN.blocks == DESIGN.find_blocks + DESIGN.test_blocks
    for block in DESIGN.blocks:
        assert {p.wording for p in block.prompts} == {block.wording}


def test_every_relation_gives_equally_many_subjects_at_most_the_cap() -> None:
    for block in DESIGN.blocks:
        each = Counter(p.relation for p in block.prompts)
        assert set(each) == set(DESIGN.relations)
        assert set(each.values()) == {DESIGN.subjects(block.part)}
    assert DESIGN.subjects("find") == 20
    uncapped = build_design(RELATIONS, subjects=None, seed=3)
    poorest = min(len(split_subjects(r, 3)["find"]) for r in RELATIONS)
    assert uncapped.subjects("find") == poorest > 20


def test_no_subject_is_in_both_parts_and_each_is_in_the_part_of_its_split() -> None:
    find = {p.subject for block in DESIGN.find_blocks for p in block.prompts}
    test = {p.subject for block in DESIGN.test_blocks for p in block.prompts}
    assert not find & test
    for r in RELATIONS:
        split = split_subjects(r, 3)
        assert {p.subject for p in FIND.prompts if p.relation == r.name} <= {
            fact.subject for fact in split["find"]
        }


def test_all_wordings_ask_about_the_same_subjects_in_the_same_places() -> None:
    orders = {tuple((p.relation, p.subject) for p in block.prompts) for block in DESIGN.find_blocks}
    assert len(orders) == 1


def test_relations_over_the_same_things_ask_about_the_same_subjects() -> None:
    colour, shape = (
        {p.subject for p in FIND.prompts if p.relation == name} for name in ("colour", "shape")
    )
    assert colour == shape


def test_spans_hold_the_subject() -> None:
    for prompt in DESIGN.prompts:
        assert prompt.text[prompt.subject_start : prompt.subject_end] == prompt.subject


def test_a_subject_whose_prompt_tells_the_answer_is_left_out_of_every_wording() -> None:
    telling = relation("taste", [f"dish {i}" for i in range(100)])
    facts = [
        replace(fact, object="Dish") if i < 40 else fact for i, fact in enumerate(telling.facts)
    ]
    # "has" stands in two of the templates only, and leaks all the same.
    facts[40:50] = [replace(fact, aliases=("HAS",)) for fact in facts[40:50]]
    design = build_design(
        [*RELATIONS[:3], replace(telling, facts=tuple(facts))], subjects=None, seed=3
    )
    subjects = {p.subject for p in design.prompts if p.relation == "taste"}
    leaking = {fact.subject for fact in facts[:50]}
    assert subjects
    assert not subjects & leaking
    split = split_subjects(telling, 3)
    there = {fact.subject for part in design.parts for fact in split[part]}
    assert design.dropped == {"colour": 0, "shape": 0, "weight": 0, "taste": len(there & leaking)}


def test_a_subject_with_several_facts_is_asked_once_and_told_by_none_of_its_answers() -> None:
    doubled = replace(
        RELATIONS[0], facts=(*RELATIONS[0].facts, *(Fact(s, "other") for s in PLACES[:80]))
    )
    design = build_design([doubled, *RELATIONS[1:]], subjects=None, seed=3)
    for block in design.blocks:
        asked_for = [(p.relation, p.subject) for p in block.prompts]
        assert len(set(asked_for)) == len(asked_for)
    second = replace(doubled, facts=(*RELATIONS[0].facts, Fact(PLACES[0], "place"), *doubled.facts))
    assert PLACES[0] not in {
        p.subject
        for p in build_design([second, *RELATIONS[1:]], subjects=None, seed=3).prompts
        if p.relation == "colour"
    }


def test_the_distinct_prompts_hold_every_block() -> None:
    assert len(set(DESIGN.prompts)) == len(DESIGN.prompts)
    for block in (*DESIGN.blocks, *DESIGN.wording_pairs):
        assert tuple(DESIGN.prompts[i] for i in DESIGN.rows(block)) == block.prompts


# -- columns -------------------------------------------------------------------------------------


def test_a_relation_stands_against_all_others_in_every_block() -> None:
    for block in DESIGN.blocks:
        columns = block.of_kind("relation")
        assert [c.relation for c in columns] == list(DESIGN.relations)
        for column in columns:
            mine = {i for i, p in enumerate(block.prompts) if p.relation == column.relation}
            assert (set(column.positive), column.member) == (mine, None)
    assert all(len(block.columns) == len(RELATIONS) for block in DESIGN.test_blocks)


def test_every_wording_has_the_same_columns() -> None:
    assert {block.columns for block in DESIGN.find_blocks} == {FIND.columns}
    names = [column.name for column in FIND.columns]
    assert len(set(names)) == len(names)
    keys = [(column.kind, column.relation, column.draw) for column in FIND.columns]
    assert len(set(keys)) == len(keys)


def test_positives_are_members_and_some_members_are_not_positive() -> None:
    for block in (*DESIGN.blocks, *DESIGN.wording_pairs):
        positive, member = block.positive_matrix(), block.member_matrix()
        assert positive.shape == member.shape == (len(block.columns), len(block.prompts))
        assert not (positive & ~member).any()
        assert positive.any(axis=1).all()
        assert (member & ~positive).any(axis=1).all()


def test_halves_share_no_subject_and_hold_about_half_of_every_relation() -> None:
    first, second = ([c for c in FIND.of_kind("half") if c.draw == draw] for draw in (0, 1))
    (members,), (others,) = {c.member for c in first}, {c.member for c in second}
    assert members is not None
    assert others is not None
    assert sorted(members + others) == list(range(len(FIND.prompts)))
    subjects = [{p.subject for p in prompts(FIND, m)} for m in (members, others)]
    assert not subjects[0] & subjects[1]
    assert [c.relation for c in first] == list(DESIGN.relations)
    for column in (*first, *second):
        assert 9 <= len(column.positive) <= 11
        assert {p.relation for p in prompts(FIND, column.positive)} == {column.relation}
        assert len(
            [p for p in prompts(FIND, column.member or ()) if p.relation == column.relation]
        ) == len(column.positive)


def test_a_resample_keeps_about_four_fifths_of_the_subjects_of_every_relation() -> None:
    columns = FIND.of_kind("resample")
    assert Counter(c.relation for c in columns) == dict.fromkeys(DESIGN.relations, 20)
    assert len({c.member for c in columns}) == 20
    everywhere = {p.subject for p in FIND.prompts}
    for column in columns:
        assert column.member is not None
        kept = {p.subject for p in prompts(FIND, column.member)}
        left = {p.subject for i, p in enumerate(FIND.prompts) if i not in set(column.member)}
        assert kept | left == everywhere
        assert not kept & left
        assert 15 <= len(column.positive) <= 17


def test_more_resamples_leave_the_first_ones_alone() -> None:
    fewer = build_design(RELATIONS, subjects=20, seed=3, resamples=5, pseudo=7)
    few = fewer.find_blocks[0]
    assert few.of_kind("resample") == tuple(c for c in FIND.of_kind("resample") if c.draw < 5)
    assert few.of_kind("pseudo") == FIND.of_kind("pseudo")[:7]


def test_a_pseudo_relation_is_two_halves_against_the_relations_it_is_not_made_of() -> None:
    columns = FIND.of_kind("pseudo")
    assert len(columns) == 40
    assert len({c.positive for c in columns}) == 40
    for column in columns:
        a, b = column.relation.split(" + ")
        made_of = Counter(p.relation for p in prompts(FIND, column.positive))
        assert made_of == {a: 10, b: 10}
        assert a != b
        negatives = set(column.member or ()) - set(column.positive)
        assert negatives == {i for i, p in enumerate(FIND.prompts) if p.relation not in (a, b)}
    glued = Counter(c.relation for c in columns)
    assert len(glued) == 6
    assert max(glued.values()) - min(glued.values()) <= 1


def test_halves_of_relations_over_the_same_things_are_of_different_subjects() -> None:
    same = [
        c for c in FIND.of_kind("pseudo") if set(c.relation.split(" + ")) == {"colour", "shape"}
    ]
    assert same
    for column in same:
        assert len({p.subject for p in prompts(FIND, column.positive)}) == 20


def test_length_sets_the_longer_half_of_a_relations_subjects_against_the_shorter() -> None:
    for column in FIND.of_kind("length"):
        member = set(column.member or ())
        assert {p.relation for p in prompts(FIND, tuple(member))} == {column.relation}
        shorter = tuple(member - set(column.positive))
        assert len(column.positive) == len(shorter) == 10
        assert min(len(p.subject) for p in prompts(FIND, column.positive)) >= max(
            len(p.subject) for p in prompts(FIND, shorter)
        )


def test_wording_pairs_set_one_relations_wordings_against_each_other() -> None:
    assert len(DESIGN.wording_pairs) == len(RELATIONS)
    for name, block in zip(DESIGN.relations, DESIGN.wording_pairs, strict=True):
        assert {p.relation for p in block.prompts} == {name}
        assert len(block.columns) == 10
        pairs = set()
        for column in block.columns:
            first = {p.wording for p in prompts(block, column.positive)}
            rest = tuple(set(column.member or ()) - set(column.positive))
            second = {p.wording for p in prompts(block, rest)}
            assert len(first) == len(second) == 1
            assert asked(block, column.positive) == asked(block, rest)
            pairs.add(frozenset(first | second))
        assert pairs == {frozenset({a, b}) for a in DETECTION for b in DETECTION if a != b}


def test_matrices_write_the_indices_out() -> None:
    three = FIND.prompts[:3]
    columns = (
        Column("a", "relation", "a", 0, (0, 2), None),
        Column("b", "half", "b", 0, (1,), (0, 1)),
    )
    block = Block("cloze 0", "find", three, columns)
    np.testing.assert_array_equal(block.positive_matrix(), [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(block.member_matrix(), [[1, 1, 1], [1, 1, 0]])


# -- the hash and the description ------------------------------------------------------------------


def test_the_same_call_gives_the_same_design_on_any_day() -> None:
    again = build_design(RELATIONS, subjects=20, seed=3)
    assert again == DESIGN
    assert again.sha256 == DESIGN.sha256
    # Pinned: results name this hash. It may change only when what is asked changes.
    small = build_design(RELATIONS, subjects=4, seed=0, pseudo=2, resamples=1)
    assert small.sha256[:16] == "96f5c69c3a83c7af"


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"subjects": 19}, {"pseudo": 39}, {"resamples": 19}, {"parts": ("find", "tune")}],
    ids=str,
)
def test_any_other_choice_changes_the_hash(other: dict[str, Any]) -> None:
    choices: dict[str, Any] = {"subjects": 20, "seed": 3}
    assert build_design(RELATIONS, **{**choices, **other}).sha256 != DESIGN.sha256


def test_another_fact_changes_the_hash_even_where_it_is_not_asked() -> None:
    changed = replace(RELATIONS[0], facts=(*RELATIONS[0].facts[:-1], Fact(PLACES[-1], "new")))
    assert build_design([changed, *RELATIONS[1:]], subjects=20, seed=3).sha256 != DESIGN.sha256


def test_the_description_is_plain_json_that_says_what_was_asked() -> None:
    described = DESIGN.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["sha256"] == DESIGN.sha256
    assert described["subjects"] == {"find": 20, "test": DESIGN.subjects("test")}
    assert described["columns"] == {
        "relation": 4 * (5 + 8),
        "half": 8 * 5,
        "resample": 80 * 5,
        "pseudo": 40 * 5,
        "length": 4 * 5,
        "wording": 4 * 10,
    }


def test_shipped_relations_make_a_design() -> None:
    names = ("capital", "currency", "official_language", "element_symbol")
    design = build_design([load_relation(name) for name in names], subjects=15, seed=0)
    assert design.subjects("find") == 15
    symbols = {p.text: p.subject for p in design.prompts if p.relation == "element_symbol"}
    assert not any("as" in text and subject == "arsenic" for text, subject in symbols.items())


# -- refusals --------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one relation": ({"relations": RELATIONS[:1]}, "at least two relations"),
    "a name twice": ({"relations": (*RELATIONS, RELATIONS[0])}, "different names"),
    "pseudo of two": ({"relations": RELATIONS[:2]}, "pseudo=0"),
    "one part": ({"parts": ("find", "find")}, "name two parts"),
    "shared wording": ({"evaluation": ("cloze 0",)}, "different wordings"),
    "no detection": ({"detection": ()}, "at least one"),
    "few subjects": ({"subjects": 3}, "raise `subjects`"),
    "poor relation": (
        {"relations": (*RELATIONS, relation("smell", THINGS[:3]))},
        "'smell' has .* leave that relation out",
    ),
    "no question": (
        {"relations": (*RELATIONS[:3], replace(RELATIONS[3], question=""))},
        "'taste' has no wording question 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_design_is_refused_with_the_way_out(case: str) -> None:
    changed, message = REFUSED[case]
    given: dict[str, Any] = {"relations": RELATIONS, "subjects": 20, "seed": 3}
    with pytest.raises(ValueError, match=message):
        build_design(**{**given, **changed})


def test_two_relations_do_without_pseudo_relations() -> None:
    design = build_design(RELATIONS[:2], subjects=8, seed=0, pseudo=0)
    assert not design.find_blocks[0].of_kind("pseudo")


def test_fewer_wordings_do_where_they_are_named() -> None:
    bare = [replace(r, question="", templates=r.templates[:2]) for r in RELATIONS]
    design: Design = build_design(
        bare, subjects=8, seed=0, detection=("cloze 0",), evaluation=("cloze 1",)
    )
    assert [block.wording for block in design.blocks] == ["cloze 0", "cloze 0", "cloze 1"]
    assert all(not block.columns for block in design.wording_pairs)
