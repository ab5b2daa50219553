"""Several indexes queried as one: parts that workers built on their own, or any others.

A joined index is a folder with one small file, `joined.json`, that lists the folders or addresses
of its parts; none of their files is read through, moved or copied. Counts add over all shards of
all parts, so the answers are those of one index over all documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .block_cache import BlockCache
from .index_info import INFO_NAME, IndexInfo, info_json, parse_info
from .index_place import LocalFolder, Place, place_of, side_by_side
from .layout import ShardArrays
from .opening import open_place
from .parts import Part
from .remote_folder import RemoteFolder, is_address
from .shard_files import write_record

JOINED_NAME = "joined.json"
FORMAT = 1
Progress = Callable[[int, int], None]

_SAME = ("mode", "width", "tokenizer_sha256")
"""What indexes must have in common to answer one query; an unknown tokenizer passes."""


@dataclass(frozen=True)
class JoinedPart:
    """A part: its folder (relative to the list's) or address, and the hash of its description."""

    place: str
    record_sha256: str


def open_joined(
    folder: str | Path | Sequence[str | Path],
    *,
    verify: bool = False,
    vocab_size: int | None = None,
    cache: BlockCache,
) -> tuple[IndexInfo, tuple[ShardArrays, ...]]:
    """The shards of an index, of the parts of a joined one, or of several, and what they are.

    Raises what `opening.open_shards` raises, and ValueError for parts that do not go together or
    were built again since they were joined.
    """
    given = [folder] if isinstance(folder, str | Path) else list(folder)
    places: list[tuple[Place, str]] = []
    for one in given:
        place = place_of(one, cache)
        parts = read_parts(place)
        if parts is None:
            places.append((place, ""))
        else:
            places += [(place_of(_beside(place, p.place), cache), p.record_sha256) for p in parts]
    remote = any(isinstance(place, RemoteFolder) for place, _ in places)

    def opened(one: tuple[Place, str]) -> tuple[IndexInfo, tuple[ShardArrays, ...]]:
        info, shards = open_place(one[0], verify=verify, vocab_size=vocab_size)
        if one[1] and record_sha256(info) != one[1]:
            raise ValueError(
                f"{one[0].address} was built again since the index was joined: join it again."
            )
        return info, shards

    found = side_by_side(opened, places) if remote else [opened(one) for one in places]
    shards = tuple(shard for _, shards in found for shard in shards)
    if not shards:
        raise ValueError(f"{_named(given)} holds no documents: there is nothing to query.")
    infos = [info for info, _ in found]
    return merged([place.address for place, _ in places], infos), shards


def join_parts(
    folder: str | Path,
    places: Sequence[str | Path] = (),
    *,
    verify: bool = False,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> IndexInfo:
    """Check that indexes can be queried together, and list them in `folder`; copies nothing.

    Without `places` these are the parts that `build_index` made in the folder, all of one cut of a
    corpus: none may be missing. `verify` reads all files and compares hashes.

    Raises FileExistsError for another list that is there without `force`, FileNotFoundError for a
    missing part (with the command's words for it) and ValueError for parts that do not fit.
    """
    target = Path(folder).expanduser().resolve()
    found = [str(place) for place in places] or _parts_in(target)
    cache = BlockCache(0)
    infos: list[IndexInfo] = []
    for done, place in enumerate(found):
        progress(done, len(found))
        near = place if is_address(place) else target / place if not places else Path(place)
        infos.append(open_place(place_of(near, cache), verify=verify)[0])
    info = merged(found, infos)
    if not places:
        _check_cut(found, infos)
    if not info.n_shards or info.n_tokens == info.n_documents:
        raise ValueError(f"the parts of {target} hold no text: check the sources and the field.")
    listed = [
        {"place": _kept(place, target, bool(places)), "record_sha256": record_sha256(one)}
        for place, one in zip(found, infos, strict=True)
    ]
    _write({"format": FORMAT, "parts": listed}, target, force=force)
    progress(len(found), len(found))
    return info


def read_parts(place: Place) -> list[JoinedPart] | None:
    """The parts that a folder lists; None where it lists none. Raises ValueError for damage."""
    if place.size(INFO_NAME) is not None or place.size(JOINED_NAME) is None:
        return None
    path = f"{place.address}/{JOINED_NAME}"
    try:
        raw = json.loads(place.read_bytes(JOINED_NAME).decode())
        if raw["format"] != FORMAT:
            raise ValueError(f"{path} is of a later format: update Mnemoscope.")
        return [JoinedPart(**part) for part in raw["parts"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): join the parts again.") from error


def merged(places: Sequence[str], infos: Sequence[IndexInfo]) -> IndexInfo:
    """What indexes are together; a single one is itself.

    Raises ValueError where they are over different tokens.
    """
    if len(infos) == 1:
        return infos[0]
    first = infos[0]
    for place, info in zip(places, infos, strict=True):
        for name in _SAME:
            ours, theirs = getattr(first, name), getattr(info, name)
            if ours != theirs and (name != "tokenizer_sha256" or (ours and theirs)):
                raise ValueError(
                    f"{places[0]} and {place} differ in {name} ({ours}, {theirs}), so that no "
                    "query means the same in both: build them alike, or query them one by one."
                )
    known = next((info for info in infos if info.tokenizer_sha256), first)
    return replace(
        known,
        vocab_size=max(info.vocab_size for info in infos),
        n_shards=sum(info.n_shards for info in infos),
        n_tokens=sum(info.n_tokens for info in infos),
        n_documents=sum(info.n_documents for info in infos),
        label=" + ".join(dict.fromkeys(info.label for info in infos if info.label)),
        files={
            f"{place}/{name}": record
            for place, info in zip(places, infos, strict=True)
            for name, record in info.files.items()
        },
        foreign=any(info.foreign for info in infos),
        part=None,
    )


def record_sha256(info: IndexInfo) -> str:
    """One hash of all that an index says of itself, the hashes of its files among it."""
    return hashlib.sha256(info_json(info).encode()).hexdigest()


def finished_part(folder: Path) -> IndexInfo | None:
    """What the index in a part's folder says of itself; None where no worker finished it."""
    path = folder / INFO_NAME
    return parse_info(path.read_bytes(), str(path)) if path.is_file() else None


def _parts_in(target: Path) -> list[str]:
    """The names of the part folders in `target`, all of them."""
    names = sorted(path.name for path in target.glob("part-*-of-*") if path.is_dir())
    if not names:
        raise FileNotFoundError(
            f"{target} holds no parts of an index: build them with a part each, or name the "
            "indexes to join."
        )
    of = int(names[0].rpartition("-")[2])
    wanted = [Part(number, of).folder for number in range(1, of + 1)]
    missing = [name for name in wanted if finished_part(target / name) is None]
    if missing:
        numbers = ", ".join(f"{int(name.split('-')[1])}/{of}" for name in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise FileNotFoundError(f"not built yet: part {numbers}{more}: build them, then join.")
    if extra := sorted(set(names) - set(wanted)):
        raise ValueError(
            f"{target} holds parts of two cuts ({wanted[0]} and {extra[0]}): move one of them away."
        )
    return wanted


def _check_cut(places: Sequence[str], infos: Sequence[IndexInfo]) -> None:
    """Parts of one corpus, cut alike, each once."""
    for place, info in zip(places, infos, strict=True):
        if info.part is None or Part(info.part.number, info.part.of).folder != place:
            raise ValueError(f"{place} is not the part that its name says: build it again.")
        if info.part.cut_sha256 != (infos[0].part and infos[0].part.cut_sha256):
            raise ValueError(
                f"{place} was built from other sources or settings than {places[0]}, so that "
                "documents may be missing or counted twice: build it again."
            )


def _kept(place: str, target: Path, named: bool) -> str:
    """How a part is written down: relative where it lies in the folder, which may then be moved
    or uploaded as a whole; else by its address or its whole path."""
    if is_address(place) or not named:
        return place
    path = Path(place).expanduser().resolve()
    return path.relative_to(target).as_posix() if path.is_relative_to(target) else str(path)


def _beside(place: Place, part: str) -> str:
    """Where a part lies that is listed at `place`."""
    if is_address(part):
        return part
    if isinstance(place, LocalFolder):
        return str(place.folder / part)
    return f"{place.address}/{part}"


def _write(listed: dict[str, Any], target: Path, *, force: bool) -> None:
    path = target / JOINED_NAME
    if (target / INFO_NAME).is_file():
        raise FileExistsError(f"{target} is an index itself: list the parts in another folder.")
    if path.is_file() and not force and json.loads(path.read_text("utf-8")) != listed:
        raise FileExistsError(f"{path} lists other parts already: use force to replace it.")
    target.mkdir(parents=True, exist_ok=True)
    write_record(path, listed)


def _named(given: Sequence[str | Path]) -> str:
    return ", ".join(map(str, given))
