"""A page of the explorer at an address, run in this process, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mnemoscope.app
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest

MAIN = Path(mnemoscope.app.__file__).with_name("main.py")
SECONDS = 120
"""For one run on a busy machine; Streamlit's own three are less than an import of torch."""


def page_at(view: str = "", /, **address: str | list[str]) -> AppTest:
    """The page, run once without a fault of ours."""
    app = visited(view, **address)
    assert not app.exception, app.exception
    return app


def visited(view: str = "", /, **address: str | list[str]) -> AppTest:
    """The page, run once, whatever came of it; without a name the one that the explorer opens."""
    app = AppTest.from_file(MAIN, default_timeout=SECONDS)
    if view:
        app.switch_page(f"views/{view}.py")
    for name, value in address.items():
        app.query_params[name] = value
    return app.run()


def gone_to(app: AppTest, view: str, /, **address: str | list[str]) -> AppTest:
    """The page behind a link with this address, or behind the menu without one, in this session,
    without a fault of ours.

    As a browser does, it sends nothing of the fields of the page before: `AppTest.run` would.
    """
    app.switch_page(f"views/{view}.py")
    app.query_params = dict(address)
    app._run(WidgetStates())
    assert not app.exception, app.exception
    return app


def texts(elements: Iterable[Any]) -> str:
    """What they say, one a line, without the backslashes that keep Markdown away."""
    return "\n".join(str(element.value) for element in elements).replace("\\", "")


def button(app: AppTest, label: str) -> Any:
    """The first button whose label begins so."""
    return next(one for one in app.button if one.label.startswith(label))
