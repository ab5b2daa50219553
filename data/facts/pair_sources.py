"""Where relations of pairs come from: those that ship here, a file, or a published set.

The shipped relations of `data/facts` get further wordings, so that each direction has four at
least; person-like ones (authors, painters, founders, inventors) get their reverse wordings here.
What belongs to several partners stays in the rows: `usable_pairs` drops and counts it.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from .berglund_pairs import BERGLUND, load_berglund
from .fictitious_pairs import fictitious_pairs
from .items import load_relation
from .pair_wordings import MORE_WORDINGS
from .pairs import Pair, PairRelation, Told, pairs_of

FICTITIOUS = "fictitious"


def pair_relation_names() -> tuple[str, ...]:
    """Names of the relations of pairs that ship with the package, sorted.

    `load_pair_relation` also knows `FICTITIOUS`, and the sets of `BERGLUND` from a local copy.
    """
    return tuple(sorted(MORE_WORDINGS))


def load_pair_relation(
    name_or_path: str | Path, *, copy: str | Path | None = None, seed: int = 0
) -> PairRelation:
    """A relation of pairs by its name, or from a JSON file of one's own.

    `copy` is the folder of a local copy, for the sets of `BERGLUND`; `seed` draws the pairs of
    `FICTITIOUS`. A file holds the fields of `PairRelation`, its pairs as objects with the fields of
    `Pair`; or it is a relation of `data/facts` with reverse templates. Raises ValueError for an
    unknown name or a file of another form, FileNotFoundError where a path or copy is missing.
    """
    name = str(name_or_path)
    if name in MORE_WORDINGS:
        return _shipped(name)
    if name == FICTITIOUS:
        return fictitious_pairs(seed)
    if name in BERGLUND:
        return load_berglund(name, copy)
    path = Path(name_or_path)
    if path.suffix != ".json" and not path.exists():
        known = (*pair_relation_names(), FICTITIOUS, *BERGLUND)
        raise ValueError(
            f"there is no relation of pairs {name!r}: give a JSON file or one of "
            f"{', '.join(known)}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path.")
    return _from_file(path)


def _shipped(name: str) -> PairRelation:
    relation, more = load_relation(name), MORE_WORDINGS[name]
    reverse = tuple(text.replace("{b}", "{o}") for text in more.reverse)
    made = pairs_of(replace(relation, reverse_templates=(*relation.reverse_templates, *reverse)))
    return replace(made, forward=(*made.forward, *more.forward))


def _from_file(path: Path) -> PairRelation:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and "facts" in raw:
            return pairs_of(load_relation(path))
        return _relation_from_json(raw, str(path))
    except (ValueError, TypeError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"cannot read {path} as a relation of pairs: {error}") from error


def _relation_from_json(raw: Any, source: str) -> PairRelation:
    if not isinstance(raw, dict) or not isinstance(raw.get("pairs"), list):
        raise ValueError("it must be an object with a list 'pairs'.")
    _check_fields(raw, PairRelation, ("name", "forward", "reverse", "pairs"), "the file")
    pairs = tuple(_pair_from_json(row, i) for i, row in enumerate(raw["pairs"]))
    return PairRelation(
        str(raw["name"]),
        _texts(raw["forward"], "forward"),
        _texts(raw["reverse"], "reverse"),
        pairs,
        str(raw.get("source", source)),
        str(raw.get("license", "")),
    )


def _pair_from_json(row: Any, index: int) -> Pair:
    where = f"pair {index}"
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object: write {{'a': ..., 'b': ...}}.")
    _check_fields(row, Pair, ("a", "b"), where)
    for name in ("a", "b", "group"):
        if not isinstance(row.get(name, ""), str) or (name != "group" and not row[name].strip()):
            raise ValueError(f"{name!r} of {where} must be a text that is not empty.")
    if row.get("told", "") not in get_args(Told):
        raise ValueError(f"{where} is told {row['told']!r}: use both, forward, reverse or nothing.")
    aliases = {
        name: _texts(row.get(name, []), f"{name} of {where}") for name in ("a_aliases", "b_aliases")
    }
    return Pair(**{**row, **aliases})


def _check_fields(raw: dict[str, Any], kind: type, required: tuple[str, ...], where: str) -> None:
    known = {field.name for field in fields(kind)}
    missing = [name for name in required if name not in raw]
    if missing or set(raw) - known:
        raise ValueError(
            f"{where} has missing fields {missing} or unknown ones {sorted(set(raw) - known)}: "
            f"use {', '.join(sorted(known))}."
        )


def _texts(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"{where} must be a list of texts.")
    return tuple(given)
