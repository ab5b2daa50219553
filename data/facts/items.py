"""Facts and relations: the rows that every probe asks about, and how they are read and split.

A relation is one JSON file. Its templates end right before the object, so that `template + " " +
object` is the whole statement and the object is what a model has to say next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

SCHEMA_VERSION = 1
RELATIONS_FOLDER = Path(__file__).parent / "relations"

Part = Literal["find", "tune", "test"]
PARTS: tuple[Part, ...] = ("find", "tune", "test")
# Of 3,000 salts the one under which, at seed 0, every shipped relation comes closest to the usual
# fractions (within 6 points).
_SPLIT_SALT = "split 31"


@dataclass(frozen=True)
class Fact:
    """One true statement of a relation.

    `aliases` are other right spellings of the object and never repeat it. `names` and
    `object_names` give both by language code where known. `group` is what a good counter-answer
    should not share (a continent, say); it may be empty. `counterfactual` is a wrong object of the
    same relation, fixed by the generator's seed.
    """

    subject: str
    object: str
    aliases: tuple[str, ...] = ()
    subject_aliases: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict, hash=False)
    object_names: Mapping[str, str] = field(default_factory=dict, hash=False)
    as_of: str = ""
    source: str = ""
    license: str = ""
    group: str = ""
    counterfactual: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right spelling of the object, the usual one first."""
        return (self.object, *self.aliases)


@dataclass(frozen=True)
class Relation:
    """A relation with its wordings and its facts.

    `templates` hold `{s}` and end right before the object; `reverse_templates` hold `{o}` and end
    right before the subject. `exclusive`: a subject has one right object. `one_to_one`: an object
    has one subject too. `single_first_token_ok` is False where answers share their first token
    (numbers), which makes first-token metrics void. `argument` is a passage with `{s}` and `{o}`
    that argues for a claim; empty means the generic one of `conflicts`.
    """

    name: str
    description: str
    templates: tuple[str, ...]
    question: str
    reverse_templates: tuple[str, ...] = ()
    object_type: str = ""
    exclusive: bool = True
    one_to_one: bool = False
    templates_by_language: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    single_first_token_ok: bool = True
    argument: str = ""
    facts: tuple[Fact, ...] = ()

    def prompt(self, subject: str, template_id: int = 0) -> str:
        """The unfinished statement about `subject`. Raises ValueError on an unknown template."""
        if not 0 <= template_id < len(self.templates):
            raise ValueError(
                f"relation {self.name!r} has templates 0 to {len(self.templates) - 1}, "
                f"not {template_id}: choose one of these."
            )
        return self.templates[template_id].replace("{s}", subject)

    def fact(self, subject: str) -> Fact:
        """The fact about `subject`, by its name or an alias. Raises ValueError if there is none."""
        for fact in self.facts:
            if subject == fact.subject or subject in fact.subject_aliases:
                return fact
        known = [fact.subject for fact in self.facts]
        raise ValueError(
            f"relation {self.name!r} has no subject {subject!r}.{_did_you_mean(subject, known)}"
        )


def relation_names() -> tuple[str, ...]:
    """Names of the relations that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in RELATIONS_FOLDER.glob("*.json")))


def load_relation(name_or_path: str | Path) -> Relation:
    """Read a relation by its shipped name, or from a JSON file of the same form.

    Raises ValueError for an unknown name (with the known ones and close matches) or a damaged
    file (with its path and the reason), FileNotFoundError for a path that does not exist.
    """
    path = Path(name_or_path)
    if path.suffix != ".json" and len(path.parts) == 1 and not path.exists():
        path = _shipped(str(name_or_path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no relation file {path}: check the path.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return relation_from_json(raw)
    except (ValueError, TypeError, KeyError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(
            f"cannot read {path} as a relation: {error}. Restore or regenerate the file."
        ) from error


def split_subjects(
    relation: Relation, seed: int, fractions: tuple[float, float, float] = (0.5, 0.25, 0.25)
) -> dict[Part, tuple[Fact, ...]]:
    """Split the facts by subject into `find`, `tune` and `test`.

    The part depends on the seed and the subject's name only: it stays the same when rows are
    added, and a subject that occurs in several relations falls into the same part in all of them.
    Sizes therefore follow `fractions` only on average. Raises ValueError if the fractions are
    negative or do not sum to 1.
    """
    if len(fractions) != len(PARTS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(
            f"fractions must be three numbers of at least 0 that sum to 1, got {fractions}."
        )
    parts: dict[Part, list[Fact]] = {part: [] for part in PARTS}
    for fact in relation.facts:
        parts[_part_of(fact.subject, seed, fractions)].append(fact)
    return {part: tuple(facts) for part, facts in parts.items()}


def data_hash(relation: Relation) -> str:
    """SHA-256 (hex) of the relation's canonical JSON; the order of its rows does not matter."""
    raw = relation_to_json(relation)
    raw["facts"].sort(key=lambda row: (row["subject"], row["object"]))
    text = json.dumps(raw, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def relation_to_json(relation: Relation) -> dict[str, Any]:
    """The relation as plain JSON values, with the schema version; empty fields of rows left out."""
    raw = asdict(relation)
    raw["facts"] = [{key: value for key, value in row.items() if value} for row in raw["facts"]]
    return {"schema": SCHEMA_VERSION, **raw}


def relation_from_json(raw: Any) -> Relation:
    """Inverse of `relation_to_json`. Raises ValueError with the reason when `raw` does not fit."""
    if not isinstance(raw, dict):
        raise ValueError("it holds no JSON object")
    if raw.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"its schema is {raw.get('schema')!r}, this version reads {SCHEMA_VERSION}"
        )
    values = {key: value for key, value in raw.items() if key not in ("schema", "facts")}
    by_language = values.get("templates_by_language", {})
    if not isinstance(by_language, dict):
        raise ValueError("'templates_by_language' is no JSON object")
    values["templates_by_language"] = {code: tuple(given) for code, given in by_language.items()}
    _require(Relation, values, ("name", "description", "templates", "question"))
    rows = raw.get("facts")
    if not isinstance(rows, list):
        raise ValueError("'facts' is missing or no list")
    return Relation(**values, facts=tuple(_fact_from_json(row, i) for i, row in enumerate(rows)))


def _fact_from_json(row: Any, index: int) -> Fact:
    if not isinstance(row, dict):
        raise ValueError(f"row {index} is no JSON object")
    values = dict(row)
    try:
        _require(Fact, values, ("subject", "object"))
    except ValueError as error:
        raise ValueError(f"row {index}: {error}") from error
    return Fact(**values)


def _require(kind: type, values: dict[str, Any], required: tuple[str, ...]) -> None:
    """Check names and types of the fields against the dataclass; lists become tuples in place."""
    kinds = {item.name: str(item.type) for item in fields(kind)}
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{', '.join(missing)} missing")
    if unknown := sorted(set(values) - set(kinds)):
        raise ValueError(f"unknown field {', '.join(unknown)}")
    for name, value in values.items():
        if kinds[name].startswith("tuple[str"):
            values[name] = _texts(name, value)
        elif kinds[name] == "str" and not isinstance(value, str):
            raise ValueError(f"{name!r} is no text")
        elif kinds[name] == "bool" and not isinstance(value, bool):
            raise ValueError(f"{name!r} is neither true nor false")
        elif kinds[name].startswith("Mapping") and not isinstance(value, dict):
            raise ValueError(f"{name!r} is no JSON object")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name!r} is no list of texts")
    return tuple(value)


def _part_of(subject: str, seed: int, fractions: tuple[float, float, float]) -> Part:
    digest = hashlib.sha256(f"{_SPLIT_SALT}\n{seed}\n{subject}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < fractions[0]:
        return "find"
    # An empty last part stays empty although the sum of the first two may round below 1.
    return "tune" if place < fractions[0] + fractions[1] or fractions[2] == 0 else "test"


def _shipped(name: str) -> Path:
    names = relation_names()
    if name not in names:
        raise ValueError(
            f"there is no relation {name!r}.{_did_you_mean(name, names)} "
            f"Known: {', '.join(names) or 'none'}."
        )
    return RELATIONS_FOLDER / f"{name}.json"


def _did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
