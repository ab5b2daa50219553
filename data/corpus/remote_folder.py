"""An index folder in object storage or on a web server, read in ranges through `fsspec`.

Nothing is downloaded as a whole but small files. What is read comes in blocks, those that lie side
by side in one request, all requests of a question at once, and is kept in a bounded cache. A file
is looked up before its first block and once a minute while it is read: an object that is replaced
meanwhile is told, not mixed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64

from .block_cache import Block, BlockCache
from .checks import missing
from .ranged_array import RangedArray, Traffic

CACHE_BYTES = 256 << 20
BLOCK_BYTES = {"tokenized": 1 << 13, "metadata": 1 << 13}
"""Reads of these fall anywhere, a few bytes at a time; all others have larger blocks."""
DEFAULT_BLOCK_BYTES = 1 << 16
LARGEST_READ = 4 << 20
CHECK_SECONDS = 60.0
ATTEMPTS = 3

_VERSION = ("size", "ETag", "etag", "Last-Modified", "LastModified", "mtime", "created", "md5Hash")
_CHANGED = (
    "{} was changed, or copied in part, since the index was made or opened: copy the index as a "
    "whole, and open it again."
)
T = TypeVar("T")


def is_address(place: str) -> bool:
    """Whether `place` is a URL (`s3://bucket/ix`), not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


class RemoteFolder:
    """The files under an address. Every method may be called from several threads.

    Raises ImportError where the package that speaks the protocol is missing, FileNotFoundError,
    PermissionError or ConnectionError with the address where something cannot be read.
    """

    def __init__(self, address: str, cache: BlockCache | None = None) -> None:
        self.address = address.rstrip("/")
        self.cache = cache or BlockCache(CACHE_BYTES)
        self.traffic = Traffic()
        self._lock = Lock()
        self._sizes: dict[str, int | None] = {}
        self._system, self._root = _file_system(self.address, anonymous=False)
        self._lists = "http" not in self._system.protocol
        self._complete = False

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Take these for all files, where the place itself does not list them (a web server)."""
        if not self._lists:
            self._sizes, self._complete = {name: sizes[name] for name in sizes}, True

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is no such file."""
        if self._lists:
            self._list()
        elif not self._complete and name not in self._sizes:
            self._sizes[name] = self._asked_size(name)
        return self._sizes.get(name)

    def numbered(self, kind: str) -> tuple[int, ...]:
        """The numbers i for which there is a file `kind.i`, ascending."""
        if self._lists:
            self._list()
            found = [name.partition(".") for name in self._sizes]
            return tuple(sorted(int(i) for name, _, i in found if name == kind and i.isdecimal()))
        number = 0
        while self.size(f"{kind}.{number}") is not None:
            number += 1
        return tuple(range(number))

    def read_bytes(self, name: str) -> bytes:
        """A whole, small file."""
        (content,) = self._fetched([(name, None, None)])
        return content

    def sha256(self, name: str) -> str:
        """The hash of a file, which is read through in pieces."""
        digest, size = hashlib.sha256(), self.size(name) or 0
        for start in range(0, size, LARGEST_READ):
            digest.update(self._fetched([(name, start, min(size, start + LARGEST_READ))])[0])
        return digest.hexdigest()

    def array(
        self, name: str, dtype: np.dtype[Any] | str, columns: int = 0, *, scattered: bool = False
    ) -> RangedArray:
        """A file as an array. Raises FileNotFoundError where it is missing."""
        size = self.size(name)
        if size is None:
            raise missing(self.address, name)
        return RangedArray(_RemoteFile(self, name, size), dtype, columns)

    def ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, stop) of a file, all at once."""
        return self._fetched([(name, start, stop) for start, stop in ranges])

    def version(self, name: str) -> tuple[object, ...]:
        """What tells one state of a file from another: its size and whatever the place adds."""
        path = f"{self._root}/{name}"
        self._system.invalidate_cache(path)
        info = self._told(name, lambda: self._system.info(path))
        return tuple(str(info[key]) for key in _VERSION if key in info)

    def _list(self) -> None:
        """Ask once for all files and their sizes."""
        with self._lock:
            if not self._complete:
                found = self._told("", lambda: self._system.ls(self._root, detail=True))
                self._sizes = {
                    str(one["name"]).rpartition("/")[2]: int(one["size"] or 0)
                    for one in found
                    if one["type"] == "file"
                }
                self._complete = True

    def _asked_size(self, name: str) -> int | None:
        try:
            info = self._told(name, lambda: self._system.info(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None
        if info.get("size") is None:
            raise ConnectionError(
                f"the server does not say how long {self.address}/{name} is: serve the index from "
                "one that answers ranged reads."
            )
        return int(info["size"])

    def _fetched(self, asked: Sequence[tuple[str, int | None, int | None]]) -> list[bytes]:
        """The bytes of every (file, start, stop), asked for together; failures are tried again."""
        found: list[Any] = [None] * len(asked)
        going = list(range(len(asked)))
        for attempt in range(ATTEMPTS):
            parts = self._ranged([asked[i] for i in going])
            for i, part in zip(going, parts, strict=True):
                found[i] = part
            going = [i for i in going if _may_pass(found[i])]
            if not going or attempt + 1 == ATTEMPTS:
                break
            time.sleep(0.2 * 4**attempt)
        for (name, start, stop), content in zip(asked, found, strict=True):
            if isinstance(content, BaseException):
                raise self._sentence(content, name) from content
            self._check_length(name, start, stop, len(content))
        with self._lock:
            self.traffic.reads += len(asked)
            self.traffic.rounds += 1
            self.traffic.bytes += sum(map(len, found))
        return found

    def _ranged(self, asked: Sequence[tuple[str, int | None, int | None]]) -> list[Any]:
        """Per range its bytes, or what went wrong."""
        names, starts, stops = (list(column) for column in zip(*asked, strict=True))
        paths = [f"{self._root}/{name}" for name in names]
        try:
            return list(self._system.cat_ranges(paths, starts, stops, on_error="return"))
        except Exception as error:  # a whole batch that fails, whatever the protocol raises
            return [error] * len(paths)

    def _check_length(self, name: str, start: int | None, stop: int | None, found: int) -> None:
        if start is None or stop is None or found == stop - start:
            return
        if found > stop - start:
            raise ConnectionError(
                f"the server of {self.address} sends whole files instead of ranges of them: use "
                "one that answers ranged reads, or copy the index here."
            )
        raise ValueError(_CHANGED.format(f"{self.address}/{name}"))

    def _told(self, name: str, ask: Callable[[], T]) -> T:
        with _sentences(self, name):
            try:
                return ask()
            except Exception as error:
                if type(error).__name__ != "NoCredentialsError":
                    raise
                self._system, self._root = _file_system(self.address, anonymous=True)
                return ask()

    def _sentence(self, error: BaseException, name: str) -> Exception:
        """Whatever a protocol raises as one of three errors with the address."""
        place = f"{self.address}/{name}".rstrip("/")
        if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # fsspec says of any failure of a web server: not found
        status = _status(error)
        if status == 416:
            return ValueError(_CHANGED.format(place))
        if isinstance(error, FileNotFoundError) or status == 404:
            return FileNotFoundError(
                f"there is nothing at {place}: check the bucket or host, and the path."
            )
        if isinstance(error, PermissionError) or status in (401, 403):
            return PermissionError(
                f"{place} may not be read: give credentials as its protocol takes them, or check "
                "the bucket's name."
            )
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ConnectionError(
            f"{place} could not be read ({said}): check the network and the address, and try again."
        )


@contextmanager
def _sentences(folder: RemoteFolder, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise folder._sentence(error, name) from error


class _RemoteFile:
    """One file of a folder, in blocks."""

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self.size = size
        self.block_bytes = BLOCK_BYTES.get(name.partition(".")[0], DEFAULT_BLOCK_BYTES)
        self._folder, self._name, self._key = folder, name, f"{folder.address}/{name}"
        self.traffic = folder.traffic
        self._version: tuple[object, ...] | None = None
        self._checked = -CHECK_SECONDS
        self._lock = Lock()

    def blocks(self, numbers: Int64[np.ndarray, " n"]) -> dict[int, Block]:
        """The blocks of these numbers, which ascend."""
        names = [(self._key, number) for number in numbers.tolist()]
        found = self._folder.cache.get(names)
        missing = [number for _, number in names if (self._key, number) not in found]
        if missing:
            self._check()
            fetched = self._fetched(missing)
            self._folder.cache.put(fetched)
            found |= fetched
        return {number: block for (_, number), block in found.items()}

    def _fetched(self, missing: Sequence[int]) -> dict[tuple[str, int], Block]:
        """Blocks side by side in one read, as far as a read may be long."""
        runs = _runs(missing, max(1, LARGEST_READ // self.block_bytes))
        size = self.block_bytes
        ranges = [(first * size, min(self.size, stop * size)) for first, stop in runs]
        blocks = {}
        for (first, stop), content in zip(
            runs, self._folder.ranges(self._name, ranges), strict=True
        ):
            whole = np.frombuffer(content, dtype=np.uint8)
            for number in range(first, stop):
                begin = (number - first) * size
                blocks[self._key, number] = whole[begin : begin + size].copy()
        return blocks

    def _check(self) -> None:
        """Raise ValueError when the file is not what it was when it was first read."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked < CHECK_SECONDS:
                return
            version = self._folder.version(self._name)
            if self._version not in (None, version) or version[0] != str(self.size):
                raise ValueError(_CHANGED.format(self._key))
            self._version, self._checked = version, now


def _runs(numbers: Sequence[int], longest: int) -> list[tuple[int, int]]:
    """Ascending numbers as runs [first, stop) of at most `longest`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number and number - runs[-1][0] < longest:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _may_pass(answer: Any) -> bool:
    """Whether an answer is an error that may go away when asked again."""
    if not isinstance(answer, BaseException):
        return False
    lasting = isinstance(answer, FileNotFoundError | PermissionError)
    return not lasting and _status(answer) >= 500


def _status(error: BaseException) -> int:
    """What the server answered, where the error of a protocol tells; else 500."""
    told = getattr(error, "response", None)  # as botocore has it
    metadata = told.get("ResponseMetadata", {}) if isinstance(told, Mapping) else {}
    return int(getattr(error, "status", None) or metadata.get("HTTPStatusCode", 500))


def _file_system(address: str, *, anonymous: bool) -> tuple[Any, str]:
    """The file system of an address, nothing of which it remembers, and the path in it."""
    import fsspec

    options: dict[str, Any] = {"anon": True} if anonymous else {}
    if address.startswith("http"):
        options["headers"] = {"Accept-Encoding": "identity"}  # ranges are of the bytes as they lie
    try:
        system, root = fsspec.core.url_to_fs(address, use_listings_cache=False, **options)
    except ImportError as error:
        raise ImportError(
            f"reading {address.partition('://')[0]}:// needs one more package ({error}): pip "
            "install 'mnemoscope[remote-index]', or the one that is named."
        ) from error
    except ValueError as error:
        raise ValueError(f"{address} is no address that can be read ({error}).") from error
    return system, str(root).rstrip("/")
