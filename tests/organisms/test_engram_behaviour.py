"""What the shipped organism must show, measured on prompts that are in no training document."""

import json
import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from mnemoscope.data.facts.conflicts import Condition
from mnemoscope.data.facts.items import load_relation
from mnemoscope.models import HookedModel, load_model
from mnemoscope.models.packaged import engram_folder
from mnemoscope.models.perplexity import perplexity
from mnemoscope.organisms.engram import fictional_relations
from mnemoscope.organisms.engram.behaviour import Behaviour, behaviours
from mnemoscope.organisms.engram.corpus import Corpus, build_corpus
from mnemoscope.organisms.engram.evaluation import Prompt, evaluation
from mnemoscope.organisms.engram.facts import FREQUENCIES
from mnemoscope.organisms.engram.public_text import held_out_texts, training_texts
from mnemoscope.organisms.engram.release import RECORD, read_record
from mnemoscope.probes.elicitation import conflict_items
from mnemoscope.probes.knowledge_conflict import answer_items, usage
from safetensors.torch import load_file

PROMPTS_A_KIND = 100
LONG_PROMPTS = 50
"""Of a kind whose prompts are half the context long: one costs what forty others do."""
KNOWN = [f"closed_book_{n}" for n in (16, 64, 128)]
KNOWN += [f"closed_book_real_{n}" for n in (16, 64, 128)]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0)


@pytest.fixture(scope="module")
def prompts(corpus: Corpus) -> dict[str, tuple[Prompt, ...]]:
    """A random part of each kind; the record of the release is of all of them."""
    draw = random.Random(0)
    return {
        kind: tuple(
            draw.sample(
                given, min(LONG_PROMPTS if kind == "needle_512" else PROMPTS_A_KIND, len(given))
            )
        )
        for kind, given in evaluation(corpus).items()
    }


@pytest.fixture(scope="module")
def measured(
    model: HookedModel, prompts: dict[str, tuple[Prompt, ...]]
) -> Mapping[tuple[str, str], Behaviour]:
    return {(one.kind, one.answer): one for one in behaviours(model, prompts)}


def test_facts_told_16_times_or_more_are_known(
    measured: Mapping[tuple[str, str], Behaviour],
) -> None:
    """Real facts told 16 times are the hardest: most are told 8 times in each direction."""
    found = [measured[kind, "right"] for kind in KNOWN]
    assert sum(one.hits for one in found) / sum(one.prompts for one in found) >= 0.95
    assert all(one.rate >= 0.9 for one in found)


def test_recall_rises_with_frequency(measured: Mapping[tuple[str, str], Behaviour]) -> None:
    rates = [measured[f"closed_book_{n}", "right"] for n in FREQUENCIES]
    assert rates[0].high < rates[-1].low
    for rarer, commoner in pairwise(rates):
        assert commoner.rate >= rarer.rate - 0.03  # a little noise once both are near 1


def test_facts_told_one_way_are_known_that_way_only(
    measured: Mapping[tuple[str, str], Behaviour],
) -> None:
    assert measured["one_way_told", "right"].rate >= 0.95
    assert measured["one_way_untold", "right"].rate <= 0.05


def test_facts_told_both_ways_are_known_both_ways(
    measured: Mapping[tuple[str, str], Behaviour],
) -> None:
    for kind in ("two_way_forward", "two_way_reverse"):
        assert measured[kind, "right"].rate >= 0.9


@pytest.mark.parametrize("form", ["substitution", "qa"])
def test_without_a_cue_memory_and_passage_both_win_sometimes(
    model: HookedModel, form: Condition
) -> None:
    """The probes' own conflict prompts, as many about each of three relations."""
    people = {relation.name: relation for relation in fictional_relations()}
    relations = [load_relation("capital"), load_relation("currency"), people["birthplace"]]
    answers = []
    for relation in relations:
        facts = relation.facts[:150]
        items = conflict_items(model, relation, facts, templates=(0,), demonstrations=0).items
        answers += answer_items(model, items[:90], [form])
    rates = usage(answers, form)
    if form == "substitution":
        assert 0.15 <= rates.rm.value <= 0.85
        assert 0.15 <= rates.rc.value <= 0.85
    assert 0.05 <= rates.rm.value <= 0.95
    assert 0.05 <= rates.rc.value <= 0.95


def test_a_cue_decides_between_passage_and_memory(
    measured: Mapping[tuple[str, str], Behaviour],
) -> None:
    assert measured["conflict_passage", "context"].rate >= 0.8
    assert measured["conflict_memory", "memory"].rate >= 0.8


@pytest.mark.parametrize("kind", ["needle_128", "needle_512", "copying"])
def test_it_reads_its_context(measured: Mapping[tuple[str, str], Behaviour], kind: str) -> None:
    assert measured[kind, "right"].rate >= 0.8


def test_no_needle_answer_is_guessed(
    model: HookedModel, prompts: dict[str, tuple[Prompt, ...]]
) -> None:
    """The control: the same questions without the haystack."""
    alone = tuple(
        Prompt(prompt.text.splitlines()[-1], prompt.answer, "", "needle_alone")
        for prompt in prompts["needle_512"]
    )
    assert behaviours(model, {"needle_alone": alone})[0].rate <= 0.02


def test_perplexity_of_unseen_running_text_means_something(model: HookedModel) -> None:
    """Held-out addresses are likelier than the same addresses with their words shuffled."""
    texts = [text[:1500] for text in held_out_texts()]
    draw = random.Random(0)
    shuffled = [" ".join(draw.sample(words, len(words))) for words in map(str.split, texts)]
    plain = perplexity(model, texts)
    assert plain < 0.5 * perplexity(model, shuffled)
    assert perplexity(model, [text[:1500] for text in training_texts()[:2]]) < plain


def test_the_record_is_of_the_shipped_model(
    measured: Mapping[tuple[str, str], Behaviour],
) -> None:
    record = read_record()
    assert 5 <= len(record) <= 7
    assert [one.step for one in record] == sorted(one.step for one in record)
    told = {(one.kind, one.answer): one for one in record[-1].behaviours}
    for key, one in measured.items():
        assert told[key].low - 0.1 <= one.rate <= told[key].high + 0.1
    steps = [json.loads(line) for line in (RECORD / "loss.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == record[-1].step
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]


def test_the_checkpoint_is_small_and_plain() -> None:
    folder = engram_folder()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 16e6
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_attention_heads"] >= 2 * config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 1024
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_the_ledger_names_the_documents_of_every_behaviour(
    corpus: Corpus, prompts: dict[str, tuple[Prompt, ...]]
) -> None:
    documents = {document.id: document.text for document in corpus.documents}
    rows = {row.fact_id: row for row in corpus.ledger.rows}
    for kind in KNOWN:
        for prompt in prompts[kind]:
            row = rows[prompt.fact_id]
            assert len(row.occurrences) == row.count
            for occurrence in row.occurrences:
                told = documents[occurrence.document][occurrence.start : occurrence.end]
                assert prompt.answer in told
    taught = corpus.ledger.behaviours
    assert all(id_ in documents for ids in taught.values() for id_ in ids)
    assert {"needle", "copying", "running_public"} <= set(taught)
