"""What does capturing one site a layer cost on top of the plain Hugging Face forward pass?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from measuring import arguments, interleaved, over, ratios, report, table
from mnemoscope.models import HookedModel, load_model
from mnemoscope.models.tokens import TokenBatch
from mnemoscope.models.types import Site
from shapes import GPT2_SMALL, TINY_GPT2, TINY_LLAMA, random_batch, random_model

CLAIM = (
    "Capturing one site in every layer costs at most 1.10 times the plain Hugging Face forward "
    "pass (median ratio of interleaved rounds)."
)
BOUND = 1.10
CAPTURED: dict[str, tuple[Site, ...]] = {
    "nothing": (),
    "z": (Site.Z,),
    "neuron": (Site.NEURON,),
    "resid_pre": (Site.RESID_PRE,),
}
NOTE = (
    "Kept positions `all`: against the plain pass with logits at all positions. Kept positions "
    "`end`: against the plain pass with `logits_to_keep=1`, since only END is unembedded then. "
    "MB kept: the captured tensors (float32). A difference of 0 means that capturing changed no "
    "bit of the logits; where END is picked before the unembedding the product may round otherwise."
)


@dataclass(frozen=True)
class Sizes:
    """Rows x tokens of the batch and rounds of timing."""

    rows: int
    length: int
    rounds: int


def main() -> None:
    given = arguments(CLAIM)
    sizes = Sizes(4, 8, 3) if given.toy else Sizes(64, 32, 5)
    names = (TINY_GPT2, TINY_LLAMA) if given.toy else ("SmolLM2-135M", GPT2_SMALL)
    rows = [row for name in names for row in measure(name, sizes)]
    columns = (
        *("model", "captured", "kept at", "plain s", "ours s", "ratio", "lowest", "highest"),
        *("within 1.10", "MB kept", "largest difference"),
    )
    shown = f"{sizes.rows} x {sizes.length} tokens, {sizes.rounds} rounds."
    report(given, "hook_overhead", CLAIM, f"{table(columns, rows)}\n\n{shown} {NOTE}")


def measure(name: str, sizes: Sizes) -> list[tuple[object, ...]]:
    """One table row a captured site and kind of position."""
    model = load_model("smollm2", dtype="float32") if name == "SmolLM2-135M" else random_model(name)
    batch = random_batch(model, sizes.rows, sizes.length, seed=1)
    calls: dict[str, Callable[[], object]] = {}
    for at in ("all", "end"):
        calls[f"plain {at}"] = partial(plain, model, batch, at)
        for label, sites in CAPTURED.items():
            calls[f"{label} {at}"] = partial(model.capture, batch, sites, at=at)
    seconds = interleaved(calls, sizes.rounds)
    rows: list[tuple[object, ...]] = []
    for at in ("all", "end"):
        reference = plain(model, batch, at)
        for label, sites in CAPTURED.items():
            captured = model.capture(batch, sites, at=at)
            ours, theirs = seconds[f"{label} {at}"], seconds[f"plain {at}"]
            ratio, spread = over(ours, theirs), ratios(ours, theirs)
            kept = sum(value.numel() for value in captured.values.values()) * 4 / 1e6
            gap = float((captured.logits - reference).abs().max())
            times = (median(theirs), median(ours), ratio, min(spread), max(spread))
            rows.append((name, label, at, *times, _verdict(ratio), kept, gap))
    return rows


@torch.no_grad()
def plain(model: HookedModel, batch: TokenBatch, at: str) -> torch.Tensor:
    """The Hugging Face forward pass, logits at all positions or (no padding here) at the last."""
    return model.module(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=1 if at == "end" else 0,
    ).logits


def _verdict(ratio: float) -> str:
    return "yes" if ratio <= BOUND else "NO"


if __name__ == "__main__":
    main()
