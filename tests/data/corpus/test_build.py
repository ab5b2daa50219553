"""An index holds its documents and the order of their suffixes; a build says what it refuses."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mnemoscope.data.corpus import checks
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.index_info import IndexInfo, check_tokenizer
from mnemoscope.data.corpus.layout import ShardArrays, prefix_keys
from mnemoscope.data.corpus.opening import open_shards


def numbers(text: str) -> list[int]:
    """A tokenizer for texts of numbers; in a module, so that worker processes find it."""
    return [int(word) for word in text.split()]


def corpus(alphabet: int = 40, size: int = 300, seed: int = 0) -> list[Document]:
    """Some documents are empty, some repeat."""
    rng = np.random.default_rng(seed)
    texts = [
        " ".join(map(str, rng.integers(0, alphabet, rng.integers(0, 30)))) for _ in range(size)
    ]
    texts[:3] = ["", "7 7 7 7 7 7 7", ""]
    return [Document(text, "corpus.jsonl", i, {"n": i}) for i, text in enumerate(texts)]


def positions(shard: ShardArrays) -> list[int]:
    places = [int.from_bytes(bytes(row), "little") for row in shard.table]
    assert all(place % shard.width == 0 for place in places)
    return [place // shard.width for place in places]


def ids_of(shards: tuple[ShardArrays, ...]) -> list[list[int]]:
    return [
        shard.tokens[slice(*shard.document_span(d))].tolist()
        for shard in shards
        for d in range(shard.n_documents)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("alphabet", "width"), [(40, "auto"), (40, 2), (60_000, "auto"), (40, 4), (70_000, "auto")]
)
def test_an_index_holds_its_documents_in_order(tmp_path: Path, alphabet: int, width: Any) -> None:
    documents = corpus(alphabet)
    info = build_index(
        documents, tmp_path / "ix", encode=numbers, vocab_size=alphabet, width=width, inverse=True
    )
    opened, (shard,) = open_shards(tmp_path / "ix", verify=True)
    assert opened == info
    expected = {"auto": {40: 1, 60_000: 2, 70_000: 4}[alphabet], 2: 2, 4: 4}[width]
    assert info.width == shard.width == expected
    assert info.n_documents == len(documents)
    assert info.n_tokens == sum(1 + len(numbers(d.text)) for d in documents)
    assert ids_of((shard,)) == [numbers(d.text) for d in documents]
    record = shard.record(5)
    assert record is not None
    assert (record.source, record.line, record.metadata) == ("corpus.jsonl", 5, {"n": 5})


@pytest.mark.parametrize("width", [1, 2, 4])
def test_derived_files_are_what_they_say(tmp_path: Path, width: int) -> None:
    build_index(corpus(), tmp_path / "ix", encode=numbers, vocab_size=40, width=width, inverse=True)
    _, (shard,) = open_shards(tmp_path / "ix")
    raw = shard.tokens.tobytes()
    order = positions(shard)
    assert order == sorted(range(shard.n_tokens), key=lambda p: raw[p * width :])
    assert shard.inverse is not None
    assert [order[rank] for rank in shard.inverse] == list(range(shard.n_tokens))
    assert shard.directory is not None
    keys = [raw[p * width : p * width + 8].ljust(8, b"\0") for p in order[::512]]
    assert shard.directory.tolist() == [int.from_bytes(key, "big") for key in keys]
    assert (np.diff(shard.directory.astype(object)) >= 0).all()
    body = shard.tokens[shard.tokens != (1 << 8 * width) - 1]
    assert shard.unigram_counts(40).tolist() == np.bincount(body, minlength=40).tolist()
    for document in range(shard.n_documents):
        start, stop = shard.document_span(document)
        assert {shard.document_of(p) for p in range(start - 1, stop)} == {document}


def test_keys_of_suffixes_shorter_than_eight_bytes_are_padded() -> None:
    keys = prefix_keys(np.frombuffer(b"abcdefghij", np.uint8), np.array([0, 9, 10]))
    assert [int(key).to_bytes(8, "big") for key in keys] == [b"abcdefgh", b"j" + bytes(7), bytes(8)]


def test_text_without_a_tokenizer_is_indexed_by_its_bytes(tmp_path: Path) -> None:
    info = build_index([Document("naïve ☃", "a")], tmp_path / "ix", label="benign")
    _, (shard,) = open_shards(tmp_path / "ix")
    assert (info.mode, info.width, info.separator, info.label) == ("bytes", 1, 255, "benign")
    assert shard.tokens.tobytes() == b"\xff" + "naïve ☃".encode()


def test_shards_hold_whole_documents_and_all_workers_give_the_same_bytes(tmp_path: Path) -> None:
    documents = [*corpus(), Document("1 " * 900, "long", 0)]
    settings: dict[str, Any] = {"encode": numbers, "vocab_size": 40, "tokens_per_shard": 500}
    info = build_index(documents, tmp_path / "one", **settings)
    build_index(iter(documents), tmp_path / "two", **settings, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    _, shards = open_shards(tmp_path / "one", verify=True)
    assert len(shards) == info.n_shards > 8
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(shard.n_tokens <= 500 for shard in shards[:-1])
    assert shards[-1].n_documents == 1
    assert shards[-1].n_tokens == 901
    assert ids_of(shards) == [numbers(d.text) for d in documents]


def test_progress_counts_documents(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build_index(corpus(size=5), tmp_path / "a", progress=lambda *step: told.append(step))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (5, 5)]
    told.clear()
    build_index(iter(corpus(size=3)), tmp_path / "b", progress=lambda *step: told.append(step))
    assert told == [(1, 0), (2, 0), (3, 0), (3, 3)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": None}, "give the vocab_size"),
        ({"vocab_size": 65_536, "width": 2}, "does not fit width 2, which holds 65,535 ids"),
        ({"vocab_size": 39}, r"record \d+ holds the id 39, outside the vocabulary of 39"),
        ({"encode": lambda text: [-1]}, "holds the id -1, outside the vocabulary"),
        ({"encode": lambda text: [0.5]}, "whole numbers"),
        ({"encode": lambda text: [[1]]}, "whole numbers"),
        ({"encode": lambda text: [65_535], "width": 2}, "the id 65535, which separates documents"),
        ({"encode": None}, "bytes has width 1 and no vocab_size"),
        ({"width": 3}, "1, 2 or 4"),
        ({"workers": 0}, "at least 1"),
        ({"encode": lambda text: [1], "workers": 2}, "cannot be sent to 2 processes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"encode": numbers, "vocab_size": 40, **changed}
    with pytest.raises(ValueError, match=message):
        build_index(corpus(), tmp_path / "ix", **settings)
    assert not (tmp_path / "ix").exists()


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_corpus_without_text_is_refused_and_leaves_nothing(
    tmp_path: Path, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match="no text"):
        build_index((Document(text, "a") for text in texts), tmp_path / "ix")
    assert not list(tmp_path.iterdir())


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl, record 4 holds half a surrogate"):
        build_index([Document(json.loads('"x\\ud800"'), "a.jsonl", 3)], tmp_path / "ix")


def test_what_is_there_is_replaced_only_with_force_and_only_an_index(tmp_path: Path) -> None:
    build_index(corpus(), tmp_path / "ix")
    with pytest.raises(FileExistsError, match="force=True"):
        build_index(corpus(), tmp_path / "ix")
    info = build_index(corpus(seed=1), tmp_path / "ix", force=True, label="new")
    assert open_shards(tmp_path / "ix", verify=True)[0] == info
    assert [path.name for path in tmp_path.iterdir()] == ["ix"]
    (tmp_path / "diary").mkdir()
    build_index(corpus(), tmp_path / "diary")  # empty, so free
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(FileExistsError, match="no index"):
        build_index(corpus(), tmp_path / "letters", force=True)


def test_a_path_that_confuses_other_engines_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "vegetables" / "ix"
    with pytest.raises(ValueError, match="holds the word 'table'"):
        build_index(corpus(), folder)
    build_index(corpus(), folder, any_path=True)
    assert checks.reserved_words(folder) == ("table",)
    assert open_shards(folder)[0].n_documents == 300


def test_an_index_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tokenizer_name": "ours", "tokenizer_sha256": "ab" * 32}
    info = build_index(corpus(), tmp_path / "ix", encode=numbers, vocab_size=40, **settings)
    check_tokenizer(info, "ab" * 32)
    with pytest.raises(ValueError, match="built with the tokenizer ours"):
        check_tokenizer(info, "cd" * 32)
    by_bytes: IndexInfo = build_index(corpus(), tmp_path / "by")
    with pytest.raises(ValueError, match="over bytes"):
        check_tokenizer(by_bytes, "ab" * 32)


def test_too_small_a_disk_is_said_and_the_build_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match="finished shards are kept") as caught:
            build_index(corpus(), tmp_path / "ix")
    assert caught.value.errno == errno.ENOSPC
    build_index(corpus(), tmp_path / "ix")
    build_index(corpus(), tmp_path / "other")
    assert files(tmp_path / "ix") == files(tmp_path / "other")


def test_the_corpus_is_never_held_whole(tmp_path: Path) -> None:
    """At most one document at a time is alive."""
    alive, most = 0, 0

    class Counted(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[Document]:
        nonlocal alive, most
        for i in range(200):
            alive += 1
            most = max(most, alive)
            yield Document(Counted(f"text {i}"), "a", i)

    build_index(stream(), tmp_path / "ix", tokens_per_shard=300)
    assert most <= 3
