"""A text as a strip of tokens: the edges of a head, or a number for each token.

Picking a token, with the mouse or the arrow keys, happens in the browser alone, so that it answers
at once however long the text is. Texts go there as data and are drawn as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from jaxtyping import Float

from . import exports
from .atlas_maps import packed
from .edges import Edges, packed_edges
from .map_files import edges_svg

_BLUE = {"light": (0, 114, 178), "dark": (86, 180, 233)}
_ORANGE = {"light": (213, 94, 0), "dark": (230, 159, 0)}
_PALE = {"light": (110, 116, 128), "dark": (170, 176, 186)}
"""Okabe and Ito (2008), the brighter ones on dark ground."""

_strip = st.components.v2.component(
    "mnemoscope_strip",
    html='<div class="strip"><canvas aria-hidden="true"></canvas>'
    '<div class="text" tabindex="0" role="group"></div>'
    '<div class="readout" aria-live="polite"></div></div>',
    css="""
.strip { font-family: var(--st-font); font-size: 14px; color: var(--st-text-color); }
.strip canvas { display: block; cursor: pointer; }
.strip canvas[hidden] { display: none; }
.strip .text { max-height: 16em; overflow-y: auto; line-height: 1.75; overflow-wrap: anywhere;
  position: relative; }
.strip .text:focus-visible { outline: 2px solid var(--st-primary-color); }
.strip .text span { cursor: pointer; border-radius: 3px; padding: .12em .06em; }
.strip .text span.picked { outline: 2px solid var(--st-text-color); }
.strip .readout { min-height: 2.8em; line-height: 1.4; margin-top: 6px; font-size: 13px;
  overflow-wrap: anywhere; }
""",
    js=Path(__file__).with_name("token_strip.js").read_text("utf-8"),
)


def draw_edges(found: Edges, tokens: Sequence[str], *, key: str, name: str, alt: str) -> None:
    """The edges as arcs over the tokens; the last token is picked to begin with. A saved view has
    the strongest arcs, and the text with those tokens marked that the last one attends to more than
    evenly; `name` names its files."""
    header = {
        "kind": "edges",
        "name": key,
        "alt": alt,
        "hint": "Point at a token to read its edges; click it, or use the arrow keys, to pick it.",
        "tokens": list(tokens),
        "seen": found.seen.tolist(),
        "picked": len(tokens) - 1,
    }
    _strip(key=key, data=packed_edges(found, header | _look()))
    theme = st.context.theme.type or "light"
    exports.drawing(lambda: edges_svg(found, tokens, theme), name=name, alt=alt)
    heavy = set(found.keys[-1][found.weights[-1] * found.seen[-1] > 1].tolist())
    kinds = ["match" if i in heavy else "" for i in range(len(tokens))]
    exports.marked(
        f"{alt} Marked: the strongest keys of the last token, above even attention.",
        list(zip(tokens, kinds, strict=True)),
    )


def draw_values(
    values: Float[np.ndarray, " token"], tokens: Sequence[str], *, key: str, alt: str
) -> None:
    """The tokens, blue by values above zero, orange by values below; the first token, where values
    may be massive, does not set the scale. The token with the largest value is picked."""
    size = np.abs(values).astype(float)
    most = float(size[1:].max() if len(size) > 1 else size.max()) or 1.0
    header = {
        "kind": "values",
        "name": key,
        "alt": alt,
        "hint": "Point at a token to read its value.",
        "tokens": list(tokens),
        "values": [float(f"{value:.4g}") for value in values],
        "most": most,
        "picked": int(size[1:].argmax()) + 1 if len(size) > 1 else 0,
    }
    _strip(key=key, data=packed(np.zeros((0, 0), np.uint8), header | _look()))
    kinds = ["match" if one > most / 2 else "" for one in size]
    exports.marked(alt, list(zip(tokens, kinds, strict=True)))


def _look() -> dict[str, Any]:
    """Colours of the theme that the page is shown in."""
    theme = st.context.theme.type or "light"
    return {"to": _BLUE[theme], "by": _ORANGE[theme], "pale": _PALE[theme]}
