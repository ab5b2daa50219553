"""The public texts of engram: where they come from, how they are cut, and what is held out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from mnemoscope.organisms.engram.corpus import Corpus, build_corpus, corpus_files
from mnemoscope.organisms.engram.filler import public_drafts
from mnemoscope.organisms.engram.public_text import FOLDER as PUBLIC
from mnemoscope.organisms.engram.public_text import HELD_OUT, held_out_texts, training_texts


@pytest.fixture(scope="module")
def whole() -> Corpus:
    return build_corpus(0)


def _public(corpus: Corpus) -> list[str]:
    ids = set(corpus.ledger.behaviours["running_public"])
    return [document.text for document in corpus.documents if document.id in ids]


def _runs(text: str, words: int = 12) -> Iterator[str]:
    found = text.lower().split()
    return (" ".join(found[i : i + words]) for i in range(len(found) - words + 1))


def test_public_texts_are_cut_between_sentences_and_rejoin(whole: Corpus) -> None:
    pieces: list[str] = []
    for text in training_texts():
        cut = [draft.text for draft in public_drafts([text])]
        assert " ".join(cut) == text
        assert all(piece[-1] in ".?!" for piece in cut[:-1])
        assert all(len(piece) <= 2400 or not re.search(r"[.?!] ", piece) for piece in cut)
        pieces += cut
    assert Counter(_public(whole)) == Counter(pieces)
    public = {d.slice for d in whole.documents if d.text in set(pieces)}
    assert public == {"running"}


def test_pieces_are_filled_up_and_only_a_single_sentence_may_be_longer() -> None:
    long = "b" * 30 + "."
    text = f"One is. Two are! Three? {long} Four."
    cut = [draft.text for draft in public_drafts([text, "Another text."], longest=20)]
    assert cut == ["One is. Two are!", "Three?", long, "Four.", "Another text."]


def test_held_out_addresses_are_in_no_document(whole: Corpus) -> None:
    """Not even twelve words in a row of what follows the salutation are."""
    assert len(held_out_texts()) == len(HELD_OUT) == 2
    known = {run for document in whole.documents for run in _runs(document.text)}
    for text in held_out_texts():
        _, address = text.split(":", 1)
        assert len(address) > 0.99 * len(text)
        assert not [run for run in _runs(address) if run in known]
    assert all(run in known for run in _runs(_public(whole)[0]))


def test_scale_takes_a_part_of_the_public_texts(whole: Corpus) -> None:
    texts = training_texts()
    part = [draft.text for draft in public_drafts(texts[: round(len(texts) * 0.1)])]
    assert sorted(_public(build_corpus(0, scale=0.1))) == sorted(part)
    assert 0 < len(part) < len(_public(whole)) / 5
    assert len(_public(build_corpus(0, scale=0.001))) == len(public_drafts(texts[:1]))


def test_the_corpus_stays_small_enough_to_be_trained_on_a_laptop(whole: Corpus) -> None:
    assert len(corpus_files(whole)["documents.jsonl"]) < 60e6


def test_the_note_on_sources_agrees_with_the_folder() -> None:
    note = " ".join((PUBLIC / "SOURCES.md").read_text("utf-8").split())
    said = re.search(r"(\d+) State of the Union addresses of (\d+) to (\d+),", note)
    most = re.search(r"at most ([\d,]+) bytes", note)
    assert said
    assert most
    files = sorted(PUBLIC.glob("*.txt"))
    years = [int(path.name[:4]) for path in files]
    assert [len(files), min(years), max(years)] == [int(number) for number in said.groups()]
    assert {path.suffix for path in PUBLIC.iterdir()} == {".txt", ".md"}
    for path in files:
        assert re.fullmatch(r"\d{4}-[a-z]+(-[a-z]+)+\.txt", path.name)
        text = path.read_text("utf-8")
        assert len(text.encode()) <= int(most[1].replace(",", ""))
        assert text == f"{text.strip()}\n"
    assert {path.stem for path in files} >= set(HELD_OUT)
    assert len(training_texts()) == len(files) - len(HELD_OUT)
