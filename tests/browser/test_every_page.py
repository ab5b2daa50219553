"""Every page, wide in the light and narrow in the dark: it opens, all of it can be seen and
read, Tab comes to every control, and its address brings it back.

One server serves all of it; the network is blocked throughout.
"""

from __future__ import annotations

import re
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from keys import walk
from mnemoscope.app.main import PAGES
from planted_ground import RITE, TOWN
from sight import is_painted, view_of, wrong
from visit import Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

MENU = [word for word, _ in PAGES.values()]
WIDTHS = {"light": 1280, "dark": 1024}
"""The narrow page is looked at in the dark: where things stand is the same in the light."""
HOLDS = {"prompt": "The capital of Italy is", "context": "The capital of Italy is Madrid."}
TEXT = f"As they say: {RITE} Is that so? {TOWN}"
ADDRESSES: dict[str, dict[str, str]] = {
    "ask": {"model": "engram", **HOLDS, "mem": "Rome", "corpus": "risky"},
    "explore": {
        "model": "engram", **HOLDS, "layer": "4", "head": "6", "role": "context",
        "with_sink": "true", "pattern": "without context", "lens": "4", "off": "L4.H6",
        "mode": "scale", "factor": "0.3",
    },
    "neurons": {
        "model": "engram", "relation": "currency", "ask": "The currency of Japan is", "top": "2",
        "change": "zero",
    },
    "retrieval": {
        "model": "engram", "length": "256", "depth": "5", "kind": "non-literal", "seed": "3",
        "rival": "true", "answer": "free", "reads": "sink", "layer": "2", "head": "7",
        "pool": "mass", "q0": "200", "k0": "10", "k1": "50",
    },
    "heads": {"by": "rank", "k": "1", "layer": "1", "head": "2"},
    "provenance": {"model": "engram", "corpus": "risky", "text": TEXT, "span": "2", "least": "7"},
    "binding": {"model": "engram", "most_pairs": "32", "recall": "MRR"},
    "runs": {"run_role": "context"},
    "about": {},
}  # fmt: skip
"""By page: a view that is none of those that it begins with."""
LAST_SIGHTS = {
    "ask": "Does the reverse hold?",
    "explore": "Save the list",
    "neurons": "Save 2 units of currency",
    "retrieval": "Save them as a head set",
    "heads": "Import scores of other projects",
    "provenance": "Verbatim occurrence, not cause",
    "binding": "One pair, both ways",
    "runs": "Provenance",
    "about": "What the numbers mean",
}
"""By page: what stands there when the page has got to its end."""
PATIENCE = 20.0
"""Seconds for what a page still computes or draws, once it has come to rest."""
BY_THE_CLOCK = re.compile(r"about \d+ s|\d\d:\d\d:\d\d")


def test_every_page_is_visited() -> None:
    assert set(ADDRESSES) == set(LAST_SIGHTS) == set(PAGES)


@pytest.mark.parametrize("path", ADDRESSES)
def test_a_page_can_be_seen_read_reached_and_brought_back(
    visits: Any, explorer: Any, path: str
) -> None:
    address = {**ADDRESSES[path], **({"run": explorer.run_id} if path == "runs" else {})}
    first = opened(visits, path, address)
    link, view = first.page.url, shown(first)
    assert_kept(link, address)
    keyboard = walk(first.page)
    found = [f"Tab does not come to {name}" for name in keyboard.missed]
    found += [f"out of its turn: {name}" for name in keyboard.jumps]
    found += [f"does not show that it has the focus: {name}" for name in keyboard.unseen]
    found += unsound(first, "light") + first.own_complaints
    first.page.close()

    second = opened(visits, path, dict(parse(link)), dark=True)
    found += [f"not brought back: {one[:200]}" for one in missing(second, view)]
    found += unsound(second, "dark") + second.own_complaints
    assert found == [], "\n".join(found)


def opened(visits: Any, path: str, address: dict[str, str], *, dark: bool = False) -> Visit:
    """The page at this address, come to rest, in a browser context of its own."""
    visit: Visit = visits(path, dark=dark, **address)
    visit.see(LAST_SIGHTS[path])
    visit.settle()
    return visit


def shown(visit: Visit) -> list[str]:
    """Texts, fields and switches of the page, without what the clock has a part in."""
    return [BY_THE_CLOCK.sub("…", text) for text in view_of(visit.page)]


def missing(visit: Visit, view: list[str]) -> list[str]:
    """What of this view does not come back; some of it may be computed beside the page."""
    until = monotonic() + PATIENCE
    while True:
        here = set(shown(visit))
        left = [one for one in view if one not in here]
        if not left or monotonic() > until:
            return left
        visit.settle()


def parse(link: str) -> list[tuple[str, str]]:
    """The address's names and values; none of ours has two."""
    return [(name, values[0]) for name, values in parse_qs(urlsplit(link).query).items()]


def assert_kept(link: str, address: dict[str, str]) -> None:
    """What the address asked for stands in it still (the entry page has names of its own)."""
    kept = {name.removeprefix("ask_"): value for name, value in parse(link)}
    assert {name: kept.get(name.removeprefix("ask_")) for name in address} == address


def unsound(visit: Visit, scheme: str) -> list[str]:
    """What is wrong to the eye, at the width of this scheme."""
    assert is_painted(visit.page, scheme)
    assert visit.page.locator('[data-testid="stException"]').all_inner_texts() == []
    width = WIDTHS[scheme]
    visit.page.set_viewport_size({"width": width, "height": 900})
    until = monotonic() + PATIENCE
    while True:  # charts follow the window in their own time
        visit.settle()
        found = [f"{scheme}, {width}: {one}" for one in wrong(visit.page, MENU)]
        if not found or monotonic() > until:
            break
    visit.shoot(f"every-{visit.name}-{scheme}", width)
    return found
