"""A text of one's own as a haystack: where its answer stands, what is refused, and its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from mnemoscope.app.needle_trial import longest_text, run_trial, score_frame, step_table
from mnemoscope.app.own_haystack import (
    MOST_FILE_BYTES,
    OwnText,
    own_design,
    read_text_file,
    split,
    text_files,
    times_told,
)
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import HeadId
from page_at import button, page_at, texts

LEAD = "People walk to the market.  It rains.\n"
TOLD = "The password of Fezdul is double coin."
CONTEXT = f"{LEAD}{TOLD} Then they sleep. Nobody heard it."
PROMPT = "Question: What is the password of Fezdul? Answer:"
OWN = OwnText(CONTEXT, PROMPT, "double coin")


@pytest.fixture(scope="module")
def engram() -> Iterator[HookedModel]:
    yield load_model("engram")
    st.cache_resource.clear()


def decoded(model: HookedModel, ids: tuple[int, ...]) -> str:
    return str(model.text_tokenizer.decode(list(ids))).strip()


def test_haystack_and_question_are_the_text_in_one_piece(engram: HookedModel) -> None:
    whole = split(engram, OWN, 2000)
    assert whole.ids == tuple(engram.tokens(f"{CONTEXT} {PROMPT}").ids[0].tolist())
    assert decoded(engram, whole.ids[whole.haystack :]) == PROMPT
    assert decoded(engram, whole.ids[len(whole.start) : whole.haystack]) == CONTEXT


def test_the_needle_is_the_sentence_that_tells_the_answer(engram: HookedModel) -> None:
    design, trial = own_design(engram, OWN, 2000)
    ids = design.haystacks[0].ids
    assert decoded(engram, ids[trial.needle.start : trial.needle.stop]) == TOLD
    assert decoded(engram, ids[trial.answer.start : trial.answer.stop]) == "double coin"
    assert design.needle(trial.needle_id).statement == TOLD
    assert decoded(engram, trial.answer_ids) == "double coin"
    assert design.prompt(trial) == split(engram, OWN, 2000).ids
    before = len(split(engram, OwnText(LEAD, PROMPT, "x"), 2000).ids[: trial.needle.start])
    assert trial.depth == pytest.approx(
        (before - len(design.start)) / (trial.length - len(design.start))
    )


@pytest.mark.parametrize("context", [TOLD, f"{TOLD}\n", f"  {TOLD}", f"{LEAD}{TOLD}"])
def test_the_sentence_may_stand_anywhere(engram: HookedModel, context: str) -> None:
    design, trial = own_design(engram, OwnText(context, PROMPT, "double coin"), 2000)
    assert design.needle(trial.needle_id).statement == TOLD


def test_the_first_of_several_places_in_any_case(engram: HookedModel) -> None:
    twice = OwnText(f"A Double coin fell. {TOLD} A doublecoin is none.", PROMPT, "double coin")
    design, trial = own_design(engram, twice, 2000)
    assert design.needle(trial.needle_id).statement == "A Double coin fell."
    assert times_told(twice, "double coin") == 2


def test_without_an_answer_the_models_own_is_looked_for(engram: HookedModel) -> None:
    capital = OwnText("Some say so. The capital of France is Rome.", "The capital of France is")
    design, trial = own_design(engram, capital, 2000)
    assert design.needle(trial.needle_id).answer == "Rome"


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (OwnText("", PROMPT, "a"), "no context to read"),
        (OwnText(CONTEXT, " ", "double coin"), "no prompt"),
        (OwnText(CONTEXT, PROMPT, "gold"), "does not stand in the context"),
        (OwnText(CONTEXT, PROMPT, "doubl"), "as whole words"),
        (OwnText(CONTEXT, "The double coin is", "double coin"), "the prompt says"),
        (OwnText("Rome is Rome. So it is.", PROMPT, "Rome"), "twice"),
        (OwnText("word " * 3000, PROMPT, "word"), "shorten the context"),
    ],
)
def test_what_cannot_be_asked_says_how_to_mend_it(
    engram: HookedModel, own: OwnText, why: str
) -> None:
    with pytest.raises(PromptError, match=why):
        own_design(engram, own, longest_text(engram))


def test_the_trial_reads_the_same_rows_as_the_library(engram: HookedModel) -> None:
    found = run_trial(engram, OWN)
    steps = step_table(engram, found, "forced", HeadId(3, 0))
    (end,) = engram.rows(engram.tokens(f"{CONTEXT} {PROMPT}"), "end")[3, :, 0].cpu().numpy()
    assert steps["position"][0] == int(end.argmax())
    assert steps["weight"][0] == pytest.approx(float(end.max()), abs=1e-5)
    assert steps["token"].to_list()[0].endswith("double")
    read = score_frame(found, "forced", "needle, answering")["score"].to_numpy()
    assert np.nanmax(read) > 0.5, "some head of engram reads what the text tells"


def test_an_answer_that_opens_the_text_is_no_error(engram: HookedModel) -> None:
    found = run_trial(engram, OwnText("Rome is big. Nobody knows.", "The capital is", "Rome"))
    assert found.trial.needle.start <= found.trial.answer.start


def test_files_are_those_of_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    assert text_files(folder) == ()
    folder.mkdir()
    (folder / "b.txt").write_text("text", encoding="utf-8")
    (folder / "a.MD").write_text("more", encoding="utf-8")
    (folder / "c.py").write_text("no")
    (tmp_path / "secret.txt").write_text("no")
    assert text_files(folder) == ("a.MD", "b.txt")
    assert read_text_file(folder, "b.txt") == "text"
    for name in ("../secret.txt", "c.py", "/etc/hostname"):
        with pytest.raises(MnemoscopeError, match="choose one that is listed"):
            read_text_file(folder, name)
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MnemoscopeError, match="UTF-8"):
        read_text_file(folder, "b.txt")
    (folder / "b.txt").write_bytes(b"a" * (MOST_FILE_BYTES + 1))
    with pytest.raises(MnemoscopeError, match="larger than"):
        read_text_file(folder, "b.txt")


# -- its page -----------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_for(["engram"], tmp_path / "runs")
    monkeypatch.setenv(VARIABLE, settings.to_json())
    st.cache_data.clear()
    return settings


def test_the_address_brings_a_pasted_text(served: Settings) -> None:
    app = page_at("retrieval", hay="my own", context=CONTEXT, prompt=PROMPT, ctx="double coin")
    assert [code.value for code in app.code[:2]] == [TOLD, PROMPT]
    assert "the sentence of your text that says “double coin”" in texts(app.caption)
    assert not app.error
    button(app, "Save them").click().run()
    assert "tokens of one's own text" in next(served.head_sets.glob("*.json")).read_text()


def test_the_example_that_stands_there_at_first_works(served: Settings) -> None:
    app = page_at("retrieval", hay="my own")
    assert not app.error
    assert "the sentence of your text" in texts(app.caption)


def test_a_file_is_chosen_by_name_and_its_absence_says_where_to_put_one(served: Settings) -> None:
    app = page_at("retrieval", hay="a file")
    assert str(served.texts) in texts(app.info)
    served.texts.mkdir()
    (served.texts / "story.txt").write_text(CONTEXT, encoding="utf-8")
    app = page_at("retrieval", hay="a file", file="story.txt", prompt=PROMPT, ctx="double coin")
    assert app.code[0].value == TOLD
    gone = page_at("retrieval", hay="a file", file="../story.txt", prompt=PROMPT, ctx="double coin")
    assert gone.selectbox(key="file").value == "story.txt"


def test_what_is_wrong_with_a_text_is_said_on_the_page(served: Settings) -> None:
    app = page_at("retrieval", hay="my own", context=CONTEXT, prompt=PROMPT, ctx="gold")
    assert "does not stand in the context" in texts(app.error)
