"""One tab of the explorer, as the tests of every page use it.

Screenshots go to the folder named in MNEMOSCOPE_SCREENSHOTS, where a person can look at them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WAIT = 60_000
REST = Path(__file__).with_name("rest.js").read_text().split("\n", 3)[3]


class Visit:
    """One tab, what it asked for outside (all refused) and the errors in its console."""

    def __init__(self, browser: Any, url: str, *, dark: bool = False) -> None:
        self.outside: list[str] = []
        self.complaints: list[str] = []
        self._turns = 0
        self.page = browser.new_page(
            viewport={"width": 1280, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page.route("**/*", self._local_only)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url, timeout=WAIT)

    def _local_only(self, route: Any) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            where = message.location.get("url", "")
            self.complaints.append(f"{message.text} {where}")

    def settle(self) -> None:
        """Wait until the script has come to rest, and what it made has been drawn."""
        self._turns += 1
        self.page.wait_for_function(REST, arg=self._turns, polling=50, timeout=WAIT)

    def cell(self, head: str) -> Any:
        """The cell of a head in the first grid of the page."""
        grid = self.page.locator('[data-testid="stVegaLiteChart"][aria-label^="Grid of heads"]')
        return grid.locator(f'path[aria-label^="{head} score"]').first

    def see(self, text: str | re.Pattern[str]) -> None:
        """Wait until this text stands on the page; a traceback in its place is told at once."""
        raised = self.page.locator('[data-testid="stException"]')
        self.page.get_by_text(text).or_(raised).first.wait_for(timeout=WAIT)
        assert raised.all_inner_texts() == []

    def code(self, n: int) -> list[str]:
        """The n code boxes of the page: continuations first, then before and after."""
        boxes = self.page.locator('[data-testid="stCode"]')
        boxes.nth(n - 1).wait_for(timeout=WAIT)
        return boxes.all_inner_texts()

    @property
    def own_complaints(self) -> list[str]:
        """Errors in the console, without the two that are meant to be there: the font of the
        hostile configuration is blocked, and Streamlit looks for its server below a page first."""
        meant = ("outside.woff2", "/_stcore/h")
        return [text for text in self.complaints if not any(part in text for part in meant)]

    @property
    def name(self) -> str:
        """The page's name in the address."""
        return urlsplit(self.page.url).path.strip("/") or "ask"

    def shoot(self, name: str, width: int = 1280) -> None:
        """Keep a picture of the whole page, if anybody wants to look."""
        folder = os.environ.get("MNEMOSCOPE_SCREENSHOTS")
        if folder:
            height = self.page.evaluate(
                "document.querySelector('[data-testid=stMain]').scrollHeight"
            )
            self.page.set_viewport_size({"width": width, "height": min(height + 60, 4000)})
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=Path(folder) / f"{name}.png")
