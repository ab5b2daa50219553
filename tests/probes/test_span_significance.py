"""E-values hold on corpora drawn from their null; q over all places; backgrounds are models."""

import math

import numpy as np
import pytest
import torch
from corpus_truth import index_of
from families import tiny
from mnemoscope.data.corpus.span_scores import null_surprisals
from mnemoscope.models import wrap
from mnemoscope.probes.span_significance import (
    chance_collisions,
    model_background,
    ngram_background,
    significances,
    unigram_background,
)


def draws(seed: int, n: int, vocab: int = 40) -> list[int]:
    """Independent tokens with shares that fall like 1 / rank."""
    shares = 1 / np.arange(1, vocab + 1)
    return np.random.default_rng(seed).choice(vocab, n, p=shares / shares.sum()).tolist()


CORPUS = index_of([[draws(0, 4000)]], kernels="numpy")


def test_e_is_the_number_of_places_times_the_probability():
    share = CORPUS.unigram_counts / CORPUS.unigram_counts.sum()
    found = significances([[3, 1]], CORPUS.n_tokens, 10, unigram_background(CORPUS))
    expected = math.log((CORPUS.n_tokens - 1) * share[3] * share[1])
    assert found.log_e[0] == pytest.approx(expected)
    assert found.p[0] == min(1.0, math.exp(expected)) == 1.0


def test_q_counts_the_places_that_matched_nothing():
    span = [38, 39, 37, 36, 35]
    few = significances([span], CORPUS.n_tokens, 10, unigram_background(CORPUS))
    many = significances([span], CORPUS.n_tokens, 1000, unigram_background(CORPUS))
    assert few.p[0] == many.p[0] < 0.01
    assert few.q[0] == pytest.approx(10 * few.p[0])
    assert many.q[0] == pytest.approx(min(1.0, 1000 * many.p[0]))


def test_no_spans_have_no_significances():
    assert len(significances([], 100, 5, unigram_background(CORPUS)).q) == 0


def test_longest_matches_of_chance_texts_have_valid_p_values():
    # The longest match is chosen by looking: its p must not be small more often than it says.
    text = np.array(draws(1, 3000))
    lengths = CORPUS.matching_statistics(text)
    spans = [text[i : i + n] for i, n in enumerate(lengths.tolist()) if n]
    p = significances(spans, CORPUS.n_tokens, len(text), unigram_background(CORPUS)).p
    for level in (0.5, 0.2, 0.05):
        noise = 4 * math.sqrt(level / len(p))
        assert (p <= level).mean() <= level + noise


def test_shuffled_tokens_collide_no_more_than_the_bound():
    table = chance_collisions(CORPUS, draws(2, 60_000), lengths=(2, 3), edges=(4, 6, 8, 10))
    assert table["spans"].sum() == 30_000 + 20_000
    for row in table.iter_rows(named=True):
        noise = 4 * math.sqrt(max(row["predicted"], 1e-3) / row["spans"]) + 1e-9
        assert row["observed"] <= row["bound"] + noise
        # Where the null is true the prediction itself holds.
        assert row["observed"] == pytest.approx(row["predicted"], abs=noise + 0.05)
        assert row["predicted"] <= row["bound"] + 1e-12


def test_a_planted_repetition_is_far_beyond_chance():
    secret = draws(5, 20)
    index = index_of([[draws(0, 2000) + secret + draws(6, 2000)]], kernels="numpy")
    found = significances([secret], index.n_tokens, 100, unigram_background(index))
    assert found.q[0] < 1e-6


def test_an_idiom_of_the_benign_corpus_surprises_less():
    idiom = [30, 31, 32, 33, 34, 35]
    benign = index_of([[draws(7, 500) + idiom for _ in range(6)]][0:1], kernels="numpy")
    plain = unigram_background(benign)(idiom).sum()
    assert ngram_background(benign)(idiom).sum() < plain / 2


def test_a_large_vocabulary_does_not_make_chance_look_significant():
    surprisals = null_surprisals(np.array([3, 1, *[0] * 60_000]))
    np.testing.assert_allclose(np.exp(-surprisals[:3]), [0.75, 0.25, 0.125])
    with pytest.raises(ValueError, match="no tokens"):
        null_surprisals(np.zeros(3, dtype=np.int64))


def test_ngram_shares_and_the_documents_end_sum_to_one():
    benign = index_of([[draws(8, 300, 6), draws(9, 200, 6)]], kernels="numpy")
    background = ngram_background(benign, order=3, prior=2.0)
    context = [1, 0]
    total = sum(math.exp(-background([*context, token])[-1]) for token in range(6))
    # By hand: what is missing is the chance that a document ends behind the context.
    pair, single = benign.count(context), benign.count([0])
    ends = pair - benign.next_tokens(context).counts.sum()
    end_1 = (single - benign.next_tokens([0]).counts.sum()) / (single + 2.0)
    end_2 = (ends + 2.0 * end_1) / (pair + 2.0)
    assert total == pytest.approx(1 - end_2)


def test_a_background_of_order_one_is_the_unigram_one():
    span = draws(10, 12)
    np.testing.assert_allclose(
        ngram_background(CORPUS, order=1)(span), unigram_background(CORPUS)(span)
    )
    with pytest.raises(ValueError, match="order"):
        ngram_background(CORPUS, order=0)


def test_a_models_own_surprisals_are_its_log_probabilities():
    model = wrap(tiny("llama", 0, torch.float64), None, name="tiny")
    span = [5, 9, 2, 7]
    logits = model.module(torch.tensor([span])).logits[0].log_softmax(-1)
    expected = [math.log(logits.shape[-1]), *(-logits[i, span[i + 1]].item() for i in range(3))]
    np.testing.assert_allclose(model_background(model)(span), expected, atol=1e-9)
    first = np.arange(logits.shape[-1], dtype=np.float64)
    assert model_background(model, first)(span)[0] == 5.0
