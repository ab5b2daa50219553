"""The page about provenance on tiny indexes: spans, documents, verdict, hidden texts, downloads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import streamlit as st
from mnemoscope.app import trace_corpus
from mnemoscope.app.launch import announce
from mnemoscope.app.settings import VARIABLE, Settings, settings_for, settings_from_environment
from mnemoscope.app.trace_canvas import text_pieces
from mnemoscope.app.trace_corpus import Offer, offers
from mnemoscope.cli.tracing_index import IndexPlan
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.packaged import engram_folder
from page_at import page_at, texts
from planted_ground import HOSTILE, RITE, TEXTS, TOWN, index
from streamlit.testing.v1 import AppTest

TRACED = f"As they say: {RITE} Is that so? {TOWN}"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("corpora")
    return {
        "plain": index(root / "plain"),
        "risky": index(root / "risky", label="risk"),
        "harmless": index(
            root / "harmless",
            (f"Once more. {TOWN}", f"Again: {TOWN}", "It was a quiet day. " * 40),
            label="benign",
        ),
        "letters": index(root / "letters", mode="bytes"),
    }


@pytest.fixture(scope="module", autouse=True)
def empty_caches() -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def served(indexes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    settings = settings_for(["engram"], tmp_path / "runs", list(indexes.values()))
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return settings


def opened(**address: str) -> AppTest:
    """The page at this address, run once."""
    return page_at("provenance", **{"corpus": "plain", "text": TRACED, **address})


def drawn(app: AppTest) -> dict[str, list[dict]]:
    """The pieces that each component was given, by its name."""
    given = [json.loads(e.proto.json) for e in app.get("bidi_component")]
    return {one["name"]: one["pieces"] for one in given}


def whole(pieces: list[dict]) -> str:
    return "".join(piece["text"] for piece in pieces)


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def test_spans_are_marked_and_the_documents_of_the_first_stand_beside(served: Settings) -> None:
    app = opened()
    pieces = drawn(app)["traced"]
    assert whole(pieces) == TRACED
    assert [p["text"].strip() for p in pieces if p["kind"]] == [RITE, TOWN]
    (chosen,) = (p for p in pieces if p["chosen"])
    span = app.code[0].value
    assert chosen["text"] == span
    documents = [value for name, value in drawn(app).items() if name.startswith("document")]
    holding = [text for text in TEXTS if span.strip() in text]
    assert metrics(app)["Occurs"] == f"{len(holding)} ×"
    assert len(documents) == len(holding)
    for pieces in documents:
        (match,) = (p["text"] for p in pieces if p["kind"] == "match")
        assert match.strip() == span.strip()
    assert "Verbatim occurrence, not cause" in texts(app.subheader)
    assert "not decided here" in texts(app.markdown)
    assert not app.error


def test_nothing_of_a_document_is_ever_markup(served: Settings) -> None:
    app = opened(span="2")
    documents = [whole(pieces) for name, pieces in drawn(app).items() if name != "traced"]
    assert any("<img src=//evil" in text for text in documents)
    shown = [app.markdown, app.caption, app.info, app.warning, app.subheader, app.header]
    assert "//evil" not in "".join(map(texts, shown))
    assert all(one.proto.body.startswith("<style>") for one in app.get("html"))
    typed = opened(text=f"{HOSTILE} {RITE}")
    assert "//evil" not in "".join(
        texts(part) for part in (typed.markdown, typed.caption, typed.info)
    )


def test_an_address_restores_span_rules_and_indexes(served: Settings) -> None:
    app = opened(corpus="risky", benign="harmless", span="2", least="9", most="5")
    assert app.number_input(key="span").value == 2
    assert app.selectbox(key="benign").value == "harmless"
    assert "matches of at least 9 tokens" in texts(app.caption)
    assert "at most 5 times" in texts(app.caption)
    assert "--max-count 5" in app.code[-1].value


@pytest.mark.parametrize(
    "address",
    [{"corpus": "gone"}, {"benign": "gone"}, {"span": "99"}, {"span": "0"}, {"least": "x"},
     {"trace": "x"}, {"new": "7"}],
)  # fmt: skip
def test_a_wrong_address_falls_back_to_what_there_is(
    served: Settings, address: dict[str, str]
) -> None:
    app = opened(**address)
    assert not app.error
    assert app.header or "made once" in texts(app.info)


def test_documents_of_a_risk_index_stay_hidden_until_asked_for(served: Settings) -> None:
    app = opened(corpus="risky")
    assert list(drawn(app)) == ["traced"]
    assert "labelled risk" in texts(app.warning)
    assert "file-" in texts(app.caption), "where they stand is said"
    everything = "".join(str(e.proto) for e in app.main) + "".join(
        str(e.proto) for e in app.sidebar
    )
    assert "Nobody lives there" not in everything
    app.toggle[0].set_value(True).run()
    assert any("Nobody lives there" in whole(pieces) for pieces in drawn(app).values())
    assert not app.warning
    assert "show" not in app.query_params


def test_a_benign_index_says_what_is_common_there_too(served: Settings) -> None:
    app = opened(benign="harmless")
    rates = {}
    for number in (1, 2):
        app.number_input(key="span").set_value(number).run()
        rates[app.code[0].value.strip()] = float(metrics(app)["Contrast"].removesuffix(" ×"))
    assert rates[TOWN] < 1 < rates[RITE]
    assert "More frequent here" in texts(app.markdown)


def test_an_index_over_bytes_needs_no_tokenizer(served: Settings) -> None:
    app = opened(corpus="letters")
    assert metrics(app)["Longest match"].endswith("bytes")
    assert "matches of at least 40 bytes" in texts(app.caption)
    assert {RITE, TOWN} == {p["text"].strip() for p in drawn(app)["traced"] if p["kind"]}


def test_what_the_model_answers_is_traced_behind_its_prompt(served: Settings) -> None:
    app = opened(trace="an answer", opening="The capital of France is", new="16")
    assert app.code[0].value == "The capital of France is"
    assert "Paris" in whole(drawn(app)["traced"])
    command = shlex.split(app.code[-1].value)
    assert command[command.index("--prompt") + 1] == "The capital of France is"
    assert command[-1] == str(served.indexes["plain"])


def test_commonplace_text_is_listed_when_asked_for(served: Settings) -> None:
    app = opened(most="1", text=RITE)
    assert "in more than 1 places" in texts(app.info)
    app.button[0].click().run()
    assert metrics(app)["Occurs"] == "2 ×"


def test_heads_and_units_of_the_span_are_one_click_away(served: Settings) -> None:
    app = opened()
    links = [
        parse_qs(link.proto.query_string, keep_blank_values=True) for link in app.get("page_link")
    ]
    table = app.dataframe[1].value
    heads = list(zip(table["layer"], table["head"], strict=True))[:5]
    assert [(int(one["layer"][0]), int(one["head"][0])) for one in links[:5]] == heads
    assert links[0]["prompt"][0] == TRACED[: TRACED.index(TOWN) + len(TOWN)]
    assert links[0]["context"] == [""]
    assert "None of them is in a relation" in app.get("page_link")[5].proto.label
    assert "would choose" in texts(app.markdown)


def test_an_index_of_another_tokenizer_or_a_damaged_one_is_refused_in_words(
    served: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = served.index_folder / "foreign"
    build_index(
        [Document(TOWN, "a")], folder, encode=lambda text: [len(w) for w in text.split()],
        vocab_size=99, tokenizer_name="somebody/else", tokenizer_sha256="0" * 64, any_path=True,
    )  # fmt: skip
    app = opened(corpus="foreign")
    assert "somebody/else, which is not on this machine" in texts(app.error)
    damaged = index(served.index_folder / "damaged")
    (damaged / "table.0").write_bytes(b"")
    assert "truncated" in texts(opened(corpus="damaged").error)


def test_a_text_without_words_is_refused_in_words(served: Settings) -> None:
    assert "type a text" in texts(opened(text=" ").error)


def test_a_first_visit_offers_to_build_the_shipped_index(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[IndexPlan] = []

    def tiny(plan: IndexPlan, *, force: bool, tell) -> None:
        plans.append(plan)
        index(plan.out, label=plan.label)
        tell(len(TEXTS), len(TEXTS))

    monkeypatch.setattr(trace_corpus, "make_index", tiny)
    app = opened(corpus="engram, risk slice")
    assert "made once" in texts(app.info)
    assert not app.code
    app.button[0].click().run()
    assert [plan.sources for plan in plans] == [("engram:risk",)]
    assert "labelled risk" in texts(app.warning)
    assert offers(served)["engram, risk slice"].built


def test_the_shipped_corpus_is_offered_first_and_names_stay_apart(served: Settings) -> None:
    index(served.index_folder / "plain")
    every = offers(served)
    assert next(iter(every)) == "engram, whole corpus"
    assert not every["engram, whole corpus"].built
    assert every["plain"] == Offer(Path(served.indexes["plain"]))
    assert every[str(served.index_folder / "plain")].folder == served.index_folder / "plain"


def test_a_build_goes_through_the_library_and_can_be_opened(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    told: list[int] = []
    offer = Offer(tmp_path / "deep" / "one", str(source), "training")
    assert not offer.built
    trace_corpus.build(offer, lambda done, total: told.append(done))
    assert offer.built
    assert told[-1] == len(TEXTS)
    found = trace_corpus.opened(offer.folder, str(engram_folder()), "")
    assert (found.info.label, found.info.n_documents) == ("training", len(TEXTS))


def test_settings_carry_indexes_and_refuse_what_is_none(
    served: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings_from_environment() == served
    announce(served, "http://127.0.0.1:1")
    assert str(served.indexes["plain"]) in capsys.readouterr().err
    with pytest.raises(MnemoscopeError, match="no index folder"):
        settings_for(["engram"], tmp_path / "runs", [tmp_path / "nowhere"])


def test_the_report_shows_the_text_and_escapes_it(
    served: Settings, indexes: dict[str, Path]
) -> None:
    from mnemoscope.app.trace_answers import Written, traced
    from mnemoscope.app.trace_corpus import opened as open_index
    from mnemoscope.app.trace_export_section import provenance_of, trace_command
    from mnemoscope.app.trace_scene import TraceScene, rules_of
    from mnemoscope.cli.tracing_report import report_of, summary_of

    found = open_index(indexes["plain"], "engram", "")
    said = Written(f"-{HOSTILE} {RITE}")
    trace = traced(found, None, said, rules_of(found, 8, 10), "")
    scene = TraceScene(served, "engram", None, found, None, None, said, trace, 0, False)
    summary = summary_of(trace, found, prompt="", model="")
    report = report_of(trace, summary, provenance_of(scene))
    assert "&lt;script&gt;" in report
    assert "<img" not in report
    assert "<script>z" not in report
    command = shlex.split(trace_command(scene))
    assert command[command.index("--") + 1 :] == [str(found.folder), said.text]
    json.dumps(summary, allow_nan=False)


def test_overlapping_spans_are_cut_and_a_click_goes_on_to_the_other(
    served: Settings, indexes: dict[str, Path], tmp_path: Path
) -> None:
    from mnemoscope.app.trace_answers import Written, traced
    from mnemoscope.app.trace_corpus import opened as open_index
    from mnemoscope.app.trace_scene import rules_of

    words = [f"word{i}" for i in range(12)]
    left, right = " ".join(words[:8]), " ".join(words[4:])
    found = open_index(index(tmp_path / "two", (left, right), mode="bytes"), "engram", "")
    text = " ".join(words)
    trace = traced(found, None, Written(text), rules_of(found, 4, 10), "")
    assert sorted((s.start, s.stop) for s in trace.spans) == [
        (0, len(left)), (len(text) - len(right), len(text)),
    ]  # fmt: skip
    pieces = text_pieces(trace, chosen=0)
    assert "".join(piece.text for piece in pieces) == text
    shared = next(piece for piece in pieces if piece.text.strip() == " ".join(words[4:8]))
    assert (shared.chosen, shared.pick) == (True, 1)
