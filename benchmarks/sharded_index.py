"""What do queries cost where an index is cut into parts, or is read in ranges from elsewhere?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from corpora import VOCABULARY, Ids, generated
from jaxtyping import Int64
from measuring import arguments, report, table
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.joined_index import join_parts
from mnemoscope.data.corpus.parts import Part, PartRecord
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index
from ranged_server import ranged_server

CLAIM = (
    "An index of parts answers as the whole one does, in time that grows with the number of shards "
    "and not with their size. From elsewhere a count takes 10 to 25 ranged reads a shard (blocks "
    "of at most 64 kB, neighbours in one read), in rounds that wait together, and a fraction of a "
    "percent of the bytes of a shard of this size."
)
NOTE = (
    "Corpus: generated, {tokens:.1f} M tokens of 2 bytes, {size:.0f} MB of index ({parts} parts: "
    "one shard each; directory and counts of ids in all but *counts only*, which has the files "
    "that infini-gram's public indexes have). *here*: mapped, numba kernels, page cache warm. "
    "*http*: a web server (Python, on the same cores) through fsspec, {wait:.0f} ms before each "
    "answer, a new "
    "cache for each row, filled by the queries of the row alone. Medians over the queries, none "
    "asked twice; *first*: the first query of the row, on an empty cache. *reads*, *rounds*, *kB*: "
    "per query; the reads of a round go out together, and rounds of different shards too. Counts "
    "of ids are read once an index is opened ({counts:.1f} MB here) and not in the rows. *equal*: "
    "all answers are those of the whole index here."
)
COLUMNS = (
    *("query", "index", "where", "queries/s", "ms", "first ms", "reads", "first reads"),
    *("rounds", "kB", "equal"),
)


@dataclass(frozen=True)
class Setting:
    """How large a corpus in how many parts, how many queries, how slow a server (seconds)."""

    tokens: int
    parts: int
    counts: int
    texts: int
    wait: float


@dataclass(frozen=True)
class Operation:
    """A query with its inputs; `answer` makes its result comparable."""

    name: str
    ask: Callable[[SuffixIndex, Any], Any]
    inputs: Sequence[Int64[np.ndarray, " n"]]


TOY = Setting(40_000, 3, 4, 1, 0.0)
FULL = Setting(20_000_000, 8, 20, 2, 0.03)
HELD_OUT = 20
TEXT = 100


def main() -> None:
    given = arguments(CLAIM)
    setting = TOY if given.toy else FULL
    with tempfile.TemporaryDirectory(prefix="parts_") as temporary:
        place = Path(temporary)
        held = build(setting, place)
        whole = open_index(place / "whole")
        asked = operations(whole, held, setting)
        wanted = {one.name: [one.ask(whole, ids) for ids in one.inputs] for one in asked}
        rows: list[tuple[object, ...]] = []
        with ranged_server(place) as server:
            server.seconds = setting.wait
            for operation in asked:
                for name in ("whole", "parts", "plain"):
                    for where in (f"{place}/{name}", f"{server.address}/{name}"):
                        if name == "plain" and not where.startswith("http"):
                            continue
                        rows.append(row(operation, name, where, wanted[operation.name]))
        size = sum(path.stat().st_size for path in (place / "whole").iterdir())
        counts = (place / "whole" / "unigram.0").stat().st_size
        note = NOTE.format(
            tokens=whole.n_tokens / 1e6, size=size / 1e6, parts=setting.parts,
            wait=1e3 * setting.wait, counts=counts / 1e6,
        )  # fmt: skip
    report(given, "sharded_index", CLAIM, table(COLUMNS, rows) + "\n\n" + note)


def build(setting: Setting, place: Path) -> Int64[np.ndarray, " n"]:
    """The corpus as one index, as parts, and as one with infini-gram's files only; the tokens of
    the documents that were left out."""
    documents = generated(setting.tokens)
    out = max(1, len(documents) // HELD_OUT)
    inside = documents[out:]
    indexed(inside, 0, place / "whole")
    edges = [len(inside) * i // setting.parts for i in range(setting.parts + 1)]
    for number, (first, stop) in enumerate(pairwise(edges), 1):
        part = PartRecord(number, setting.parts, "cut")
        folder = place / "parts" / Part(number, setting.parts).folder
        indexed(inside[first:stop], first, folder, part)
    join_parts(place / "parts")
    (place / "plain").mkdir()
    for kind in ("tokenized", "table", "offset", "metadata", "metaoff", "unigram"):
        (place / "plain" / f"{kind}.0").hardlink_to(place / "whole" / f"{kind}.0")
    return np.concatenate(documents[:out]).astype(np.int64)


def indexed(
    documents: Sequence[Ids], first: int, folder: Path, part: PartRecord | None = None
) -> None:
    """One shard of two-byte ids; a document's text is its number."""
    build_index(
        (Document(str(i), "corpus", first + i, {}) for i in range(len(documents))),
        folder,
        encode=lambda text: documents[int(text)],
        vocab_size=VOCABULARY,
        width=2,
        part=part,
    )


def operations(
    index: SuffixIndex, held: Int64[np.ndarray, " n"], setting: Setting
) -> tuple[Operation, ...]:
    """Counts of sequences that are there and are not, places with their documents, spans."""
    random, tokens = np.random.default_rng(0), index.shards[0].tokens
    inside = [
        tokens[p : p + 5].astype(np.int64)
        for p in random.integers(len(tokens) - 5, size=4 * setting.counts).tolist()
    ]
    there = [ids for ids in inside if (ids != index.info.separator).all()]
    absent = [held[p : p + 8] for p in random.integers(len(held) - 8, size=setting.counts)]
    texts = [held[p : p + TEXT] for p in random.integers(len(held) - TEXT, size=setting.texts)]
    return (
        Operation("count, 5 tokens that occur", SuffixIndex.count, there[: setting.counts]),
        Operation("count, 8 tokens of unseen text", SuffixIndex.count, absent),
        Operation("places and records", places, there[setting.counts : 2 * setting.counts]),
        Operation(f"maximal spans, {TEXT} tokens", spans, texts),
    )


def places(index: SuffixIndex, ids: Int64[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """The documents that hold `ids`, and where, of at most five places; all if there are fewer."""
    found = []
    for one in index.locate(ids, limit=5):
        record = index.document(one.shard, one.document).record
        assert record is not None
        found.append((record.line, one.offset))
    return sorted(found) if len(found) < 5 else []  # a sample is another one for other shards


def spans(index: SuffixIndex, ids: Int64[np.ndarray, " n"]) -> list[tuple[int, int, int]]:
    """The maximal spans with their counts."""
    return [(span.start, span.stop, span.count) for span in index.maximal_spans(ids)]


def row(
    operation: Operation, name: str, where: str, wanted: Sequence[object]
) -> tuple[object, ...]:
    """Time the queries of an operation, and count what they read."""
    index = open_index(where)
    index.count([1])  # opens, compiles, and reads the counts of ids
    if not index.remote:
        for ids in operation.inputs:  # pages into memory
            operation.ask(index, ids)
    seconds, reads, rounds, kilobytes, answers = [], [], [], [], []
    for ids in operation.inputs:
        before, clock = index.traffic, perf_counter()
        answers.append(operation.ask(index, ids))
        seconds.append(perf_counter() - clock)
        spent = index.traffic - before
        reads.append(spent.reads)
        rounds.append(spent.rounds)
        kilobytes.append(spent.bytes / 1e3)
    cut = "counts only" if name == "plain" else name
    traffic: tuple[object, ...] = ("", "", "", "")
    if index.remote:
        traffic = (median(reads), reads[0], median(rounds), median(kilobytes))
    return (
        *(operation.name, cut, "http" if index.remote else "here"),
        *(len(seconds) / sum(seconds), 1e3 * median(seconds), 1e3 * seconds[0]),
        *traffic,
        "yes" if answers == list(wanted) else "NO",
    )


if __name__ == "__main__":
    main()
