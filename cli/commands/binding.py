"""`mnemoscope binding`: why "A is B" does not give "B is A", from behaviour to cause."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..binding_display import (
    said_cells,
    swap_cells,
    table,
    tell_cost,
    tell_end,
    tell_pairs,
    with_interval,
)
from ..option_lists import numbers, whole_numbers, words
from ..output import print_json, progress, say
from . import binding_toys
from .heads import Force, Runs
from .models import Json, Model
from .neurons import Device, Dtype

app = typer.Typer(
    help="Facts told one way and asked the other: behaviour, states, causes.", no_args_is_help=True
)

Pairs = Annotated[
    str, typer.Option(help="A relation of pairs (capital, book_author, ...) or a JSON file.")
]
N = Annotated[int, typer.Option("--n", min=0, help="Pairs to take; 0: all.")]
Least = Annotated[int, typer.Option(min=2, help="Fewest pairs that must remain, or --n.")]
Wordings = Annotated[int, typer.Option(min=0, help="Wordings each way; 0: all.")]
Unknown = Annotated[
    bool, typer.Option("--unknown", help="Take pairs that the model does not know, too.")
]
Copy = Annotated[
    Path | None, typer.Option(help="Local copy of a published set of pairs that does not ship.")
]
Seed = Annotated[int, typer.Option(help="Seed of which pairs, controls and resampling.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it will cost, measured on a few pairs.")
]


@app.callback()
def callback() -> None:
    """Facts told one way and asked the other: behaviour, states, causes."""


@app.command()
def probe(
    model: Model = "engram",
    pairs: Pairs = "capital",
    n: N = 128,
    least: Least = 64,
    wordings: Wordings = 0,
    entity: Annotated[
        str, typer.Option(help="Whose roles: b (named by reverse questions) or a (the mirror).")
    ] = "b",
    unknown: Unknown = False,
    copy: Copy = None,
    no_random: Annotated[
        bool, typer.Option("--no-random", help="Leave out the model with random weights.")
    ] = False,
    no_context: Annotated[
        bool, typer.Option("--no-context", help="Leave out prompts with the fact in front.")
    ] = False,
    permutations: Annotated[int, typer.Option(min=20, help="Shuffles of entities.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runs: Runs = Path("runs"),
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Is an entity that is read the same vector as the entity about to be said, layer by layer?

    Pairs that the model does not know are dropped and counted. Interrupted? The same command goes
    on where it stopped.

    Example: mnemoscope binding probe engram --pairs town_mayor

    Example: mnemoscope binding probe smollm2 --pairs capital --n 128 --dry-run
    """
    from ..binding_cost import probe_cost
    from ..binding_pairs import PairsConfig
    from ..binding_probing import ProbeConfig, probe_binding

    config = ProbeConfig(
        PairsConfig(
            *(model, pairs, n, least, wordings, not unknown),
            *(_text(copy), seed, device, dtype),
        ),
        entity=entity,
        random_control=not no_random,
        in_context=not no_context,
        permutations=permutations,
    )
    if dry_run:
        tell_cost(probe_cost(config), json)
        return
    with progress("thousandths") as tell:
        result = probe_binding(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("binding-roles", result.document())
        return
    summary = result.summary
    tell_pairs(summary)
    table(
        f"what {model} says",
        {
            "asked": "asked",
            "log_prob": "log-prob of the name [95 %]",
            "hit": "first token right [95 %]",
            "chance_hit": "another pair's",
        },
        [said_cells(one) for one in summary["behaviour"]],
    )
    table(
        "read (S) against about to be said (P), by layer",
        {
            "layer": "layer",
            "cell": "MRR [95 %]",
            "mapped": "mapped",
            "ceiling": "ceiling",
            "floor": "floor",
            "null": "random",
            "cka": "CKA",
            "forward_rank": "rank fwd",
            "reverse_rank": "rank rev",
        },
        [with_interval(one, "mrr", "cell") for one in summary["layers"]],
    )
    say(
        "mapped: through a linear map of other entities; ceiling: same role, other wordings; "
        "floor: entities permuted; random: random weights; rank: of the answer's first token, the "
        "median"
    )
    took = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["seconds"].items())
    say(f"seconds  {took}")
    tell_end(result)


@app.command()
def recall(
    model: Model = "engram",
    pairs: Pairs = "capital",
    n: N = 128,
    known: Annotated[
        bool, typer.Option("--known", help="Only pairs that the model knows forward.")
    ] = False,
    least: Annotated[int, typer.Option(min=2, help="Fewest pairs that must remain.")] = 2,
    wordings: Wordings = 1,
    copy: Copy = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Ask every pair both ways: whole answers, ranks among all names, log-probabilities.

    Example: mnemoscope binding recall engram --pairs town_mayor --n 0

    Example: mnemoscope binding recall smollm2 --pairs book_author --known
    """
    from ..binding_pairs import PairsConfig
    from ..binding_recall import RecallConfig, recall_binding

    config = RecallConfig(
        PairsConfig(
            *(model, pairs, n, least, wordings, known),
            *(_text(copy), seed, device, dtype),
        )
    )
    with progress("prompts") as tell:
        result = recall_binding(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("binding-recall", result.document())
        return
    tell_pairs(result.summary)
    table(
        f"{result.summary['relation']} asked both ways of {model}",
        {
            "way": "direction",
            "stratum": "pairs",
            "pairs": "n",
            "exact_cell": "whole answer [95 %]",
            "mrr_cell": "MRR [95 %]",
            "mrr chance": "chance",
            "log_prob a token": "log-prob a token",
            "gain": "beyond another name",
        },
        [
            with_interval(with_interval(one, "exact"), "mrr")
            for one in result.summary["rows"]
            if "group" not in one["stratum"]
        ],
    )
    tell_end(result)


@app.command()
def swap(
    model: Model = "engram",
    pairs: Pairs = "capital",
    n: N = 64,
    least: Least = 16,
    wordings: Wordings = 2,
    sources: Annotated[
        str, typer.Option(help="Layers to read from, by comma; default: six, evenly spread.")
    ] = "",
    targets: Annotated[
        str, typer.Option(help="Layers to write to, by comma; default: six, evenly spread.")
    ] = "",
    ranks: Annotated[str, typer.Option(help="How much of a state gives way.")] = "1,4,16,full",
    forms: Annotated[str, typer.Option(help="raw, centred, mapped.")] = "raw,mapped",
    elsewhere: Annotated[
        str | None,
        typer.Option(help="A relation that asks for the same B without naming A (leakage)."),
    ] = None,
    steer: Annotated[
        bool, typer.Option("--steer", help="Also steer names along the map. Slow.")
    ] = False,
    strengths: Annotated[str, typer.Option(help="With --steer: how far.")] = "0.25,0.5,1",
    unknown: Unknown = False,
    copy: Copy = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runs: Runs = Path("runs"),
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write what predicts B over B's name in the reverse question: does the model then say A?

    Every arm stands beside the same state of another entity, and beside states that cannot carry A.

    Example: mnemoscope binding swap engram --pairs town_mayor --n 48

    Example: mnemoscope binding swap smollm2 --sources 10,15,20 --targets 5,10 --ranks full
    """
    from ..binding_cost import swap_cost
    from ..binding_pairs import PairsConfig
    from ..binding_swapping import SwapConfig, swap_binding

    config = SwapConfig(
        PairsConfig(
            *(model, pairs, n, least, wordings, not unknown),
            *(_text(copy), seed, device, dtype),
        ),
        sources=tuple(whole_numbers(sources)) if sources else (),
        targets=tuple(whole_numbers(targets)) if targets else (),
        ranks=tuple(whole_numbers(ranks.replace("full", "0"))),
        forms=tuple(words(forms)),
        elsewhere=elsewhere,
        steer=steer,
        strengths=tuple(numbers(strengths)),
    )
    if dry_run:
        tell_cost(swap_cost(config), json)
        return
    with progress("rows") as tell:
        result = swap_binding(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("binding-swap", result.document())
        return
    tell_pairs(result.summary)
    table(
        f"swaps in {model}, each at the layers that the other half of the pairs chose",
        {
            "origin": "state",
            "form": "form",
            "rank": "rank",
            "where": "from > into",
            "gain_cell": "gain, nats [95 %]",
            "beyond_cell": "beyond another entity's",
            "p": "p",
        },
        [swap_cells(one) for one in result.summary["arms"]],
    )
    say(
        "predicted: what predicts B; without_asked: less the span of A's own states; asked: A's "
        "state itself, what leakage can do; same_role: the name in another wording"
    )
    tell_end(result)


@app.command()
def entangle(
    model: Model = "engram",
    pairs: Pairs = "capital",
    n: N = 64,
    least: Least = 16,
    wordings: Wordings = 1,
    way: Annotated[str, typer.Option(help="forward or reverse: how facts are asked.")] = "forward",
    sources: Annotated[int, typer.Option(min=0, help="Facts taught, one step each; 0: none.")] = 16,
    targets: Annotated[int, typer.Option(min=2, help="Facts asked after each step.")] = 64,
    stepped: Annotated[str, typer.Option(help="Weights that learn: all or down.")] = "all",
    no_random: Annotated[
        bool, typer.Option("--no-random", help="Leave out the model with random weights.")
    ] = False,
    unknown: Unknown = False,
    copy: Copy = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    memory_mb: Annotated[
        int, typer.Option(min=16, help="Memory for activations and gradients.")
    ] = 1024,
    runs: Runs = Path("runs"),
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """How far does a step for one fact reach the others, and what goes with it?

    Example: mnemoscope binding entangle engram --pairs town_mayor --sources 8

    Example: mnemoscope binding entangle smollm2 --sources 0 --dtype float32
    """
    from ..binding_cost import entangle_cost
    from ..binding_entangling import EntangleConfig, entangle_binding
    from ..binding_pairs import PairsConfig

    config = EntangleConfig(
        PairsConfig(
            *(model, pairs, n, least, wordings, not unknown),
            *(_text(copy), seed, device, dtype),
        ),
        way=way,
        sources=sources,
        targets=targets,
        stepped=stepped,
        control=not no_random,
    )
    if dry_run:
        tell_cost(entangle_cost(config), json)
        return
    with progress("parts") as tell:
        result = entangle_binding(
            config, runs, memory_mb=memory_mb, force=force, say=say, tell=tell
        )
    if json:
        print_json("binding-entanglement", result.document())
        return
    tell_pairs(result.summary)
    rows = result.summary["layers"]
    names = {
        "kappa": "|kappa|",
        "kappa_random": "random weights",
        "summed": "summed",
        "gradient_cosine": "|gradient cosine|",
        "effective_rank": "effective rank",
        "token_share": "share by last token",
    }
    columns = {"layer": "layer"} | {name: names.get(name, name) for name in rows[0]}
    table(f"facts of {result.summary['relation']} in {model}", columns, rows)
    tell_end(result)


app.command()(binding_toys.context)
app.command("train-toy")(binding_toys.train_toy)
app.command()(binding_toys.chain)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
