"""One model a person: the one before is let go of, with all that is kept of it, before another is
loaded, unless somebody else shows it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
import streamlit as st
import torch
from mnemoscope.app import cached
from mnemoscope.app.model_shelf import Shelf
from mnemoscope.app.role_sources import imports_folder
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from page_at import page_at
from planted_ground import CONTEXT, PROMPT, index
from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage
from streamlit.testing.v1 import app_test


@pytest.fixture
def both(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Two models, and an index over bytes, which fits both."""
    corpus = index(tmp_path / "corpus", mode="bytes")
    settings = settings_for([str(checkpoint), "engram"], tmp_path / "runs", [corpus])
    monkeypatch.setenv(VARIABLE, settings.to_json())
    st.cache_data.clear()
    st.cache_resource.clear()
    monkeypatch.setattr(cached, "_models", Shelf(cached._load, cached._gone))
    # A server has one for all runs of a page; the tests of Streamlit make one a run.
    files = MediaFileManager(MemoryMediaFileStorage("/media"))
    monkeypatch.setattr(app_test, "MediaFileManager", lambda _: files)
    yield settings
    st.cache_resource.clear()


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[object]]:
    """Every model that was loaded; a loading model must find none before it alive."""
    models: list[weakref.ref[object]] = []
    load = cached.load_model

    def watched(place: str):
        gc.collect()
        assert [one() for one in models if one() is not None] == [], "two models in memory"
        model = load(place)
        models.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(cached, "load_model", watched)
    return models


def with_a_saved_set(settings: Settings) -> None:
    """A head set to load, on the page that offers it."""
    settings.head_sets.mkdir()
    (settings.head_sets / "mine.json").write_text("{}")


def with_scores(settings: Settings) -> None:
    """Scores of heads that both models have."""
    imports_folder(settings).mkdir()
    (imports_folder(settings) / "scores.json").write_text('{"1-2": [0.9], "0-0": [0.0]}')


def nothing_more(settings: Settings) -> None:
    """The page as it is first seen."""


@pytest.mark.parametrize(
    ("view", "prepared"),
    [
        ("explore", nothing_more),
        ("explore", with_a_saved_set),
        ("retrieval", nothing_more),
        ("heads", with_scores),
        ("provenance", nothing_more),
        ("ask", nothing_more),
    ],
)
def test_the_model_before_is_gone_before_the_next_is_loaded(
    view: str,
    prepared: Callable[[Settings], None],
    both: Settings,
    alive: list[weakref.ref[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared(both)
    released: list[int] = []
    freed: list[int] = []
    free = cached.free_memory
    monkeypatch.setattr(cached, "OF_A_SESSION", [*cached.OF_A_SESSION, lambda: released.append(1)])
    monkeypatch.setattr(cached, "free_memory", lambda: (freed.append(1), free()))
    app = page_at(view, model="engram", prompt=PROMPT, context=CONTEXT, deep="true")
    key = "ask_model" if view == "ask" else "model"
    assert (len(alive), len(released), len(freed)) == (1, 0, 0)
    app.selectbox(key=key).set_value("planted").run()
    assert not app.exception, app.exception
    assert (len(alive), len(released), len(freed)) == (2, 1, 1)
    app.selectbox(key=key).set_value("engram").run()
    assert (len(alive), len(released), len(freed)) == (3, 2, 2)
    app.run()
    assert len(alive) == 3, "it is not loaded again for nothing"


def test_memory_of_the_device_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    cached.free_memory()
    assert emptied == [1]


class Made:
    """A shelf of words, and what it did."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.gone: list[str] = []
        self.shelf = Shelf(self._make, self.gone.extend)

    def _make(self, place: str) -> str:
        self.made.append(place)
        if place == "broken":
            raise OSError(place)
        return place.upper()


def test_two_people_with_two_models_keep_both() -> None:
    one = Made()
    for _ in range(3):
        assert one.shelf.take("a", "ann") == "A"
        assert one.shelf.take("b", "ben") == "B"
    assert (one.made, one.gone) == (["a", "b"], [])
    assert one.shelf.take("b", "ann") == "B"
    assert (one.made, one.gone) == (["a", "b"], ["A"]), "nobody shows a any more"


def test_a_closed_tab_s_model_stays_until_another_is_to_be_made() -> None:
    one = Made()
    one.shelf.take("a", "ann")
    one.shelf.leave("ann")
    assert "a" in one.shelf
    assert one.shelf.place_of("ann") is None
    one.shelf.take("a", "ann again")
    assert one.made == ["a"], "a reloaded page finds its model"
    one.shelf.leave("ann again")
    one.shelf.take("b", "ben")
    assert (one.made, one.gone) == (["a", "b"], ["A"])


def test_what_cannot_be_made_holds_nothing() -> None:
    one = Made()
    one.shelf.take("a", "ann")
    with pytest.raises(OSError, match="broken"):
        one.shelf.take("broken", "ann")
    assert one.gone == ["A"]
    assert one.shelf.place_of("ann") is None
    assert one.shelf.take("a", "ann") == "A"


def test_one_thing_is_made_once_for_two_who_ask_at_once() -> None:
    begun, go, made = Event(), Event(), []

    def make(place: str) -> str:
        made.append(place)
        begun.set()
        assert go.wait(10)
        return place

    shelf = Shelf(make, lambda old: None)
    asking = [Thread(target=shelf.take, args=("a", name)) for name in ("ann", "ben")]
    for one in asking:
        one.start()
    assert begun.wait(10)
    go.set()
    for one in asking:
        one.join(10)
    assert made == ["a"]
