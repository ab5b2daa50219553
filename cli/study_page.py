"""Execute a percent script cell by cell and write it, with its outputs, as one HTML page."""

from __future__ import annotations

import os
from pathlib import Path

from ..models.errors import MnemoscopeError
from ..results.study import PRESET_VARIABLE

CELL_TIMEOUT_S = 6 * 3600

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: .6rem; font-size: 13px; }}
img {{ max-width: 100%; }} table {{ border-collapse: collapse; font-size: 14px; }}
td, th {{ border: 1px solid #ccc; padding: .2rem .5rem; }}
.jp-InputPrompt, .jp-OutputPrompt {{ display: none; }}
</style></head><body>{body}</body></html>
"""


def run_study(study: Path, *, preset: str, html: Path) -> None:
    """Run the study with a preset and write `html`, also when a cell fails (its error is shown).

    Raises `MnemoscopeError` when the file or the `studies` extra is missing, or a cell fails.
    """
    try:
        import jupytext
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise MnemoscopeError(
            f"studies need {error.name}: pip install 'mnemoscope[studies]'."
        ) from error
    if not study.is_file():
        raise MnemoscopeError(f"there is no study {study}: give the path of a percent script.")
    notebook = jupytext.read(study, fmt="py:percent")
    place = {"metadata": {"path": str(Path.cwd())}}
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=place
    )
    failed: Exception | None = None
    os.environ[PRESET_VARIABLE] = preset
    try:
        client.execute()
    except CellExecutionError as error:
        failed = error
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    _write(body, html, study.stem)
    if failed is not None:
        last = str(failed).strip().splitlines()[-1]
        raise MnemoscopeError(f"a cell of {study} failed ({last}): its error is in {html}.")


def _write(body: str, html: Path, title: str) -> None:
    """The page around the cells: the bare template refers to no outside script or font."""
    temporary = html.with_name(f".{html.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(_PAGE.format(title=title, body=body), encoding="utf-8")
    os.replace(temporary, html)
