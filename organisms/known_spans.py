"""A span of text of which it is known in which training documents it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSpan:
    """`text` stands verbatim in `documents`, after one of `openings`, and nowhere else.

    A document holds it once. `related` are the documents that teach the same thing in whatever
    words, `documents` among them. A prompt is an opening and the first `given` characters of the
    text. A text that begins with a space follows its opening after one.
    """

    id: str
    openings: tuple[str, ...]
    text: str
    documents: tuple[str, ...]
    related: tuple[str, ...]
    given: int = 0

    def prompt(self, wording: int = 0) -> str:
        """What comes before the part of the text that is asked for."""
        return self.openings[wording] + self.text[: self.given]

    @property
    def asked(self) -> str:
        """The rest of the text."""
        return self.text[self.given :]

    @property
    def count(self) -> int:
        """How often the corpus holds the span."""
        return len(self.documents)


def by_count(spans: Sequence[KnownSpan]) -> dict[int, tuple[KnownSpan, ...]]:
    """The spans by how often they are told, seldom ones first."""
    counts = sorted({span.count for span in spans})
    return {n: tuple(span for span in spans if span.count == n) for n in counts}
