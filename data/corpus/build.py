"""Build an index from a stream of documents, in bounded memory, and go on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

from .build_site import BuildPlan, BuildSite, check_target
from .checks import check_path, full_disk_errors
from .documents import Document
from .encoding import Encode, Encoded, encoded_documents, process_pool
from .index_info import IndexInfo, dtype_of, separator_of
from .parts import PartRecord
from .shard_files import DocumentDigest, EncodedShard, ShardWriter, SortPlan, sort_shard

Progress = Callable[[int, int], None]
"""Called with (documents taken, of how many); 0 for a stream whose length is not known."""

TOKENS_PER_SHARD = 250_000_000


def silent(done: int, total: int) -> None:
    """The progress callback that tells nobody."""


def build_index(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    encode: Encode | None = None,
    vocab_size: int | None = None,
    tokenizer_name: str = "",
    tokenizer_sha256: str = "",
    width: int | Literal["auto"] = "auto",
    tokens_per_shard: int = TOKENS_PER_SHARD,
    workers: int = 1,
    directory: bool = True,
    inverse: bool = False,
    label: str = "",
    part: PartRecord | None = None,
    progress: Progress = silent,
    force: bool = False,
    any_path: bool = False,
) -> IndexInfo:
    """Write an index of `documents` to `folder`, which appears whole, by one rename.

    `encode` turns a text into ids below `vocab_size`, without special tokens; without it the index
    is over UTF-8 bytes. A shard holds whole documents and at most `tokens_per_shard` tokens (one
    document may be longer). `workers` processes encode and sort. `directory` (0.016 bytes a token)
    and `inverse` (4) make queries faster. `label` says what the corpus is: "risk", "benign", a
    stage of training. With `part` the documents are those of a part of a corpus (see `parts`),
    whose index `joined_index.join_parts` lists with the others'; it may be empty.

    Memory: some megabytes of text, and per worker the sorting of one shard: 5 bytes a token over
    bytes, 10 at width 2, 14 at width 4 (20 when more than 65,536 distinct ids occur); 4 more with
    `inverse`. Disk: the index. A killed or failed build leaves a hidden folder beside `folder`;
    the same call goes on from its finished shards and gives the same bytes as an uninterrupted
    one.

    Raises FileExistsError for a folder that is there without `force`, ValueError for settings that
    do not fit, a path that other engines stumble over (unless `any_path`), documents without any
    text, ids outside the vocabulary and documents that changed since an unfinished build, OSError
    when the disk is full.
    """
    target = Path(folder).expanduser().resolve()
    plan = BuildPlan(
        mode="bytes" if encode is None else "tokens",
        width=_width(width, vocab_size, encode),
        vocab_size=separator_of(1) if vocab_size is None else vocab_size,
        tokenizer_name=tokenizer_name,
        tokenizer_sha256=tokenizer_sha256,
        label=label,
        tokens_per_shard=tokens_per_shard,
        directory=directory,
        inverse=inverse,
        part=part,
    )
    if min(workers, tokens_per_shard) < 1:
        raise ValueError("workers and tokens_per_shard must be at least 1.")
    if not any_path:
        check_path(target)
    check_target(target, force=force)
    with full_disk_errors(target), BuildSite(target, plan) as site:
        with process_pool(workers, encode) as pool:
            work = _Work(site, encode, pool, workers)
            shards = work.shards(_told(documents, progress))
        info = _info(site, shards)
        site.publish(info)
    progress(info.n_documents, info.n_documents)
    return info


def _width(width: int | Literal["auto"], vocab_size: int | None, encode: Encode | None) -> int:
    """Bytes of an id: as asked, or the fewest that hold the vocabulary and the separator."""
    if encode is None:
        if vocab_size is not None or width not in ("auto", 1):
            raise ValueError(
                "an index over bytes has width 1 and no vocab_size: leave both out, or give encode."
            )
        return 1
    if vocab_size is None or not 0 < vocab_size <= separator_of(4):
        raise ValueError(f"give the vocab_size of the tokenizer that encodes, got {vocab_size}.")
    if width == "auto":
        return next(w for w in (1, 2, 4) if vocab_size <= separator_of(w))
    if vocab_size > separator_of(dtype_of(width).itemsize):
        raise ValueError(
            f"a vocabulary of {vocab_size} does not fit width {width}, which holds "
            f"{separator_of(width):,} ids: use width={2 * width}, or 'auto'."
        )
    return width


def _told(documents: Iterable[Document], progress: Progress) -> Iterator[Document]:
    total = len(documents) if isinstance(documents, Sized) else 0
    for done, document in enumerate(documents, 1):
        yield document
        progress(done, total)


@dataclass
class _Work:
    """The two steps over the shards: tokens are written in order, suffixes sorted as they can."""

    site: BuildSite
    encode: Encode | None
    pool: ProcessPoolExecutor | None
    workers: int
    sorting: list[Future[int]] = field(default_factory=list)

    def shards(self, documents: Iterator[Document]) -> list[EncodedShard]:
        """All shards, finished."""
        shards = self.site.encoded()
        for shard in shards:
            _skip(documents, shard, self.site.place)
            self.sort(shard)
        plan = self.site.plan
        rest = encoded_documents(
            documents,
            self.encode,
            vocab_size=plan.vocab_size,
            width=plan.width,
            pool=self.pool,
            workers=self.workers,
        )
        for shard in _new_shards(self.site, rest, first=len(shards)):
            shards.append(shard)
            self.sort(shard)
        for answer in self.sorting:
            answer.result()
        return shards

    def sort(self, shard: EncodedShard) -> None:
        """Sort here, or have it sorted; an earlier one that failed raises now."""
        plan = SortPlan(self.site.plan.width, self.site.plan.directory, self.site.plan.inverse)
        given = (self.site.files, self.site.records, shard.number, plan)
        if self.pool is None:
            sort_shard(*given)
            return
        for answer in self.sorting:
            if answer.done():
                answer.result()
        self.sorting.append(self.pool.submit(sort_shard, *given))


def _new_shards(site: BuildSite, rest: Iterator[Encoded], first: int) -> Iterator[EncodedShard]:
    """Write the tokens of the remaining documents, shard by shard."""
    writer: ShardWriter | None = None
    number = first
    try:
        for document, ids in rest:
            size = 1 + (len(document.text.encode("utf-8", "replace")) if ids is None else len(ids))
            if writer and writer.n_tokens + size > site.plan.tokens_per_shard:
                yield writer.finish(site.records, full=True)
                writer, number = None, number + 1
            writer = writer or ShardWriter(site.files, number, site.plan.width)
            writer.add(document, ids)
        if writer:
            yield writer.finish(site.records, full=False)
    finally:
        if writer:
            writer.close()


def _skip(documents: Iterator[Document], shard: EncodedShard, place: Path) -> None:
    """Go past the documents of a shard that an earlier run wrote, and see that they are the same.

    A shard that ended for want of documents must end there again.
    """
    digest, taken = DocumentDigest(), 0
    for document in islice(documents, shard.n_documents):
        digest.add(document)
        taken += 1
    ended = shard.full or next(documents, None) is None
    if taken != shard.n_documents or digest.hexdigest() != shard.documents_sha256 or not ended:
        raise ValueError(
            f"the documents are not those of the unfinished build in {place}: give the same ones "
            "in the same order, or delete that folder to start over."
        )


def _info(site: BuildSite, shards: list[EncodedShard]) -> IndexInfo:
    n_tokens = sum(shard.n_tokens for shard in shards)
    n_documents = sum(shard.n_documents for shard in shards)
    plan = site.plan
    if n_tokens == n_documents and plan.part is None:
        site.remove()
        raise ValueError(
            f"the corpus holds no text ({n_documents} documents): check the sources and the field."
        )
    files = [site.sorted_files(shard.number) for shard in shards]
    return IndexInfo(
        mode=plan.mode,
        width=plan.width,
        vocab_size=plan.vocab_size,
        n_shards=len(shards),
        n_tokens=n_tokens,
        n_documents=n_documents,
        tokenizer_name=plan.tokenizer_name,
        tokenizer_sha256=plan.tokenizer_sha256,
        label=plan.label,
        built=f"mnemoscope {version('mnemoscope')}",
        files={name: record for found in files for name, record in sorted(found.items())},
        part=plan.part,
    )
