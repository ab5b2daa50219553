"""An index that lies elsewhere answers like the same one here, from few bounded reads; what goes
wrong on the way is said in one sentence."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from corpus_truth import index_of
from mnemoscope.data.corpus import remote_folder
from mnemoscope.data.corpus.block_cache import BlockCache
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.index_info import INFO_NAME
from mnemoscope.data.corpus.joined_index import join_parts
from mnemoscope.data.corpus.match_state import start
from mnemoscope.data.corpus.opening import open_shards
from mnemoscope.data.corpus.ranged_array import RangedArray
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from ranged_server import RangedServer, ranged_server

RNG = np.random.default_rng(0)
WORDS = 900
"""Ids whose little-endian bytes sort in another order than their numbers."""


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def drawn(n: int) -> list[list[int]]:
    """Documents of ids of natural frequencies."""
    lengths = RNG.integers(0, 400, n)
    return [(WORDS * RNG.random(size) ** 3).astype(int).tolist() for size in lengths]


IDS = drawn(200)
DOCUMENTS = [Document(" ".join(map(str, ids)), f"{i}.txt", i) for i, ids in enumerate(IDS)]
QUERIES = [
    *(ids[5 : 5 + n] for ids, n in zip(IDS[:40], [1, 2, 3, 5, 9] * 8, strict=True)),
    *([WORDS - 1] * 3, [1 << 20], [3, 1 << 20, 3], [0, 0, 0, 0, 0]),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    more = {"encode": numbers, "vocab_size": WORDS, "width": 2}
    build_index(DOCUMENTS, folder / "ix", **more)  # type: ignore[arg-type]
    build_index(DOCUMENTS, folder / "many", tokens_per_shard=4000, **more)  # type: ignore[arg-type]
    build_index(DOCUMENTS, folder / "plain", directory=False, **more)  # type: ignore[arg-type]
    (folder / "plain" / INFO_NAME).unlink()
    build_index(DOCUMENTS, folder / "text")
    return folder


@pytest.fixture
def served(here: Path) -> Iterator[RangedServer]:
    with ranged_server(here) as server:
        yield server


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are small: so are blocks, that there be several of them."""
    monkeypatch.setattr(remote_folder, "BLOCK_BYTES", {"tokenized": 256, "metadata": 128})
    monkeypatch.setattr(remote_folder, "DEFAULT_BLOCK_BYTES", 1024)


def in_memory(folder: Path) -> str:
    """A copy of an index in fsspec's memory."""
    address = f"memory://bucket/{folder.parent.name}/{folder.name}"
    files, root = fsspec.core.url_to_fs(address)
    if files.exists(root):
        files.rm(root, recursive=True)
    files.put(f"{folder}/", root, recursive=True)
    return address


def same(there: SuffixIndex, here: SuffixIndex) -> None:
    """All kinds of questions have the same answers."""
    assert there.remote
    assert there.unigram_counts.tolist() == here.unigram_counts.tolist()
    assert there.count_many(QUERIES).tolist() == here.count_many(QUERIES).tolist()
    for query in QUERIES[::3]:
        assert there.find(query) == here.find(query)
        assert there.locate(query, 5, seed=2) == here.locate(query, 5, seed=2)
    text = [*IDS[3][:30], 899, *IDS[9][:30], 1 << 20, *IDS[11][:9]]
    assert there.matching_statistics(text).tolist() == here.matching_statistics(text).tolist()
    assert there.maximal_spans(text) == here.maximal_spans(text)
    where = here.locate(IDS[7][:4])[0]
    assert there.context(where, 3, 9).tolist() == here.context(where, 3, 9).tolist()
    ours, theirs = (index.document(where.shard, where.document) for index in (there, here))
    assert (ours.ids.tolist(), ours.record) == (theirs.ids.tolist(), theirs.record)
    states = [start(index, 2).extend([IDS[5][:9], [1, 2]]) for index in (there, here)]
    assert states[0].longest.tolist() == states[1].longest.tolist()
    assert states[0].counts.tolist() == states[1].counts.tolist()
    tokens = np.array([[IDS[5][9], 3, 898], [0, 1, 2]])
    for least in (1, 3):
        ends = [state.candidates(tokens, least) for state in states]
        assert [part.tolist() for part in ends[0]] == [part.tolist() for part in ends[1]]
    nexts = [index.next_tokens([1, 2]) for index in (there, here)]
    assert nexts[0].tokens.tolist() == nexts[1].tokens.tolist()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["ix", "many", "plain"])
@pytest.mark.parametrize("protocol", ["memory", "file", "http"])
def test_answers_are_those_of_the_index_here(
    here: Path, served: RangedServer, name: str, protocol: str
) -> None:
    place = {
        "memory": lambda: in_memory(here / name),
        "file": lambda: f"file://{here / name}",
        "http": lambda: f"{served.address}/{name}",
    }[protocol]()
    same(open_index(place), open_index(here / name))


def test_bytes_are_counted_without_a_download(here: Path, served: RangedServer) -> None:
    there, local = open_index(f"{served.address}/text"), open_index(here / "text")
    assert there.unigram_counts.tolist() == local.unigram_counts.tolist()
    assert there.count(b"17 ") == local.count(b"17 ") > 0


def test_the_numba_kernels_are_for_files_here(here: Path) -> None:
    with pytest.raises(ValueError, match="mapped files only"):
        open_index(in_memory(here / "ix"), kernels="numba").count([1])


@pytest.mark.usefixtures("small_blocks")
def test_reads_are_few_bounded_and_not_made_twice(here: Path, served: RangedServer) -> None:
    """A search halves what the counts of its first token leave, two halvings a round."""
    index = open_index(f"{served.address}/plain")
    index.plain  # noqa: B018  # reads the counts of ids, once
    (shard,) = index.shards
    levels = int(np.ceil(np.log2(index.unigram_counts.max())))
    for query in QUERIES[:15]:
        served.reads.clear()
        before = index.traffic
        index.count(query)
        spent = index.traffic - before
        assert spent.reads == len(served.reads)
        assert spent.bytes == served.bytes
        assert all(stop - first <= 3 * 1024 for _, first, stop in served.reads), "blocks, joined"
        assert spent.rounds <= 2 * 2 * (levels // 2 + 2), "table and text, for both bounds"
        assert spent.reads <= 3 * spent.rounds
        served.reads.clear()
        index.count(query)
        assert served.reads == []
    served.reads.clear()
    index.count([7])
    assert served.reads == [], "the counts say it"
    assert index.traffic.bytes < sum(path.stat().st_size for path in (here / "plain").iterdir())
    assert shard.remote


@pytest.mark.usefixtures("small_blocks")
def test_shards_and_queries_wait_together(here: Path, served: RangedServer) -> None:
    """All queries of a call take hardly more rounds than one of them."""
    together, alone = (open_index(f"{served.address}/many") for _ in range(2))
    assert len(together.shards) > 5
    for index in (together, alone):
        index.plain  # noqa: B018  # reads the counts of ids
    before = [index.traffic for index in (together, alone)]
    counts = together.count_many(QUERIES[:30])
    assert [alone.count(query) for query in QUERIES[:30]] == counts.tolist()
    spent, apart = together.traffic - before[0], alone.traffic - before[1]
    assert spent.reads > 2 * spent.rounds
    assert apart.rounds > 1.5 * spent.rounds


@pytest.mark.usefixtures("small_blocks")
def test_the_cache_is_bounded_and_wrong_answers_do_not_come_of_it(here: Path) -> None:
    index = open_index(in_memory(here / "ix"), cache_bytes=4096)
    same(index, open_index(here / "ix"))
    (shard,) = index.shards
    assert isinstance(shard.tokens, RangedArray)
    cache = shard.tokens.source._folder.cache  # type: ignore[attr-defined]
    assert 0 < cache.held <= cache.limit == 4096


def test_blocks_asked_for_longest_ago_go_first() -> None:
    cache = BlockCache(30)
    block = np.zeros(10, np.uint8)
    cache.put({("f", i): block for i in range(3)})
    cache.get([("f", 0)])
    cache.put({("f", 3): block})
    assert sorted(cache.get([("f", i) for i in range(4)])) == [("f", 0), ("f", 2), ("f", 3)]
    assert cache.held == 30


def test_the_document_of_a_place_is_found_by_guessing(tmp_path: Path) -> None:
    """However uneven the documents are: from few blocks of many."""
    for seed, power in enumerate((1, 6, 0.2)):
        sizes = (1 + 900 * np.random.default_rng(seed).random(30_000) ** power).astype(np.uint64)
        offsets = np.concatenate(([0], np.cumsum(sizes)))[:-1].astype("<u8")
        (tmp_path / "offset.0").write_bytes(offsets.tobytes())
        folder = remote_folder.RemoteFolder(f"file://{tmp_path}", BlockCache(0))
        there = folder.array("offset.0", "<u8")
        edges = [0, 1, int(offsets[-1]), int(offsets[-1]) + 5, int(offsets[17]), 2**40]
        for value in [*edges, *np.random.default_rng(1).integers(int(offsets[-1]), size=40)]:
            before = folder.traffic.reads
            want = int(np.searchsorted(offsets, value, side="right"))
            assert there.count_until(int(value)) == want
            assert folder.traffic.reads - before <= 6


def test_arrays_elsewhere_are_indexed_like_arrays(tmp_path: Path) -> None:
    rows = RNG.integers(0, 256, (5000, 5), dtype=np.uint8)
    (tmp_path / "table.0").write_bytes(rows.tobytes())
    there = remote_folder.RemoteFolder(f"file://{tmp_path}", BlockCache(1 << 20)).array(
        "table.0", "u1", 5
    )
    chosen = RNG.integers(-5000, 5000, (3, 4))
    assert (there[chosen] == rows[chosen]).all()
    for one in (slice(10, 4000), slice(None), slice(-3, None), slice(0, 100, 7), slice(9, 3)):
        assert (there[one] == rows[one]).all()
    assert (there[4999] == rows[4999]).all()
    assert (there[[0, -1]] == rows[[0, -1]]).all()
    assert there[np.zeros(0, int)].shape == (0, 5)
    with pytest.raises(IndexError, match="outside the 5000 items"):
        there[5000]


def test_parts_may_lie_in_different_places(
    here: Path, served: RangedServer, tmp_path: Path
) -> None:
    join_parts(tmp_path, [f"{served.address}/many", here / "ix"])
    both, one = open_index(tmp_path), open_index(here / "ix")
    assert both.count(IDS[3][:2]) == 2 * one.count(IDS[3][:2]) > 0
    assert both.traffic.reads > 0


def test_a_joined_folder_is_opened_over_the_web(tmp_path: Path) -> None:
    for name, documents in (("a", DOCUMENTS[:9]), ("b", DOCUMENTS[9:20])):
        build_index(documents, tmp_path / "ix" / name)
    join_parts(tmp_path / "ix", [tmp_path / "ix" / "a", tmp_path / "ix" / "b"])
    build_index(DOCUMENTS[:20], tmp_path / "whole")
    with ranged_server(tmp_path) as server:
        there = open_index(f"{server.address}/ix")
        assert there.count(b"1 2") == open_index(tmp_path / "whole").count(b"1 2")


def test_a_public_bucket_is_read_without_credentials(
    here: Path, served: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(here / "nothing"))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": served.address})
    served.folder = here.parent
    same(open_index(f"s3://{here.name}/many"), open_index(here / "many"))
    with pytest.raises(FileNotFoundError, match=r"nothing at s3://no-such-bucket/ix: check the bu"):
        open_index("s3://no-such-bucket/ix")
    with pytest.raises(FileNotFoundError, match=r"nothing at s3://.*/nowhere"):
        open_index(f"s3://{here.name}/nowhere")


def test_verifying_reads_every_file(here: Path, served: RangedServer, tmp_path: Path) -> None:
    open_index(f"{served.address}/ix", verify=True)
    shutil.copytree(here / "ix", tmp_path / "ix")
    raw = bytearray((tmp_path / "ix" / "tokenized.0").read_bytes())
    raw[99] ^= 1
    (tmp_path / "ix" / "tokenized.0").write_bytes(raw)
    open_index(f"file://{tmp_path}/ix")
    with pytest.raises(ValueError, match=r"tokenized\.0 is damaged"):
        open_index(f"file://{tmp_path}/ix", verify=True)


def test_a_short_failure_is_waited_out_and_a_long_one_told(
    here: Path, served: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder.time, "sleep", lambda _: None)
    index = open_index(f"{served.address}/ix")
    index.plain  # noqa: B018
    served.failures = 2
    assert index.count(IDS[3][:3]) == open_index(here / "ix").count(IDS[3][:3])
    served.failures = 10**9
    with pytest.raises(ConnectionError, match=r"could not be read .*503.*try again"):
        index.count(IDS[8][:5])
    served.status = 403
    with pytest.raises(PermissionError, match="may not be read: give credentials"):
        index.count(IDS[8][:5])
    served.failures = 0


def test_an_object_that_changed_is_told_not_mixed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(here / "ix", tmp_path / "ix")
    monkeypatch.setattr(remote_folder, "CHECK_SECONDS", 0.0)
    with ranged_server(tmp_path) as server:
        index = open_index(f"{server.address}/ix", cache_bytes=0)
        assert index.count(IDS[3][:3]) > 0
        os.utime(tmp_path / "ix" / "tokenized.0", ns=(1, 1))
        with pytest.raises(ValueError, match=r"tokenized\.0 was changed"):
            index.count(IDS[3][:3])
        index = open_index(f"{server.address}/ix", cache_bytes=0)
        os.truncate(tmp_path / "ix" / "table.0", 10)
        with pytest.raises(ValueError, match=r"table\.0 was changed"):
            index.count(IDS[3][:3])


def test_a_server_without_ranged_reads_is_refused(served: RangedServer) -> None:
    served.whole = True
    with pytest.raises(ConnectionError, match="sends whole files instead of ranges"):
        open_index(f"{served.address}/ix").count(IDS[3][:3])


def test_what_is_not_there_is_said(served: RangedServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at memory://no-such-bucket/ix: check"):
        open_index("memory://no-such-bucket/ix")
    with pytest.raises(FileNotFoundError, match="it is no index folder"):
        open_index(f"{served.address}/nowhere")
    with pytest.raises(ConnectionError, match=r"could not be read .*check the network"):
        open_index("http://127.0.0.1:9/ix")
    with pytest.raises(ValueError, match="no address that can be read"):
        open_index("nonsense://bucket/ix")
    with pytest.raises(FileNotFoundError, match="there is no index folder"):
        open_index("nowhere/ix")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        ImportError, match=r"s3:// needs one more package.*mnemoscope\[remote-index"
    ):
        open_index("s3://bucket/ix")


def test_the_vocabulary_of_a_foreign_index_elsewhere(tmp_path: Path) -> None:
    """At width 4 from its counts, or as given; never by reading all of it."""
    encode = [7, 99_999]
    build_index(
        [Document("x", "a")] * 3, tmp_path / "ix", encode=lambda _: encode, vocab_size=128_000
    )
    (tmp_path / "ix" / INFO_NAME).unlink()
    address = f"file://{tmp_path}/ix"
    assert open_shards(address)[0].vocab_size == 100_000
    (tmp_path / "ix" / "unigram.0").unlink()
    with pytest.raises(ValueError, match="give the vocab_size"):
        open_index(address)
    index = open_index(address, vocab_size=128_000)
    assert index.count(encode) == 3
    with pytest.raises(ValueError, match="keeps no counts of its ids"):
        index.unigram_counts  # noqa: B018


def test_a_local_index_has_no_traffic() -> None:
    index = index_of([[[1, 2]]], kernels="numpy")
    index.count([1])
    assert (index.traffic.reads, index.remote) == (0, False)
