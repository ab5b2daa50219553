"""All direct effects of all heads in one sweep over the layers, exactly (path patching to END).

Freeze the head outputs `z` of one run, change the `z` of a sender, recompute everything else that
works token by token. Then no position sees another one, so the logits at END need the chain of the
last token only: `x_{i+1} = F_i(x_i, a_i)` with `a_i` the attention output. The sweep calls the
model's *own* block with its attention replaced by a stub that returns the given `a`, so that any
family works without code of its own; rows (one a sender) grow as the layers go by.

Estimand: *direct effect* in the sense of Wang et al. 2022 (IOI, appendix B) with receiver "logits
at END", MLPs and norms recomputed. It is not the effect of pruning a head: that is `total_end`
(`interventions.end_total_effect`) or the full hooked pass.

`build_chain` proves the identity on the model at hand before any number is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..models.anatomy import head_output_weights, part
from ..models.edits import Edit
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import At, HookedModel
from ..models.tokens import TokenBatch
from ..models.types import HeadId, Site

GUARD_HEADS = 8
_GUARD_TOKENS = 256
Senders = Bool[Tensor, "row layer head"]


@dataclass(frozen=True, eq=False)
class EndStates:
    """What the sweep needs of a run: one chain a position, END unless said otherwise.

    `resid_pre` `[layer, chain, d_model]`, `z` `[layer, chain, head, d_v]`.
    """

    resid_pre: Float[Tensor, "layer chain d_model"]
    z: Float[Tensor, "layer chain head d_v"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Logits (or log-probabilities) of the asked tokens, unpatched and per sender row.

    `clean` `[chain, k]`; `patched` `[chain, row, k]`. The effect of a row is `patched - clean`:
    negative where the sender's own signal spoke for the token.
    """

    clean: Float[Tensor, "chain k"]
    patched: Float[Tensor, "chain row k"]

    @property
    def change(self) -> Float[Tensor, "chain row k"]:
        """`patched - clean`."""
        return self.patched - self.clean[:, None]


@dataclass(frozen=True, eq=False)
class EndChain:
    """A model whose blocks can be run on single tokens with their attention given.

    `calls` holds each block's arguments, and `attn_tails` what its attention returns beside `a`,
    both recorded from a one-token run.
    """

    model: HookedModel
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    attn_tails: tuple[tuple[Any, ...] | None, ...]
    block_tails: tuple[tuple[Any, ...] | None, ...]


# -- the public face --------------------------------------------------------------------------


def end_states(model: HookedModel, batch: TokenBatch, at: At = "end") -> EndStates:
    """Run the prompts once and keep what the sweep needs; `at` may name answer positions too.

    With `at` of shape `[batch, k]` the chains are `batch * k`, row by row. Memory:
    `layers * chains * (heads * d_v + d_model)` numbers.
    """
    captured = model.capture(batch, (Site.RESID_PRE, Site.Z), at=at)
    device = captured[Site.Z, 0].device
    resid = torch.stack([captured[Site.RESID_PRE, i].to(device) for i in _layers(model)])
    z = torch.stack([captured[Site.Z, i].to(device) for i in _layers(model)])
    return EndStates(resid.flatten(1, 2), z.flatten(1, 2))


def direct_effects(
    chain: EndChain,
    original: EndStates,
    replacement: Float[Tensor, "layer chain head d_v"],
    token_ids: Int[Tensor, "chain k"],
    *,
    senders: Senders | None = None,
    log_probs: bool = False,
    memory_mb: int = 512,
) -> Effects:
    """Direct effect of each sender row on the logits of `token_ids`, in one sweep over the layers.

    A row is a set of heads whose `z` are taken from `replacement` (a corrupted run, zeros, means)
    while all others keep `original`; by default one row a head, layer by layer. `log_probs` reads
    the whole vocabulary and normalises. Work: `rows * (layers + 1) / 2` block evaluations a chain.
    The tensors beyond the model and the result stay under `memory_mb` (one chain and one row at
    least); the C allocator may hold on to more of what was freed.
    """
    senders = single_heads(chain.model) if senders is None else senders
    _check_sweep(chain.model, original, replacement, token_ids, senders)
    clean, patched = [], []
    with torch.no_grad():
        for chains, rows in _pieces(chain.model, original, senders, memory_mb):
            part_of = EndStates(original.resid_pre[:, chains], original.z[:, chains])
            x = _sweep(chain, part_of, replacement[:, chains], senders[rows], memory_mb)
            read = _readout(chain, x, token_ids[chains], log_probs, memory_mb)
            clean.append((chains, read[:, 0]))
            patched.append((chains, rows, read[:, 1:]))
    return _assembled(len(token_ids), len(senders), clean, patched)


def frozen_mlp_effects(
    chain: EndChain,
    original: EndStates,
    replacement: Float[Tensor, "layer chain head d_v"],
    token_ids: Int[Tensor, "chain k"],
    *,
    memory_mb: int = 512,
) -> Effects:
    """The same for single heads with every MLP frozen too: `logits = U(N(x_final + delta))`.

    This is direct logit attribution without its frozen-norm approximation. `delta` is the change
    of the block's output with its MLP stubbed, which covers post-norms and residual scales. Raises
    `UnsupportedModelError` for post-LN stacks, where it does not exist.
    """
    model = chain.model
    if model.anatomy.post_ln:
        raise UnsupportedModelError(
            "post-LN blocks normalise the whole stream after the MLP, so there is no frozen-MLP "
            "form for this model: use direct_effects."
        )
    senders = single_heads(model)
    _check_sweep(model, original, replacement, token_ids, senders)
    clean, patched = [], []
    with torch.no_grad():
        for chains, rows in _pieces(model, original, senders, memory_mb):
            states = EndStates(original.resid_pre[:, chains], original.z[:, chains])
            heads = senders[rows]
            final = _sweep(chain, states, states.z, heads[:0], memory_mb)
            deltas = _frozen_deltas(chain, states, replacement[:, chains], heads, memory_mb)
            x = torch.cat([final, final + deltas], dim=1)
            read = _readout(chain, x, token_ids[chains], False, memory_mb)
            clean.append((chains, read[:, 0]))
            patched.append((chains, rows, read[:, 1:]))
    return _assembled(len(token_ids), len(senders), clean, patched)


def single_heads(model: HookedModel) -> Senders:
    """One row a head, layer by layer."""
    anatomy = model.anatomy
    n = anatomy.n_layers * anatomy.n_heads
    return torch.eye(n, dtype=torch.bool).reshape(n, anatomy.n_layers, anatomy.n_heads)


def head_sets(model: HookedModel, sets: Sequence[Sequence[HeadId]]) -> Senders:
    """One row a set of heads. Raises for an empty set or a head that does not exist."""
    senders = torch.zeros(
        (len(sets), model.anatomy.n_layers, model.anatomy.n_heads), dtype=torch.bool
    )
    for row, heads in enumerate(sets):
        if not heads:
            raise MnemoscopeError(f"head set {row} is empty.")
        for head in heads:
            model.anatomy.check_head(head)
            senders[row, head.layer, head.head] = True
    return senders


def build_chain(model: HookedModel, *, seed: int = 0) -> EndChain:
    """Prepare a model for sweeps and prove the identity on it.

    Eight random heads of a random prompt are compared with the hooked full pass (all other `z`
    frozen by edits). Raises `UnsupportedModelError` above 1e-4 (float32 and wider) or 2e-2 (half
    precision) standard deviations of the logits.
    """
    if model.module.training:
        raise MnemoscopeError("the model is in training mode, where dropout is on: call .eval().")
    calls, attn_tails, block_tails = _one_token_run(model)
    chain = EndChain(model, calls, attn_tails, block_tails)
    gap = _guard_gap(chain, seed)
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 2e-2
    if not gap <= tolerance:
        raise UnsupportedModelError(
            f"path patching is not exact on {model.name} (off by {gap:.2g} logit standard "
            f"deviations, at most {tolerance:g} allowed): something besides attention mixes "
            "positions, or heads are coupled before the output projection."
        )
    return chain


# -- the sweep ----------------------------------------------------------------------------------


def _sweep(
    chain: EndChain, states: EndStates, replacement: Tensor, senders: Senders, memory_mb: int
) -> Float[Tensor, "chain row_plus_1 d_model"]:
    """Final residuals: row 0 unpatched, then the sender rows in their given order."""
    first = senders.any(dim=2).int().argmax(dim=1)  # first layer of each row
    order = torch.argsort(first, stable=True)
    starts = torch.bincount(first, minlength=chain.model.anatomy.n_layers)
    x = states.resid_pre[0][:, None]  # [chain, row, d_model]
    for layer in _layers(chain.model):
        x = torch.cat([x, x[:, :1].expand(-1, int(starts[layer]), -1)], dim=1)
        active = senders[order[: x.shape[1] - 1], layer]  # [row, head]
        a = _attention_outputs(chain.model, layer, states.z[layer], replacement[layer], active)
        x = advance(chain, layer, x, a, memory_mb)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return torch.cat([x[:, :1], x[:, 1:][:, back.to(x.device)]], dim=1)


def _attention_outputs(
    model: HookedModel, layer: int, z: Tensor, new_z: Tensor, active: Bool[Tensor, "row head"]
) -> Float[Tensor, "chain row_plus_1 d_model"]:
    """`a` of the unpatched row and of each sender row: `a + sum of its heads' (new_z - z) W_O`.

    The unpatched `a` comes from the real module; deltas are summed in float32 or wider.
    """
    o_proj = part(part(model.module, model.anatomy.spec.blocks)[layer], model.anatomy.spec.o_proj)
    device = o_proj.weight.device
    z, new_z = z.to(device), new_z.to(device)
    a = o_proj(z.flatten(1))[:, None]  # [chain, 1, d_model]
    if not len(active):
        return a
    wide = wide_type(z.dtype)
    slices = head_output_weights(o_proj, model.anatomy.n_heads).to(wide)
    delta = einsum(new_z.to(wide) - z.to(wide), slices, "c head d_v, head d_v d -> c head d")
    rows = einsum(active.to(device=device, dtype=wide), delta, "row head, c head d -> c row d")
    return torch.cat([a, (a.to(wide) + rows).to(a.dtype)], dim=1)


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


def _readout(
    chain: EndChain, x: Tensor, token_ids: Tensor, log_probs: bool, memory_mb: int
) -> Float[Tensor, "chain row k"]:
    """Final norm, projections, unembedding, caps and scales of the model's own forward."""
    n_rows = x.shape[1]
    flat = x.flatten(0, 1)[:, None]
    ids = token_ids.repeat_interleave(n_rows, dim=0).to(flat.device)  # [chain * row, k]
    width = chain.model.anatomy.d_vocab if log_probs else ids.shape[1] * x.shape[2]
    step = max(1, memory_mb * 2**20 // (4 * width * flat.element_size()))
    read = torch.empty(ids.shape, dtype=wide_type(flat.dtype), device=flat.device)
    for i in range(0, len(flat), step):  # into one block: a list of pieces would scatter the heap
        read[i : i + step] = _tail(chain, flat[i : i + step], ids[i : i + step], log_probs)
    return read.unflatten(0, (-1, n_rows))


def _tail(chain: EndChain, x: Tensor, ids: Tensor, log_probs: bool) -> Float[Tensor, "row k"]:
    """Logits or log-probabilities of each row's own token ids."""
    head = chain.model.module.get_output_embeddings()
    logits = after_blocks(chain, x, None if log_probs else unembed_ids(head, ids))
    logits = logits.to(wide_type(logits.dtype))
    if not log_probs:
        return logits
    return logits.log_softmax(-1).gather(1, ids.to(logits.device))


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
        dummy = torch.zeros((len(x), 1), dtype=torch.long, device=model.device)
        output = model.module(
            input_ids=dummy, attention_mask=torch.ones_like(dummy), use_cache=False
        )
    return output.logits[:, 0]


def unembed_ids(head: Any, ids: Int[Tensor, "row k"]) -> Callable[[Tensor], Tensor]:
    """A forward for the unembedding that is restricted to each row's own token ids."""

    def forward(hidden: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos k"]:
        local = ids.to(head.weight.device)
        logits = einsum(hidden, head.weight[local], "row pos d, row k d -> row pos k")
        bias = getattr(head, "bias", None)
        return logits if bias is None else logits + bias[local][:, None]

    return forward


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Scores and deltas are kept in float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def _frozen_deltas(
    chain: EndChain, states: EndStates, replacement: Tensor, senders: Senders, memory_mb: int
) -> Float[Tensor, "chain row d_model"]:
    """What each head's change adds to the residual stream while the MLP is stubbed to zero."""
    deltas = states.resid_pre.new_zeros(
        (states.z.shape[1], len(senders), states.resid_pre.shape[2])
    )
    for layer in _layers(chain.model):
        rows = senders[:, layer].any(dim=1)
        a = _attention_outputs(
            chain.model, layer, states.z[layer], replacement[layer], senders[rows, layer]
        )
        x = states.resid_pre[layer][:, None].expand(-1, a.shape[1], -1)
        with mlp_stubbed(chain.model, layer):
            out = advance(chain, layer, x, a, memory_mb)
        deltas[:, rows] = (out[:, 1:] - out[:, :1]).to(deltas.device)
    return deltas


@contextmanager
def mlp_stubbed(model: HookedModel, layer: int) -> Iterator[None]:
    """Run with a layer's MLP giving zero."""
    block = part(model.module, model.anatomy.spec.blocks)[layer]
    width = model.anatomy.d_model

    def forward(hidden: Tensor) -> Tensor:
        return hidden.new_zeros((*hidden.shape[:-1], width))

    with replaced_forward(part(block, model.anatomy.spec.mlp_out), forward):
        yield


# -- preparation and guard ------------------------------------------------------------------------


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


def _one_token_run(model: HookedModel) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Each block's arguments and the tails of the tuples that attention and block return."""
    calls: list[Any] = []
    attn_tails: list[Any] = []
    block_tails: list[Any] = []

    def note_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = ("past_key_values", "layer_past", "past_key_value")
        fixed = {k: None if k in caches else v for k, v in kwargs.items() if k != "hidden_states"}
        calls.append((args[1:], fixed))

    def note_tail(tails: list[Any]) -> Callable[..., None]:
        return lambda _, __, out: tails.append(out[1:] if isinstance(out, tuple) else None)

    with ExitStack() as stack:
        for block in part(model.module, model.anatomy.spec.blocks):
            attn = part(block, model.anatomy.spec.attn)
            for handle in (
                block.register_forward_pre_hook(note_call, with_kwargs=True),
                attn.register_forward_hook(note_tail(attn_tails)),
                block.register_forward_hook(note_tail(block_tails)),
            ):
                stack.callback(handle.remove)
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return tuple(calls), tuple(attn_tails), tuple(block_tails)


def _guard_gap(chain: EndChain, seed: int) -> float:
    """Largest difference to the hooked full pass, in standard deviations of the logits."""
    model, anatomy = chain.model, chain.model.anatomy
    generator = torch.Generator().manual_seed(seed)
    length = min(6, anatomy.max_context or 6)
    draw = torch.randint(anatomy.d_vocab, (2, length), generator=generator)
    both = model.batch(draw.tolist())
    chosen = torch.randperm(anatomy.n_layers * anatomy.n_heads, generator=generator)[:GUARD_HEADS]
    heads = [anatomy.all_heads()[i] for i in chosen.tolist()]
    states = end_states(model, both)
    original = EndStates(states.resid_pre[:, :1], states.z[:, :1])
    some = torch.randperm(anatomy.d_vocab, generator=generator)[:_GUARD_TOKENS]
    senders = head_sets(model, [[head] for head in heads])
    effects = direct_effects(chain, original, states.z[:, 1:], some[None], senders=senders)
    oracle = frozen_pass_logits(model, both.ids[:1], states.z[:, 1], heads)
    oracle = oracle[:, some.to(oracle.device)]
    gap = (effects.patched[0].to(oracle.device) - oracle).abs().max()
    return float(gap / oracle.std().clamp(min=1e-6))


@torch.no_grad()
def frozen_pass_logits(
    model: HookedModel,
    ids: Int[Tensor, "1 pos"],
    replacement: Float[Tensor, "layer head d_v"],
    heads: Sequence[HeadId],
) -> Float[Tensor, "row d_vocab"]:
    """The definition itself, by brute force: full passes with every `z` set by edits.

    One batch row a head: all heads frozen to their own `z` at every position, the row's head taken
    from `replacement` at END. Used by the guard; the tests hold their own, hook-only oracle.
    """
    anatomy = model.anatomy
    kept = model.capture(model.batch(ids.tolist()), (Site.Z,))
    batch = model.batch(ids.expand(len(heads), -1).tolist())
    edits = []
    for layer in _layers(model):
        z = kept[Site.Z, layer].expand(len(heads), -1, -1, -1).clone()
        for row, head in enumerate(heads):
            if head.layer == layer:
                z[row, -1, head.head] = replacement[layer, head.head].to(z)
        units = tuple(HeadId(layer, h) for h in range(anatomy.n_heads))
        edits.append(Edit("set", units, z))
    with model.intervene(edits):
        logits = model.logits(batch, at="end")[:, 0]
    return logits.to(wide_type(logits.dtype))


# -- cutting the work to the memory budget --------------------------------------------------


def _pieces(
    model: HookedModel, states: EndStates, senders: Senders, memory_mb: int
) -> Iterator[tuple[slice, slice]]:
    """Slices (chains, rows) such that five copies of each row's stream fit half the budget."""
    row_bytes = 5 * model.anatomy.d_model * max(4, states.z.element_size())
    rows_at_once = max(2, memory_mb * 2**19 // row_bytes)
    n_chains, n_rows = states.z.shape[1], len(senders)
    row_step = min(n_rows, rows_at_once - 1)
    chain_step = max(1, rows_at_once // (row_step + 1))
    for chain_start in range(0, n_chains, chain_step):
        for row_start in range(0, n_rows, row_step):
            yield (
                slice(chain_start, min(n_chains, chain_start + chain_step)),
                slice(row_start, min(n_rows, row_start + row_step)),
            )


def _rows_per_call(model: HookedModel, memory_mb: int) -> int:
    """Rows of one block call: its MLP's hidden units and a few streams fit half the budget."""
    config = model.module.config.get_text_config()
    d_mlp = model.anatomy.d_mlp or int(config.intermediate_size)
    width = 4 * d_mlp + 8 * model.anatomy.d_model
    size = max(4, torch.empty((), dtype=model.dtype).element_size())
    return max(1, memory_mb * 2**19 // (width * size))


def _assembled(n_chains: int, n_rows: int, clean: list[Any], patched: list[Any]) -> Effects:
    first = clean[0][1]
    all_clean = first.new_empty((n_chains, first.shape[-1]))
    all_patched = first.new_empty((n_chains, n_rows, first.shape[-1]))
    for chains, values in clean:
        all_clean[chains] = values
    for chains, rows, values in patched:
        all_patched[chains, rows] = values
    return Effects(all_clean, all_patched)


def _check_sweep(
    model: HookedModel, states: EndStates, replacement: Tensor, ids: Tensor, senders: Senders
) -> None:
    if replacement.shape != states.z.shape:
        raise MnemoscopeError(
            f"the replacement z has shape {tuple(replacement.shape)}, the original run "
            f"{tuple(states.z.shape)}: both need [layer, chain, head, d_v] with the same chains."
        )
    if ids.ndim != 2 or len(ids) != states.z.shape[1]:
        raise MnemoscopeError(f"token_ids must be [chain, k], got {tuple(ids.shape)}.")
    if int(ids.min()) < 0 or int(ids.max()) >= model.anatomy.d_vocab:
        raise MnemoscopeError(f"token ids must lie in 0..{model.anatomy.d_vocab - 1}.")
    if not bool(senders.flatten(1).any(dim=1).all()):
        raise MnemoscopeError("a sender row names no head.")


def _layers(model: HookedModel) -> range:
    return range(model.anatomy.n_layers)
