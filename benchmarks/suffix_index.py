"""What do index queries cost, and what does the infini-gram engine take for the same answers?"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from types import SimpleNamespace
from typing import Any

import numpy as np
from corpora import VOCABULARY, from_text, generated
from jaxtyping import Int64
from measuring import Arguments, arguments, fresh_processes, report, table
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.layout import file_name
from mnemoscope.data.corpus.match_state import MatchState, start
from mnemoscope.data.corpus.shard_files import SortPlan, sort_shard
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index

CLAIM = (
    "On an index of 50 M tokens, warm and on one core: a count takes at most 10 us, the maximal "
    "spans of a 450-token text 3 ms, one decode step 30 us, 50 candidates 200 us; sorting is at "
    "least as fast as infini-gram's builder."
)
NOTE = (
    "Corpus: {corpus}, {tokens:.1f} M tokens of 2 bytes, with directory; texts and absent queries "
    "come from documents that were left out; no query of a row is asked twice. *wall us* and "
    "*90 %*: median and 90 % quantile over the calls, from Python, arrays in. *cpu us*: processor "
    "time of the same calls, median; the target is held against this one, since wall time on a "
    "shared machine counts the waiting. *infini-gram*: the engine of the package on the same files "
    "and queries, wall; *ratio*: its median over our median wall; *equal*: all answers are the "
    "same. Most of its time is the starting of threads, one for each shard and query position, "
    "which hide the waiting where an index of trillions of tokens lies on disks: the ratio is no "
    "forecast for such an index. "
    "Builders: the sorting step alone, both from the same tokens to the same table (theirs with "
    "two processes); ours writes directory, counts and hashes too; theirs compares 100 kB "
    "at most: longer repeats may be in another order, and a corpus of less than that goes wrong. "
    "Cold: the files were dropped from the page cache before each find of 8 tokens, the directory "
    "was read back."
)
LIBRARY = "mnemoscope.data.corpus.build"
TARGETS = {"count": 10.0, "maximal spans": 3000.0, "decode step": 30.0, "50 candidates": 200.0}


@dataclass(frozen=True)
class Setting:
    """How large a corpus, and how many queries of each kind."""

    tokens: int
    counts: int
    texts: int
    cold: int


OPERATIONS = (
    *("operation", "cpu us", "wall us", "90 %", "target us", "within"),
    *("infini-gram us", "ratio", "equal"),
)
SORTING = ("sorting by", "wall s", "cpu s", "M tokens / cpu s", "places unlike the index")

TOY = Setting(60_000, 20, 3, 2)
FULL = Setting(50_000_000, 300, 40, 30)
TEXT = 450  # tokens of a text to trace
HELD_OUT = 0.01  # share of the documents that the index does not hold


def main() -> None:
    given = arguments(CLAIM, takes_text=True)
    setting = TOY if given.toy else FULL
    with tempfile.TemporaryDirectory(prefix="suffix_") as temporary:
        place = Path(temporary)
        held = build(given, setting, place / "ix")
        faults = table(
            ("cold find of 8 tokens", "major faults", "90 %", "wall ms"),
            [cold_row(place / "ix", setting.cold, directory) for directory in (True, False)],
        )
        index = open_index(place / "ix")
        warm(index)
        queries = table(
            OPERATIONS,
            [*measured(index, place / "ix", held, setting)],
        )
        builders = table(SORTING, sorting(place))
        source = "real text, byte-level BPE learnt from it" if given.text else "generated"
        note = NOTE.format(corpus=source, tokens=index.n_tokens / 1e6)
    report(given, "suffix_index", CLAIM, "\n\n".join((queries, builders, faults, note)))


def build(given: Arguments, setting: Setting, folder: Path) -> Int64[np.ndarray, " n"]:
    """Build the index; the tokens of the documents that were left out."""
    documents = from_text(given.text, setting.tokens) if given.text else generated(setting.tokens)
    out = max(1, int(HELD_OUT * len(documents)))
    inside = documents[out:]
    names = (Document(str(i), "corpus", i, {}) for i in range(len(inside)))
    build_index(
        names,
        folder,
        encode=lambda text: inside[int(text)],  # a document's text is its number
        vocab_size=VOCABULARY,
        width=2,
        tokens_per_shard=2 * setting.tokens,
    )
    return np.concatenate(documents[:out]).astype(np.int64)


def warm(index: SuffixIndex) -> None:
    """Read all files once, and compile every kernel."""
    for shard in index.plain:
        for part in (shard.data, shard.table, shard.directory):
            part.max(initial=0)
    index.maximal_spans([1, 2, 3])
    index.count([1, 2])
    start(index).advance([1]).candidates([[1, 2]])


def measured(
    index: SuffixIndex, folder: Path, held: Int64[np.ndarray, " n"], setting: Setting
) -> Iterator[tuple[object, ...]]:
    """The rows of the table of queries."""
    engine, random = engine_on(folder), np.random.default_rng(0)
    for length in (1, 5, 20, 100):
        asked = [*inside(index, length, setting.counts, random)]
        count = counting(engine)
        yield row(f"count, {length} tokens", "count", index.count, asked, count)
    absent = [held[p : p + 8][::-1].copy() for p in places(held, 8, setting.counts, random)]
    yield row("count, 8 tokens in an order not seen", "count", index.count, absent, count)
    texts, others = (
        [held[p : p + TEXT].copy() for p in places(held, TEXT, setting.texts, random)]
        for _ in range(2)
    )
    yield row("matching statistics, 450 tokens", "", index.matching_statistics, others, None)
    spans = spanning(engine)
    yield row("maximal spans, 450 tokens", "maximal spans", spans_of(index), texts, spans)
    found = [*inside(index, 3, setting.counts, random)]
    yield row("locate 10 places of 3 tokens", "", index.locate, found, None)
    steps = [*stepped(index, texts)]
    yield row("decode step", "decode step", lambda step: step[0].advance(step[1]), steps, None)
    for least in (8, 1):
        tokens = random.choice(held, size=(1, 50))
        yield row(
            f"50 candidates, matches of at least {least}",
            "50 candidates",
            lambda step, tokens=tokens, least=least: step[0].candidates(tokens, least),
            steps[:: max(1, len(steps) // 300)],
            None,
        )


def row(
    name: str,
    target: str,
    ours: Callable[[Any], Any],
    queries: Sequence[Any],
    theirs: Callable[[Any], Any] | None,
) -> tuple[object, ...]:
    """Time one operation over its queries, none twice, and the engine's where there is one."""
    wall, cpu, other, equal = [], [], [], True
    answers = []
    for query in queries:
        before, clock = perf_counter(), thread_time()
        answers.append(ours(query))
        cpu.append(thread_time() - clock)
        wall.append(perf_counter() - before)
    for query, answer in zip(queries, answers, strict=True) if theirs else ():
        argument, before = query.tolist(), perf_counter()
        said = theirs(argument)
        other.append(perf_counter() - before)
        equal = equal and said == answer
    typical, bound = 1e6 * median(cpu), TARGETS.get(target)
    return (
        *(name, typical, 1e6 * median(wall), 1e6 * float(np.quantile(wall, 0.9))),
        *((bound, "yes" if typical <= bound else "NO") if bound else ("", "")),
        *(
            (1e6 * median(other), median(other) / median(wall), "yes" if equal else "NO")
            if other
            else [""] * 3
        ),
    )


def inside(
    index: SuffixIndex, length: int, n: int, random: np.random.Generator
) -> Iterator[Int64[np.ndarray, " length"]]:
    """Sequences that the index holds."""
    tokens, found = index.shards[0].tokens, 0
    while found < n:
        place = random.integers(len(tokens) - length)
        piece = tokens[place : place + length].astype(np.int64)
        if (piece != index.info.separator).all():
            found += 1
            yield piece


def places(
    tokens: Int64[np.ndarray, " n"], length: int, n: int, random: np.random.Generator
) -> list[int]:
    """Where to cut pieces of `length`."""
    return random.integers(len(tokens) - length, size=n).tolist()


def stepped(
    index: SuffixIndex, texts: Sequence[Int64[np.ndarray, " n"]]
) -> Iterator[tuple[MatchState, Int64[np.ndarray, " 1"]]]:
    """The state before each of the first 100 tokens of the texts, and that token."""
    for text in texts:
        state = start(index)
        for token in text[:100]:
            step = np.array([token])
            yield state, step
            state = state.advance(step)


def spans_of(index: SuffixIndex) -> Callable[[Any], list[tuple[int, int, int]]]:
    """Our maximal spans as (start, stop, count)."""
    return lambda ids: [(s.start, s.stop, s.count) for s in index.maximal_spans(ids)]


def engine_on(folder: Path) -> Any:
    """The infini-gram engine on the same folder, or None where the package is missing."""
    if find_spec("infini_gram") is None:
        return None
    from infini_gram.engine import InfiniGramEngine

    return InfiniGramEngine(
        str(folder), eos_token_id=0, vocab_size=VOCABULARY, version=4, token_dtype="u16"
    )


def counting(engine: Any) -> Callable[[list[int]], int] | None:
    """How often, by the engine."""
    return engine and (lambda ids: engine.find(input_ids=ids)["cnt"])


def spanning(engine: Any) -> Callable[[list[int]], list[tuple[int, int, int]]] | None:
    """Maximal spans, by the engine."""

    def spans(ids: list[int]) -> list[tuple[int, int, int]]:
        found = engine.attribute(
            input_ids=ids, delim_ids=[], min_len=1, max_cnt=10**12, enforce_bow=False
        )
        return [(span["l"], span["r"], span["count"]) for span in found["spans"]]

    return engine and spans


def sorting(place: Path) -> list[tuple[object, ...]]:
    """Time to sort the suffixes of the shard, ours and theirs."""
    tokens = file_name("tokenized", 0)
    size = (place / "ix" / tokens).stat().st_size // 2
    rows: list[tuple[object, ...]] = []
    for name, sort in (("ours", sort_ours), ("infini-gram's builder", sort_theirs)):
        if sort is sort_theirs and find_spec("infini_gram") is None:
            continue
        folder = place / name.partition(" ")[0].replace("'", "")
        folder.mkdir()
        shutil.copy(place / "ix" / tokens, folder / tokens)
        with fresh_processes(1, LIBRARY) as pool:
            wall, cpu = pool.submit(sort, folder).result()
        made, wanted = (
            np.fromfile(f / file_name("table", 0), "u1") for f in (folder, place / "ix")
        )
        differ = int((made != wanted).reshape(size, -1).any(axis=1).sum())
        rows.append((name, wall, cpu, size / cpu / 1e6, differ))
    return rows


def sort_ours(folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of our sorting."""
    before, cpu = perf_counter(), process_time()
    sort_shard(folder, folder, 0, SortPlan(width=2, directory=True, inverse=False))
    return perf_counter() - before, process_time() - cpu


def sort_theirs(folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of theirs, its child processes included."""
    from infini_gram.indexing import build_sa

    given = SimpleNamespace(
        save_dir=str(folder), temp_dir=str(folder), shards=1, workers=1, worker_id=0,
        token_width=2, mem=8, cpus=2,
    )  # fmt: skip
    silent, before = os.open(os.devnull, os.O_WRONLY), perf_counter()
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    build_sa(given)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return perf_counter() - before, used.ru_utime + used.ru_stime


def cold_row(folder: Path, n: int, directory: bool) -> tuple[object, ...]:
    """Page faults of finds whose pages are not in memory, with or without the directory."""
    with fresh_processes(1, LIBRARY) as pool:
        faults, seconds = pool.submit(cold, folder, n, directory).result()
    name = "with directory" if directory else "without"
    return name, median(faults), float(np.quantile(faults, 0.9)), 1e3 * median(seconds)


def cold(folder: Path, n: int, directory: bool) -> tuple[list[int], list[float]]:
    """Major faults and seconds of each find, the files dropped from the page cache before it."""
    faults, seconds = [], []
    random = np.random.default_rng(1)
    for _ in range(n):
        index = open_index(folder)
        (query,) = inside(index, 8, 1, random)
        index.count(query)  # compiles, and reads what else is read once
        del index
        evict(folder)
        index = open_index(folder)
        shard = index.plain[0]
        shard.directory.max(initial=0)
        if not directory:
            index.__dict__["plain"] = (shard._replace(directory=shard.directory[:0]),)
        before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, perf_counter()
        index.count(query)
        seconds.append(perf_counter() - clock)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)
        del index, shard
    return faults, seconds


def evict(folder: Path) -> None:
    """Ask the system to drop the files from its page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file, suppress(AttributeError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
