"""Locate, then emit: does what heads read while answering hang on what others read in the question?

Heads that find the needle from the question work in other rows than heads that copy its answer.
Here a set of heads is ablated in the question's rows alone (not in END, not in the answer), and the
answer rows are read behind it: the mass that other heads then lay on the needle. A fall says that
these are led to the needle by what was ablated, not by what their own rows hold (retrieval_heads,
section 10.4). "knock_out" hides the needle from the ablated heads and leaves them all else.

Rows are teacher-forced, END and the gold answer but its last token, so every trial has the same
rows whatever is ablated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.facts.needles import NeedleDesign, Trial
from ..interventions.head_ablation import AnyEdit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache
from ..models.types import HeadId, TokenSpan
from ..results.kept_units import kept_arrays
from ..results.provenance import sha256_of_json
from ..results.run import Run
from .answer_curves import Ablation
from .elicitation import Progress, silent


@dataclass(frozen=True, eq=False)
class SerialReadings:
    """Answer rows behind a question in which one set of heads after the other was ablated.

    `needles` names the needle of each trial. NaN where a head cannot see it (a sliding window).
    """

    mass: Float[np.ndarray, "set trial layer head"]
    """Mean attention mass on the needle's statement, 0 to 1."""
    log_prob: Float[np.ndarray, "set trial"]
    """Natural log-probability of the gold answer, summed over its tokens."""
    needles: tuple[str, ...]


def measure_serial(
    model: HookedModel,
    design: NeedleDesign,
    sets: Sequence[Sequence[HeadId]],
    ablation: Ablation,
    *,
    trials: Sequence[int] | None = None,
    run: Run | None = None,
    progress: Progress = silent,
) -> SerialReadings:
    """Read every head's answer rows behind a question in which each of the `sets` was ablated; an
    empty set is the model as it is.

    `trials` picks some of the design's, in its order. Cost: one prefill a haystack, and a trial and
    set one pass over the question and one over the answer. With a `run` each haystack is a unit.
    Raises `MnemoscopeError` unless the ablation is one in "question", and for no sets or trials.
    """
    chosen = tuple(range(len(design.trials))) if trials is None else tuple(sorted(set(trials)))
    if ablation.where != "question" or not sets or not chosen:
        raise MnemoscopeError(
            "reading the answer behind an ablated question needs an Ablation in 'question', a set "
            "of heads and a trial at least."
        )
    told = sha256_of_json(
        [ablation.mode, [[[head.layer, head.head] for head in heads] for heads in sets]]
    )
    parts: list[Mapping[str, np.ndarray]] = []
    done = 0
    for haystack, numbers in groupby(chosen, key=lambda number: design.trials[number].haystack):
        here = [design.trials[number] for number in numbers]
        work = partial(_haystack, model, design, here, sets, ablation)
        parts.append(kept_arrays(run, f"serial {told[:12]} {haystack}", work))
        done += len(here)
        progress(done, len(chosen))
    return SerialReadings(
        mass=np.concatenate([part["mass"] for part in parts], axis=1),
        log_prob=np.concatenate([part["log_prob"] for part in parts], axis=1),
        needles=tuple(design.trials[number].needle_id for number in chosen),
    )


def _haystack(
    model: HookedModel,
    design: NeedleDesign,
    trials: Sequence[Trial],
    sets: Sequence[Sequence[HeadId]],
    ablation: Ablation,
) -> dict[str, np.ndarray]:
    cache = model.prefill(design.haystacks[trials[0].haystack].ids)
    read = [
        [_answer(model, _asked(model, cache, trial, heads, ablation), trial) for trial in trials]
        for heads in sets
    ]
    mass = torch.stack([torch.stack([mass for mass, _ in row]) for row in read])
    log_prob = [[log_prob for _, log_prob in row] for row in read]
    return {"mass": mass.numpy(), "log_prob": np.array(log_prob, np.float32)}


def _asked(
    model: HookedModel,
    cache: PromptCache,
    trial: Trial,
    heads: Sequence[HeadId],
    ablation: Ablation,
) -> PromptCache:
    """The cache behind the question but for END, with the heads ablated in its rows."""
    needle = TokenSpan(trial.needle.start, trial.needle.stop)
    edits: tuple[AnyEdit, ...] = ablation.edits([heads], needle)
    with model.intervene(edits) if edits else nullcontext():
        return model.prefill(trial.question_ids[:-1], before=cache)


def _answer(
    model: HookedModel, asked: PromptCache, trial: Trial
) -> tuple[Float[Tensor, "layer head"], float]:
    """Needle mass of the answer rows, and the answer's log-probability."""
    suffix = (trial.question_ids[-1], *trial.answer_ids[:-1])
    needle = TokenSpan(trial.needle.start, trial.needle.stop)
    reading = model.read_suffix(asked, suffix, spans=(needle,))
    gold = torch.tensor(trial.answer_ids, device=reading.logits.device)[:, None]
    log_prob = reading.logits.float().log_softmax(-1).gather(1, gold).sum()
    return reading.rows.mass[:, 0, ..., 0].nanmean(-1).float().cpu(), float(log_prob)
