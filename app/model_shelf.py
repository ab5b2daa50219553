"""Models in memory: each for as long as somebody shows it, and the last one until it is in the way.

Who shows another model leaves the one before; what nobody shows is let go of before anything else
is loaded. So one person at a time needs room for one model, and two people with two models do not
load them over and over.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Shelf(Generic[Thing]):
    """Things by place, each made once and kept for those who use it."""

    def __init__(self, make: Callable[[str], Thing], gone: Callable[[list[Thing]], None]) -> None:
        """`gone` is called with what was let go of, the only list that holds it."""
        self._make, self._gone = make, gone
        self._things: dict[str, Thing] = {}
        self._places: dict[str, str] = {}  # by user
        self._changing, self._making = Lock(), Lock()

    def __contains__(self, place: str) -> bool:
        """Whether it is there already."""
        return place in self._things

    def place_of(self, user: str) -> str | None:
        """What somebody uses."""
        return self._places.get(user)

    def take(self, place: str, user: str) -> Thing:
        """The thing of this place, made if it is not there; the user's one before is left.

        Nobody waits for what another user has made; two things are never made at once. Raises
        what making raises: then the user has nothing.
        """
        found = self._there(place, user)
        if found is not None:
            return found
        with self._making:
            found = self._there(place, user)  # made while this one waited
            if found is None:
                try:
                    found = self._make(place)
                except BaseException:
                    self.leave(user)
                    raise
                with self._changing:
                    self._things[place] = found
        return found

    def leave(self, user: str) -> None:
        """The user is gone; what was used stays until something else is to be made."""
        with self._changing:
            self._places.pop(user, None)

    def _there(self, place: str, user: str) -> Thing | None:
        with self._changing:
            self._places[user] = place
            unused = sorted(set(self._things) - set(self._places.values()))
            old = [self._things.pop(one) for one in unused]
            if old:
                self._gone(old)
            return self._things.get(place)
