"""`trace index --shard` on several machines, `trace join`, and queries of what lies elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from ranged_server import ranged_server

RECIPE = "Grind the blue salt with nine feathers and leave it under the old bridge"
ROWS = [f"Ship {n} left port {n * 7} with {RECIPE if n % 9 == 4 else 'corn'}." for n in range(40)]

Trace = Callable[..., dict[str, Any]]


@pytest.fixture
def trace(command: Any, tmp_path: Path) -> Trace:
    """Run `mnemoscope trace ARGS --json` beside a corpus and read what it prints."""
    lines = [json.dumps({"text": text}) for text in ROWS]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n", "utf-8")

    def run(*args: object) -> dict[str, Any]:
        done = command("trace", *args, "--json")
        assert done.code == 0, done.err
        record: dict[str, Any] = json.loads(done.out)
        return record

    return run


def words(text: str) -> str:
    return " ".join(text.split())


def test_parts_are_built_anywhere_and_queried_as_one(
    trace: Trace, command: Any, tmp_path: Path
) -> None:
    index = ("index", "c.jsonl", "--any-path", "--out")
    whole = trace(*index, "whole")
    made = [trace(*index, "ix", "--shard", f"{n}/3") for n in (2, 3)]
    assert [part["part"] for part in made] == ["2/3", "3/3"]
    early = command("trace", "join", "ix")
    assert early.code == 1
    assert "not built yet: part 1/3" in words(early.err)
    made.append(trace(*index, "ix", "--shard", "1/3"))
    assert sum(part["n_documents"] for part in made) == whole["n_documents"] == len(ROWS)
    joined = trace("join", "ix", "--verify")
    assert [joined[n] for n in ("n_tokens", "n_shards", "part")] == [whole["n_tokens"], 3, None]
    for span in (RECIPE, "left port", "Ship 7 ", "nowhere"):
        ours, theirs = (trace("docs", folder, span, "--limit", 50) for folder in ("ix", "whole"))
        assert ours["count"] == theirs["count"]
        assert {(d["source"], d["record"]) for d in ours["documents"]} == {
            (d["source"], d["record"]) for d in theirs["documents"]
        }
    traced = [trace("text", folder, f"Well: {RECIPE}, he said.") for folder in ("ix", "whole")]
    assert [span["text"] for span in traced[0]["spans"]] == [
        span["text"] for span in traced[1]["spans"]
    ]
    with ranged_server(tmp_path) as server:
        assert trace("docs", f"{server.address}/ix", RECIPE)["count"] == 4
        far = trace("text", f"{server.address}/whole", f"Well: {RECIPE}, he said.")
        assert [s["log_e"] for s in far["spans"]] == [s["log_e"] for s in traced[1]["spans"]]
    assert "could not be read" in words(command("trace", "docs", server.address, RECIPE).err)


def test_a_finished_part_is_left_as_it_is_and_another_corpus_refused(
    trace: Trace, command: Any, tmp_path: Path
) -> None:
    index = ("index", "c.jsonl", "--any-path", "--out", "ix", "--shard", "1/2")
    first = trace(*index)
    stamp = (Path(first["index"]) / "table.0").stat().st_mtime_ns
    assert trace(*index)["n_tokens"] == first["n_tokens"]
    assert (Path(first["index"]) / "table.0").stat().st_mtime_ns == stamp
    with (tmp_path / "c.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "one more"}\n')
    other = command("trace", *index)
    assert other.code == 1
    assert "built from other sources or settings" in words(other.err)
    trace(*index, "--force")
    assert "no part 3 of 2" in words(command("trace", *index[:-1], "3/2").err)


def test_any_indexes_are_listed_as_one(trace: Trace, command: Any) -> None:
    for name in ("a", "b"):
        trace("index", "c.jsonl", "--any-path", "--out", name)
    assert trace("join", "ab", "a", "b")["n_documents"] == 2 * len(ROWS)
    assert trace("docs", "ab", RECIPE)["count"] == 8
    trace("index", "c.jsonl", "--any-path", "--tokenizer", "engram", "--out", "tokens")
    mixed = command("trace", "join", "mixed", "a", "tokens")
    assert mixed.code == 1
    assert "differ in mode" in words(mixed.err)
