"""Read the field's published fact and conflict sets from a local copy or by hub name.

None of them ships with Mnemoscope. Each answer says under which licence the data stand, with "none
stated" where their repository has no licence file. Forms: Hernandez et al. 2023 (LRE), Meng et al.
2022 (CounterFact), Elazar et al. 2021 (ParaRel), Li et al. 2025 (ParaConflict), Xie et al. 2024
(ConflictQA).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .items import Fact, Relation

ExternalKind = Literal["lre", "counterfact", "pararel", "paraconflict", "conflictqa"]

LICENSES: dict[str, str] = {
    "lre": "MIT",
    "counterfact": "none stated",
    "pararel": "MIT",
    "paraconflict": "none stated",
    "conflictqa": "Apache-2.0",
}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_FILE_ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True)
class ConflictRecord:
    """One published conflict, with the prompts it comes with; a prompt it lacks is empty.

    `paraphrases` are further wordings of the closed prompt. `memory_evidence` and
    `context_evidence` are passages for either answer (ConflictQA). The memory answers of
    ConflictQA are those of one named model: elicit them again for any other.
    """

    id: str
    relation: str
    subject: str
    mem_answers: tuple[str, ...]
    ctx_answer: str
    prompt_closed: str
    prompt_substitution: str = ""
    prompt_coherent: str = ""
    paraphrases: tuple[str, ...] = ()
    memory_evidence: str = ""
    context_evidence: str = ""
    true_answers: tuple[str, ...] = ()
    source: str = ""
    license: str = ""


@dataclass(frozen=True)
class External:
    """What a published set holds: relations (LRE, ParaRel) or conflicts (the others)."""

    kind: ExternalKind
    source: str
    license: str
    relations: tuple[Relation, ...] = ()
    conflicts: tuple[ConflictRecord, ...] = ()


def load_external(kind: ExternalKind, source: str | Path) -> External:
    """Read the set `kind` from a file or folder, or from the hub as `owner/name[:config]`.

    A folder is searched for `.json` and `.jsonl` files. Hub names need the `data` extra and are
    read for the three conflict sets only. Raises ValueError for an unknown kind or rows that do
    not have its form, FileNotFoundError when a path does not exist, ImportError when `datasets`
    is missing.
    """
    if kind not in LICENSES:
        raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(LICENSES)}.")
    made = {"lre": _read_lre, "pararel": _read_pararel}
    if kind in made:
        relations = tuple(made[kind](_local_files(kind, source)))
        if not relations:
            raise ValueError(f"{source} holds no {kind} relation: check the folder.")
        return External(kind, str(source), LICENSES[kind], relations=relations)
    parse = _PARSERS[kind]
    conflicts = tuple(
        _parsed(parse, row, i, str(source)) for i, row in enumerate(_conflict_rows(kind, source))
    )
    if not conflicts:
        raise ValueError(f"{source} holds no {kind} rows: check the file.")
    return External(kind, str(source), LICENSES[kind], conflicts=conflicts)


def _read_lre(files: list[Path]) -> Iterator[Relation]:
    for path in files:
        raw = _json(path)
        if not isinstance(raw, dict) or "samples" not in raw or "prompt_templates" not in raw:
            continue
        facts = _facts(raw["samples"], "subject", "object", path.name, LICENSES["lre"])
        templates = dict.fromkeys((*raw["prompt_templates"], *raw.get("prompt_templates_zs", ())))
        properties = raw.get("properties", {})
        yield Relation(
            name=raw["name"],
            description=f"{properties.get('relation_type', 'untyped')} relation of LRE",
            templates=tuple(text.strip().replace("{}", "{s}") for text in templates),
            question="",
            object_type=properties.get("range_name", ""),
            exclusive=_exclusive(facts),
            one_to_one=_one_to_one(facts),
            facts=facts,
        )


def _read_pararel(files: list[Path]) -> Iterator[Relation]:
    """Pairs and patterns of a relation lie in two files of one name, in different folders."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        rows.setdefault(path.stem, []).extend(_lines(path))
    for name, given in sorted(rows.items()):
        pairs = [row for row in given if "sub_label" in row and "obj_label" in row]
        templates = dict.fromkeys(
            _pararel_templates(row["pattern"] for row in given if "pattern" in row)
        )
        if not pairs or not templates:
            continue
        facts = _facts(pairs, "sub_label", "obj_label", f"{name}.jsonl", LICENSES["pararel"])
        yield Relation(
            name=name,
            description=f"ParaRel relation {name}, patterns that end with the object",
            templates=tuple(templates),
            question="",
            exclusive=_exclusive(facts),
            one_to_one=_one_to_one(facts),
            facts=facts,
        )


def _pararel_templates(patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        text = pattern.strip().removesuffix(".").rstrip()
        if "[X]" in text and text.endswith(" [Y]"):
            yield text.removesuffix("[Y]").rstrip().replace("[X]", "{s}")


def _counterfact(row: dict[str, Any], index: int) -> ConflictRecord:
    asked = row["requested_rewrite"]
    prompt = asked["prompt"].replace("{}", asked["subject"])
    false = asked["target_new"]["str"]
    return ConflictRecord(
        id=f"counterfact:{row.get('case_id', index)}",
        relation=asked.get("relation_id", ""),
        subject=asked["subject"],
        mem_answers=(asked["target_true"]["str"],),
        ctx_answer=false,
        prompt_closed=prompt,
        prompt_substitution=f"{prompt} {false}. {prompt}",
        paraphrases=tuple(row.get("paraphrase_prompts", ())),
        true_answers=(asked["target_true"]["str"],),
    )


def _paraconflict(row: dict[str, Any], index: int) -> ConflictRecord:
    answers = _answers(row["Answer"])
    return ConflictRecord(
        id=f"paraconflict:{index}",
        relation=row["Category"],
        subject=row["Subject"],
        mem_answers=answers,
        ctx_answer=row["Distracted Token"].strip(),
        prompt_closed=row["Clean Prompt"].rstrip(),
        prompt_substitution=row["Substitution Conflict"].rstrip(),
        prompt_coherent=row["Coherent Conflict"].rstrip(),
        true_answers=answers,
    )


def _conflictqa(row: dict[str, Any], index: int) -> ConflictRecord:
    question = row["question"].strip()
    return ConflictRecord(
        id=f"conflictqa:{index}",
        relation="",
        subject=question,
        mem_answers=_answers(row["memory_answer"]),
        ctx_answer=str(row["counter_answer"]).strip(),
        prompt_closed=f"Question: {question} Answer:",
        memory_evidence=row.get("parametric_memory_aligned_evidence") or row["parametric_memory"],
        context_evidence=row.get("counter_memory_aligned_evidence") or row["counter_memory"],
        true_answers=_answers(row["ground_truth"]),
    )


_PARSERS: dict[str, Callable[[dict[str, Any], int], ConflictRecord]] = {
    "counterfact": _counterfact,
    "paraconflict": _paraconflict,
    "conflictqa": _conflictqa,
}


def _parsed(
    parse: Callable[[dict[str, Any], int], ConflictRecord],
    row: dict[str, Any],
    index: int,
    source: str,
) -> ConflictRecord:
    kind = parse.__name__.lstrip("_")
    try:
        record = parse(row, index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"row {index} of {source} is no {kind} row ({error!r}): check the kind."
        ) from error
    return replace(record, source=source, license=LICENSES[kind])


def _conflict_rows(kind: str, source: str | Path) -> Iterator[dict[str, Any]]:
    if Path(source).exists() or not _is_hub_name(source):
        for path in _local_files(kind, source):
            yield from _lines(path)
        return
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "reading from the hub needs the package datasets: pip install 'mnemoscope[data]'."
        ) from error
    name, _, config = str(source).partition(":")
    for rows in load_dataset(name, config or None).values():
        yield from (dict(row) for row in rows)


def _local_files(kind: str, source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in _FILE_ENDINGS)
    if path.is_file():
        return [path]
    hint = " and give its folder" if kind in ("lre", "pararel") else " or give a hub name"
    raise FileNotFoundError(f"there is no {source}: check the path{hint}.")


def _is_hub_name(source: str | Path) -> bool:
    text = str(source)
    return (
        isinstance(source, str)
        and _HUB_NAME.fullmatch(text) is not None
        and not text.endswith(_FILE_ENDINGS)
        and not text.startswith(".")
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of a file with one JSON object a line."""
    if path.suffix == ".json":
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            raw = None  # some publish one object a line under .json
        if isinstance(raw, list):
            return raw
        if raw is not None:
            return [raw]
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}. Restore the file.") from error
    return rows


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path} as JSON: {error}. Restore the file.") from error


def _facts(
    rows: Iterable[dict[str, Any]], subject: str, answer: str, source: str, license: str
) -> tuple[Fact, ...]:
    """The distinct pairs, in the order of the file."""
    try:
        pairs = dict.fromkeys((row[subject], row[answer]) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"a row of {source} has no {subject!r} and {answer!r}: check the kind."
        ) from error
    return tuple(Fact(s, o, source=source, license=license) for s, o in pairs)


def _answers(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item).strip() for item in values)


def _exclusive(facts: tuple[Fact, ...]) -> bool:
    return len({fact.subject for fact in facts}) == len({(f.subject, f.object) for f in facts})


def _one_to_one(facts: tuple[Fact, ...]) -> bool:
    pairs = {(fact.subject, fact.object) for fact in facts}
    return _exclusive(facts) and len({fact.object for fact in facts}) == len(pairs)
