"""Blocks that run on single tokens with their attention given: what a sweep to END stands on.

The blocks are the model's own, their attention replaced by a stub, so that any family works without
code of its own; what lies behind the blocks (final norm, unembedding, caps) runs as its own code
too. On an offloaded model hold `layer_weights` around the calls of a layer, and it is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..models.anatomy import part
from ..models.hooked import HookedModel
from ..models.placement import materialised


@dataclass(frozen=True, eq=False)
class EndChain:
    """A model whose blocks can be run on single tokens with their attention given.

    `calls` holds each block's arguments, and `attn_tails` what its attention returns beside `a`,
    both recorded from a one-token run.
    """

    model: HookedModel
    calls: tuple[BlockCall, ...]
    attn_tails: tuple[tuple[Any, ...] | None, ...]
    block_tails: tuple[tuple[Any, ...] | None, ...]


BlockCall = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with after its hidden states: positional arguments, and named ones."""


def one_token_chain(model: HookedModel) -> EndChain:
    """Record a one-token run. Nothing is proved: see `path_patching.build_chain`."""
    attn_tails: list[Any] = []
    block_tails: list[Any] = []

    def note_tail(tails: list[Any]) -> Callable[..., None]:
        return lambda _, __, out: tails.append(out[1:] if isinstance(out, tuple) else None)

    with ExitStack() as stack:
        calls = stack.enter_context(noted_calls(model))
        for block in part(model.module, model.anatomy.spec.blocks):
            attn = part(block, model.anatomy.spec.attn)
            for target, tails in ((attn, attn_tails), (block, block_tails)):
                stack.callback(target.register_forward_hook(note_tail(tails)).remove)
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    without = tuple((args, _without_cache(kwargs)) for args, kwargs in calls)
    return EndChain(model, without, tuple(attn_tails), tuple(block_tails))


def _without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    caches = ("past_key_values", "layer_past", "past_key_value")
    return {key: None if key in caches else value for key, value in kwargs.items()}


@contextmanager
def noted_calls(model: HookedModel) -> Iterator[list[BlockCall]]:
    """A list that fills with the arguments of each block as the model runs, layer by layer."""
    calls: list[BlockCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

    with ExitStack() as stack:
        for block in part(model.module, model.anatomy.spec.blocks):
            stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield calls


def advance(
    chain: EndChain, layer: int, x: Tensor, a: Tensor, memory_mb: int
) -> Float[Tensor, "chain row d_model"]:
    """One block on every row, its attention replaced by the given `a`; cut into bounded calls."""
    block = part(chain.model.module, chain.model.anatomy.spec.blocks)[layer]
    attn = part(block, chain.model.anatomy.spec.attn)
    args, kwargs = chain.calls[layer]
    flat, flat_a = x.flatten(0, 1)[:, None].to(a.device), a.flatten(0, 1)[:, None]
    out = torch.empty_like(flat)
    step = _rows_per_call(chain.model, memory_mb)
    for start in range(0, len(flat), step):
        piece = slice(start, start + step)
        with replaced_forward(attn, _returning(flat_a[piece], chain.attn_tails[layer])):
            got = block(flat[piece], *args, **kwargs)
        out[piece] = got[0] if isinstance(got, tuple) else got
    return out.reshape(x.shape)


def _rows_per_call(model: HookedModel, memory_mb: int) -> int:
    """Rows of one block call: its MLP's hidden units and a few streams fit half the budget."""
    config = model.module.config.get_text_config()
    d_mlp = model.anatomy.d_mlp or int(config.intermediate_size)
    width = 4 * d_mlp + 8 * model.anatomy.d_model
    size = max(4, torch.empty((), dtype=model.dtype).element_size())
    return max(1, memory_mb * 2**19 // (width * size))


def layer_weights(model: HookedModel, layer: int) -> AbstractContextManager[None]:
    """Hold what `advance` needs of a layer in memory: all but the way from stream to `z`."""
    block = part(model.module, model.anatomy.spec.blocks)[layer]
    bypassed = set(part(block, model.anatomy.spec.attn).modules())
    bypassed -= {part(block, model.anatomy.spec.o_proj)}
    return materialised(module for module in block.modules() if module not in bypassed)


def tail_weights(model: HookedModel) -> AbstractContextManager[None]:
    """Hold what lies behind the blocks in memory; embeddings, which nothing here reads, are not."""
    left_out = set(part(model.module, model.anatomy.spec.blocks).modules())
    left_out.add(model.module.get_input_embeddings())
    return materialised(module for module in model.module.modules() if module not in left_out)


def after_blocks(
    chain: EndChain, x: Float[Tensor, "row 1 d_model"], unembed: Callable[[Tensor], Tensor] | None
) -> Float[Tensor, "row k"]:
    """Run the model with its blocks bypassed, so that everything after them is its own code.

    `unembed` takes the place of the unembedding's forward, if given.
    """
    model = chain.model
    blocks = part(model.module, model.anatomy.spec.blocks)
    with ExitStack() as stack:
        for block, tail in zip(blocks, chain.block_tails, strict=True):
            stack.enter_context(replaced_forward(block, _returning(x, tail)))
        if unembed is not None:
            head = model.module.get_output_embeddings()
            stack.enter_context(replaced_forward(head, unembed))
        output = model.module(
            inputs_embeds=nothing_embedded(model, len(x), 1),
            attention_mask=torch.ones((len(x), 1), dtype=torch.long, device=model.device),
            use_cache=False,
        )
    return output.logits[:, 0]


def nothing_embedded(
    model: HookedModel, rows: int, positions: int
) -> Float[Tensor, "row pos d_embedding"]:
    """Stands in for embeddings that the bypassed blocks will not see, so that none are read."""
    width = model.module.get_input_embeddings().embedding_dim
    return torch.zeros((rows, positions, width), dtype=model.dtype, device=model.device)


def unembed_ids(head: Any, ids: Int[Tensor, "row k"]) -> Callable[[Tensor], Tensor]:
    """A forward for the unembedding that is restricted to each row's own token ids."""

    def forward(hidden: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos k"]:
        with materialised([head]):
            local = ids.to(head.weight.device)
            rows = head.weight[local]
            bias = getattr(head, "bias", None)
            bias = None if bias is None else bias[local][:, None]
        logits = einsum(hidden.to(rows.device), rows, "row pos d, row k d -> row pos k")
        return logits if bias is None else logits + bias

    return forward


@contextmanager
def mlp_stubbed(model: HookedModel, layer: int) -> Iterator[None]:
    """Run with a layer's MLP giving zero."""
    block = part(model.module, model.anatomy.spec.blocks)[layer]
    width = model.anatomy.d_model

    def forward(hidden: Tensor) -> Tensor:
        return hidden.new_zeros((*hidden.shape[:-1], width))

    with replaced_forward(part(block, model.anatomy.spec.mlp_out), forward):
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run with `module.forward` replaced; whatever was there (also accelerate's) comes back."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _returning(x: Tensor, tail: tuple[Any, ...] | None) -> Callable[..., Any]:
    """A forward that ignores its input and returns `x` in the shape of the original's output."""
    return lambda *_, **__: x if tail is None else (x, *tail)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Scores and deltas are kept in float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
