"""Head sets that the explorer saves and loads: plain files in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars

from ..cli.prune_config import PruneConfig
from ..cli.prune_recipe import config_of
from ..cli.prune_run import plan_of
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId
from ..results.head_set import HeadScore, HeadSet, check_fits, load_head_set, save_head_set
from ..results.provenance import JSON
from .settings import Settings
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
    return folder / f"{plain_name(file_name.strip().removesuffix('.json'))}.json"


def plain_name(name: str) -> str:
    """The name, which stays in its folder. Raises `MnemoscopeError` for one with separators."""
    if not _NAME.fullmatch(name):
        raise MnemoscopeError(
            f"{name!r} is no plain file name: use letters, digits, '-', '_' and '.'."
        )
    return name


def saved_sets(folder: Path) -> list[str]:
    """Names of the files in the head-set folder, sorted; empty when there is no folder."""
    return sorted(path.name for path in folder.glob("*.json"))


def heads_of(folder: Path, file_name: str, model: HookedModel) -> tuple[HeadId, ...]:
    """The heads of a saved set. Raises `UnitSetError` for a damaged file or another model size."""
    head_set = load_head_set(folder / Path(file_name).name)
    check_fits(head_set, model.anatomy.n_layers, model.anatomy.n_heads)
    return head_set.ids


def pruned_root(settings: Settings) -> Path:
    """The folder of the checkpoints that pages write, beside that of the head sets."""
    return settings.head_sets.with_name("pruned")


def pruned_name(checkpoint: str, head_set_file: Path, change: HeadChange = OFF) -> str:
    """What a checkpoint with this change of a file's heads is called at first."""
    how = {"zero": "", "scale": f"-x{change.factor:g}"}.get(change.op, f"-{change.op}")
    name = f"{Path(checkpoint).name.removesuffix('.gguf')}-{head_set_file.stem}{how}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("_.-")


def pruning(
    checkpoint: str, heads: Sequence[HeadId] | Path, out: Path, change: HeadChange = OFF
) -> PruneConfig:
    """What `prune run` is asked for by this change of these heads, or of a head-set file's.

    Raises `MnemoscopeError` for a change of edges, which no weights stand for, and for a factor
    that changes nothing.
    """
    factor = float(f"{change.factor:g}")  # as the command says it
    how: dict[str, dict[str, JSON]] = {
        "zero": {},
        "mean": {"mode": "mean"},
        "scale": {"mode": "scale", "factor": factor} if factor else {},
    }
    if change.op not in how:
        raise MnemoscopeError(
            f"{change.op!r} changes what heads see, which no weights stand for: choose zero, mean "
            "or scale to write the heads' change into a checkpoint."
        )
    named = (
        {"from": str(heads)}
        if isinstance(heads, Path)
        else {"list": [[head.layer, head.head] for head in heads]}
    )
    return config_of(
        {
            "source": {"path": checkpoint},
            "heads": named,
            "method": how[change.op],
            "output": {"path": str(out)},
        }
    )


def prune_command(config: PruneConfig, runs: Path) -> str:
    """The command of a pruning by a head-set file, for a shell: the same run, by its id too."""
    method = config.method
    how: Mapping[str, tuple[str, ...]] = {
        "mean": ("--mode", "mean"),
        "scale": ("--factor", f"{method.factor or 0:g}"),
    }
    parts = ("mnemoscope", "prune", "run", config.source.path, "--headset", str(config.heads.from_))
    places = ("--out", config.output.path, "--runs", str(runs))
    return shlex.join([*parts, *how.get(method.mode, ()), *places])


def dry_run(config: PruneConfig) -> str:
    """What a pruning would do to the files, by configuration and headers only.

    Raises what `plan_of` raises.
    """
    return plan_of(config).describe()


def _scored(head: HeadId, row: dict[str, float | None], role: str) -> HeadScore:
    low, high = row.get("low"), row.get("high")
    interval = None if low is None or high is None else (low, high)
    return HeadScore(head, row["score"] or 0.0, role, row.get("q"), interval)
