"""Neutral running text, written for this package: what an intervention should leave alone."""

from __future__ import annotations

from pathlib import Path


def neutral_passages() -> tuple[str, ...]:
    """Twelve paragraphs of plain English without facts that a relation asks about."""
    text = Path(__file__).with_name("neutral.txt").read_text(encoding="utf-8")
    return tuple(paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip())
