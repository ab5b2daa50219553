"""What a person would see to be wrong with a page (`sight.js` measures what is drawn)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_suffix(".js").read_text()
CONTRAST = 4.5
"""Of text that is not large, WCAG 2.2, 1.4.3."""


def is_painted(page: Any, scheme: str) -> bool:
    """Whether the page is light or dark, as asked."""
    page.evaluate(SCRIPT)
    return bool(page.evaluate("scheme => sight.isPainted(scheme)", scheme))


def wrong(page: Any, menu: Sequence[str]) -> list[str]:
    """Everything that is: charts without words, sideways scrolling, words of the menu that are not
    in sight, text that is cut off or too pale."""
    page.evaluate(SCRIPT)
    found = [f"no words for {drawn}" for drawn in page.evaluate("sight.unnamed()")]
    wide = page.evaluate("sight.tooWide()")
    found += [f"{more} pixels to scroll sideways" for more in wide if more > 0]
    hidden = page.evaluate("words => sight.menu(words)", list(menu))
    found += [f"not in the menu: {word}" for word in hidden]
    found += page.evaluate("sight.cutOff()")
    return found + [
        f"too pale: {text}" for text in page.evaluate("least => sight.pale(least)", CONTRAST)
    ]


def view_of(page: Any) -> list[str]:
    """Every text, field and switch of the page as it stands."""
    page.evaluate(SCRIPT)
    return [str(text) for text in page.evaluate("sight.view()")]
