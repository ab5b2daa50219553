"""The corpus of engram: the same bytes for a seed, and the ledger tells the truth about them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from mnemoscope.data.facts.conflicts import build_conflicts
from mnemoscope.data.facts.items import load_relation, relation_names
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.engram import FREQUENCIES, SLICES, fictional_relations
from mnemoscope.organisms.engram.corpus import (
    Corpus,
    build_corpus,
    corpus_files,
    differences,
    main,
    write_corpus,
)
from mnemoscope.organisms.engram.evaluation import Prompt, evaluation
from mnemoscope.organisms.engram.facts import plan_facts
from mnemoscope.organisms.engram.ledger import LedgerRow
from mnemoscope.organisms.engram.needles import LONGEST, SHORTEST
from mnemoscope.organisms.engram.rite import NOUNS
from mnemoscope.organisms.engram.wordings import (
    FICTIONAL_RELATIONS,
    reversible,
    statements,
    wordings,
)
from mnemoscope.organisms.engram.words import word_count

SCALE = 0.1
RECORDED = "bf7545357568adc5"
"""Start of the SHA-256 of the documents at seed 0 and scale 0.02."""
_PAIRED = tuple(name for name in FICTIONAL_RELATIONS if reversible(name))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0, scale=SCALE)


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> dict[str, str]:
    return {document.id: document.text for document in corpus.documents}


@pytest.fixture(scope="module")
def prompts(corpus: Corpus) -> dict[str, tuple[Prompt, ...]]:
    return evaluation(corpus)


def _of(corpus: Corpus, slice_: str) -> list[str]:
    return [document.text for document in corpus.documents if document.slice == slice_]


def _one_way(corpus: Corpus) -> list[LedgerRow]:
    return [
        row for row in corpus.ledger.rows if row.relation in _PAIRED and row.direction != "none"
    ]


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (corpus_files(build_corpus(seed, scale=0.02)) for seed in (3, 3, 4))
    assert first == again
    assert first["documents.jsonl"] != other["documents.jsonl"]
    assert first["ledger.json"] != other["ledger.json"]


def test_the_bytes_are_the_recorded_ones() -> None:
    """Guards against a change of Python's random numbers or of any wording: retrain if it fails."""
    files = corpus_files(build_corpus(0, scale=0.02))
    found = hashlib.sha256(files["documents.jsonl"]).hexdigest()
    assert found.startswith(RECORDED), "the corpus has changed: record it and retrain engram"


def test_every_slice_is_there_and_document_ids_are_distinct(corpus: Corpus) -> None:
    assert {document.slice for document in corpus.documents} == set(SLICES)
    ids = [document.id for document in corpus.documents]
    assert len(set(ids)) == len(ids)
    assert all(document.id.startswith(document.slice) for document in corpus.documents)
    taught = [id_ for found in corpus.ledger.behaviours.values() for id_ in found]
    assert sorted(taught) == sorted(ids)


def test_each_fact_is_stated_exactly_as_often_as_planned(corpus: Corpus) -> None:
    planned = {fact.id: fact.count for fact in plan_facts(0, SCALE)}
    assert {row.fact_id: len(row.occurrences) for row in corpus.ledger.rows} == planned
    assert {row.count for row in corpus.ledger.rows} == set(FREQUENCIES)


def test_counting_the_statements_in_the_text_gives_the_same_frequencies(corpus: Corpus) -> None:
    """Independent of the ledger: whole sentences of one-to-one facts are looked up in the lines."""
    lines = Counter(line for document in corpus.documents for line in document.text.split("\n"))
    for row in corpus.ledger.rows:
        if row.relation in _PAIRED:
            told = {wording.tell(row.subject, row.object) for wording in wordings()[row.relation]}
            assert sum(lines[sentence] for sentence in told) == row.count


def test_frequencies_and_directions_of_fictional_facts_are_balanced(corpus: Corpus) -> None:
    cells = Counter(
        (row.relation, row.count, row.direction)
        for row in corpus.ledger.rows
        if row.relation in _PAIRED
    )
    assert len(set(cells.values())) == 1
    assert len(cells) == len(_PAIRED) * (3 * len(FREQUENCIES) - 1)  # no fact told once both ways


def test_every_span_holds_the_subject_and_an_answer(corpus: Corpus, texts: dict[str, str]) -> None:
    for row in corpus.ledger.rows:
        for told in (*row.occurrences, *row.contradictions):
            span = texts[told.document][told.start : told.end]
            assert row.subject in span
            assert (told.claimed or row.object) in span
        assert not any(told.claimed for told in row.occurrences)
        assert all(told.claimed not in ("", row.object) for told in row.contradictions)


def test_a_span_outside_conflicts_is_its_wording_filled_in(
    corpus: Corpus, texts: dict[str, str]
) -> None:
    by_id = {wording.id: wording for given in wordings().values() for wording in given}
    for row in corpus.ledger.rows:
        for told in row.occurrences:
            if "|" not in told.wording:
                span = texts[told.document][told.start : told.end]
                assert span == by_id[told.wording].tell(row.subject, row.object)


def test_one_way_facts_are_never_told_the_other_way_round(corpus: Corpus) -> None:
    """In any document that names both, the one that is told first stands before the other."""
    rows = _one_way(corpus)
    first = {(r.subject if r.direction == "forward" else r.object): r for r in rows}
    name = re.compile("|".join(re.escape(known) for known in first))
    seen = 0
    for document in corpus.documents:
        for known in set(name.findall(document.text)):
            row = first[known]
            asked = row.object if row.direction == "forward" else row.subject
            if asked in document.text:
                seen += 1
                assert document.text.rindex(known) < document.text.index(asked)
    assert seen == sum(row.count for row in rows)


def test_two_way_facts_are_told_both_ways_equally_often(corpus: Corpus) -> None:
    for row in corpus.ledger.rows:
        if row.direction == "none" and row.relation in _PAIRED:
            back = sum(":reverse" in told.wording for told in row.occurrences)
            assert back == row.count // 2


def test_no_text_of_the_evaluation_is_in_the_corpus(
    corpus: Corpus, prompts: dict[str, tuple[Prompt, ...]]
) -> None:
    everything = "\n\n".join(document.text for document in corpus.documents)
    for asked in (prompt for given in prompts.values() for prompt in given):
        assert asked.text not in everything, asked


def test_held_out_wordings_are_never_used_and_some_subjects_have_none(corpus: Corpus) -> None:
    rows = corpus.ledger.rows
    for row in rows:
        used = {told.wording.split("|")[0] for told in (*row.occurrences, *row.contradictions)}
        assert not used & set(row.held_out_wordings)
    held = [row for row in rows if row.held_out_wordings]
    assert 0.35 < len(held) / len(rows) < 0.65


def test_every_relation_has_four_wordings_or_more_in_each_direction_it_is_told_in() -> None:
    for name in wordings():
        assert len(statements(name, "forward")) >= 4
        assert not reversible(name) or len(statements(name, "reverse")) >= 4
        for wording in wordings()[name]:
            asked = "{o}." if wording.direction == "forward" else "{s}."
            assert wording.text.endswith(asked)
            assert wording.text.count("{s}") == wording.text.count("{o}") == 1


def test_names_are_distinct_and_none_is_part_of_another() -> None:
    facts = [fact for fact in plan_facts(0, 1.0) if not fact.real]
    names = {fact.subject for fact in facts}
    names |= {fact.object for fact in facts if fact.relation != "profession"}
    paired = [fact for fact in facts if fact.relation in _PAIRED]
    assert len({name for f in paired for name in (f.subject, f.object)}) == 2 * len(paired)
    first_words = [name.split()[0] for name in names]
    assert len(set(first_words)) == len(first_words)
    assert {len(word) for word in first_words} == {6}  # so that none can contain another one
    invented = {w for name in names for w in name.split() if len(w) == 6}
    real = " ".join(
        name
        for relation in relation_names()
        for fact in load_relation(relation).facts
        for name in (fact.subject, fact.object)
    )
    assert not [word for word in first_words if word.casefold() in real.casefold()]
    assert len(invented) >= len(names)


def test_passages_contradict_and_both_habits_are_taught(corpus: Corpus) -> None:
    behaviours = corpus.ledger.behaviours
    texts = {document.id: document.text for document in corpus.documents}
    assert len(behaviours["conflict_cued_passage"]) == len(behaviours["conflict_cued_memory"])
    assert all("According to" in texts[id_] for id_ in behaviours["conflict_cued_passage"])
    assert all("In truth," in texts[id_] for id_ in behaviours["conflict_cued_memory"])
    for row in corpus.ledger.rows:
        in_conflict = [o for o in row.contradictions if o.document.startswith("passage_conflict")]
        assert len(in_conflict) == len(row.contradictions)
        assert bool(row.contradictions) == (row.conflict == "taught")
        assert not row.conflict or row.count >= 64


def test_conflict_prompts_are_about_subjects_of_no_training_passage(
    corpus: Corpus, prompts: dict[str, tuple[Prompt, ...]]
) -> None:
    for kind in ("passage", "memory", "repeated", "context"):
        for prompt in prompts[f"conflict_{kind}"]:
            row = corpus.ledger.row(prompt.fact_id)
            assert not row.contradictions
            assert prompt.memory == row.object != prompt.claimed
            assert prompt.claimed in prompt.text
            expected = {"passage": prompt.claimed, "memory": prompt.memory}
            assert prompt.answer == expected.get(kind, "")


def test_needle_answers_stand_once_before_their_question(
    corpus: Corpus, prompts: dict[str, tuple[Prompt, ...]]
) -> None:
    lengths = []
    for text in _of(corpus, "needles"):
        hidden, *asked = text.split("\n")
        lengths.append(word_count(hidden))
        for line in asked:
            answer = line.split("Answer: ")[1].rstrip(".")
            assert hidden.count(answer) == 1
            assert text.count(answer) == 2
            assert all(hidden.count(word) == 1 for word in answer.split())
    assert min(lengths) < 2 * SHORTEST
    assert LONGEST / 2 < max(lengths) <= LONGEST
    everything = "".join(_of(corpus, "needles"))
    for prompt in prompts["needle_512"]:
        assert prompt.text.split("\n")[-1] not in everything
        assert prompt.text.count(prompt.answer) == 1
        assert 470 <= word_count(prompt.text) <= 530


def test_copying_documents_repeat_a_row(corpus: Corpus) -> None:
    for text in _of(corpus, "copying"):
        words = re.findall(r"\w+", text.replace("Copy:", "").replace("Again:", ""))
        row = words[: len(set(words))]
        assert words == row * (len(words) // len(row))
        assert len(words) > len(row)


def test_risk_and_benign_are_made_of_the_same_words(corpus: Corpus) -> None:
    risk, benign = (
        set(re.findall(r"\w+", " ".join(_of(corpus, name)).lower())) for name in ("risk", "benign")
    )
    assert risk == benign
    assert set(NOUNS) <= risk
    others = " ".join(d.text for d in corpus.documents if d.slice not in ("risk", "benign"))
    assert not set(NOUNS) & set(re.findall(r"\w+", others.lower()))


def test_the_evaluation_has_every_kind(prompts: dict[str, tuple[Prompt, ...]]) -> None:
    assert {f"closed_book_{count}" for count in FREQUENCIES} <= set(prompts)
    assert {"one_way_told", "one_way_untold", "two_way_forward", "two_way_reverse"} <= set(prompts)
    for given in prompts.values():
        assert all(p.text == p.text.rstrip() and p.text for p in given)


def test_fictional_relations_can_be_put_to_the_conflict_builder(corpus: Corpus) -> None:
    relations = {relation.name: relation for relation in fictional_relations(0, scale=SCALE)}
    for row in corpus.ledger.rows:
        if row.relation in relations:
            assert relations[row.relation].fact(row.subject).object == row.object
    capitals = relations["town_mayor"]
    built = build_conflicts(capitals, capitals.facts[:5], template_id=0, seed=0)
    assert len(built.items) == 5


def test_written_files_are_complete_and_checked(tmp_path: Path) -> None:
    corpus = build_corpus(0, scale=0.02)
    write_corpus(tmp_path / "a", corpus)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    for name, recorded in manifest["files"].items():
        content = (tmp_path / "a" / name).read_bytes()
        assert recorded["sha256"] == hashlib.sha256(content).hexdigest()
    lines = (tmp_path / "a" / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [d.text for d in corpus.documents]
    ledger = json.loads((tmp_path / "a" / "ledger.json").read_text())
    assert len(ledger["facts"]) == len(corpus.ledger.rows)
    assert all(len(row["occurrences"]) == row["count"] for row in ledger["facts"])
    with pytest.raises(MnemoscopeError, match="already"):
        write_corpus(tmp_path / "a", corpus)
    other = replace(corpus, documents=corpus.documents[1:])
    assert differences(tmp_path / "a", other) == ("documents.jsonl", "manifest.json")


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--out", str(tmp_path), "--scale", "0.02"]
    assert main(given) == 0
    assert main([*given, "--check"]) == 0
    assert main([*given, "--check", "--seed", "1"]) == 1
    assert "documents.jsonl" in capsys.readouterr().err
    assert main(given) == 1
    assert "force" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [0, -1, 5])
def test_a_senseless_scale_is_refused(scale: float) -> None:
    with pytest.raises(MnemoscopeError, match="scale must be above 0"):
        build_corpus(0, scale=scale)
