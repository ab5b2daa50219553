"""`mnemoscope neurons`: which MLP units know a relation, and what happens without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine_options import Backend, Remote
from ..option_lists import numbers, whole_numbers, words
from ..output import print_json, progress, say, say_where, show_table
from ..placement_options import MaxMemory, OffloadFolder
from .heads import Force, Runs
from .models import Json, Model

app = typer.Typer(help="Find, ablate and show relation neurons.", no_args_is_help=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


@app.callback()
def callback() -> None:
    """Find, ablate and show relation neurons."""


@app.command()
def find(
    context: typer.Context,
    model: Model,
    relations: Annotated[
        str,
        typer.Option(help="Shipped relations or JSON files, by comma; default: twelve shipped."),
    ] = "",
    subjects: Annotated[int, typer.Option(min=4, help="Subjects of each relation and part.")] = 40,
    site: Annotated[str, typer.Option(help="neuron, gate_pre, up or mlp_out.")] = "neuron",
    pooling: Annotated[
        str,
        typer.Option(
            help="mean_nobos, mean_all, last, subject_last, relation_span, pre_object or max."
        ),
    ] = "mean_nobos",
    k: Annotated[
        int, typer.Option(min=0, help="Units in a relation's set; 0: 0.359 % of all units.")
    ] = 0,
    pseudo: Annotated[int, typer.Option(min=0, help="Glued fake relations to compare with.")] = 40,
    resamples: Annotated[int, typer.Option(min=0, help="Subsamples for the stable core.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of split, halves and fake relations.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = None,
    remote: Remote = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    memory_mb: Annotated[
        int, typer.Option(min=16, help="Memory for activations; the result is the same.")
    ] = 1024,
    paper: Annotated[
        bool, typer.Option("--paper", help="Do as Liu et al. 2025 did, ablation included.")
    ] = False,
    lre: Annotated[
        Path | None,
        typer.Option(help="With --paper: a copy of LRE, for the paper's own relations."),
    ] = None,
    cumulativity: Annotated[
        bool, typer.Option("--cumulativity", help="With --paper: the sweep of set sizes. Slow.")
    ] = False,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Rank every unit by how well it tells a relation's prompts from others, in any wording.

    Interrupted? The same command goes on where it stopped.

    Example: mnemoscope neurons find engram --relations capital,currency,continent --subjects 20

    Example: mnemoscope neurons find engram --paper --relations capital,continent,element_symbol
    """
    if paper:
        _refuse_fixed(context)
        _find_as_paper(
            model=model,
            relations=tuple(words(relations)),
            lre=lre,
            cumulativity=cumulativity,
            seed=seed,
            device=device,
            dtype=dtype,
            memory_mb=memory_mb,
            runs=runs,
            force=force,
            json=json,
        )
        return
    if lre or cumulativity:
        raise typer.BadParameter("--lre and --cumulativity belong to --paper: add it.")
    from ..neuron_finding import RELATIONS, FindConfig, find_neurons

    config = FindConfig(
        model=model,
        relations=tuple(words(relations)) or RELATIONS,
        subjects=subjects,
        site=site,
        pooling=pooling,
        k=k or None,
        pseudo=pseudo,
        resamples=resamples,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("prompts") as tell:
        found = find_neurons(config, runs, memory_mb=memory_mb, force=force, say=say, tell=tell)
    if json:
        print_json("relation-neurons", found.document())
        return
    tax = {row["relation"]: row for row in found.summary["wording_tax"]}
    rows = [
        {**one, "new": tax[one["relation"]]["ap_new"], "set": _short(one["text"])}
        for one in found.summary["verdicts"]
    ]
    _table(
        f"relation neurons of {model}, {found.summary['k']} of {found.summary['units']:,} units",
        {
            "relation": "relation",
            "score": "AP at rank k",
            "limit": "pseudo limit",
            "p": "p",
            "new": "AP new wording",
            "set": "set found",
        },
        rows,
    )
    say("set found: the AP at rank k exceeds that of 95 % of glued pseudo-relations")
    say_where(found.folder)
    say(f"Next: mnemoscope neurons ablate {model} --sets {found.folder}")


@app.command()
def ablate(
    model: Model,
    sets: Annotated[
        list[Path],
        typer.Option("--sets", help="A run of `neurons find`, or neuron-set files; repeatable."),
    ],
    only: Annotated[str, typer.Option(help="Relations of the run to take, by comma.")] = "",
    sizes: Annotated[
        str, typer.Option(help="Growing numbers of units; default: k/2, k and 3k of the run.")
    ] = "",
    mode: Annotated[str, typer.Option(help="mean (of neutral text) or zero.")] = "mean",
    factors: Annotated[
        str, typer.Option(help="Factors for weakening and amplifying.")
    ] = "0,0.5,2,4",
    wording: Annotated[str, typer.Option(help="A wording that found no unit.")] = "cloze 2",
    facts: Annotated[int, typer.Option(min=4, help="Facts asked of each relation.")] = 30,
    candidates: Annotated[int, typer.Option(min=1, help="Wrong answers beside each.")] = 10,
    controls: Annotated[int, typer.Option(min=2, help="Matched random sets.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of facts, candidates and controls.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Take a relation's units out and measure what its answers lose, beside matched random units.

    Example: mnemoscope neurons ablate engram --sets runs/relation-neurons-1a2b3c4d5e --only capital
    """
    from ..neuron_ablating import AblateConfig, ablate_neurons
    from ..neuron_sets import sets_in
    from ..neuron_verdicts import SHORT

    config = AblateConfig(
        model=model,
        sizes=tuple(whole_numbers(sizes)) if sizes else (),
        mode=mode,
        factors=tuple(numbers(factors)),
        wording=wording,
        facts=facts,
        candidates=candidates,
        controls=controls,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    chosen = sets_in(sets, runs, words(only))
    with progress("measurements") as tell:
        result = ablate_neurons(config, chosen, runs, force=force, say=say, tell=tell)
    if json:
        print_json("neuron-effects", result.document())
        return
    summary = result.summary
    _table(
        f"{model} without the first {summary['largest']} units of each set, by {summary['mode']}",
        {
            "relation": "relation",
            "set": "set",
            "loss": "loss [95 %]",
            "specificity": "specific",
            "right": "right",
            "lost": "lost",
            "perplexity": "ppl",
            "text": "verdict",
        },
        [{**_effect_cells(one), "text": SHORT[one["text"]]} for one in summary["effects"]],
    )
    say(
        "set: found by the search; loss: nats of margin beyond matched random units, positive "
        "hurts; specific: from -1 to 1, above 0 it hurts its relation more than others; right: "
        "greedy answers before > after; lost: answer, type, form; ppl: perplexity of neutral text, "
        f"{summary['perplexity']:.3g} before"
    )
    say_where(result.folder)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A finished run folder of `neurons find`.")],
    relation: Annotated[str, typer.Option(help="Which relation's units to show.")] = "",
    top: Annotated[int, typer.Option(min=1, help="How many units.")] = 20,
    json: Json = False,
) -> None:
    """Show the best units of a relation with their nulls, or the verdicts of all relations.

    Example: mnemoscope neurons show runs/relation-neurons-1a2b3c4d5e --relation capital --top 10
    """
    from ..neuron_finding import read_found

    found = read_found(run)
    if not relation:
        if json:
            print_json("relation-neurons", found.document())
            return
        columns = {"relation": "relation", "score": "AP at rank k", "limit": "pseudo limit"}
        columns |= {"p": "p", "text": "verdict"}
        _table(str(run), columns, found.summary["verdicts"])
        say("Next: add --relation NAME to see its units.")
        return
    units = found.units(relation, top)
    if json:
        print_json("relation-units", {"relation": relation, "units": units.to_dicts()})
        return
    columns = {"rank": "rank", "layer": "layer", "unit": "unit", "sign": "sign", "score": "AP"}
    columns |= {"ap_new": "AP new", "wording_ap": "wording", "length_ap": "length", "q": "q"}
    _table(f"{relation}: its best units", columns, units.to_dicts())
    say(
        "AP: in the worst wording that found the unit; AP new: new subjects in new wordings; "
        "wording, length: as a detector of one wording, of long subjects (0.5: none)"
    )


def _refuse_fixed(context: typer.Context) -> None:
    """The paper's procedure leaves these options no choice."""
    from ..neuron_paper import FIXED

    sources = {name: context.get_parameter_source(name) for name in FIXED}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"--paper decides {', '.join(f'--{name}' for name in given)}: leave out one or other."
        )


def _find_as_paper(
    *,
    model: str,
    relations: tuple[str, ...],
    lre: Path | None,
    cumulativity: bool,
    seed: int,
    device: str,
    dtype: str,
    memory_mb: int,
    runs: Path,
    force: bool,
    json: bool,
) -> None:
    from ..neuron_paper import PaperConfig, find_as_paper

    config = PaperConfig(
        model=model,
        relations=relations,
        lre=None if lre is None else str(lre),
        cumulativity=cumulativity,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("steps") as tell:
        result = find_as_paper(config, runs, memory_mb=memory_mb, force=force, say=say, tell=tell)
    if json:
        print_json("paper-relation-neurons", result.document())
        return
    summary = result.summary
    _table(
        f"{model} as in Liu et al. 2025: top {summary['k']} of {summary['units']:,} units at zero",
        {
            "relation": "relation",
            "held out": "held out",
            "right before": "right",
            "drop": "drop, own %",
            "drop, other sets": "other sets %",
            "drop, random": "random %",
            "lost": "lost",
            "tied at k": "tied at k",
        },
        summary["effects"],
    )
    say("drop: share of the right answers that is lost; negative: answers are won")
    say_where(result.folder)


def _table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]]) -> None:
    """Some fields of the rows under short names; a dash where there is no value."""
    cells = [
        ["-" if (value := row.get(name)) is None else value for name in columns] for row in rows
    ]
    show_table(title, tuple(columns.values()), cells)


def _effect_cells(one: Mapping[str, Any]) -> dict[str, object]:
    lost = "/".join(str(one[name]) for name in ("answer lost", "type lost", "format lost"))
    return {
        **one,
        "set": _short(one["set"]),
        "loss": f"{one['loss beyond controls']:.2g} [{one['low']:.2g}, {one['high']:.2g}]",
        "right": f"{one['right before']} > {one['right after']}",
        "lost": lost,
    }


def _short(verdict: str) -> str:
    """A verdict of the search in a word."""
    from ...probes.neuron_nulls import FOUND, NOTHING_FOUND

    return {FOUND: "yes", NOTHING_FOUND: "no"}.get(verdict, verdict.partition(":")[0])
