"""Every study runs, as a page and on its own, and the page asks nobody for anything."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from mnemoscope.cli.main import main

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("[0-9]*.py"))


QUICK = ("01", "05")
RUNS = [
    *(
        pytest.param(
            study,
            "smoke",
            id=f"{study.stem}-smoke",
            marks=() if study.name.startswith(QUICK) else pytest.mark.slow,
        )
        for study in STUDIES
    ),
    pytest.param(STUDIES[0], "planted", id=f"{STUDIES[0].stem}-planted"),
]
"""Study 1 also asserts which heads are found where they are planted."""


@pytest.mark.parametrize(("study", "preset"), RUNS)
def test_study(study: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last cell asserts the study's checks, so a page without an error is a passed study."""
    pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.html"
    monkeypatch.setattr(
        sys,
        "argv",
        ["mnemoscope", "study", "run", str(study), "--preset", preset, "--html", str(page)],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, page.read_text("utf-8")[-2000:] if page.exists() else "no page"
    text = page.read_text("utf-8")
    assert "<h1" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?://", text)
    assert list((tmp_path / "runs").glob("study-*/table.parquet"))


def test_there_are_studies() -> None:
    assert STUDIES
