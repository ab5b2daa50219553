"""`mnemoscope sweep`: the same probes over many checkpoints, by any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output import print_json, progress, say
from .heads import Force, Runs
from .models import Json

if TYPE_CHECKING:
    from ...results.shards import Shard

app = typer.Typer(help="Probes over many checkpoints, in shards.", no_args_is_help=True)

WHOLE = "1/1"
ShardOf = Annotated[
    str, typer.Option("--shard", metavar="I/N", help="Do the I-th of N parts of a batch.")
]
Retry = Annotated[
    bool, typer.Option("--retry", help="Batches: try units again that failed before.")
]


@app.callback()
def callback() -> None:
    """Probes over many checkpoints, in shards."""


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe: checkpoints and probes.", show_default=False)
    ],
    shard: ShardOf = WHOLE,
    retry: Retry = False,
    runs: Runs = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show units and shards, measure nothing.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure every checkpoint of a recipe with every probe, and merge the tables.

    Start it as often as there are machines, with the same folder of runs, each with its --shard or
    all without: no unit is done twice. Interrupted or killed? The same command goes on.

    Example: mnemoscope sweep run sweep.yaml

    Example: mnemoscope sweep run sweep.yaml --shard 2/8 --runs /shared/runs
    """
    from ..sweep_config import read_sweep
    from ..sweep_run import describe_sweep, run_sweep
    from ..sweep_tables import show_batch

    part, sweep = shard_of(shard, force=force), read_sweep(recipe)
    if dry_run:
        described = describe_sweep(sweep, part)
        if json:
            print_json("sweep-plan", {"shard": str(part), "units": described})
            return
        for unit in described:
            say(f"{unit['shard']}  {unit['unit']}  ({unit['size'] or '?'} bytes)")
        return
    with progress("units") as tell:
        result = run_sweep(sweep, runs, force=force, say=say, tell=tell, shard=part, retry=retry)
    if json:
        print_json("sweep", result.document())
    else:
        show_batch(result, f"mnemoscope runs show {result.folder.name} --runs {runs}")
    raise typer.Exit(result.code)


@app.command()
def status(
    ledger: Annotated[
        Path,
        typer.Argument(help="A ledger folder, RUNS/ID.ledger, of a sweep or a prune batch."),
    ],
    json: Json = False,
) -> None:
    """Show where every unit of a batch stands, and which worker has it.

    Example: mnemoscope sweep status runs/probe-sweep-1a2b3c4d5e.ledger
    """
    from ...results.ledger import read_ledger
    from ..sweep_tables import show_status, status_document

    told = status_document(read_ledger(ledger))
    if json:
        print_json("sweep-status", told)
    else:
        show_status(told)


def shard_of(text: str, *, force: bool) -> Shard:
    """The shard of an option. Raises `BadParameter` for one that cannot be, or beside --force."""
    from ...results.errors import LedgerError
    from ...results.shards import Shard

    try:
        shard = Shard.parse(text)
    except LedgerError as error:
        raise typer.BadParameter(str(error)) from error
    if force and shard.count > 1:
        raise typer.BadParameter(
            "--force throws away what all shards did: use it once, without --shard."
        )
    return shard
