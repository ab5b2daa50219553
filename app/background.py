"""Work of more than a few seconds for a page: a thread of the server does it, the page watches.

A page that computes answers nobody; one that watches shows how far the work is, can stop it, and
goes on by itself when it is done. The work of a key is done once, whoever asks for it. At most
`AT_ONCE` works of a kind go on at once on this server; those that come later wait in line, and
nothing but Stop and the end of its model ends a work early. A result is kept while it is among the
last `KEPT` of its kind that were finished.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar

import streamlit as st

from ..models.errors import MnemoscopeError
from .forecast import LONGEST_WAIT

Made = TypeVar("Made")
Tell = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done. Raises `StoppedError` once
the work is not wanted any more."""
Kind = Literal["trial", "atlas", "change", "control", "rates"]
AT_ONCE, KEPT = 2, 2
"""Of each kind, for all users together: works that go on, and finished ones that are kept."""
LONGEST = 3600.0
SOON, EVERY = 1.0, 1.0
"""Seconds that a page waits before it watches, and between its looks."""


class StoppedError(MnemoscopeError):
    """Somebody stopped the work."""


def silent(_: float, __: str) -> None:
    """For work that nobody watches."""


class Work:
    """One piece of work in a thread of its own."""

    def __init__(self, make: Callable[[Tell], Any]) -> None:
        self.share, self.words = 0.0, ""
        self.ended = 0.0
        """By the monotonic clock; 0 while it goes on."""
        self._unwanted, self._ended = threading.Event(), threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(make,), daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, now or within so many seconds."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Ask it to end at its next step, or now if it waits for its turn."""
        self._unwanted.set()
        with _TURNS:
            _TURNS.notify_all()

    @property
    def value(self) -> Any:
        """What was made, after its end. Raises what the work raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self, make: Callable[[Tell], Any]) -> None:
        try:
            self._value = make(self._tell)
        except BaseException as error:  # told in the page's thread, by `value`
            self._error = error
        finally:
            self.ended = time.monotonic()
            self._ended.set()

    def _tell(self, share: float, words: str) -> None:
        if self._unwanted.is_set():
            raise StoppedError("it was stopped.")
        self.share, self.words = share, words


_WORKS: dict[tuple[Kind, Hashable], Work] = {}
_LINES: dict[Kind, list[object]] = {}
"""A ticket for each work that goes on or waits, in the order they came."""
_CHANGING, _TURNS = threading.Lock(), threading.Condition()
_FORGOTTEN = [0]
"""How often `drop_all` was called: until the next time a page's own cache has what it was shown."""


def work_of(kind: Kind, key: Hashable) -> Work | None:
    """The work of a key, going on or ended; None where there is none."""
    return _WORKS.get((kind, key))


def start(kind: Kind, key: Hashable, make: Callable[[Tell], Any]) -> Work:
    """The work of this key, put in line now unless it is there.

    What ended longest ago of its kind is forgotten, but for the last `KEPT`.
    """
    with _CHANGING:
        if (kind, key) not in _WORKS:
            over = [one for one, work in _WORKS.items() if one[0] == kind and work.ended]
            for old in sorted(over, key=lambda one: _WORKS[one].ended)[:-KEPT]:
                _WORKS.pop(old)
            _WORKS[kind, key] = Work(lambda tell: _in_turn(kind, make, tell))
        return _WORKS[kind, key]


def _in_turn(kind: Kind, make: Callable[[Tell], Any], tell: Tell) -> Any:
    """What `make` makes, when fewer than `AT_ONCE` works that came before it still go on.

    One that was stopped counts until it heeds that. Raises `StoppedError` for one that is stopped
    while it waits, and what `make` raises.
    """
    ticket, line = object(), _LINES.setdefault(kind, [])
    with _TURNS:
        line.append(ticket)
    try:
        with _TURNS:
            while (ahead := line.index(ticket)) >= AT_ONCE:
                tell(0.0, f"in line behind {ahead} others, {AT_ONCE} at a time")
                _TURNS.wait(EVERY)
        tell(0.0, "")
        return make(tell)
    finally:
        with _TURNS:
            line.remove(ticket)
            _TURNS.notify_all()


def drop(kind: Kind, key: Hashable) -> None:
    """Stop the work of this key, and forget it."""
    with _CHANGING:
        work = _WORKS.pop((kind, key), None)
    if work is not None:
        work.stop()


def drop_all(of: str | None = None) -> None:
    """Stop and forget everything, or what was done with one model (keys begin with the model's)."""
    _FORGOTTEN[0] += 1
    for kind, key in list(_WORKS):
        if of is None or (isinstance(key, tuple) and key[0] == of):
            drop(kind, key)


def made(kind: Kind, key: Hashable, make: Callable[[Tell], Made]) -> Made:
    """What the work of this key made, or what `make` makes here and now where there is none.

    Raises what the work raised.
    """
    work = work_of(kind, key)
    if work is None:
        return make(silent)
    work.wait(LONGEST)
    value: Made = work.value
    return value


def ready(
    kind: Kind,
    key: Hashable,
    seconds: Callable[[], float],
    make: Callable[[Tell], Any],
    *,
    label: str,
    words: str,
    hint: str = "",
) -> bool:
    """Whether `made` may be called: short work at once, long work after a click, when it is over.

    `seconds` forecasts the wait and is asked only where it matters; `label` is the button's,
    `words` stand on the card that shows how far the work is, `hint` beside the button.
    """
    flag = f"{kind}_of"
    if st.session_state.get(flag) != key and work_of(kind, key) is None:
        wait = seconds()
        if wait <= LONGEST_WAIT:
            return True
        if hint:
            st.info(hint)
        about = f"about {wait:.0f} s at the present pace"
        if not st.button(f"{label} ({about})", type="primary" if hint else "secondary"):
            return False
        st.session_state[flag] = key
    return watched(kind, key, make, words)


def watched(kind: Kind, key: Hashable, make: Callable[[Tell], Any], words: str) -> bool:
    """Whether the work is done; while it is not, a card shows how far it is and can stop it.

    Work that this page was shown is not done again when that of others has taken its place: the
    page's own cache has the result.
    """
    seen, here = f"{kind}_seen", (key, _FORGOTTEN[0])
    if work_of(kind, key) is None and st.session_state.get(seen) == here:
        return True
    work = start(kind, key, make)
    if work.wait(SOON):
        st.session_state[seen] = here
        return True
    st.fragment(_card, run_every=EVERY)(kind, key, words)
    return False


def _card(kind: Kind, key: Hashable, words: str) -> None:
    work = work_of(kind, key)
    if work is None:  # stopped in another tab
        st.session_state.pop(f"{kind}_of", None)
        st.rerun()
        return
    if work.wait(0):
        st.rerun()
    with st.container(border=True):
        st.progress(min(1.0, work.share), f"{words}: {work.words or 'beginning'} …")
        st.caption("The page goes on by itself; until then it can be used, and left.")
        if st.button("Stop", key=f"stop-{kind}"):
            drop(kind, key)
            st.session_state.pop(f"{kind}_of", None)
            st.rerun()
