"""Which prompts stand against which: the labels behind every score of a relation's units.

A design asks the same number of subjects about every relation, in several wordings. The prompts of
one wording are a block; within it words, format and number of subjects are the same for the
positives of every column, so that a unit's score in one block means the same in the next. Beside
the relations stand the columns that they have to beat: pseudo-relations, wordings, lengths, and the
halves and resamples that tell how stable a score is (Liu et al. 2025 has the first kind only).

Every choice is made by sorting SHA-256 digests of the seed and the subject's name. It depends on no
library's random numbers, and relations over the same things ask about the same subjects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from .answers import leaks
from .design_columns import (
    Column,
    ColumnKind,
    Subjects,
    find_columns,
    relation_columns,
    shuffled,
    wording_columns,
)
from .items import Fact, Part, Relation, data_hash, split_subjects
from .wordings import DETECTION, EVALUATION, Wording, wordings

_FEWEST_SUBJECTS = 4


@dataclass(frozen=True)
class Prompt:
    """One unfinished text, and the characters `[subject_start, subject_end)` of its subject."""

    text: str
    relation: str
    subject: str
    wording: str
    subject_start: int
    subject_end: int


@dataclass(frozen=True)
class Block:
    """The prompts that are sorted together, and the columns that are read off that order.

    `wording` is empty where a block compares wordings.
    """

    wording: str
    part: Part
    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]

    def of_kind(self, kind: ColumnKind) -> tuple[Column, ...]:
        """The columns of one kind, in their order."""
        return tuple(column for column in self.columns if column.kind == kind)

    def positive_matrix(self) -> Bool[np.ndarray, "column prompt"]:
        """True where a prompt is positive in a column."""
        return self._matrix([column.positive for column in self.columns])

    def member_matrix(self) -> Bool[np.ndarray, "column prompt"]:
        """True where a prompt takes part in a column."""
        return self._matrix([column.member for column in self.columns])

    def _matrix(self, chosen: Sequence[tuple[int, ...] | None]) -> Bool[np.ndarray, "column n"]:
        matrix = np.zeros((len(chosen), len(self.prompts)), dtype=bool)
        for row, indices in zip(matrix, chosen, strict=True):
            row[slice(None) if indices is None else list(indices)] = True
        return matrix


@dataclass(frozen=True)
class Design:
    """All prompts of a search for units and all splits they are scored by.

    `blocks`: one for each detection wording of the part that finds, then one for each detection and
    evaluation wording of the part that judges. `wording_pairs`: one for each relation, its finding
    prompts in every detection wording, with a column for each pair of wordings. `dropped` counts,
    by relation, subjects whose prompt or name tells the answer. `data_sha256` is each relation's
    `data_hash`, in the order of `relations`.
    """

    blocks: tuple[Block, ...]
    relations: tuple[str, ...]
    seed: int
    parts: tuple[Part, Part]
    detection: tuple[str, ...]
    evaluation: tuple[str, ...]
    wording_pairs: tuple[Block, ...]
    dropped: Mapping[str, int]
    data_sha256: tuple[str, ...]

    @property
    def find_blocks(self) -> tuple[Block, ...]:
        """The blocks that find units, in the order of `detection`."""
        return tuple(block for block in self.blocks if block.part == self.parts[0])

    @property
    def test_blocks(self) -> tuple[Block, ...]:
        """The blocks that judge them, in the order of `detection` and then `evaluation`."""
        return tuple(block for block in self.blocks if block.part == self.parts[1])

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Every distinct prompt once; a model has to read no more than these."""
        blocks = (*self.blocks, *self.wording_pairs)
        return tuple(dict.fromkeys(prompt for block in blocks for prompt in block.prompts))

    @cached_property
    def _row(self) -> dict[Prompt, int]:
        return {prompt: i for i, prompt in enumerate(self.prompts)}

    def rows(self, block: Block) -> Int[np.ndarray, " prompt"]:
        """Where the block's prompts stand in `prompts`."""
        return np.array([self._row[prompt] for prompt in block.prompts], dtype=np.int64)

    def subjects(self, part: Part) -> int:
        """Subjects of each relation in a part of the design."""
        sizes = [len(block.prompts) for block in self.blocks if block.part == part]
        return sizes[0] // len(self.relations) if sizes else 0

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the design as canonical JSON: every prompt, split and choice."""
        text = json.dumps(_as_json(self), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The design in plain JSON values, short enough for a result's provenance."""
        kinds = [c.kind for block in (*self.blocks, *self.wording_pairs) for c in block.columns]
        return {
            "sha256": self.sha256,
            "seed": self.seed,
            "relations": list(self.relations),
            "data_sha256": dict(zip(self.relations, self.data_sha256, strict=True)),
            "subjects": {part: self.subjects(part) for part in self.parts},
            "dropped": dict(self.dropped),
            "detection": list(self.detection),
            "evaluation": list(self.evaluation),
            "prompts": len(self.prompts),
            "columns": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        }


def build_design(
    relations: Sequence[Relation],
    *,
    subjects: int | None,
    seed: int,
    pseudo: int = 40,
    resamples: int = 20,
    parts: tuple[Part, Part] = ("find", "test"),
    detection: Sequence[str] = DETECTION,
    evaluation: Sequence[str] = EVALUATION,
) -> Design:
    """Set the relations' prompts against each other; `parts` are those that find and judge.

    Every relation gives as many subjects as the poorest one has in that part, at most `subjects`.
    No subject is in both parts, in whichever relation. A subject counts only if none of its prompts
    holds one of its answers.

    Columns of every finding block, the same in each, so that a minimum over wordings is defined:

    - relation: its prompts against all others;
    - half: the same within one of two halves of all subjects; they share no subject;
    - resample: the same within about 80 % of all subjects, drawn anew for each of `resamples`;
    - pseudo: half the subjects of one relation glued to as many of another make the positives. The
      rest of both takes no part (as negatives they would keep every unit low), so the base rate is
      1 / (R - 1) instead of 1 / R for R relations and the bar a little high;
    - length: within a relation, the longer half of the subjects' names against the shorter.

    Raises ValueError where names repeat, a wording is missing or used twice, pseudo-relations have
    fewer than three relations, or a part has fewer than four usable subjects.
    """
    names = tuple(relation.name for relation in relations)
    detection, evaluation = tuple(detection), tuple(evaluation)
    _check(names, parts, detection, evaluation, pseudo)
    asked = {r.name: _chosen_wordings(r, (*detection, *evaluation)) for r in relations}
    usable = {r.name: _usable(r, asked[r.name], seed, parts) for r in relations}
    find, test = (_equal_numbers(usable, part, subjects) for part in parts)
    columns = tuple(find_columns(find, seed, pseudo, resamples))
    return Design(
        blocks=(
            *(Block(w, parts[0], _prompts(asked, w, find), columns) for w in detection),
            *(
                Block(w, parts[1], _prompts(asked, w, test), tuple(relation_columns(test)))
                for w in (*detection, *evaluation)
            ),
        ),
        relations=names,
        seed=seed,
        parts=parts,
        detection=detection,
        evaluation=evaluation,
        wording_pairs=tuple(
            _wording_pairs(asked, detection, name, find, parts[0]) for name in names
        ),
        dropped={name: found.dropped for name, found in usable.items()},
        data_sha256=tuple(data_hash(relation) for relation in relations),
    )


_Asked = Mapping[str, Mapping[str, Wording]]


@dataclass(frozen=True)
class _Usable:
    subjects: Mapping[Part, tuple[str, ...]]
    dropped: int


def _check(
    names: tuple[str, ...],
    parts: tuple[Part, Part],
    detection: tuple[str, ...],
    evaluation: tuple[str, ...],
    pseudo: int,
) -> None:
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"a design needs at least two relations of different names, got {list(names)}: "
            "a relation's negatives are the prompts of the others."
        )
    if pseudo and len(names) < 3:
        raise ValueError(
            "a pseudo-relation glues two relations and needs a third for its negatives: "
            "add a relation or ask for pseudo=0."
        )
    used = (*detection, *evaluation)
    if not detection or len(set(used)) != len(used):
        raise ValueError(
            f"detection {list(detection)} and evaluation {list(evaluation)} must name different "
            "wordings, and detection at least one."
        )
    if parts[0] == parts[1]:
        raise ValueError(f"the part {parts[0]!r} cannot both find and judge: name two parts.")


def _chosen_wordings(relation: Relation, names: Sequence[str]) -> dict[str, Wording]:
    known = {wording.name: wording for wording in wordings(relation)}
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"relation {relation.name!r} has no wording {', '.join(missing)}: give it the template "
            f"or question, or choose detection and evaluation among {', '.join(known)}."
        )
    return {name: known[name] for name in names}


def _usable(
    relation: Relation, asked: Mapping[str, Wording], seed: int, parts: tuple[Part, Part]
) -> _Usable:
    """The subjects of both parts that tell no answer, in the order in which they are taken."""
    split = split_subjects(relation, seed)
    kept: dict[Part, tuple[str, ...]] = {}
    dropped = 0
    for part in parts:
        answers = _answers(split[part])
        safe = [
            subject
            for subject, right in answers.items()
            if not any(leaks(wording.prompt(subject), right) for wording in asked.values())
        ]
        dropped += len(answers) - len(safe)
        kept[part] = tuple(shuffled(safe, "subjects", seed))
    return _Usable(kept, dropped)


def _answers(facts: Sequence[Fact]) -> dict[str, tuple[str, ...]]:
    """Every right answer of each subject; a subject may have several facts."""
    answers: dict[str, tuple[str, ...]] = {}
    for fact in facts:
        answers[fact.subject] = (*answers.get(fact.subject, ()), *fact.answers)
    return answers


def _equal_numbers(usable: Mapping[str, _Usable], part: Part, cap: int | None) -> Subjects:
    poorest = min(usable, key=lambda name: len(usable[name].subjects[part]))
    there = len(usable[poorest].subjects[part])
    n = there if cap is None else min(cap, there)
    if n < _FEWEST_SUBJECTS:
        raise ValueError(
            f"part {part!r} would ask about {n} subjects of each relation ({poorest!r} has {there} "
            f"whose prompts do not tell the answer) and needs {_FEWEST_SUBJECTS}: "
            "raise `subjects` or leave that relation out."
        )
    return {name: found.subjects[part][:n] for name, found in usable.items()}


def _prompts(asked: _Asked, wording: str, chosen: Subjects) -> tuple[Prompt, ...]:
    """Relation by relation, each with its subjects in one order: the same places in any wording."""
    return tuple(
        _prompt(asked[name][wording], name, subject)
        for name, subjects in chosen.items()
        for subject in subjects
    )


def _prompt(wording: Wording, relation: str, subject: str) -> Prompt:
    start, end = wording.subject_span(subject)
    return Prompt(wording.prompt(subject), relation, subject, wording.name, start, end)


def _wording_pairs(
    asked: _Asked, detection: tuple[str, ...], name: str, chosen: Subjects, part: Part
) -> Block:
    """One relation's prompts, wording after wording, with a column for each pair of wordings."""
    prompts = tuple(_prompt(asked[name][w], name, s) for w in detection for s in chosen[name])
    columns = tuple(wording_columns(name, detection, len(chosen[name])))
    return Block("", part, prompts, columns)


def _as_json(design: Design) -> dict[str, Any]:
    return {
        "relations": dict(zip(design.relations, design.data_sha256, strict=True)),
        "seed": design.seed,
        "parts": design.parts,
        "detection": design.detection,
        "evaluation": design.evaluation,
        "dropped": dict(design.dropped),
        "blocks": [_block_json(block) for block in (*design.blocks, *design.wording_pairs)],
    }


def _block_json(block: Block) -> dict[str, Any]:
    """Many columns share their members, which are therefore written once."""
    members = {member: i for i, member in enumerate(dict.fromkeys(c.member for c in block.columns))}
    return {
        "wording": block.wording,
        "part": block.part,
        "prompts": [
            [p.text, p.relation, p.subject, p.wording, p.subject_start, p.subject_end]
            for p in block.prompts
        ],
        "members": list(members),
        "columns": [
            [c.name, c.kind, c.relation, c.draw, c.positive, members[c.member]]
            for c in block.columns
        ],
    }
