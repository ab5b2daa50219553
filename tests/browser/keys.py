"""A walk over a page with the Tab key: what it comes to, in which order, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_suffix(".js").read_text()
MOST_TABS = 300


@dataclass(frozen=True)
class Walk:
    """What Tab came to, by name in its order; `missed` what it did not, `unseen` what did not look
    any other when it had the focus, `jumps` what takes the focus out of its turn."""

    visited: tuple[str, ...]
    missed: tuple[str, ...]
    unseen: tuple[str, ...]
    jumps: tuple[str, ...]


def walk(page: Any) -> Walk:
    """Press Tab from the top of the page until it comes round.

    Of a group of buttons, of which arrow keys choose one, Tab comes to one.
    """
    page.evaluate(SCRIPT)
    told = page.evaluate("keys.prepare()")
    names, groups = told["names"], told["groups"]
    visited: dict[int, str] = {}
    unseen: list[str] = []
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        here = page.evaluate("keys.here()")
        if here is None:  # on the page itself: at its end, or behind a part that was drawn anew
            continue
        if here["place"] == next(iter(visited), None):
            break
        if here["place"] >= 0:
            visited[here["place"]] = here["name"]
        if not here["seen"]:
            unseen.append(here["name"])
    reached = {groups[place] for place in visited}
    missed = [
        name
        for place, name in enumerate(names)
        if place not in visited and (groups[place] < 0 or groups[place] not in reached)
    ]
    return Walk(tuple(visited.values()), tuple(missed), tuple(unseen), tuple(told["jumps"]))
