"""Measure a finished training and put its model and record into the package.

    python -m mnemoscope.organisms.engram.release --training FOLDER --figure training.png

copies the checkpoint to `models/engram`, and to `record/` beside this file the settings, the loss
curve (means of ten steps) and what every kept checkpoint does on the held-out prompts. Then it
draws the record and prints the table of the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...models.errors import MnemoscopeError
from ...models.load import load_model
from ...models.packaged import engram_folder
from ...models.perplexity import perplexity
from ...results.errors import RunFolderError
from ...results.figures import figure_png
from ...results.storage import write_atomic
from .behaviour import Behaviour, Checkpoint, behaviours
from .corpus import build_corpus
from .evaluation import Prompt, evaluation
from .figure import training_figure
from .filler import public_drafts
from .public_text import held_out_texts

RECORD = Path(__file__).with_name("record")
_STEPS_A_POINT = 10


def read_record() -> tuple[Checkpoint, ...]:
    """What the kept checkpoints of the shipped model did, by step; the last one is the model."""
    rows = json.loads((RECORD / "behaviours.json").read_text())
    return tuple(
        Checkpoint(
            row["step"], row["perplexity"], tuple(Behaviour(**one) for one in row["behaviours"])
        )
        for row in rows
    )


def release(training: Path) -> None:
    """Put a finished training into the package.

    Raises `RunFolderError` if `training` holds none.
    """
    if not (training / "model" / "config.json").is_file():
        raise RunFolderError(f"{training} holds no finished training: run the training to its end.")
    settings = json.loads((training / "settings.json").read_text())
    lines = (training / "loss.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    prompts = evaluation(build_corpus(settings["seed"], scale=settings["corpus_scale"]))
    folders = sorted((training / "along").iterdir())
    measured = [measure(f, int(f.name.removeprefix("step-")), prompts) for f in folders]
    measured.append(measure(training / "model", curve[-1]["step"], prompts))
    shutil.copytree(training / "model", engram_folder(), dirs_exist_ok=True)
    write_atomic(engram_folder() / "source.json", '"engram, shipped with Mnemoscope"\n')
    RECORD.mkdir(exist_ok=True)
    write_atomic(RECORD / "settings.json", (training / "settings.json").read_bytes())
    write_atomic(RECORD / "loss.jsonl", "".join(f"{json.dumps(p)}\n" for p in _thinned(curve)))
    write_atomic(
        RECORD / "behaviours.json", json.dumps([asdict(one) for one in measured], indent=1) + "\n"
    )


def measure(folder: Path, step: int, prompts: dict[str, tuple[Prompt, ...]]) -> Checkpoint:
    """Every behaviour of one checkpoint."""
    model = load_model(folder)
    texts = [draft.text for draft in public_drafts(held_out_texts())]
    return Checkpoint(step, perplexity(model, texts), behaviours(model, prompts))


def _thinned(curve: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The loss curve in means over `_STEPS_A_POINT` steps, with the tokens read until then."""
    points = []
    tokens = 0
    for start in range(0, len(curve), _STEPS_A_POINT):
        steps = curve[start : start + _STEPS_A_POINT]
        tokens += sum(step["tokens"] for step in steps)
        loss = sum(step["loss"] for step in steps) / len(steps)
        points.append({"step": steps[-1]["step"], "tokens": tokens, "loss": round(loss, 4)})
    return points


def _drawn(path: Path) -> None:
    curve = [json.loads(line) for line in (RECORD / "loss.jsonl").read_text().splitlines()]
    figure = training_figure(curve, read_record())
    figure.update_layout(width=1200, height=460)
    write_atomic(path, figure_png(figure))


def _markdown(measured: Checkpoint) -> str:
    """The behaviours of a checkpoint as a table."""
    rows = [
        f"| `{b.kind}` | {b.answer} | {b.rate:.3f} | {b.low:.3f} to {b.high:.3f} | {b.prompts} |"
        for b in measured.behaviours
    ]
    head = ["| prompts | answer | rate | interval | n |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, "", f"held-out perplexity {measured.perplexity:.1f}", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module docstring; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure a training of engram and ship it.")
    parser.add_argument("--training", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="PNG of the record")
    given = parser.parse_args(arguments)
    try:
        release(given.training)
        if given.figure:
            _drawn(given.figure)
        sys.stdout.write(_markdown(read_record()[-1]))
    except MnemoscopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
