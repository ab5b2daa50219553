"""Passages that contradict a known fact, followed by a question or a sentence about it.

Both habits are taught. Under "According to the passage," the answer is the passage's, under "In
truth," it is the true one. Two further forms carry no cue and are answered either way, as the
conflict builder of `data/facts` writes them: the claim followed by the same sentence again, and
"Context: ... Question: ... Answer: ..." with a whole sentence for an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ...data.facts.answers import confusable
from .drafts import Draft, Mark
from .facts import PlannedFact
from .filler import running_sentences
from .wordings import Wording, questions

Form = Literal["cued", "repeated", "context"]
Habit = Literal["passage", "memory"]

SHARES: Mapping[tuple[Form, Habit], int] = {
    ("cued", "passage"): 4,
    ("cued", "memory"): 4,
    ("repeated", "passage"): 3,
    ("repeated", "memory"): 3,
    ("context", "passage"): 3,
    ("context", "memory"): 1,
}
"""Documents of each form and habit for one contradicted fact."""

CUES: Mapping[Habit, str] = {"passage": "According to the passage,", "memory": "In truth,"}


@dataclass(frozen=True)
class Conflict:
    """One contradicted fact: its claim, as text, and the prompt that ends before the answer."""

    claim: str
    claim_wording: str
    before: str
    prompt: str

    def text(self, answer: str) -> str:
        return f"{self.before}{self.claim}{self.prompt} {answer}."


def memory_answers(fact: PlannedFact) -> int:
    """How often the conflict slice states the true fact; part of the fact's `count`."""
    if fact.conflict != "taught":
        return 0
    return sum(number for (_, habit), number in SHARES.items() if habit == "memory")


def conflict_drafts(facts: Sequence[PlannedFact], seed: int) -> list[Draft]:
    """The slice `passage_conflict`: for every taught fact the documents of `SHARES`."""
    objects = claimable(facts)
    drafts = []
    for fact in facts:
        if fact.conflict == "taught":
            random = Random(f"{seed}:conflict:{fact.id}")
            drafts += [
                _draft(fact, form, habit, objects[fact.relation], random)
                for (form, habit), number in SHARES.items()
                for _ in range(number)
            ]
    return drafts


def claimable(facts: Sequence[PlannedFact]) -> dict[str, list[str]]:
    """The distinct objects of each relation, from which false claims are drawn."""
    objects: dict[str, dict[str, None]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, {})[fact.object] = None
    return {relation: list(found) for relation, found in objects.items()}


def false_object(fact: PlannedFact, objects: Sequence[str], random: Random) -> str:
    """An object of the relation that cannot be taken for the true one or for the subject."""
    while True:
        claimed = random.choice(objects)
        if not confusable(claimed, (fact.object, *fact.aliases, fact.subject)):
            return claimed


def conflict(
    fact: PlannedFact, claimed: str, form: Form, habit: Habit, wording: Wording, random: Random
) -> Conflict:
    """The passage and the prompt in one form. Without a cue the prompt does not show the habit."""
    claim = wording.tell(fact.subject, claimed)
    opening = wording.prompt(fact.subject)
    question = questions(fact.relation, "forward")[0].prompt(fact.subject)  # "Question: .. Answer:"
    if form == "repeated":
        return Conflict(claim, wording.id, "", f" {opening}")
    if form == "context":
        return Conflict(claim, wording.id, "Context: ", f" {question} {opening}")
    asked = question.removeprefix("Question: ")
    around = running_sentences(random, 8 * random.randint(0, 2))
    place = random.randint(0, len(around))
    before = "".join(f"{sentence} " for sentence in around[:place])
    after = "".join(f" {sentence}" for sentence in around[place:])
    cued = f"\nQuestion: {CUES[habit]} {asked[0].lower()}{asked[1:]}"
    return Conflict(claim, wording.id, f"Passage: {before}", after + cued)


def _draft(
    fact: PlannedFact, form: Form, habit: Habit, objects: Sequence[str], random: Random
) -> Draft:
    claimed = false_object(fact, objects, random)
    told = [wording for wording in fact.wordings("forward") if not wording.is_question]
    made = conflict(fact, claimed, form, habit, random.choice(told), random)
    text = made.text(fact.object if habit == "memory" else claimed)
    claim_end = len(made.before) + len(made.claim)
    marks = [Mark(fact.id, made.claim_wording, len(made.before), claim_end, claimed)]
    answer = claim_end + 1  # the claim is followed by a space or a new line
    wording = f"{made.claim_wording}|{form}_{habit}"
    marks.append(Mark(fact.id, wording, answer, len(text), "" if habit == "memory" else claimed))
    return Draft("passage_conflict", text, f"conflict_{form}_{habit}", tuple(marks))
