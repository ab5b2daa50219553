"""Relations in other languages: their wordings, their names, and whether a model knows them there.

A relation's templates, subjects and objects in a language make a relation of its own, so that
everything that asks relations can ask it. Templates are continuations of the object in every
language, also in English, so that language and form of asking are not confused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars
from jaxtyping import Float, Int

from ..data.facts.answers import classify
from ..data.facts.items import Fact, Relation
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from .elicitation import NEW_TOKENS, Progress, greedy_texts, silent

ENGLISH = "en"
_LATIN = frozenset({ENGLISH, "de", "es", "fr"})
"""Where an object without a name of its own is spelt as in English (docs/facts.md)."""

KNOWN = 0.3
"""Share of right answers from which a language counts as known (Liu et al. 2025, section 5)."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Share of right greedy answers of each relation in each language, and of how many asked."""

    languages: tuple[str, ...]
    relations: tuple[str, ...]
    right: Int[np.ndarray, "language relation"]
    asked: Int[np.ndarray, "language relation"]

    @property
    def share(self) -> Float[np.ndarray, "language relation"]:
        """Right answers over questions."""
        return self.right / self.asked

    def known(self, bar: float = KNOWN) -> tuple[str, ...]:
        """The languages whose mean share over relations reaches the bar."""
        return tuple(
            language
            for language, share in zip(self.languages, self.share.mean(1), strict=True)
            if share >= bar
        )

    def verdicts(self, bar: float = KNOWN) -> dict[str, str]:
        """For each language in words whether it is known, with the number."""
        known = self.known(bar)
        return {
            language: f"{'known' if language in known else 'not known'}: {share:.0%} right, "
            f"{bar:.0%} needed"
            for language, share in zip(self.languages, self.share.mean(1), strict=True)
        }

    def table(self) -> polars.DataFrame:
        """One row a language and relation."""
        return polars.DataFrame(
            [
                {"language": language, "relation": name, "right": int(r), "asked": int(n)}
                for language, rights, asked in zip(
                    self.languages, self.right, self.asked, strict=True
                )
                for name, r, n in zip(self.relations, rights, asked, strict=True)
            ]
        ).with_columns(share=polars.col("right") / polars.col("asked"))


def languages_of(relations: Sequence[Relation]) -> tuple[str, ...]:
    """English, and the languages that every one of the relations has wordings in, by code."""
    shared = set.intersection(*(set(relation.templates_by_language) for relation in relations))
    return (ENGLISH, *sorted(shared - {ENGLISH}))


def in_language(relation: Relation, language: str) -> Relation:
    """The relation as it is asked in a language, named for example "capital (fr)".

    Facts without a subject's name in that language are left out, and so are those without an
    object's name, except where a missing one means the English spelling. English spellings of the
    object stay right answers. Raises `MnemoscopeError` when there are no wordings or no facts.
    """
    facts = translated(relation, language)
    return replace(
        relation,
        name=f"{relation.name} ({language})",
        templates=templates_in(relation, language),
        question=relation.question if language == ENGLISH else "",
        reverse_templates=(),
        templates_by_language={},
        argument="",
        facts=tuple(facts.values()),
    )


def translated(relation: Relation, language: str) -> dict[str, Fact]:
    """The facts in a language, by their English subjects; see `in_language`."""
    templates_in(relation, language)
    found = {}
    for fact in relation.facts:
        fact_there = fact if language == ENGLISH else _fact_in(fact, language)
        if fact_there is not None:
            found[fact.subject] = fact_there
    if not found:
        raise MnemoscopeError(f"{relation.name!r} has no facts with names in {language!r}.")
    return found


def measure_knowledge(
    model: HookedModel,
    relations: Sequence[Relation],
    languages: Sequence[str] | None = None,
    *,
    facts: int = 50,
    template: int = 0,
    new_tokens: int = NEW_TOKENS,
    rows: int = 32,
    progress: Progress = silent,
) -> Knowledge:
    """Ask the first `facts` subjects of each relation that have names in all the languages.

    The same subjects everywhere; an answer counts when the greedy continuation begins with a right
    spelling (`data.facts.answers`). Raises `MnemoscopeError` when no subject has all names.
    """
    languages = languages_of(relations) if languages is None else tuple(languages)
    right = np.zeros((len(languages), len(relations)), dtype=np.int64)
    asked = np.zeros_like(right)
    for j, relation in enumerate(relations):
        everywhere = {language: translated(relation, language) for language in languages}
        subjects = shared_subjects(relation, everywhere)[:facts]
        for i, language in enumerate(languages):
            there = [everywhere[language][subject] for subject in subjects]
            wording = templates_in(relation, language)[template]
            prompts = [wording.replace("{s}", fact.subject) for fact in there]
            texts = greedy_texts(model, prompts, rows=rows, new_tokens=new_tokens)
            outcomes = (classify(t, f.answers, ()) for t, f in zip(texts, there, strict=True))
            right[i, j] = sum(outcome.kind == "memory" for outcome in outcomes)
            asked[i, j] = len(there)
            progress(j * len(languages) + i + 1, right.size)
    return Knowledge(languages, tuple(relation.name for relation in relations), right, asked)


def shared_subjects(relation: Relation, everywhere: dict[str, dict[str, Fact]]) -> list[str]:
    """English subjects that have names in all languages, in the relation's order.

    Raises `MnemoscopeError` when there is none.
    """
    shared = [
        subject
        for subject in dict.fromkeys(fact.subject for fact in relation.facts)
        if all(subject in facts for facts in everywhere.values())
    ]
    if not shared:
        raise MnemoscopeError(
            f"no subject of {relation.name!r} has names in all of {', '.join(everywhere)}: choose "
            "fewer languages."
        )
    return shared


def templates_in(relation: Relation, language: str) -> tuple[str, ...]:
    """The wordings in a language. Raises `MnemoscopeError` when there are none."""
    if language == ENGLISH:
        return relation.templates
    if language not in relation.templates_by_language:
        known = ", ".join((ENGLISH, *sorted(relation.templates_by_language)))
        raise MnemoscopeError(
            f"{relation.name!r} has no wordings in {language!r}, only in {known}."
        )
    return relation.templates_by_language[language]


def _fact_in(fact: Fact, language: str) -> Fact | None:
    fallback = fact.object if language in _LATIN else ""
    subject, answer = fact.names.get(language, ""), fact.object_names.get(language, fallback)
    if not subject or not answer:
        return None
    others = tuple(spelling for spelling in fact.answers if spelling != answer)
    return replace(fact, subject=subject, object=answer, aliases=others, subject_aliases=())
