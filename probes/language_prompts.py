"""The same facts asked in several languages: who finds units, who judges them, in which wordings.

Every language asks the same English subjects, in as many wordings, split into a finding and a
judging part; see `neuron_languages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool

from ..data.facts.answers import leaks
from ..data.facts.design_columns import shuffled
from ..data.facts.designs import Prompt
from ..data.facts.items import Fact, Part, Relation, split_subjects
from ..data.facts.wordings import Wording
from ..models.errors import MnemoscopeError
from .languages import shared_subjects, templates_in, translated

PARTS: tuple[Part, Part] = ("find", "test")
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Reading:
    """The prompts of one language, wording and part: relation by relation, subjects in order."""

    language: int
    part: Part
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, eq=False)
class LanguagePlan:
    """What is read, and the English subjects of each part and relation."""

    languages: tuple[str, ...]
    relations: tuple[str, ...]
    subjects: Mapping[Part, Mapping[str, tuple[str, ...]]]
    readings: tuple[Reading, ...]

    def columns(self, part: Part) -> tuple[Bool[torch.Tensor, "c n"], Bool[torch.Tensor, "c n"]]:
        """Positives and members: each relation; in the finding part then each in either half."""
        n_relations = len(self.relations)
        n = len(self.subjects[part][self.relations[0]])
        positive = torch.eye(n_relations, dtype=torch.bool).repeat_interleave(n, dim=1)
        everyone = torch.ones_like(positive)
        if part != "find":
            return positive, everyone
        first = (torch.arange(n) < n // 2).repeat(n_relations).expand_as(positive)
        halves = torch.cat([everyone, first, ~first])
        return positive.repeat(3, 1) & halves, halves


def plan_languages(
    relations: Sequence[Relation],
    languages: Sequence[str],
    detection: Sequence[int],
    evaluation: Sequence[int],
    subjects: int | None,
    seed: int,
) -> LanguagePlan:
    """Templates of `detection` find, those of `evaluation` judge; `subjects` caps both parts.

    Raises `MnemoscopeError` as `neuron_languages.detect_in_languages` says.
    """
    names = tuple(relation.name for relation in relations)
    for given, what in ((names, "relations"), (tuple(languages), "languages")):
        if len(set(given)) < 2 or len(set(given)) < len(given):
            raise MnemoscopeError(f"comparing needs two different {what} at least, got {given}.")
    used = [*detection, *evaluation]
    if not detection or not evaluation or len(set(used)) < len(used):
        raise MnemoscopeError(
            f"templates {list(detection)} to detect and {list(evaluation)} to judge must be "
            "different, one at least of each."
        )
    there = {r.name: {code: translated(r, code) for code in languages} for r in relations}
    chosen: dict[Part, dict[str, tuple[str, ...]]] = {
        part: _chosen(relations, there, used, part, subjects, seed) for part in PARTS
    }
    readings = tuple(
        Reading(i, part, tuple(_prompts(relations, there, language, chosen[part], template)))
        for i, language in enumerate(languages)
        for part, templates in zip(PARTS, (detection, evaluation), strict=True)
        for template in templates
    )
    return LanguagePlan(tuple(languages), names, chosen, readings)


def _chosen(
    relations: Sequence[Relation],
    there: Mapping[str, dict[str, dict[str, Fact]]],
    templates: Sequence[int],
    part: Part,
    cap: int | None,
    seed: int,
) -> dict[str, tuple[str, ...]]:
    """As many subjects of each relation, in an order that depends on seed and subject only."""
    usable = {}
    for relation in relations:
        inside = {fact.subject for fact in split_subjects(relation, seed)[part]}
        shared = shared_subjects(relation, there[relation.name])
        usable[relation.name] = [
            subject
            for subject in shared
            if subject in inside and not _tells(relation, there[relation.name], subject, templates)
        ]
    n = min(map(len, usable.values()))
    n = n if cap is None else min(n, cap)
    if n < _FEWEST:
        raise MnemoscopeError(
            f"only {n} subjects of each relation have names in all languages and do not tell their "
            f"answers, {_FEWEST} are needed: choose fewer languages or other relations."
        )
    return {name: tuple(shuffled(found, "subjects", seed)[:n]) for name, found in usable.items()}


def _tells(
    relation: Relation, there: dict[str, dict[str, Fact]], subject: str, templates: Sequence[int]
) -> bool:
    return any(
        leaks(_asked(relation, language, facts[subject], template).text, facts[subject].answers)
        for language, facts in there.items()
        for template in templates
    )


def _prompts(
    relations: Sequence[Relation],
    there: Mapping[str, dict[str, dict[str, Fact]]],
    language: str,
    chosen: Mapping[str, tuple[str, ...]],
    template: int,
) -> list[Prompt]:
    return [
        _asked(relation, language, there[relation.name][language][subject], template)
        for relation in relations
        for subject in chosen[relation.name]
    ]


def _asked(relation: Relation, language: str, fact: Fact, template: int) -> Prompt:
    templates = templates_in(relation, language)
    if not 0 <= template < len(templates):
        raise MnemoscopeError(
            f"{relation.name!r} has templates 0 to {len(templates) - 1} in {language!r}, not "
            f"{template}: choose among these."
        )
    wording = Wording(f"cloze {template}", "cloze", templates[template])
    start, end = wording.subject_span(fact.subject)
    return Prompt(
        wording.prompt(fact.subject), relation.name, fact.subject, wording.name, start, end
    )
