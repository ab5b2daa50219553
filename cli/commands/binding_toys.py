"""The `mnemoscope binding` commands that ask about no stored pair: contexts, toys, sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..binding_display import table, tell_end, tell_toys, with_interval
from ..option_lists import whole_numbers, words
from ..output import print_json, progress, say
from .heads import Force, Runs
from .models import Json, Model
from .neurons import Device, Dtype

Seed = Annotated[int, typer.Option(help="Seed of what is drawn, and of resampling.")]


def context(
    model: Model = "engram",
    task: Annotated[str, typer.Option(help="home, capital, boxes or a JSON file.")] = "home",
    contexts: Annotated[int, typer.Option(min=4, help="Contexts drawn.")] = 100,
    slots: Annotated[
        int, typer.Option(min=0, help="Names in the contexts for routes, order and form; 0: none.")
    ] = 5,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Does the model bind names to what it just read of them, and through what?

    Example: mnemoscope binding context smollm2 --contexts 40

    Example: mnemoscope binding context smollm2 --task boxes --slots 0
    """
    from ..binding_contexts import ContextConfig, bind_in_context

    config = ContextConfig(model, task, contexts, slots, seed, device, dtype)
    with progress("contexts") as tell:
        result = bind_in_context(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("binding-context", result.document())
        return
    table(
        f"interventions on contexts of two names, {model}",
        {
            "intervention": "intervention",
            "condition": "condition",
            "moved_cell": "moved as predicted [95 %]",
            "kept_cell": "kept as predicted",
            "as told accuracy": "as told",
        },
        [
            with_interval(
                with_interval(one, "moved accuracy", "moved_cell"), "kept accuracy", "kept_cell"
            )
            for one in result.summary["interventions"]
        ],
    )
    many = result.summary["many"]
    if many is not None:
        columns = {"layer": "layer", "positional": "positional", "lexical": "lexical"}
        columns |= {"reflexive": "reflexive", "asked": "as asked", "score": "fit"}
        columns |= {"uniform": "fit of nothing"}
        table(f"routes to the answer, {many['slots']} names", columns, many["routes"])
    tell_end(result)


def train_toy(
    arms: Annotated[
        str, typer.Option(help="Models of the ladder, by comma, or all.")
    ] = "surface,tied,untied,jepa",
    preset: Annotated[str, typer.Option(help="miniature, small or paper (for a GPU).")] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds, by comma; intervals are over them.")] = "0",
    steps: Annotated[int, typer.Option(min=0, help="Steps of each; 0: the arm's own.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runs: Runs = Path("runs"),
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many steps, and what they took us.")
    ] = False,
    json: Json = False,
) -> None:
    """Train small models on facts told one way, and ask the other: who can say it?

    Interrupted? The same command goes on where it stopped.

    Example: mnemoscope binding train-toy --arms tied,untied --preset miniature

    Example: mnemoscope binding train-toy --arms all --seeds 0,1,2 --dry-run
    """
    from ...organisms.reversal_arms import ARMS
    from ..binding_toys import ToyConfig, toy_costs, train_toys

    config = ToyConfig(
        tuple(ARMS) if arms == "all" else tuple(words(arms)),
        preset,
        tuple(whole_numbers(seeds)),
        steps or None,
        device,
    )
    if dry_run:
        tell_toys(toy_costs(config), json)
        return
    with progress("steps") as tell:
        result = train_toys(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("reversal-toy", result.document())
        return
    table(
        f"told one way, asked the other (preset {preset}, {len(config.seeds)} seeds)",
        {
            "arm": "arm",
            "parameters": "parameters",
            "steps": "steps",
            "told": "told: MRR",
            "reverse_cell": "reverse: MRR [95 %]",
            "reverse_hit": "reverse: whole",
            "chance_in_group": "chance",
            "consistency": "consistency",
            "cpu_seconds": "CPU s",
        },
        [with_interval(one, "reverse") for one in result.summary["arms"]],
    )
    tell_end(result)


def chain(
    model: Model = "engram",
    toy: Annotated[
        bool, typer.Option("--toy", help="Tell the facts to toy models instead of asking MODEL.")
    ] = False,
    arms: Annotated[str, typer.Option(help="With --toy: models, by comma.")] = "surface,tied",
    steps: Annotated[int, typer.Option(min=1, help="With --toy: steps of each.")] = 3000,
    problems: Annotated[int, typer.Option(min=1, help="Problems asked about.")] = 20,
    branching: Annotated[int, typer.Option(min=0, help="Bridges; 0: the preset's.")] = 0,
    preset: Annotated[
        str, typer.Option(help="context, small or paper; default: context, or small with --toy.")
    ] = "",
    reason: Annotated[
        bool, typer.Option("--reason", help="Ask for the way before the answer.")
    ] = False,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 8,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Numbers that follow from sums: read in a prompt, or told to the weights of a toy.

    Example: mnemoscope binding chain smollm2 --problems 10

    Example: mnemoscope binding chain --toy --arms tied,jepa
    """
    from ..binding_chaining import ChainConfig, ChainToyConfig, chain_in_context, chain_in_weights

    if toy:
        on = "cpu" if device == "auto" else device
        toys = ChainToyConfig(tuple(words(arms)), preset or "small", seed, steps, on)
        with progress("steps") as tell:
            result = chain_in_weights(toys, runs, force=force, say=say, tell=tell)
        columns = {"arm": "arm", "kind": "asked", "cell": "MRR [95 %]", "hit": "right"}
        columns |= {"chance": "chance", "asked": "questions"}
        title = "told to the weights: rank of the right number"
    else:
        asked = ChainConfig(
            *(model, preset or "context", problems, branching, reason),
            *(new_tokens, seed, device, dtype),
        )
        with progress("questions") as tell:
            result = chain_in_context(asked, runs, force=force, say=say, tell=tell)
        columns = {"stratum": "asked", "n": "n", "cell": "right [95 %]", "unread": "no number"}
        columns |= {"permuted": "dealt out", "chance": "chance"}
        columns |= {arm: arm for arm in result.summary["arms"]}
        title = f"numbers that follow from the prompt, {model} and exact solvers"
    if json:
        print_json("chaining-toy" if toy else "chaining-context", result.document())
        return
    rows = result.summary["rows"] if toy else result.summary["strata"]
    middle = "mrr" if toy else "right"
    table(title, columns, [with_interval(one, middle, "cell") for one in rows])
    tell_end(result)
