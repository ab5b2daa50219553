"""Wordings added to the shipped relations so that pairs can be asked both ways, four times each.

A forward wording holds `{a}` and ends right before `b`, a reverse one the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MoreWordings:
    """What a relation of `data/facts` gets beside its own templates."""

    forward: tuple[str, ...]
    reverse: tuple[str, ...]


MORE_WORDINGS: Mapping[str, MoreWordings] = {
    "atomic_number": MoreWordings(
        ("The place of {a} in the order of the elements is number",),
        ("The atom whose nucleus holds {b} protons is that of",),
    ),
    "book_author": MoreWordings(
        ("The name on the cover of {a} is that of",),
        (
            "{b} is the author of",
            "{b} wrote the book",
            "The best known book by {b} is",
            "Readers know {b} as the author of",
        ),
    ),
    "capital": MoreWordings(
        ("The government of {a} sits in its capital,",), ("People who govern from {b} govern",)
    ),
    "company_founder": MoreWordings(
        ("{a} is a company that was founded by",),
        (
            "{b} is the founder of",
            "{b} started the company",
            "The company founded by {b} is",
            "The business that made {b} rich is",
        ),
    ),
    "country_in_french": MoreWordings(
        ("A map in French gives {a} the name",),
        ("The French word {b} is the name of the country of",),
    ),
    "country_in_german": MoreWordings(
        ("A map in German gives {a} the name",),
        ("The German word {b} is the name of the country of",),
    ),
    "country_in_spanish": MoreWordings(
        ("A map in Spanish gives {a} the name",),
        ("The Spanish word {b} is the name of the country of",),
    ),
    "element_discoverer": MoreWordings(
        ("The person who discovered the element {a} is",),
        (
            "{b} discovered the element",
            "{b} is the discoverer of",
            "The chemical element found by {b} is",
            "In histories of chemistry, {b} is credited with the discovery of",
        ),
    ),
    "element_symbol": MoreWordings(
        ("In a formula, atoms of {a} appear as",), ("In a formula, the letters {b} mean",)
    ),
    "invention_inventor": MoreWordings(
        ("The name that goes with the invention of {a} is",),
        (
            "{b} is credited with inventing",
            "{b} is known as the inventor of",
            "The most famous invention of {b} is",
            "The world owes to {b} the invention of",
        ),
    ),
    "landmark_city": MoreWordings(
        ("People who walk through {a} are in the city of",),
        (
            "The best known sight of {b} is",
            "Tourists travel to {b} to see",
            "Visitors of {b} take pictures of",
            "A famous landmark in the city of {b} is",
        ),
    ),
    "painting_artist": MoreWordings(
        ("The signature on {a} is that of",),
        (
            "{b} is the painter of",
            "{b} painted",
            "The best known painting by {b} is",
            "The painting that made {b} famous is",
        ),
    ),
    "state_capital": MoreWordings(
        ("The governor of {a} works in the capital,",),
        ("Lawmakers who meet in {b} make the laws of the U.S. state of",),
    ),
}
