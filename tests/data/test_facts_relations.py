"""Every relation that ships is well formed, and the entries known to be stale are right."""

import json

import pytest
from mnemoscope.data.facts import Relation, load_relation, relation_names
from mnemoscope.data.facts.answers import confusable, leaks, normalise
from mnemoscope.data.facts.items import RELATIONS_FOLDER

EXPECTED = {
    "capital",
    "continent",
    "official_language",
    "currency",
    "demonym",
    "city_in_country",
    "state_capital",
    "element_symbol",
    "element_series",
    "element_discoverer",
    "atomic_number",
    "country_in_french",
    "country_in_german",
    "country_in_spanish",
    "book_author",
    "painting_artist",
    "landmark_city",
    "invention_inventor",
    "company_founder",
    "animal_young",
    "opposite_adjective",
    "food_country",
}
LANGUAGES = {"fr", "de", "es", "ru", "zh", "ja", "ar"}


@pytest.fixture(params=sorted(EXPECTED))
def relation(request: pytest.FixtureRequest) -> Relation:
    return load_relation(request.param)


def test_all_the_promised_relations_ship_and_no_others() -> None:
    assert set(relation_names()) == EXPECTED


def test_the_files_are_small_enough_to_live_in_a_repository() -> None:
    assert sum(path.stat().st_size for path in RELATIONS_FOLDER.glob("*.json")) < 4_000_000


def test_a_file_is_named_after_its_relation_and_written_in_sorted_utf8(relation: Relation) -> None:
    text = (RELATIONS_FOLDER / f"{relation.name}.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    assert raw["name"] == relation.name
    assert text == json.dumps(raw, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def test_there_are_at_least_40_subjects_each_named_once(relation: Relation) -> None:
    subjects = [fact.subject for fact in relation.facts]
    assert len(subjects) >= 40
    assert len({normalise(subject) for subject in subjects}) == len(subjects)
    assert subjects == sorted(subjects)


def test_templates_end_right_before_the_object(relation: Relation) -> None:
    assert len(set(relation.templates)) == len(relation.templates) >= 3
    for template in relation.templates:
        assert template.count("{s}") == 1
        assert not template.startswith("{s}")  # subjects such as "the Gambia" begin in lower case
        assert template == template.strip()
        assert "{o}" not in template
        assert template[-1].isalpha() or template[-1] in ",}"


def test_reverse_templates_ask_for_the_subject(relation: Relation) -> None:
    assert bool(relation.reverse_templates) == relation.one_to_one
    for template in relation.reverse_templates:
        assert template.count("{o}") == 1
        assert "{s}" not in template
        assert template == template.strip()


def test_the_question_and_the_argument_name_what_they_must(relation: Relation) -> None:
    assert relation.question.count("{s}") == 1
    assert relation.question.endswith("?")
    assert "{s}" in relation.argument
    assert "{o}" in relation.argument
    assert relation.argument.endswith(".")


def test_wordings_in_other_languages_come_in_threes(relation: Relation) -> None:
    for language, templates in relation.templates_by_language.items():
        assert language in LANGUAGES
        assert len(set(templates)) == 3
        assert all(text.count("{s}") == 1 and text == text.strip() for text in templates)


def test_four_relations_are_worded_in_seven_languages() -> None:
    worded = [
        name for name in EXPECTED if set(load_relation(name).templates_by_language) == LANGUAGES
    ]
    assert sorted(worded) == ["capital", "continent", "currency", "official_language"]


def test_aliases_do_not_repeat_the_object_or_one_another(relation: Relation) -> None:
    for fact in relation.facts:
        assert len(set(fact.answers)) == len(fact.answers), fact.subject
        assert fact.subject not in fact.subject_aliases
        assert all(text == text.strip() and normalise(text) for text in fact.answers)


def test_the_answer_cannot_be_read_off_the_subject(relation: Relation) -> None:
    for fact in relation.facts:
        assert not leaks(fact.subject, fact.answers), fact.subject
        assert not any(leaks(answer, (fact.subject,)) for answer in fact.answers), fact.subject


def test_every_row_has_a_source_a_licence_and_a_date(relation: Relation) -> None:
    for fact in relation.facts:
        assert fact.source
        assert fact.license in {"MIT", "BSD-3-Clause", "CC-BY-4.0", "Unicode-3.0"}
        assert fact.as_of == "2026-11"


def test_the_counterfactual_is_a_safe_object_of_another_subject(relation: Relation) -> None:
    objects = {fact.object for fact in relation.facts}
    groups = {fact.group for fact in relation.facts}
    by_object = {o: {f.group for f in relation.facts if f.object == o} for o in objects}
    for fact in relation.facts:
        assert fact.counterfactual in objects
        assert not confusable(fact.counterfactual, fact.answers), fact.subject
        assert not leaks(fact.subject, (fact.counterfactual,)), fact.subject
        if fact.group and len(groups) > 1:
            free = [o for o in objects if fact.group not in by_object[o]]
            assert fact.counterfactual in free or all(confusable(o, fact.answers) for o in free)


def test_exclusive_and_one_to_one_mean_what_they_say(relation: Relation) -> None:
    assert relation.exclusive
    objects = [normalise(fact.object) for fact in relation.facts]
    if relation.one_to_one:
        assert len(set(objects)) == len(objects)


def test_only_numbers_are_void_for_first_tokens() -> None:
    void = [name for name in EXPECTED if not load_relation(name).single_first_token_ok]
    assert void == ["atomic_number"]


@pytest.mark.parametrize(
    ("name", "subject", "answer"),
    [
        ("capital", "Kazakhstan", "Astana"),
        ("capital", "Burundi", "Gitega"),
        ("capital", "Brazil", "Brasília"),
        ("capital", "the United States", "Washington"),
        ("capital", "Myanmar", "Naypyidaw"),
        ("currency", "Bulgaria", "euro"),
        ("currency", "Croatia", "euro"),
        ("currency", "the United Arab Emirates", "dirham"),
        ("currency", "Senegal", "West African CFA franc"),
        ("official_language", "Bangladesh", "Bengali"),
        ("element_series", "neon", "noble gases"),
        ("atomic_number", "aluminium", "13"),
        ("country_in_german", "Moldova", "Moldau"),
    ],
)
def test_entries_that_packages_get_wrong(name: str, subject: str, answer: str) -> None:
    assert load_relation(name).fact(subject).object == answer


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("capital", "Bolivia"),
        ("capital", "South Africa"),
        ("capital", "the Netherlands"),
        ("capital", "Sri Lanka"),
        ("currency", "Panama"),
        ("official_language", "South Africa"),
        ("official_language", "Niger"),
        ("continent", "Russia"),
        ("element_series", "zinc"),
        ("city_in_country", "Brooklyn"),
    ],
)
def test_disputable_rows_are_left_out(name: str, subject: str) -> None:
    with pytest.raises(ValueError, match="has no subject"):
        load_relation(name).fact(subject)


def test_washington_may_be_written_in_several_ways() -> None:
    assert "Washington, D.C." in load_relation("capital").fact("the United States").aliases


def test_capitals_are_known_in_other_scripts() -> None:
    japan = load_relation("capital").fact("Japan")
    assert japan.names["ja"] == "日本"
    assert japan.object_names["ja"] == "東京"
    assert load_relation("capital").fact("Russia").object_names["ru"] == "Москва"
