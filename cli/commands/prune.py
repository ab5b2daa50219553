"""`mnemoscope prune`: checkpoints without some of their heads, checked, undone and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output import print_json, progress, say
from .heads import Force, Runs
from .models import Json
from .sweep import WHOLE, Retry, ShardOf, shard_of

if TYPE_CHECKING:
    from ...results.shards import Shard
    from ..prune_config import PruneBatch, PruneConfig

app = typer.Typer(help="Prune heads of checkpoints.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="A pruned checkpoint folder.", show_default=False)]


@app.callback()
def callback() -> None:
    """Prune heads of checkpoints."""


@app.command()
def run(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint folder, a .gguf file or a packaged name."),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write; it must not exist.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A YAML recipe instead of the options; also batches.")
    ] = None,
    headset: Annotated[Path | None, typer.Option(help="A head set file.")] = None,
    heads: Annotated[str, typer.Option(help="Heads by hand, for example 12:5,14:3.")] = "",
    role: Annotated[str | None, typer.Option(help="Only heads of this role: memory.")] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only heads for which this SQL holds: \"role = 'memory' AND q < 0.05\"."),
    ] = None,
    top: Annotated[
        str | None, typer.Option(help="Only the best: 15, or 5% of all heads of the model.")
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=1, help="Random heads of the same layers, or any if alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random heads and controls.")] = 0,
    mode: Annotated[
        str | None, typer.Option(help="zero (default), mean, scale (with --factor) or slice.")
    ] = None,
    factor: Annotated[float | None, typer.Option(help="0.5 halves, 2 boosts, -1 flips.")] = None,
    projection: Annotated[
        str | None, typer.Option(help="Name pattern of the output projection, if ambiguous.")
    ] = None,
    all_shared: Annotated[
        bool, typer.Option("--all-shared", help="Edit a matrix that several layers share.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Ask before and after, beside random heads.")
    ] = False,
    relation: Annotated[str, typer.Option(help="The relation to ask about.")] = "capital",
    subjects: Annotated[int, typer.Option(min=2, help="Facts to ask, of the test part.")] = 60,
    controls: Annotated[int, typer.Option(min=1, help="Draws of matched random heads.")] = 5,
    gate: Annotated[
        list[str] | None,
        typer.Option(help='Write only if this holds: "ppl_increase <= 0.05". Repeatable.'),
    ] = None,
    lm_eval: Annotated[
        str, typer.Option("--lm-eval", help="Tasks of lm-eval, before and after: piqa,arc_easy.")
    ] = "",
    copy: Annotated[bool, typer.Option("--copy", help="Copy untouched shards, no links.")] = False,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Accept a checkpoint without a tokenizer.")
    ] = False,
    shard: ShardOf = WHOLE,
    retry: Retry = False,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read headers, write nothing.")] = (
        False
    ),
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole recipe as YAML and stop.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a checkpoint without these heads, edited byte by byte and checked.

    Everything else stays as it is; the folder loads in any engine. `prune undo` restores it.

    Example: mnemoscope prune run engram --headset runs/head-scores-1a2b/headset-context.json
    --top 5% --eval --gate "ppl_increase <= 0.05" --out pruned
    """
    from ..prune_config import PruneBatch
    from ..prune_options import config_from_options, refuse_beside_recipe
    from ..prune_recipe import read_recipe, recipe_text

    config: PruneConfig | PruneBatch
    if recipe is None:
        config = config_from_options(context.params)
    else:
        refuse_beside_recipe(_given(context))
        config = read_recipe(recipe)
    if print_config:
        sys.stdout.write(recipe_text(config))
    elif isinstance(config, PruneBatch):
        part = shard_of(shard, force=force)
        _batch(config, runs, shard=part, retry=retry, dry_run=dry_run, force=force, json=json)
    elif retry or shard != WHOLE:
        raise typer.BadParameter("--shard and --retry belong to a batch: give one with --recipe.")
    else:
        _one(config, runs, dry_run=dry_run, force=force, json=json)


@app.command()
def verify(
    folder: Folder,
    source: Annotated[
        Path | None, typer.Option(help="The original: compare every byte with it.")
    ] = None,
    json: Json = False,
) -> None:
    """Check that a pruned folder is what its manifest says.

    With --source, find out anew which bytes differ and that they are exactly the declared ones.

    Example: mnemoscope prune verify pruned --source models/my-llama
    """
    from ..prune_checks import verify as verified

    found = verified(folder, source)
    if json:
        print_json("prune-verify", found.document)
        return
    say(found.text)
    if source is None:
        say(f"Next: mnemoscope prune verify {folder} --source ORIGINAL compares every byte")
        return
    say(f"Next: mnemoscope prune undo {folder} --out restored, or mnemoscope app {folder}")


@app.command()
def undo(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Restore the original, byte for byte, from what the pruned folder itself keeps.

    Example: mnemoscope prune undo pruned --out restored
    """
    from ..prune_checks import undo as undone

    restored = undone(folder, out, force=force)
    if json:
        print_json("prune-undone", {"out": str(restored)})
        return
    say(f"restored and checked: {restored}")
    say(f"Next: mnemoscope prune diff {folder} {restored}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A checkpoint folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    json: Json = False,
) -> None:
    """Show which files, tensors and heads of two checkpoints differ.

    Example: mnemoscope prune diff models/my-llama pruned
    """
    from ...interventions.checkpoint_diff import diff_checkpoints
    from ..prune_tables import show_diff

    found = diff_checkpoints(a, b)
    if json:
        print_json("prune-diff", found.document())
    else:
        show_diff(found)


def _given(context: typer.Context) -> list[str]:
    """The parameters that were typed, not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, where in sources.items() if where and where.name == "COMMANDLINE"]


def _one(config: PruneConfig, runs: Path, *, dry_run: bool, force: bool, json: bool) -> None:
    from ..prune_kept import prune_kept
    from ..prune_run import plan_of
    from ..prune_tables import show_pruned

    if dry_run:
        planned = plan_of(config)
        say(planned.describe())
        if json:
            print_json("prune-plan", planned.document())
        else:
            say("nothing was written. Next: the same command without --dry-run")
        return
    with progress("asking") as tell:
        done = prune_kept(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("pruned", done.document())
    else:
        show_pruned(done)


def _batch(
    batch: PruneBatch,
    runs: Path,
    *,
    shard: Shard,
    retry: bool,
    dry_run: bool,
    force: bool,
    json: bool,
) -> None:
    from ..prune_batch import describe_batch, prune_batch
    from ..sweep_tables import show_batch

    if dry_run:
        described = describe_batch(batch)
        for name, text, _ in described:
            say(f"{name}\n{text}\n")
        if json:
            units = [{"unit": n, "plan": d, "error": None if d else t} for n, t, d in described]
            print_json("prune-batch-plan", {"units": units})
        raise typer.Exit(int(any(plan is None for _, _, plan in described)))
    with progress("units") as tell:
        result = prune_batch(batch, runs, force=force, say=say, tell=tell, shard=shard, retry=retry)
    if json:
        print_json("prune-batch", result.document())
    else:
        show_batch(result, "mnemoscope prune verify FOLDER, for any of the folders above")
    raise typer.Exit(result.code)
