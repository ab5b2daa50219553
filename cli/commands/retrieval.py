"""`mnemoscope retrieval`: which heads read the context, and which can forget it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..engine_options import Backend, Remote
from ..option_lists import whole_numbers, words
from ..output import print_json, progress, say, say_where, show_table
from ..placement_options import MaxMemory, OffloadFolder
from .heads import Force, Runs
from .models import Json, Model
from .neurons import Device, Dtype

app = typer.Typer(
    help="Find the heads that read the context; stream the others.", no_args_is_help=True
)

Lengths = Annotated[
    str, typer.Option(help="Tokens of the contexts, by comma; default: two that fit the model.")
]
Memory = Annotated[int, typer.Option(min=16, help="Memory for keys, values and logits of rows.")]


@app.callback()
def callback() -> None:
    """Find the heads that read the context; stream the others."""


@app.command()
def score(
    model: Model = "engram",
    lengths: Lengths = "",
    needles: Annotated[int, typer.Option(min=2, help="Needles; errors are over needles.")] = 40,
    kind: Annotated[
        str, typer.Option(help="literal, non-literal (shares no word with its question) or both.")
    ] = "literal",
    depths: Annotated[int, typer.Option(min=1, help="Strata of depth.")] = 5,
    per_haystack: Annotated[
        int, typer.Option(min=1, help="Needles that share a haystack and its prefill.")
    ] = 5,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each needle is asked about, in other places.")
    ] = 2,
    distractors: Annotated[int, typer.Option(min=0, help="Like statements nobody asks for.")] = 0,
    text: Annotated[
        Path | None, typer.Option(help="A text file to hide needles in; default: neutral text.")
    ] = None,
    knockouts: Annotated[
        int, typer.Option(min=0, help="Trials in which every head's look at the needle is cut.")
    ] = 0,
    top: Annotated[int, typer.Option(min=1, help="Most heads in a head set.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of needles, places and resampling.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = None,
    remote: Remote = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Hide needles in haystacks, ask for them, and score what every head reads and writes.

    Interrupted? The same command goes on where it stopped.

    Example: mnemoscope retrieval score engram

    Example: mnemoscope retrieval score smollm2 --lengths 512,1536 --kind both

    Example: mnemoscope retrieval score engram --knockouts 12
    """
    from ..retrieval_scoring import ScoreConfig, score_retrieval

    config = ScoreConfig(
        model=model,
        lengths=tuple(whole_numbers(lengths)) if lengths else (),
        needles=needles,
        kind=kind,
        depths=depths,
        needles_per_haystack=per_haystack,
        rounds=rounds,
        distractors=distractors,
        text=None if text is None else str(text),
        knockouts=knockouts,
        top=top,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("measurements") as tell:
        result = score_retrieval(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("retrieval-scores", result.document())
        return
    summary = result.summary
    columns = {"head": "head", "role": "role", "copy": "copy [95 %]", "copy_q": "q"}
    columns |= {"first": "first", "continuation": "later", "locate": "locate", "emit": "emit"}
    columns |= {"locos": "writes", "induction": "induction"}
    _table(f"heads of {model} that copy needles, of {summary['heads']}", columns, result.best(12))
    say(
        "copy: share of the answer's tokens copied (Wu et al.); first, later: its first token, its "
        "others; locate, emit: needle contrast of question rows, needle mass of answer rows; "
        "writes: logits onto the answer from the needle beyond elsewhere (LOCOS)"
    )
    for line in summary["notes"]:
        say(line)
    say_where(result.folder)
    say(f"Next: mnemoscope retrieval compare {result.folder}")


@app.command()
def gates(
    model: Model = "engram",
    method: Annotated[
        str,
        typer.Option(help="costs (leave one head out, no training) or train (DuoAttention gates)."),
    ] = "costs",
    sink: Annotated[int, typer.Option(min=0, help="First keys that a streaming head keeps.")] = 16,
    recent: Annotated[int, typer.Option(min=1, help="Last keys that it keeps.")] = 64,
    streaming: Annotated[
        float, typer.Option(min=0, max=1, help="Share of key/value heads to make streaming.")
    ] = 0.5,
    threshold: Annotated[
        float | None, typer.Option(help="Instead: heads from this value on stay full.")
    ] = None,
    lengths: Lengths = "",
    passkeys: Annotated[int, typer.Option(min=1, max=10, help="Passkeys in a sample.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Words in a passkey.")] = 8,
    samples: Annotated[int, typer.Option(min=1, help="costs: samples measured.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="train: steps of each seed.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="train: seeds, for stability.")] = 2,
    full: Annotated[
        str, typer.Option(help="train: teacher_full (released code) or self_full (paper).")
    ] = "teacher_full",
    labels: Annotated[str, typer.Option(help="train: suffix or answers.")] = "suffix",
    seed: Annotated[int, typer.Option(help="Seed of passkeys and their places.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    memory_mb: Memory = 512,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Find the key/value heads that need the whole context, and write a pattern folder.

    Interrupted? The same command goes on where it stopped.

    Example: mnemoscope retrieval gates engram --samples 4

    Example: mnemoscope retrieval gates engram --method train --steps 200 --seeds 3
    """
    from ..retrieval_gates import GateConfig, find_gates

    config = GateConfig(
        model=model,
        method=method,
        sink=sink,
        recent=recent,
        streaming=streaming,
        threshold=threshold,
        lengths=tuple(whole_numbers(lengths)) if lengths else (),
        passkeys=passkeys,
        words=words,
        samples=samples,
        steps=steps,
        seeds=seeds,
        full=full,
        labels=labels,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("steps" if method == "train" else "samples") as tell:
        result = find_gates(config, runs, memory_mb=memory_mb, force=force, say=say, tell=tell)
    if json:
        print_json("retrieval-gates", result.document())
        return
    columns = {"kv_head": "kv head", "value": result.summary["quantity"], "kept": "context"}
    _table(f"key/value heads of {model}, in need of the context first", columns, result.best(12))
    for line in result.summary["notes"]:
        say(line)
    say_where(result.folder)
    say(f"pattern  {result.pattern}")
    say(f"Next: mnemoscope retrieval stream {model} --pattern {result.pattern}")


@app.command()
def compare(
    runs_and_files: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs of `retrieval score` and `gates` of one model, and score files of others.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str, typer.Option(help="Scores of the runs to compare, by comma; default: the usual ones.")
    ] = "",
    k: Annotated[int, typer.Option(min=1, help="Heads in a method's top.")] = 10,
    sizes: Annotated[str, typer.Option(help="Growing numbers of ablated heads.")] = "1,2,4,8",
    mode: Annotated[
        str,
        typer.Option(help="Ablation: mean, zero, uniform, mean_query, knock_out or streaming."),
    ] = "mean",
    where: Annotated[
        str, typer.Option(help="Rows ablated: question, decode or question+decode.")
    ] = "question+decode",
    trials: Annotated[int, typer.Option(min=2, help="Trials of the score run to ablate in.")] = 24,
    draws: Annotated[int, typer.Option(min=2, help="Matched random sets of heads.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of random sets and resampling.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    memory_mb: Memory = 1024,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Lay all methods side by side, and see which one finds the heads that the answer hangs on.

    The yard-stick: log-probability of the right answer against the number of ablated heads, beside
    random heads of the same layers and norms. Files: score JSON of Retrieval_Head and its forks,
    CoRe JSON, QRHead lists (YAML), pattern folders, head sets.

    Example: mnemoscope retrieval compare runs/retrieval-scores-1a2b3c4d5e
    """
    from ..retrieval_comparing import CompareConfig, compare_retrieval

    config = CompareConfig(
        methods=tuple(words(methods)),
        k=k,
        sizes=tuple(whole_numbers(sizes)),
        mode=mode,
        where=where,
        trials=trials,
        draws=draws,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("trials") as tell:
        result = compare_retrieval(
            config, runs_and_files, runs, memory_mb=memory_mb, force=force, say=say, tell=tell
        )
    if json:
        print_json("retrieval-comparison", result.document())
        return
    columns = {"method": "method", "top": "best heads", "area": "loss beyond random [95 %]"}
    columns |= {"p": "p", "loss": f"loss at {result.summary['largest']}", "random": "random"}
    columns |= {"perplexity": "ppl"}
    _table(
        f"what the answers of {result.summary['model']} lose without each method's heads, nats",
        columns,
        result.methods(),
    )
    say(
        "loss beyond random: mean over the numbers of heads; p: share of random sets that cost as "
        f"much; ppl: perplexity of neutral text, {result.summary['perplexity']} before"
    )
    for line in result.summary["notes"]:
        say(line)
    say_where(result.folder)


@app.command()
def stream(
    model: Model = "engram",
    pattern: Annotated[
        Path | None,
        typer.Option(help="A pattern folder, or a run of `retrieval gates`.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file to continue; default: a needle haystack.")
    ] = None,
    length: Annotated[
        int, typer.Option(min=0, help="Tokens of the haystack; 0: three quarters.")
    ] = 0,
    streaming: Annotated[
        float | None, typer.Option(min=0, max=1, help="Another share of streaming heads.")
    ] = None,
    sink: Annotated[int | None, typer.Option(min=0, help="Another number of first keys.")] = None,
    recent: Annotated[int | None, typer.Option(min=1, help="Another number of last keys.")] = None,
    prefill: Annotated[
        str, typer.Option(help="What streaming heads see of the prompt: full, chunked, streaming.")
    ] = "streaming",
    chunk: Annotated[int, typer.Option(min=1, help="Tokens read at once.")] = 2048,
    tail: Annotated[
        int, typer.Option(min=1, help="Last tokens, read after streaming heads have forgotten.")
    ] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the haystack.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Generate with a cache whose streaming heads forget; say what it holds against the full one.

    Example: mnemoscope retrieval stream engram --pattern runs/retrieval-gates-1a2b3c4d5e
    """
    from ..retrieval_streaming import StreamConfig, stream_text

    if pattern is None:
        raise typer.BadParameter("--pattern: name a pattern folder or a run of `gates`.")
    config = StreamConfig(
        model=model,
        pattern=pattern,
        text=text,
        length=length,
        streaming=streaming,
        sink=sink,
        recent=recent,
        prefill=prefill,
        chunk=chunk,
        tail=tail,
        new_tokens=new_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    told = stream_text(config)
    if json:
        print_json("retrieval-stream", told.document())
        return
    say(f"prompt     {told.prompt_tokens} tokens; {told.pattern_text}")
    say(f"full       {told.full_text!r}")
    say(f"streaming  {told.streaming_text!r}" + ("  (the same)" if told.same else ""))
    if told.gold is not None:
        say(f"the needle's answer is {told.gold!r}")
    say(
        f"held       {told.streaming_bytes:,} bytes of keys and values against "
        f"{told.full_bytes:,} ({told.streaming_bytes / told.full_bytes:.0%})"
    )


def _table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]]) -> None:
    """Some fields of the rows under short names; a dash where there is no value."""
    cells = [
        ["-" if (value := row.get(name)) is None else value for name in columns] for row in rows
    ]
    show_table(title, tuple(columns.values()), cells)
