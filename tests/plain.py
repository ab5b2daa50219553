"""The plain Hugging Face side of the tests of `models`: parts by name, forwards, hooks by hand.

The paths are written out here once more, so that a wrong entry in `models.anatomy` cannot hide by
being used on both sides of an equality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from families import FAMILIES, tiny
from mnemoscope.models import HookedModel, wrap
from torch import Tensor

HEADS = 4  # query heads of every family in families.py
LAYERS = 3
LENGTHS = (9, 5, 2)  # of the rows of a padded batch


@dataclass(frozen=True)
class Parts:
    """Dotted paths: the blocks from the module, everything else from a block."""

    blocks: str = "model.layers"
    attn: str = "self_attn"
    o_proj: str = "self_attn.o_proj"
    mlp: str = "mlp"
    down: str | None = "mlp.down_proj"
    norm: str | None = "model.norm"


PARTS = {
    "gpt2": Parts("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj", "transformer.ln_f"),
    "gptj": Parts(
        "transformer.h", "attn", "attn.out_proj", "mlp", "mlp.fc_out", "transformer.ln_f"
    ),
    "neox": Parts(
        "gpt_neox.layers",
        "attention",
        "attention.dense",
        "mlp",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
    ),
    "opt": Parts(
        "model.decoder.layers",
        "self_attn",
        "self_attn.out_proj",
        "fc2",
        "fc2",
        "model.decoder.final_layer_norm",
    ),
    "opt-post-ln": Parts(
        "model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2", "fc2", None
    ),
    "mixtral": Parts(down=None),
    "phi": Parts(o_proj="self_attn.dense", down="mlp.fc2", norm="model.final_layernorm"),
}
PARTS["neox-sequential"] = PARTS["neox"]

EXACT = 1e-10
SINGLE = 2e-5
"""For sums that transformers takes in float32 whatever the model's type is (the softmax of eager
attention, RMS norms), and that another batch shape rounds differently."""


@cache
def model_of(family: str) -> HookedModel:
    """The wrapped float64 model of a family, made once; tests leave it as they found it."""
    return wrap(tiny(family), name=family)


@cache
def padded_model_of(family: str) -> HookedModel:
    """The model for padded batches: float64, but Gemma-2 in float32.

    Its eager attention takes the softmax in float32, where the lowest float64 of the mask is -inf:
    the row of a padded query that sees only padding is NaN in plain transformers too, and from the
    left it reaches the real tokens.
    """
    dtype = torch.float32 if family == "gemma2" else torch.float64
    return wrap(tiny(family, dtype=dtype), name=family)


def tolerance(dtype: torch.dtype) -> float:
    """How closely two equal computations agree in a type."""
    return EXACT if dtype == torch.float64 else 1e-4


def close(got: Tensor, want: Tensor, atol: float = EXACT) -> None:
    """Equal up to an absolute tolerance."""
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


def noise(*shape: int, seed: int = 3) -> Tensor:
    """Random float64 values of a shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def kv_heads(family: str) -> int:
    """Key/value heads of a family in families.py."""
    return getattr(FAMILIES[family], "num_key_value_heads", None) or HEADS


def parts_of(family: str) -> Parts:
    """The paths of a family; Llama's where it has none of its own."""
    return PARTS.get(family, Parts())


def block(module: Any, family: str, layer: int) -> Any:
    """One decoder block."""
    return module.get_submodule(parts_of(family).blocks)[layer]


def o_proj(module: Any, family: str, layer: int) -> Any:
    """The output projection of attention."""
    return block(module, family, layer).get_submodule(parts_of(family).o_proj)


def down(module: Any, family: str, layer: int) -> Any:
    """The down projection of the MLP."""
    path = parts_of(family).down
    assert path is not None
    return block(module, family, layer).get_submodule(path)


def mlp(module: Any, family: str, layer: int) -> Any:
    """The module whose output is the MLP's."""
    return block(module, family, layer).get_submodule(parts_of(family).mlp)


def padded(side: str, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random ids and their attention mask; padding is id 0."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for i, length in enumerate(lengths):
        first = width - length if side == "left" else 0
        ids[i, first : first + length] = torch.randint(3, 61, (length,), generator=generator)
        mask[i, first : first + length] = 1
    return ids, mask


@torch.no_grad()
def forward(module: Any, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    """A full pass without a cache; positions count a row's real tokens, 0 on padding."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(1) - 1) * mask
    return module(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **options
    )


@contextmanager
def input_changed(target: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's first argument, by a hook of torch's own."""
    handle = target.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def output_changed(target: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's output, or the first of its outputs."""

    def hook(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = target.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def inputs_and_outputs(
    module: Any, targets: dict[str, Any], ids: Tensor, mask: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First argument and first output of each target during one plain pass."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def keep(store: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: store.setdefault(name, x.clone())

    with ExitStack() as stack:
        for name, target in targets.items():
            if target is not None:
                stack.enter_context(input_changed(target, keep(given, name)))
                stack.enter_context(output_changed(target, keep(made, name)))
        forward(module, ids, mask)
    return given, made


@contextmanager
def stopping_at(model: HookedModel, stop: int | list[int] | None) -> Iterator[None]:
    """Let generations end at other tokens, or run their full length."""
    config = model.module.generation_config
    before, config.eos_token_id = config.eos_token_id, stop
    try:
        yield
    finally:
        config.eos_token_id = before


def hook_count(module: Any) -> int:
    """Forward hooks of all kinds on a module and everything inside it."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())
