"""Which heads a pruning takes: by hand, from a head-set file, or at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..models.checkpoint_files import file_sha256
from ..models.errors import CheckpointError, MnemoscopeError
from ..models.types import HeadId
from ..results.controls import matched_random_heads
from ..results.head_set import HeadSet, check_fits, load_head_set
from ..results.provenance import JSON, sha256_of_json
from .prune_config import Heads

_COLUMNS = {
    "layer": polars.Int64,
    "head": polars.Int64,
    "kv_head": polars.Int64,
    "score": polars.Float64,
    "role": polars.String,
    "p": polars.Float64,
    "q": polars.Float64,
    "low": polars.Float64,
    "high": polars.Float64,
}


class SelectionError(MnemoscopeError):
    """The heads cannot be chosen as asked; the message says how to ask."""


@dataclass(frozen=True)
class ModelShape:
    """Size of a checkpoint as its config.json gives it."""

    n_layers: int
    n_heads: int
    d_v: int


@dataclass(frozen=True)
class ChosenHeads:
    """The heads, what the manifest says of their origin, and notes for the person."""

    heads: tuple[HeadId, ...]
    origin: Mapping[str, JSON]
    notes: tuple[str, ...] = ()


def choose_heads(spec: Heads, folder: Path) -> ChosenHeads:
    """The heads of a checkpoint folder that `spec` asks for; reads its config.json at most.

    Raises `SelectionError`, or `UnitSetError` for a head-set file that is damaged or was made for
    a model of another size.
    """
    chosen = _named(spec, folder)
    if spec.random is None:
        return chosen
    n, seed = spec.random.n, spec.random.seed
    origin: dict[str, JSON] = {**chosen.origin, "random": {"n": n, "seed": seed}}
    if not chosen.heads:
        return ChosenHeads(_any_heads(n, seed, model_shape(folder)), origin)
    if len(chosen.heads) != n:
        raise SelectionError(
            f"--random {n} stands for as many chosen heads, but {len(chosen.heads)} are chosen: "
            f"use --random {len(chosen.heads)}, or choose {n} (--top {n})."
        )
    shape = model_shape(folder)
    drawn = matched_random_heads(chosen.heads, shape.n_layers, shape.n_heads, draws=1, seed=seed)
    origin["matched_to"] = [str(head) for head in chosen.heads]
    notes = (*chosen.notes, drawn.note) if drawn.note else chosen.notes
    return ChosenHeads(drawn.draws[0], origin, notes)


def model_shape(folder: Path) -> ModelShape:
    """Layers, query heads and width of a head, from config.json alone.

    Raises `CheckpointError` when it cannot be read or does not say.
    """
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config: Any = loaded.get_text_config()
        n_heads = int(config.num_attention_heads)
        width = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
        d_v = int(width or config.hidden_size // n_heads)
        return ModelShape(int(config.num_hidden_layers), n_heads, d_v)
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the config.json of {folder} does not say how many heads there are ({reason})."
        ) from error


def where(head_set: HeadSet, condition: str) -> HeadSet:
    """The heads for which an SQL condition holds, for example `role = 'memory' AND q < 0.05`.

    Columns: layer, head, kv_head, score, role, p, q, low, high. Head sets of `heads score` hold p
    values corrected for the number of heads, so q is p. The condition is an expression of polars'
    SQL over these columns; it cannot call functions of Python or read files. Raises
    `SelectionError` for an unknown column, or what is no condition.
    """
    rows = [
        {
            "layer": scored.head.layer,
            "head": scored.head.head,
            "kv_head": head_set.kv_head(scored.head),
            "score": scored.score,
            "role": scored.role,
            "p": scored.p,
            "q": scored.p,
            "low": scored.ci[0] if scored.ci else None,
            "high": scored.ci[1] if scored.ci else None,
        }
        for scored in head_set.heads
    ]
    frame = polars.DataFrame(rows, schema=_COLUMNS).with_row_index("row")
    try:
        expression = polars.sql_expr(condition)
        unknown = sorted(set(expression.meta.root_names()) - set(_COLUMNS))
        if unknown:
            raise _no_condition(condition, f"there is no column {', '.join(unknown)}")
        kept = frame.filter(expression)["row"].to_list()
    except (polars.exceptions.PolarsError, TypeError, ValueError) as error:
        raise _no_condition(condition, str(error).splitlines()[0]) from error
    return replace(head_set, heads=tuple(head_set.heads[row] for row in kept))


def _no_condition(condition: str, reason: str) -> SelectionError:
    return SelectionError(
        f"--where {condition!r}: {reason}. Columns: {', '.join(_COLUMNS)}. "
        "Write for example --where \"role = 'memory' AND q < 0.05\"."
    )


def _named(spec: Heads, folder: Path) -> ChosenHeads:
    """The heads named, without the random ones; none when only random ones are asked for."""
    if spec.list_ is not None:
        return ChosenHeads(tuple(HeadId(*pair) for pair in spec.list_), {})
    if spec.from_ is None:
        return ChosenHeads((), {})
    path = Path(spec.from_)
    loaded = load_head_set(path)
    shape = model_shape(folder)
    check_fits(loaded, shape.n_layers, shape.n_heads)
    asked = spec.count_of(shape.n_layers * shape.n_heads)
    if asked is None and spec.random is not None:
        asked = spec.random.n
    chosen = _narrowed(loaded, spec, path)
    notes = []
    if asked is not None:
        if asked > len(chosen.heads):
            notes.append(f"{asked} heads were asked for; {path} has {len(chosen.heads)} of them.")
        chosen = chosen.top(asked)
    return ChosenHeads(chosen.ids, _origin(chosen, path), tuple(notes))


def _narrowed(loaded: HeadSet, spec: Heads, path: Path) -> HeadSet:
    chosen = loaded
    if spec.role is not None:
        chosen = chosen.where(role=spec.role)
        roles = sorted({scored.role for scored in loaded.heads})
        if not chosen.heads:
            raise SelectionError(
                f"{path} has no head of role {spec.role!r}; its roles are {_listed(roles)}."
            )
    if spec.where is not None:
        chosen = where(chosen, spec.where)
    if not chosen.heads:
        raise SelectionError(
            f"no head of {path} is left of {len(loaded.heads)}: widen --where {spec.where!r}."
            if spec.where is not None
            else f"{path} names no head: choose another head set."
        )
    return chosen


def _origin(chosen: HeadSet, path: Path) -> dict[str, JSON]:
    """What the manifest keeps: where the heads are from, and their scores."""
    return {
        "head_set": chosen.name,
        "head_set_sha256": file_sha256(path),
        "run_id": chosen.run_id,
        "model_id": chosen.model_id,
        "method": chosen.method,
        "scores": {str(scored.head): scored.score for scored in chosen.heads},
    }


def _any_heads(n: int, seed: int, shape: ModelShape) -> tuple[HeadId, ...]:
    """`n` different heads of the whole model, each as likely as any other."""
    total = shape.n_layers * shape.n_heads
    if n > total:
        raise SelectionError(f"--random {n}: the model has {total} heads, ask for fewer.")
    drawn = np.random.default_rng(seed).choice(total, size=n, replace=False)
    return tuple(sorted(HeadId(*map(int, divmod(int(i), shape.n_heads))) for i in drawn))


def weights_digest(folder: Path, shards: Sequence[str]) -> str:
    """SHA-256 of the one weight file; of several, of the JSON object of their names and hashes."""
    hashes = {name: file_sha256(folder / name) for name in sorted(shards)}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_of_json(hashes)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words) or "none"
