"""Head sets: named heads with scores and roles, in a file that travels.

The set that a probe or the app makes is the file that the command line prunes and a study cites.
Scores keep the sign convention of the method that made them; `top` takes the highest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..models.types import HeadId
from .errors import UnitSetError
from .unit_set_files import (
    Record,
    expect_fields,
    interval_or_none,
    number,
    probability_or_none,
    read_set,
    text,
    text_or_none,
    whole,
    write_set,
)

HEAD_SET_SCHEMA = "mnemoscope/head-set/1"

_HEAD_FIELDS = ("layer", "head", "kv_head", "score", "role", "p", "ci")
_SET_FIELDS = (
    "schema",
    "name",
    "model_id",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "method",
    "run_id",
    "heads",
)


@dataclass(frozen=True)
class HeadScore:
    """One query head with its score; `ci` is (low, high), `p` and `ci` are `None` if unknown."""

    head: HeadId
    score: float
    role: str = ""
    p: float | None = None
    ci: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises `UnitSetError` for a score that is not finite or a p outside 0 to 1."""
        object.__setattr__(self, "score", number(self.score, f"the score of {self.head}"))
        object.__setattr__(self, "p", probability_or_none(self.p))
        object.__setattr__(self, "ci", interval_or_none(self.ci))


@dataclass(frozen=True)
class HeadSet:
    """Heads of one model. `run_id` names the run that made the set, if one did.

    Raises `UnitSetError` for a head that the model does not have or that is named twice.
    """

    name: str
    model_id: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    method: str
    run_id: str | None
    heads: tuple[HeadScore, ...]
    schema: str = HEAD_SET_SCHEMA

    def __post_init__(self) -> None:
        """Check the dimensions and every head."""
        if self.schema != HEAD_SET_SCHEMA:
            raise UnitSetError(f"this version writes {HEAD_SET_SCHEMA}, not {self.schema!r}.")
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise UnitSetError(
                f"{self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} kv heads: "
                "all must be positive and kv heads must divide heads."
            )
        object.__setattr__(self, "heads", tuple(self.heads))
        check_fits(self, self.n_layers, self.n_heads)
        if len(set(self.ids)) < len(self.heads):
            twice = sorted({head for head in self.ids if self.ids.count(head) > 1})
            raise UnitSetError(f"heads named twice: {', '.join(map(str, twice))}.")

    @property
    def ids(self) -> tuple[HeadId, ...]:
        """The heads without their scores, in the order of the set."""
        return tuple(scored.head for scored in self.heads)

    def kv_head(self, head: HeadId) -> int:
        """The key/value head that `head` reads: `head // (n_heads // n_kv_heads)`."""
        return head.head // (self.n_heads // self.n_kv_heads)

    def top(self, k: int) -> HeadSet:
        """The `k` highest scores, highest first, ties in the order of layer and head."""
        if k < 1:
            raise UnitSetError(f"cannot take the top {k} heads: k starts at 1.")
        ranked = sorted(self.heads, key=lambda scored: (-scored.score, scored.head))
        return replace(self, heads=tuple(ranked[:k]))

    def where(self, *, role: str) -> HeadSet:
        """The heads of one role, in the order of the set."""
        return replace(self, heads=tuple(scored for scored in self.heads if scored.role == role))


def check_fits(head_set: HeadSet, n_layers: int, n_heads: int) -> None:
    """Raise `UnitSetError` when the set names a head that a model of this size does not have, or
    was made for a model of another size."""
    for scored in head_set.heads:
        head = scored.head
        if not (0 <= head.layer < n_layers and 0 <= head.head < n_heads):
            raise UnitSetError(
                f"{head} does not exist in a model of {n_layers} layers with {n_heads} heads."
            )
    if (head_set.n_layers, head_set.n_heads) != (n_layers, n_heads):
        raise UnitSetError(
            f"head set {head_set.name!r} is for {head_set.n_layers} layers of {head_set.n_heads} "
            f"heads ({head_set.model_id}), this model has {n_layers} of {n_heads}."
        )


def union(a: HeadSet, b: HeadSet, *, name: str | None = None) -> HeadSet:
    """Heads of `a`, then those of `b` that `a` lacks; scores and roles of `a` win."""
    known = set(a.ids)
    more = (scored for scored in b.heads if scored.head not in known)
    return _combined(a, b, "|", (*a.heads, *more), name)


def intersection(a: HeadSet, b: HeadSet, *, name: str | None = None) -> HeadSet:
    """Heads of `a` that are in `b` too, with the scores and roles of `a`."""
    other = set(b.ids)
    return _combined(a, b, "&", (scored for scored in a.heads if scored.head in other), name)


def difference(a: HeadSet, b: HeadSet, *, name: str | None = None) -> HeadSet:
    """Heads of `a` that are not in `b`."""
    other = set(b.ids)
    return _combined(a, b, "-", (scored for scored in a.heads if scored.head not in other), name)


def save_head_set(path: Path | str, head_set: HeadSet, *, force: bool = False) -> None:
    """Write the set as JSON in one step; the file must not exist unless `force`."""
    heads = [
        {
            "layer": int(scored.head.layer),
            "head": int(scored.head.head),
            "kv_head": int(head_set.kv_head(scored.head)),
            "score": scored.score,
            "role": scored.role,
            "p": scored.p,
            "ci": scored.ci,
        }
        for scored in head_set.heads
    ]
    record = {name: getattr(head_set, name) for name in _SET_FIELDS[:-1]}
    write_set(path, {**record, "heads": heads}, force=force)


def load_head_set(path: Path | str) -> HeadSet:
    """Read a head-set file. Raises `UnitSetError` naming the file and what is wrong with it."""
    return read_set(path, HEAD_SET_SCHEMA, _head_set)


def _head_set(record: Record) -> HeadSet:
    expect_fields(record, _SET_FIELDS, "a head set")
    if not isinstance(record["heads"], list):
        raise UnitSetError("heads must be a list.")
    head_set = HeadSet(
        name=text(record, "name"),
        model_id=text(record, "model_id"),
        n_layers=whole(record, "n_layers"),
        n_heads=whole(record, "n_heads"),
        n_kv_heads=whole(record, "n_kv_heads"),
        method=text(record, "method"),
        run_id=text_or_none(record, "run_id"),
        heads=tuple(_head_score(head) for head in record["heads"]),
    )
    for head, written in zip(head_set.ids, record["heads"], strict=True):
        if written["kv_head"] != head_set.kv_head(head):
            raise UnitSetError(
                f"{head} reads kv head {head_set.kv_head(head)}, not {written['kv_head']!r}."
            )
    return head_set


def _head_score(record: Any) -> HeadScore:
    record = expect_fields(record, _HEAD_FIELDS, "a head")
    head = HeadId(whole(record, "layer"), whole(record, "head"))
    return HeadScore(head, record["score"], text(record, "role"), record["p"], record["ci"])


def _combined(
    a: HeadSet, b: HeadSet, sign: str, heads: Iterable[HeadScore], name: str | None
) -> HeadSet:
    shape_a = (a.model_id, a.n_layers, a.n_heads, a.n_kv_heads)
    shape_b = (b.model_id, b.n_layers, b.n_heads, b.n_kv_heads)
    if shape_a != shape_b:
        raise UnitSetError(
            f"head sets {a.name!r} and {b.name!r} are of different models: {shape_a}, {shape_b}."
        )
    return replace(
        a,
        name=name or f"{a.name} {sign} {b.name}",
        method=a.method if a.method == b.method else f"{a.method} {sign} {b.method}",
        run_id=a.run_id if a.run_id == b.run_id else None,
        heads=tuple(heads),
    )
