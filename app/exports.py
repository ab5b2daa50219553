"""What pages show, with files of it: the one place of all download buttons.

A chart or table that is shown through here has a menu that saves it as PNG, SVG, CSV or parquet.
Everything that is shown through here, text too, is also part of the view that "Save this view"
writes as one HTML file. Functions are called as those of Streamlit: `exports.caption(...)` shows
what `st.caption(...)` shows, and keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import polars
import streamlit as st

from ..models.hooked import HookedModel
from ..results.bundle import (
    LARGE_SVG,
    Marked,
    Part,
    Picture,
    Table,
    WordKind,
    Words,
    file_stem,
    render_bundle,
)
from ..results.provenance import Provenance, collect_provenance
from . import chart_files, kept_view
from .charts import fitted
from .kept_view import begin, reserve, section

__all__ = [
    "about",
    "badge",
    "begin",
    "caption",
    "chart",
    "drawing",
    "file_button",
    "header",
    "image",
    "info",
    "markdown",
    "marked",
    "measured_on",
    "metric",
    "quote",
    "reserve",
    "save_view",
    "section",
    "subheader",
    "table",
    "warning",
]

_FILES = {
    "png": ("PNG", "image/png"),
    "svg": ("SVG", "image/svg+xml"),
    "csv": ("CSV", "text/csv"),
    "parquet": ("Parquet", "application/vnd.apache.parquet"),
}
"""Label and media type of each kind of file."""
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_BADGE = re.compile(r":[a-z]+-(?:badge|background)\[([^\]]*)\]")
_STARS = re.compile(r"\*\*|\*|`")


def about(question: Mapping[str, str], provenance: Provenance) -> None:
    """What the page asks (prompt, context, ...) and of which model and data: a saved view opens
    with it."""
    view = kept_view.current()
    if view is not None:
        view.question, view.provenance = dict(question), provenance


def measured_on(
    model: HookedModel, estimand: str, *, data_sha256: str | None = None, seed: int | None = None
) -> Provenance:
    """The provenance of what a page measures on a model."""
    return collect_provenance(
        **model.identity,
        data_sha256=data_sha256,
        prompt_template=None,
        seed=seed,
        estimand=estimand,
    )


def chart(
    drawn: Any,
    *,
    name: str,
    alt: str,
    key: str | None = None,
    on_select: Literal["ignore", "rerun"] | Callable[[], None] = "ignore",
    saved: Callable[[], Any] | None = None,
) -> None:
    """An Altair chart at the width of its place. `name` names its files, so it is another one for
    every chart of a page (or has a `key`); `alt` says what is seen. `saved` makes the chart for
    files where it is another one: with what somebody picked in the chart on the page."""
    theme = st.context.theme.type or "light"
    drawn = fitted(drawn)
    st.altair_chart(drawn, key=key, on_select=on_select, width="stretch", alt=alt)

    def kept() -> Any:
        return drawn if saved is None else saved()

    kept_view.keep(lambda: _picture(kept(), theme, name, alt))
    drawings: dict[str, Callable[[], bytes]] = {}
    if chart_files.can_draw():
        drawings = {
            "png": lambda: chart_files.png_of(kept(), theme),
            "svg": lambda: chart_files.svg_of(kept(), theme).encode(),
        }
    _menu(name, drawings | _tables(lambda: chart_files.rows_of(kept())), key)


def table(
    rows: polars.DataFrame,
    *,
    name: str,
    alt: str,
    columns: Mapping[str, Any] | None = None,
    height: int | Literal["auto"] = "auto",
    key: str | None = None,
    on_select: Literal["ignore", "rerun"] | Callable[[], None] = "ignore",
    selection_mode: Literal["single-row", "multi-row"] = "multi-row",
    whole: polars.DataFrame | None = None,
) -> None:
    """A table; `columns` is Streamlit's `column_config`. `whole` is what files of it hold where
    that is more than what is shown."""
    st.dataframe(
        rows,
        hide_index=True,
        column_config=None if columns is None else dict(columns),
        height=height,
        key=key,
        on_select=on_select,
        selection_mode=selection_mode,
        alt=alt,
    )
    kept_view.keep(lambda: Table(name, rows))
    _menu(name, _tables(lambda: rows if whole is None else whole), key)


def image(
    png: Callable[[], bytes],
    svg: Callable[[], str],
    rows: Callable[[], polars.DataFrame],
    *,
    name: str,
    alt: str,
    long: bool = False,
) -> None:
    """Files of what a canvas of the page shows; a saved view has the PNG. A `long` table is saved
    as parquet alone, and no part of a saved view."""

    def kept() -> Picture:
        return Picture(name, alt, png=chart_files.lighter(png()), rows=None if long else rows())

    kept_view.keep(kept)
    tables = _tables(rows)
    if long:
        tables.pop("csv")
    _menu(name, {"png": png, "svg": lambda: svg().encode(), **tables})


def drawing(svg: Callable[[], str], *, name: str, alt: str) -> None:
    """An SVG of what a component of the page shows: it is kept, and a button saves it."""
    kept_view.keep(lambda: Picture(name, alt, svg()))
    _menu(name, {"svg": lambda: svg().encode()})


def header(text: str) -> None:
    """`st.header` without an anchor."""
    st.header(text, anchor=False)
    _words(text, "header")


def subheader(text: str) -> None:
    """`st.subheader` without an anchor."""
    st.subheader(text, anchor=False)
    _words(text, "subheader")


def caption(text: str) -> None:
    """`st.caption`."""
    st.caption(text)
    _words(text, "caption")


def markdown(text: str) -> None:
    """`st.markdown`."""
    st.markdown(text)
    _words(text, "text")


def info(text: str) -> None:
    """`st.info`."""
    st.info(text)
    _words(text, "warning")


def warning(text: str) -> None:
    """`st.warning`."""
    st.warning(text)
    _words(text, "warning")


def badge(text: str, color: str) -> None:
    """`st.badge`."""
    st.badge(text, color=color)  # type: ignore[arg-type]
    _words(text, "badge")


def quote(text: str) -> None:
    """What a model or a person wrote, in a box, as it is."""
    st.code(text, language=None, wrap_lines=True)
    kept_view.keep(lambda: Words(text, "quote"))


def marked(name: str, pieces: Sequence[tuple[str, str]]) -> None:
    """Keep a text with marked pieces that a component shows."""
    kept_view.keep(lambda: Marked(name, tuple(pieces)))


def metric(
    place: Any, label: str, value: str, why: str | None = None, *, beside: str | None = None
) -> None:
    """`place.metric` with a help text, and in grey below it what belongs to it: an interval."""
    place.metric(label, value, beside, delta_color="off", delta_arrow="off", help=why)
    said = value if beside is None else f"{value} ({beside})"
    kept_view.keep(lambda: Words(said, "fact", plain_text(label)))


def save_view() -> None:
    """The button that saves everything on show as one HTML file; nothing where nothing is kept."""
    view = kept_view.current()
    if view is None or not view.root.parts:
        return
    view.look_at_address()
    st.divider()
    file_button(
        "Save this view (HTML)",
        lambda: render_bundle(view.bundle()),
        f"{file_stem(view.title)}.html",
        "text/html",
    )
    st.caption(
        "One file with what is on this page now: figures, tables, texts, settings, the model’s "
        "hashes and the address. It opens offline and holds no script."
    )


def file_button(label: str, made: Callable[[], str | bytes], file_name: str, mime: str) -> None:
    """A download that is made when somebody asks for it; the page does not run again."""
    st.download_button(
        label, made, file_name, mime, on_click="ignore", key=f"file-{file_name}", width="stretch"
    )


def plain_text(text: str) -> str:
    """Markdown of ours as plain text: marks off, escaped characters back."""
    kept: list[str] = []

    def hide(match: re.Match[str]) -> str:
        kept.append(match[1])
        return f"\x00{len(kept) - 1}\x00"

    bare = _STARS.sub("", _BADGE.sub(r"\1", _ESCAPED.sub(hide, text))).replace("&nbsp;", " ")
    return re.sub("\x00(\\d+)\x00", lambda match: kept[int(match[1])], bare)


def _words(text: str, kind: WordKind) -> None:
    kept_view.keep(lambda: Words(plain_text(text), kind))


def _picture(drawn: Any, theme: str, name: str, alt: str) -> Part:
    """The chart for a saved view: SVG, and PNG beside it where the SVG is large."""
    rows = chart_files.rows_of(drawn)
    if not chart_files.can_draw():
        return Picture(name, alt, rows=rows)
    svg = chart_files.svg_of(drawn, theme)
    return Picture(name, alt, svg, _png_if_large(svg, drawn, theme), rows)


def _png_if_large(svg: str, drawn: Any, theme: str) -> bytes | None:
    return chart_files.png_of(drawn, theme) if len(svg) > LARGE_SVG else None


def _tables(rows: Callable[[], polars.DataFrame]) -> dict[str, Callable[[], bytes]]:
    return {
        "csv": lambda: chart_files.csv_bytes(rows()),
        "parquet": lambda: chart_files.parquet_bytes(rows()),
    }


def _menu(name: str, files: Mapping[str, Callable[[], bytes]], key: str | None = None) -> None:
    """A small menu of files, each made when it is asked for."""
    view = kept_view.current()
    stem = file_stem(*(() if view is None else (view.title,)), name)
    words = [_FILES[kind][0] for kind in files]
    with st.popover(
        "Save", icon=":material/download:", type="tertiary", help=f"{name}: {', '.join(words)}"
    ):
        for kind, made in files.items():
            st.download_button(
                _FILES[kind][0],
                made,
                f"{stem}.{kind}",
                _FILES[kind][1],
                on_click="ignore",
                key=f"save-{key or file_stem(name)}-{kind}",
                width="stretch",
            )
