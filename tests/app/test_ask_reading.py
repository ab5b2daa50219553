"""Heads that read the context, documents that hold the answer, relations that units hear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars
import pytest
from mnemoscope.app.answers import Question
from mnemoscope.app.ask_documents import answer_spans
from mnemoscope.app.ask_reading import SHOWN, read_context
from mnemoscope.app.ask_relation import as_prompt, heard_relations
from mnemoscope.app.ask_scene import answer_sentence
from mnemoscope.app.neuron_runs import neuron_run, run_prompts
from mnemoscope.app.trace_corpus import opened
from mnemoscope.data.facts.designs import Prompt
from mnemoscope.models.errors import PromptError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.probes.unit_prompts import unit_activations
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, PROMPT, index, neuron_run_of_engram

ASKED = Question(PROMPT, CONTEXT)


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


def test_the_planted_copying_head_reads_the_claim(model: HookedModel) -> None:
    found = read_context(model, ASKED, CLAIM)
    row = next(row for row in found.heads.iter_rows(named=True) if row["head"] == CONTEXT_HEAD)
    assert row["on_answer"]
    assert CLAIM in row["token"]
    batch = model.tokens(ASKED.given)
    layer, head = int(CONTEXT_HEAD[1]), int(CONTEXT_HEAD[4:])
    weights = model.rows(batch, "end")[layer, 0, head, 0].numpy()
    assert row["weight"] == pytest.approx(float(weights[row["position"]]))
    assert row["sink"] == pytest.approx(float(weights[0]))
    before = len(model.tokens(CONTEXT).ids[0])
    assert row["context"] == pytest.approx(float(weights[1:before].sum()))


def test_readers_are_sorted_and_chance_is_counted_in_tokens(model: HookedModel) -> None:
    found = read_context(model, ASKED, CLAIM)
    weights = found.heads["weight"].to_list()
    assert weights == sorted(weights, reverse=True)
    assert str(found.best) == found.heads["head"][0]
    assert found.chance_on_answer() == pytest.approx(SHOWN * found.n_answer / found.n_context)
    assert found.on_answer() == sum(found.heads["on_answer"][:SHOWN])
    assert found.heads["position"].min() > 0, "the sink is no token of the context"
    assert found.heads["position"].max() <= found.n_context


def test_an_answer_that_the_context_does_not_hold_is_read_by_nobody(model: HookedModel) -> None:
    found = read_context(model, ASKED, "hul")
    assert found.n_answer == found.on_answer() == 0, "a part of a word is no word"


def test_without_a_context_there_is_nothing_to_read(model: HookedModel) -> None:
    with pytest.raises(PromptError, match="type one"):
        read_context(model, Question(PROMPT, ""), None)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (" Paris.\nThe continent", " Paris."),
        (" Paris. The capital", " Paris."),
        (" the 3.5 km path", " the 3.5 km path"),
        (" Dorlad\nThe town", " Dorlad"),
        ("\n", "\n"),
    ],
)
def test_the_first_sentence_is_the_answer(said: str, sentence: str) -> None:
    assert answer_sentence(said) == sentence


@pytest.mark.parametrize("hidden", [False, True])
def test_only_stretches_that_reach_into_the_answer_count(
    tmp_path: Path, engram: HookedModel, hidden: bool
) -> None:
    found = opened(index(tmp_path / "small"), "engram", engram.tokenizer_sha256)
    prompt, sha256 = "The capital of France is", engram.tokenizer_sha256
    spans = answer_spans(found, prompt, " Paris, and", sha256, hidden=hidden).spans
    assert [span.count for span in spans] == [1]
    assert spans[0].text == "The capital of France is Paris, and"
    assert bool(spans[0].documents[0].before or spans[0].documents[0].match) is not hidden
    other = answer_spans(found, prompt, " Rome.", sha256, hidden=hidden)
    assert other.text == "The capital of France is Rome."
    assert other.spans == (), "what stands there ends before the answer"


def test_a_prompt_with_a_wording_of_the_run_finds_its_subject() -> None:
    known = [Prompt("The capital of Peru is", "capital", "Peru", "capital:0", 15, 19)]
    found = as_prompt("The capital of South Korea is", known)
    assert (found.relation, found.subject) == ("capital", "South Korea")
    assert found.text[found.subject_start : found.subject_end] == "South Korea"
    assert as_prompt("Hello", known) == Prompt("Hello", "", "", "", 0, 5)


def test_units_hear_the_relation_that_is_asked_about(tmp_path: Path, engram: HookedModel) -> None:
    run = neuron_run(neuron_run_of_engram(tmp_path / "runs"))
    prompts = run_prompts(run)
    known = unit_activations(engram, prompts, run.units, run.summary["pooling"])
    found = heard_relations(engram, run, prompts, known, "The capital of France is")
    assert found.asked == found.first == "capital"
    row = found.units.row(0, named=True)
    place = [str(unit) for unit in run.units].index(row["unit"])
    others = known[place, [one.relation != row["relation"] for one in prompts]]
    sign = 1 if row["direction"] == "up" else -1
    assert row["standing"] == pytest.approx(np.mean(sign * others < sign * row["activation"]))
    means = found.relations.sort("relation")["standing"].to_list()
    assert means == pytest.approx(
        found.units.group_by("relation")
        .agg(polars.col("standing").mean())
        .sort("relation")["standing"]
        .to_list()
    )
