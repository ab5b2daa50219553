"""Head sets that the explorer saves and loads: plain files in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars
from torch import Tensor

from ..interventions.pruning_plan import plan_pruning
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import checkpoint_folder
from ..models.types import HeadId
from ..results.head_set import HeadScore, HeadSet, check_fits, load_head_set, save_head_set
from .switched_off import OFF, HeadChange

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def chosen_set(
    model: HookedModel,
    heads: Sequence[HeadId],
    scores: polars.DataFrame,
    role: str,
    *,
    name: str,
    method: str,
    run_id: str | None,
) -> HeadSet:
    """The heads with their scores of a role, as one set of this model.

    `scores` is a grid frame (`app.head_grid`); q and interval are taken over where it has them.
    Raises `MnemoscopeError` when no head is chosen.
    """
    if not heads:
        raise MnemoscopeError("no heads are chosen: click cells of the grid or pick them by name.")
    rows = {HeadId(row["layer"], row["head"]): row for row in scores.iter_rows(named=True)}
    anatomy = model.anatomy
    return HeadSet(
        name=name,
        model_id=model.name,
        n_layers=anatomy.n_layers,
        n_heads=anatomy.n_heads,
        n_kv_heads=anatomy.n_kv_heads,
        method=method,
        run_id=run_id,
        heads=tuple(_scored(head, rows[head], role) for head in heads),
    )


def save_as(folder: Path, file_name: str, head_set: HeadSet, *, force: bool) -> Path:
    """Write the set into the folder under a plain name; `.json` is added where it is missing.

    Raises `MnemoscopeError` for a name with separators, `RunFolderError` when the file is there
    and `force` is not given.
    """
    path = plain_path(folder, file_name)
    folder.mkdir(parents=True, exist_ok=True)
    save_head_set(path, head_set, force=force)
    return path


def plain_path(folder: Path, file_name: str) -> Path:
    """`folder/name.json`. Raises `MnemoscopeError` for a name with separators."""
    name = file_name.strip().removesuffix(".json")
    if not _NAME.fullmatch(name):
        raise MnemoscopeError(
            f"{file_name!r} is no plain file name: use letters, digits, '-', '_' and '.'."
        )
    return folder / f"{name}.json"


def saved_sets(folder: Path) -> list[str]:
    """Names of the files in the head-set folder, sorted; empty when there is no folder."""
    return sorted(path.name for path in folder.glob("*.json"))


def heads_of(folder: Path, file_name: str, model: HookedModel) -> tuple[HeadId, ...]:
    """The heads of a saved set. Raises `UnitSetError` for a damaged file or another model size."""
    head_set = load_head_set(folder / Path(file_name).name)
    check_fits(head_set, model.anatomy.n_layers, model.anatomy.n_heads)
    return head_set.ids


def prune_command(checkpoint: str, head_set_file: Path, out: str, change: HeadChange = OFF) -> str:
    """The command that writes this change of a file's heads into a checkpoint, for a shell.

    Raises `MnemoscopeError` for a change of edges, which no weights stand for.
    """
    parts = ("mnemoscope", "prune", "run", checkpoint)
    how: dict[str, tuple[str, ...]] = {
        "zero": (),
        "mean": ("--mode", "mean"),
        "scale": ("--factor", f"{change.factor:g}"),
    }
    if change.op not in how:
        raise MnemoscopeError(
            f"{change.op!r} changes what heads see, which no weights stand for: choose zero, mean "
            "or scale to write the heads' change into a checkpoint."
        )
    return shlex.join([*parts, "--headset", str(head_set_file), *how[change.op], "--out", out])


def dry_run(
    checkpoint: str,
    heads: Sequence[HeadId],
    change: HeadChange = OFF,
    means: Mapping[HeadId, Tensor] | None = None,
) -> str:
    """What this change of the heads would do to the files, by configuration and headers only.

    `means` are the heads' mean outputs, which "mean" needs. Raises what `plan_pruning` raises, and
    `ModelNotFoundError` for a model that is no folder here.
    """
    factor = change.factor if change.op == "scale" else 0.0
    given = means if change.op == "mean" else None
    folder = checkpoint_folder(checkpoint)
    return plan_pruning(folder, heads, factor=factor, mean_outputs=given).describe()


def _scored(head: HeadId, row: dict[str, float | None], role: str) -> HeadScore:
    low, high = row.get("low"), row.get("high")
    interval = None if low is None or high is None else (low, high)
    return HeadScore(head, row["score"] or 0.0, role, row.get("q"), interval)
