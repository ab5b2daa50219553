"""`mnemoscope prune`: a checkpoint without some of its heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output import print_json, say
from .heads import Force
from .models import Json

if TYPE_CHECKING:
    from ...models.types import HeadId

app = typer.Typer(help="Prune heads of checkpoints.", no_args_is_help=True)


@app.callback()
def callback() -> None:
    """Prune heads of checkpoints."""


@app.command()
def run(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint folder, a .gguf file or smollm2.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    headset: Annotated[Path | None, typer.Option(help="A head set file.")] = None,
    heads: Annotated[str, typer.Option(help="Heads by hand, for example 12:5,14:3.")] = "",
    top: Annotated[int | None, typer.Option(min=1, help="Only the best of the head set.")] = None,
    factor: Annotated[float, typer.Option(help="0 prunes; 0.5 halves; 2 boosts.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read headers, write nothing.")] = (
        False
    ),
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a checkpoint whose heads are zeroed in the output projection, byte by byte.

    Everything else stays as it is; the folder loads in any engine. The result is checked.

    Example: mnemoscope prune run smollm2 --headset runs/head-scores-1a2b/headset-context.json
    --out pruned
    """
    from ...interventions.checkpoint_surgery import prune_checkpoint
    from ...interventions.pruning_plan import plan_pruning
    from ...models.load import checkpoint_folder

    chosen, extra = _heads(headset, heads, top)
    plan = plan_pruning(checkpoint_folder(checkpoint), chosen, factor=factor)
    say(plan.describe())
    if dry_run:
        if json:
            print_json("prune-plan", {"plan": plan.describe()})
        return
    folder = prune_checkpoint(plan, out, force=force, manifest_extra=extra)
    if json:
        print_json("pruned", {"out": str(folder), "heads": [str(head) for head in chosen]})
    else:
        say(f"written and checked: {folder}")
        say(f"Next: mnemoscope models show {folder}")


def _heads(
    headset: Path | None, text: str, top: int | None
) -> tuple[tuple[HeadId, ...], dict[str, str | None]]:
    """The heads to prune and what the manifest says of their origin."""
    from ...models.checkpoint_files import file_sha256
    from ...models.types import parse_heads
    from ...results.head_set import load_head_set

    if (headset is None) == (not text):
        raise typer.BadParameter("give either --headset FILE or --heads 12:5,14:3.")
    if headset is None:
        return parse_heads(text), {}
    loaded = load_head_set(headset)
    chosen = loaded if top is None else loaded.top(top)
    extra = {
        "head_set": chosen.name,
        "head_set_sha256": file_sha256(headset),
        "run_id": chosen.run_id,
        "model_id": chosen.model_id,
    }
    return chosen.ids, extra
