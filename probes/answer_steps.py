"""The first steps of an answer one by one: what every head read at each of them.

Means over an answer (`retrieval_readings`) hide that heads take turns, and free rows there end with
the gold answer where it was given. Here the first `STEPS` rows are kept apart, and free ones are
not cut by anything that has to be known of the right answer: what is predicted from them can be
used where nobody knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.row_summaries import RowSummaries
from .retrieval_readings import SPANS, AskedRows, copying

STEPS = 6
PLACES = ("needle", "rivals", "sink", "recent", "question", "elsewhere")
"""Where a head's highest key can stand: spans of `retrieval_readings.SPANS`, `elsewhere` all other
keys, those of the answer so far among them."""


@dataclass(frozen=True, eq=False)
class StepReadings:
    """Rows of the first steps, `[trial, step, layer, head]`, float32; NaN = n/a, as where the model
    said fewer tokens or a window hides the span."""

    needle_mass: Float[np.ndarray, "trial step layer head"]
    """Attention mass on the needle's statement, 0 to 1."""
    rival_mass: Float[np.ndarray, "trial step layer head"]
    """Attention mass on the other statements of the haystack."""
    sink_mass: Float[np.ndarray, "trial step layer head"]
    """Attention mass on the first four tokens."""
    top_weight: Float[np.ndarray, "trial step layer head"]
    """The highest weight of the row, wherever it lies."""
    copied: Float[np.ndarray, "trial step layer head"]
    """1 where the highest key lies in the needle's answer and holds the token predicted here."""
    top_place: Int[np.ndarray, "trial step layer head"]
    """Where the highest key stands, as a number of `PLACES`; -1 where there is no row."""
    log_prob: Float[np.ndarray, "trial step"]
    """Natural log-probability of the token that follows (in free rows: the model's own)."""


def read_steps(
    asked: AskedRows, rows: RowSummaries, logits: Float[Tensor, "query d_vocab"]
) -> StepReadings:
    """The first `STEPS` answer rows of a trial; `rows` and `logits` hold the answer rows only."""
    n = min(STEPS, len(asked.following))
    following = torch.tensor(asked.following)
    mass = dict(zip(SPANS, rows.mass[:, 0].unbind(-1), strict=False))
    said = logits[:n].float().log_softmax(-1).cpu().gather(1, following[:n, None])[:, 0]
    place = _place_of_keys(asked)[rows.top_key[:, 0, ..., 0]]
    return StepReadings(
        needle_mass=_by_step(mass["needle"], n),
        rival_mass=_by_step(mass["rivals"], n),
        sink_mass=_by_step(mass["sink"], n),
        top_weight=_by_step(rows.top_weight[:, 0, ..., 0], n),
        copied=_by_step(copying(asked, rows, following), n),
        top_place=_by_step(place, n, none=-1),
        log_prob=np.pad(said.numpy(), (0, STEPS - n), constant_values=np.nan)[None],
    )


def no_steps(layers: int, heads: int) -> StepReadings:
    """A trial in which the model ended at once."""
    none = np.full((1, STEPS, layers, heads), np.nan, np.float32)
    missing = {f.name: none for f in fields(StepReadings)}
    missing |= {"top_place": np.full(none.shape, -1, np.int8), "log_prob": none[..., 0, 0]}
    return StepReadings(**missing)


def _by_step(
    values: Float[Tensor, "layer head query"], n: int, none: float = np.nan
) -> Float[np.ndarray, "trial step layer head"]:
    dtype = np.int8 if none == -1 else np.float32
    cells = np.full((1, STEPS, *values.shape[:2]), none, dtype)
    cells[0, :n] = values[..., :n].movedim(-1, 0).cpu().numpy()
    return cells


def _place_of_keys(asked: AskedRows) -> Int[Tensor, " key"]:
    """For each position the number of its place; a key of two spans belongs to the first."""
    named = torch.stack([asked.masks[SPANS.index(name)] for name in PLACES[:-1]])
    elsewhere = torch.ones_like(named[:1])
    return torch.cat([named, elsewhere]).int().argmax(0)
