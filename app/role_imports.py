"""Files of other projects that a browser hands over, kept in the imports folder."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path, PurePosixPath

from ..models.errors import MnemoscopeError
from ..results.attention_patterns import CONFIG, TABLE
from ..results.errors import RunFolderError
from ..results.head_vis import SCATTER
from ..results.storage import write_new
from .head_files import plain_path

FILE_KINDS = ("json", "yaml", "yml", "tsv", "zip")
MOST_BYTES = 64 * 2**20
"""Of a file inside an archive."""
_FOLDERS = ((CONFIG, SCATTER), (CONFIG, TABLE))
"""Files that make a HeadVis tree, and a pattern folder of DuoAttention."""


def keep_import(folder: Path, name: str, content: bytes) -> Path:
    """Write a file, or the few files of an archive that are read, under a plain name.

    Of an archive only the files of a HeadVis tree or a pattern folder are taken, wherever they lie
    in it; no path of its own is followed. Raises `MnemoscopeError` for another kind of file and an
    archive without them, `RunFolderError` when the name is taken.
    """
    given = PurePosixPath(name.replace("\\", "/"))
    suffix = given.suffix.lower()
    if suffix.lstrip(".") not in FILE_KINDS:
        raise MnemoscopeError(
            f"{given.name!r} is of no kind that is read: {', '.join(FILE_KINDS)}."
        )
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", given.stem).strip("-.")
    path = plain_path(folder, stem).with_suffix(suffix)
    if suffix != ".zip":
        write_new(path, content)
        return path
    return _unpacked(path.with_suffix(""), content)


def _unpacked(folder: Path, content: bytes) -> Path:
    if folder.exists():
        raise RunFolderError(f"{folder} exists already: give the archive another name.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = _wanted(archive, folder.name)
    except zipfile.BadZipFile as error:
        raise MnemoscopeError(f"{folder.name}.zip is damaged ({error}).") from error
    for name, data in files.items():
        write_new(folder / name, data)
    return folder


def _wanted(archive: zipfile.ZipFile, title: str) -> dict[str, bytes]:
    """Name to content of the files that are read, all of one folder of the archive."""
    places = {PurePosixPath(entry.filename): entry for entry in archive.infolist()}
    for names in _FOLDERS:
        for inside in sorted({path.parent for path in places}):
            entries = [places.get(inside / name) for name in names]
            if all(entry is not None for entry in entries):
                return {
                    name: _content(archive, entry)
                    for name, entry in zip(names, entries, strict=True)
                    if entry is not None
                }
    raise MnemoscopeError(
        f"{title}.zip holds neither a HeadVis tree ({CONFIG}, {SCATTER}) nor a pattern folder "
        f"({CONFIG}, {TABLE})."
    )


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise MnemoscopeError(f"{entry.filename} is larger than {MOST_BYTES >> 20} MB unpacked.")
    return data
