"""Files of query-side heads: QRHead's lists (YAML) and CoRe's scores (JSON), in and out.

QRHead (Zhang et al. 2025) names its heads in one line of a YAML file, best first and without
scores: `attn_head_set: "13-18,13-21,..."` (some lists write `13_18`), beside the model's name.
CoRe (Tran et al. 2025) writes one JSON object, `"<layer>-<head>"` to one score, for every head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..models.types import HeadId, unique_heads
from .errors import UnitSetError
from .head_key_files import head_key, head_of_key, read_head_object, read_text
from .head_set import HeadScore, HeadSet
from .score_sidecars import Sidecar, write_with_sidecar
from .unit_set_files import number

ALL_HEADS = "full_heads"
"""How QRHead's files say that every head is used."""


@dataclass(frozen=True)
class QueryHeadList:
    """Heads in the order of the list, best first; `model_class` is the base name QRHead goes by."""

    heads: tuple[HeadId, ...]
    model_name: str
    model_class: str


def load_query_head_list(path: Path | str) -> QueryHeadList:
    """Read a QRHead file. Raises `UnitSetError` for another form, a text that is no head, a head
    named twice, and a file that names all heads (it chooses none)."""
    try:
        record = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # 13_18 is no number
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UnitSetError(f"{path} cannot be read as YAML ({reason}).") from error
    if not isinstance(record, dict) or "attn_head_set" not in record:
        raise UnitSetError(f'{path} must say attn_head_set: "layer-head,layer-head,...".')
    heads = tuple(head_of_key(key, path) for key in _keys(record["attn_head_set"], path))
    if len(set(heads)) < len(heads):
        raise UnitSetError(f"{path} names a head twice.")
    return QueryHeadList(
        heads, _name(record, "model_name_or_path"), _name(record, "model_base_class")
    )


def save_query_head_list(
    path: Path | str,
    heads: Sequence[HeadId],
    *,
    model_name: str,
    model_class: str = "",
    sidecar: Sidecar | None = None,
    force: bool = False,
) -> None:
    """Write heads, best first, as QRHead reads them. Raises `UnitSetError` for none of them, and
    `MnemoscopeError` for one that comes twice."""
    if not heads:
        raise UnitSetError("a list of query heads needs at least one head.")
    record = {
        "attn_head_set": ",".join(head_key(head) for head in unique_heads(heads)),
        "model_base_class": model_class or model_name.rsplit("/", 1)[-1],
        "model_name_or_path": model_name,
    }
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in record.items())
    write_with_sidecar(path, lines, sidecar, force=force)


def load_core_head_scores(path: Path | str) -> dict[HeadId, float]:
    """Head to score, in the order of the file. Raises `UnitSetError` for another form."""
    scores = {head: _score(head, value, path) for head, value in read_head_object(path).items()}
    if not scores:
        raise UnitSetError(f"{path} holds no head.")
    return scores


def save_core_head_scores(
    path: Path | str,
    scores: Mapping[HeadId, float],
    *,
    sidecar: Sidecar | None = None,
    force: bool = False,
) -> None:
    """Write one score a head in CoRe's form. Raises `UnitSetError` for one that is not finite: it
    has no place for a head that cannot see the documents, so leave such heads out."""
    record = {head_key(head): number(float(score), str(head)) for head, score in scores.items()}
    write_with_sidecar(path, json.dumps(record, indent=2) + "\n", sidecar, force=force)


def query_head_set(
    heads: Sequence[HeadId] | Mapping[HeadId, float],
    *,
    name: str,
    model_id: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
) -> HeadSet:
    """A head set with role `query`, from CoRe's scores or from QRHead's order.

    A list has no scores: the best of `n` heads gets `n`, the last 1.
    """
    listed = not isinstance(heads, Mapping)
    scores = _scored(heads)
    return HeadSet(
        name=name,
        model_id=model_id,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        method="QRHead list, place from the end" if listed else "CoRe score",
        run_id=None,
        heads=tuple(HeadScore(head, float(score), "query") for head, score in scores.items()),
    )


def _scored(heads: Sequence[HeadId] | Mapping[HeadId, float]) -> Mapping[HeadId, float]:
    if isinstance(heads, Mapping):
        return heads
    return {head: len(heads) - i for i, head in enumerate(unique_heads(heads))}


def _keys(written: Any, path: Path | str) -> list[Any]:
    if written == ALL_HEADS:
        raise UnitSetError(f"{path} names all heads ({ALL_HEADS}): it chooses none.")
    keys = written.split(",") if isinstance(written, str) else written
    if not isinstance(keys, list) or not any(keys):
        raise UnitSetError(f"{path}: attn_head_set must list heads, got {written!r}.")
    return keys


def _name(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    return value if isinstance(value, str) else ""


def _score(head: HeadId, value: Any, path: Path | str) -> float:
    if isinstance(value, list):
        raise UnitSetError(
            f"{path}: {head_key(head)} has a list of scores; files with one score a trial are read "
            "as Retrieval_Head scores."
        )
    return number(value, f"{path}: the score of {head_key(head)}")
