"""`mnemoscope models`: what a checkpoint is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..output import print_json, say, show_table
from ..placement_options import MaxMemory, OffloadFolder

app = typer.Typer(help="Look at checkpoints.", no_args_is_help=True)

Model = Annotated[
    str,
    typer.Argument(
        help="A packaged name (engram, smollm2), a checkpoint folder, a .gguf file or a hub id.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def callback() -> None:
    """Look at checkpoints."""


@app.command()
def show(
    model: Model,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    json: Json = False,
) -> None:
    """Load a model, prove its anatomy and show it.

    Example: mnemoscope models show engram
    """
    from ...models.load import load_model

    loaded = load_model(model)
    anatomy = asdict(loaded.anatomy)
    spec = anatomy.pop("spec")
    facts = {
        "name": loaded.name,
        "source": loaded.source,
        **anatomy,
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.identity["device"],
        "attention": loaded.module.config._attn_implementation,
        "bos_rule": loaded.bos_rule,
        "weights_sha256": loaded.weights_sha256,
    }
    if json:
        print_json("model", {**facts, "parts": spec})
        return
    show_table(f"{loaded.name}", ("what", "value"), list(facts.items()))
    if loaded.anatomy.heads_per_kv > 1:
        say(
            f"Grouped-query attention: {loaded.anatomy.heads_per_kv} query heads share each "
            "key/value head. Heads are always named by their query head."
        )
    say(f"Next: mnemoscope heads score {model}")
