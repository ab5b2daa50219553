"""`mnemoscope retrieval` on the planted retrieval model (score, compare) and on engram (gates,
stream): planted heads get their roles and cost the answer; patterns travel; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from mnemoscope.cli import retrieval_comparing, retrieval_scoring
from mnemoscope.cli.retrieval_comparing import CompareConfig, CompareResult, compare_retrieval
from mnemoscope.cli.retrieval_gates import GateConfig, GateResult, find_gates
from mnemoscope.cli.retrieval_patterns import cost_ranks, full_heads, rule_of
from mnemoscope.cli.retrieval_scoring import ScoreConfig, ScoreResult, score_retrieval
from mnemoscope.interventions.streaming_pattern import StreamingPattern
from mnemoscope.models import load_model
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes import retrieval_measures
from mnemoscope.results.attention_patterns import load_pattern_folder
from mnemoscope.results.head_set import HeadScore, HeadSet, load_head_set, save_head_set
from mnemoscope.results.query_head_files import load_query_head_list
from mnemoscope.results.retrieval_head_files import load_retrieval_head_scores
from mnemoscope.results.row_log import RowLog
from mnemoscope.results.run_reading import load_run, verify_run
from mnemoscope.results.score_sidecars import load_sidecar

GATES = GateConfig(
    "engram", sink=4, recent=16, lengths=(160,), passkeys=1, words=2, samples=2, steps=3, seeds=2
)
NEEDLES = 12
QUIET: Any = {"force": False, "say": lambda _: None, "tell": lambda *_: None}


@dataclass(frozen=True)
class World:
    """The planted model on disk, a root of finished runs, and these runs.

    The score was interrupted once, when it had kept the units `before`.
    """

    planted: PlantedRetrieval
    checkpoint: Path
    root: Path
    before: tuple[str, ...]
    scored: ScoreResult
    compared: CompareResult
    gates: GateResult


@pytest.fixture(scope="module")
def patched() -> Iterator[PlantedRetrieval]:
    """Commands ask the planted model about its own needles, and read little besides."""
    planted = planted_retrieval_model()
    few = replace(planted, needles=planted.needles[:NEEDLES])
    design = planted_retrieval_design(few, lengths=(160,), rounds=1)
    basin = partial(retrieval_measures.basin_prompts, documents=3, length=8, rounds=2)
    with pytest.MonkeyPatch.context() as patch:
        for module in (retrieval_scoring, retrieval_comparing):
            patch.setattr(module, "design_of", lambda _config, _model: design)
        patch.setattr(retrieval_measures, "basin_prompts", basin)
        induction = partial(retrieval_measures.measure_induction, sequences=6)
        patch.setattr(retrieval_measures, "measure_induction", induction)
        patch.setattr(retrieval_measures, "SUPPRESSION_TOKENS", 16)
        yield planted


@pytest.fixture(scope="module")
def retrieval_world(patched: PlantedRetrieval, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All runs, by the functions behind the commands."""
    folder = tmp_path_factory.mktemp("retrieval")
    patched.module.save_pretrained(folder / "planted")
    patched.tokenizer.save_pretrained(folder / "planted")
    root = folder / "runs"
    config = ScoreConfig(str(folder / "planted"), knockouts=2)
    with pytest.MonkeyPatch.context() as patch:
        before = stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            score_retrieval(config, root, **QUIET)
    scored = score_retrieval(config, root, **QUIET)
    gates = find_gates(GATES, root, memory_mb=64, **QUIET)
    asked = CompareConfig(
        methods=("copy", "locate", "induction"), k=2, sizes=(1, 2), trials=6, draws=3
    )
    compared = compare_retrieval(asked, [scored.folder], root, memory_mb=64, **QUIET)
    return World(patched, folder / "planted", root, tuple(before), scored, compared, gates)


def stop_after(patch: pytest.MonkeyPatch, units: int) -> list[str]:
    """A run stops when it has kept so many units: the list of their keys, as it grows."""
    append, seen = RowLog.append, list[str]()

    def stop(self: RowLog, key: str, row: Any) -> None:
        append(self, key, row)
        seen.append(key)
        if len(seen) == units:
            raise KeyboardInterrupt

    patch.setattr(RowLog, "append", stop)
    return seen


Retrieval = Callable[..., Any]


@pytest.fixture
def retrieval(command: Any, retrieval_world: World) -> Retrieval:
    """`retrieval VERB`, with the arguments of the finished runs, in the shared root."""
    world = retrieval_world
    small = ("--lengths", 160, "--passkeys", 1, "--words", 2, "--samples", 2, "--steps", 3)
    few = ("--k", 2, "--sizes", "1,2", "--trials", 6, "--draws", 3)
    short = ("--length", 160, "--new-tokens", 4)
    given: dict[str, tuple[object, ...]] = {
        "score": (world.checkpoint, "--knockouts", 2),
        "gates": ("engram", "--sink", 4, "--recent", 16, *small),
        "compare": (world.scored.folder, "--methods", "copy,locate,induction", *few),
        "stream": ("engram", "--pattern", world.gates.folder, *short),
    }

    def run(verb: str, *more: object, root: Path | None = None) -> Any:
        where = () if verb == "stream" else ("--runs", root or world.root)
        return command("retrieval", verb, *given[verb], *where, *more)

    return run


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def row_of(table: polars.DataFrame, head: HeadId) -> dict[str, Any]:
    return table.filter(
        (polars.col("layer") == head.layer) & (polars.col("head") == head.head)
    ).row(0, named=True)


# -- score -----------------------------------------------------------------------------------------


def test_score_gives_the_planted_heads_their_parts(retrieval_world: World) -> None:
    table, planted = retrieval_world.scored.table, retrieval_world.planted
    copy = row_of(table, planted.copy_heads[0])
    induction = row_of(table, planted.induction_heads[0])
    inert = row_of(table, planted.inert_readers[0])
    assert len(table) == 20
    assert copy["copy"] == copy["first"] == 1
    assert copy["write_role"] == "copy"
    assert copy["locos"] == pytest.approx(10, abs=0.5)
    assert induction["first"] == 0
    assert induction["continuation"] == 1
    assert induction["induction"] > 0.99
    assert (inert["copy"], inert["write_role"]) == (1, "inert")
    assert row_of(table, planted.suppression_heads[0])["write_role"] == "suppress"
    assert row_of(table, planted.locate_heads[0])["role"] == "locate"
    for head in planted.noise_heads:
        assert row_of(table, head)["copy_q"] > 0.05


def test_score_writes_head_sets_score_files_figures_and_a_report(retrieval_world: World) -> None:
    folder, planted = retrieval_world.scored.folder, retrieval_world.planted
    verify_run(folder)
    retrieving = load_head_set(folder / "headset-retrieval.json")
    assert set(planted.copy_heads) <= set(retrieving.ids)
    assert not set(planted.noise_heads) & set(retrieving.ids)
    assert set(planted.locate_heads) <= set(load_head_set(folder / "headset-locate.json").ids)
    scores = load_retrieval_head_scores(folder / "exports" / "retrieval_head.json")
    sidecar = load_sidecar(folder / "exports" / "retrieval_head.json")
    assert sidecar is not None
    assert len(sidecar.trials) == len(scores[planted.copy_heads[0]]) == NEEDLES
    assert len(load_query_head_list(folder / "exports" / "qr_heads.yaml").heads) == 16
    assert {"copy.html", "emit.html", "read-write.html"} <= {
        path.name for path in (folder / "figures").iterdir()
    }
    assert "Retrieval heads of planted" in (folder / "report.html").read_text("utf-8")


def test_score_cuts_edges_and_tells_steps_and_lengths(retrieval_world: World) -> None:
    table, planted = retrieval_world.scored.table, retrieval_world.planted
    copy = row_of(table, planted.copy_heads[0])
    assert copy["edge"] > 5
    assert abs(row_of(table, planted.inert_readers[0])["edge"]) < 0.1
    assert copy["step_entropy"] == 1
    assert row_of(table, planted.induction_heads[0])["step_entropy"] == 0
    summary = retrieval_world.scored.summary
    assert summary["knockout_trials"] == 2
    assert summary["serial"]["share"] > 0.5
    notes = " ".join(summary["notes"])
    assert "No law of length: a law of length needs trials of two lengths" in notes
    assert f"{NEEDLES} answers are right and 0 wrong" in notes
    report = (retrieval_world.scored.folder / "report.html").read_text("utf-8")
    assert "Heads that copy, by step of the answer" in report
    assert "with the needle hidden from locate heads" in report
    assert (retrieval_world.scored.folder / "figures" / "read-cause.html").is_file()


def test_score_counts_what_was_answered(retrieval_world: World) -> None:
    summary = retrieval_world.scored.summary
    assert summary["counts"] == {"asked": NEEDLES, "accepted": NEEDLES, "known": 0, "kept": NEEDLES}
    assert summary["needles"] == NEEDLES
    assert summary["retrieval_heads"] == 4  # copy, inert reader, suppression, induction


def test_score_says_that_a_run_is_done_and_gives_one_json_document(retrieval: Retrieval) -> None:
    done = retrieval("score", "--json")
    assert done.code == 0, done.err
    assert "is done already" in done.err
    record = json.loads(done.out)
    assert record["kind"] == "retrieval-scores"
    assert len(record["scores"]) == 20
    assert "L3.H2" in retrieval("score").err


def test_an_interrupted_score_goes_on(retrieval_world: World) -> None:
    """All that the other tests read of it came after the interruption."""
    kept = load_run(retrieval_world.scored.folder).rows
    assert len(retrieval_world.before) == 8
    assert tuple(kept)[:8] == retrieval_world.before  # nothing was measured a second time
    assert len(kept) > 8
    assert "summary" in kept


def test_an_interrupted_score_says_so_by_its_exit_code(
    retrieval: Retrieval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stop_after(monkeypatch, 1)
    assert retrieval("score", root=tmp_path / "runs").code == 130
    assert seen == ["rows-00000"]


def test_score_refuses_a_kind_that_is_not_offered(retrieval: Retrieval) -> None:
    done = retrieval("score", "--kind", "rhyming")
    assert done.code == 1
    assert "--kind is 'rhyming': use literal, non-literal, both." in words(done.err)


# -- compare ---------------------------------------------------------------------------------------


def test_an_interrupted_comparison_goes_on_by_its_id(
    retrieval_world: World, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration names scores by content; where they lie is noted beside it."""
    world = retrieval_world
    asked = CompareConfig(
        methods=("copy", "locate", "induction"), k=2, sizes=(1, 2), trials=6, draws=3
    )
    with monkeypatch.context() as patch:
        before = stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            compare_retrieval(asked, [world.scored.folder], tmp_path, memory_mb=64, **QUIET)
    name = world.compared.folder.name
    done = command("runs", "resume", name, "--runs", tmp_path)
    assert done.code == 0, done.err
    assert tuple(load_run(tmp_path / name).rows)[:3] == tuple(before)
    assert polars.read_parquet(tmp_path / name / "table.parquet").equals(world.compared.table)


def test_compare_shows_whose_heads_the_answer_hangs_on(retrieval_world: World) -> None:
    """Without the locate head nothing is found; copy and inert reader tie in what they read, so
    reading alone does not tell which of them the answer needs."""
    summary = retrieval_world.compared.summary
    area = {one["method"]: one["area"] for one in summary["methods"]}
    assert area["locate"] == max(area.values())
    assert area["locate"] > 5
    assert area["induction"] < 1
    assert summary["trials"] == summary["needles"] == 6
    assert len(summary["pairs"]) == 3


def test_compare_keeps_curves_figures_and_a_report(retrieval_world: World) -> None:
    folder = retrieval_world.compared.folder
    verify_run(folder)
    table = retrieval_world.compared.table
    assert len(table) == 6
    assert {"method", "heads", "loss", "random", "beyond", "p", "perplexity"} <= set(table.columns)
    assert (folder / "figures" / "spearman.html").is_file()
    assert "Agreement of every pair" in (folder / "report.html").read_text("utf-8")


def test_compare_lays_files_beside_the_run(
    retrieval: Retrieval, retrieval_world: World, tmp_path: Path
) -> None:
    """A score file of Retrieval_Head, a head list of QRHead and a head set."""
    exports = retrieval_world.scored.folder / "exports"
    mine = HeadSet("m", "planted", 5, 4, 4, "by hand", None, (HeadScore(HeadId(1, 2), 2.0),))
    save_head_set(tmp_path / "mine.json", mine)
    done = retrieval(
        "compare", exports / "retrieval_head.json", exports / "qr_heads.yaml",
        tmp_path / "mine.json", "--sizes", "1", "--trials", 2, "--draws", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    top = {one["method"]: one["top"] for one in record["methods"]}
    assert top["retrieval_head"] == top["copy"]
    assert top["mine"] == ["L1.H2"] == top["locate"]
    assert {"qr_heads", "induction"} < set(top)


def test_compare_needs_a_score_run_of_the_same_model(
    retrieval: Retrieval, retrieval_world: World, command: Any, tmp_path: Path
) -> None:
    alone = command("retrieval", "compare", retrieval_world.gates.folder)
    assert alone.code == 1
    assert "no run of `retrieval score` is named" in words(alone.err)
    other = retrieval("compare", retrieval_world.gates.folder)
    assert "different models" in words(other.err)
    missing = retrieval("compare", tmp_path / "nothing.json")
    assert "does not exist" in words(missing.err)
    (tmp_path / "core.json").write_text('{"7-0": 0.5}', "utf-8")
    wrong = retrieval("compare", tmp_path / "core.json")
    assert "names L7.H0, but this model has 5 layers" in words(wrong.err)
    assert (other.code, missing.code, wrong.code) == (1, 1, 1)


def test_compare_says_where_all_text_suffers() -> None:
    told = [{"method": "a", "perplexity": 20.0}, {"method": "b", "perplexity": 12.0}]
    (note,) = retrieval_comparing._damage_notes(told, (10.0, 20.0))
    assert note.startswith("a: without its heads perplexity of neutral text rises from 10 to 20")
    assert retrieval_comparing._damage_notes(told, None) == []


def test_compare_refuses_scores_and_words_that_are_not_there(retrieval: Retrieval) -> None:
    assert "no column 'beauty'" in words(retrieval("compare", "--methods", "beauty").err)
    assert "--where is 'nowhere'" in words(retrieval("compare", "--where", "nowhere").err)
    assert retrieval("compare", "--sizes", "one").code == 2


# -- gates -----------------------------------------------------------------------------------------


def test_gates_write_a_pattern_folder_that_says_how_to_read_it(retrieval_world: World) -> None:
    result = retrieval_world.gates
    verify_run(result.folder)
    pattern = load_pattern_folder(result.pattern)
    assert pattern.gates.shape == (6, 4)
    assert (pattern.sink, pattern.recent) == (4, 16)
    assert pattern.settings["streaming"] == 0.5
    full = full_heads(pattern.gates, pattern.settings)
    assert full.sum() == 24 - result.summary["streaming_heads"] == 12
    assert result.table.sort("layer", "kv_head")["full"].to_list() == full.ravel().tolist()
    sidecar = load_sidecar(result.pattern / "full_attention_heads.tsv")
    assert sidecar is not None
    assert "ranks of the costs" in sidecar.notes[0]


def test_costs_order_the_heads_of_the_pattern(retrieval_world: World) -> None:
    table = retrieval_world.gates.table.sort("value")
    assert table["pattern_gate"].is_sorted()
    assert table["pattern_gate"].min() == 0
    assert table["pattern_gate"].max() == 1
    assert {"kl", "hidden", "nll", "kl_low", "kl_high"} <= set(table.columns)


def test_gates_can_be_trained(retrieval: Retrieval) -> None:
    done = retrieval("gates", "--method", "train", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["method"] == "train"
    assert all(0 <= head["gate"] <= 1 for head in record["kv_heads"])
    assert any("Gates of 2 seeds rank heads alike" in note for note in record["notes"])
    assert any("near 1" in note for note in record["notes"])  # three steps move no gate far


def test_a_threshold_draws_the_line_by_value(retrieval: Retrieval, tmp_path: Path) -> None:
    line = 1e9
    done = retrieval("gates", "--threshold", line, "--json")
    assert json.loads(done.out)["streaming_heads"] == 24
    again = retrieval("gates", "--threshold", -1, "--json")
    assert json.loads(again.out)["streaming_heads"] == 0


def test_gates_refuse_what_they_do_not_know(retrieval: Retrieval) -> None:
    assert "--method is 'guess'" in words(retrieval("gates", "--method", "guess").err)
    short = retrieval("gates", "--words", 200)
    assert short.code == 1
    assert "fewer or shorter passkeys" in words(short.err)


def test_ranks_and_rules() -> None:
    gates = cost_ranks(np.array([[3.0, 1.0], [2.0, 2.0]]))
    np.testing.assert_allclose(gates, [[1, 0], [0.5, 0.5]])
    assert full_heads(gates, rule_of(0.25, None)).sum() == 3
    assert full_heads(gates, rule_of(0.25, 0.9)).sum() == 1
    assert full_heads(gates, {}).sum() == 3  # half of them: the tie at the line stays whole


# -- stream ----------------------------------------------------------------------------------------


def test_stream_says_what_both_caches_hold(retrieval: Retrieval, retrieval_world: World) -> None:
    done = retrieval("stream", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    model = load_model("engram")
    pattern = load_pattern_folder(retrieval_world.gates.pattern)
    held = record["prompt_tokens"] - 1
    a_key = 2 * model.anatomy.d_v * model.dtype.itemsize
    full = torch.from_numpy(full_heads(pattern.gates, pattern.settings))
    streaming = StreamingPattern(full, pattern.sink, pattern.recent)
    assert record["full_bytes"] == 24 * held * a_key
    assert record["streaming_bytes"] == streaming.keys_held(held) * a_key
    assert record["held"] == record["streaming_bytes"] / record["full_bytes"]
    assert "bytes of keys and values against" in words(retrieval("stream").err)


def test_a_pattern_without_streaming_heads_says_the_same(retrieval: Retrieval) -> None:
    record = json.loads(retrieval("stream", "--streaming", 0, "--json").out)
    assert record["same"]
    assert record["held"] == 1


def test_stream_continues_a_users_text(retrieval: Retrieval, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is", "utf-8")
    record = json.loads(
        retrieval("stream", "--text", text, "--prefill", "full", "--tail", 2, "--json").out
    )
    assert record["gold"] is None
    assert record["same"]  # shorter than the window: nothing is forgotten
    long_tail = retrieval("stream", "--text", text, "--tail", 99)
    assert long_tail.code == 1
    assert "shorter tail" in words(long_tail.err)


def test_a_text_that_cannot_be_read_is_refused(retrieval: Retrieval, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes(b"\xff\xfe\xfa")
    done = retrieval("stream", "--text", damaged)
    assert done.code == 1
    assert "cannot be read as text" in words(done.err)


def test_stream_needs_a_pattern_of_this_model(
    command: Any, retrieval_world: World, tmp_path: Path
) -> None:
    assert command("retrieval", "stream", "engram").code == 2
    nothing = command("retrieval", "stream", "engram", "--pattern", tmp_path)
    assert nothing.code == 1
    assert "a pattern folder holds" in words(nothing.err)
    other = command(
        "retrieval", "stream", retrieval_world.checkpoint, "--pattern", retrieval_world.gates.folder
    )
    assert other.code == 1
    assert "the pattern is for 6 layers" in words(other.err)
