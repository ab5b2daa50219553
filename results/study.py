"""What every study script shares: which preset, the key of its run, drawing in a notebook."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go


PRESET_VARIABLE = "MNEMOSCOPE_PRESET"
RUNS_VARIABLE = "MNEMOSCOPE_RUNS"


def preset_name(default: str = "smoke") -> str:
    """The preset of `--preset NAME`, else of the environment, which notebooks are given."""
    if "--preset" in sys.argv:
        return sys.argv[sys.argv.index("--preset") + 1]
    return os.environ.get(PRESET_VARIABLE, default)


def runs_folder() -> Path:
    """Where the runs of studies go: `./runs` unless the environment says otherwise."""
    return Path(os.environ.get(RUNS_VARIABLE, "runs"))


def run_key(params: Mapping[str, Any], *, weights: str, data: str) -> dict[str, Any]:
    """What decides a study's numbers, as the plain JSON that `open_run` takes."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in params.items()}
    return {**plain, "weights": weights, "data": data}


def show(figure: go.Figure) -> None:
    """Draw in a notebook, with plotly.js in the page itself; a plain script keeps the files."""
    if "ipykernel" in sys.modules:
        shown = importlib.import_module("IPython.display")
        shown.display(shown.HTML(figure.to_html(full_html=False, include_plotlyjs=True)))
