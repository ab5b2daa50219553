"""Needles and their design: spans by construction, exact lengths, balanced depths, no leaks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.facts.answers import leaks
from mnemoscope.data.facts.haystacks import (
    LEAD,
)
from mnemoscope.data.facts.needles import (
    Needle,
    NeedleDesign,
    Trial,
    build_needle_design,
    judge,
    make_needles,
)
from transformers import AutoTokenizer
from word_tokenizer import BOS, Words

# Machines under load are slow; that is no failure of the code under test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
ENGRAM = Path(__file__).parents[2] / "models" / "engram"


@cache
def engram() -> Any:
    return AutoTokenizer.from_pretrained(ENGRAM)


def encode(text: str) -> list[int]:
    return list(engram()(text)["input_ids"])


def decode(ids: Sequence[int]) -> str:
    return engram().decode(list(ids))


def build(needles: Sequence[Needle], lengths: Sequence[int] = (200, 400), **options: Any):
    return build_needle_design(needles, encode, decode, lengths=lengths, **options)


LITERAL = make_needles("literal", 40, seed=3)
NON_LITERAL = make_needles("non-literal", 20, seed=3)
POOL = make_needles("literal", 80, seed=3)[40:]


@cache
def design() -> NeedleDesign:
    return build((*LITERAL, *NON_LITERAL), seed=3, distractors=POOL, paraphrased=True)


def plain(made: NeedleDesign) -> list[Trial]:
    return [trial for trial in made.trials if trial.question == 0]


# -- haystacks as tokens -------------------------------------------------------------------------


def test_spans_hold_the_statement_and_the_answer() -> None:
    made = design()
    for trial in made.trials:
        ids, needle = made.prompt(trial), made.needle(trial.needle_id)
        assert decode(ids[trial.needle.start : trial.needle.stop]).strip() == needle.statement
        assert decode(ids[trial.answer.start : trial.answer.stop]).strip() == needle.answer
        assert ids[trial.answer.start : trial.answer.stop] == trial.answer_ids
        assert trial.needle.start <= trial.answer.start < trial.answer.stop <= trial.needle.stop


def test_lengths_are_hit_exactly() -> None:
    made = design()
    assert {haystack.length for haystack in made.haystacks} == {200, 400}
    for trial in made.trials:
        assert len(made.haystacks[trial.haystack].ids) == trial.length
    assert made.longest_prompt == max(len(made.prompt(trial)) for trial in made.trials)


def test_the_prompt_reads_as_text_and_tokenises_the_same_way() -> None:
    made = design()
    for trial in made.trials[::7]:
        ids = made.prompt(trial)
        question = made.needle(trial.needle_id).questions[trial.question]
        assert decode(ids).endswith(f"\nQuestion: {question} Answer:")
        # The cut at the front may split a word; what follows it is what engram would read.
        assert tuple(encode(decode(ids[-150:])))[-140:] == ids[-140:]


def test_the_only_special_token_stands_at_the_front() -> None:
    made = design()
    assert made.start == (engram().bos_token_id,)
    for haystack in made.haystacks:
        assert haystack.ids[:1] == made.start
        assert made.start[0] not in haystack.ids[1:]
        spans = [span for _, span in (*haystack.needles, *haystack.distractors)]
        assert min(span.start for span in spans) >= 1 + LEAD


def test_answers_and_terms_stand_in_their_statement_only() -> None:
    made = design()
    for haystack in made.haystacks:
        for needle_id, span in haystack.needles:
            rest = haystack.ids[: span.start] + haystack.ids[span.stop :]
            assert not leaks(decode(rest), made.needle(needle_id).terms)
    for trial in made.trials:
        assert not leaks(decode(trial.question_ids), [made.needle(trial.needle_id).answer])


def test_the_control_is_the_question_alone() -> None:
    made = design()
    for trial in made.trials:
        assert made.control(trial) == made.start + trial.question_ids
        assert not leaks(decode(made.control(trial)), [made.needle(trial.needle_id).answer])


def test_needles_stand_between_sentences() -> None:
    made = build(LITERAL, lengths=(400, 800))
    assert made.describe()["at_border"] == 1
    for trial in made.trials:
        ids = made.prompt(trial)
        assert decode(ids[: trial.needle.start]).rstrip()[-1] in ".?!"
        assert decode(ids[trial.needle.stop :])[:2].strip()[:1].isupper() or decode(
            ids[trial.needle.stop :]
        ).startswith("\n")


def test_text_without_sentences_is_parted_between_words() -> None:
    text = "stones and leaves and grass and sand " * 40
    made = build(LITERAL[:10], lengths=(200,), text=text)
    assert {trial.at_border for trial in made.trials if trial.depth < 1} == {False}
    for trial in made.trials:
        assert decode(made.prompt(trial)[trial.needle.stop :])[0] in " \n"


def test_sentences_of_a_users_text_that_tell_a_term_are_left_out() -> None:
    needle = LITERAL[0]
    text = (
        f"Nobody saw {needle.terms[1]} there. The rain stopped in the night. It was cold.\n\nOnce."
    )
    made = build(LITERAL[:5], lengths=(200,), text=text, rounds=1)
    assert made.haystacks[0].left_out == 1
    assert made.haystacks[0].passes > 1
    assert "Nobody" not in decode(made.haystacks[0].ids)
    assert made.filler_sha256 != design().filler_sha256


def test_an_opening_replaces_the_start_and_a_line_break_may_end_the_question() -> None:
    made = build(
        LITERAL[:10], opening="User: read this.", asking="\n{question}\nAssistant:\n", rounds=1
    )
    assert list(made.start) == encode("User: read this.")
    for trial in made.trials:
        assert made.prompt(trial)[: len(made.start)] == made.start
        answer = made.needle(trial.needle_id).answer
        assert decode(made.prompt(trial) + trial.answer_ids).endswith(f"Assistant:\n{answer}")


def test_another_tokenizer_serves_as_well() -> None:
    words = Words()
    made = build_needle_design(LITERAL, words.encode, words.decode, lengths=(150, 300, 600, 900))
    assert made.start == (BOS,)
    for trial in made.trials:
        ids = made.prompt(trial)
        assert words.decode(ids[trial.needle.start : trial.needle.stop]) == (
            " " + made.needle(trial.needle_id).statement
        )
        assert len(made.haystacks[trial.haystack].ids) == trial.length


# -- the design ----------------------------------------------------------------------------------


def test_every_cell_of_length_and_depth_is_used_equally_often() -> None:
    made = design()
    cells = Counter((trial.length, trial.stratum) for trial in plain(made))
    assert len(cells) == 2 * 5
    assert set(cells.values()) == {2 * 60 // 10}
    assert made.describe()["trials_a_cell"] == [12, 12]


def test_every_needle_is_seen_equally_often_at_different_lengths_and_depths() -> None:
    made = design()
    of: dict[str, list[Trial]] = {needle.id: [] for needle in made.needles}
    for trial in plain(made):
        of[trial.needle_id].append(trial)
    for trials in of.values():
        assert len(trials) == 2
        assert len({trial.length for trial in trials}) == 2
        assert len({trial.stratum for trial in trials}) == 2


def test_kinds_are_spread_evenly_over_lengths() -> None:
    counts = Counter((trial.kind, trial.length) for trial in plain(design()))
    assert counts["literal", 200] == counts["literal", 400] == 40
    assert counts["non-literal", 200] == counts["non-literal", 400] == 20


def test_needles_of_a_haystack_stand_in_different_strata_and_change_company() -> None:
    made = design()
    company = []
    for i, haystack in enumerate(made.haystacks):
        forks = [trial for trial in made.forks(i) if trial.question == 0]
        assert sorted(trial.stratum for trial in forks) == [0, 1, 2, 3, 4]
        assert [trial.needle_id for trial in forks] == [name for name, _ in haystack.needles]
        company.append(frozenset(trial.needle_id for trial in forks))
    assert len(set(company)) > len(company) * 3 // 4


def test_depth_is_the_share_of_filler_before_the_needle() -> None:
    made = design()
    for trial in made.trials:
        haystack = made.haystacks[trial.haystack]
        spans = [span for _, span in (*haystack.needles, *haystack.distractors)]
        statements = sum(span.stop - span.start for span in spans)
        before = sum(span.stop - span.start for span in spans if span.start < trial.needle.start)
        filler = trial.length - len(made.start) - statements
        assert trial.depth == pytest.approx((trial.needle.start - 1 - before) / filler)
        assert trial.stratum / 5 <= trial.depth <= (trial.stratum + 1) / 5


@UNHURRIED
@given(
    lengths=st.integers(1, 4),
    depths=st.integers(1, 7),
    share=st.integers(1, 7),
    times=st.integers(1, 4),
    rounds=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_balance_holds_for_every_size(
    lengths: int, depths: int, share: int, times: int, rounds: int, seed: int
) -> None:
    share = min(share, depths)
    words = Words()
    sizes = [250 + 10 * i for i in range(lengths)]
    needles = make_needles("literal", lengths * share * times, seed)
    made = build_needle_design(
        needles,
        words.encode,
        words.decode,
        lengths=sizes,
        depths=depths,
        needles_per_haystack=share,
        rounds=rounds,
        seed=seed,
    )
    stated = made.describe()
    assert len(made.trials) == rounds * len(needles)
    assert {haystack.length for haystack in made.haystacks} == set(sizes)
    low, high = stated["trials_a_cell"]
    assert high - low <= (0 if len(needles) % (lengths * depths) == 0 else rounds)
    assert stated["same_length"] == -(-rounds // lengths)
    assert stated["same_depth"] == -(-rounds // depths)
    for trial in made.trials:
        ids = made.haystacks[trial.haystack].ids[trial.needle.start : trial.needle.stop]
        assert words.decode(ids).strip() == made.needle(trial.needle_id).statement


def test_each_needle_has_a_distractor_of_its_topic_or_kind_that_is_not_asked_about() -> None:
    made = build(LITERAL, distractors=POOL)
    for i, haystack in enumerate(made.haystacks):
        assert len(haystack.distractors) == len(haystack.needles) == 5
        asked = {trial.needle_id for trial in made.forks(i)}
        for (needle_id, _), (other_id, span) in zip(
            haystack.needles, haystack.distractors, strict=True
        ):
            other = made.needle(other_id)
            assert other_id not in asked
            assert other.topic == made.needle(needle_id).topic
            assert decode(haystack.ids[span.start : span.stop]).strip() == other.statement
    rivals = made.rivals(made.trials[0])
    assert len(rivals) == 9
    assert made.trials[0].needle_id not in {rival.id for rival in rivals}


def test_paraphrases_are_forks_of_the_same_prefill() -> None:
    made = design()
    for needle in made.needles:
        trials = [t for t in made.trials if t.needle_id == needle.id and t.haystack < 6]
        by_haystack = Counter(trial.haystack for trial in trials)
        assert set(by_haystack.values()) <= {len(needle.questions)}
    assert made.describe()["paraphrased"] == 2 * 40


def test_the_same_seed_gives_the_same_bytes() -> None:
    again = build((*LITERAL, *NON_LITERAL), seed=3, distractors=POOL, paraphrased=True)
    assert again == design()
    assert again.sha256 == design().sha256
    assert build(LITERAL, seed=4).sha256 != build(LITERAL, seed=3).sha256
    other = replace(design(), asking=" {question}")
    assert other.sha256 != design().sha256


def test_the_design_is_frozen_and_describes_itself_in_plain_values() -> None:
    stated = design().describe()
    assert json.loads(json.dumps(stated)) == stated
    assert stated["sha256"] == design().sha256
    assert stated["needles"] == {"literal": 40, "non-literal": 20}
    with pytest.raises(FrozenInstanceError):
        design().trials[0].depth = 0.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="no needle 'x'"):
        design().needle("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "different positive numbers"),
        ({"lengths": (200, 200)}, "different positive numbers"),
        ({"lengths": (0,)}, "different positive numbers"),
        ({"depths": 0}, "at least 1"),
        ({"rounds": 0}, "at least 1"),
        ({"needles_per_haystack": 6}, "different depths"),
        ({"lengths": (200, 300, 400)}, "take 30 or 45"),
        ({"lengths": (60,)}, "take lengths from"),
        ({"asking": " Answer:"}, "once"),
        ({"asking": "{question} "}, "no space at the end"),
        ({"distractors": POOL[:4]}, "4 distractors are too few"),
        ({"distractors": LITERAL[:8]}, "given twice"),
        ({"text": " \n\n "}, "no filler is left"),
    ],
)
def test_designs_that_cannot_be_built_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(LITERAL, **options)


def test_needles_that_give_each_other_away_are_refused() -> None:
    twin = replace(LITERAL[1], id="twin", terms=LITERAL[1].terms)
    with pytest.raises(ValueError, match="tells a term of"):
        build((*LITERAL[:9], twin), lengths=(200,))


def test_a_tokenizer_that_loses_words_or_ends_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokenizer writes"):
        build_needle_design(LITERAL, encode, lambda ids: "?", lengths=(200, 400))
    with pytest.raises(ValueError, match="merges with the letter"):
        build_needle_design(LITERAL, lambda t: [*encode(t), 0], decode, lengths=(200, 400))


# -- the gate ------------------------------------------------------------------------------------


def test_the_gate_tells_whose_answer_was_given() -> None:
    needle, rival = LITERAL[0], LITERAL[1]
    assert judge(f" {needle.answer}.", needle, [rival]) == "needle"
    assert judge(f" the {needle.answer.upper()}", needle) == "needle"
    assert judge(f" {rival.answer}", needle, [rival]) == "rival"
    assert judge(f" {rival.answer}", needle) == "other"
    assert judge("", needle, [rival]) == "other"
    assert judge(f" it is, I say, {needle.answer}", needle, words=4) == "other"


def test_repeating_the_whole_statement_is_an_answer() -> None:
    for needle in (*LITERAL, *NON_LITERAL):
        assert judge(f"\n{needle.statement}", needle, [n for n in POOL if n != needle]) == "needle"
