"""Knowledge conflicts as pure text: what the weights say against what the prompt claims.

Forms after Jin et al. 2024 (PH3), Li et al. 2025 (JuICE) and Xie et al. 2024; the wording is ours.
No tokenizer is known here: a caller that needs answers with different first tokens passes a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .answers import Outcome, classify, leaks, normalise
from .counter import Candidate, candidates, choose_counter, choose_subject, readable
from .items import Fact, Relation

__all__ = [
    "CONDITIONS",
    "Compatible",
    "Condition",
    "ConflictItem",
    "ConflictSet",
    "Outcome",
    "build_conflicts",
    "classify",
    "normalise",
]

Condition = Literal["closed", "agree", "substitution", "coherent", "qa", "irrelevant"]
CONDITIONS: tuple[Condition, ...] = (
    "closed",
    "agree",
    "substitution",
    "coherent",
    "qa",
    "irrelevant",
)

Compatible = Callable[[str, str, str], bool]
"""(prompt, answer a, answer b) -> whether the two can be told apart after this prompt."""

_GENERIC_QUESTION = "How does the following statement about {s} end?"
_GENERIC_ARGUMENT = (
    "Several reference works that were revised this year, each checked by a different editor, "
    "give {o} and nothing else. People who have studied {s} for many years say the same, and "
    "older books that differ have been corrected."
)
_FILLER = (
    "The weather was mild that week, and the library stayed open until the evening. "
    "A new bench was put up beside the door."
)


@dataclass(frozen=True)
class ConflictItem:
    """One subject with a true and a false answer and every prompt that is asked about it.

    All prompts end right before the answer, without a space. The `cf` prompts are the corrupted
    runs: `cf_subject` swaps the subject everywhere and keeps the claimed answer (which destroys
    recall), `cf_context` swaps the claimed answer only (which destroys copying). `mem_aliases`
    are all right spellings, `mem_answer` among them. The four answers `mem_answer`, `ctx_answer`,
    `ctx_answer_alt` and `alt_mem_answer` (true of `subject_alt`) cannot be taken for each other.
    """

    id: str
    relation: str
    template_id: int
    subject: str
    subject_alt: str
    mem_answer: str
    mem_aliases: tuple[str, ...]
    ctx_answer: str
    ctx_answer_alt: str
    alt_mem_answer: str
    prompt_closed: str
    prompt_agree: str
    prompt_sub: str
    prompt_coh: str
    prompt_irr: str
    prompt_qa: str
    prompt_cf_subject: str
    prompt_cf_context: str
    prompt_coh_cf_subject: str
    prompt_coh_cf_context: str
    source: str
    license: str

    def prompt(self, condition: Condition) -> str:
        """The uncorrupted prompt of a condition. Raises ValueError for an unknown one."""
        prompts: dict[str, str] = {
            "closed": self.prompt_closed,
            "agree": self.prompt_agree,
            "substitution": self.prompt_sub,
            "coherent": self.prompt_coh,
            "qa": self.prompt_qa,
            "irrelevant": self.prompt_irr,
        }
        if condition not in prompts:
            raise ValueError(f"unknown condition {condition!r}: use one of {', '.join(prompts)}.")
        return prompts[condition]


@dataclass(frozen=True)
class ConflictSet:
    """The items that could be built, and how many facts were dropped for which reason."""

    items: tuple[ConflictItem, ...]
    dropped: Mapping[str, int]


def build_conflicts(
    relation: Relation,
    facts: Sequence[Fact],
    *,
    template_id: int,
    seed: int,
    demonstrations: tuple[Fact, ...] = (),
    compatible: Compatible | None = None,
) -> ConflictSet:
    """Build one conflict item for each of `facts`, sorted by subject.

    Counter-answers are objects of other subjects of the relation (another group where possible);
    `subject_alt` comes from `facts` where possible, else from the whole relation. `demonstrations`
    are true statements put before every prompt, one a line; their subjects are left out.
    `compatible`, if given, must hold after the closed prompt for each pair of the four answers.
    The result depends on the seed, not on the order of rows. Facts for which no safe set of
    answers is left are dropped and counted by reason. Raises ValueError for an unknown template.
    """
    relation.prompt("", template_id)  # an unknown template is refused before any work
    shown = {fact.subject for fact in demonstrations}
    known = _by_subject(facts, relation.facts)
    others = [fact for fact in known.values() if fact.subject not in shown]
    writer = _Writer(relation, template_id, _lines(relation, template_id, demonstrations))
    chooser = _Chooser(
        others=others,
        pool=candidates(others),
        preferred=frozenset(fact.subject for fact in facts),
        shunned=frozenset(fact.object for fact in demonstrations),
        seed=seed,
        compatible=compatible or (lambda prompt, a, b: True),
    )
    items: list[ConflictItem] = []
    dropped: Counter[str] = Counter()
    for fact in (known[subject] for subject in sorted({fact.subject for fact in facts})):
        if fact.subject in shown:
            dropped["used as a demonstration"] += 1
            continue
        choice = chooser.choose(fact, writer.closed(fact.subject))
        if isinstance(choice, str):
            dropped[choice] += 1
        else:
            items.append(writer.item(fact, choice, seed))
    return ConflictSet(tuple(items), dict(dropped))


@dataclass(frozen=True)
class _Choice:
    alt: Fact
    ctx: str
    ctx_alt: str


@dataclass(frozen=True)
class _Chooser:
    """Picks the other subject and the two false answers of an item, or says why it cannot."""

    others: Sequence[Fact]
    pool: Sequence[Candidate]
    preferred: frozenset[str]
    shunned: frozenset[str]
    seed: int
    compatible: Compatible

    def choose(self, fact: Fact, prompt: str) -> _Choice | str:
        if readable(fact):
            return "the subject's text holds the answer"
        others = [other for other in self.others if other.subject != fact.subject]
        alt = choose_subject(
            fact,
            others,
            seed=self.seed,
            preferred=self.preferred,
            accept=self._apart(prompt, fact.object),
        )
        if alt is None:
            return "no other subject with a different answer"
        ctx = self._counter(fact, alt, prompt, "context", (*alt.answers,), (alt.object,))
        if ctx is None:
            return "no counter-answer left"
        taken = (*alt.answers, ctx)
        ctx_alt = self._counter(fact, alt, prompt, "context 2", taken, (alt.object, ctx))
        return "no second counter-answer left" if ctx_alt is None else _Choice(alt, ctx, ctx_alt)

    def _counter(
        self,
        fact: Fact,
        alt: Fact,
        prompt: str,
        role: str,
        avoid: tuple[str, ...],
        apart_from: tuple[str, ...],
    ) -> str | None:
        apart = self._apart(prompt, fact.object, *apart_from)
        return choose_counter(
            fact,
            self.pool,
            seed=self.seed,
            role=role,
            avoid=avoid,
            shunned=self.shunned,
            # The claim must not be readable off the swapped-in subject either.
            accept=lambda answer: not leaks(alt.subject, (answer,)) and apart(answer),
        )

    def _apart(self, prompt: str, *answers: str) -> Callable[[str], bool]:
        return lambda other: all(self.compatible(prompt, answer, other) for answer in answers)


@dataclass(frozen=True)
class _Writer:
    """Writes the prompts of one relation, template and set of demonstration lines."""

    relation: Relation
    template_id: int
    lines: str

    def closed(self, subject: str) -> str:
        return self.lines + self._open(subject)

    def claimed(self, claim_of: str, answer: str, asked: str) -> str:
        return f"{self.lines}{self._claim(claim_of, answer)} {self._open(asked)}"

    def coherent(self, subject: str, answer: str) -> str:
        argument = self.relation.argument or _GENERIC_ARGUMENT
        passage = _fill(argument, s=subject, o=answer)
        return f"{self.lines}{self._claim(subject, answer)} {passage} {self._open(subject)}"

    def qa(self, subject: str, answer: str) -> str:
        question = _fill(self.relation.question or _GENERIC_QUESTION, s=subject)
        claim = self._claim(subject, answer)
        return f"{self.lines}Context: {claim} Question: {question} Answer: {self._open(subject)}"

    def irrelevant(self, subject: str, other: Fact) -> str:
        claim = self._claim(other.subject, other.object)
        return f"{self.lines}{claim} {_FILLER} {self._open(subject)}"

    def item(self, fact: Fact, choice: _Choice, seed: int) -> ConflictItem:
        s, alt = fact.subject, choice.alt.subject
        return ConflictItem(
            id=f"{self.relation.name}:t{self.template_id}:s{seed}:{s}",
            relation=self.relation.name,
            template_id=self.template_id,
            subject=s,
            subject_alt=alt,
            mem_answer=fact.object,
            mem_aliases=fact.answers,
            ctx_answer=choice.ctx,
            ctx_answer_alt=choice.ctx_alt,
            alt_mem_answer=choice.alt.object,
            prompt_closed=self.closed(s),
            prompt_agree=self.claimed(s, fact.object, s),
            prompt_sub=self.claimed(s, choice.ctx, s),
            prompt_coh=self.coherent(s, choice.ctx),
            prompt_irr=self.irrelevant(s, choice.alt),
            prompt_qa=self.qa(s, choice.ctx),
            prompt_cf_subject=self.claimed(alt, choice.ctx, alt),
            prompt_cf_context=self.claimed(s, choice.ctx_alt, s),
            prompt_coh_cf_subject=self.coherent(alt, choice.ctx),
            prompt_coh_cf_context=self.coherent(s, choice.ctx_alt),
            source=fact.source,
            license=fact.license,
        )

    def _open(self, subject: str) -> str:
        return self.relation.prompt(subject, self.template_id)

    def _claim(self, subject: str, answer: str) -> str:
        return _sentence(f"{self._open(subject)} {answer}")


def _lines(relation: Relation, template_id: int, demonstrations: Sequence[Fact]) -> str:
    statements = (
        _sentence(f"{relation.prompt(fact.subject, template_id)} {fact.object}")
        for fact in demonstrations
    )
    return "".join(f"{statement}\n" for statement in statements)


def _fill(text: str, **values: str) -> str:
    """Fill `{s}` and `{o}` in one pass, so that a brace inside a name stays as it is."""
    pieces = text.replace("{s}", "\0s\0").replace("{o}", "\0o\0").split("\0")
    return "".join(values.get(piece, piece) if i % 2 else piece for i, piece in enumerate(pieces))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _by_subject(first: Sequence[Fact], then: Sequence[Fact]) -> dict[str, Fact]:
    """One fact a subject, with the objects of its other rows among the aliases.

    Rows in `first` come before rows in `then`, else the order is alphabetical.
    """
    answers: dict[str, dict[str, None]] = {}
    facts: dict[str, Fact] = {}
    for fact in (*sorted(first, key=_row), *sorted(then, key=_row)):
        facts.setdefault(fact.subject, fact)
        answers.setdefault(fact.subject, {}).update(dict.fromkeys(fact.answers))
    return {
        subject: replace(fact, aliases=tuple(a for a in answers[subject] if a != fact.object))
        for subject, fact in facts.items()
    }


def _row(fact: Fact) -> tuple[str, str]:
    return fact.subject, fact.object
