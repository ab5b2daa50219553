"""Where the files of an index are: a folder here, or one elsewhere that is read in ranges."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Shaped

from .block_cache import BlockCache
from .checks import file_sha256, missing
from .ranged_array import Stored
from .remote_folder import RemoteFolder, is_address

THREADS = 32
A = TypeVar("A")
B = TypeVar("B")


class ReadsText(Protocol):
    """A text file that may be read whole: a path, or a file elsewhere."""

    def read_text(self, encoding: str) -> str: ...


class LocalFolder:
    """A folder of this machine, whose files are mapped; `RemoteFolder` answers the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        """The path."""
        return str(self.folder)

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Nothing: a folder can be listed."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def numbered(self, kind: str) -> tuple[int, ...]:
        """The numbers i of the files `kind.i`, ascending."""
        numbers = [path.name.partition(".")[2] for path in self.folder.glob(f"{kind}.*")]
        return tuple(sorted(int(number) for number in numbers if number.isdecimal()))

    def read_bytes(self, name: str) -> bytes:
        """A whole, small file."""
        return (self.folder / name).read_bytes()

    def sha256(self, name: str) -> str:
        """The hash of a file."""
        return file_sha256(self.folder / name)

    def array(
        self, name: str, dtype: np.dtype[Any] | str, columns: int = 0, *, scattered: bool = False
    ) -> Stored:
        """A file as a read-only array, of which nothing is read until it is touched; `scattered`
        asks the system not to read ahead. Raises FileNotFoundError where it is missing."""
        try:
            flat = _mapped(self.folder / name, dtype, scattered)
        except FileNotFoundError as error:
            raise missing(self.address, name) from error
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise OSError(
                    error.errno,
                    "the index has more files than this process may open: raise the limit "
                    "(ulimit -n 65536), or build it with larger shards",
                    self.address,
                ) from error
            raise
        return flat.reshape(-1, columns) if columns else flat


class RemoteText:
    """A small text file elsewhere."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self.folder, self.name = folder, name

    def read_text(self, encoding: str) -> str:
        """The whole file."""
        return self.folder.read_bytes(self.name).decode(encoding)


Place: TypeAlias = LocalFolder | RemoteFolder


def place_of(address: str | Path, cache: BlockCache) -> Place:
    """The place of an index: a path, or a URL whose blocks are kept in `cache`.

    Raises FileNotFoundError where no folder is, ImportError for a protocol that needs a package.
    """
    if is_address(str(address)):
        return RemoteFolder(str(address), cache)
    if not Path(address).is_dir():
        raise FileNotFoundError(
            f"there is no index folder {address}: check the path, or build it again."
        )
    return LocalFolder(Path(address))


def text_file(place: Place, name: str) -> ReadsText:
    """A text file of the place, not read yet."""
    return place.folder / name if isinstance(place, LocalFolder) else RemoteText(place, name)


def side_by_side(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`work` on all items in threads: what waits for reads waits together."""
    given = list(items)
    if len(given) < 2:
        return [work(item) for item in given]
    with ThreadPoolExecutor(min(THREADS, len(given))) as pool:
        return list(pool.map(work, given))


def _mapped(path: Path, dtype: np.dtype[Any] | str, scattered: bool) -> Shaped[np.ndarray, " item"]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.zeros(0, dtype=dtype)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if scattered and hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype=dtype)
