"""Haystacks as tokens: filler of an exact length, places for statements, insertion."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.facts.haystacks import (
    Filler,
    Sentence,
    Span,
    answer_after,
    fill,
    insert,
    piece_encoder,
    place,
    sentence_ids,
    sentences,
    start_ids,
)
from word_tokenizer import BOS, Words

# Machines under load are slow; that is no failure of the code under test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_sentences_keep_abbreviations_and_the_space_before_them() -> None:
    passage = 'Mr. Hill  came\nlate. "Why not?" he said. 雨が降った。風が吹いた。 Then it ended.'
    assert sentences(passage) == (
        " Mr. Hill came late.",
        ' "Why not?"',
        " he said.",
        " 雨が降った。",
        "風が吹いた。",
        " Then it ended.",
    )
    assert sentences("  ") == ()


@UNHURRIED
@given(st.text("ab .?!。\"'\n", max_size=40))
def test_sentences_lose_nothing(passage: str) -> None:
    joined = "".join(sentences(passage))
    assert joined == (f" {' '.join(passage.split())}" if passage.strip() else "")


@UNHURRIED
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4).filter(any),
    tokens=st.integers(1, 120),
    key=st.integers(0, 5),
)
def test_filler_has_exactly_the_tokens_asked_for(
    sizes: list[list[int]], tokens: int, key: int
) -> None:
    passages = [[Sentence((*range(n),), (0,)) for n in passage] for passage in sizes]
    made = fill(passages, tokens, key)
    assert len(made.ids) == tokens
    assert made == fill(passages, tokens, key)
    assert made.passes == pytest.approx(tokens / sum(map(sum, sizes)))
    for border in made.borders:
        assert border == tokens or made.ids[border] == 0  # a sentence's first token
    for border in made.borders:
        assert made.ids[border - 1] + 1 in {n for passage in sizes for n in passage}


def test_a_passage_comes_again_only_after_all_others() -> None:
    passages = [[Sentence((i,), (0,))] for i in range(9)]
    ids = fill(passages, 18, 0).ids
    assert sorted(ids[:9]) == sorted(ids[9:]) == list(range(9))
    assert ids[:9] != ids[9:]


def test_a_statement_goes_to_the_border_nearest_to_the_middle_of_its_stratum() -> None:
    filler = Filler(tuple(range(100)), borders=(8, 45, 57, 100), words=(22, 27), passes=0.1)
    assert place(filler, 2, 5, []) == (45, True)
    assert place(filler, 2, 5, [45]) == (57, True)
    assert place(filler, 2, 5, [45, 57]) == (45, True)  # two statements side by side
    assert place(filler, 1, 5, []) == (27, False)
    assert place(filler, 3, 5, []) == (70, False)
    assert place(filler, 4, 5, []) == (100, True)


@UNHURRIED
@given(
    places=st.lists(st.integers(0, 30), max_size=5),
    sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5),
)
def test_insertion_keeps_the_filler_and_every_statement(
    places: list[int], sizes: list[int]
) -> None:
    filler = Filler((*range(30),), (), (), 1.0)
    statements = [(p, (1000 + i,) * n) for i, (p, n) in enumerate(zip(places, sizes, strict=False))]
    ids, spans = insert((-1,), filler, statements)
    assert tuple(i for i in ids if i < 1000) == (-1, *range(30))
    for (at, tokens), span in zip(statements, spans, strict=True):
        assert ids[span.start : span.stop] == tokens
        assert sum(0 <= i < 1000 for i in ids[: span.start]) == at


def test_words_of_a_sentence_are_known_where_they_are_encoded_one_by_one() -> None:
    piece = piece_encoder(Words().encode)
    assert sentence_ids(piece, " It rained, twice.").words == (0, 1, 3)
    assert sentence_ids(lambda text: (len(text),), " It rained.").words == ()


def test_pieces_have_no_special_token_and_starts_are_found() -> None:
    words = Words()
    assert start_ids(words.encode) == (BOS,)
    assert start_ids(lambda text: words.encode(text)[1:]) == ()
    piece = piece_encoder(words.encode)
    assert words.decode(piece(" a word")) == " a word"
    assert piece("\nQuestion") + piece(":") == piece("\nQuestion:")
    with pytest.raises(ValueError, match="merges"):
        piece("bc")
    assert words.decode(answer_after(piece, "So:\n", "this one")) == "this one"
    assert words.decode(answer_after(piece, "So:", "this one")) == " this one"


def test_spans_are_not_empty() -> None:
    assert Span(0, 1).stop == 1
    with pytest.raises(ValueError, match="start < stop"):
        Span(2, 2)
