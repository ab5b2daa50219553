"""The ASGI application that the launcher serves: Streamlit behind a guard of two rules.

1. A request whose Host header is not this machine's loopback is refused with 403, whatever its
   path. (Streamlit checks hosts for its WebSocket only; a web page elsewhere could otherwise reach
   the rest by rebinding a name to 127.0.0.1.)
2. Every answer carries a Content-Security-Policy, so that the browser itself fetches nothing from
   anywhere else, whatever a prompt, a model's text or a user's theme may name.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import streamlit as st
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.results.queued_runs import settle_runs
from starlette.middleware import Middleware

# Altair and Narwhals take tables' libraries from `sys.modules`, even half imported ones: two people
# who come first at the same moment must find them there whole.
for library in ("numpy", "pyarrow", "pandas", "polars", "altair"):
    import_module(library)

LOOPBACK = ("127.0.0.1", "localhost")

_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def inline_hashes(html: str) -> str:
    """The hashes by which a policy lets the page's own inline scripts run."""
    digests = [sha256(script.encode()).digest() for script in _INLINE.findall(html)]
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)


INDEX = Path(st.__file__).parent / "static" / "index.html"
POLICY = "; ".join(
    (
        "default-src 'self'",
        # blob: is how Streamlit runs a component of ours; only a script that runs can make one.
        f"script-src 'self' blob: 'wasm-unsafe-eval' {inline_hashes(INDEX.read_text('utf-8'))}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


class Guard:
    """Refuses foreign hosts and adds the policy to each answer's headers."""

    def __init__(self, app: Any) -> None:
        """Made by Starlette with the application it stands before."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if _host(scope) not in LOOPBACK:
            return await _refuse(scope, send)

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        return await self.app(scope, receive, with_policy)


def _host(scope: Any) -> str:
    found = [value for name, value in scope["headers"] if name == b"host"]
    return found[0].decode("latin-1").rsplit(":", 1)[0].lower() if len(found) == 1 else ""


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before accept: HTTP 403
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"This host is not served here."})


@asynccontextmanager
async def starting(_: st.App) -> AsyncIterator[None]:
    """Before the first page: runs whose process is gone are marked as interrupted."""
    settle_runs(settings_from_environment().runs_root)
    yield


app = st.App(Path(__file__).with_name("main.py"), lifespan=starting, middleware=[Middleware(Guard)])
