"""The paper's setting of Liu et al. 2025: its relations, prompts, split and matching rule.

"On Relation-Specific Neurons in Large Language Models" (EMNLP 2025), sections 3 and 4. All of it is
kept for comparison with the paper; `relation_neurons` is the method to use otherwise.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from ..data.facts.external import load_external
from ..data.facts.items import Fact, Relation
from ..models.errors import MnemoscopeError
from ..models.types import Site

ANSWER = "? Answer:"
PAPER_K = 3_000
PAPER_UNITS = 835_584  # of Llama-2-7B, where k = 3,000 was chosen
PAPER_SIZES = (10, 50, 200, 500, 1_000, 3_000, 10_000, 20_000, 50_000)


@dataclass(frozen=True)
class PaperPreset:
    """The paper's hyper-parameters.

    `k` and `sizes` left out mean the paper's numbers as fractions of its 7B model's units (0.359 %
    for k), so that models can be compared; give `k=3_000` for the absolute number. `templates`
    is how many wordings a relation that is not the paper's is asked in.
    """

    held_out: int = 50
    templates: int = 2
    new_tokens: int = 2
    negatives: int = 4
    sites: tuple[Site, ...] = (Site.GATE_PRE, Site.UP, Site.MLP_OUT)
    k: int | None = None
    sizes: tuple[int, ...] | None = None
    random_draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a count below 1 or no site."""
        counts = ("held_out", "templates", "new_tokens", "negatives", "random_draws")
        wrong = [name for name in counts if getattr(self, name) < 1]
        if wrong or not self.sites:
            raise MnemoscopeError(f"a preset needs 1 or more of {', '.join(wrong) or 'sites'}.")

    def set_size(self, n_units: int) -> int:
        """How many of the model's `n_units` a relation's set holds.

        Raises `MnemoscopeError` when `k` is not between 1 and `n_units`.
        """
        k = _scaled(PAPER_K, n_units) if self.k is None else self.k
        if not 1 <= k <= n_units:
            raise MnemoscopeError(
                f"k = {k} of {n_units} units makes no set: choose k from 1 to {n_units}."
            )
        return k

    def budgets(self, n_units: int) -> tuple[int, ...]:
        """The rising set sizes of the sweep, none above `n_units`."""
        given = self.sizes or tuple(_scaled(size, n_units) for size in PAPER_SIZES)
        return tuple(sorted({size for size in given if 1 <= size <= n_units}))


@dataclass(frozen=True)
class PaperRelation:
    """A relation as the paper asks it: whole prompts with `{s}`, zero-shot.

    `templates` serve detection and evaluation, `new_templates` the wording check (they may be
    missing).
    """

    name: str
    templates: tuple[str, ...]
    new_templates: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class PaperPrompt:
    """One fact in one wording; `subject_start` counts characters of `text`."""

    relation: str
    subject: str
    gold: str
    text: str
    wording: str
    subject_start: int


# The paper's name, the file of LRE, and the paper's templates without "? Answer:". LRE has as many
# few-shot templates for each of them; what follows these in LRE's list is the zero-shot wording.
PAPER_RELATIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("company_ceo", "company_ceo", ("{s}'s CEO is", "The CEO of {s} is")),
    (
        "company_hq",
        "company_hq",
        ("{s} is headquartered in the city of", "The headquarters of {s} are in the city of"),
    ),
    ("landmark_continent", "landmark_on_continent", ("{s} is on the continent of",)),
    ("landmark_country", "landmark_in_country", ("{s} is in the country of",)),
    ("person_father", "person_father", ("{s}'s father is named",)),
    ("person_mother", "person_mother", ("{s}'s mother is named",)),
    ("person_occupation", "person_occupation", ("{s} works as a", "By profession, {s} is a")),
    ("person_plays_instrument", "person_plays_instrument", ("{s} plays the instrument of",)),
    ("person_pro_sport", "person_plays_pro_sport", ("{s} plays the sport of",)),
    (
        "person_sport_position",
        "person_plays_position_in_sport",
        ("{s} plays in the position of a", "In their sport, {s} plays as a"),
    ),
    (
        "product_company",
        "product_by_company",
        ("{s} was created by which company", "{s} is a product of which company"),
    ),
    ("star_constellation", "star_constellation", ("{s} is part of the constellation named",)),
)


def paper_relations(folder: str | Path) -> tuple[PaperRelation, ...]:
    """The paper's twelve relations, from a local copy of LRE (Hernandez et al. 2023).

    Raises `MnemoscopeError` when files are missing; `load_external` says what is wrong with others.
    """
    external = load_external("lre", folder)
    by_file = {Path(r.facts[0].source).stem: r for r in external.relations if r.facts}
    missing = [file for _, file, _ in PAPER_RELATIONS if file not in by_file]
    if missing:
        raise MnemoscopeError(
            f"{folder} lacks {', '.join(f'{name}.json' for name in missing)} of the paper's "
            "relations: give the data folder of a whole copy of LRE."
        )
    return tuple(
        _asked(name, templates, by_file[file].templates[len(templates) :], by_file[file].facts)
        for name, file, templates in PAPER_RELATIONS
    )


def paper_relation(relation: Relation, templates: int = PaperPreset.templates) -> PaperRelation:
    """Any relation in the paper's form: its first templates, each with "? Answer:" behind it.

    Raises `MnemoscopeError` when it has none or too few.
    """
    if not 1 <= templates <= len(relation.templates):
        raise MnemoscopeError(
            f"relation {relation.name!r} has {len(relation.templates)} templates: ask for 1 to "
            f"{len(relation.templates)} of them, not {templates}."
        )
    known = relation.templates
    return _asked(relation.name, known[:templates], known[templates:], relation.facts)


def split_triples(
    relation: PaperRelation, held_out: int, seed: int
) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The facts for detection and the `held_out` facts drawn at random for evaluation.

    A fact whose subject was drawn serves neither if it was not drawn itself, so that the two sets
    share no subject. The draw depends on the seed and the relation alone: it is the same for every
    model and beside any other relations. Raises `MnemoscopeError` when none is left for detection.
    """
    order = np.random.default_rng([seed, _number(relation.name)]).permutation(len(relation.facts))
    chosen = {int(i) for i in order[:held_out]}
    asked = {relation.facts[i].subject for i in chosen}
    detection = tuple(fact for fact in relation.facts if fact.subject not in asked)
    if not detection or held_out < 1:
        raise MnemoscopeError(
            f"relation {relation.name!r} has {len(relation.facts)} facts: holding {held_out} of "
            "them out leaves nothing on one side; choose held_out from 1 to fewer than that."
        )
    return detection, tuple(relation.facts[i] for i in sorted(chosen))


def prompts_of(
    relation: PaperRelation, facts: Sequence[Fact], templates: Sequence[str]
) -> tuple[PaperPrompt, ...]:
    """One prompt for each fact and template."""
    return tuple(
        PaperPrompt(
            relation=relation.name,
            subject=fact.subject,
            gold=fact.object,
            text=template.replace("{s}", fact.subject),
            wording=template,
            subject_start=template.index("{s}"),
        )
        for template in templates
        for fact in facts
    )


def is_right(said: str, gold: str) -> bool:
    """Whether what was said is a beginning of the gold object: the paper's prefix match.

    Case and outer spaces do not count ("Quarterback" is right for "quarterback"); saying nothing
    is wrong. The rule has its whims: "A" is right for every object that starts with an A, and
    "The piano" is wrong for "piano". Other spellings of the object are not tried.
    """
    said = said.strip().casefold()
    return bool(said) and gold.strip().casefold().startswith(said)


def labels(
    relations: Sequence[str], prompts: Sequence[PaperPrompt], negatives: int, seed: int
) -> tuple[Bool[np.ndarray, "relation prompt"], Bool[np.ndarray, "relation prompt"]]:
    """Which prompts are each relation's positives, and which are in its design at all.

    The design holds all positives and, drawn without replacement from the prompts of the other
    relations, `negatives` times as many (all of them where there are fewer).
    """
    asked = np.array([prompt.relation for prompt in prompts])
    positive = np.stack([asked == name for name in relations])
    member = positive.copy()
    for name, own, design in zip(relations, positive, member, strict=True):
        others = np.flatnonzero(~own)
        n = min(negatives * int(own.sum()), len(others))
        design[np.random.default_rng([seed, _number(name)]).choice(others, n, replace=False)] = True
    return positive, member


def _asked(
    name: str, templates: Sequence[str], new: Sequence[str], facts: tuple[Fact, ...]
) -> PaperRelation:
    old = tuple(map(_as_question, templates))
    fresh = tuple(text for text in map(_as_question, new) if text not in old)
    return PaperRelation(name, old, fresh, facts)


def _as_question(template: str) -> str:
    return template.rstrip(" ,:?") + ANSWER


def _scaled(size: int, n_units: int) -> int:
    return max(1, round(size * n_units / PAPER_UNITS))


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
