"""What does pruning a checkpoint cost on top of copying the shards that it touches?"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from measuring import RESULTS, interleaved, machine, over, ratios, table, write_section

CLAIM = (
    "Pruning takes at most 1.5 times as long as copying the touched shards (`shutil.copyfile` and "
    "fsync), and less than 0.5 GB of memory, at any size."
)
TIME_BOUND, MEMORY_BOUND = 1.5, 0.5
D_MODEL, N_LAYERS, N_SHARDS = 2048, 16, 4
NOTE = (
    "Generated bf16 folders of four shards, random numbers, no model. *copy*: the touched shards "
    "alone, copied and synced. *ours*: `prune_checkpoint` from plan to rename, hashes of the old "
    "and the new file and the second reading of every edited tensor included; untouched shards are "
    "reflinked or hard-linked. *copied*: the same with `copy_untouched=True`, against a copy of "
    "all shards. Medians over rounds, ratios within rounds. *peak GB*: resident memory of a fresh "
    "process at its highest (`ru_maxrss`), imports included, of which *imports GB* were there "
    "before the plan. The copy that it is held against reads and writes every byte once, as *ours* "
    "does; the rest is BLAKE3 of the old and the new bytes, on the other core, and the check."
)
COLUMNS = (
    *("GB", "touched shards", "touched GB", "copy s", "ours s", "ratio", "lowest", "highest"),
    *("within 1.5", "copied ratio", "peak GB", "imports GB", "within 0.5"),
)
PROBE = """
import json, resource, sys
from pathlib import Path
from mnemoscope.interventions.checkpoint_surgery import plan_pruning, prune_checkpoint
from mnemoscope.models import HeadId
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
before = peak()
heads = [HeadId(*pair) for pair in json.loads(sys.argv[3])]
prune_checkpoint(plan_pruning(Path(sys.argv[1]), heads), Path(sys.argv[2]))
print(json.dumps([before, peak()]))
"""


@dataclass(frozen=True)
class Given:
    """Sizes of the folders in GB, rounds, where to work, whether to keep the figures."""

    sizes: tuple[float, ...]
    rounds: int
    folder: Path | None
    write: bool


def main() -> None:
    given = _arguments()
    rows: list[tuple[object, ...]] = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="prune-", dir=given.folder) as place:
            source = generate(Path(place) / "source", size)
            for layers in ((1,), tuple(range(N_LAYERS))):
                rows.append(measure(source, Path(place), layers, given.rounds))
    sizes = " ".join(f"{size:g}" for size in given.sizes)
    body = f"{table(COLUMNS, rows)}\n\n{given.rounds} rounds. {NOTE}"
    command = f"`python benchmarks/prune_checkpoint.py --size {sizes}`"
    text = f"## prune_checkpoint\n\n{CLAIM}\n\n{body}\n\n{command}, {machine()}\n"
    print(text)
    if given.write:
        write_section(RESULTS, "prune_checkpoint", text)


def generate(folder: Path, gigabytes: float) -> Path:
    """A sharded Llama-like bf16 folder of about this size, written in chunks of random bytes."""
    folder.mkdir()
    attention = 2 * D_MODEL * D_MODEL
    filler = max(2, int(gigabytes * 1e9 / N_LAYERS - attention) // (2 * D_MODEL))
    config = {"model_type": "llama", "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    placed: dict[str, str] = {}
    for shard in range(N_SHARDS):
        name = f"model-{shard + 1:05d}-of-{N_SHARDS:05d}.safetensors"
        tensors = {}
        for layer in range(shard * N_LAYERS // N_SHARDS, (shard + 1) * N_LAYERS // N_SHARDS):
            tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = (D_MODEL, filler)
            tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = (D_MODEL, D_MODEL)
        placed |= dict.fromkeys(tensors, name)
        _write_shard(folder / name, tensors)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def measure(source: Path, place: Path, layers: tuple[int, ...], rounds: int) -> tuple[object, ...]:
    """One table row: two heads in each of these layers."""
    from mnemoscope.interventions.checkpoint_surgery import plan_pruning
    from mnemoscope.models import HeadId

    heads = [HeadId(layer, head) for layer in layers for head in (3, 8)]
    plan = plan_pruning(source, heads)
    touched = [shard.name for shard in plan.shards if shard.touched]
    calls: dict[str, Callable[[], object]] = {
        "copy": partial(_copy, source, place / "copy", touched),
        "ours": partial(_prune, source, place / "ours", heads, copy_untouched=False),
        "copy all": partial(_copy, source, place / "all", [shard.name for shard in plan.shards]),
        "copied": partial(_prune, source, place / "copied", heads, copy_untouched=True),
    }
    seconds = interleaved(calls, rounds)
    ratio = over(seconds["ours"], seconds["copy"])
    spread = ratios(seconds["ours"], seconds["copy"])
    before, peak = _memory(source, place / "memory", heads)
    sizes = {shard.name: shard.size for shard in plan.shards}
    return (
        *(sum(sizes.values()) / 1e9, f"{len(touched)} of {len(sizes)}"),
        *(sum(sizes[name] for name in touched) / 1e9, median(seconds["copy"])),
        *(median(seconds["ours"]), ratio, min(spread), max(spread)),
        *("yes" if ratio <= TIME_BOUND else "NO", over(seconds["copied"], seconds["copy all"])),
        *(peak, before, "yes" if peak <= MEMORY_BOUND else "NO"),
    )


def _arguments() -> Given:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--size", type=float, nargs="+", default=[1.0, 4.0], help="GB a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: temporary files)")
    parser.add_argument("--write", action="store_true", help=f"replace the section in {RESULTS}")
    given = parser.parse_args()
    return Given(tuple(given.size), given.rounds, given.folder, given.write)


def _write_shard(path: Path, tensors: dict[str, tuple[int, int]]) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    block = os.urandom(2**22)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])
        os.fsync(file.fileno())


def _copy(source: Path, target: Path, names: list[str]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in names:
        shutil.copyfile(source / name, target / name)
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())


def _prune(source: Path, out: Path, heads: list[object], *, copy_untouched: bool) -> None:
    from mnemoscope.interventions.checkpoint_surgery import plan_pruning, prune_checkpoint

    shutil.rmtree(out, ignore_errors=True)
    prune_checkpoint(plan_pruning(source, heads), out, copy_untouched=copy_untouched)


def _memory(source: Path, out: Path, heads: list[object]) -> tuple[float, float]:
    pairs = json.dumps([[head.layer, head.head] for head in heads])
    command = [sys.executable, "-c", PROBE, str(source), str(out), pairs]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    before, peak = json.loads(found.stdout.splitlines()[-1])
    return before, peak


if __name__ == "__main__":
    main()
