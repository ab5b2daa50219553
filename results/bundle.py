"""What a page of the explorer shows, as one HTML file that opens without it.

Figures stand in it as SVG or PNG, tables as tables, and the numbers behind a figure beside it as a
CSV file. There is no script, and a content security policy forbids the browser every request. A
picture is shown as an image of its own (`<img>`), so that nothing that a token spells in it can
act, and no name of one figure meets that of another.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import jinja2
import polars
from markupsafe import Markup

from .provenance import Provenance, utc_now
from .report import render_report, table_html

MOST_BYTES = 5_000_000
"""A file of more is not mailed or attached; parts are left out of a bundle, and it says which."""
MOST_ROWS = 200
LARGE_SVG = 300_000
"""Above this an SVG is shown as PNG where there is one: cells by the ten thousand."""

WordKind = Literal["header", "subheader", "caption", "text", "quote", "fact", "badge", "warning"]


@dataclass(frozen=True)
class Words:
    """A piece of text; a `fact` has its name in `label`."""

    text: str
    kind: WordKind = "text"
    label: str = ""


@dataclass(frozen=True)
class Marked:
    """A text with marked pieces: (text, kind), kind empty where nothing is marked."""

    name: str
    pieces: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A table; the first rows are shown, all are in the file beside it."""

    name: str
    rows: polars.DataFrame


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure as SVG or PNG, what it shows in words, and the table behind it, if there is one."""

    name: str
    alt: str
    svg: str | None = None
    png: bytes | None = None
    rows: polars.DataFrame | None = None


Part: TypeAlias = Words | Marked | Table | Picture


@dataclass(frozen=True, eq=False)
class Bundle:
    """One view: `question` says what was asked (prompt, context, ...), `address` brings the page
    back where it runs, `settings` are its switches, `parts` what it shows from top to bottom."""

    title: str
    question: Mapping[str, str]
    address: str
    settings: Mapping[str, str]
    parts: Sequence[Part]
    provenance: Provenance


def render_bundle(bundle: Bundle, *, most_bytes: int = MOST_BYTES) -> str:
    """The file as text, at most `most_bytes` long in UTF-8; all text is escaped.

    Where it would be longer, the tables beside the figures go first, then the largest parts; what
    is left out says so in its place.
    """
    head = [_facts("Question", bundle.question), _facts("Settings of the page", bundle.settings)]
    blocks = [_block(part) for part in bundle.parts]
    frame = _page(bundle, head, [])
    shown = _fitted(blocks, most_bytes - len(frame.encode()))
    return _page(bundle, head, [Markup(block.html) for block in shown])


def csv_of(rows: polars.DataFrame) -> str:
    """A table as CSV; lists and records, which CSV has not, stand in it as JSON-like text."""
    return rows.select(_flat(rows[name]) for name in rows.columns).write_csv()


def file_stem(*names: str) -> str:
    """A file name without its ending, of letters, digits, dots and dashes alone."""
    return re.sub(r"[^\w.]+", "-", "-".join(names), flags=re.ASCII).strip("-.").lower()[:80]


@dataclass(frozen=True)
class _Block:
    """A part as HTML, and what may stand there in its place: shorter and shorter."""

    html: str
    shorter: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.html.encode())


_STYLE = """<style>
h2 { margin-top: 2.5rem; } caption { min-width: 20rem; } .caption { color: #555; font-size: .9rem; }
.quote { background: #f3f4f6; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .9rem/1.5 ui-monospace, monospace; }
.badge { display: inline-block; border: 1px solid #767676; border-radius: .6rem; padding: 0 .6rem; }
.warning { border-left: 4px solid #D55E00; padding-left: 1rem; }
.fact b { font-variant-numeric: tabular-nums; }
.marked { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
mark { background: #cfe6f5; color: inherit; } mark.chance { background: #f8e2b3; }
mark.echo { background: #e0e0e0; }
img { max-width: 100%; height: auto; border: 1px solid #eee; } a { color: #00558c; }
</style>"""

_WORDS = {
    "header": "<h2>{{ text }}</h2>",
    "subheader": "<h3>{{ text }}</h3>",
    "caption": '<p class="caption">{{ text }}</p>',
    "text": "<p>{{ text }}</p>",
    "quote": '<div class="quote">{{ text }}</div>',
    "fact": '<p class="fact">{{ label }}: <b>{{ text }}</b></p>',
    "badge": '<p><span class="badge">{{ text }}</span></p>',
    "warning": '<p class="warning">{{ text }}</p>',
}
_PICTURE = (
    '<figure><img src="{{ source }}" alt="{{ alt }}"><figcaption>{{ alt }} {{ file }}'
    "</figcaption></figure>"
)
_MARKED = (
    '<p class="caption">{{ name }}</p><p class="marked">{% for text, kind in pieces %}{% if kind %}'
    '<mark class="{{ kind }}">{{ text }}</mark>{% else %}{{ text }}{% endif %}{% endfor %}</p>'
)
_FILE = '<a download="{{ name }}" href="data:text/csv;base64,{{ data }}">Table (CSV)</a>'
_LEFT_OUT = '<p class="warning">{{ name }}: left out, the file would be too large. {{ alt }}</p>'


def _page(bundle: Bundle, head: Sequence[Markup], blocks: Sequence[Markup]) -> str:
    permalink = _html(
        '<p>Address, where the explorer runs: <code class="address">{{ address }}</code></p>',
        address=bundle.address,
    )
    return render_report(
        title=bundle.title,
        claim="",
        tables={},
        figures={},
        provenance=bundle.provenance,
        notes=[f"What this page of Mnemoscope showed; saved {utc_now()} (UTC)."],
        blocks=[Markup(_STYLE), permalink, *head, *blocks],
    )


def _facts(caption: str, facts: Mapping[str, str]) -> Markup:
    if not facts:
        return Markup("")
    rows = {"": list(facts), "value": list(facts.values())}
    return table_html(caption, polars.DataFrame(rows, schema=dict.fromkeys(rows, polars.String)))


def _block(part: Part) -> _Block:
    if isinstance(part, Words):
        return _Block(_html(_WORDS[part.kind], text=part.text, label=part.label))
    if isinstance(part, Marked):
        html = _html(_MARKED, name=part.name, pieces=part.pieces)
        return _Block(html, (_left_out(part.name),))
    if isinstance(part, Table):
        bare = table_html(part.name, _readable(part.rows), MOST_ROWS)
        return _Block(bare + _file(part.name, part.rows), (bare, _left_out(part.name)))
    return _picture_block(part)


def _picture_block(part: Picture) -> _Block:
    gone = _left_out(part.name, part.alt)
    source = _source(part)
    if source is None:
        return _Block(gone)
    bare = _html(_PICTURE, source=source, alt=part.alt, file="")
    if part.rows is None:
        return _Block(bare, (gone,))
    file = _file(part.name, part.rows)
    full = _html(_PICTURE, source=source, alt=part.alt, file=file)
    return _Block(full, (bare, gone))


def _source(part: Picture) -> str | None:
    """The picture as a data address: SVG, but PNG where the SVG is large and the PNG is not."""
    svg = None if part.svg is None else part.svg.encode()
    if svg is not None and (part.png is None or len(svg) <= max(LARGE_SVG, len(part.png))):
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    if part.png is not None:
        return f"data:image/png;base64,{base64.b64encode(part.png).decode()}"
    return None


def _fitted(blocks: Sequence[_Block], room: int) -> list[_Block]:
    """The blocks, the largest ones shortened until all of them fit into the room."""
    shown = list(blocks)
    total = sum(block.size + 1 for block in shown)
    while total > room:
        # Tables beside figures (two shorter forms are left) before whole parts (one is).
        able = [i for i, block in enumerate(shown) if block.shorter]
        if not able:
            break
        most = max(able, key=lambda i: (len(shown[i].shorter), shown[i].size))
        new = replace(shown[most], html=shown[most].shorter[0], shorter=shown[most].shorter[1:])
        total += new.size - shown[most].size
        shown[most] = new
    return shown


def _file(name: str, rows: polars.DataFrame) -> Markup:
    data = base64.b64encode(csv_of(rows).encode()).decode()
    return _html(_FILE, name=f"{file_stem(name)}.csv", data=data)


def _left_out(name: str, alt: str = "") -> Markup:
    return _html(_LEFT_OUT, name=name, alt=alt)


def _readable(rows: polars.DataFrame) -> polars.DataFrame:
    """Lists as text, as in the file."""
    return rows.select(_flat(rows[name]) for name in rows.columns)


def _flat(column: polars.Series) -> polars.Series:
    if not (column.dtype.is_nested() or column.dtype == polars.Object):
        return column
    said = [None if value is None else str(value) for value in column.to_list()]
    return polars.Series(column.name, said, polars.String)


def _html(template: str, **values: object) -> Markup:
    environment = jinja2.Environment(autoescape=True)
    return Markup(environment.from_string(template).render(**values))
