"""TraceShield: what it refuses is what a search through the documents says it must."""

import numpy as np
import pytest
import torch
from corpus_truth import Truth, index_of
from families import tiny
from mnemoscope.data.corpus.span_scores import BeliefConflict, RiskRule, smoothed_surprisals
from mnemoscope.interventions.trace_shield import Finding, ShieldStop, TraceShield
from mnemoscope.models.errors import MnemoscopeError
from transformers import StoppingCriteriaList

SECRET = list(range(10, 20))
DOCUMENTS = [[3, 4, *SECRET, 5], [6, 7, 8, 6, 7, 8], [9]]


def length_score(ids, length, count):
    return float(length)


def shield(documents=DOCUMENTS, **rule):
    settings = {"threshold": 0.0, "min_length": 4, "max_count": None, **rule}
    return TraceShield(index_of([documents]), RiskRule(length_score, **settings))


def test_a_text_that_holds_a_risky_span_is_refused():
    report = shield().judge([1, 2, *SECRET, 30])
    assert report.refused
    assert report.findings == (Finding(2, 12, 1, 10.0),)
    (places,) = report.places
    assert [(one.document, one.offset) for one in places] == [(0, 2)]


def test_a_text_without_one_is_not():
    assert not shield().judge([1, 2, 12, 11, 10, 30]).refused


def test_a_span_shorter_than_the_rule_asks_is_nothing():
    assert not shield().judge([1, *SECRET[:3], 2]).refused
    assert shield().judge([1, *SECRET[:4], 2]).refused


def test_a_span_that_is_common_is_nothing():
    common = [[6, 7, 8, 9], [6, 7, 8, 9]]
    assert shield(common, max_count=2).judge([6, 7, 8, 9]).refused
    assert not shield(common, max_count=1).judge([6, 7, 8, 9]).refused


def test_the_prompt_is_not_judged():
    assert not shield().judge([*SECRET, 1], prompt_length=10).refused


def test_a_span_begun_in_the_prompt_counts_from_the_answer():
    text = [1, *SECRET]
    assert shield().judge(text, prompt_length=4).findings == (Finding(0, 7, 1, 7.0),)
    assert not shield().judge(text, prompt_length=8).refused


def test_no_span_runs_over_two_documents():
    assert not shield(min_length=5).judge([6, 7, 8, 6, 9]).refused
    assert not shield([[1, 2, 3], [4, 5, 6]]).judge([1, 2, 3, 4, 5, 6]).refused


def test_the_report_says_verbatim_occurrence_not_cause_and_quotes_nothing():
    words = shield().judge([2, *SECRET]).describe()
    assert "Verbatim occurrence, not cause" in words
    assert "1 verbatim occurrences" in words
    assert "shard 0 document 0 token 2" in words


def brute(truth, text, rule):
    """Longest match ending at each token; those the rule forbids, but for ones that grow on."""
    found = []
    for end in range(1, len(text) + 1):
        n = truth.longest_suffix(text[:end])
        if n >= rule.min_length and rule.forbids(text[:end], n, truth.count(text[end - n : end])):
            if found and found[-1][0] == end - n:
                found.pop()
            found.append((end - n, end))
    return found


@pytest.mark.parametrize("kernels", ["numba", "numpy"])
@pytest.mark.parametrize("alphabet", [2, 5])
def test_findings_are_those_of_a_search_through_all_documents(kernels, alphabet):
    rng = np.random.default_rng(alphabet)
    shards = [[rng.integers(0, alphabet, n).tolist() for n in (0, 9, 30, 25)] for _ in range(2)]
    index, truth = index_of(shards, kernels=kernels), Truth(tuple(shards))
    surprisals = smoothed_surprisals(index.unigram_counts)
    rule = RiskRule(BeliefConflict(surprisals), 5.0, min_length=3, max_count=3)
    for n in (1, 3, 25, 25, 25, 25):
        text = rng.integers(0, alphabet, n).tolist()
        report = TraceShield(index, rule).judge(text)
        assert [(one.start, one.stop) for one in report.findings] == brute(truth, text, rule)
        assert report == TraceShield(index, rule).stream().read(text).report()


def test_a_stream_gives_the_verdict_of_the_finished_text_at_every_token():
    text, guard = [1, 2, *SECRET, 30, *SECRET[2:9], 4], shield()
    stream = guard.stream()
    for n, token in enumerate(text, 1):
        stream = stream.read([token])
        assert stream.report() == guard.judge(text[:n])


def test_a_stream_refuses_at_the_token_that_completes_the_shortest_risky_span():
    stream, refused = shield().stream(), []
    for token in [1, 2, *SECRET]:
        stream = stream.read([token])
        refused.append(stream.refused)
    assert refused.index(True) == 5


def test_a_stream_can_go_on_in_two_ways():
    before = shield().stream().read(SECRET[:3])
    assert before.read([SECRET[3]]).refused
    assert not before.read([50]).refused
    assert not before.refused


def test_what_is_released_never_holds_a_token_of_a_risky_span():
    text, stream, released = [1, 2, 10, 11, 30, *SECRET, 31, 32], shield().stream(), []
    for token in text:
        stream = stream.read([token])
        released.append(stream.released)
    assert released == sorted(released)
    assert released[4] == 5  # 10, 11 was held back, and let go when 30 broke it off
    assert released[-1] == 5  # the secret begins there


def test_the_separators_id_is_one_more_unknown_token():
    guard = TraceShield(index_of([DOCUMENTS], width=1), shield().rule)
    assert not guard.judge([3, 255, 4]).refused
    assert guard.judge([255, *SECRET]).findings[0].start == 1


class Parrot:
    """A model that says what it was told to, whatever it is given."""

    def __init__(self, text):
        self.module, self.text = tiny("llama"), text

    def generate(self, prompt, **kinds):
        script, first = self.text, prompt.shape[1]

        def say(ids, scores):
            forced = torch.full_like(scores, -torch.inf)
            for row in range(len(ids)):
                forced[row, script[row][ids.shape[1] - first]] = 0.0
            return forced

        return self.module.generate(
            prompt, max_new_tokens=len(script[0]), do_sample=False, logits_processor=[say], **kinds
        )


def test_a_generation_stops_at_the_end_of_a_risky_span():
    prompt = torch.tensor([SECRET[:5]])
    stop = ShieldStop(shield(), prompt_length=5)
    out = Parrot([[30, *SECRET, 31]]).generate(
        prompt, stopping_criteria=StoppingCriteriaList([stop])
    )
    assert out[0, 5:].tolist() == [30, *SECRET[:4]]
    assert stop.streams[0].findings == (Finding(1, 5, 1, 4.0),)


def test_rows_stop_on_their_own():
    stop = ShieldStop(shield(), prompt_length=2)
    texts = [[30, *SECRET[:5]], [31, 32, 33, 34, 35, 36]]
    out = Parrot(texts).generate(
        torch.tensor([[3, 4], [3, 4]]),
        stopping_criteria=StoppingCriteriaList([stop]),
        pad_token_id=0,
    )
    assert out[0, 2:].tolist() == [30, *SECRET[:4], 0]
    assert out[1, 2:].tolist() == texts[1]


def test_a_token_can_be_several_ids_of_the_index():
    """Tokens of three letters over an index of letters: the span ends inside a token."""
    stop = ShieldStop(
        shield(), prompt_length=0, units=lambda token: range(3 * token, 3 * token + 3)
    )
    assert stop(torch.tensor([[4, 5]]), None).tolist() == [True]  # 12 13 14, 15 16 17
    assert stop.streams[0].findings[0].stop == 6
    assert stop(torch.tensor([[3, 4]]), None).tolist() == [True]  # 9, 10 ... 14
    assert stop.streams[0].findings == (Finding(1, 6, 1, 5.0),)
    assert stop(torch.tensor([[6, 7]]), None).tolist() == [False]  # 18 19 20 21 22 23


def test_rows_shorter_than_the_prompt_are_refused():
    with pytest.raises(MnemoscopeError, match="fewer than the prompt's 5"):
        ShieldStop(shield(), prompt_length=5)(torch.zeros(1, 3, dtype=torch.long), None)


def test_an_empty_text_is_not_refused():
    assert not shield().judge([]).refused
    assert not shield().judge(SECRET, prompt_length=10).refused
