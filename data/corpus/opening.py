"""Open an index folder, ours or infini-gram's, here or elsewhere; say what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from .block_cache import BlockCache
from .checks import check_hash, check_size, missing
from .index_info import (
    INFO_NAME,
    WIDTHS,
    IndexInfo,
    Mode,
    dtype_of,
    parse_info,
    separator_of,
)
from .index_place import Place, place_of, side_by_side, text_file
from .layout import (
    DIRECTORY_STRIDE,
    OPTIONAL,
    REQUIRED,
    ShardArrays,
    file_name,
    inverse_dtype,
    ratio_of,
)
from .ranged_array import Stored
from .remote_folder import CACHE_BYTES, RemoteFolder

_CHUNK = 1 << 20


def open_shards(
    folder: str | Path,
    *,
    verify: bool = False,
    width: int | None = None,
    mode: Mode | None = None,
    vocab_size: int | None = None,
    cache: BlockCache | None = None,
) -> tuple[IndexInfo, tuple[ShardArrays, ...]]:
    """Map an index, or prepare to read it in ranges; opening costs the same for any size.

    Sizes are always checked, hashes with `verify` (which reads every byte). A folder without
    `mnemoscope.json`, as infini-gram's builder writes it, is opened as foreign: its width is taken
    from the sizes of its files and width 1 is taken for bytes, unless `width` and `mode` are given;
    at width 4 the largest id is read from its counts, or from all its tokens, unless `vocab_size`
    is given. A foreign index of version 5 (documents reversed) cannot be told from version 4.

    Raises FileNotFoundError for a missing folder or file, ValueError for damage; for a folder
    elsewhere what `RemoteFolder` raises too.
    """
    place = place_of(folder, cache or BlockCache(CACHE_BYTES))
    return open_place(place, verify=verify, width=width, mode=mode, vocab_size=vocab_size)


def open_place(
    place: Place,
    *,
    verify: bool = False,
    width: int | None = None,
    mode: Mode | None = None,
    vocab_size: int | None = None,
) -> tuple[IndexInfo, tuple[ShardArrays, ...]]:
    """As `open_shards`, from the place of the folder."""
    if place.size(INFO_NAME) is not None:
        info = parse_info(place.read_bytes(INFO_NAME), f"{place.address}/{INFO_NAME}")
        place.expect({name: record.bytes for name, record in info.files.items()})
        _check_files(place, info, verify)
        numbers = place.numbered(REQUIRED[0])
    else:
        numbers = place.numbered(REQUIRED[0])
        info = _foreign_info(place, numbers, width, mode, vocab_size)

    def opened(number: int) -> ShardArrays:
        return _open_shard(place, number, info.width)

    remote = isinstance(place, RemoteFolder)
    shards = tuple(side_by_side(opened, numbers) if remote else map(opened, numbers))
    if len(shards) != info.n_shards:
        raise ValueError(
            f"{place.address} holds {len(shards)} shards and {INFO_NAME} tells of {info.n_shards}: "
            "copy the folder again as a whole."
        )
    if info.foreign and shards:
        _check_content(shards[0], place)
    return _counted(info, shards), shards


def _check_files(place: Place, info: IndexInfo, verify: bool) -> None:
    """Every file that the index was made with is there, of its size, and unchanged if read."""
    for name, record in info.files.items():
        found = place.size(name)
        if found is None:
            raise missing(place.address, name)
        check_size(f"{place.address}/{name}", found, record.bytes)
        if verify:
            check_hash(f"{place.address}/{name}", place.sha256(name), record.sha256)


def _counted(info: IndexInfo, shards: tuple[ShardArrays, ...]) -> IndexInfo:
    """`info` if its counts are those of the shards."""
    tokens = sum(shard.n_tokens for shard in shards)
    documents = sum(shard.n_documents for shard in shards)
    if (tokens, documents) != (info.n_tokens, info.n_documents):
        raise ValueError(
            f"the index holds {tokens} tokens in {documents} documents and {INFO_NAME} tells of "
            f"{info.n_tokens} in {info.n_documents}: copy the folder again as a whole."
        )
    return info


def _foreign_info(
    place: Place,
    numbers: tuple[int, ...],
    width: int | None,
    mode: Mode | None,
    vocab_size: int | None,
) -> IndexInfo:
    if not numbers:
        raise FileNotFoundError(
            f"{place.address} holds neither {INFO_NAME} nor {file_name('tokenized', 0)}: it is no "
            "index folder; check the path."
        )
    width = _foreign_width(place, numbers[0]) if width is None else width
    sizes = [[_size(place, kind, i) for kind in ("tokenized", "offset")] for i in numbers]
    return IndexInfo(
        mode=mode or ("bytes" if width == 1 else "tokens"),
        width=width,
        vocab_size=_vocabulary(place, numbers, width, vocab_size),
        n_shards=len(numbers),
        n_tokens=sum(size for size, _ in sizes) // dtype_of(width).itemsize,
        n_documents=sum(size for _, size in sizes) // 8,
        foreign=True,
    )


def _vocabulary(place: Place, numbers: tuple[int, ...], width: int, given: int | None) -> int:
    """As many ids as the width holds; at width 4 as many as the largest in the index asks for."""
    if width < 4:
        return separator_of(width)
    return given or 1 + max(_largest_id(place, number) for number in numbers)


def _largest_id(place: Place, number: int) -> int:
    """From the recorded counts, else by reading all tokens, which nobody waits for elsewhere."""
    counts, separator = file_name("unigram", number), separator_of(4)
    if place.size(counts) is not None:
        ids = [int(line.split()[0]) for line in place.read_bytes(counts).splitlines()]
        return max((i for i in ids if i != separator), default=0)
    if isinstance(place, RemoteFolder):
        raise ValueError(
            f"{place.address} does not say how large its vocabulary is: give the vocab_size of the "
            "tokenizer that it was made with (or name the tokenizer)."
        )
    tokens = place.array(file_name("tokenized", number), dtype_of(4))
    parts = (tokens[start : start + _CHUNK] for start in range(0, len(tokens), _CHUNK))
    return max(int(part.max(where=part != separator, initial=0)) for part in parts)


def _foreign_width(place: Place, number: int) -> int:
    """From the sizes: the table has one place of known bytes a token."""
    n_bytes, table = (_size(place, kind, number) for kind in ("tokenized", "table"))
    for width in WIDTHS:
        if n_bytes and table * width == n_bytes * ratio_of(n_bytes):
            return width
    raise ValueError(
        f"the files of shard {number} in {place.address} do not fit together ({n_bytes} bytes of "
        f"tokens, {table} of table): copy the folder again as a whole, or give the width."
    )


def _size(place: Place, kind: str, number: int) -> int:
    size = place.size(file_name(kind, number))
    if size is None:
        raise missing(place.address, file_name(kind, number))
    return size


def _open_shard(place: Place, number: int, width: int) -> ShardArrays:
    sizes = {kind: _size(place, kind, number) for kind in REQUIRED}
    n_tokens, rest = divmod(sizes["tokenized"], width)
    ratio, uneven = divmod(sizes["table"], n_tokens or 1)
    if not n_tokens or rest or uneven or not 1 <= ratio <= 8 or sizes["offset"] % 8:
        raise ValueError(
            f"shard {number} in {place.address} is damaged or not of width {width} ({sizes}): copy "
            "the folder again as a whole, or build it again."
        )
    names = {kind: file_name(kind, number) for kind in (*REQUIRED, *OPTIONAL)}
    here = {kind for kind in OPTIONAL if place.size(names[kind]) is not None}

    def optional(kind: str, dtype: str) -> Stored | None:
        return place.array(names[kind], dtype) if kind in here else None

    shard = ShardArrays(
        number=number,
        tokens=place.array(names["tokenized"], dtype_of(width), scattered=True),
        table=place.array(names["table"], "u1", ratio, scattered=True),
        offsets=place.array(names["offset"], "<u8"),
        directory=optional("directory", "<u8"),
        inverse=_inverse(place, names["inverse"], n_tokens) if "inverse" in here else None,
        metadata=optional("metadata", "u1"),
        metaoff=optional("metaoff", "<u8"),
        unigram_file=text_file(place, names["unigram"]) if "unigram" in here else None,
    )
    _check_lengths(shard, place)
    if not shard.remote:
        _check_content(shard, place)
    return shard


def _check_lengths(shard: ShardArrays, place: Place) -> None:
    keys = -(-shard.n_tokens // DIRECTORY_STRIDE)
    if (shard.directory is not None and len(shard.directory) != keys) or (
        shard.metaoff is not None and len(shard.metaoff) != shard.n_documents
    ):
        raise _not_together(shard, place)


def _check_content(shard: ShardArrays, place: Place) -> None:
    """Documents begin with separators, as the offsets say."""
    separators = shard.offsets[[0, -1]] // shard.width
    first, last = (int(separator) for separator in separators)
    if first or last >= shard.n_tokens:
        raise _not_together(shard, place)
    if (shard.tokens[[first, last]] != separator_of(shard.width)).any():
        raise _not_together(shard, place)


def _not_together(shard: ShardArrays, place: Place) -> ValueError:
    return ValueError(
        f"the files of shard {shard.number} in {place.address} do not belong together: copy the "
        "folder again as a whole, or build it again."
    )


def _inverse(place: Place, name: str, n_tokens: int) -> Stored | None:
    """Ranks of positions; not used elsewhere, where it saves no reads."""
    if isinstance(place, RemoteFolder):
        return None
    inverse = place.array(name, inverse_dtype(n_tokens), scattered=True)
    if len(inverse) != n_tokens:
        raise ValueError(
            f"{place.address}/{name} has {len(inverse)} entries for {n_tokens} tokens: build again."
        )
    return inverse
