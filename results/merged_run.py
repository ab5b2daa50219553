"""From a ledger to a run: what all workers did, as one run folder like that of a single worker.

While a batch is worked on, one of its workers shows it as an unfinished run, so that it is listed,
can be cancelled and can be gone on with like any other; the work itself does not depend on it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunCancelled, RunFolderError
from .ledger import Ledger
from .provenance import JSON
from .row_log import RowLog, row_lines
from .run import Run, RunFolder
from .run_folder import open_run
from .run_inputs import note_inputs
from .run_state import RunState, RunStatus, cancel_requested, write_state
from .storage import storage_errors, sync_folder, write_atomic

_THERE_ALREADY = {errno.ENOTEMPTY, errno.EEXIST}
_MOST_SWAPS = 20


class Shown:
    """The unfinished run that a batch is shown as; one worker writes it, all see it cancelled."""

    def __init__(self, partial: Path, run: Run | None) -> None:
        """Made by `shown_as_run`; `run` is None for a worker that does not write it."""
        self._partial, self._run = partial, run
        self._cancelled_before = run is None and cancel_requested(partial)

    def progress(self, done: int, total: int, message: str) -> None:
        """Tell watchers how far the batch is; a folder that has gone is no matter."""
        if self._run is not None:
            with suppress(RunFolderError, OSError):
                self._run.progress(done, total, message)

    def check_cancelled(self) -> None:
        """Raise `RunCancelled` when somebody has cancelled the batch since this worker came."""
        if self._run is not None:
            self._run.check_cancelled()
        elif not self._cancelled_before and cancel_requested(self._partial):
            raise RunCancelled("the batch was cancelled; start it again to go on.")


@contextmanager
def shown_as_run(ledger: Ledger) -> Iterator[Shown]:
    """Show the batch as a run for the length of the block, unless another worker does already."""
    partial = RunFolder(ledger.root, ledger.id).partial
    try:
        run = open_run(ledger.root, ledger.kind, ledger.config)
    except (RunFolderError, OSError, NotImplementedError):  # busy, or a place without locks
        yield Shown(partial, None)
        return
    if run.finished:
        yield Shown(partial, None)
        return
    with run:
        note_inputs(run.folder, {"cwd": os.getcwd()})  # paths in a recipe may be relative
        yield Shown(partial, run)


def publish_merged(
    ledger: Ledger, rows: Mapping[str, Mapping[str, JSON]], finish: Callable[[Run], None]
) -> Path:
    """The finished run of a batch whose units are all settled; returns its folder.

    `rows` is what becomes of `rows.jsonl`: nothing that two attempts at a unit would differ in, so
    that a run with these very rows is left as it is. `finish` writes tables and calls `run.finish`.
    Any number of workers may do this at once: each makes a folder of its own, and the last to
    rename it is the one that stays. Raises `RunFolderError` when it cannot be written.
    """
    content, merged = row_lines(rows), RunFolder(ledger.root, ledger.id)
    if not _holds(merged.final, content):
        own = RunFolder(ledger.folder / f"merging-{secrets.token_hex(4)}", ledger.id)
        try:
            finish(_begun(own, ledger.config, content))
            _swap(own.final, merged.final)
        finally:
            shutil.rmtree(own.root, ignore_errors=True)
        sync_folder(ledger.root)
    # Also where another worker has published: the one that showed the batch may have written its
    # last word into the unfinished run while that was being removed.
    shutil.rmtree(merged.partial, ignore_errors=True)
    return merged.final


def _begun(own: RunFolder, config: Mapping[str, JSON], content: bytes) -> Run:
    with storage_errors(own.partial):
        own.partial.mkdir(parents=True)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    write_atomic(own.partial / "config.json", text)
    write_atomic(own.partial / "rows.jsonl", content)
    write_state(own.partial, RunState(RunStatus.RUNNING))
    return Run(own, None, RowLog(own.partial / "rows.jsonl"))


def _holds(final: Path, content: bytes) -> bool:
    try:
        return (final / "rows.jsonl").read_bytes() == content
    except OSError:
        return False


def _swap(made: Path, final: Path) -> None:
    """Put a folder in the place of another, whoever else does the same."""
    for _ in range(_MOST_SWAPS):
        try:
            with storage_errors(final):
                os.rename(made, final)
            return
        except OSError as error:
            if error.errno not in _THERE_ALREADY:
                raise
        with suppress(FileNotFoundError):  # somebody else has moved it away
            os.rename(final, made.with_name(f"replaced-{secrets.token_hex(4)}"))
    raise RunFolderError(f"{final} is put there again and again: are two batches at odds?")
