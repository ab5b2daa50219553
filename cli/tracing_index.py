"""The work behind `trace index`: which texts, spelled how, into which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.corpus.build import TOKENS_PER_SHARD, build_index
from ..data.corpus.checks import reserved_words
from ..data.corpus.index_info import INFO_NAME, IndexInfo
from ..data.corpus.joined_index import finished_part, join_parts
from ..data.corpus.parts import Part, PartRecord, parse_part
from ..models.errors import MnemoscopeError
from ..models.load import load_tokenizer
from ..models.tokens import PlainEncoder, vocabulary_sha256
from ..probes.elicitation import Progress
from .tracing_sources import SHIPPED, documents_of, one_sentence, part_record, tokenizer_name


@dataclass(frozen=True)
class IndexPlan:
    """What `trace index` was asked for.

    Spelled in bytes where no `tokenizer` is named; the shipped corpus in engram's tokens then,
    unless `as_bytes`.
    """

    sources: tuple[str, ...]
    out: Path
    tokenizer: str = ""
    as_bytes: bool = False
    field: str = "text"
    paragraphs: bool = False
    label: str = ""
    shard_tokens: int = TOKENS_PER_SHARD
    workers: int = 1
    inverse: bool = False
    any_path: bool = False
    shard: str = ""

    @property
    def spelled_by(self) -> str:
        """The model whose tokenizer spells the texts; empty for bytes.

        Raises `MnemoscopeError` where both bytes and a tokenizer are asked for.
        """
        if self.as_bytes and self.tokenizer:
            raise MnemoscopeError("--bytes and --tokenizer exclude each other: leave one out.")
        shipped = self.sources[0].partition(":")[0] == SHIPPED
        return self.tokenizer or (SHIPPED if shipped and not self.as_bytes else "")

    @property
    def part(self) -> Part | None:
        """The part that is built here; None for the whole. Raises `MnemoscopeError`."""
        with one_sentence():
            return parse_part(self.shard) if self.shard else None

    @property
    def folder(self) -> Path:
        """Where the index goes: a part has a folder of its own in that of the whole."""
        return self.out / self.part.folder if self.part else self.out


@dataclass(frozen=True)
class IndexResult:
    """A finished index, or a finished part of one."""

    folder: Path
    info: IndexInfo

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        info = self.info
        kept = ("mode", "width", "vocab_size", "n_shards", "n_tokens", "n_documents", "label")
        names = (*kept, "tokenizer_name", "tokenizer_sha256", "built")
        size = sum(record.bytes for record in info.files.values())
        part = info.part and f"{info.part.number}/{info.part.of}"
        return {"index": str(self.folder), "part": part, "bytes": size} | {
            name: getattr(info, name) for name in names
        }


def make_index(plan: IndexPlan, *, force: bool, tell: Progress) -> IndexResult:
    """Build the index or a part of it, or go on with one that was interrupted; it appears whole.

    A part that is finished is left as it is. Raises `MnemoscopeError` with the reason.
    """
    check_out(plan, force=force)
    spelled_by = plan.spelled_by
    tokenizer = load_tokenizer(spelled_by) if spelled_by else None
    given: dict[str, Any] = {"field": plan.field, "paragraphs": plan.paragraphs}
    record = part_record(plan.sources, part=plan.part, **given) if plan.part else None
    if not force and (done := _finished(plan, record)):
        return done
    with one_sentence():
        info = build_index(
            documents_of(plan.sources, part=plan.part, **given),
            plan.folder,
            encode=None if tokenizer is None else PlainEncoder(tokenizer),
            vocab_size=None if tokenizer is None else len(tokenizer),
            tokenizer_name=tokenizer_name(spelled_by),
            tokenizer_sha256="" if tokenizer is None else vocabulary_sha256(tokenizer),
            tokens_per_shard=plan.shard_tokens,
            workers=plan.workers,
            inverse=plan.inverse,
            label=plan.label,
            part=record,
            progress=tell,
            force=force,
            any_path=plan.any_path,
        )
    return IndexResult(plan.folder, info)


def join(
    out: Path, places: tuple[str, ...], *, verify: bool, force: bool, tell: Progress
) -> IndexResult:
    """List parts, or any indexes over the same tokens, as one index.

    Raises `MnemoscopeError` with the reason.
    """
    with one_sentence():
        return IndexResult(out, join_parts(out, places, verify=verify, force=force, progress=tell))


def _finished(plan: IndexPlan, record: PartRecord | None) -> IndexResult | None:
    """The part as an earlier worker left it.

    Raises `MnemoscopeError` where it is a part of another corpus, or was built otherwise.
    """
    with one_sentence():
        info = finished_part(plan.folder.expanduser()) if record else None
    if info is None:
        return None
    as_bytes = not plan.spelled_by
    if info.part != record or info.label != plan.label or (info.mode == "bytes") != as_bytes:
        raise MnemoscopeError(
            f"{plan.folder} was built from other sources or settings: choose another folder, or "
            "use --force."
        )
    return IndexResult(plan.folder, info)


def check_out(plan: IndexPlan, *, force: bool) -> None:
    """Raise `MnemoscopeError` for a folder that is there without `force`, or a path that other
    engines stumble over: what the library says too, said in the options of the command. A part
    that is finished may be there."""
    out = plan.folder.expanduser()
    finished = bool(plan.shard) and (out / INFO_NAME).is_file()
    if out.exists() and not (force or finished) and (out.is_file() or any(out.iterdir())):
        raise MnemoscopeError(f"{out} exists already: choose another folder, or use --force.")
    words = () if plan.any_path else reserved_words(out)
    if words:
        raise MnemoscopeError(
            f"the path {out.resolve()} holds the word {words[0]!r}, by which infini-gram tells "
            "files apart, so that it could not open this index: choose another folder, or use "
            "--any-path."
        )
