"""Probes over many checkpoints: each unit is a run of its own, and the tables are laid together."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import polars

from ..results.errors import LedgerError, RunFolderError
from ..results.ledger import Attempt, Outcome
from ..results.provenance import JSON, Provenance, collect_provenance
from ..results.run import Run
from ..results.run_reading import LoadedRun, load_run
from ..results.shards import WHOLE, Shard, Unit, parts
from ..results.storage import write_atomic
from .sweep_batch import Batch, BatchResult, size_of, work_on_batch
from .sweep_config import Sweep

KIND = "probe-sweep"


def run_sweep(
    sweep: Sweep,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
    shard: Shard = WHOLE,
    retry: bool = False,
) -> BatchResult:
    """Measure every unit of the shard, or go on where an earlier attempt stopped.

    A unit goes on with the run that a dead worker left. The merged run holds `table.parquet`, a
    row for each unit, `numbers.parquet`, the numbers of the units' summaries, and for each probe
    `PROBE.parquet`, the tables of all checkpoints. Raises only what concerns the whole sweep.
    """
    work = Batch(
        kind=KIND,
        config=sweep.document(),
        units=units_of(sweep),
        do=lambda name: _measure(sweep, name, root, force, say),
        table=lambda settled: _table(sweep, settled),
        provenance=lambda: _provenance(sweep),
        title="Sweep over checkpoints",
        extra=lambda run, settled: _write_tables(sweep, root, run, settled),
    )
    return work_on_batch(work, root, shard=shard, retry=retry, force=force, say=say, tell=tell)


def units_of(sweep: Sweep) -> tuple[Unit, ...]:
    """The units, those of a checkpoint together, with the bytes of its weights where known."""
    sizes = {one.path: size_of(one.path) for one in sweep.checkpoints}
    return tuple(
        Unit(name, checkpoint.path, sizes[checkpoint.path])
        for name, (checkpoint, _) in sweep.units().items()
    )


def describe_sweep(sweep: Sweep, shard: Shard) -> list[dict[str, Any]]:
    """Every unit with its size in bytes and the shard, of as many, that would do it."""
    units = units_of(sweep)
    return [
        {"unit": unit.name, "size": unit.size, "shard": f"{part}/{shard.count}"}
        for unit, part in zip(units, parts(units, shard.count), strict=True)
    ]


def _measure(
    sweep: Sweep, name: str, root: Path, force: bool, say: Callable[[str], None]
) -> dict[str, JSON]:
    checkpoint, probe = sweep.units()[name]
    module = import_module(f".{probe.work.module}", __package__)
    measure: Any = getattr(module, probe.work.function)
    config = probe.config_for(checkpoint.path)
    result = measure(config, root, force=force, say=say, tell=_nobody, **probe.more)
    folder = Path(result.folder)
    return {"run": folder.name, "numbers": _numbers(load_run(folder).rows.get("summary", {}))}


def _numbers(summary: Mapping[str, Any]) -> dict[str, JSON]:
    """The plain numbers of a run's summary, times left out; those one level down under
    `outer.inner`."""
    found: dict[str, JSON] = {}
    for name, value in summary.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, number in inner.items():
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if plain and "seconds" not in (name, key):
                found[f"{name}.{key}" if key else name] = float(number)
    return found


def _table(sweep: Sweep, settled: Sequence[Attempt]) -> polars.DataFrame:
    cells = [
        {
            **_place(sweep, one),
            "status": str(one.outcome),
            "run": (one.row or {}).get("run"),
            "error": one.error,
        }
        for one in settled
    ]
    columns = ("unit", "checkpoint", "probe", "status", "run", "error")
    return polars.DataFrame(cells, schema=dict.fromkeys(columns, polars.String))


def _write_tables(sweep: Sweep, root: Path, run: Run, settled: Sequence[Attempt]) -> None:
    """`numbers.parquet`, and for each probe that any checkpoint has `PROBE.parquet`: its tables,
    the checkpoint first."""
    done = [one for one in settled if one.outcome is Outcome.DONE]
    numbers = [
        {**_place(sweep, one), "name": name, "value": value}
        for one in done
        for name, value in (one.row or {})["numbers"].items()
    ]
    columns = dict.fromkeys(("unit", "checkpoint", "probe", "name"), polars.String)
    schema = {**columns, "value": polars.Float64}
    _write_parquet(run.folder / "numbers.parquet", polars.DataFrame(numbers, schema=schema))
    for probe in sweep.probes:
        tables = [
            _unit_run(root, one)
            .table.rechunk()
            .select(polars.lit(_place(sweep, one)["checkpoint"]).alias("checkpoint"), polars.all())
            for one in done
            if _place(sweep, one)["probe"] == probe.name
        ]
        if tables:
            both = polars.concat(tables, how="diagonal_relaxed", rechunk=True)
            _write_parquet(run.folder / f"{probe.name}.parquet", both)


def _place(sweep: Sweep, attempt: Attempt) -> dict[str, str]:
    """The first cells of a unit's rows."""
    checkpoint, probe = sweep.units()[attempt.unit]
    return {"unit": attempt.unit, "checkpoint": checkpoint.name, "probe": probe.name}


def _write_parquet(path: Path, table: polars.DataFrame) -> None:
    content = io.BytesIO()
    table.write_parquet(content)
    write_atomic(path, content.getvalue())


def _unit_run(root: Path, attempt: Attempt) -> LoadedRun:
    try:
        return load_run(root / (attempt.row or {})["run"])
    except (RunFolderError, KeyError) as error:
        raise LedgerError(
            f"the run of {attempt.unit}, which is done, is gone ({error}): delete the ledger and "
            "run the same command again, which finds what is finished."
        ) from error


def _provenance(sweep: Sweep) -> Provenance:
    return collect_provenance(
        model_id=", ".join(one.name for one in sweep.checkpoints),
        weights_sha256=None,
        tokenizer_sha256=None,
        data_sha256=None,
        prompt_template=None,
        bos_rule=None,
        seed=None,
        estimand=", ".join(dict.fromkeys(one.probe for one in sweep.probes)),
        device="each unit's own",
        dtype="each unit's own",
        attention=None,
    )


def _nobody(done: int, total: int) -> None:
    """The sweep shows its own progress, not that of a unit."""
