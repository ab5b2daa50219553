"""Which heads read the context from END, and which of its tokens they look at: no page here."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Bool, Float

from ..models.errors import PromptError
from ..models.hooked import HookedModel
from ..models.tokens import encode_with_offsets
from ..models.types import HeadId
from .answers import Question, token_label

SHOWN = 8


@dataclass(frozen=True, eq=False)
class ContextReading:
    """What every head looks at in the context from END, the last position of the prompt.

    `heads` has a row a head, the strongest reader first: `head`, `layer`, `index`, `position` and
    `token` of the context token that it looks at most, `weight` on it, `context` (weight on the
    whole context), `sink` (weight on the first token), `on_answer` (whether that token belongs to
    the context answer). The first token of the text is a resting place of attention (the sink) and
    counts as no token of the context. `even` is the weight of a token where attention is even.
    """

    heads: polars.DataFrame
    n_context: int
    n_answer: int
    even: float

    @property
    def best(self) -> HeadId:
        """The strongest reader."""
        row = self.heads.row(0, named=True)
        return HeadId(row["layer"], row["index"])

    def on_answer(self, k: int = SHOWN) -> int:
        """How many of the k strongest readers look at the context answer."""
        return int(self.heads.head(k)["on_answer"].sum())

    def chance_on_answer(self, k: int = SHOWN) -> float:
        """How many would, if each looked at any token of the context alike."""
        return min(k, self.heads.height) * self.n_answer / self.n_context


def read_context(model: HookedModel, question: Question, answer: str | None) -> ContextReading:
    """Read END's attention in every head, over the question with its context.

    `answer` is the context answer, None without one. Raises `PromptError` where there is no
    context, or none of its tokens is left beside the sink.
    """
    text = question.given
    if text is None:
        raise PromptError("there is no context to read: type one on the left.")
    ((ids, offsets),) = encode_with_offsets(model.text_tokenizer, [text])
    spans = np.array(offsets)
    length = len(question.context.rstrip())
    inside = (spans[:, 0] < spans[:, 1]) & (spans[:, 1] <= length)
    inside[0] = False
    if not inside.any():
        raise PromptError("the context has no token but the first: type a longer one.")
    rows = model.rows(model.tokens(text), "end")[:, 0, :, 0].cpu().numpy()
    pieces = [token_label(piece) for piece in model.pieces(ids)]
    named = _of_answer(question.context.rstrip(), answer, spans) & inside
    heads = _table(rows, inside, named, pieces)
    return ContextReading(heads, int(inside.sum()), int(named.sum()), 1 / len(ids))


def _of_answer(context: str, answer: str | None, spans: np.ndarray) -> Bool[np.ndarray, " token"]:
    """Tokens that hold a character of the answer, wherever the context says it as a whole word."""
    named = np.zeros(len(spans), dtype=bool)
    if answer:
        for found in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", context, re.IGNORECASE):
            named |= (spans[:, 0] < found.end()) & (spans[:, 1] > found.start())
    return named


def _table(
    rows: Float[np.ndarray, "layer head key"],
    inside: Bool[np.ndarray, " key"],
    named: Bool[np.ndarray, " key"],
    pieces: list[str],
) -> polars.DataFrame:
    only = np.where(inside, rows, -1.0)
    top = only.argmax(axis=-1)
    layers, heads = (axis.ravel() for axis in np.indices(top.shape))
    places = top.ravel()
    return polars.DataFrame(
        {
            "head": [str(HeadId(int(a), int(b))) for a, b in zip(layers, heads, strict=True)],
            "layer": layers,
            "index": heads,
            "position": places,
            "token": [pieces[place] for place in places],
            "weight": only.max(axis=-1).ravel().astype(float),
            "context": rows[..., inside].sum(-1).ravel().astype(float),
            "sink": rows[..., 0].ravel().astype(float),
            "on_answer": named[places],
        }
    ).sort("weight", descending=True, maintain_order=True)
