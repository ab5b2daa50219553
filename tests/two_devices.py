"""What the operations give on a tiny model over two pretended devices, beside one in host memory.

Run as a script with names of families; prints one JSON object: family, operation, largest
difference or the error. Nothing with gradients: torch's engine knows one device of such a back end.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate import dispatch_model
from families import FAMILIES, ids, tiny
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.neuron_ablation import neuron_edits, write_norms
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    frozen_mlp_effects,
)
from mnemoscope.models import HeadId, HookedModel, NeuronId, Site, TokenSpan, wrap, zero
from mnemoscope.models.anatomy import ARCHITECTURES
from pretend_devices import NAME, install
from torch import Tensor

ROWS = ids(2, 9).tolist()
ROWS[1] = ROWS[1][:5]
IDS = torch.tensor([[4, 9], [8, 5]])


def spread(family: str) -> HookedModel:
    """A tiny model with its first block and embeddings on one device and the rest on the other."""
    module = tiny(family, dtype=torch.float32)
    module.config._attn_implementation = "eager"
    blocks = ARCHITECTURES[FAMILIES[family].model_type].blocks
    parts = {name for name, _ in module.named_modules()}
    leaves = {name for name in parts if not any(p.startswith(f"{name}.") for p in parts) and name}
    where = {
        name: f"{NAME}:{int(_late(name, module.config.tie_word_embeddings))}" for name in leaves
    }
    where = {n: at for n, at in where.items() if not n.startswith(f"{blocks}.")}
    where |= {f"{blocks}.{i}": f"{NAME}:{int(i > 0)}" for i in range(3)}
    placed = dispatch_model(module, where, main_device=f"{NAME}:0")
    return wrap(placed, name=family)


def _late(name: str, tied: bool) -> bool:
    """What lies behind the blocks; an unembedding that is the embedding stays beside it."""
    head = any(word in name for word in ("lm_head", "embed_out"))
    return (head and not tied) or any(word in name for word in ("ln_f", "norm", "final"))


def whole(family: str) -> HookedModel:
    module = tiny(family, dtype=torch.float32)
    module.config._attn_implementation = "eager"
    return wrap(module, name=family)


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
    told: dict[str, dict[str, float | str]] = {}
    for family in families:
        told[family] = {}
        try:
            pair = whole(family), spread(family)
        except Exception as error:
            told[family]["load"] = _short(error)
            continue
        for operation in OPERATIONS:
            try:
                told[family][operation.__name__] = _gap(*map(operation, pair))
            except Exception as error:
                told[family][operation.__name__] = _short(error)
    sys.stdout.write(json.dumps(told) + "\n")


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
