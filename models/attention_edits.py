"""Interventions inside attention: what a query head may read, and with what it asks.

Like `edits.Edit` they are data, applied by `HookedModel.intervene`; the formulas of one head, with
`s[t, j]` the score of key `j` for query `t` (mask, soft-cap and rotary turn included):

- uniform: `z[t]` is the mean of the values that `t` can see, whatever their scores. A learned sink
  takes no weight. This is what the masking of Wu et al. 2024 (arXiv 2404.15574) amounts to in their
  models; it is written as a mean, not as a zero query, because a bias or a learned sink would make
  a zero query uneven.
- mean_query: the query before its norm and rotary turn becomes a constant vector. Where one norm
  runs over the queries of all heads (OLMo-2) the other heads keep their own.
- knock_out: `s[t, j] = -inf` for the keys of the spans.
- reweigh: the weights on the keys of the spans are multiplied by `factor` and the row is normalised
  again: `s[t, j] += log(factor)`.
- streaming: `s[t, j] = -inf` unless `j < sink` or `t - recent < j <= t`: the head keeps a sink and
  a window, its own key counted (DuoAttention, arXiv 2410.10819).

A query that is left without a key writes zero. Keys are counted from the row's first real token, so
they are the same positions in a prompt, behind a cached one, and behind padding.

There is no phase: put `intervene` around the forward passes it should hold for. `rows` and
`row_summaries` read scores from queries and keys, so in a head under uniform, knock_out,
reweigh or streaming they show the row that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from .anatomy import Anatomy
from .edits import described_value
from .errors import MnemoscopeError, UnsupportedModelError
from .types import HeadId, TokenSpan, unique_heads

AttentionOp = Literal["uniform", "mean_query", "knock_out", "reweigh", "streaming"]


@dataclass(frozen=True, eq=False)
class AttentionEdit:
    """One intervention inside the attention of some query heads.

    `spans` (knock_out, reweigh) are keys, `sink` and `recent` (streaming) numbers of keys, `value`
    (mean_query) a query `[head, d_head]`, `factor` (reweigh) above 0. `rows` are the batch rows it
    holds for; None is all. Several edits of one head hold together.
    """

    op: AttentionOp
    heads: tuple[HeadId, ...]
    spans: tuple[TokenSpan, ...] = ()
    sink: int = 0
    recent: int = 0
    value: Tensor | None = None
    rows: tuple[int, ...] | None = None
    factor: float = 1.0

    def describe(self) -> dict[str, Any]:
        """The edit as JSON; a tensor is named by shape and SHA-256."""
        factor = {"factor": self.factor} if self.op == "reweigh" else {}
        return {
            "op": self.op,
            "heads": [str(head) for head in self.heads],
            "spans": [[span.start, span.stop] for span in self.spans],
            "sink": self.sink,
            "recent": self.recent,
            "value": described_value(self.value),
            "rows": None if self.rows is None else list(self.rows),
            **factor,
        }


def check_attention_edit(edit: AttentionEdit, anatomy: Anatomy) -> None:
    """Raises before anything runs: wrong words, heads, rows, or what the operation needs."""
    if edit.op not in get_args(AttentionOp):
        raise MnemoscopeError(
            f"attention edits know no {edit.op!r}: use {', '.join(get_args(AttentionOp))}."
        )
    if not anatomy.spec.interface:
        raise UnsupportedModelError(
            f"{anatomy.model_type} does not use the attention interface of transformers, so what "
            "its heads read cannot be edited: use zero, mean or resample edits of their outputs."
        )
    if not edit.heads:
        raise MnemoscopeError("an attention edit needs at least one head.")
    for head in unique_heads(edit.heads):
        anatomy.check_head(head)
    rows = edit.rows
    if rows is not None and (not rows or len(set(rows)) < len(rows) or min(rows) < 0):
        raise MnemoscopeError(
            f"rows {rows} of an attention edit: name batch rows from 0 on, each once, or None."
        )
    _check_operands(edit)


def _check_operands(edit: AttentionEdit) -> None:
    given = {
        "spans": bool(edit.spans),
        "sink and recent": bool(edit.sink or edit.recent),
        "value": edit.value is not None,
    }
    needs = {
        "knock_out": "spans",
        "reweigh": "spans",
        "streaming": "sink and recent",
        "mean_query": "value",
    }
    for name, there in given.items():
        if there != (needs.get(edit.op) == name):
            raise MnemoscopeError(
                f"{edit.op!r} edits {'take no' if there else 'need'} {name}: "
                f"{'leave it out' if there else 'give it'}."
            )
    if not 0 < edit.factor < math.inf or (edit.factor != 1 and edit.op != "reweigh"):
        raise MnemoscopeError(
            f"factor {edit.factor:g} of {edit.op!r}: only 'reweigh' takes one, and it is above 0; "
            "hide keys with 'knock_out'."
        )
    if edit.op == "streaming" and (edit.sink < 0 or edit.recent < 1):
        raise MnemoscopeError(
            f"streaming with sink={edit.sink} and recent={edit.recent}: keep a sink of 0 or more "
            "keys and at least the query's own key (recent=1)."
        )
    if edit.value is not None and (edit.value.ndim != 2 or len(edit.value) != len(edit.heads)):
        raise MnemoscopeError(
            f"mean queries must be [head, d_head] for {len(edit.heads)} heads, got "
            f"{tuple(edit.value.shape)}."
        )


def uniform(heads: Sequence[HeadId], rows: Sequence[int] | None = None) -> AttentionEdit:
    """Let the heads average all values that they can see."""
    return AttentionEdit("uniform", tuple(heads), rows=_rows(rows))


def mean_query(
    heads: Sequence[HeadId], values: Tensor, rows: Sequence[int] | None = None
) -> AttentionEdit:
    """Let the heads ask with constant queries `[head, d_head]`; see `mean_queries`."""
    return AttentionEdit("mean_query", tuple(heads), value=values, rows=_rows(rows))


def knock_out(
    heads: Sequence[HeadId], spans: Sequence[TokenSpan], rows: Sequence[int] | None = None
) -> AttentionEdit:
    """Hide spans of keys, for example a needle, from the heads."""
    return AttentionEdit("knock_out", tuple(heads), spans=tuple(spans), rows=_rows(rows))


def reweigh(
    heads: Sequence[HeadId],
    spans: Sequence[TokenSpan],
    factor: float,
    rows: Sequence[int] | None = None,
) -> AttentionEdit:
    """Multiply the heads' weights on spans of keys, before each row is normalised again."""
    return AttentionEdit("reweigh", tuple(heads), tuple(spans), rows=_rows(rows), factor=factor)


def streaming(
    heads: Sequence[HeadId], sink: int, recent: int, rows: Sequence[int] | None = None
) -> AttentionEdit:
    """Leave the heads the first `sink` and the last `recent` keys."""
    return AttentionEdit("streaming", tuple(heads), sink=sink, recent=recent, rows=_rows(rows))


def _rows(rows: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if rows is None else tuple(rows)
