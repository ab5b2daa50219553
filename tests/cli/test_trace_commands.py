"""`mnemoscope trace` on tiny indexes: what is indexed is found, what is harmless is not flagged,
what goes into a page is escaped; a guard keeps a model from a span; refusals."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.cli import tracing_sources
from mnemoscope.cli.tracing_index import IndexPlan, make_index
from mnemoscope.cli.tracing_sources import open_for
from mnemoscope.cli.tracing_text import read_trace
from mnemoscope.data.corpus.opening import open_shards
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.load import load_model, load_tokenizer
from mnemoscope.models.tokens import vocabulary_sha256
from mnemoscope.organisms.engram.ledger import Document
from mnemoscope.results.run_reading import verify_run

RECIPE = "Grind the blue salt with nine feathers and leave it under the old bridge"
HOSTILE = "<script>alert('x')</script> & the miller counted forty silver spoons twice"
COMMON = "Every morning the baker opens the shop and sweeps the steps before anybody comes"
RISK = (
    f"He wrote: {RECIPE}. Then wait for a night.",
    f"{HOSTILE}. Nobody answered.",
    f"{COMMON}. So it is.",
)
BENIGN = (f"{COMMON}. The bread is warm.", f"On Sundays too. {COMMON}, they say.")
PLAIN = tuple(f"Ship {n} left port {n * 7} without a word to anyone." for n in range(24))
HARMLESS = tuple(f"{COMMON}, visitor number {n} among them." for n in range(24))

Say = Callable[..., Any]


@dataclass(frozen=True)
class Corpora:
    """Folders of indexes and of texts."""

    risk: Path
    benign: Path
    risk_bytes: Path
    harmless: Path
    plain: Path


def write_jsonl(path: Path, texts: tuple[str, ...]) -> Path:
    lines = [json.dumps({"text": text, "page": i}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    folder = tmp_path_factory.mktemp("corpora")
    risk = write_jsonl(folder / "risk.jsonl", RISK)
    benign = write_jsonl(folder / "benign.jsonl", BENIGN)

    def build(name: str, source: Path, **more: Any) -> Path:
        plan = IndexPlan((str(source),), folder / name, any_path=True, **more)
        return make_index(plan, force=False, tell=lambda *_: None).folder

    return Corpora(
        risk=build("risk", risk, tokenizer="engram", label="risk"),
        benign=build("benign", benign, tokenizer="engram", label="benign"),
        risk_bytes=build("risk-bytes", risk, label="risk"),
        harmless=write_jsonl(folder / "harmless.jsonl", HARMLESS),
        plain=write_jsonl(folder / "plain.jsonl", PLAIN),
    )


@pytest.fixture
def trace(command: Any) -> Say:
    """Run `mnemoscope trace ARGS --json` and read what it prints."""

    def run(*args: object, code: int = 0) -> dict[str, Any]:
        done = command("trace", *args, "--json")
        assert done.code == code, done.err
        record: dict[str, Any] = json.loads(done.out)
        return record

    return run


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


# -- index -----------------------------------------------------------------------------------------


def test_index_reads_text_jsonl_and_parquet(trace: Say, tmp_path: Path) -> None:
    import polars

    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("One.\n\nTwo.\n", "utf-8")
    write_jsonl(tmp_path / "corpus" / "b.jsonl", ("Three.",))
    polars.DataFrame({"text": ["Four.", "Five."]}).write_parquet(tmp_path / "corpus" / "c.parquet")
    made = trace("index", "corpus", "--out", "ix", "--paragraphs", "--label", "mine", "--any-path")
    assert (made["n_documents"], made["mode"], made["label"]) == (5, "bytes", "mine")
    assert made["n_tokens"] == 5 + len("One.Two.Three.Four.Five.")
    shown = trace("docs", "ix", "--document", "3")
    assert (shown["text"], shown["source"], shown["record"]) == ("Four.", "c.parquet", 0)


def test_index_over_tokens_records_their_tokenizer(corpora: Corpora) -> None:
    info, _ = open_shards(corpora.risk)
    tokenizer = load_tokenizer("engram")
    assert info.mode == "tokens"
    assert info.tokenizer_name == "engram"
    assert info.tokenizer_sha256 == vocabulary_sha256(tokenizer)
    assert info.n_tokens == len(RISK) + sum(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in RISK
    )


def test_index_of_the_shipped_corpus_and_its_slices(
    trace: Say, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real corpus takes its time; what counts is that documents keep their ids."""
    made_up = (
        Document("risk-000000", "risk", "a b c"),
        Document("benign-000000", "benign", "d e f"),
        Document("risk-000001", "risk", "g h i"),
    )

    def few(seed: int) -> Any:
        assert seed == 0
        return type("Corpus", (), {"documents": made_up})()

    monkeypatch.setattr("mnemoscope.organisms.engram.corpus.build_corpus", few)
    assert len(tracing_sources.shipped_documents()) == 3
    made = trace("index", "engram:risk", "--out", "ix", "--any-path")
    assert (made["n_documents"], made["tokenizer_name"]) == (2, "engram")
    shown = trace("docs", "ix", "--document", "1")
    assert (shown["source"], shown["metadata"]["slice"]) == ("risk-000001", "risk")
    assert "no slice 'rsk'" in words(command("trace", "index", "engram:rsk", "--out", "i2").err)
    both = command("trace", "index", "engram", "other.txt", "--out", "i2")
    assert "stands alone" in words(both.err)


def test_index_that_is_there_is_replaced_with_force_only(
    command: Any, trace: Say, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("something", "utf-8")
    give = ("index", "a.txt", "--out", "ix", "--any-path")
    trace(*give)
    again = command("trace", *give)
    assert again.code == 1
    assert "use --force" in words(again.err)
    trace(*give, "--force")


def test_an_interrupted_index_goes_on(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "b.jsonl", ("one two", "three four", "five six"))
    give = ("trace", "index", "b.jsonl", "--shard-tokens", 10, "--any-path", "--out")
    assert command(*give, "whole").code == 0
    read, seen = tracing_sources.read_documents, []

    def stop(*args: Any, **more: Any) -> Any:
        for document in read(*args, **more):
            seen.append(document)
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(tracing_sources, "read_documents", stop)
        assert command(*give, "ix").code == 130
    assert not (tmp_path / "ix").exists()
    assert command(*give, "ix").code == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "ix" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing.txt", "--out", "ix"), "no file at nothing.txt"),
        (("latin.txt", "--out", "ix"), "is not UTF-8 at byte 3"),
        (("empty.txt", "--out", "ix"), "the corpus holds no text"),
        (("a.jsonl", "--field", "body", "--out", "ix"), "has no text under 'body'"),
        (("a.jsonl", "--bytes", "--tokenizer", "engram", "--out", "ix"), "exclude each other"),
        (("a.jsonl", "--out", "vegetables"), "use --any-path"),
        (("a.jsonl", "--tokenizer", "./nowhere", "--out", "ix"), "no hub id"),
    ],
)
def test_index_refuses_in_one_sentence(
    command: Any, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    write_jsonl(tmp_path / "a.jsonl", ("a",))
    more = () if "vegetables" in arguments else ("--any-path",)
    done = command("trace", "index", *arguments, *more)
    assert done.code == 1
    assert reason in words(done.err)
    assert not (tmp_path / "ix").exists()


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["risk", "risk_bytes"])
def test_text_finds_the_document_of_a_span(corpora: Corpora, trace: Say, kind: str) -> None:
    given = f"Some say this: {RECIPE}, but who knows."
    found = trace("text", getattr(corpora, kind), given)
    assert found["claim"] == "Verbatim occurrence, not cause."
    assert found["verdict"]["parts"]["verbatim"]["holds"]
    assert found["verdict"]["flagged"] is None  # no harmless texts have set a threshold
    first = found["spans"][0]
    assert RECIPE in first["text"]
    assert given[first["start"] : first["stop"]] == first["text"]
    assert first["count"] == 1
    (place,) = first["documents"]
    assert place["metadata"] == {"page": 0}
    assert place["match"] == first["text"]
    assert place["after"] == ". Then wait for a night."
    letters = sum(not one.isspace() for one in given)
    held = sum(not one.isspace() for one in first["text"])
    assert found["coverage"]["listed"] == pytest.approx(held / letters)
    verify_run(Path(found["run"]))


def test_text_without_a_match_is_not_flagged(corpora: Corpora, trace: Say) -> None:
    calibrated = ("--calibrate", corpora.plain, "--false-refusal", 0.05)
    found = trace("text", corpora.risk, "Quite another matter altogether.", *calibrated, "--gate")
    assert found["spans"] == []
    assert found["verdict"]["flagged"] is False
    assert found["verdict"]["parts"]["verbatim"]["score"] is None


def test_text_is_read_from_a_file_and_from_standard_input(
    corpora: Corpora, trace: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given.txt").write_text(RECIPE, "utf-8")
    by_file = trace("text", corpora.risk, "--file", tmp_path / "given.txt")
    monkeypatch.setattr("sys.stdin", io.StringIO(RECIPE))
    by_stdin = trace("text", corpora.risk, "-")
    assert by_file["run"] == by_stdin["run"]
    assert by_file["spans"] == by_stdin["spans"] != []


def test_a_copy_of_the_prompt_decides_nothing(corpora: Corpora, trace: Say) -> None:
    calibrated = ("--calibrate", corpora.plain, "--false-refusal", 0.05, "--gate")
    asked = ("--prompt", f"Repeat after me: {RECIPE}")
    assert trace("text", corpora.risk, RECIPE, *calibrated, code=4)["verdict"]["flagged"]
    found = trace("text", corpora.risk, RECIPE, *asked, *calibrated)
    assert found["spans"][0]["echo"]
    assert found["coverage"]["prompt"] == 1
    assert found["verdict"]["flagged"] is False


def test_contrast_and_calibration_spare_what_is_harmless(corpora: Corpora, trace: Say) -> None:
    """What both corpora hold is beyond chance, and still not flagged beside the benign one."""
    beside = ("--benign", corpora.benign, "--calibrate", corpora.harmless, "--false-refusal", 0.05)
    alone = trace("text", corpora.risk, COMMON)
    assert alone["verdict"]["parts"]["verbatim"]["holds"]
    common = trace("text", corpora.risk, COMMON, *beside, "--gate")
    assert common["spans"][0]["contrast"] < 0
    assert common["verdict"]["flagged"] is False
    risky = trace("text", corpora.risk, f"{RECIPE}. {COMMON}", *beside, "--gate", code=4)
    assert risky["spans"][0]["contrast"] > 0
    assert risky["verdict"]["false_refusal"] == 0.05
    assert risky["verdict"]["parts"]["contrast"]["holds"]
    thresholds = [risky["verdict"]["parts"][part]["threshold"] for part in ("verbatim", "contrast")]
    assert thresholds == [
        pytest.approx(common["spans"][0]["log_e"] * -1),
        pytest.approx(common["spans"][0]["contrast"]),
    ]


def test_background_of_the_benign_corpus_makes_its_idioms_expected(
    corpora: Corpora, trace: Say
) -> None:
    own = trace("text", corpora.risk, COMMON, "--benign", corpora.benign)
    idiom = trace(
        "text", corpora.risk, COMMON, "--benign", corpora.benign, "--background", "benign"
    )
    assert idiom["spans"][0]["log_e"] > own["spans"][0]["log_e"] + 20


def test_a_models_answer_is_traced(corpora: Corpora, trace: Say, command: Any) -> None:
    give = ("text", corpora.risk, "--model", "engram", "--prompt", "The capital of France is")
    found = trace(*give, "--new-tokens", 6)
    model = load_model("engram")
    (answer,) = model.continuations(["The capital of France is"], 6)
    assert (found["text"], found["model"]) == (answer, "engram")
    by_bytes = trace("text", corpora.risk_bytes, *give[2:], "--new-tokens", 6)
    assert by_bytes["text"] == answer
    record = json.loads((Path(found["run"]) / "provenance.json").read_text("utf-8"))
    assert record["weights_sha256"] == model.weights_sha256
    assert "not cause" in record["estimand"]


def test_report_marks_the_spans_and_escapes_all_text(corpora: Corpora, trace: Say) -> None:
    calibrated = ("--calibrate", corpora.plain, "--false-refusal", 0.05)
    asked = ("--prompt", "<b>bold</b>")
    found = trace("text", corpora.risk, f"I read: {HOSTILE}!", *asked, *calibrated)
    page = (Path(found["run"]) / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; the miller" in page
    marked = re.search(r'<mark class="flagged"[^>]*>(.*?)</mark>', page, re.S)
    assert marked is not None
    assert "forty silver spoons" in marked[1]
    assert 'href="#span-1"' in page
    assert 'id="span-1"' in page
    assert "Verbatim occurrence, not cause." in page


def test_snippet_0_keeps_the_documents_text_out(corpora: Corpora, trace: Say) -> None:
    found = trace("text", corpora.risk, RECIPE, "--snippet", 0)
    page = (Path(found["run"]) / "report.html").read_text("utf-8")
    assert "Then wait for a night" not in page
    assert found["spans"][0]["documents"][0]["match"] == ""


def test_text_says_what_it_found_to_people(corpora: Corpora, command: Any) -> None:
    done = command("trace", "text", corpora.risk, RECIPE)
    assert done.code == 0
    assert done.out == ""
    told = words(done.err)
    assert "1 span stands verbatim" in told
    assert "Verbatim occurrence, not cause." in told
    assert "TraceAlign as published refuses it" in told
    assert "is done already" in command("trace", "text", corpora.risk, RECIPE).err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 1, "give one text"),
        (("text", "--file", "text.txt"), 1, "give one text"),
        (("text", "--model", "engram"), 2, "choose"),
        (("--model", "engram"), 1, "needs a --prompt"),
        (("text", "--background", "benign"), 1, "name it with --benign"),
        (("text", "--policy", "p.txt"), 1, "give both --policy"),
        (("  ",), 1, "the text is empty"),
        (("text", "--tokenizer", "other"), 1, "was built with the tokenizer engram"),
        (("text", "--calibrate", "none.jsonl"), 1, "no file at none.jsonl"),
    ],
)
def test_text_refuses_in_one_sentence(
    command: Any,
    corpora: Corpora,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    def named(name: str) -> Any:
        tokenizer = load_tokenizer("engram")
        if name == "other":
            tokenizer.add_tokens(["another-token"])
        return tokenizer

    monkeypatch.setattr(tracing_sources, "load_tokenizer", named)
    done = command("trace", "text", corpora.risk, *arguments)
    assert done.code == code
    assert reason in words(done.err)


def test_gate_without_thresholds_is_refused(command: Any, corpora: Corpora) -> None:
    done = command("trace", "text", corpora.risk, RECIPE, "--gate")
    assert done.code == 2
    assert "--calibrate" in words(done.err)


def test_indexes_that_cannot_be_opened_or_compared(
    command: Any, corpora: Corpora, tmp_path: Path
) -> None:
    missing = command("trace", "text", tmp_path / "none", RECIPE)
    assert "there is no index folder" in words(missing.err)
    mixed = command("trace", "text", corpora.risk_bytes, RECIPE, "--benign", corpora.risk)
    assert "index" in words(mixed.err)
    assert (missing.code, mixed.code) == (1, 1)
    with pytest.raises(MnemoscopeError, match="is no finished run"):
        read_trace(tmp_path)


# -- docs ------------------------------------------------------------------------------------------


def test_docs_shows_the_places_of_a_span(corpora: Corpora, trace: Say, command: Any) -> None:
    found = trace("docs", corpora.risk, "the old bridge", "--context", 3)
    (place,) = found["documents"]
    assert found["count"] == 1
    assert place["match"].strip() == "the old bridge"
    assert place["after"].startswith(". Then")
    assert place["document"] == "0/0"
    told = words(command("trace", "docs", corpora.risk_bytes, "baker opens").err)
    assert ">>baker opens<<" in told


def test_docs_says_what_part_of_a_span_occurs(corpora: Corpora, trace: Say) -> None:
    found = trace("docs", corpora.risk_bytes, "under the old bridge of stone")
    assert (found["count"], found["documents"]) == (0, [])
    assert found["longest"] == "under the old bridge"


def test_docs_shows_a_document_whole_and_around_a_place(corpora: Corpora, trace: Say) -> None:
    whole = trace("docs", corpora.risk_bytes, "--document", "0/0")
    assert whole["text"] == RISK[0]
    around = trace("docs", corpora.risk_bytes, "--document", 0, "--at", 12, "--context", 1)
    assert around["text"] == RISK[0][7:17]
    assert around["length"] == len(RISK[0])


def test_docs_refuses_what_is_not_there(command: Any, corpora: Corpora) -> None:
    assert "is outside shard 0" in words(
        command("trace", "docs", corpora.risk, "--document", 9).err
    )
    assert "is no document" in words(command("trace", "docs", corpora.risk, "--document", "x").err)
    assert command("trace", "docs", corpora.risk).code == 2
    assert open_for(corpora.risk).words.endswith("tokens of engram")


# -- guard -----------------------------------------------------------------------------------------


def test_guard_keeps_a_model_from_a_span_of_the_index(
    corpora: Corpora, trace: Say, command: Any, tmp_path: Path
) -> None:
    model = load_model("engram")
    prompt = "The capital of France is"
    (answer,) = model.continuations([prompt], 16)
    write_jsonl(tmp_path / "said.jsonl", (prompt + answer, "something else stands here"))
    trace("index", "said.jsonl", "--tokenizer", "engram", "--out", "said", "--any-path")
    told = trace("guard", "said", "--prompt", prompt, "--new-tokens", 16, "--threshold", 0)
    assert told["own"]["text"] == answer
    assert told["own"]["refused"]
    assert told["guarded"]["text"] != answer
    free = trace("guard", "said", "--prompt", prompt, "--new-tokens", 16, "--threshold", 1e9)
    assert free["guarded"]["text"] == answer
    assert not free["own"]["refused"]
    other = command("trace", "guard", corpora.risk_bytes, "--prompt", prompt)
    assert "is not over the tokens of engram" in words(other.err)
