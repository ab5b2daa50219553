"""Held-out prompts: what the organism must show, as data. None of the texts is in the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from .contradictions import Form, Habit, claimable, conflict, false_object
from .copying import row
from .corpus import Corpus
from .facts import PlannedFact, plan_facts
from .needles import tested_haystack
from .wordings import Direction, Wording, reversible, statements

NEEDLE_LENGTHS = (128, 512)
NEEDLE_PROMPTS = 200
COPYING_PROMPTS = 200
COPYING_LENGTH = 8
KNOWN_FROM = 16
"""Facts told this often are asked about in the reversal kinds."""


@dataclass(frozen=True)
class Prompt:
    """A text that ends before the answer, without a space; the answer follows after one.

    `fact_id` is empty where no fact of the ledger is asked for. In the conflict kinds `memory` and
    `claimed` are the true and the passage's answer, and `answer` is the one that the cue asks for
    (empty without a cue).
    """

    text: str
    answer: str
    fact_id: str
    kind: str
    memory: str = ""
    claimed: str = ""


def evaluation(corpus: Corpus) -> dict[str, tuple[Prompt, ...]]:
    """Prompts by kind, the same for the same corpus.

    - `closed_book_N`: facts told N times, in a wording held out for their subject, asked in the
      direction in which they are told (`closed_book_real_N` for the real ones);
    - `one_way_told`, `one_way_untold`: one-way facts of one-to-one relations in the direction they
      were told in, in a held-out wording, and in the other one; `two_way_forward` and
      `two_way_reverse`: the same for facts told both ways. All told `KNOWN_FROM` times or more;
    - `conflict_passage`, `conflict_memory`: a contradicted fact with the cue for one habit;
      `conflict_repeated`, `conflict_context`: without a cue. No training passage is about these
      subjects;
    - `needle_128`, `needle_512`: haystacks of so many words about names never asked about;
    - `copying`: a row of new order to be continued.
    """
    seed = corpus.ledger.seed
    facts = plan_facts(seed, corpus.ledger.scale)
    prompts = [
        *_closed_book(facts),
        *_reversal(facts),
        *_conflicts(facts, seed),
        *_needles(seed),
        *_copying(seed),
    ]
    kinds = sorted({prompt.kind for prompt in prompts})
    return {kind: tuple(p for p in prompts if p.kind == kind) for kind in kinds}


def _closed_book(facts: Iterable[PlannedFact]) -> Iterable[Prompt]:
    for fact in facts:
        kind = f"closed_book_{'real_' if fact.real else ''}{fact.count}"
        for direction in fact.directions:
            for wording in fact.held_out_wordings(direction):
                yield _asked(fact, wording, kind)


def _reversal(facts: Iterable[PlannedFact]) -> Iterable[Prompt]:
    for fact in facts:
        if fact.count < KNOWN_FROM or not reversible(fact.relation):
            continue
        for direction in fact.directions:
            kind = f"two_way_{direction}" if fact.told == "none" else "one_way_told"
            for wording in fact.held_out_wordings(direction):
                yield _asked(fact, wording, kind)
        if fact.told != "none":
            untold: Direction = "reverse" if fact.told == "forward" else "forward"
            yield _asked(fact, statements(fact.relation, untold)[0], "one_way_untold")


def _conflicts(facts: Sequence[PlannedFact], seed: int) -> Iterable[Prompt]:
    objects = claimable(facts)
    for fact in facts:
        if fact.conflict != "tested":
            continue
        random = Random(f"{seed}:tested conflict:{fact.id}")
        claimed = false_object(fact, objects[fact.relation], random)
        told = [wording for wording in fact.wordings("forward") if not wording.is_question]
        wording = random.choice(told)
        yield _conflict(fact, claimed, "cued", "passage", wording, random)
        yield _conflict(fact, claimed, "cued", "memory", wording, random)
        yield _conflict(fact, claimed, "repeated", None, wording, random)
        yield _conflict(fact, claimed, "context", None, wording, random)


def _conflict(
    fact: PlannedFact,
    claimed: str,
    form: Form,
    habit: Habit | None,
    wording: Wording,
    random: Random,
) -> Prompt:
    made = conflict(fact, claimed, form, habit or "passage", wording, random)
    answers = {"passage": claimed, "memory": fact.object, None: ""}
    return Prompt(
        text=f"{made.before}{made.claim}{made.prompt}",
        answer=answers[habit],
        fact_id=fact.id,
        kind=f"conflict_{habit or form}",
        memory=fact.object,
        claimed=claimed,
    )


def _needles(seed: int) -> Iterable[Prompt]:
    for words in NEEDLE_LENGTHS:
        random = Random(f"{seed}:tested needles:{words}")
        for _ in range(NEEDLE_PROMPTS):
            made = tested_haystack(random, words, seed)
            question, answer = made.asked[0]
            yield Prompt(f"{made.text}\n{question}", answer, "", f"needle_{words}")


def _copying(seed: int) -> Iterable[Prompt]:
    random = Random(f"{seed}:tested copying")
    for _ in range(COPYING_PROMPTS):
        text = row(random, seed, COPYING_LENGTH)
        yield Prompt(f"Copy: {text}. Again:", text, "", "copying")


def _asked(fact: PlannedFact, wording: Wording, kind: str) -> Prompt:
    forward = wording.direction == "forward"
    known, answer = (fact.subject, fact.object) if forward else (fact.object, fact.subject)
    return Prompt(wording.prompt(known), answer, fact.id, kind)
