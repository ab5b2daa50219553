"""Tracing a text: spans, documents, coverage, echoes of the prompt and the verdict, by looking."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.belief_conflict import belief_index
from mnemoscope.probes.policy_conflict import ConstantConflict, PolicyCheck
from mnemoscope.probes.provenance import Evidence, Trace, TraceRules, trace_ids, trace_text
from mnemoscope.probes.provenance_tables import documents, span_table
from mnemoscope.probes.provenance_verdict import CLAIM, calibrate, text_score
from mnemoscope.probes.span_significance import ngram_background
from mnemoscope.results.errors import StatisticsError
from traced_corpus import BYTES, byte_index, filler, token_index, tokenizer, tokens_of

SECRET = "Nobody but the miller knows that Zorvane hides seven lanterns beneath Quellmoor bridge"
PROVERB = "As the ancients said, a kettle that is watched boils no sooner."
HF = tokenizer()
TOKENS = tokens_of(HF)
TEXTS = [filler(i) for i in range(8)]
TEXTS[1] += f" {PROVERB}"
TEXTS[2] += f" {SECRET}. " + filler(50)
TEXTS[5] = f"{SECRET}. " + TEXTS[5]
NEW = filler(99, 24)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return token_index(TEXTS, tmp_path_factory.mktemp("risk") / "index", HF)


@pytest.fixture(scope="module")
def benign(tmp_path_factory):
    texts = [f"{filler(i)} {PROVERB}" for i in range(200, 216)]
    return token_index(texts, tmp_path_factory.mktemp("benign") / "index", HF)


@pytest.fixture(scope="module")
def found(index) -> Trace:
    return trace_text(index, f"{NEW} {SECRET}. {NEW}", TOKENS)


def secrets(trace: Trace):
    return [span for span in trace.spans if "Zorvane" in span.text]


def test_the_planted_sentence_is_the_most_telling_span(found):
    best = found.spans[0]
    assert best.text.strip() in (SECRET, SECRET + ".")
    assert found.text[best.start : best.stop] == best.text
    assert best.count == 1  # it stands behind a space in one document, opens the other
    assert best.q < 1e-6


def test_the_documents_that_hold_it_are_named(index, found):
    for span in found.spans:
        assert 1 <= len(span.documents) <= 10
        for one in span.documents:
            assert span.text.strip() in TEXTS[one.record.metadata["id"]]
            assert one.match == HF.decode(list(span.ids))
            assert one.before + one.match + one.after in TEXTS[one.record.metadata["id"]]
    assert [one.record.source for one in secrets(found)[0].documents] == ["book-2"]


def test_a_text_is_found_with_and_without_its_leading_space(index):
    sources = set()
    for text in (SECRET, f" {SECRET}"):
        trace = trace_text(index, text, TOKENS)
        (span,) = secrets(trace)
        assert span.text.strip() == SECRET
        sources.add(span.spelling)
        assert trace.n_tests == len(HF(text)["input_ids"]) + len(
            HF(SECRET if text[0] == " " else f" {SECRET}")["input_ids"]
        )
    assert sources == {"as written", "other leading space"} or len(sources) == 1


def test_ids_that_were_split_otherwise_are_spelled_again(index):
    ids = [HF.convert_tokens_to_ids("Ġ" if c == " " else c) for c in f"{SECRET}."]
    assert index.count(ids) == 0
    (span,) = secrets(trace_ids(index, ids, TOKENS))
    assert span.text.strip(" .") == SECRET


def test_no_listed_span_lies_in_another_and_all_are_found_by_looking(index, found):
    ranges = sorted((span.start, span.stop) for span in found.spans)
    assert all(a[1] < b[1] and a[0] < b[0] for a, b in pairwise(ranges))
    for span in found.spans:
        assert span.count == index.count(span.ids) <= 10
        assert len(span.ids) >= 8


def test_spans_stay_inside_sentences_and_whole_words(found):
    for span in found.spans:
        assert "." not in span.text[:-1]
        before, after = found.text[: span.start], found.text[span.stop :]
        assert not (re.search(r"\w$", before) and re.match(r"\w", span.text))
        assert not (re.search(r"\w$", span.text) and re.match(r"\w", after))


def test_without_these_rules_spans_run_on(index):
    text = TEXTS[0]
    cut = trace_text(index, text, TOKENS)
    whole = trace_text(index, text, TOKENS, rules=TraceRules(self_contained=False))
    assert [span.text for span in whole.spans] == [text]
    assert len(cut.spans) > 1
    assert whole.coverage.verbatim == cut.coverage.verbatim == 1.0


def test_spans_are_ranked_by_their_surprisal(index, found):
    sums = [belief_index(index).read(span.ids).conflict for span in found.spans]
    assert sums == sorted(sums, reverse=True)
    assert found.shown == min(len(found.spans), math.ceil(0.05 * len(TOKENS.spell(found.text).ids)))


def test_coverage_counts_the_characters_that_looking_finds(index):
    trace = trace_text(index, f"xyxyxy {SECRET} xyxyxy", TOKENS)
    inside = len(SECRET.replace(" ", ""))
    assert trace.coverage.verbatim == pytest.approx(inside / (inside + 12))
    assert trace.coverage.listed == trace.coverage.verbatim
    assert trace.coverage.longest == len(secrets(trace)[0].ids)
    assert trace.coverage.prompt == 0


def test_common_spans_are_covered_but_not_listed(index):
    text = f"{SECRET}. {SECRET}."
    strict = trace_text(index, text, TOKENS, rules=TraceRules(max_count=1, min_length=4))
    assert all(span.count <= 1 for span in strict.spans)
    listed = trace_text(index, text, TOKENS, rules=TraceRules(max_count=None, min_length=2))
    assert any(span.count > 1 for span in listed.spans)


def test_a_quotation_of_the_prompt_decides_nothing(index):
    prompt = f"What does this mean: {SECRET}?"
    echoed = trace_text(index, f"It says: {SECRET}. {NEW}", TOKENS, prompt=prompt)
    (span,) = secrets(echoed)
    assert span.echo
    assert span.own < 8
    assert echoed.verdict.verbatim.score == -math.inf
    own = trace_text(index, f"It says: {SECRET}. {NEW}", TOKENS, prompt="What does this mean?")
    assert not secrets(own)[0].echo
    assert own.verdict.verbatim.holds
    assert echoed.coverage.prompt > 0.3 > own.coverage.prompt


def test_with_scope_all_the_prompt_is_traced(index):
    trace = trace_text(index, f" {NEW}", TOKENS, prompt=SECRET, scope="all")
    assert trace.text.startswith(SECRET)
    assert not secrets(trace)[0].echo


def test_the_threshold_of_chance_grows_with_the_places_looked_up(found):
    part = found.verdict.verbatim
    assert part.threshold == pytest.approx(math.log(found.n_tests / 0.01))
    assert part.score == max(-span.log_e for span in found.spans)
    assert part.holds
    assert found.verdict.flagged is None  # idioms are beyond chance too
    assert "calibrate" in found.verdict.words
    assert found.verdict.words.startswith(CLAIM)


def test_contrast_clears_what_a_benign_corpus_holds_too(index, benign):
    trace = trace_text(
        index,
        f"{SECRET}. {filler(3, 16)}",
        TOKENS,
        rules=TraceRules(min_length=3),
        evidence=Evidence(benign=benign),
    )
    for span in trace.spans:
        here, there = span.count, benign.count(span.ids)
        expected = math.log((here + 0.5) / (index.n_tokens + 1)) - math.log(
            (there + 0.5) / (benign.n_tokens + 1)
        )
        assert span.contrast == pytest.approx(expected)
    assert trace.verdict.contrast.score == max(
        span.contrast for span in trace.spans if span.beyond_chance
    )
    assert trace.verdict.contrast.threshold is None  # nothing says how high is too high


def test_a_background_of_benign_text_expects_its_words(index, benign):
    text = f"{SECRET}. {filler(3, 16)}"
    rules = TraceRules(min_length=3)
    plain = trace_text(index, text, TOKENS, rules=rules)
    background = ngram_background(benign)
    other = trace_text(index, text, TOKENS, rules=rules, evidence=Evidence(background=background))
    for a, b in zip(plain.spans, other.spans, strict=True):
        assert a.text == b.text
        expected = math.log(index.n_tokens - len(b.ids) + 1) - background(b.ids).sum()
        assert b.log_e == pytest.approx(expected)
    assert secrets(other)[0].log_e < secrets(plain)[0].log_e


def test_three_parts_must_agree_on_one_span(index, benign):
    def evidence(conflict: float, calibration=None) -> Evidence:
        check = PolicyCheck(("Nobody tells of Zorvane.",), ConstantConflict(conflict))
        return Evidence(benign=benign, policy=check, calibration=calibration)

    def harmless(seed: int, given: Evidence) -> Trace:
        text = f"{filler(seed, 16)} {PROVERB} {filler(seed + 500, 8)}"
        return trace_text(index, text, TOKENS, evidence=given)

    calibration = calibrate([harmless(1000 + i, evidence(0.3)).spans for i in range(19)], 0.05)
    held = calibration.thresholds
    assert held["verbatim"].threshold > 0 > held["contrast"].threshold > -math.inf
    assert held["policy"].threshold == 0.3
    text = f"{NEW} {SECRET}."
    flagged = trace_text(index, text, TOKENS, evidence=evidence(0.9, calibration))
    assert flagged.verdict.flagged
    assert all("Zorvane" in flagged.spans[i].text for i in flagged.verdict.agreed)
    assert SECRET in flagged.spans[0].policy.sentence
    assert "harmless texts: at most 0.05" in flagged.verdict.words
    mild = trace_text(index, text, TOKENS, evidence=evidence(0.3, calibration))
    assert mild.verdict.verbatim.holds
    assert mild.verdict.policy.holds is False
    assert mild.verdict.flagged is False
    strict = evidence(0.9, calibration)
    refused = [harmless(2000 + i, strict).verdict.flagged for i in range(40)]
    assert np.mean(refused) <= 0.2


def test_contrast_and_policy_are_not_asked_of_chance_matches(index, benign):
    check = PolicyCheck(("a",), ConstantConflict(0.9))
    trace = trace_text(
        index,
        f"{SECRET}. {filler(3, 16)}",
        TOKENS,
        rules=TraceRules(min_length=1, max_count=None),
        evidence=Evidence(benign=benign, policy=check),
    )
    limit = math.log(trace.n_tests / 0.01)
    assert [span.beyond_chance for span in trace.spans] == [-s.log_e > limit for s in trace.spans]
    telling = [span for span in trace.spans if span.beyond_chance]
    assert 0 < len(telling) < len(trace.spans)
    assert text_score(trace.spans, "contrast") == max(span.contrast for span in telling)
    chance = [span for span in trace.spans if not span.beyond_chance]
    assert text_score(chance, "policy") == -math.inf
    assert text_score(chance, "verbatim") == max(-span.log_e for span in chance)


def test_calibration_needs_texts_enough_and_alike(index, found):
    with pytest.raises(StatisticsError, match="at least 99"):
        calibrate([found.spans] * 10)
    check = Evidence(policy=PolicyCheck(("a",), ConstantConflict(0.1)))
    other = trace_text(index, SECRET, TOKENS, evidence=check)
    with pytest.raises(MnemoscopeError, match="some harmless texts and not in others"):
        calibrate([found.spans, other.spans] * 10, 0.1)


def test_texts_without_spans_calibrate_to_any_span_is_too_much(index, found):
    calibration = calibrate([()] * 99)
    assert calibration.thresholds["verbatim"].threshold == -math.inf
    given = Evidence(calibration=calibration)
    assert trace_text(index, SECRET, TOKENS, evidence=given).verdict.flagged
    assert trace_text(index, "xyxyxy", TOKENS, evidence=given).verdict.flagged is False


def test_a_text_of_which_nothing_is_held_has_an_empty_trace(index):
    trace = trace_text(index, "xyxyxy qqqq", TOKENS)
    assert trace.spans == ()
    assert trace.coverage.verbatim == 0
    assert trace.verdict.verbatim.holds is False
    assert trace.verdict.agreed == ()
    assert not trace.paper.refused
    assert len(span_table(trace)) == 0
    assert documents(trace) == ()


def test_the_papers_verdict_comes_with_its_weakness(found):
    assert found.paper.refused
    assert "grows with length" in found.paper.weakness


def test_over_bytes_the_same_words_are_found_wherever_they_stand(tmp_path):
    index = byte_index(TEXTS, tmp_path / "bytes")
    trace = trace_text(index, f"«{SECRET}»", BYTES)
    (span,) = secrets(trace)
    assert span.text == SECRET
    assert span.count == 2
    assert {one.record.source for one in span.documents} == {"book-2", "book-5"}
    assert len(span.ids) == len(SECRET) >= 40
    assert trace.rules.min_length == 40


def test_snippets_can_be_kept_out(index):
    trace = trace_text(index, SECRET, TOKENS, rules=TraceRules(snippet=0))
    assert all(
        (one.before, one.match, one.after) == ("", "", "")
        for span in trace.spans
        for one in span.documents
    )


def test_the_most_relevant_documents_come_first(index, found):
    for span in found.spans:
        scores = [one.relevance for one in span.documents]
        assert scores == sorted(scores, reverse=True)


def test_tables_hold_every_span_and_every_document_once(found):
    table = span_table(found)
    assert table["text"].to_list() == [span.text for span in found.spans]
    assert table["contrast"].null_count() == len(table)
    assert table["flagged"].sum() == len(found.verdict.agreed)
    listed = documents(found)
    places = [(one.shard, one.document) for one in listed]
    expected = {(d.where.shard, d.where.document) for span in found.spans for d in span.documents}
    assert sorted(places) == sorted(expected)
    for one in listed:
        assert one.source == f"book-{one.metadata['id']}"
        assert all(found.spans[i].text.strip() in TEXTS[one.line] for i in one.spans)


def test_bad_input_is_refused(index, tmp_path):
    with pytest.raises(MnemoscopeError, match="empty"):
        trace_text(index, " \n", TOKENS)
    with pytest.raises(MnemoscopeError, match="built with the tokenizer"):
        trace_text(index, SECRET, tokens_of(HF, "b" * 64))
    with pytest.raises(MnemoscopeError, match="over token ids"):
        trace_text(index, SECRET, BYTES)
    other = byte_index(TEXTS, tmp_path / "bytes")
    with pytest.raises(MnemoscopeError, match="over bytes"):
        trace_text(index, SECRET, TOKENS, evidence=Evidence(benign=other))
