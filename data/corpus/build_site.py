"""Where an index is built: a hidden folder beside its place, which it leaves by one rename."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from .checks import rights_errors
from .index_info import INFO_NAME, FileRecord, IndexInfo, Mode, info_json
from .index_place import LocalFolder
from .parts import PartRecord
from .shard_files import EncodedShard, encoded_shard, sorted_files, write_record, write_whole


@dataclass(frozen=True)
class BuildPlan:
    """All settings that the bytes of an index depend on, beside its documents."""

    mode: Mode
    width: int
    vocab_size: int
    tokenizer_name: str
    tokenizer_sha256: str
    label: str
    tokens_per_shard: int
    directory: bool
    inverse: bool
    part: PartRecord | None = None


class BuildSite:
    """The hidden folder of one build: `files` to be published, `records` of what is whole.

    A context manager: one process at a time builds. An unfinished build with the same plan is
    gone on with.
    """

    def __init__(self, target: Path, plan: BuildPlan) -> None:
        self.target, self.plan = target, plan
        self.place = target.with_name(f".{target.name}.building")
        self.files, self.records = self.place / "files", self.place / "records"
        self._lock = FileLock(self.place / "lock")

    def __enter__(self) -> Self:
        with rights_errors(self.target.parent):
            self.files.mkdir(parents=True, exist_ok=True)
            self.records.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"{self.target} is being built by another process: wait for it, or choose another "
                "folder."
            ) from error
        try:
            self._check_plan()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check_plan(self) -> None:
        path = self.records / "plan.json"
        if path.is_file() and json.loads(path.read_text("utf-8")) != asdict(self.plan):
            raise ValueError(
                f"{self.place} holds an unfinished build with other settings: use its settings "
                f"({path.name}) to go on, or delete that folder to start over."
            )
        write_record(path, asdict(self.plan))

    def encoded(self) -> list[EncodedShard]:
        """The shards, from number 0 on, whose tokens an earlier run wrote."""
        found: list[EncodedShard] = []
        while shard := encoded_shard(self.files, self.records, len(found), self.plan.width):
            found.append(shard)
        return found

    def sorted_files(self, number: int) -> dict[str, FileRecord]:
        """The files of a shard that is finished."""
        files = sorted_files(self.files, self.records, number)
        assert files is not None
        return files

    def publish(self, info: IndexInfo) -> None:
        """Move the files to their place; an index that was there goes."""
        for path in set(self.files.iterdir()) - {self.files / name for name in info.files}:
            path.unlink()
        write_whole(self.files / INFO_NAME, iter([info_json(info).encode()]))
        if self.target.exists():
            old = self.place / "old"
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.target, old)
        os.rename(self.files, self.target)
        self.remove()

    def remove(self) -> None:
        """Delete the hidden folder."""
        self._lock.release()
        shutil.rmtree(self.place, ignore_errors=True)


def check_target(target: Path, *, force: bool) -> None:
    """Raise FileExistsError unless `target` is free, or an index that `force` may replace."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise FileExistsError(f"{target} exists already: choose another folder, or use force=True.")
    if not target.is_dir() or not (
        (target / INFO_NAME).is_file() or LocalFolder(target).numbered("tokenized")
    ):
        raise FileExistsError(f"{target} is no index, so that force does not replace it: move it.")
