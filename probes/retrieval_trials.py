"""Run trials of retrieval and keep what every head's rows say, trial by trial, before any mean.

A haystack is prefilled once and every question forks from it. First the model answers by itself
(greedy, no rows are read); then question and answer run once more behind the haystack with the
row probe on, once with the gold answer and once with what the model said. Such a replay reads the
very rows that decoding step by step would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.facts.answers import normalise
from ..data.facts.needles import NeedleDesign, Trial, Verdict, judge
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache
from ..results.run import Run
from .answer_steps import STEPS, StepReadings, no_steps, read_steps
from .elicitation import Progress, silent
from .retrieval_readings import (
    AnswerReadings,
    QuestionReadings,
    as_arrays,
    ask,
    at_queries,
    from_arrays,
    heard,
    joined,
    nothing_said,
    read_answer,
    read_question,
)

LOW_ACCEPTANCE = 0.5


@dataclass(frozen=True, eq=False)
class RetrievalTrials:
    """All trials of a design, in its order. See `retrieval_readings` for the readings, and
    `answer_steps` for those step by step, whose free ones run on behind the gold answer."""

    design: NeedleDesign
    accepted: Bool[np.ndarray, " trial"]
    """Whether the free continuation gives the needle's answer."""
    known: Bool[np.ndarray, " trial"]
    """Whether the question alone, without a haystack, is answered too: left out of scores."""
    continuations: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    forced_logprob: Float[np.ndarray, " trial"]
    """Natural log-probability of the gold answer, summed over its tokens."""
    control_logprob: Float[np.ndarray, " trial"]
    """The same after the question alone."""
    forced: AnswerReadings
    free: AnswerReadings
    question: QuestionReadings
    forced_steps: StepReadings
    free_steps: StepReadings

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a person has to read beside the scores."""
        return (*_gate_notes(self), *_preamble_notes(self), *_token_notes(self.design))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every number by name, to be kept with a result."""
        return {
            "accepted": self.accepted,
            "known": self.known,
            "forced_logprob": self.forced_logprob,
            "control_logprob": self.control_logprob,
            **as_arrays(self.forced, "forced"),
            **as_arrays(self.free, "free"),
            **as_arrays(self.question, "question"),
            **as_arrays(self.forced_steps, "forced_steps"),
            **as_arrays(self.free_steps, "free_steps"),
        }


def measure_trials(
    model: HookedModel,
    design: NeedleDesign,
    *,
    run: Run | None = None,
    progress: Progress = silent,
    max_new_tokens: int = 16,
) -> RetrievalTrials:
    """Run every trial of a design and read its question and answer rows in all heads.

    The free answer is what the model says in `max_new_tokens` greedy tokens; its rows are read up
    to the end of the gold answer where that was given whole. With a `run`, finished haystacks are
    read back and new ones are kept, so that an interrupted measurement continues. `progress` counts
    trials. Memory: the keys and values of one haystack, and some 25 numbers a trial and head.

    Raises `PromptError` for a prompt that does not fit the context, before anything runs, and
    `MnemoscopeError` for a needle that is not where the design says and an answer longer than
    `max_new_tokens`.
    """
    _check(model, design, max_new_tokens)
    parts: list[RetrievalTrials] = []
    done = 0
    for number in dict.fromkeys(trial.haystack for trial in design.trials):
        key = f"rows-{number:05d}"
        if run is not None and key in run.done:
            part = _kept(design, run, key)
        else:
            if run is not None:
                run.check_cancelled()
            part = _haystack(model, design, number, max_new_tokens)
            if run is not None:
                run.save_unit_arrays(key, part.arrays)
                run.append(key, {"said": [*part.continuations], "verdicts": [*part.verdicts]})
        parts.append(part)
        done += len(part.accepted)
        progress(done, len(design.trials))
    return _whole(design, parts)


# -- one haystack ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Answered:
    """One trial."""

    said: str
    verdict: Verdict
    forced_logprob: float
    forced: AnswerReadings
    free: AnswerReadings
    question: QuestionReadings
    forced_steps: StepReadings
    free_steps: StepReadings


def _haystack(
    model: HookedModel, design: NeedleDesign, number: int, max_new_tokens: int
) -> RetrievalTrials:
    forks = design.forks(number)
    haystack = model.prefill(design.haystacks[number].ids)
    known, control = _controls(model, design, forks, max_new_tokens)
    trials = [_trial(model, design, haystack, trial, max_new_tokens) for trial in forks]
    return RetrievalTrials(
        design,
        accepted=np.array([trial.verdict == "needle" for trial in trials]),
        known=known,
        continuations=tuple(trial.said for trial in trials),
        verdicts=tuple(trial.verdict for trial in trials),
        forced_logprob=np.array([trial.forced_logprob for trial in trials], np.float32),
        control_logprob=control,
        forced=joined([trial.forced for trial in trials]),
        free=joined([trial.free for trial in trials]),
        question=joined([trial.question for trial in trials]),
        forced_steps=joined([trial.forced_steps for trial in trials]),
        free_steps=joined([trial.free_steps for trial in trials]),
    )


def _trial(
    model: HookedModel,
    design: NeedleDesign,
    haystack: PromptCache,
    trial: Trial,
    max_new_tokens: int,
) -> _Answered:
    new = model.greedy_from(haystack, trial.question_ids, max_new_tokens)
    text = model.text_tokenizer.decode(new)
    gold = ask(design, trial, trial.answer_ids)
    reading = model.read_suffix(haystack, gold.suffix, spans=gold.masks, top=gold.top)
    logits = reading.logits[gold.answer_rows.start :]
    rows = at_queries(reading.rows, gold.answer_rows)
    forced, forced_steps = read_answer(gold, rows, logits), read_steps(gold, rows, logits)
    free, free_steps = _free(model, design, haystack, trial, new)
    same_rows = _up_to_the_answer(new, trial.answer_ids) == trial.answer_ids
    return _Answered(
        said=text,
        verdict=judge(text, design.needle(trial.needle_id), design.rivals(trial)),
        forced_logprob=_answer_logprob(logits, trial.answer_ids),
        forced=forced,
        free=forced if same_rows else free,
        question=read_question(gold, at_queries(reading.rows, gold.question_rows)),
        forced_steps=forced_steps,
        free_steps=free_steps,
    )


def _free(
    model: HookedModel,
    design: NeedleDesign,
    haystack: PromptCache,
    trial: Trial,
    new: Sequence[int],
) -> tuple[AnswerReadings, StepReadings]:
    """Rows of what was said up to the gold answer, and of the first steps whatever was said."""
    said = _up_to_the_answer(new, trial.answer_ids)
    if not said:
        shape = model.anatomy.n_layers, model.anatomy.n_heads
        return nothing_said(*shape), no_steps(*shape)
    asked = ask(design, trial, said)
    longer = ask(design, trial, new[: max(len(said), STEPS)])
    reading = model.read_suffix(
        haystack, longer.suffix, longer.answer_rows, longer.masks, top=longer.top
    )
    rows = at_queries(reading.rows, range(len(longer.following)))
    cut = at_queries(rows, range(len(said)))
    steps = read_steps(longer, rows, reading.logits)
    return read_answer(asked, cut, reading.logits[: len(said)]), steps


def _up_to_the_answer(new: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """What was said up to the end of the gold answer; all of it where that never came whole."""
    first, stop = heard(new, answer) or (0, 0)
    return tuple(new[:stop] if stop - first == len(answer) else new)


def _controls(
    model: HookedModel, design: NeedleDesign, trials: Sequence[Trial], max_new_tokens: int
) -> tuple[Bool[np.ndarray, " trial"], Float[np.ndarray, " trial"]]:
    """Whether a question is answered without a haystack, and the gold answer's log-probability."""
    prompts = [design.control(trial) for trial in trials]
    said = model.generate(model.batch(prompts), max_new_tokens)
    known = [
        judge(model.text_tokenizer.decode(new), design.needle(trial.needle_id)) == "needle"
        for new, trial in zip(said, trials, strict=True)
    ]
    logprob = []
    for prompt, trial in zip(prompts, trials, strict=True):
        batch = model.batch([(*prompt, *trial.answer_ids[:-1])])
        at = torch.arange(len(prompt) - 1, batch.ids.shape[1])[None].to(model.device)
        logprob.append(_answer_logprob(model.logits(batch, at=at)[0], trial.answer_ids))
    return np.array(known), np.array(logprob, np.float32)


def _answer_logprob(logits: Float[Tensor, "query d_vocab"], answer: Sequence[int]) -> float:
    at = torch.tensor(answer, device=logits.device)[:, None]
    return float(logits.float().log_softmax(-1).gather(1, at).sum())


# -- all haystacks --------------------------------------------------------------------------------


def _kept(design: NeedleDesign, run: Run, key: str) -> RetrievalTrials:
    """A haystack's trials as an earlier start of the run kept them."""
    row, arrays = run.done[key], run.load_unit_arrays(key)
    return RetrievalTrials(
        design,
        accepted=arrays["accepted"],
        known=arrays["known"],
        continuations=tuple(row["said"]),
        verdicts=tuple(row["verdicts"]),
        forced_logprob=arrays["forced_logprob"],
        control_logprob=arrays["control_logprob"],
        forced=from_arrays(AnswerReadings, arrays, "forced"),
        free=from_arrays(AnswerReadings, arrays, "free"),
        question=from_arrays(QuestionReadings, arrays, "question"),
        forced_steps=from_arrays(StepReadings, arrays, "forced_steps"),
        free_steps=from_arrays(StepReadings, arrays, "free_steps"),
    )


def _whole(design: NeedleDesign, parts: Sequence[RetrievalTrials]) -> RetrievalTrials:
    """The trials of all haystacks; the design lists them haystack by haystack."""
    return RetrievalTrials(
        design,
        accepted=np.concatenate([part.accepted for part in parts]),
        known=np.concatenate([part.known for part in parts]),
        continuations=tuple(text for part in parts for text in part.continuations),
        verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
        forced_logprob=np.concatenate([part.forced_logprob for part in parts]),
        control_logprob=np.concatenate([part.control_logprob for part in parts]),
        forced=joined([part.forced for part in parts]),
        free=joined([part.free for part in parts]),
        question=joined([part.question for part in parts]),
        forced_steps=joined([part.forced_steps for part in parts]),
        free_steps=joined([part.free_steps for part in parts]),
    )


# -- what has to hold, and what has to be said -----------------------------------------------------


def _check(model: HookedModel, design: NeedleDesign, max_new_tokens: int) -> None:
    """Everything that can be refused before a model has run for an hour."""
    longest = max(len(trial.answer_ids) for trial in design.trials)
    if longest > max_new_tokens:
        raise MnemoscopeError(
            f"an answer has {longest} tokens but max_new_tokens is {max_new_tokens}: allow "
            f"{longest} or more."
        )
    limit, needed = model.anatomy.max_context, design.longest_prompt + max_new_tokens
    if limit is not None and needed > limit:
        raise PromptError(
            f"the longest prompt has {design.longest_prompt} tokens and {max_new_tokens} follow, "
            f"but {model.name} reads at most {limit}: use haystacks of at most "
            f"{limit - needed + max(design.lengths)} tokens."
        )
    numbers = [trial.haystack for trial in design.trials]
    if numbers != sorted(numbers):
        raise MnemoscopeError("the design mixes haystacks: list its trials haystack by haystack.")
    for trial in design.trials:
        _check_needle(model, design, trial)


def _check_needle(model: HookedModel, design: NeedleDesign, trial: Trial) -> None:
    needle, ids = design.needle(trial.needle_id), design.haystacks[trial.haystack].ids
    for span, text in ((trial.needle, needle.statement), (trial.answer, needle.written)):
        there = model.text_tokenizer.decode(list(ids[span.start : span.stop]))
        if normalise(there) != normalise(text):
            raise MnemoscopeError(
                f"tokens {span.start}:{span.stop} of haystack {trial.haystack} are {there!r}, not "
                f"{text!r}: build the design with this model's tokenizer."
            )


def _gate_notes(trials: RetrievalTrials) -> tuple[str, ...]:
    share, n = float(trials.accepted.mean()), len(trials.accepted)
    if share >= LOW_ACCEPTANCE:
        return ()
    return (
        f"Only {int(trials.accepted.sum())} of {n} trials were answered ({share:.0%}): scores of "
        "accepted trials describe the easy ones.",
    )


def _preamble_notes(trials: RetrievalTrials) -> tuple[str, ...]:
    """Where a model repeats the statement first, gold tokens right behind END are not its own."""
    begins = [
        normalise(text).startswith(normalise(trials.design.needle(trial.needle_id).answer))
        for text, trial in zip(trials.continuations, trials.design.trials, strict=True)
    ]
    later = trials.accepted & ~np.array(begins)
    if later.sum() <= (1 - LOW_ACCEPTANCE) * trials.accepted.sum():
        return ()
    return (
        f"In {int(later.sum())} of {int(trials.accepted.sum())} answered trials other words come "
        "before the answer: the forced first row is not one of the model's own, read free rows.",
    )


def _token_notes(design: NeedleDesign) -> tuple[str, ...]:
    """An answer that opens a line is often another token than the same word behind a space."""
    other = sum(
        trial.answer_ids[0]
        not in design.haystacks[trial.haystack].ids[trial.answer.start : trial.answer.stop]
        for trial in design.trials
    )
    if not other:
        return ()
    return (
        f"In {other} of {len(design.trials)} trials the answer's first token differs from the "
        "needle's, so first_hit does not apply: let `asking` end in a word, not a line break.",
    )
