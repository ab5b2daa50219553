"""All heads at a glance, and one head's map part by part."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ..models.types import HeadId
from ..probes.retrieval_readings import SINK
from . import background, chart_files, exports, map_files, needle_cached, selection
from .atlas_canvas import draw_atlas, draw_window, happened
from .atlas_maps import POOLS, Pool, Window, atlas, atlas_picture, levels
from .edge_section import show_edges
from .edges import token_labels
from .forecast import LONGEST_WAIT, maps_seconds, rough_pace
from .needle_scene import SPAN_COLOURS, SURELY_SHORT, NeedleScene
from .plain import told

ATLAS, WINDOW = "atlas", "window"
EDGES = (
    ("q0", "Queries from"),
    ("q1", "Queries to"),
    ("k0", "Keys from"),
    ("k1", "Keys to"),
)
"""Fields of a `Window`, and their labels."""
AROUND = 32
"""Tokens shown on both sides of the needle."""


def show_maps(scene: NeedleScene) -> None:
    """The atlas of all heads, then the map of the chosen one."""
    exports.header("Attention maps")
    left, right = st.columns(2)
    pool: Pool = left.segmented_control(
        "Pooled by",
        POOLS,
        default="peak",
        required=True,
        key="pool",
        bind="query-params",
        help="peak: the highest weight in a cell, which finds single looks. mass: the share of "
        "the queries' attention on all of its keys.",
    )
    sink = right.toggle("With the sink (first four tokens)", key="with_sink", bind="query-params")
    with told():
        show_atlas(scene, pool, sink)
    # A part of the map is chosen without the rest of the page being made again.
    st.fragment(show_window)(scene, pool, sink)


def show_atlas(scene: NeedleScene, pool: Pool, sink: bool) -> None:
    """Thumbnails of all heads; a click chooses one."""
    tokens = len(scene.found.followed(scene.mode).asked.ids)
    if not may_draw(scene, tokens):
        return
    with st.spinner("Pooling the maps of all heads …"):
        shown = needle_cached.atlas_of(scene.found, *scene.stamp)
    head = selection.chosen_head()
    sheet, picture = atlas_picture(shown, pool, sink=sink)
    draw_atlas(
        sheet,
        picture,
        key=ATLAS,
        alt="Attention maps of all heads, one row a layer.",
        on_picked=on_picked,
    )
    theme = st.context.theme.type or "light"
    place = (*sheet.place(head), sheet.step_y, sheet.step_x)

    def png() -> bytes:
        return chart_files.map_png(picture, theme, frame=place)

    exports.image(
        png,
        lambda: map_files.map_svg(png(), picture.shape, *map_files.atlas_axes(sheet), theme),
        lambda: map_files.atlas_table(shown),
        name="attention maps of all heads",
        alt=f"Attention maps of all heads, one row a layer; {head} is framed.",
        long=True,
    )
    bins = len(shown.query_edges) - 1
    exports.caption(
        f"Each thumbnail is a head: queries down, keys across, {bins} bins each way, {pool} "
        "of every cell on a logarithmic scale from 0.00001 to 1. Bins end where needle, rival and "
        f"question do. Grey: out of sight. {head} rests {shown.sink[head.layer, head.head]:.0%} of "
        f"its attention on the first four tokens, all heads {shown.sink.mean():.0%}"
        + ("." if sink else "; they are left out.")
        + f" Even attention over all tokens so far would rest {even_sink(tokens):.1%} there, and "
        f"give each token {1 / tokens:.5f} at the end. The Parquet file holds peak and mass of "
        f"every cell in sight: at most {shown.peak.size:,} rows. In the SVG the maps are pixels."
    )


def even_sink(tokens: int) -> float:
    """What the sink gets of even attention over all tokens so far, mean over the queries."""
    return sum(min(SINK, seen) / seen for seen in range(1, tokens + 1)) / tokens


def may_draw(scene: NeedleScene, tokens: int) -> bool:
    """Whether the maps are drawn soon, or were asked for by a click and are there."""
    model, found, mode = scene.loaded.model, scene.found, scene.mode

    def seconds() -> float:
        # A forecast that may be several times too low is enough where it leaves no wait at all.
        rough = maps_seconds(model, rough_pace(model), tokens)
        if rough <= LONGEST_WAIT * SURELY_SHORT:
            return rough
        pace = needle_cached.pace_of(scene.loaded, scene.loaded.key, scene.asked)
        return maps_seconds(model, pace, tokens)

    return background.ready(
        "atlas",
        scene.stamp,
        seconds,
        lambda tell: atlas(found, mode, tell),
        label="Draw the maps of all heads",
        words="Pooling the maps of all heads",
    )


def show_window(scene: NeedleScene, pool: Pool, sink: bool) -> None:
    """The chosen head's map in a window of queries and keys, with its own errors."""
    with exports.section(WINDOW), told():
        show_part(scene, pool, sink)


def show_part(scene: NeedleScene, pool: Pool, sink: bool) -> None:
    """Which part, and the map of it."""
    head = selection.chosen_head()
    found, tokens = scene.found, len(scene.found.followed(scene.mode).asked.ids)
    exports.subheader(f"Map of {head}")
    left, right = st.columns([2, 3], gap="large")
    with left:
        window = choose_window(scene, tokens)
    maps = needle_cached.window_of(
        scene.loaded, found, *scene.stamp, head, window, sink or window.k0 > 0
    )
    picture = levels(maps.peak if pool == "peak" else maps.mass)
    words = (
        f"Attention map of {head}, queries {window.q0} to {window.q1}, keys {window.k0} to "
        f"{window.k1}."
    )
    with right:
        draw_window(
            picture,
            {"query": maps.query_edges, "key": maps.key_edges},
            {"query": maps.query_text, "key": maps.key_text},
            span_marks(scene),
            key=WINDOW,
            head=head,
            span=maps.span,
            pool=pool,
            alt=words,
            on_part=on_part,
        )
        theme = st.context.theme.type or "light"
        enlarge = max(1, 512 // max(picture.shape))
        size = (picture.shape[0] * enlarge, picture.shape[1] * enlarge)

        def png() -> bytes:
            return chart_files.map_png(picture, theme, enlarge=enlarge)

        exports.image(
            png,
            lambda: map_files.map_svg(png(), size, *map_files.window_axes(maps, enlarge), theme),
            lambda: map_files.window_table(maps),
            name=f"attention map of {head}",
            alt=words,
        )
    show_window_edges(scene, head, window, sink)
    with left:
        cell_queries = -(-(window.q1 - window.q0) // (len(maps.query_edges) - 1))
        cell_keys = -(-(window.k1 - window.k0) // (len(maps.key_edges) - 1))
        exports.caption(
            f"Queries down, keys across; a cell is up to {cell_queries} × {cell_keys} tokens. Bars "
            "at the edges: needle blue, answer orange, rival grey, question green. The number "
            "beside a weight is how many times that of even attention it is, the same for every "
            "key that a query sees. What is in view is computed from the queries and keys of the "
            "trial, the model does not run. In the SVG the map is pixels, with axes in words."
        )


def show_window_edges(scene: NeedleScene, head: HeadId, window: Window, sink: bool) -> None:
    """The head's strongest edges over the whole prompt, the list for the queries on show."""
    exports.subheader(f"Strongest edges of {head}")
    found = needle_cached.edges_of(scene.found, *scene.stamp, head, not sink)
    ids = scene.found.followed(scene.mode).asked.ids
    tokens = token_labels(scene.loaded.model, ids)
    whole = (window.q0, window.q1) == (0, len(tokens))
    queries = None if whole else (window.q0, window.q1)
    show_edges(found, tokens, head, key="edges", queries=queries)


def choose_window(scene: NeedleScene, tokens: int) -> Window:
    """The part on show: four numbers, each part of the address, which a drag writes too."""
    for name, _ in EDGES:
        if (st.session_state.get(name) or 0) > tokens:
            st.session_state[name] = None  # of a longer prompt
    whole, answer = st.columns(2)
    whole.button("Whole prompt", on_click=put_window, args=(None,), width="stretch")
    needle = on_needle(scene, tokens)
    answer.button("Answer, needle", on_click=put_window, args=(needle,), width="stretch")
    ends = []
    for place, (name, words) in zip((*st.columns(2), *st.columns(2)), EDGES, strict=True):
        # Empty means the prompt's own end, so that only a chosen part stands in the address.
        ends.append(place.number_input(words, 0, tokens, None, key=name, bind="query-params"))
    q0, q1, k0, k1 = ends
    return Window(
        q0 or 0, tokens if q1 is None else q1, k0 or 0, tokens if k1 is None else k1
    ).within(tokens)


def on_needle(scene: NeedleScene, tokens: int) -> Window:
    """Question and answer as queries, the needle and what is around it as keys."""
    spans = scene.found.spans
    start, stop = spans["needle"]
    return Window(spans["question"][0], tokens, max(0, start - AROUND), min(tokens, stop + AROUND))


def span_marks(scene: NeedleScene) -> list[dict[str, Any]]:
    """The spans as the canvas wants them."""
    return [
        {"start": start, "stop": stop, "colour": SPAN_COLOURS[name]}
        for name, (start, stop) in scene.found.spans.items()
    ]


def on_picked() -> None:
    """A thumbnail was clicked: choose that head."""
    picked = happened(ATLAS, "picked")
    if picked:
        selection.pick_heads((HeadId(int(picked["layer"]), int(picked["head"])),))


def on_part() -> None:
    """A part of the map was dragged over, or all of it asked for."""
    part = happened(WINDOW, "part")
    if not part:
        return
    chosen = None if part.get("whole") else Window(*(int(part[name]) for name, _ in EDGES))
    put_window(chosen)


def put_window(window: Window | None) -> None:
    """Callback: the fields, and so the map, go to this part; None is the whole prompt."""
    for name, _ in EDGES:
        st.session_state[name] = None if window is None else getattr(window, name)
