"""Can a model chain sums that it reads? The forward-chaining task in context, by hop.

The rival of telling the same facts to a model's weights (`organisms.chaining_training`): all facts
of a problem stand in the prompt. Beside the model stand two arms that cannot miscalculate: exact
solving of everything that is told, and of what so many look-ups by name retrieve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import groupby

import numpy as np
import polars as pl
from jaxtyping import Bool

from ..models.errors import PromptError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..organisms.forward_chaining import ChainingSettings, ChainingWorld, make_chaining_world
from ..results.provenance import Provenance, collect_provenance
from ..results.statistics import wilson
from .chaining_prompts import (
    ChainingQuestion,
    Said,
    chaining_questions,
    read_answer,
    read_statements,
    symbolic_answer,
)
from .elicitation import Progress, silent

NEW_TOKENS = 8
"""Enough for a number that comes at once; give hundreds where the model is to reason."""
RETRIEVALS = (1, 3)
"""Look-ups of the retrieval arms: what is linked, and what X takes."""


@dataclass(frozen=True, eq=False)
class ForwardChaining:
    """What each arm said to each question: "model", "retrieval N" and "solver".

    `tokens` are those of the longest prompt.
    """

    settings: ChainingSettings
    questions: tuple[ChainingQuestion, ...]
    said: Mapping[str, tuple[Said, ...]]
    texts: tuple[str, ...]
    """What the model wrote."""
    tokens: int
    provenance: Provenance

    def table(self) -> pl.DataFrame:
        """One row an arm and stratum: all hidden entities, a level, a hop.

        `right` is the share of right numbers with Wilson's 95 % interval, which takes questions for
        independent although those about one problem share their context. `undetermined` and
        `unread` are shares of all answers. `chance`: a number of the prompt at random. `permuted`:
        the same answers dealt to the stratum's questions at random.
        """
        rows = [row for arm in self.said for row in self._rows(arm)]
        numbers = ("right", "low", "high", "undetermined", "unread", "chance", "permuted")
        schema = {"arm": pl.String(), "stratum": pl.String(), "n": pl.Int64()}
        return pl.DataFrame(
            rows, schema={**schema, **dict.fromkeys(numbers, pl.Float64())}, orient="row"
        )

    @property
    def strata(self) -> dict[str, Bool[np.ndarray, " question"]]:
        """Which questions are in each stratum."""
        level = np.array([question.level for question in self.questions])
        hop = np.array([question.hop for question in self.questions])
        made = {"hidden": level != "core"}
        made |= {str(one): level == one for one in dict.fromkeys(level.tolist())}
        return made | {f"hop {one}": hop == one for one in np.unique(hop).tolist()}

    def _rows(self, arm: str) -> Iterator[tuple[object, ...]]:
        said = self.said[arm]
        answers = np.array([question.answer for question in self.questions])
        numbers = np.array([-1 if one.number is None else one.number for one in said])
        open_end = np.array([one.undetermined for one in said])
        unread = np.array([one.number is None for one in said]) & ~open_end
        for stratum, mask in self.strata.items():
            right, n = numbers[mask] == answers[mask], int(mask.sum())
            share = wilson(int(right.sum()), n)
            dealt = float((numbers[mask][:, None] == answers[mask]).mean())
            rest = (float(x[mask].mean()) for x in (open_end, unread, self._chance))
            yield (arm, stratum, n, share.rate, share.low, share.high, *rest, dealt)

    @cached_property
    def _chance(self) -> np.ndarray:
        told = {q.problem: read_statements(q.context).known for q in self.questions}
        sets = {problem: set(known.tolist()) - {-1} for problem, known in told.items()}
        return np.array([(q.answer in (s := sets[q.problem])) / len(s) for q in self.questions])


def forward_chaining(
    model: HookedModel,
    settings: ChainingSettings,
    *,
    lookups: int = 2,
    reason: bool = False,
    new_tokens: int = NEW_TOKENS,
    retrievals: Sequence[int] = RETRIEVALS,
    seed: int = 0,
    progress: Progress = silent,
) -> ForwardChaining:
    """Ask a model, greedily, for every hidden number of a world's problems, and score the arms.

    A problem is read once and its questions behind it. `reason`: ask for the way before the answer;
    then `new_tokens` has to hold both. Raises `PromptError` before anything is run where a problem
    is longer than the model's context.
    """
    world = make_chaining_world(settings)
    questions = chaining_questions(world, lookups=lookups, reason=reason, seed=seed)
    rows = [encode(model.text_tokenizer, question.prompt) for question in questions]
    _check_room(model, settings, questions, rows, new_tokens)
    texts = _continued(model, questions, rows, new_tokens, progress)
    said = {"model": tuple(read_answer(text, reason=reason) for text in texts)}
    said |= {f"retrieval {n}": solver_answers(world, questions, n) for n in retrievals}
    said["solver"] = solver_answers(world, questions)
    form = questions[0].question.replace(questions[0].name, "{a}")
    provenance = collect_provenance(
        **model.identity,
        data_sha256=sha256("".join(q.prompt for q in questions).encode()).hexdigest(),
        prompt_template=form,
        seed=seed,
        estimand=f"right numbers by hop, in context: {asdict(settings)}",
    )
    return ForwardChaining(settings, questions, said, texts, max(map(len, rows)), provenance)


def solver_answers(
    world: ChainingWorld, questions: Sequence[ChainingQuestion], retrievals: int | None = None
) -> tuple[Said, ...]:
    """What exact solving of the prompts' texts says, of all of them or of what is retrieved."""
    contexts = dict.fromkeys(question.context for question in questions)
    told = {context: read_statements(context) for context in contexts}
    modulus = world.settings.modulus
    return tuple(symbolic_answer(told[q.context], q.name, modulus, retrievals) for q in questions)


def _check_room(
    model: HookedModel,
    settings: ChainingSettings,
    questions: Sequence[ChainingQuestion],
    rows: Sequence[Sequence[int]],
    new_tokens: int,
) -> None:
    limit, longest = model.anatomy.max_context, max(range(len(rows)), key=lambda i: len(rows[i]))
    needed = len(rows[longest]) + new_tokens
    if limit is not None and needed > limit:
        raise PromptError(
            f"problem {questions[longest].problem} takes {needed} tokens with its answer, but "
            f"{model.name} reads at most {limit}: take a branching below {settings.branching}, "
            f"fewer core links than {settings.core_links}, or a model with a longer context."
        )


def _continued(
    model: HookedModel,
    questions: Sequence[ChainingQuestion],
    rows: Sequence[Sequence[int]],
    new_tokens: int,
    progress: Progress,
) -> tuple[str, ...]:
    """Greedy continuations; the tokens that all prompts of a problem begin with are read once."""
    texts: list[str] = []
    numbered = zip(questions, rows, strict=True)
    for _, group in groupby(numbered, key=lambda one: one[0].problem):
        ids = [row for _, row in group]
        shared = _shared_start(ids)
        cache = model.prefill(ids[0][:shared])
        for row in ids:
            new = model.greedy_from(cache, row[shared:], new_tokens)
            texts.append(str(model.text_tokenizer.decode(new)))
            progress(len(texts), len(rows))
    return tuple(texts)


def _shared_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, but never a whole row."""
    shared = min(map(len, rows)) - 1
    for row in rows[1:]:
        both = zip(rows[0][:shared], row, strict=False)
        shared = next((i for i, (a, b) in enumerate(both) if a != b), shared)
    return shared
