"""Score files of Retrieval_Head (Wu et al. 2024, `head_score/<model>.json`) and its forks.

One JSON object: key `"<layer>-<head>"`, value the list of that head's scores, one a trial. The
ranking is by the list's mean. HeadKV (Fu et al. 2024) and DeCoRe (Gema et al. 2024) write the same
form, from fewer trials and, for HeadKV's reasoning heads, of another score. Nothing in a file says
which; what can be seen of a file's making is told by `check_retrieval_scores`:

- scores above 1: events were counted, so a needle token that is copied twice counts twice;
- trials in which every head has 0: most likely the needle was not found in its prompt;
- lists of different lengths: runs that broke off or were appended to the file of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..models.types import HeadId
from .errors import UnitSetError
from .head_key_files import head_key, read_head_object
from .head_set import HeadScore, HeadSet
from .score_sidecars import Sidecar, write_with_sidecar
from .unit_set_files import number

RETRIEVAL_THRESHOLD = 0.1
"""From which mean score on Wu et al. call a head a retrieval head. Their counts, not percentages,
are alike across model sizes."""


@dataclass(frozen=True)
class ScoreFileCheck:
    """What a score file shows of its making. `trials` is the length of the longest list."""

    trials: int
    heads: int
    above_threshold: int
    """Heads whose mean score is at least `RETRIEVAL_THRESHOLD`."""
    above_one: int
    """Heads with a score above 1 in some trial."""
    silent_trials: tuple[int, ...]
    """Trials in which every head has 0; none is named where lists differ in length."""
    uneven: bool
    """Whether lists that are not empty differ in length."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The same as sentences, for what should be known before the scores are used."""
        said = []
        if self.above_one:
            said.append(f"{self.above_one} heads have scores above 1: events were counted.")
        if self.silent_trials:
            said.append(
                f"in {len(self.silent_trials)} of {self.trials} trials every head has 0: most "
                "likely the needle was not found there; without_silent_trials leaves them out."
            )
        if self.uneven:
            said.append("lists differ in length: the run broke off, or was appended to another.")
        return tuple(said)


def load_retrieval_head_scores(path: Path | str) -> dict[HeadId, tuple[float, ...]]:
    """Head to scores, one a trial, in the order of the file.

    Raises `UnitSetError` when the file is not of this form or when no head has a single score
    (the sign of a run in which no trial qualified).
    """
    trials = {head: _scores(head, values, path) for head, values in read_head_object(path).items()}
    if not any(trials.values()):
        raise UnitSetError(f"{path} holds no score: no trial qualified in the run that made it.")
    return trials


def save_retrieval_head_scores(
    path: Path | str,
    trials: Mapping[HeadId, Sequence[float]],
    *,
    sidecar: Sidecar | None = None,
    force: bool = False,
) -> None:
    """Write head to per-trial scores in Retrieval_Head's form, which holds nothing else; where they
    come from goes into a `sidecar` beside it (`score_sidecars.load_sidecar` reads it).

    Raises `UnitSetError` when the sidecar lists trials and a head has another number of scores.
    """
    record = {
        head_key(head): [number(float(score), str(head)) for score in scores]
        for head, scores in trials.items()
    }
    listed = 0 if sidecar is None else len(sidecar.trials)
    wrong = [key for key, scores in record.items() if listed and len(scores) != listed]
    if wrong:
        raise UnitSetError(
            f"{wrong[0]} has {len(record[wrong[0]])} scores, but the sidecar lists {listed} "
            "trials: give one score a trial."
        )
    write_with_sidecar(path, json.dumps(record), sidecar, force=force)


def check_retrieval_scores(trials: Mapping[HeadId, Sequence[float]]) -> ScoreFileCheck:
    """Look for the marks of how a file was made; see the module's docstring."""
    lists = [scores for scores in trials.values() if scores]
    lengths = {len(scores) for scores in lists}
    return ScoreFileCheck(
        trials=max(lengths, default=0),
        heads=len(trials),
        above_threshold=sum(fmean(scores) >= RETRIEVAL_THRESHOLD for scores in lists),
        above_one=sum(max(scores) > 1 for scores in lists),
        silent_trials=_silent(lists) if len(lengths) == 1 else (),
        uneven=len(lengths) > 1,
    )


def without_silent_trials(
    trials: Mapping[HeadId, Sequence[float]],
) -> dict[HeadId, tuple[float, ...]]:
    """The scores without trials in which every head has 0. Raises `UnitSetError` where nothing is
    left or lists differ in length, so that trials cannot be told."""
    lists = [scores for scores in trials.values() if scores]
    if len({len(scores) for scores in lists}) != 1:
        raise UnitSetError("the heads' lists differ in length: trials cannot be told apart.")
    silent = set(_silent(lists))
    if len(silent) == len(lists[0]):
        raise UnitSetError("every trial is without a single hit: there is nothing to rank by.")
    return {
        head: tuple(score for i, score in enumerate(scores) if i not in silent)
        for head, scores in trials.items()
    }


def retrieval_head_set(
    trials: Mapping[HeadId, Sequence[float]],
    *,
    name: str,
    model_id: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
) -> HeadSet:
    """A head set of mean scores, role `retrieval`; heads without a trial are left out."""
    heads = [
        HeadScore(head, fmean(scores), "retrieval") for head, scores in trials.items() if scores
    ]
    return HeadSet(
        name=name,
        model_id=model_id,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        method="Retrieval_Head mean copy score",
        run_id=None,
        heads=tuple(heads),
    )


def _silent(lists: Sequence[Sequence[float]]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(~np.asarray(lists, dtype=np.float64).any(axis=0)).tolist())


def _scores(head: HeadId, values: Any, path: Path | str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise UnitSetError(
            f"{path}: the scores of {head_key(head)} must be a list, one a trial, got {values!r}; "
            "files with one number a head are read as CoRe scores."
        )
    return tuple(number(value, f"{path}: a score of {head_key(head)}") for value in values)
