"""Real running text: State of the Union addresses, in the public domain (`public_text/SOURCES.md`).

Two addresses are held out of the corpus, so that perplexity can be measured on text of the kind
that the organism was trained on.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("public_text")
HELD_OUT = ("1951-harry-s-truman", "1972-richard-nixon")


def training_texts() -> tuple[str, ...]:
    """The addresses of the corpus, by year."""
    return tuple(text for name, text in _texts() if name not in HELD_OUT)


def held_out_texts() -> tuple[str, ...]:
    """The addresses that are in no training document."""
    return tuple(text for name, text in _texts() if name in HELD_OUT)


def _texts() -> list[tuple[str, str]]:
    return [(p.stem, p.read_text(encoding="utf-8").strip()) for p in sorted(FOLDER.glob("*.txt"))]
