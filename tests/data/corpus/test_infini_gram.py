"""infini-gram's engine opens our folders, and we open those that its builder makes.

The engine and the builder are those of the package `infini-gram` (Liu et al. 2024).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document, read_documents
from mnemoscope.data.corpus.opening import open_shards
from mnemoscope.data.corpus.shard_files import SortPlan, sort_shard
from mnemoscope.data.corpus.suffix_index import open_index

engine_module = pytest.importorskip("infini_gram.engine")

RNG = np.random.default_rng(0)
DOCUMENTS = [
    Document(" ".join(map(str, RNG.integers(1, 30, RNG.integers(0, 50)))), "a.jsonl", i, {"n": i})
    for i in range(200)
]
IDS = [[int(word) for word in document.text.split()] for document in DOCUMENTS]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def occurrences(query: list[int]) -> int:
    """Counted by looking at every place of every document."""
    n = len(query)
    return sum(ids[i : i + n] == query for ids in IDS for i in range(len(ids) - n + 1))


def engine_on(folder: Path, width: int, vocab_size: int) -> Any:
    return engine_module.InfiniGramEngine(
        str(folder), eos_token_id=0, vocab_size=vocab_size, token_dtype=f"u{8 * width}"
    )


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("tokens_per_shard", [10**6, 400])
def test_the_engine_counts_in_our_index_what_is_there(
    tmp_path: Path, width: int, tokens_per_shard: int
) -> None:
    build_index(
        DOCUMENTS, tmp_path / "ix", encode=numbers, vocab_size=30, width=width, inverse=True,
        tokens_per_shard=tokens_per_shard,
    )  # fmt: skip
    engine = engine_on(tmp_path / "ix", width, 30)
    rng = np.random.default_rng(1)
    for length in (1, 2, 3, 8, 60):
        for _ in range(20):
            ids = IDS[rng.integers(len(IDS))]
            start = rng.integers(max(1, len(ids) - length))
            query = ids[start : start + length] or [29]
            assert engine.count(query)["count"] == occurrences(query)
    assert engine.count([1, 2, 1, 2, 1, 2])["count"] == occurrences([1, 2, 1, 2, 1, 2])


def test_the_engine_finds_our_documents_and_what_follows(tmp_path: Path) -> None:
    build_index(DOCUMENTS, tmp_path / "ix", encode=numbers, vocab_size=30, width=2)
    engine = engine_on(tmp_path / "ix", 2, 30)
    (segment,) = engine.find(IDS[7][:6])["segment_by_shard"]
    found = engine.get_doc_by_rank(s=0, rank=segment[0], max_disp_len=100)
    assert found["token_ids"] == IDS[7]
    assert json.loads(found["metadata"]) == {"path": "a.jsonl", "linenum": 7, "metadata": {"n": 7}}
    following = engine.ntd(prompt_ids=[5], max_support=10**6)["result_by_token_id"]
    pairs = [ids[i + 1] for ids in IDS for i in range(len(ids) - 1) if ids[i] == 5]
    counts = {token: entry["cont_cnt"] for token, entry in following.items()}
    ends = sum(ids[-1:] == [5] for ids in IDS)  # told as eos_token_id, which is 0 here
    assert counts == {0: ends} | {token: pairs.count(token) for token in set(pairs)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The corpus as JSON lines, and the index over its bytes that infini-gram's builder makes."""
    place = tmp_path_factory.mktemp("built")
    data, save = place / "data", place / "ix"
    data.mkdir()
    save.mkdir()
    rows = [{"text": document.text, **document.metadata} for document in DOCUMENTS]
    (data / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data_dir": data, "save_dir": save, "token_dtype": "u8", "cpus": 1, "mem": 1}
    options = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "infini_gram.indexing", *options]
    done = subprocess.run(
        [*command, "--add_metadata", "--add_unigram", "--ulimit=512"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return data, save


def test_we_open_what_the_builder_makes(theirs: tuple[Path, Path]) -> None:
    info, (shard,) = open_shards(theirs[1])
    assert info.foreign
    assert (info.mode, info.width, info.n_documents) == ("bytes", 1, 200)
    texts = [shard.tokens[slice(*shard.document_span(d))].tobytes().decode() for d in range(200)]
    assert texts == [document.text for document in DOCUMENTS]
    record = shard.record(7)
    assert record is not None
    assert (record.source, record.line, dict(record.metadata)) == ("a.jsonl", 7, {"n": 7})


def test_both_builders_write_the_same_bytes(theirs: tuple[Path, Path], tmp_path: Path) -> None:
    data, save = theirs
    build_index(read_documents(data), tmp_path / "ours")
    for kind in ("tokenized", "table", "offset", "metadata", "metaoff"):
        ours = (tmp_path / "ours" / f"{kind}.0").read_bytes()
        assert ours == (save / f"{kind}.0").read_bytes(), kind


def test_their_sorter_orders_our_two_byte_tokens_as_we_do(tmp_path: Path) -> None:
    folder = tmp_path / "ix"
    build_index(DOCUMENTS, folder, encode=numbers, vocab_size=30, width=2)
    ours = (folder / "table.0").read_bytes()
    (folder / "table.0").unlink()
    code = f"""
from argparse import Namespace
from infini_gram.indexing import build_sa
build_sa(Namespace(worker_id=0, shards=1, workers=1, save_dir={str(folder)!r},
                   temp_dir={str(folder)!r}, mem=1, cpus=1, token_width=2))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "table.0").read_bytes() == ours


INDEXER = """
import sys
from types import SimpleNamespace
class Numbers:
    def encode(self, text):
        return [int(word) for word in text.split()]
sys.modules["transformers"] = SimpleNamespace(
    AutoTokenizer=SimpleNamespace(from_pretrained=lambda *_, **__: Numbers()),
    utils=SimpleNamespace(logging=SimpleNamespace(set_verbosity=lambda _: None)),
)
from infini_gram import indexing
if "--token_dtype=u32" in sys.argv:
    indexing.build_sa = lambda _: None
sys.argv = ["indexing", *sys.argv[1:]]
indexing.main()
"""
"""Their indexer with an encoder of our own in place of a downloaded tokenizer; at four bytes
without their sorter, which asks for 32 GiB however small the corpus is."""


@pytest.fixture(scope="module", params=[2, 4])
def token_indexes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[Path]]:
    """Two folders of two shards each over halves of the corpus, by their indexer (and, at four
    bytes, by our sorter)."""
    width, place = request.param, tmp_path_factory.mktemp("public")
    folders = []
    for half in range(2):
        data, save = place / f"data{half}", place / f"ix{half}"
        data.mkdir()
        save.mkdir()
        rows = [{"text": d.text, **d.metadata} for d in DOCUMENTS[100 * half : 100 * half + 100]]
        (data / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"data_dir": data, "save_dir": save, "token_dtype": f"u{8 * width}", "shards": 2,
                 "tokenizer": "gpt2", "cpus": 1, "mem": 1, "ulimit": 512}  # fmt: skip
        options = [f"--{name}={value}" for name, value in given.items()]
        done = subprocess.run(
            [sys.executable, "-c", INDEXER, *options, "--add_metadata", "--add_unigram"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        for number in range(2) if width == 4 else ():
            sorting = place / f"sorting{half}.{number}"
            sorting.mkdir()
            shutil.copy(save / f"tokenized.{number}", sorting)
            sort_shard(sorting, sorting, number, SortPlan(width, directory=False, inverse=False))
            shutil.copy(sorting / f"table.{number}", save)
        folders.append(save)
    return width, folders


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_their_token_indexes_open_as_they_are(
    token_indexes: tuple[int, list[Path]], where: str
) -> None:
    """Several folders at once, at widths 2 and 4: counts are the engine's and those of looking."""
    width, folders = token_indexes
    engine = engine_module.InfiniGramEngine(
        [str(folder) for folder in folders], eos_token_id=0, vocab_size=30,
        token_dtype=f"u{8 * width}",
    )  # fmt: skip
    ours = open_index([f"file://{f}" if where == "elsewhere" else f for f in folders])
    assert ours.remote == (where == "elsewhere")
    assert (ours.info.foreign, ours.info.width, len(ours.shards)) == (True, width, 4)
    assert ours.info.vocab_size == (65_535 if width == 2 else 30)
    assert ours.info.n_documents == 200
    rng = np.random.default_rng(2)
    for length in (1, 2, 3, 8):
        for _ in range(10):
            ids = IDS[rng.integers(len(IDS))]
            start = rng.integers(max(1, len(ids) - length))
            query = ids[start : start + length] or [29]
            want = occurrences(query)
            assert ours.count(query) == want == engine.count(query)["count"]
            assert len(ours.locate(query, limit=10**6)) == want
    counts = np.bincount(np.concatenate([np.array(ids, int) for ids in IDS]), minlength=30)
    assert ours.unigram_counts[:30].tolist() == counts.tolist()
    text = [*IDS[7][:20], 29, 29, *IDS[151][3:20]]
    theirs = engine.attribute(
        input_ids=text, delim_ids=[], min_len=1, max_cnt=10**9, enforce_bow=False
    )["spans"]
    assert [(s.start, s.stop, s.count) for s in ours.maximal_spans(text)] == [
        (span["l"], span["r"], span["count"]) for span in theirs
    ]
    (place, *_) = ours.locate(IDS[151][:9])
    found = ours.document(place.shard, place.document)
    assert found.ids.tolist() == IDS[151]
    assert found.record is not None
    assert (found.record.source, found.record.line) == ("a.jsonl", 51)
    assert found.record.metadata == {"n": 151}
