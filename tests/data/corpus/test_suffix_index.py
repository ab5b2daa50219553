"""Every query says what looking at all documents says, on corpora that are hard to sort."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus_truth import Documents, Truth, index_of
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.kernels import KernelName, kernels_named
from mnemoscope.data.corpus.match_state import start
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index

KERNELS: tuple[KernelName, ...] = ("numba", "numpy")


@dataclass(frozen=True)
class Case:
    """Shards of documents, the width of an id, and queries beside those cut from the documents."""

    shards: tuple[Documents, ...]
    width: int
    queries: tuple[tuple[int, ...], ...] = ()


def drawn(alphabet: Sequence[int], n_tokens: int, n_documents: int, seed: int) -> Documents:
    """Random documents, some of them empty."""
    rng = random.Random(seed)
    flat = [rng.choice(alphabet) for _ in range(n_tokens)]
    cuts = sorted(rng.randrange(n_tokens + 1) for _ in range(n_documents - 1))
    return [flat[a:b] for a, b in zip([0, *cuts], [*cuts, n_tokens], strict=True)]


def edges(alphabet: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Queries that sort before the first and after the last suffix, in numbers and in bytes."""
    found = (min(alphabet), max(alphabet), 0, 1, 255, 256)
    known = [token for token in found if token <= max(alphabet)]
    return tuple((token,) * n for token in known for n in (1, 2, 40))


def case(alphabet: Sequence[int], width: int, n_tokens: int = 1000) -> Case:
    documents = drawn(alphabet, n_tokens, 12, seed=len(alphabet))
    return Case((documents,), width, edges(alphabet))


FIBONACCI = [0]
_NEXT = [0, 1]
for _ in range(12):
    FIBONACCI, _NEXT = _NEXT, _NEXT + FIBONACCI

CASES = {
    "two ids": case(range(2), 2),
    "three ids, long enough for the directory": case(range(3), 1, 2500),
    "all bytes but the separator": case(range(255), 1),
    "ids in another order as bytes": case([1, 255, 256, 511, 512, 65534], 2, 2500),
    "65,535 ids": case(range(65535), 2),
    "70,000 ids": case([*range(0, 70_000, 7), 65535, 65536], 4),
    "one id": Case(([[7] * 1500, [7] * 30],), 2, ((7,) * 1500, (7,) * 1501, (6,), (8, 7))),
    "period two": Case(([[0, 1] * 700],), 1, ((0, 1) * 40, (1, 1), (0, 1) * 701)),
    "Fibonacci word": Case((([FIBONACCI]),), 4),
    "one separator": Case(([[]],), 2, ((0,), (65534,))),
    "one token": Case(([[5]],), 2, ((5,), (5, 5), (4,), (6,))),
    "two empty documents and a token": Case(([[], [], [3]],), 1, ((3,), (0,))),
    "empty documents between": Case(([[1, 2], [], [], [1], [2, 1], []],), 2, ((1, 2), (2, 1))),
    "shards": Case(
        (drawn(range(4), 700, 9, 1), [[]], drawn(range(2), 40, 3, 2), [[0, 1, 2, 3] * 9]), 2,
        edges(range(4)),
    ),
}  # fmt: skip


def queries(name: str, n: int = 8) -> list[list[int]]:
    """The queries of a case, pieces of its documents whole, mended together, and unknown ids."""
    chosen = CASES[name]
    rng = random.Random(name)
    full = [list(document) for documents in chosen.shards for document in documents if document]
    found = [list(query) for query in chosen.queries]
    for _ in range(n if full else 0):
        source, other = rng.choice(full), rng.choice(full)
        a, b = rng.randrange(len(source)), rng.randrange(len(other))
        piece = source[a : a + rng.randrange(1, 9)]
        found += [piece, piece + other[b : b + 9], [*piece, 1 << 33, *piece]]
    return [*found, [1 << 33], [(1 << (8 * chosen.width)) - 2]]


@cache
def built(name: str, kernels: KernelName, extras: str = "directory") -> SuffixIndex:
    return index_of(
        CASES[name].shards,
        width=CASES[name].width,
        kernels=kernels,
        directory="directory" in extras,
        inverse="inverse" in extras,
    )


each_case = pytest.mark.parametrize("name", CASES)
each_kernel = pytest.mark.parametrize("kernels", KERNELS)


@each_kernel
@each_case
def test_counts_are_those_of_looking(name: str, kernels: KernelName) -> None:
    index, truth, asked = built(name, kernels), Truth(CASES[name].shards), queries(name)
    want = [truth.count(query) for query in asked]
    assert [index.count(query) for query in asked] == want
    assert index.count_many(asked).tolist() == want


@each_kernel
@each_case
def test_all_occurrences_are_located(name: str, kernels: KernelName) -> None:
    index, truth = built(name, kernels), Truth(CASES[name].shards)
    for query in queries(name, 4):
        found = index.locate(query, limit=10**6)
        assert sorted((o.shard, o.document, o.offset) for o in found) == truth.places(query)
        for one in found[:20]:
            shard = index.shards[one.shard]
            assert shard.tokens[one.position : one.position + len(query)].tolist() == query


@each_kernel
@pytest.mark.parametrize("extras", ["", "directory", "directory, inverse", "inverse"])
@each_case
def test_matching_statistics_are_those_of_looking(
    name: str, extras: str, kernels: KernelName
) -> None:
    index, truth = built(name, kernels, extras), Truth(CASES[name].shards)
    for query in [q for q in queries(name, 4) if len(q) < 50]:
        want = [truth.longest_prefix(query[i:]) for i in range(len(query))]
        assert index.matching_statistics(query).tolist() == want
        assert index.longest_prefix(query) == want[0]


@pytest.mark.parametrize("extras", ["", "directory, inverse"])
@each_case
def test_both_kernels_name_the_same_ranks(name: str, extras: str) -> None:
    """Also where nothing is found: the rank at which the query would stand."""
    ours, theirs = (built(name, kernels, extras) for kernels in KERNELS)
    for query in queries(name):
        assert ours.find(query) == theirs.find(query)
        assert ours.locate(query, 3, seed=1) == theirs.locate(query, 3, seed=1)
        assert ours.maximal_spans(query) == theirs.maximal_spans(query)


@each_case
def test_recorded_counts_change_no_answer(name: str, tmp_path: Path) -> None:
    chosen = CASES[name]
    counted = index_of(chosen.shards, width=chosen.width, counts=tmp_path)
    assert len(counted.plain[0].total) or chosen.width == 4  # an id may be over the vocabulary
    asked = [[token] for query in queries(name) for token in query]
    plain = built(name, "numba")
    assert [counted.find(query) for query in asked] == [plain.find(query) for query in asked]


@each_kernel
@each_case
def test_next_tokens_are_counted(name: str, kernels: KernelName) -> None:
    index, documents = built(name, kernels), [d for s in CASES[name].shards for d in s]
    for query in queries(name, 3):
        n = len(query)
        following: Counter[int] = Counter()
        for document in documents:
            row = [*document, -1]
            for i in range(len(document) - n + 1):
                following[row[i + n]] += list(document[i : i + n]) == query
        found = index.next_tokens(query)
        assert found.exact
        assert found.ends == following.pop(-1, 0)
        assert dict(zip(found.tokens.tolist(), found.counts.tolist(), strict=True)) == {
            token: count for token, count in following.items() if count
        }


def test_next_tokens_of_many_occurrences_are_sampled_evenly() -> None:
    documents = drawn(range(4), 2000, 3, seed=5)
    index = index_of([documents])
    exact, sample = index.next_tokens([1]), index.next_tokens([1], limit=200)
    assert (exact.read, sample.read) == (exact.total, 200)
    assert not sample.exact
    share = dict(zip(sample.tokens.tolist(), (sample.counts / 200).tolist(), strict=True))
    for token, count in zip(exact.tokens.tolist(), exact.counts.tolist(), strict=True):
        assert share[token] == pytest.approx(count / exact.total, abs=1.5 / 200)


def test_a_sample_of_places_is_spread_and_repeatable() -> None:
    index = index_of([[[7] * 1000], [[7] * 3000]])
    found = index.locate([7], limit=20, seed=3)
    assert found == index.locate([7], limit=20, seed=3) != index.locate([7], limit=20, seed=4)
    assert len(set(found)) == 20
    assert Counter(one.shard for one in found) == {0: 5, 1: 15}
    offsets = sorted(one.offset for one in found if one.shard == 1)
    assert all(b - a <= 400 for a, b in pairwise(offsets))


@each_kernel
@pytest.mark.parametrize("rules", ["none", "words", "delimiters", "both"])
@pytest.mark.parametrize("name", ["two ids", "65,535 ids", "shards", "empty documents between"])
def test_maximal_spans_are_those_of_the_definition(
    name: str, rules: str, kernels: KernelName
) -> None:
    """All spans that obey the rules and occur, less those inside another of them."""
    index, truth, rng = built(name, kernels), Truth(CASES[name].shards), random.Random(1)
    for query in [q for q in queries(name, 4) if len(q) < 25]:
        words = np.array([rng.random() < 0.6 for _ in query])
        delimiters = (1, query[0])
        use_words, use_delimiters = rules in ("words", "both"), rules in ("delimiters", "both")
        allowed = [
            (a, b)
            for a in range(len(query))
            for b in range(a + 1, len(query) + 1)
            if truth.count(query[a:b])
            and not (use_delimiters and set(query[a : b - 1]) & set(delimiters))
            and not (use_words and not (words[a] and (b == len(query) or words[b])))
        ]
        want = [
            (a, b, truth.count(query[a:b]))
            for a, b in allowed
            if not any((c, d) != (a, b) and c <= a and b <= d for c, d in allowed)
        ]
        found = index.maximal_spans(
            query,
            word_starts=words if use_words else None,
            delimiters=delimiters if use_delimiters else (),
        )
        assert [(s.start, s.stop, s.count) for s in found] == want
        for span in found:
            assert span.intervals == index.find(query[span.start : span.stop])
        few = index.maximal_spans(query, min_length=3, max_count=2)
        every = index.maximal_spans(query)
        assert few == tuple(s for s in every if s.stop - s.start >= 3 and s.count <= 2)


@each_kernel
def test_no_match_crosses_documents(kernels: KernelName) -> None:
    index = index_of([[[1, 2], [3, 4]]], kernels=kernels)
    assert (index.count([1, 2]), index.count([2, 3]), index.count([1, 2, 3])) == (1, 0, 0)
    assert index.matching_statistics([1, 2, 3, 4]).tolist() == [2, 1, 2, 1]


@each_kernel
def test_the_empty_query_is_found_at_every_rank(kernels: KernelName) -> None:
    index = index_of([[[1, 2], []], [[3]]], kernels=kernels)
    assert index.count([]) == index.n_tokens == 6
    assert index.matching_statistics([]).tolist() == []
    assert index.longest_prefix([]) == 0
    assert index.maximal_spans([]) == ()
    assert index.count_many([]).tolist() == []


@each_kernel
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_query_with_a_separator_is_refused(width: int, kernels: KernelName) -> None:
    index = index_of([[[1, 2], [3]]], width=width, kernels=kernels)
    separator = index.info.separator
    asks: list[Callable[[list[int]], object]] = [
        index.find,
        index.count,
        index.matching_statistics,
        index.maximal_spans,
        index.next_tokens,
        start(index).advance,
    ]
    for ask in asks:
        with pytest.raises(ValueError, match="separator between documents"):
            ask([separator])
    with pytest.raises(ValueError, match=f"id {separator} at place 1"):
        index.count([1, separator, 2])
    with pytest.raises(ValueError, match="id -1 at place 0 of the query is negative"):
        index.count([-1])


def test_what_is_no_sequence_of_ids_is_refused() -> None:
    index = index_of([[[1, 2]]])
    for wrong in ([1.5], "text", [[1, 2]]):
        with pytest.raises(ValueError, match="a query is"):
            index.count(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not over bytes"):
        index.count(b"text")
    with pytest.raises(ValueError, match="give one a token"):
        index.maximal_spans([1, 2], word_starts=np.array([True]))
    with pytest.raises(IndexError, match="no shard 1"):
        index.document(1, 0)


def test_contexts_stay_in_their_document() -> None:
    index = index_of([[[9, 9], [1, 2, 3, 4, 5], [8]]])
    (where,) = index.locate([3, 4])
    assert index.context(where, 1, 3).tolist() == [2, 3, 4, 5]
    assert index.context(where, 100, 100).tolist() == [1, 2, 3, 4, 5]
    assert index.context(where, 100, 100).tolist()[min(100, where.offset)] == 3
    assert index.document(where.shard, where.document).ids.tolist() == [1, 2, 3, 4, 5]


def test_unigram_counts_leave_separators_out() -> None:
    index = index_of([[[1, 2, 2], []], [[2]]])
    assert index.unigram_counts[:3].tolist() == [0, 1, 3]
    assert index.unigram_counts.sum() == index.n_tokens - index.info.n_documents


@pytest.mark.parametrize("name", ["two ids", "one id", "70,000 ids"])
def test_a_damaged_table_gives_no_crash(name: str) -> None:
    """Places outside the data, and places inside a token, count as read."""
    sound = built(name, "numba", "directory, inverse")
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, sound.shards[0].table.shape, dtype=np.uint8)
    for kernels in KERNELS:
        index = SuffixIndex(sound.info, (replace(sound.shards[0], table=table),), kernels)
        for query in queries(name):
            index.matching_statistics(query)
            index.count(query)
            start(index).extend([query])


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="'auto', 'numba' or 'numpy'"):
        kernels_named("fast")  # type: ignore[arg-type]


@each_kernel
@pytest.mark.parametrize("inverse", [False, True])
def test_a_folder_over_bytes_answers_like_its_texts(
    tmp_path: Path, kernels: KernelName, inverse: bool
) -> None:
    texts = ["der Zug fährt, der Zug hält", "", "Zug um Zug", "日本語のテキスト"]
    documents = [
        Document(text=text, source="texts", line=i, metadata={"n": i})
        for i, text in enumerate(texts)
    ]
    build_index(documents, tmp_path / "made", tokens_per_shard=20, inverse=inverse)
    index = open_index(tmp_path / "made", kernels=kernels)
    assert len(index.shards) > 1
    for piece in ("Zug", "ä", "Zug ", "テキ", "x", "der Zug"):
        raw = piece.encode()
        assert index.count(raw) == sum(text.encode().count(raw) for text in texts)
        for one in index.locate(raw):
            document = index.document(one.shard, one.document)
            assert document.record is not None
            assert bytes(document.ids.tolist()).decode() == texts[document.record.line]
            assert document.record.metadata == {"n": document.record.line}
