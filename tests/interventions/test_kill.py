"""Killed at any moment, a run leaves nothing or the complete folder, and the next run cleans up."""

import os
import random
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import checkpoints
import pytest
from checkpoints import HEADS, prune
from mnemoscope.interventions.checkpoint_surgery import verify_pruned
from mnemoscope.models import HeadId

FEW, MANY = 8, 50


def child(source, out, heads, how):
    """A process forked from a server that has imported everything, so that kills hit the writing.

    (Forking this process would copy locks that torch's threads hold.)
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["checkpoints"])
    process = context.Process(target=prune, args=(source, out, heads), kwargs=how)
    process.start()
    return process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_kills_leave_nothing_or_the_whole(llama, tmp_path, replacing, kills, monkeypatch):
    # Python 3.11's fork server does not take over sys.path and then silently imports nothing.
    monkeypatch.setenv("PYTHONPATH", str(Path(checkpoints.__file__).parent))
    place = tmp_path / "place"
    place.mkdir()
    out = place / "out"
    child(llama, out, HEADS, {}).join()  # the server starts
    start = time.perf_counter()
    child(llama, out, HEADS, {"force": True}).join()
    usual = time.perf_counter() - start
    verify_pruned(out, llama)
    generator, old, done = random.Random(0), (HeadId(0, 0),), 0
    for _ in range(kills):
        prune(llama, out, old, force=True)
        if not replacing:
            os.rename(out, tmp_path / "aside")
        process = child(llama, out, HEADS, {"force": True})
        time.sleep(generator.uniform(0, 1.2 * usual))
        process.kill()
        process.join()
        if out.exists():
            found = verify_pruned(out, llama).heads
            assert found == HEADS or (replacing and found == old)
            done += found == HEADS
        else:
            assert not replacing
        if not replacing:
            shutil.rmtree(tmp_path / "aside")
    assert kills < MANY or 0 < done < MANY
    prune(llama, out, HEADS, force=True)
    assert os.listdir(place) == ["out"]
