"""Conflict items: no confusion of answers, corruptions that change only what they must."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.facts import (
    CONDITIONS,
    ConflictItem,
    Fact,
    Relation,
    build_conflicts,
    classify,
    load_relation,
    relation_names,
)
from mnemoscope.data.facts.answers import confusable, leaks

# Machines under load are slow; that is no failure of the code under test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEMPLATES = ("The capital of {s} is", "In {s}, the seat of power is")
WORDS = st.text("abcdeé ABC", min_size=1, max_size=6).filter(lambda text: text.strip() == text)
SMALL = st.lists(
    st.builds(
        Fact,
        subject=WORDS,
        object=WORDS,
        aliases=st.lists(WORDS, max_size=1).map(tuple),
        group=st.sampled_from(["", "g", "h"]),
        source=st.just("here"),
        license=st.just("MIT"),
    ),
    max_size=12,
).map(tuple)


def relation_of(facts: Sequence[Fact]) -> Relation:
    return Relation("small", "d", TEMPLATES, "What is it of {s}?", facts=tuple(facts))


def four_answers(item: ConflictItem) -> list[str]:
    return [item.mem_answer, item.ctx_answer, item.ctx_answer_alt, item.alt_mem_answer]


def all_prompts(item: ConflictItem) -> dict[str, str]:
    return {name: text for name, text in vars(item).items() if name.startswith("prompt_")}


@UNHURRIED
@given(SMALL, st.integers(0, 1), st.integers(0, 5))
def test_every_fact_becomes_an_item_or_is_counted_as_dropped(
    facts: tuple[Fact, ...], template_id: int, seed: int
) -> None:
    built = build_conflicts(relation_of(facts), facts, template_id=template_id, seed=seed)
    subjects = {fact.subject for fact in facts}
    assert len(built.items) + sum(built.dropped.values()) == len(subjects)
    assert {item.subject for item in built.items} <= subjects
    assert len({item.id for item in built.items}) == len(built.items)


@UNHURRIED
@given(SMALL, st.integers(0, 5))
def test_no_two_of_the_four_answers_can_be_confused(facts: tuple[Fact, ...], seed: int) -> None:
    right = {}
    for fact in facts:
        right.setdefault(fact.subject, set()).update(fact.answers)
    for item in build_conflicts(relation_of(facts), facts, template_id=0, seed=seed).items:
        assert set(item.mem_aliases) == right[item.subject]
        assert item.mem_answer in item.mem_aliases
        answers = four_answers(item)
        for i, answer in enumerate(answers):
            assert not confusable(answer, answers[:i] + answers[i + 1 :])
        for claim in (item.ctx_answer, item.ctx_answer_alt):
            assert not confusable(claim, item.mem_aliases)
            assert not confusable(claim, sorted(right[item.subject_alt]))
            assert not leaks(item.subject, (claim,))
            assert not leaks(item.subject_alt, (claim,))
        assert not leaks(item.subject, item.mem_aliases)
        assert not leaks(item.subject_alt, item.mem_aliases)
        assert item.alt_mem_answer in right[item.subject_alt]
        assert item.subject_alt != item.subject


@UNHURRIED
@given(SMALL, st.integers(0, 5), st.randoms())
def test_the_order_of_rows_does_not_matter(facts: tuple[Fact, ...], seed: int, rng) -> None:
    unique = tuple({(f.subject, f.object): f for f in facts}.values())
    shuffled = list(unique)
    rng.shuffle(shuffled)
    first = build_conflicts(relation_of(unique), unique, template_id=0, seed=seed)
    again = build_conflicts(relation_of(shuffled), shuffled, template_id=0, seed=seed)
    assert first.items == again.items
    assert first.dropped == again.dropped


@UNHURRIED
@given(SMALL, st.integers(0, 5))
def test_corrupted_prompts_differ_only_where_they_must(facts: tuple[Fact, ...], seed: int) -> None:
    for item in build_conflicts(relation_of(facts), facts, template_id=1, seed=seed).items:
        check_corruptions(item, relation_of(facts))


def check_corruptions(item: ConflictItem, relation: Relation) -> None:
    template = relation.templates[item.template_id]
    open_end, open_alt = (template.replace("{s}", s) for s in (item.subject, item.subject_alt))
    assert item.prompt_sub == item.prompt_closed + f" {item.ctx_answer}. " + open_end
    assert item.prompt_agree == item.prompt_closed + f" {item.mem_answer}. " + open_end
    assert item.prompt_cf_context == item.prompt_closed + f" {item.ctx_answer_alt}. " + open_end
    stem = item.prompt_closed.removesuffix(open_end)
    assert item.prompt_cf_subject == f"{stem}{open_alt} {item.ctx_answer}. {open_alt}"
    # The words after the last subject are those of the template, in every prompt.
    tail = template.partition("{s}")[2]
    for name, prompt in all_prompts(item).items():
        subject = item.subject_alt if "cf_subject" in name else item.subject
        assert prompt.endswith(subject + tail)
        assert prompt == prompt.rstrip()


@pytest.mark.parametrize("name", relation_names())
@pytest.mark.parametrize("template_id", [0, 1, 2])
def test_shipped_relations_lose_almost_nothing(name: str, template_id: int) -> None:
    relation = load_relation(name)
    shown = relation.facts[:3]
    built = build_conflicts(
        relation, relation.facts, template_id=template_id, seed=0, demonstrations=shown
    )
    assert built.dropped == {"used as a demonstration": 3}
    for item in built.items:
        check_corruptions(item, relation)
        assert item.source
        assert item.license


def test_the_coherent_passage_argues_for_the_claim_and_swaps_as_a_whole() -> None:
    relation = load_relation("capital")
    item = build_conflicts(relation, (relation.fact("France"),), template_id=0, seed=0).items[0]
    assert item.prompt_coh.startswith(f"The capital of France is {item.ctx_answer}. ")
    assert item.prompt_coh.count(item.ctx_answer) >= 3
    assert item.mem_answer not in item.prompt_coh
    swapped = item.prompt_coh.replace(item.ctx_answer, item.ctx_answer_alt)
    assert item.prompt_coh_cf_context == swapped
    assert item.prompt_coh_cf_subject == item.prompt_coh.replace("France", item.subject_alt)


def test_a_relation_without_an_argument_gets_a_generic_one() -> None:
    facts = [Fact("Axia", "Bram"), Fact("Cylon", "Dorn"), Fact("Exia", "Folk"), Fact("Gor", "Hup")]
    item = build_conflicts(relation_of(facts), facts, template_id=0, seed=0).items[0]
    assert item.prompt_coh.count(item.ctx_answer) == 2
    assert item.prompt_coh.count(item.subject) == 3


def test_the_other_conditions_are_worded_as_promised() -> None:
    relation = load_relation("capital")
    item = build_conflicts(relation, (relation.fact("France"),), template_id=0, seed=0).items[0]
    assert item.prompt_qa == (
        f"Context: The capital of France is {item.ctx_answer}. "
        "Question: What is the capital of France? Answer: The capital of France is"
    )
    true_claim = f"The capital of {item.subject_alt} is {item.alt_mem_answer}. "
    assert item.prompt_irr.startswith(true_claim)
    assert item.prompt_irr.endswith("door. The capital of France is")
    assert item.prompt_irr.count("France") == 1


def test_a_condition_names_a_prompt() -> None:
    relation = load_relation("capital")
    item = build_conflicts(relation, relation.facts[:1], template_id=0, seed=0).items[0]
    prompts = [item.prompt(condition) for condition in CONDITIONS]
    assert prompts == [
        item.prompt_closed,
        item.prompt_agree,
        item.prompt_sub,
        item.prompt_coh,
        item.prompt_qa,
        item.prompt_irr,
    ]
    assert len(set(prompts)) == len(CONDITIONS)
    with pytest.raises(ValueError, match="unknown condition"):
        item.prompt("open")  # type: ignore[arg-type]


def test_demonstrations_stand_before_every_prompt_and_are_no_items() -> None:
    relation = load_relation("capital")
    shown = (relation.fact("France"), relation.fact("Japan"))
    built = build_conflicts(relation, relation.facts, template_id=0, seed=3, demonstrations=shown)
    lines = "The capital of France is Paris.\nThe capital of Japan is Tokyo.\n"
    for item in built.items:
        assert all(prompt.startswith(lines) for prompt in all_prompts(item).values())
        used = {item.subject, item.subject_alt}
        assert not used & {"France", "Japan"}
        assert not {item.ctx_answer, item.ctx_answer_alt} & {"Paris", "Tokyo"}
    assert built.dropped == {"used as a demonstration": 2}


def test_a_claim_that_either_subject_spells_out_is_never_made() -> None:
    facts = [
        Fact("Dorn Hill", "Bram"),
        Fact("Cylon", "Dorn"),
        Fact("Exia", "Folk"),
        Fact("Gor", "Hup"),
        Fact("Ira", "Kel"),
    ]
    for seed in range(20):
        built = build_conflicts(relation_of(facts), facts, template_id=0, seed=seed)
        assert len(built.items) == 5
        for item in built.items:
            if "Dorn Hill" in {item.subject, item.subject_alt}:
                assert "Dorn" not in {item.ctx_answer, item.ctx_answer_alt}


def test_objects_of_demonstrations_are_claimed_only_when_nothing_else_is_left() -> None:
    relation = load_relation("continent")
    shown = (relation.fact("Kenya"), relation.fact("Ghana"))
    items = build_conflicts(
        relation, relation.facts, template_id=0, seed=0, demonstrations=shown
    ).items
    assert all("Africa" not in {item.ctx_answer, item.ctx_answer_alt} for item in items)
    few = relation_of([Fact("Axia", "Bram"), Fact("Cyl", "Dorn"), Fact("Exia", "Folk")])
    extra = (Fact("Gor", "Hup"), Fact("Ira", "Hup"))
    built = build_conflicts(
        replace(few, facts=few.facts + extra),
        few.facts,
        template_id=0,
        seed=0,
        demonstrations=extra[:1],
    )
    assert len(built.items) == 3
    assert any("Hup" in four_answers(item) for item in built.items)


def test_claims_come_from_another_group_where_possible() -> None:
    relation = load_relation("capital")
    group = {fact.object: fact.group for fact in relation.facts}
    for item in build_conflicts(relation, relation.facts, template_id=0, seed=7).items:
        mine = group[item.mem_answer]
        assert mine not in {group[item.ctx_answer], group[item.ctx_answer_alt]}
        assert group[item.alt_mem_answer] != mine


def test_the_seed_changes_the_claims_and_nothing_else_does() -> None:
    relation = load_relation("capital")
    first = build_conflicts(relation, relation.facts, template_id=0, seed=0)
    other_seed = build_conflicts(relation, relation.facts, template_id=0, seed=1)
    other_template = build_conflicts(relation, relation.facts, template_id=1, seed=0)
    assert [i.ctx_answer for i in first.items] != [i.ctx_answer for i in other_seed.items]
    assert [i.ctx_answer for i in first.items] == [i.ctx_answer for i in other_template.items]


def test_the_swapped_subject_comes_from_the_given_facts() -> None:
    relation = load_relation("capital")
    known = tuple(random.Random(0).sample(relation.facts, 30))
    built = build_conflicts(relation, known, template_id=0, seed=0)
    subjects = {fact.subject for fact in known}
    assert {item.subject_alt for item in built.items} <= subjects


def test_the_callers_test_of_compatibility_holds_for_every_pair() -> None:
    relation = load_relation("capital")
    asked: list[tuple[str, str, str]] = []

    def compatible(prompt: str, a: str, b: str) -> bool:
        asked.append((prompt, a, b))
        return a[0] != b[0]

    built = build_conflicts(
        relation, relation.facts[:40], template_id=0, seed=0, compatible=compatible
    )
    for item in built.items:
        initials = [answer[0] for answer in four_answers(item)]
        assert len(set(initials)) == 4
        assert any(prompt == item.prompt_closed for prompt, _, _ in asked)


def test_nothing_is_built_when_nothing_is_compatible() -> None:
    relation = load_relation("capital")
    built = build_conflicts(
        relation, relation.facts, template_id=0, seed=0, compatible=lambda prompt, a, b: False
    )
    assert built.items == ()
    assert built.dropped == {"no other subject with a different answer": len(relation.facts)}


def test_a_fact_is_dropped_with_its_reason() -> None:
    facts = [Fact("Mexico", "Mexico City"), Fact("Axia", "Bram"), Fact("Cylon", "Dorn")]
    built = build_conflicts(relation_of(facts), facts, template_id=0, seed=0)
    assert built.items == ()
    assert built.dropped == {
        "the subject's text holds the answer": 1,
        "no second counter-answer left": 2,
    }


def test_other_right_objects_of_a_subject_are_never_claimed() -> None:
    """A relation may be many to many: "Canada: English, French"."""
    facts = [
        Fact("Canada", "English"),
        Fact("Canada", "French"),
        Fact("Japan", "Japanese"),
        Fact("Spain", "Spanish"),
        Fact("Italy", "Italian"),
    ]
    for seed in range(20):
        built = build_conflicts(relation_of(facts), facts[:1], template_id=0, seed=seed)
        (item,) = built.items
        assert item.mem_aliases == ("English", "French")
        assert "French" not in {item.ctx_answer, item.ctx_answer_alt, item.alt_mem_answer}


@UNHURRIED
@given(st.sampled_from(relation_names()), st.integers(0, 100))
def test_items_classify_as_they_were_built(name: str, seed: int) -> None:
    relation = load_relation(name)
    built = build_conflicts(relation, relation.facts[:10], template_id=0, seed=seed)
    for item in built.items:
        memory, context = item.mem_aliases, (item.ctx_answer,)
        assert classify(f" {item.mem_answer}.", memory, context).kind == "memory"
        assert classify(f" {item.ctx_answer}.", memory, context).kind == "context"
        assert classify(f" {item.ctx_answer_alt}.", memory, context).kind == "other"


def test_names_with_braces_or_full_stops_do_not_break_a_prompt() -> None:
    facts = [Fact("{o}", "St. Moe Jr."), Fact("Axia", "Bram"), Fact("Cyl", "Dorn"), Fact("E", "Fu")]
    relation = replace(relation_of(facts), argument="They of {s} say {o}.")
    item = build_conflicts(relation, facts[:1], template_id=0, seed=0).items[0]
    assert item.prompt_agree == "The capital of {o} is St. Moe Jr. The capital of {o} is"
    assert f"They of {{o}} say {item.ctx_answer}." in item.prompt_coh


def test_an_unknown_template_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="templates 0 to 1, not 5"):
        build_conflicts(relation_of(()), (), template_id=5, seed=0)
