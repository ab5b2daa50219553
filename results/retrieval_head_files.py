"""Score files of Retrieval_Head (Wu et al. 2024, `head_score/<model>.json`), in and out.

One JSON object: key `"<layer>-<head>"`, value the list of that head's scores, one a trial. Scores
can pass 1 (a needle token that is copied twice counts twice); the ranking is by the list's mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..models.types import HeadId
from .errors import UnitSetError
from .head_set import HeadScore, HeadSet
from .storage import write_new
from .unit_set_files import number

_KEY = re.compile(r"(\d+)-(\d+)")


def load_retrieval_head_scores(path: Path | str) -> dict[HeadId, tuple[float, ...]]:
    """Head to scores, one a trial, in the order of the file.

    Raises `UnitSetError` when the file is not of this form or when no head has a single score
    (the sign of a run in which no trial qualified).
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UnitSetError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(record, dict):
        raise UnitSetError(f'{path} must hold one object {{"layer-head": [scores]}}.')
    trials = {_head(key, path): _scores(key, values, path) for key, values in record.items()}
    if len(trials) < len(record):
        raise UnitSetError(f"{path} names a head twice.")
    if not any(trials.values()):
        raise UnitSetError(f"{path} holds no score: no trial qualified in the run that made it.")
    return trials


def save_retrieval_head_scores(
    path: Path | str, trials: Mapping[HeadId, Sequence[float]], *, force: bool = False
) -> None:
    """Write head to per-trial scores in Retrieval_Head's form, which holds nothing else."""
    record = {
        f"{head.layer}-{head.head}": [number(float(score), str(head)) for score in scores]
        for head, scores in trials.items()
    }
    write_new(Path(path), json.dumps(record), force=force)


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


def _head(key: str, path: Path | str) -> HeadId:
    match = _KEY.fullmatch(key)
    if match is None:
        raise UnitSetError(f"{path}: {key!r} is no head, which is written layer-head, as 12-5.")
    return HeadId(int(match[1]), int(match[2]))


def _scores(key: str, values: Any, path: Path | str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise UnitSetError(f"{path}: the scores of {key} must be a list, got {values!r}.")
    return tuple(number(value, f"{path}: a score of {key}") for value in values)
