"""QRHead and CoRe: documents with known spans, scores by hand, a planted head that must win."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.models import HeadId, TokenSpan, wrap
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.organisms.planted_retrieval import (
    LOCATE,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.document_prompts import DocumentPrompt, needle_documents, text_documents
from mnemoscope.probes.query_heads import (
    TAU,
    DocumentAttention,
    attention_to,
    core_share,
    document_attention,
    measure_query_heads,
    ndcg,
    prompt_scores,
)
from mnemoscope.results.run_folder import open_run
from plain import model_of
from sklearn.metrics import ndcg_score

ASK = DocumentPrompt(
    unit="tiny",
    context=tuple(range(3, 31)),
    spans=(TokenSpan(2, 10), TokenSpan(10, 11), TokenSpan(12, 28)),
    gold=(1,),
    hard=(2,),
    query=(40, 9, 33),
    null_query=(50, 51),
)


def by_hand(rows: np.ndarray, null: np.ndarray) -> tuple[list[float], list[float]]:
    """Plain and calibrated sums of one head's mean rows, document by document."""
    plain, calibrated = [], []
    for span in ASK.spans:
        here = slice(span.start, span.stop)
        plain.append(float(rows[here].sum()))
        difference = rows[here] - null[here]
        spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
        calibrated.append(float(difference[difference >= difference.mean() - 2 * spread].sum()))
    return plain, calibrated


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_attention_to_documents_is_the_sum_over_their_tokens(family: str) -> None:
    # Gemma-2's odd layer alone sees everything here; the others cover it.
    model = model_of(family)

    def mean_rows(suffix: tuple[int, ...]) -> np.ndarray:
        columns = torch.arange(len(suffix))[None] + len(ASK.context)
        rows = model.rows(model.batch([ASK.context + suffix]), columns)[:, 0]
        return rows.mean(2).double().numpy()

    rows, null = mean_rows(ASK.query), mean_rows(ASK.null_query)
    found = document_attention(model, ASK)
    layers = (1,) if family == "gemma2" else (0, 1, 2)
    for layer in layers:
        for head in range(4):
            plain, calibrated = by_hand(rows[layer, head], null[layer, head])
            np.testing.assert_allclose(found.plain[layer, head], plain, atol=2e-6)
            np.testing.assert_allclose(found.calibrated[layer, head], calibrated, atol=4e-6)


def test_an_outlier_counts_as_nothing() -> None:
    """Token 0 draws far less than the query that asks nothing: it is no part of the sum."""
    row = torch.full((1, 1, 20), 0.01)
    null = torch.zeros(1, 1, 20)
    null[..., 0] = 0.5
    found = attention_to(row, null, (TokenSpan(0, 10), TokenSpan(10, 20)))
    np.testing.assert_allclose(found.calibrated[0, 0], [0.09, 0.1], atol=1e-6)
    np.testing.assert_allclose(found.plain[0, 0], [0.1, 0.1], atol=1e-6)


def test_a_head_that_cannot_see_a_document_has_no_score() -> None:
    model = model_of("mistral")  # a window of six keys
    attention = document_attention(model, ASK)
    assert bool(attention.plain[..., :2].isnan().all())
    assert bool((attention.plain[..., 2] > 0).all())
    assert bool(prompt_scores(attention, ASK).isnan().all())  # gold is not in sight
    gold_in_sight = replace(ASK, gold=(2,), hard=(1,))
    gold, gain, core = prompt_scores(attention, gold_in_sight)
    assert bool(torch.isfinite(gold).all())
    assert bool((gain == 1).all())  # what it cannot see ranks last
    assert bool(core.isnan().all())  # no hard negative to contrast with


def test_ndcg_agrees_with_scikit_learn_and_shares_ties() -> None:
    scores = torch.rand(5, 30, generator=torch.Generator().manual_seed(0))
    truth = np.zeros((5, 30))
    truth[:, [3, 7, 20]] = 1
    want = [ndcg_score(t[None], s[None], k=10) for t, s in zip(truth, scores.numpy(), strict=True)]
    np.testing.assert_allclose(ndcg(scores, (3, 7, 20)), want, atol=1e-6)
    # Three equal documents: each stands at rank 2, wherever it stands in the prompt.
    tied = torch.zeros(3)
    for gold in range(3):
        assert float(ndcg(tied, (gold,))) == pytest.approx(1 / math.log2(3))


def test_core_is_a_softmax_against_hard_negatives() -> None:
    prompt = replace(ASK, spans=(*ASK.spans[:2], TokenSpan(12, 20), TokenSpan(20, 28)))
    plain = torch.tensor([0.5, 0.3, 0.2, 9.0])  # documents 0 and 3 are neither gold nor hard
    weights = [math.exp(0.3 / TAU), math.exp(0.2 / TAU)]
    want = weights[0] / sum(weights)
    assert float(core_share(plain, prompt, TAU)) == pytest.approx(want, rel=1e-5)
    assert float(core_share(plain, prompt, 1e-3)) == pytest.approx(1.0)


# -- documents ------------------------------------------------------------------------------------


def test_passages_cover_the_haystack_and_split_no_statement() -> None:
    planted = planted_retrieval_model()
    design = planted_retrieval_design(planted, lengths=(128,), rounds=1)
    prompts = needle_documents(design, planted.encode, passage=16)
    assert len(prompts) == len(design.trials)
    for trial, prompt in zip(design.trials, prompts, strict=True):
        assert prompt.unit == trial.needle_id
        assert prompt.context + prompt.query == design.prompt(trial)
        assert prompt.spans[0].start == len(design.start)
        assert prompt.spans[-1].stop == len(prompt.context)
        stops = [span.stop for span in prompt.spans[:-1]]
        assert stops == [span.start for span in prompt.spans[1:]]
        statements = [span for _, span in design.haystacks[trial.haystack].needles]
        assert not any(s.start < stop < s.stop for s in statements for stop in stops)
        (gold,) = prompt.gold
        assert prompt.spans[gold].start <= trial.needle.start
        assert trial.needle.stop <= prompt.spans[gold].stop
        holding = {
            i
            for i, span in enumerate(prompt.spans)
            if any(span.start <= s.start < span.stop for s in statements)
        }
        assert set(prompt.hard) == holding - {gold}


def test_texts_of_a_user() -> None:
    planted = planted_retrieval_model()
    texts = ["The code of one.", "The code of two."]
    names = [needle.statement for needle in planted.needles[:3]]
    asked = planted.needles[1].questions[0]
    made = text_documents(
        planted.encode, names, asked, gold=[1], instruction=texts[0], asking="\nQuestion: {query}"
    )
    for statement, span in zip(names, made.spans, strict=True):
        told = planted.decode(made.context[span.start : span.stop])
        assert told.split() == planted.decode(planted.encode(f" {statement}")[1:]).split()
    assert made.hard == (0, 2)
    assert made.unit == asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": ASK.spans[:1]}, "at least two"),
        ({"spans": (TokenSpan(2, 12), TokenSpan(10, 28))}, "one behind the other"),
        ({"spans": (TokenSpan(2, 12), TokenSpan(12, 29))}, "within the 28 tokens"),
        ({"gold": ()}, "at least one gold"),
        ({"hard": ()}, "at least one gold"),
        ({"hard": (1,)}, "each once"),
        ({"gold": (3,)}, "numbers from 0 to 2"),
        ({"null_query": ()}, "need tokens"),
    ],
)
def test_prompts_that_contradict_themselves_are_refused(change, message) -> None:
    with pytest.raises(MnemoscopeError, match=message):
        replace(ASK, **change)


# -- the whole ------------------------------------------------------------------------------------


def small(planted):
    design = planted_retrieval_design(planted, lengths=(64, 96), needles_per_haystack=3, rounds=1)
    return needle_documents(design, planted.encode, passage=12)


def test_the_planted_locate_head_is_first_by_every_score() -> None:
    planted = planted_retrieval_model()
    model = wrap(planted.module, planted.tokenizer, self_test=False)
    prompts = small(planted)
    seen: list[tuple[int, int]] = []
    scores = measure_query_heads(model, prompts, progress=lambda *at: seen.append(at))
    assert seen[-1] == (len(prompts), len(prompts))
    assert scores.units == tuple(prompt.unit for prompt in prompts)
    for values in (scores.gold, scores.core):
        assert HeadId(*divmod(int(values.mean(0).argmax()), 4)) == LOCATE
    assert scores.ndcg.mean(0)[LOCATE.layer, LOCATE.head] == 1
    # As a retriever it finds the gold document of every prompt; a head of noise does not.
    attention = [document_attention(model, prompt) for prompt in prompts[:6]]
    found = [int(a.ranking([LOCATE]).argmax()) for a in attention]
    assert found == [prompt.gold[0] for prompt in prompts[:6]]


def test_the_null_model_has_no_query_head() -> None:
    planted = null_retrieval_model()
    model = wrap(planted.module, planted.tokenizer, self_test=False)
    scores = measure_query_heads(model, small(planted))
    assert np.abs(scores.gold.mean(0)).max() < 0.05
    assert abs(scores.ndcg.mean() - scores.chance_ndcg) < 0.05
    assert scores.core.mean(0).max() < 0.4  # a third is chance


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    planted = planted_retrieval_model()
    model = wrap(planted.module, planted.tokenizer, self_test=False)
    prompts = small(planted)[:6]
    want = measure_query_heads(model, prompts)

    def pull_the_plug(done: int, total: int) -> None:
        raise KeyboardInterrupt

    config = {"documents": 6}
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "query", config) as run:
        measure_query_heads(model, prompts, run=run, progress=pull_the_plug)
    with open_run(tmp_path, "query", config) as run:
        assert len(run.done) == 1  # the first context is kept
        again = measure_query_heads(model, prompts, run=run)
        assert len(run.done) == len({prompt.context for prompt in prompts}) == 2
    np.testing.assert_array_equal(again.gold, want.gold)
    np.testing.assert_array_equal(again.core, want.core)


def test_bad_input_is_refused_before_anything_runs() -> None:
    model = model_of("llama")
    with pytest.raises(MnemoscopeError, match="give prompts"):
        measure_query_heads(model, [])
    with pytest.raises(MnemoscopeError, match="tau"):
        measure_query_heads(model, [ASK], tau=0)
    with pytest.raises(PromptError, match="reads"):
        measure_query_heads(model, [replace(ASK, query=tuple(range(3, 50)))])
    with pytest.raises(MnemoscopeError, match="another context"):
        document_attention(model, ASK, cache=model.prefill(ASK.context[1:]))
    with pytest.raises(MnemoscopeError, match="at least one head"):
        DocumentAttention(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)).ranking([])
