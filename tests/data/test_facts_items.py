"""Reading, refusing, splitting and hashing relations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.facts import (
    PARTS,
    Fact,
    Relation,
    data_hash,
    load_relation,
    relation_names,
    split_subjects,
)
from mnemoscope.data.facts.items import relation_to_json

# Machines under load are slow; that is no failure of the code under test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
MAPS = st.dictionaries(st.sampled_from(["fr", "ja"]), TEXT, max_size=2)
FACTS = st.builds(
    Fact,
    subject=TEXT,
    object=TEXT,
    aliases=st.lists(TEXT, max_size=2).map(tuple),
    names=MAPS,
    object_names=MAPS,
    group=st.sampled_from(["", "a", "b"]),
)
RELATIONS = st.builds(
    Relation,
    name=TEXT,
    description=TEXT,
    templates=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    question=TEXT,
    exclusive=st.booleans(),
    facts=st.lists(FACTS, max_size=8, unique_by=lambda fact: fact.subject).map(tuple),
)


def numbered(count: int) -> Relation:
    facts = tuple(Fact(f"subject {i}", f"object {i}") for i in range(count))
    return Relation("r", "d", ("Of {s} it is",), "?", facts=facts)


@UNHURRIED
@given(RELATIONS)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, relation: Relation
) -> None:
    path = tmp_path_factory.mktemp("relation") / "r.json"
    path.write_text(json.dumps(relation_to_json(relation)), encoding="utf-8")
    assert load_relation(path) == relation


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no relation 'capitals'. Did you mean capital") as error:
        load_relation("capitals")
    assert all(name in str(error.value) for name in relation_names())


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        load_relation(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no JSON object"),
        ('{"schema": 99}', "schema is 99"),
        ('{"schema": 1, "name": "r"}', "description, templates, question missing"),
        (
            '{"schema": 1, "name": "r", "description": "", "templates": "x", "question": ""}',
            "'templates' is no list of texts",
        ),
        (
            '{"schema": 1, "name": "r", "description": "", "templates": [], "question": "",'
            ' "x": 1}',
            "unknown field x",
        ),
        (
            '{"schema": 1, "name": "r", "description": "", "templates": [], "question": "",'
            ' "exclusive": "yes", "facts": []}',
            "'exclusive' is neither true nor false",
        ),
        (
            '{"schema": 1, "name": "r", "description": "", "templates": [], "question": ""}',
            "'facts' is missing",
        ),
        (
            '{"schema": 1, "name": "r", "description": "", "templates": [], "question": "",'
            ' "facts": [{"subject": "s"}]}',
            "row 0: object missing",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_file_and_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as error:
        load_relation(path)
    assert "broken.json" in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.json"):
        load_relation(path)


def test_a_template_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="templates 0 to 0, not 1"):
        numbered(1).prompt("x", 1)


def test_a_misspelled_subject_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean France"):
        load_relation("capital").fact("Frnace")


@UNHURRIED
@given(st.integers(0, 60), st.integers(0, 3))
def test_the_parts_are_disjoint_and_complete(count: int, seed: int) -> None:
    relation = numbered(count)
    parts = split_subjects(relation, seed)
    assert tuple(parts) == PARTS
    together = [fact for part in PARTS for fact in parts[part]]
    assert sorted(fact.subject for fact in together) == sorted(f.subject for f in relation.facts)


@UNHURRIED
@given(st.integers(1, 60), st.integers(0, 3))
def test_a_subject_stays_in_its_part_when_rows_are_added(count: int, seed: int) -> None:
    few, many = split_subjects(numbered(count), seed), split_subjects(numbered(2 * count), seed)
    for part in PARTS:
        assert set(few[part]) <= set(many[part])


def test_parts_follow_the_fractions_and_the_seed() -> None:
    relation = numbered(4000)
    sizes = {part: len(facts) for part, facts in split_subjects(relation, 1).items()}
    # Three standard deviations of a binomial of 4,000 draws are below 100.
    assert abs(sizes["find"] - 2000) < 100
    assert abs(sizes["tune"] - 1000) < 100
    assert split_subjects(relation, 1) != split_subjects(relation, 2)
    assert split_subjects(relation, 1, (1.0, 0.0, 0.0))["find"] == relation.facts
    thirds = split_subjects(relation, 1, (0.1, 0.9, 0.0))
    assert not thirds["test"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_fractions_that_make_no_split_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_subjects(numbered(3), 0, fractions)


@pytest.mark.parametrize("name", relation_names())
def test_at_seed_0_every_shipped_relation_has_subjects_to_test_on(name: str) -> None:
    parts = split_subjects(load_relation(name), 0)
    assert all(len(facts) >= 9 for facts in parts.values())


def test_a_country_falls_into_one_part_in_all_relations() -> None:
    parts = [split_subjects(load_relation(name), 0) for name in ("capital", "currency", "demonym")]
    where = [{f.subject: part for part in PARTS for f in split[part]} for split in parts]
    for subject in where[0].keys() & where[1].keys() & where[2].keys():
        assert where[0][subject] == where[1][subject] == where[2][subject]


@UNHURRIED
@given(RELATIONS, st.randoms())
def test_the_hash_ignores_the_order_of_rows_and_nothing_else(relation: Relation, random) -> None:
    facts = list(relation.facts)
    random.shuffle(facts)
    assert data_hash(replace(relation, facts=tuple(facts))) == data_hash(relation)
    assert data_hash(replace(relation, question=relation.question + "x")) != data_hash(relation)
    if facts:
        changed = (replace(facts[0], object=facts[0].object + "x"), *facts[1:])
        assert data_hash(replace(relation, facts=changed)) != data_hash(relation)


def test_the_hash_is_a_sha256_in_hex() -> None:
    assert len(data_hash(numbered(2))) == 64
    assert int(data_hash(numbered(2)), 16) >= 0
