"""What the operations give on a tiny model over two pretended devices, beside one in host memory.

Run as a script with names of families; prints one JSON object, see `told_of`: where the weights
came to lie, and for each operation the largest difference or the error. Nothing with gradients:
torch's engine knows one device of such a back end.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from families import ids
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.neuron_ablation import neuron_edits, write_norms
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    frozen_mlp_effects,
)
from mnemoscope.models import HeadId, HookedModel, NeuronId, Site, TokenSpan, load_model, zero
from placed import saved
from pretend_devices import Pretend, install
from torch import Tensor

ROWS = ids(2, 9).tolist()
ROWS[1] = ROWS[1][:5]
IDS = torch.tensor([[4, 9], [8, 5]])
BLOCK = re.compile(r"\.(?:h|layers)\.(\d+)\.")  # in the name of a weight


@contextmanager
def machine(free: dict[int | str, int]) -> Iterator[None]:
    """Inside, the two devices count as CUDA devices with these free bytes."""
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 2),
        patch("mnemoscope.models.placement.get_max_memory", lambda: dict(free)),
    ):
        yield


def whole(folder: Path) -> HookedModel:
    return _eager(load_model(folder, device="cpu", dtype="float32"))


def spread(folder: Path, size: int, block: int) -> HookedModel:
    """As a person asks for it: the first device has room for the embeddings and one block.

    Accelerate keeps room on the first device for one layer more, so that is all but half a block.
    """
    with machine({}):
        return _eager(load_model(folder, max_memory={0: size - block // 2, 1: 2 * size}))


def unasked(folder: Path, size: int) -> HookedModel:
    """No limits, on a machine each of whose devices has room for the whole model."""
    with machine(dict.fromkeys((0, 1, "cpu"), 3 * size)):
        return load_model(folder)


def _eager(model: HookedModel) -> HookedModel:
    """The same attention on every device: SDPA's fast kernel is the host's alone."""
    model.module.config._attn_implementation = "eager"
    return model


def sizes(model: HookedModel) -> tuple[int, int]:
    """Bytes of the model's weights and of one block's."""
    weights = list(model.module.named_parameters())
    first = [weight for name, weight in weights if _block_of(name) == 0]
    return _bytes(weight for _, weight in weights), _bytes(first)


def places(model: HookedModel) -> dict[str, list[str]]:
    """Devices of the weights of each block, and of those outside blocks."""
    found: dict[str, set[str]] = {}
    for name, weight in model.module.named_parameters():
        found.setdefault(str(_block_of(name)), set()).add(str(weight.device))
    return {block: sorted(at) for block, at in found.items()}


def _block_of(name: str) -> int | None:
    found = BLOCK.search(name)
    return int(found[1]) if found else None


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def captured(model: HookedModel) -> Any:
    sites = (Site.RESID_PRE, Site.RESID_POST, Site.Z, Site.NEURON, Site.MLP_OUT)
    got = model.capture(model.batch(ROWS), sites)
    return [got.logits, *(got.stack(site) for site in sites)]


def reduced(model: HookedModel) -> Any:
    return model.capture(model.batch(ROWS), (Site.NEURON,), reduce="mean").stack(Site.NEURON)


def edited(model: HookedModel) -> Any:
    edits = [zero([HeadId(0, 1), HeadId(2, 2)]), *neuron_edits([NeuronId(2, 3)], "zero")]
    with model.intervene(edits):
        return model.logits(model.batch(ROWS), at="end")


def rows(model: HookedModel) -> Any:
    spans = [[TokenSpan(1, 3)], [TokenSpan(0, 2)]]
    read = model.row_summaries(model.batch(ROWS), "end", spans)
    return [model.rows(model.batch(ROWS), "end"), read.mass, read.top_weight]


def continued(model: HookedModel) -> Any:
    prompt = model.prefill(ROWS[0], chunk=4)
    read = model.read_suffix(prompt, [5, 9], spans=[TokenSpan(0, 3)], values=True)
    said = torch.tensor(model.greedy_from(prompt, [5], 3))
    return [read.logits, read.z, read.span_value, model.suffix_logits(prompt, [5, 9]), said]


def means(model: HookedModel) -> Any:
    return [model.mean_rows(model.prefill(ROWS[0]), [5, 9]).nan_to_num(), write_norms(model)]


def swept(model: HookedModel) -> Any:
    chain, original, replacement = states(model)
    direct = direct_effects(chain, original, replacement, IDS)
    frozen = frozen_mlp_effects(chain, original, replacement, IDS)
    told = direct_effects(chain, original, replacement, IDS, log_probs=True)
    return [direct.patched, frozen.patched, told.patched]


def at_end(model: HookedModel) -> Any:
    _, _, replacement = states(model)
    return end_total_effects(model, model.batch(ROWS), replacement, IDS).patched


def states(model: HookedModel) -> Any:
    original = end_states(model, model.batch(ROWS))
    other = end_states(model, model.batch(ids(2, 7, seed=5).tolist()))
    return build_chain(model), original, other.z


OPERATIONS: tuple[Callable[[HookedModel], Any], ...] = (
    *(captured, reduced, edited, rows, continued, means, swept, at_end),
)


def main(families: list[str]) -> None:
    install()
    Pretend.data_ptr = lambda self: self.raw.data_ptr()  # accelerate knows tied weights by it
    told = {}
    with TemporaryDirectory() as folder:
        for family in families:
            told[family] = told_of(saved(Path(folder) / family, family))
    sys.stdout.write(json.dumps(told) + "\n")


def told_of(folder: Path) -> dict[str, Any]:
    """Where the weights are, "unasked" and "spread", and the "gaps" between the operations."""
    resident = whole(folder)
    size, block = sizes(resident)
    placed = spread(folder, size, block)
    gaps: dict[str, float | str] = {}
    for operation in OPERATIONS:
        try:
            gaps[operation.__name__] = _gap(operation(resident), operation(placed))
        except Exception as error:
            gaps[operation.__name__] = _short(error)
    return {"unasked": places(unasked(folder, size)), "spread": places(placed), "gaps": gaps}


def _gap(want: Any, got: Any) -> float:
    both = ([x] if isinstance(x, Tensor) else x for x in (want, got))
    return max(float((b.cpu() - a).abs().max()) for a, b in zip(*both, strict=True))


def _short(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    at = frames[-1]
    return (
        f"{type(error).__name__}: {str(error)[:200]} ({at.filename.rsplit('/', 1)[-1]}:{at.lineno})"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
