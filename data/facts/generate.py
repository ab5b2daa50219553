"""Generate the relation files: `python -m mnemoscope.data.facts.generate --out FOLDER [--check]`.

Wordings come from `wording.json`, rows from packages (`from_packages`) or from our own tables
(`authored/*.json`); `overrides.json` corrects either, with a reason a row. `--check` writes nothing
and exits with 1 if the files in FOLDER differ from a fresh generation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .answers import leaks, normalise
from .counter import candidates, choose_counter, readable
from .items import RELATIONS_FOLDER, Fact, Relation, relation_from_json, relation_to_json

SEED = 0
"""Seed of the recorded counterfactuals."""

_HERE = Path(__file__).parent
AUTHORED_SOURCE = "Mnemoscope authors"
AUTHORED_LICENSE = "MIT"
AS_OF = "2026-11"
_OVERRIDE_KEYS = ("subject", "action", "reason", "rename")


def generate() -> dict[str, str]:
    """The text of every relation file, by relation name. Reads only files and packages.

    Raises ImportError naming the extra when a generator package is missing, ValueError for a row
    or override that does not fit.
    """
    overrides = _read("overrides.json")
    return {
        name: relation_text(_relation(name, wording, overrides.get(name, [])))
        for name, wording in sorted(_read("wording.json").items())
    }


def relation_text(relation: Relation) -> str:
    """The relation as it is written: sorted keys, one field a line, UTF-8 text."""
    raw = relation_to_json(relation)
    return json.dumps(raw, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def differences(texts: dict[str, str], folder: Path) -> tuple[str, ...]:
    """Names of files in `folder` that are missing, differ from `texts` or do not belong."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return tuple(n for n in sorted(texts.keys() | found) if texts.get(n) != found.get(n))


def apply_overrides(facts: Iterable[Fact], rows: Sequence[dict[str, Any]]) -> list[Fact]:
    """Apply the corrections of one relation.

    A row is `{"subject", "action": "drop" | "set" | "add", "reason", ...fields}`; `set` may give
    the subject a new name under `"rename"`. Raises ValueError when a row has no reason or names a
    subject that is not there (or, for `add`, is).
    """
    by_subject = {fact.subject: fact for fact in facts}
    for row in rows:
        subject, action = row["subject"], row["action"]
        if not row.get("reason"):
            raise ValueError(f"the override of {subject!r} has no reason: give one.")
        if (subject in by_subject) == (action == "add"):
            raise ValueError(f"override {action!r} of {subject!r} does not fit the rows: mend it.")
        if action == "drop":
            del by_subject[subject]
            continue
        base = by_subject.pop(subject, _authored_fact(subject))
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in row.items()
            if key not in _OVERRIDE_KEYS
        }
        name = row.get("rename", subject)
        by_subject[name] = replace(base, subject=name, **fields)
    return list(by_subject.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the relation files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mnemoscope.data.facts.generate", description=__doc__)
    parser.add_argument("--out", type=Path, default=RELATIONS_FOLDER, help="folder of the files")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on difference")
    options = parser.parse_args(arguments)
    texts = generate()
    changed = differences(texts, options.out)
    if options.check:
        for name in changed:
            sys.stderr.write(f"{options.out / name}.json differs from a fresh generation\n")
        return 1 if changed else 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name in changed:
        target = options.out / f"{name}.json"
        if name in texts:
            _write(target, texts[name])
        else:
            sys.stderr.write(f"{target} is not one of ours: left as it is\n")
    return 0


def _relation(name: str, wording: dict[str, Any], overrides: Sequence[dict[str, Any]]) -> Relation:
    relation = relation_from_json({"schema": 1, "name": name, **wording, "facts": []})
    facts = apply_overrides(_rows(name), overrides)
    kept = [fact for fact in map(_clean, facts) if not _gives_itself_away(fact)]
    pool = candidates(kept)
    chosen = []
    for fact in sorted(kept, key=lambda fact: fact.subject):
        counter = choose_counter(fact, pool, seed=SEED, role="recorded")
        if counter is None:
            raise ValueError(
                f"{name}: no counterfactual for {fact.subject!r}: add rows or drop it."
            )
        chosen.append(replace(fact, counterfactual=counter))
    return replace(relation, facts=tuple(chosen))


def _rows(name: str) -> list[Fact]:
    if (_HERE / "authored" / f"{name}.json").is_file():
        return [_authored_row(row) for row in _read(f"authored/{name}.json")["rows"]]
    try:
        from . import from_packages
    except ImportError as error:
        raise ImportError(
            f"generating facts needs {error.name}: pip install 'mnemoscope[facts]'."
        ) from error
    return from_packages.rows(name)


def _authored_row(row: dict[str, Any]) -> Fact:
    return replace(
        _authored_fact(row["s"]),
        object=row["o"],
        aliases=tuple(row.get("a", ())),
        subject_aliases=tuple(row.get("sa", ())),
        group=row.get("g", ""),
    )


def _authored_fact(subject: str) -> Fact:
    return Fact(subject, "", as_of=AS_OF, source=AUTHORED_SOURCE, license=AUTHORED_LICENSE)


def _clean(fact: Fact) -> Fact:
    """Drop spellings that repeat the object or one another, and those that hold the subject."""
    aliases = tuple(
        dict.fromkeys(a for a in fact.aliases if a != fact.object and not leaks(a, (fact.subject,)))
    )
    names = tuple(dict.fromkeys(n for n in fact.subject_aliases if n != fact.subject))
    return replace(fact, aliases=aliases, subject_aliases=names)


def _gives_itself_away(fact: Fact) -> bool:
    """Whether the subject's text holds the answer (as "Mexico City" holds "Mexico")."""
    same = normalise(fact.subject) == normalise(fact.object)
    return same or readable(fact) or leaks(fact.object, fact.subject_aliases)


def _read(name: str) -> Any:
    return json.loads((_HERE / name).read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
