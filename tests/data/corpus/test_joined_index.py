"""Parts that were indexed on their own answer, together, like one index over all documents."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document, cut_of, read_documents
from mnemoscope.data.corpus.joined_index import JOINED_NAME, join_parts
from mnemoscope.data.corpus.match_state import start
from mnemoscope.data.corpus.parts import Part, PartRecord
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index

VOCABULARY = 5


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def built(folder: Path, documents: Sequence[Sequence[int]], first: int = 0, **more: Any) -> Path:
    """An index over documents of small ids; a document is known by its number in the corpus."""
    rows = [Document(" ".join(map(str, ids)), "c", first + i) for i, ids in enumerate(documents)]
    settings: dict[str, Any] = {"encode": numbers, "vocab_size": VOCABULARY, "width": 2}
    build_index(rows, folder, **{**settings, **more})
    return folder


def parts_of(folder: Path, documents: Sequence[Sequence[int]], cuts: Sequence[int]) -> Path:
    """A part for each run of documents between cuts, joined."""
    edges = [0, *sorted(cuts), len(documents)]
    of = len(edges) - 1
    for number, (a, b) in enumerate(pairwise(edges), 1):
        part = PartRecord(number, of, "cut")
        built(folder / Part(number, of).folder, documents[a:b], a, part=part, tokens_per_shard=40)
    join_parts(folder)
    return folder


def places(index: SuffixIndex, query: Sequence[int]) -> list[tuple[int, int]]:
    """Document of the corpus and offset of every occurrence."""
    found = []
    for one in index.locate(query, limit=10**6):
        record = index.document(one.shard, one.document).record
        assert record is not None
        found.append((record.line, one.offset))
    return sorted(found)


def spans(index: SuffixIndex, query: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(span.start, span.stop, span.count) for span in index.maximal_spans(query)]


documents_drawn = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), max_size=30), min_size=1, max_size=12
).filter(any)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    documents=documents_drawn,
    data=st.data(),
    query=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12),
)
def test_any_cut_answers_like_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    data: st.DataObject,
    query: list[int],
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(documents)), max_size=4))
    folder = tmp_path_factory.mktemp("cut")
    whole = open_index(built(folder / "whole", documents))
    joined = open_index(parts_of(folder / "parts", documents, cuts))
    assert (joined.n_tokens, joined.info.n_documents) == (whole.n_tokens, whole.info.n_documents)
    assert joined.unigram_counts.tolist() == whole.unigram_counts.tolist()
    for ids in (query, query[:2], documents[0][:6]):
        assert joined.count(ids) == whole.count(ids)
        assert places(joined, ids) == places(whole, ids)
        assert joined.matching_statistics(ids).tolist() == whole.matching_statistics(ids).tolist()
        assert spans(joined, ids) == spans(whole, ids)
        ours, theirs = joined.next_tokens(ids), whole.next_tokens(ids)
        assert ours.ends == theirs.ends
        assert dict(zip(ours.tokens.tolist(), ours.counts.tolist(), strict=True)) == dict(
            zip(theirs.tokens.tolist(), theirs.counts.tolist(), strict=True)
        )
    states = [start(index).extend([query]) for index in (joined, whole)]
    assert states[0].longest.tolist() == states[1].longest.tolist()
    assert states[0].counts.tolist() == states[1].counts.tolist()


def test_workers_that_read_the_same_corpus_build_its_parts(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [{"text": f"document {i} of the corpus, said the {i % 7}th clerk"} for i in range(90)]
    for name in range(3):
        lines = [json.dumps(row) for row in rows[30 * name : 30 * name + 30]]
        (corpus / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    build_index(read_documents(corpus), tmp_path / "whole")
    for number in (4, 1, 3, 2):
        part = Part(number, 4)
        cut = cut_of(corpus, field="text", split="file", parts=4)
        build_index(
            read_documents(corpus, part=part),
            tmp_path / "ix" / part.folder,
            part=PartRecord(number, 4, cut),
        )
    info = join_parts(tmp_path / "ix", verify=True)
    assert (info.n_documents, info.n_shards) == (90, 4)
    whole, joined = open_index(tmp_path / "whole"), open_index(tmp_path / "ix")
    for text in ("clerk", "said the 3th", "document 1", "of the corpus", "absent"):
        assert joined.count(text.encode()) == whole.count(text.encode())
    assert sum(shard.n_documents for shard in joined.shards) == 90
    texts = [
        joined.document(number, d).ids.tolist()
        for number, shard in enumerate(joined.shards)
        for d in range(shard.n_documents)
    ]
    assert texts == [whole.document(0, d).ids.tolist() for d in range(90)]


def test_a_killed_worker_goes_on_and_the_others_do_not_notice(tmp_path: Path) -> None:
    code = f"""
import os, sys
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.parts import Part, PartRecord
def documents(kill):
    for i in range(30, 60):
        if kill and i == 50:
            os._exit(9)
        yield Document(f"this is text number {{i}}, " * 3, "a.txt", i)
build_index(documents(len(sys.argv) > 1), {str(tmp_path / "ix" / Part(2, 2).folder)!r},
            part=PartRecord(2, 2, "cut"), tokens_per_shard=700)
"""
    rows = [Document(f"this is text number {i}, " * 3, "a.txt", i) for i in range(60)]
    killed = subprocess.run([sys.executable, "-c", code, "kill"], check=False)
    assert killed.returncode == 9
    first = tmp_path / "ix" / Part(1, 2).folder
    build_index(rows[:30], first, part=PartRecord(1, 2, "cut"), tokens_per_shard=700)
    with pytest.raises(FileNotFoundError, match="not built yet: part 2/2: build"):
        join_parts(tmp_path / "ix")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    join_parts(tmp_path / "ix")
    build_index(rows, tmp_path / "whole", tokens_per_shard=700)
    whole, joined = open_index(tmp_path / "whole"), open_index(tmp_path / "ix")
    for text in (b"text number 4", b"number 29, this", b"is", b"number 59"):
        assert joined.count(text) == whole.count(text) > 0


def test_several_indexes_are_one_query(tmp_path: Path) -> None:
    a = built(tmp_path / "a", [[1, 2, 3], [1, 2]])
    b = built(tmp_path / "b", [[2, 3, 1, 2]], label="b")
    both = open_index([a, b])
    assert (both.count([1, 2]), both.count([2, 3]), both.n_tokens) == (3, 2, 12)
    join_parts(tmp_path / "ab", [a, b])
    assert open_index(tmp_path / "ab").count([1, 2]) == 3
    assert open_index([tmp_path / "ab", a]).count([1, 2]) == 5
    assert open_index(tmp_path / "ab").info.label == "b"


def test_joined_twice_is_the_same_and_another_list_wants_force(tmp_path: Path) -> None:
    a, b = built(tmp_path / "a", [[1]]), built(tmp_path / "b", [[2]])
    join_parts(tmp_path / "ab", [a])
    join_parts(tmp_path / "ab", [a])
    with pytest.raises(FileExistsError, match="lists other parts already"):
        join_parts(tmp_path / "ab", [a, b])
    join_parts(tmp_path / "ab", [a, b], force=True)
    assert open_index(tmp_path / "ab").info.n_shards == 2
    with pytest.raises(FileExistsError, match="is an index itself"):
        join_parts(a, [b])


def test_what_cannot_be_joined_is_said(tmp_path: Path) -> None:
    a = built(tmp_path / "a", [[1, 2]], tokenizer_sha256="one")
    other = built(tmp_path / "other", [[1, 2]], tokenizer_sha256="two")
    wide = built(tmp_path / "wide", [[1, 2]], width=4)
    with pytest.raises(ValueError, match=r"differ in tokenizer_sha256 \(one, two\)"):
        join_parts(tmp_path / "x", [a, other])
    with pytest.raises(ValueError, match=r"differ in width \(2, 4\)"):
        open_index([a, wide])
    with pytest.raises(FileNotFoundError, match="holds no parts of an index"):
        join_parts(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="there is no index folder"):
        join_parts(tmp_path / "x", [tmp_path / "nowhere"])
    empty = {Part(n, 2).folder: PartRecord(n, 2, "cut") for n in (1, 2)}
    for name, part in empty.items():
        built(tmp_path / "empty" / name, [], part=part)
    with pytest.raises(ValueError, match="hold no text"):
        join_parts(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no documents"):
        open_index(tmp_path / "empty" / Part(1, 2).folder)


def test_parts_of_two_corpora_or_a_rebuilt_one_are_refused(tmp_path: Path) -> None:
    ix = tmp_path / "ix"
    built(ix / Part(1, 2).folder, [[1]], part=PartRecord(1, 2, "cut"))
    built(ix / Part(2, 2).folder, [[2]], part=PartRecord(2, 2, "another"))
    with pytest.raises(ValueError, match="other sources or settings than part-00001-of-00002"):
        join_parts(ix)
    built(ix / Part(2, 2).folder, [[2]], part=PartRecord(2, 2, "cut"), force=True)
    join_parts(ix)
    assert open_index(ix).count([2]) == 1
    built(ix / Part(2, 2).folder, [[2, 2]], part=PartRecord(2, 2, "cut"), force=True)
    with pytest.raises(ValueError, match="built again since the index was joined"):
        open_index(ix)
    (ix / JOINED_NAME).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_index(ix)
    built(ix / Part(1, 3).folder, [[2]], part=PartRecord(1, 3, "cut"))
    with pytest.raises(ValueError, match="parts of two cuts"):
        join_parts(ix)


def test_an_empty_part_among_others_is_no_matter(tmp_path: Path) -> None:
    parts_of(tmp_path / "ix", [[1, 2], [1]], cuts=[0, 1, 1])
    index = open_index(tmp_path / "ix")
    assert (index.count([1]), index.info.n_documents, len(index.shards)) == (2, 2, 2)
    assert np.array_equal(index.unigram_counts[:3], [0, 2, 1])
