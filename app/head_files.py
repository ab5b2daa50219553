"""Head sets that the explorer saves and loads: plain files in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import polars

from ..interventions.pruning_plan import plan_pruning
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import checkpoint_folder
from ..models.types import HeadId
from ..results.head_set import HeadScore, HeadSet, check_fits, load_head_set, save_head_set

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


def prune_command(checkpoint: str, head_set_file: Path, out: str) -> str:
    """The command that prunes a checkpoint by this file, quoted for a shell."""
    parts = ("mnemoscope", "prune", "run", checkpoint)
    return shlex.join([*parts, "--headset", str(head_set_file), "--out", out])


def dry_run(checkpoint: str, heads: Sequence[HeadId]) -> str:
    """What pruning these heads would change, read from configuration and headers only.

    Raises what `plan_pruning` raises, and `ModelNotFoundError` for a model that is no folder here.
    """
    return plan_pruning(checkpoint_folder(checkpoint), heads).describe()


def _scored(head: HeadId, row: dict[str, float | None], role: str) -> HeadScore:
    low, high = row.get("low"), row.get("high")
    interval = None if low is None or high is None else (low, high)
    return HeadScore(head, row["score"] or 0.0, role, row.get("q"), interval)
