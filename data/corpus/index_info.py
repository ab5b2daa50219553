"""What an index is made of, and the file `mnemoscope.json` that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .parts import PartRecord

Mode = Literal["tokens", "bytes"]
WIDTHS = (1, 2, 4)
INFO_NAME = "mnemoscope.json"
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the index."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexInfo:
    """What an index was made of.

    `n_tokens` counts separators; ids are below `vocab_size`, which is at most `separator`. An index
    that was made elsewhere is `foreign`: its tokenizer is not recorded (empty), its vocabulary is
    taken to be as large as the width allows (at width 4: as its largest id), and it has no hashes
    in `files`. `built` names the tool. In mode "bytes" the ids are the UTF-8 bytes of the text. An
    index over a part of a corpus says which in `part`; alone it may hold no document at all.
    """

    mode: Mode
    width: int
    vocab_size: int
    n_shards: int
    n_tokens: int
    n_documents: int
    tokenizer_name: str = ""
    tokenizer_sha256: str = ""
    label: str = ""
    built: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    foreign: bool = False
    part: PartRecord | None = None

    @property
    def separator(self) -> int:
        """The id that stands before every document: all bits one."""
        return separator_of(self.width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an id."""
        return dtype_of(self.width)


def separator_of(width: int) -> int:
    """The largest number of `width` bytes; it stands between documents and is no token."""
    return int((1 << (8 * width)) - 1)


def dtype_of(width: int) -> np.dtype[Any]:
    """Little-endian unsigned integers of `width` bytes. Raises ValueError unless 1, 2 or 4."""
    if width not in WIDTHS:
        raise ValueError(f"width must be 1, 2 or 4 bytes, got {width}.")
    return np.dtype(f"<u{width}")


def check_tokenizer(info: IndexInfo, sha256: str) -> None:
    """Raise ValueError unless the index was built with the tokenizer of this hash.

    With another tokenizer spans silently match nothing. An index that records no tokenizer (a
    foreign one) passes: look at how much of a text that it must hold is found.
    """
    if info.mode == "bytes":
        raise ValueError("this index is over bytes: query it with UTF-8 bytes, not with token ids.")
    if info.tokenizer_sha256 and info.tokenizer_sha256 != sha256:
        raise ValueError(
            f"the index was built with the tokenizer {info.tokenizer_name or 'of another hash'} "
            f"(SHA-256 {info.tokenizer_sha256[:12]}) and this one is {sha256[:12]}: use that "
            "tokenizer, or build the index with this one."
        )


def info_json(info: IndexInfo) -> str:
    """What `mnemoscope.json` holds; `read_info` reads it back."""
    raw = {"format": FORMAT, **asdict(info)}
    del raw["foreign"]
    if info.part is None:
        del raw["part"]
    return json.dumps(raw, indent=1, sort_keys=True) + "\n"


def read_info(folder: Path) -> IndexInfo:
    """Read `mnemoscope.json`. Raises ValueError if it is damaged or of a later format."""
    return parse_info((folder / INFO_NAME).read_bytes(), str(folder / INFO_NAME))


def parse_info(content: bytes, path: str) -> IndexInfo:
    """What `info_json` wrote, read at `path`. Raises as `read_info`."""
    try:
        raw = json.loads(content.decode())
        if raw.pop("format") != FORMAT:
            raise ValueError(f"{path} is of a later format: update Mnemoscope.")
        files = {name: FileRecord(**record) for name, record in raw.pop("files").items()}
        part = raw.pop("part", None)
        info = IndexInfo(**raw, files=files, part=part and PartRecord(**part))
        if info.mode not in get_args(Mode) or info.width not in WIDTHS:
            raise TypeError(f"mode {info.mode!r}, width {info.width!r}")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): copy it from where the index was built, or build again."
        ) from error
    return info
