"""The work behind `trace index`: which texts, spelled how, into which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.corpus.build import TOKENS_PER_SHARD, build_index
from ..data.corpus.checks import reserved_words
from ..data.corpus.index_info import IndexInfo
from ..models.errors import MnemoscopeError
from ..models.load import load_tokenizer
from ..models.tokens import PlainEncoder, vocabulary_sha256
from ..probes.elicitation import Progress
from .tracing_sources import SHIPPED, documents_of, one_sentence, tokenizer_name


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

    @property
    def spelled_by(self) -> str:
        """The model whose tokenizer spells the texts; empty for bytes.

        Raises `MnemoscopeError` where both bytes and a tokenizer are asked for.
        """
        if self.as_bytes and self.tokenizer:
            raise MnemoscopeError("--bytes and --tokenizer exclude each other: leave one out.")
        shipped = self.sources[0].partition(":")[0] == SHIPPED
        return self.tokenizer or (SHIPPED if shipped and not self.as_bytes else "")


@dataclass(frozen=True)
class IndexResult:
    """A finished index."""

    folder: Path
    info: IndexInfo

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        info = self.info
        kept = ("mode", "width", "vocab_size", "n_shards", "n_tokens", "n_documents", "label")
        names = (*kept, "tokenizer_name", "tokenizer_sha256", "built")
        size = sum(record.bytes for record in info.files.values())
        return {"index": str(self.folder), "bytes": size} | {
            name: getattr(info, name) for name in names
        }


def make_index(plan: IndexPlan, *, force: bool, tell: Progress) -> IndexResult:
    """Build the index, or go on with one that was interrupted; it appears whole.

    Raises `MnemoscopeError` with the reason.
    """
    _check(plan, force)
    spelled_by = plan.spelled_by
    tokenizer = load_tokenizer(spelled_by) if spelled_by else None
    with one_sentence():
        info = build_index(
            documents_of(plan.sources, field=plan.field, paragraphs=plan.paragraphs),
            plan.out,
            encode=None if tokenizer is None else PlainEncoder(tokenizer),
            vocab_size=None if tokenizer is None else len(tokenizer),
            tokenizer_name=tokenizer_name(spelled_by),
            tokenizer_sha256="" if tokenizer is None else vocabulary_sha256(tokenizer),
            tokens_per_shard=plan.shard_tokens,
            workers=plan.workers,
            inverse=plan.inverse,
            label=plan.label,
            progress=tell,
            force=force,
            any_path=plan.any_path,
        )
    return IndexResult(plan.out, info)


def _check(plan: IndexPlan, force: bool) -> None:
    """What the library says in its own options, said in those of the command."""
    out = plan.out.expanduser()
    if out.exists() and not force and (out.is_file() or any(out.iterdir())):
        raise MnemoscopeError(f"{out} exists already: choose another folder, or use --force.")
    words = () if plan.any_path else reserved_words(out)
    if words:
        raise MnemoscopeError(
            f"the path {out.resolve()} holds the word {words[0]!r}, by which infini-gram tells "
            "files apart, so that it could not open this index: choose another folder, or use "
            "--any-path."
        )
