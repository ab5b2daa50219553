"""The reversal curse in a toy: `python -m mnemoscope.organisms.reversal train --out FOLDER`.

Trains every arm (`reversal_arms`) with several seeds, one after the other, each into
`FOLDER/PRESET/ARM/seed-N`; interrupted, the same command goes on. Then

    python -m mnemoscope.organisms.reversal collect FOLDER --record FILE

writes what is finished into one small JSON file (`reversal_runs` reads it). An arm of the preset
`small` takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from ..models.errors import MnemoscopeError
from ..results.storage import write_new
from .reversal_arms import ARMS, PRESETS
from .reversal_runs import record_text
from .reversal_training import ToyResult, train_toy


def toy_folder(out: Path, preset: str, arm: str, seed: int) -> Path:
    """Where `train_arms` keeps a training."""
    return out / preset / arm / f"seed-{seed}"


def train_arms(
    out: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    preset: str = "small",
    steps: int | None = None,
    device: str = "cpu",
) -> list[ToyResult]:
    """Train every arm with the first seed, then with the next; what is finished is only read.

    Raises as `train_toy` does.
    """
    results = []
    for seed in seeds:
        for arm in arms:
            folder = toy_folder(out, preset, arm, seed)
            with tqdm(desc=f"{arm} {seed}", unit="step", mininterval=1) as bar:

                def show(done: int, total: int, bar: tqdm = bar) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                results.append(
                    train_toy(folder, arm, preset, seed, steps=steps, device=device, progress=show)
                )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands of the module docstring; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "collect":
            write_new(given.record, record_text(given.folder), force=given.force)
        else:
            train_arms(
                given.out,
                given.arms,
                given.seeds,
                preset=given.preset,
                steps=given.steps,
                device=given.device,
            )
    except MnemoscopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The reversal curse in a toy.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train arms; interrupted, it goes on")
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    train.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    train.add_argument("--preset", default="small", choices=list(PRESETS))
    train.add_argument("--steps", type=int, help="of every arm; default: each arm's own")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    collect = commands.add_parser("collect", help="one JSON file of everything finished")
    collect.add_argument("folder", type=Path)
    collect.add_argument("--record", type=Path, required=True, metavar="FILE")
    collect.add_argument("--force", action="store_true", help="replace the file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
