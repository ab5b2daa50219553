"""A result as one HTML file that opens anywhere: title, claim, tables, figures, provenance.

The file asks nothing of the network: Plotly's script is inside it once, and a content security
policy forbids the browser every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import jinja2
import plotly.graph_objects as go
import polars
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .provenance import Provenance

_STILL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""The policy of a report without figures of Plotly: it runs no script at all."""
# Plotly compiles its WebGL traces (3-D among them) with eval, hence 'unsafe-eval'.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:; form-action 'none'; base-uri 'none'"
)

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { line-height: 1.2; }
.claim { border-left: 4px solid #0072B2; padding: .2rem 1rem; font-size: 1.1rem; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; }
td.number, th.number { text-align: right; }
caption, figcaption { text-align: left; color: #555; padding: .3rem 0; }
figure { margin: 2rem 0; }
td.value { overflow-wrap: anywhere; white-space: pre-wrap; }
</style>
{% if figures %}<script>{{ plotly_js }}</script>{% endif %}
</head>
<body>
<h1>{{ title }}</h1>
{% if claim %}<p class="claim">{{ claim }}</p>{% endif %}
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}
{% for block in blocks %}
{{ block }}
{% endfor %}
{% for caption, figure in figures %}
<figure>{{ figure }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for table in tables %}
{{ table }}
{% endfor %}
<h2>Provenance</h2>
<table><tbody>{% for name, value in provenance %}
<tr><th scope="row">{{ name }}</th><td class="value">{{ value }}</td></tr>{% endfor %}
</tbody></table>
</body>
</html>
"""

_TABLE = """<div class="scroll"><table><caption>{{ caption }}{% if left_out %} (first
{{ rows | length }} rows of {{ left_out + rows | length }}){% endif %}</caption>
<thead><tr>{% for name, css in columns %}<th class="{{ css }}" scope="col">{{ name }}</th>
{% endfor %}</tr></thead>
<tbody>{% for row in rows %}
<tr>{% for css, cell in row %}<td class="{{ css }}">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>"""


def render_report(
    *,
    title: str,
    claim: str,
    tables: Mapping[str, polars.DataFrame],
    figures: Mapping[str, go.Figure],
    provenance: Provenance,
    notes: Sequence[str] = (),
    blocks: Sequence[Markup] = (),
    max_rows: int = 200,
) -> str:
    """The report as HTML text. Tables and figures are keyed by their captions; of a table longer
    than `max_rows` the first rows are shown and the caption says so. All text is escaped, but
    `blocks`, which are HTML of the caller's own and stand before the figures."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        policy=_POLICY if figures else _STILL,
        title=title,
        claim=claim,
        notes=notes,
        blocks=blocks,
        plotly_js=Markup(get_plotlyjs()) if figures else "",
        figures=[(caption, _figure(figure)) for caption, figure in figures.items()],
        tables=[table_html(caption, table, max_rows) for caption, table in tables.items()],
        provenance=[(name, _value(value)) for name, value in asdict(provenance).items()],
    )


def table_html(caption: str, table: polars.DataFrame, max_rows: int = 200) -> Markup:
    """The first rows of a table as an element of a report; all text is escaped."""
    shown = table.head(max_rows)
    css = ["number" if dtype.is_numeric() else "text" for dtype in table.dtypes]
    html = (
        jinja2.Environment(autoescape=True, trim_blocks=True)
        .from_string(_TABLE)
        .render(
            caption=caption,
            columns=list(zip(table.columns, css, strict=True)),
            rows=[list(zip(css, map(_cell, row), strict=True)) for row in shown.iter_rows()],
            left_out=len(table) - len(shown),
        )
    )
    return Markup(html)


def figure_html(figure: go.Figure, *, title: str) -> str:
    """One figure as a self-contained HTML file."""
    environment = jinja2.Environment(autoescape=True)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{{ policy }}">'
        "<title>{{ title }}</title><script>{{ plotly_js }}</script></head>"
        "<body>{{ figure }}</body></html>\n"
    )
    return environment.from_string(page).render(
        policy=_POLICY,
        title=title,
        plotly_js=Markup(get_plotlyjs()),
        figure=_figure(figure),
    )


def _figure(figure: go.Figure) -> Markup:
    """The figure's own element, without Plotly's script. Plotly escapes `<`, `>` and `/` in the
    data that it writes into its script element."""
    html = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return Markup(html)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(value: object) -> str:
    if value is None:
        return "does not apply"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return json.dumps(value, indent=1) if isinstance(value, dict) else str(value)
