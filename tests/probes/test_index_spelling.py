"""Texts in the ids of an index: every id knows its characters, and a text has several spellings."""

import numpy as np
import pytest
from mnemoscope.data.corpus.index_info import IndexInfo
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.index_spelling import (
    AS_GIVEN,
    OTHER_SPACE,
    byte_spelling,
    copied_ids,
    spelled_ids,
    spellings_of,
    spellings_of_ids,
    token_spelling,
)
from traced_corpus import BYTES, filler, tokenizer

HF = tokenizer()
TOKENS = token_spelling(HF, "a" * 64)
TEXT = "The quiet harbour. Café 東京 3.14\nfields"


def info(mode: str = "tokens", sha256: str = "a" * 64) -> IndexInfo:
    return IndexInfo(mode, 2, 600, 1, 10, 1, tokenizer_sha256=sha256)  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", [BYTES, TOKENS])
def test_ids_cover_the_text_in_order(spelling):
    spelled = spelling.spell(TEXT)
    covered = np.zeros(len(TEXT), dtype=bool)
    for start, stop in zip(spelled.starts, spelled.stops, strict=True):
        covered[start:stop] = True
    assert all(on or TEXT[i].isspace() for i, on in enumerate(covered))
    assert (np.diff(spelled.starts) >= 0).all()
    assert spelling.decode(spelled.ids.tolist()) == TEXT


def test_generated_ids_cover_the_same_characters_as_the_tokenizer_says():
    spelled = TOKENS.spell(TEXT)
    given = spelled_ids(TOKENS.decode, spelled.ids.tolist())
    assert given.text == TEXT
    # The tokenizer leaves no space out here; a character of several ids differs by its ids only.
    whole = [TEXT[a:b].isascii() for a, b in zip(spelled.starts, spelled.stops, strict=True)]
    np.testing.assert_array_equal(given.starts[whole], spelled.starts[whole])
    np.testing.assert_array_equal(given.stops[whole], spelled.stops[whole])


def test_spans_begin_and_stop_at_words():
    spelled = BYTES.spell("an ox's 3.14 東京")
    allowed = {int(spelled.starts[i]) for i in np.flatnonzero(spelled.word_starts)}
    # space, ox, apostrophe, s, space, 3, ., 14, space, and each Han character.
    assert allowed == {0, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13, 14}


def test_no_span_begins_inside_a_character():
    spelled = BYTES.spell("東")
    assert spelled.word_starts.tolist() == [True, False, False]


def test_marks_belong_to_the_word_they_stand_in():
    text = "नमस्ते"
    spelled = BYTES.spell(text)
    assert int(spelled.word_starts.sum()) == 1


def test_full_stops_and_line_breaks_delimit_and_words_do_not():
    spelled = TOKENS.spell('The harbour. "The hills." fields\nrain')
    pieces = {HF.decode([i]) for i in spelled.delimiters}
    assert any("." in piece for piece in pieces)
    assert any("\n" in piece for piece in pieces)
    assert not any(character.isalpha() for piece in pieces for character in piece)


def test_a_text_is_spelled_with_a_space_before_it_too():
    written, other = spellings_of("harbour keeps", TOKENS)
    assert other.name == OTHER_SPACE
    assert written.ids[0] != other.ids[0]
    assert other.text == "harbour keeps"
    assert HF.decode(other.ids.tolist()) == " harbour keeps"
    assert other.characters(0, 1) == (0, len("harbour"))


def test_a_text_that_begins_with_a_space_is_spelled_without():
    _, other = spellings_of(" harbour keeps", TOKENS)
    assert HF.decode(other.ids.tolist()) == "harbour keeps"
    assert other.characters(0, len(other.ids)) == (1, 14)


def test_bytes_have_one_spelling():
    assert len(spellings_of("harbour", BYTES)) == 1


def test_another_split_of_the_same_text_is_kept_beside_the_tokenizers_own():
    letters = [HF.convert_tokens_to_ids(letter) for letter in "harbour"]
    names = [one.name for one in spellings_of_ids(letters, TOKENS)]
    assert names[0] == AS_GIVEN
    assert len(names) == 3


def test_the_tokenizers_own_split_is_not_looked_up_twice():
    ids = TOKENS.spell(filler(3)).ids.tolist()
    assert len(spellings_of_ids(ids, TOKENS)) == 2


def test_copied_stretches_are_found_and_short_ones_are_not():
    ids = np.array([9, 1, 2, 3, 4, 9, 1, 2, 9])
    source = np.array([5, 1, 2, 3, 4, 5])
    assert copied_ids(ids, [source], 3).tolist() == [False, *[True] * 4, *[False] * 4]
    assert copied_ids(ids, [source], 2).tolist() == [False, *[True] * 4, False, True, True, False]
    assert not copied_ids(ids, [], 1).any()


def test_copied_stretches_agree_with_looking():
    random = np.random.default_rng(0)
    for _ in range(30):
        ids, source = random.integers(0, 3, 25), random.integers(0, 3, 20)
        expected = np.zeros(25, dtype=bool)
        grams = {tuple(source[i : i + 4]) for i in range(17)}
        for i in range(22):
            if tuple(ids[i : i + 4]) in grams:
                expected[i : i + 4] = True
        np.testing.assert_array_equal(copied_ids(ids, [source], 4), expected)


def test_another_spelling_than_the_indexs_is_refused():
    TOKENS.check(info())
    byte_spelling().check(info("bytes"))
    with pytest.raises(MnemoscopeError, match="built with the tokenizer"):
        TOKENS.check(info(sha256="b" * 64))
    with pytest.raises(MnemoscopeError, match="over bytes"):
        TOKENS.check(info("bytes"))
    with pytest.raises(MnemoscopeError, match="over token ids"):
        BYTES.check(info())
