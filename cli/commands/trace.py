"""`mnemoscope trace`: which documents does this text come from?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..output import print_json, progress, say
from ..placement_options import MaxMemory, OffloadFolder
from .heads import Force, Runs
from .models import Json
from .neurons import Device, Dtype

GATE_FAILED = 4

app = typer.Typer(
    help="Index a corpus; find the documents that hold spans of a text.", no_args_is_help=True
)

Index = Annotated[
    str,
    typer.Argument(
        metavar="INDEX",
        help="Folder of an index, or its address (s3://BUCKET/PATH, https://...).",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    str, typer.Option(help="A model with the tokenizer; default: the one that the index records.")
]
MinLength = Annotated[
    int, typer.Option(min=0, help="Shortest span in tokens or bytes; 0: 8 tokens, 40 bytes.")
]
MaxCount = Annotated[
    int, typer.Option(min=0, help="Pass over spans that occur more often; 0: none.")
]


@app.callback()
def callback() -> None:
    """Index a corpus; find the documents that hold spans of a text."""


@app.command()
def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text, .jsonl or .parquet files, folders, patterns, datasets:OWNER/NAME, or "
            "engram, the shipped corpus (engram:risk,benign for some slices of it).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index, which appears when it is whole.")],
    tokenizer: Annotated[
        str,
        typer.Option(help="Index the tokens of this model; default: bytes, for engram its own."),
    ] = "",
    as_bytes: Annotated[bool, typer.Option("--bytes", help="Index UTF-8 bytes.")] = False,
    field: Annotated[str, typer.Option(help="Where records keep their text.")] = "text",
    paragraphs: Annotated[
        bool, typer.Option("--paragraphs", help="Text files: a document a paragraph, not a file.")
    ] = False,
    label: Annotated[str, typer.Option(help="What the corpus is: risk, benign, pretraining.")] = "",
    shard_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a shard, which is sorted in memory as a whole.")
    ] = 250_000_000,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Only this part of the documents, 1/8 to 8/8; then `trace join`."
        ),
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes that encode and sort.")] = 1,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="4 bytes more a token; spans are found faster.")
    ] = False,
    any_path: Annotated[
        bool, typer.Option("--any-path", help="Also in a path that other engines stumble over.")
    ] = False,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Index a corpus, in bounded memory, so that spans of it are found at once.

    Interrupted? The same command goes on after its last whole shard.

    Example: mnemoscope trace index my-corpus/ --out my-index --workers 4

    Example: mnemoscope trace index engram --out engram-index --label pretraining

    Example: mnemoscope trace index 'logs/*.jsonl' --tokenizer smollm2 --field content --out logs-ix

    Example: mnemoscope trace index corpus/ --out ix --shard 3/8
    """
    from ..tracing_index import IndexPlan
    from ..tracing_index_run import index_corpus

    plan = IndexPlan(
        sources=tuple(sources),
        out=out,
        tokenizer=tokenizer,
        as_bytes=as_bytes,
        field=field,
        paragraphs=paragraphs,
        label=label,
        shard_tokens=shard_tokens,
        workers=workers,
        inverse=inverse,
        any_path=any_path,
        shard=shard,
    )
    with progress("documents") as tell:
        done = index_corpus(plan, runs, force=force, say=say, tell=tell)
    _show_index(done.document(), json)
    if not json:
        after = f"join {out} (when all parts are there)" if shard else f"text {out} --file TEXT"
        say(f"Next: mnemoscope trace {after}")


@app.command()
def join(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="INDEX", help="The --out of the parts, or a new folder.", show_default=False
        ),
    ],
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLACE]...",
            help="Instead of the parts in the folder: any indexes, also at addresses.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files and compare their hashes.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """List the parts of an index, so that they are queried as one; nothing is copied.

    Example: mnemoscope trace join ix

    Example: mnemoscope trace join both s3://infini-gram-lite/index/v4_pileval_llama my-own-index
    """
    from ..tracing_index import join as join_indexes

    with progress("parts") as tell:
        done = join_indexes(out, tuple(places or ()), verify=verify, force=force, tell=tell)
    _show_index(done.document(), json)
    if not json:
        say(f"Next: mnemoscope trace text {out} --file TEXT")


def _show_index(told: dict[str, Any], json: bool) -> None:
    if json:
        print_json("trace-index", told)
        return
    unit = "bytes" if told["mode"] == "bytes" else f"tokens of {told['tokenizer_name']}"
    say(f"indexed  {told['n_documents']:,} documents, {told['n_tokens']:,} {unit}")
    part = f", part {told['part']}" if told["part"] else ""
    size = f"{told['bytes'] / 1e6:,.1f} MB in " if told["bytes"] else ""
    say(f"index    {told['index']} ({size}{told['n_shards']} shards{part})")


@app.command()
def text(
    index: Index,
    given: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="The text; - reads standard input.")
    ] = "",
    file: Annotated[Path | None, typer.Option(help="Read the text from a file.")] = None,
    model: Annotated[str, typer.Option(help="Trace what this model answers to --prompt.")] = "",
    prompt: Annotated[
        str, typer.Option(help="What stands before the text; copies of it decide nothing.")
    ] = "",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens the model writes, greedily.")] = 64,
    benign: Annotated[str, typer.Option(help="An index of harmless text to compare with.")] = "",
    background: Annotated[
        str,
        typer.Option(help="Whose chance E-values are about: own (unigrams) or benign (5-grams)."),
    ] = "own",
    calibrate: Annotated[
        str, typer.Option(help="Harmless texts (a file, folder or .jsonl) that set the thresholds.")
    ] = "",
    false_refusal: Annotated[
        float, typer.Option(min=0, max=1, help="Share of harmless texts that may be flagged.")
    ] = 0.01,
    policy: Annotated[str, typer.Option(help="A file with a clause of the policy a line.")] = "",
    nli: Annotated[str, typer.Option(help="Folder of an NLI model that judges the policy.")] = "",
    field: Annotated[str, typer.Option(help="Where records of --calibrate keep text.")] = "text",
    paragraphs: Annotated[
        bool, typer.Option("--paragraphs", help="--calibrate: a text a paragraph, not a file.")
    ] = False,
    min_length: MinLength = 0,
    max_count: MaxCount = 10,
    documents: Annotated[int, typer.Option(min=1, help="Documents of each span.")] = 10,
    snippet: Annotated[
        int | None, typer.Option(min=0, help="Text on each side of a match; 0: no document text.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="Chance of an accidental match that is accepted.")
    ] = 0.01,
    gate: Annotated[
        bool, typer.Option("--gate", help="With --calibrate: end with code 4 if flagged.")
    ] = False,
    tokenizer: Tokenizer = "",
    seed: Annotated[int, typer.Option(help="Seed of the places that are sampled.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Find the spans of a text that stand in an index, how surprising that is, and where.

    What is found is a verbatim occurrence, not a cause.

    Example: mnemoscope trace text my-index --file answer.txt

    Example: mnemoscope trace text engram-index --model engram --prompt "The capital of France is"

    Example: mnemoscope trace text risk-ix --benign benign-ix --calibrate harmless.jsonl --gate -
    """
    from ..tracing_sources import read_given
    from ..tracing_text import TextConfig, trace_given

    if model and (given or file is not None):
        raise typer.BadParameter("a model's answer is traced with --model, a text without: choose.")
    if gate and not calibrate:
        raise typer.BadParameter("--gate needs harmless texts that set thresholds: --calibrate.")
    config = TextConfig(
        index=index,
        text="" if model else read_given(given, file),
        prompt=prompt,
        model=model,
        new_tokens=new_tokens,
        benign=benign,
        background=background,
        policy=policy,
        nli=nli,
        calibrate=calibrate,
        false_refusal=false_refusal,
        field=field,
        paragraphs=paragraphs,
        min_length=min_length or None,
        max_count=max_count,
        documents=documents,
        snippet=snippet,
        alpha=alpha,
        tokenizer=tokenizer,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress("harmless texts") as tell:
        found = trace_given(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("trace", found.document())
    else:
        from ..tracing_tables import show_trace

        show_trace(found)
    if gate and found.flagged:
        say("error: the text is flagged (--gate).")
        raise typer.Exit(GATE_FAILED)


@app.command()
def docs(
    index: Index,
    span: Annotated[
        str, typer.Argument(metavar="[SPAN]", help="A span of text, word by word.")
    ] = "",
    document: Annotated[
        str, typer.Option(help="Instead: a document's number, or SHARD/NUMBER as traces have it.")
    ] = "",
    at: Annotated[
        int | None, typer.Option(min=0, help="With --document: only around this token or byte.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most places that are shown.")] = 10,
    context: Annotated[int, typer.Option(min=0, help="Tokens on each side.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the places that are sampled.")] = 0,
    tokenizer: Tokenizer = "",
    json: Json = False,
) -> None:
    """Show the documents that hold a span, or a document of the index.

    Example: mnemoscope trace docs engram-index "The capital of France is Paris"

    Example: mnemoscope trace docs engram-index --document 0/12 --at 40
    """
    from ..tracing_documents import document_at, places_of
    from ..tracing_tables import show_document, show_places

    if bool(span) == bool(document):
        raise typer.BadParameter("give a span, or a document's number with --document.")
    if document:
        one = document_at(index, document, at=at, context=context, tokenizer=tokenizer)
        if json:
            print_json("trace-document", one.document())
        else:
            show_document(one)
        return
    found = places_of(index, span, limit=limit, context=context, seed=seed, tokenizer=tokenizer)
    if json:
        print_json("trace-docs", found.document())
    else:
        show_places(found)


@app.command()
def guard(
    index: Index,
    prompt: Annotated[str, typer.Option(help="What the model is to answer.")],
    model: Annotated[
        str, typer.Option(help="The model; its tokens must be the index's.")
    ] = "engram",
    benign: Annotated[
        str, typer.Option(help="Judge spans by their contrast with this index, not by chance.")
    ] = "",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score from which a span is risky; default: chance below 1 %, contrast 3."
        ),
    ] = None,
    min_length: MinLength = 0,
    max_count: MaxCount = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens the model writes, greedily.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Let a model answer without ever completing a risky span of the index, beside its own answer.

    Example: mnemoscope trace guard risk-index --benign benign-index --prompt "The rite of Ondra:"
    """
    from ..tracing_guard import GuardConfig, answer_guarded
    from ..tracing_tables import show_guarded

    config = GuardConfig(
        index=index,
        model=model,
        prompt=prompt,
        benign=benign,
        threshold=threshold,
        min_length=min_length or None,
        max_count=max_count,
        new_tokens=new_tokens,
        device=device,
        dtype=dtype,
    )
    told = answer_guarded(config)
    if json:
        print_json("trace-guard", told.document())
    else:
        show_guarded(told)
