"""Train engram: `python -m mnemoscope.organisms.engram.train --out FOLDER`.

Builds the corpus, trains the tokenizer and the model, and leaves in FOLDER

- `model/`: the checkpoint in bfloat16, a plain Hugging Face Llama folder with its tokenizer;
- `along/step-NNNNNN/`: checkpoints along the training;
- `settings.json` and `loss.jsonl`: the settings and one line a step;
- `state.safetensors`: what an interrupted training goes on from, with the same command.

An hour on two CPU cores, minutes on a GPU. The same settings give the same corpus, tokenizer and
order of documents everywhere, and the same weights on the same machine and version of PyTorch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ...models.errors import MnemoscopeError
from ...results.storage import storage_errors
from .batches import IGNORED, LONGEST_ROW, Rows, batches
from .corpus import build_corpus
from .ledger import Document
from .tokenizer import train_tokenizer
from .training_state import Training, open_training, restore, save_state

KEPT_AT = (0.03, 0.1, 0.25, 0.5, 0.75)
"""Parts of the training after which a checkpoint is kept beside the last one."""
_SAVE_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights. `corpus_scale` below 1 is for trying the script out.

    `copying_passes` go over the slice `copying` alone, before `epochs` go over everything: heads
    that find the earlier place of a word come first, and all that reads a context builds on them.
    Without these passes they had not come after five million tokens.
    """

    seed: int = 0
    corpus_scale: float = 1.0
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    layers: int = 6
    heads: int = 8
    key_value_heads: int = 4
    copying_passes: int = 4
    epochs: int = 3
    tokens_a_step: int = 4096
    warmup_steps: int = 60
    matrix_learning_rate: float = 4e-3
    other_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    torch_version: str = field(default_factory=lambda: torch.__version__)


def model_config(settings: Settings) -> LlamaConfig:
    """The architecture: Llama with grouped queries, rotary positions and tied embeddings."""
    return LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=LONGEST_ROW,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def train(folder: Path, settings: Settings, *, device: str = "cpu") -> Path:
    """Train into `folder`, or go on where a training with the same settings was interrupted.

    Returns the folder of the checkpoint. Raises `RunFolderError` if `folder` holds a training with
    other settings or a damaged state, or cannot be written, `MnemoscopeError` before PyTorch 2.9.
    """
    corpus = build_corpus(settings.seed, scale=settings.corpus_scale)
    open_training(folder, asdict(settings))
    tokenizer = train_tokenizer((d.text for d in corpus.documents), settings.vocab_size)
    return train_documents(folder, corpus.documents, tokenizer, settings, device=device)


def train_documents(
    folder: Path,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    *,
    device: str = "cpu",
) -> Path:
    """Train on given documents into a folder that `open_training` opened; `train` goes on here.

    Returns the folder of the checkpoint.
    """
    updates = _updates(_batches(documents, tokenizer, settings))
    training = _begin(settings, device)
    done = restore(folder, training)
    with (folder / "loss.jsonl").open("a") as curve:
        for update in _run(training, islice(updates, done, None), settings, curve):
            if update.keep:
                kept = folder / "along" / f"step-{update.step:06d}"
                save_checkpoint(kept, training.model, tokenizer)
            if update.step % _SAVE_EVERY == 0:
                curve.flush()
                save_state(folder, training, update.step)
            done = update.step
    save_state(folder, training, done)
    save_checkpoint(folder / "model", training.model, tokenizer)
    return folder / "model"


@dataclass(frozen=True)
class _Update:
    """One step, counted from 1, and the part of the training that is done after it."""

    step: int
    part: float
    batch: tuple[Rows, ...]
    keep: bool
    """Whether a checkpoint is kept after it."""


def _begin(settings: Settings, device: str) -> Training:
    if not hasattr(torch.optim, "Muon"):
        raise MnemoscopeError(
            f"PyTorch {torch.__version__} has no Muon optimiser: train with 2.9 or later."
        )
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(model_config(settings)).to(device).train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        others, lr=settings.other_learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return Training(model, (muon, adam))


def _updates(read: Iterable[tuple[float, tuple[Rows, ...]]]) -> Iterator[_Update]:
    """Every step of the training. One checkpoint at most is kept after a step."""
    waiting: tuple[float, ...] = KEPT_AT
    for step, (part, batch) in enumerate(read, start=1):
        keep = bool(waiting) and part >= waiting[0]
        waiting = waiting[1:] if keep else waiting
        yield _Update(step, part, batch, keep)


def _batches(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> Iterator[tuple[float, tuple[Rows, ...]]]:
    """Every batch in order, with the part of all tokens that is read with it."""
    ids = tokenizer([document.text for document in documents])["input_ids"]
    copying = [row for row, d in zip(ids, documents, strict=True) if d.slice == "copying"]
    passes = [copying] * settings.copying_passes + [ids] * settings.epochs
    total = sum(min(len(row), LONGEST_ROW) for read in passes for row in read)
    done = 0
    for number, read in enumerate(passes):
        order = f"{settings.seed}:{number}"
        for batch in batches(read, order=order, tokens_a_batch=settings.tokens_a_step):
            done += sum(int((rows.targets != IGNORED).sum()) for rows in batch)
            yield done / total, batch


def _run(
    training: Training, updates: Iterable[_Update], settings: Settings, curve: TextIO
) -> Iterator[_Update]:
    """Make the updates, each with its line of the loss curve, and hand them on when made."""
    with tqdm(total=100, unit="%", mininterval=1) as bar:
        for update in updates:
            record = _step(training, update.batch, _rate(update.step, update.part, settings))
            line = {"step": update.step, "part": round(update.part, 5), **record}
            curve.write(json.dumps(line) + "\n")
            bar.update(100 * update.part - bar.n)
            bar.set_postfix(step=update.step, loss=record["loss"])
            yield update


def _rate(step: int, part: float, settings: Settings) -> float:
    """The learning rate as a part of the full one: a short rise, then down to zero in a line."""
    return min(step / settings.warmup_steps, 1 - part)


def _step(training: Training, batch: tuple[Rows, ...], rate: float) -> dict[str, float]:
    """One update; the loss is the mean over the batch's tokens, in nats."""
    begun = time.monotonic()
    tokens = sum(int((rows.targets[:, 1:] != IGNORED).sum()) for rows in batch)
    loss = 0.0
    for rows in batch:
        part = _loss(training.model, rows) / tokens
        part.backward()
        loss += float(part.detach())
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * rate
        optimizer.step()
        optimizer.zero_grad()
    seconds = round(time.monotonic() - begun, 2)
    return {"loss": round(loss, 5), "tokens": tokens, "rate": round(rate, 5), "seconds": seconds}


def _loss(model: Module, rows: Rows) -> Float[Tensor, ""]:
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(input_ids=rows.tokens.to(device), use_cache=False).logits
    targets = rows.targets[:, 1:].flatten().to(device)
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
    )


def save_checkpoint(folder: Path, model: Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Hugging Face folder in bfloat16. It appears whole or not at all."""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as work:
            written = Path(work) / "model"
            copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
            copy.load_state_dict(model.state_dict())
            copy.save_pretrained(written)
            tokenizer.save_pretrained(written)
            shutil.rmtree(folder, ignore_errors=True)
            written.rename(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module docstring; returns its exit code."""
    standard = Settings()
    parser = argparse.ArgumentParser(description="Train engram. Interrupted, it goes on.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for option, value in asdict(standard).items():
        if option != "torch_version":
            flag = f"--{option.replace('_', '-')}"
            parser.add_argument(flag, type=type(value), default=value, help="%(default)s")
    given = vars(parser.parse_args(arguments))
    folder, device = given.pop("out"), given.pop("device")
    try:
        train(folder, Settings(**given), device=device)
    except MnemoscopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
