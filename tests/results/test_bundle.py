"""A saved view: one file with everything, no script, nothing from outside, small enough."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import polars
from mnemoscope.results.bundle import (
    Bundle,
    Marked,
    Part,
    Picture,
    Table,
    Words,
    csv_of,
    file_stem,
    render_bundle,
)
from mnemoscope.results.provenance import collect_provenance

HOSTILE = "<script>alert(1)</script><img src=//evil.example/x.png>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text>bars</text></svg>'
ROWS = polars.DataFrame({"token": ["a", HOSTILE], "weight": [0.25, 0.75], "at": [[1, 2], [3]]})


class Tags(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def bundle(*parts: Part) -> Bundle:
    provenance = collect_provenance(
        model_id="engram",
        weights_sha256="ab12" * 16,
        tokenizer_sha256="cd34" * 16,
        data_sha256=None,
        prompt_template=None,
        bos_rule="none",
        seed=7,
        estimand="direct effect",
        device="cpu",
        dtype="float32",
        attention="eager",
    )
    question = {"prompt": HOSTILE, "context": "Rome."}
    address = "http://127.0.0.1:8501/explore?prompt=x&layer=3"
    return Bundle("Memory or context?", question, address, {"layer": "3"}, parts, provenance)


def test_everything_of_the_view_is_in_the_file() -> None:
    html = render_bundle(
        bundle(
            Words("Which heads?", "header"),
            Words("0.91", "fact", "P(memory answer)"),
            Words("not better than random", "badge"),
            Marked("The text", (("plain ", ""), ("stands in the index", "found"))),
            Picture("bars", "Ten bars.", svg=SVG, rows=ROWS),
            Table("steps", ROWS),
        )
    )
    for said in (
        "Memory or context?",
        "Which heads?",
        "P(memory answer): <b>0.91</b>",
        "not better than random",
        '<mark class="found">stands in the index</mark>',
        "ab12" * 16,
        "cd34" * 16,
        "http://127.0.0.1:8501/explore?prompt=x&amp;layer=3",
        "Rome.",
        "[1, 2]",
    ):
        assert said in html
    (picture,) = Tags(html).all("img")
    assert picture["alt"] == "Ten bars."
    kind, data = (picture["src"] or "").split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == SVG


def test_no_script_and_no_address_of_another_place_is_in_it() -> None:
    html = render_bundle(
        bundle(
            Words(HOSTILE),
            Words(HOSTILE, "quote"),
            Marked(HOSTILE, ((HOSTILE, "found"),)),
            Picture(HOSTILE, HOSTILE, svg=SVG, rows=ROWS),
            Table(HOSTILE, ROWS),
        )
    )
    tags = Tags(html)
    assert tags.all("script") == tags.all("iframe") == tags.all("object") == tags.all("form") == []
    links = [a.get("src") or a.get("href") for name, a in tags.found if name != "meta"]
    assert all(link.startswith("data:") for link in links if link)
    assert not any(name.startswith("on") for _, a in tags.found for name in a)
    policy = next(a["content"] for a in tags.all("meta") if "http-equiv" in a)
    assert (policy or "").startswith("default-src 'none'")
    assert "script-src" not in (policy or "")


def test_the_numbers_behind_a_figure_are_a_file_beside_it() -> None:
    html = render_bundle(bundle(Picture("next tokens", "Bars.", svg=SVG, rows=ROWS)))
    (link,) = Tags(html).all("a")
    assert link["download"] == "next-tokens.csv"
    held = base64.b64decode((link["href"] or "").split(",")[1])
    assert polars.read_csv(io.BytesIO(held))["weight"].to_list() == [0.25, 0.75]


def test_a_large_drawing_stands_there_as_pixels() -> None:
    large = SVG.replace("bars", "x" * 400_000)
    html = render_bundle(bundle(Picture("map", "A map.", svg=large, png=b"\x89PNG")))
    (picture,) = Tags(html).all("img")
    assert (picture["src"] or "").startswith("data:image/png;base64,")


def test_a_view_that_is_too_large_says_what_is_left_out() -> None:
    noise = "".join(f"{i:x}" for i in range(60_000))
    rows = polars.DataFrame({"noise": [noise]})
    parts = [
        Picture("first", "Few dots.", svg=SVG, rows=rows),
        Picture("second", "Many dots.", svg=SVG + noise),
        Words("the last words"),
    ]
    whole = render_bundle(bundle(*parts))
    assert len(Tags(whole).all("a")) == 1
    for limit, links, pictures in ((500_000, 0, 2), (100_000, 0, 1)):
        html = render_bundle(bundle(*parts), most_bytes=limit)
        assert len(html.encode()) <= limit < len(whole.encode())
        assert (len(Tags(html).all("a")), len(Tags(html).all("img"))) == (links, pictures)
        assert "the last words" in html
    assert re.search("second: left out, the file would be too large. Many dots.", html)


def test_a_long_table_shows_its_first_rows_and_has_all_in_the_file() -> None:
    rows = polars.DataFrame({"n": range(1000)})
    html = render_bundle(bundle(Table("numbers", rows)))
    (link,) = Tags(html).all("a")
    held = base64.b64decode((link["href"] or "").split(",")[1])
    assert polars.read_csv(io.BytesIO(held))["n"].to_list() == list(range(1000))
    assert re.search(r"first\s+200 rows of 1000", html)


def test_lists_become_text_in_csv_and_names_become_safe_for_files() -> None:
    assert polars.read_csv(io.StringIO(csv_of(ROWS)))["at"].to_list() == ["[1, 2]", "[3]"]
    assert file_stem("Memory or context?", "next tokens, L1.H2") == (
        "memory-or-context-next-tokens-l1.h2"
    )
    assert file_stem("../../etc", "<b>") == "etc-b"
