"""What a back end of the index queries must do, and which one is taken.

Both back ends (`kernels_numba`, `kernels_numpy`) give identical answers: the same tests run on
both. Files that lie elsewhere are read by the numpy one alone. They see ids as *keys*: the
little-endian bytes of an id read as a big-endian number, so that keys compare as the suffixes of
the index are sorted.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64

from .layout import ShardArrays
from .ranged_array import RangedArray, Stored, flat_bytes

KernelName = Literal["auto", "numba", "numpy"]
ABSENT = 1 << 40
"""The key of an id that the width cannot hold: equal to no token, after every one of them."""


_LARGEST_LISTED = 1 << 22  # a foreign index of width 4 does not say how few its ids are


class Plain(NamedTuple):
    """One shard as flat arrays; `directory` and `inverse` are empty where there are none.

    The suffixes that begin with id t are at the ranks [first[t], first[t] + total[t]); both are
    empty where the index keeps no counts.
    """

    data: UInt8[np.ndarray, " byte"] | RangedArray
    width: int
    table: UInt8[np.ndarray, " byte"] | RangedArray
    ratio: int
    directory: UInt64[np.ndarray, " key"] | RangedArray
    inverse: Shaped[np.ndarray, " position"]
    first: Int64[np.ndarray, " vocab"]
    total: Int64[np.ndarray, " vocab"]


class Active(NamedTuple):
    """The suffixes of a text that occur in each shard: the last `depth` tokens are at the ranks
    [lo, hi). Deepest first; `depth` 0 fills up. A suffix that occurs as often as a longer one is
    left out: wherever the text goes on, both go on together."""

    lo: Int64[np.ndarray, "beam shard slot"]
    hi: Int64[np.ndarray, "beam shard slot"]
    depth: Int64[np.ndarray, "beam shard slot"]


class Kernels(Protocol):
    """The queries on one shard. Ranges of `keys` are given as [starts, stops)."""

    @property
    def keys_of(self) -> KeysOf: ...

    @property
    def find(self) -> Find: ...

    @property
    def find_many(self) -> FindMany: ...

    @property
    def match(self) -> Match: ...

    @property
    def advance(self) -> Advance: ...

    @property
    def candidates(self) -> Candidates: ...


class KeysOf(Protocol):
    """Keys of ids, and where the first id stands that no query may hold (-1: nowhere)."""

    def __call__(
        self, ids: Int64[np.ndarray, " n"], width: int
    ) -> tuple[Int64[np.ndarray, " n"], int]: ...


class Find(Protocol):
    """Ranks [lo, hi) of the suffixes that begin with `keys`; lo == hi where there are none."""

    def __call__(self, shard: Plain, keys: Int64[np.ndarray, " n"]) -> tuple[int, int]: ...


class FindMany(Protocol):
    """Ranks [lo, hi) of every range."""

    def __call__(
        self,
        shard: Plain,
        keys: Int64[np.ndarray, " n"],
        starts: Int64[np.ndarray, " q"],
        stops: Int64[np.ndarray, " q"],
    ) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"]]: ...


class Match(Protocol):
    """Matching statistics: for the first starts the length of the longest prefix that occurs."""

    def __call__(
        self, shard: Plain, keys: Int64[np.ndarray, " n"], n_starts: int
    ) -> Int64[np.ndarray, " start"]: ...


class Advance(Protocol):
    """Fill shard `number` of `out` with the state after beam b has read its range of `keys`;
    returns the most slots that a beam uses."""

    def __call__(
        self,
        shard: Plain,
        number: int,
        state: Active,
        out: Active,
        keys: Int64[np.ndarray, " n"],
        starts: Int64[np.ndarray, " beam"],
        stops: Int64[np.ndarray, " beam"],
    ) -> int: ...


class Candidates(Protocol):
    """Length and count of the longest suffix, of at least `min_length`, that each next key ends."""

    def __call__(
        self,
        shard: Plain,
        number: int,
        state: Active,
        keys: Int64[np.ndarray, "beam k"],
        min_length: int,
    ) -> tuple[Int64[np.ndarray, "beam k"], Int64[np.ndarray, "beam k"]]: ...


def kernels_named(name: KernelName, *, remote: bool = False) -> Kernels:
    """A back end; "auto" takes numba where it is installed and the files are here (not `remote`).

    Raises ValueError for another name and for numba on files elsewhere, ImportError where numba
    was asked for and is missing.
    """
    if name not in ("auto", "numba", "numpy"):
        raise ValueError(f"kernels must be 'auto', 'numba' or 'numpy', got {name!r}.")
    if remote and name == "numba":
        raise ValueError("the numba kernels read mapped files only: take 'auto' or 'numpy'.")
    if name == "numpy" or remote or (name == "auto" and find_spec("numba") is None):
        from . import kernels_numpy

        return kernels_numpy
    if find_spec("numba") is None:
        raise ImportError("the numba kernels need numba: pip install numba, or take 'numpy'.")
    from . import kernels_numba

    return kernels_numba


def plain(shard: ShardArrays, vocab_size: int) -> Plain:
    """The shard's files as the kernels read them, without a copy."""
    first, total = _token_ranks(shard, vocab_size)
    return Plain(
        _frozen(flat_bytes(shard.tokens)),
        shard.width,
        _frozen(flat_bytes(shard.table)),
        shard.ratio,
        _frozen(np.zeros(0, "<u8") if shard.directory is None else shard.directory),
        _frozen(np.zeros(0, "<u4") if shard.inverse is None else shard.inverse),
        _frozen(first),
        _frozen(total),
    )


def _token_ranks(
    shard: ShardArrays, vocab_size: int
) -> tuple[Int64[np.ndarray, " vocab"], Int64[np.ndarray, " vocab"]]:
    """Where the suffixes of each id begin, and how many they are, from the recorded counts."""
    nothing = np.zeros(0, dtype=np.int64)
    if shard.unigram_file is None or vocab_size > _LARGEST_LISTED:
        return nothing, nothing
    total = shard.unigram_counts(vocab_size)
    if total.sum() + shard.n_documents != shard.n_tokens:
        return nothing, nothing
    order = np.argsort(np.arange(vocab_size, dtype=shard.tokens.dtype).byteswap(), kind="stable")
    first = np.empty_like(total)
    first[order] = np.cumsum(total[order]) - total[order]
    return first, total


def _frozen(array: Stored) -> Any:
    """A read-only view: one type for mapped and other arrays is one compilation."""
    if isinstance(array, RangedArray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view
