"""The canvas component: bytes in, a click on a head or a part of a map out.

The thumbnails of all heads are megabytes, which Streamlit sends once and names from then on, for as
long as not one byte of them changes. So they do not say which head is chosen: the window does,
which is another one for every head, and the browser frames it on the sheet.

Its script is one file of ours; nothing in it comes from a prompt or a model. Texts go to it as data
and are drawn as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import streamlit as st
from jaxtyping import UInt8
from numpy import ndarray

from ..models.types import HeadId
from .atlas_maps import GAP, Pool, Sheet, packed
from .charts import WEIGHT_COLOURS

INK = {"light": "#31333f", "dark": "#fafafa"}
_FRAME = {"light": "#d55e00", "dark": "#ffb000"}
_NOTHING = {"light": "#dcdee3", "dark": "#3a3c45"}

_canvas = st.components.v2.component(
    "mnemoscope_atlas",
    html='<div class="atlas"><canvas role="application" tabindex="0"></canvas>'
    '<div class="readout" aria-live="polite"></div></div>',
    css="""
.atlas { font-family: var(--st-font); font-size: 13px; color: var(--st-text-color); }
.atlas canvas { display: block; cursor: crosshair; touch-action: pan-y; }
.atlas canvas:focus-visible { outline: 2px solid var(--st-primary-color); }
.atlas .readout { min-height: 2.8em; line-height: 1.4; margin-top: 4px; overflow-wrap: anywhere; }
""",
    js=Path(__file__).with_name("atlas_canvas.js").read_text("utf-8"),
)


def draw_atlas(
    sheet: Sheet,
    picture: UInt8[ndarray, "y x"],
    *,
    key: str,
    alt: str,
    on_picked: Callable[[], None],
) -> None:
    """The sheet of thumbnails; `on_picked` runs after a click, `happened` tells which head. The
    same bytes whichever head is chosen."""
    header = {
        "kind": "atlas",
        "name": key,
        "sheet": asdict(sheet),
        "gap": GAP,
        "alt": alt,
        "hint": "Point at a head for its name, click to choose it; or arrow keys, then Enter.",
    }
    _canvas(key=key, data=packed(picture, header | _look()), on_picked_change=on_picked)


def draw_window(
    picture: UInt8[ndarray, "query_bin key_bin"],
    edges: Mapping[str, tuple[int, ...]],
    texts: Mapping[str, list[str]],
    marks: list[dict[str, Any]],
    *,
    key: str,
    head: HeadId,
    span: int | None,
    pool: Pool,
    alt: str,
    on_part: Callable[[], None],
) -> None:
    """One head's map, which frames the head in the atlas; `edges` and `texts` by "query" and "key",
    `marks` are spans with colours, `span` is `WindowMap.span`."""
    header = {
        "kind": "window",
        "name": key,
        "queryEdges": edges["query"],
        "keyEdges": edges["key"],
        "queryText": texts["query"],
        "keyText": texts["key"],
        "marks": marks,
        "pool": pool,
        "span": span,
        "chosen": {"layer": head.layer, "head": head.head},
        "alt": alt,
        "hint": "Point at a cell to read it, or use the arrow keys; drag over a part to enlarge "
        "it, double-click for all.",
    }
    _canvas(key=key, data=packed(picture, header | _look()), on_part_change=on_part)


def happened(key: str, event: str) -> dict[str, Any] | None:
    """What a callback was called for; None when it was for something else."""
    found = (st.session_state.get(key) or {}).get(event)
    return dict(found) if found else None


def _look() -> dict[str, Any]:
    """Colours of the theme that the page is shown in."""
    theme = st.context.theme.type or "light"
    return {
        "palette": [_rgb(colour) for colour in WEIGHT_COLOURS[theme]],
        "nothing": _rgb(_NOTHING[theme]),
        "ink": INK[theme],
        "frame": _FRAME[theme],
    }


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
