"""All direct effects of all heads in one sweep over the layers, exactly (path patching to END).

Freeze the head outputs `z` of one run, change the `z` of a sender, recompute everything else that
works token by token. Then no position sees another one, so the logits at END need the chain of the
last token only: `x_{i+1} = F_i(x_i, a_i)`, `a_i` the attention output. The sweep over them is in
`interventions.end_sweep`.

Estimand: *direct effect* in the sense of Wang et al. 2022 (IOI, appendix B) with receiver "logits
at END", MLPs and norms recomputed. It is not the effect of pruning a head: that is `total_end`
(`interventions.end_total_effect`) or the full hooked pass.

`build_chain` proves the identity on the model at hand before any number is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.backends import require
from ..models.edits import Edit
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import At, HookedModel
from ..models.tokens import TokenBatch
from ..models.types import HeadId, Site
from .end_chain import EndChain, one_token_chain, wide_type
from .end_sweep import Effects, EndStates, Frozen, Recomputed, Senders, sweep
from .rounding import half_precision_bound

GUARD_HEADS = 8
_GUARD_TOKENS = 256


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
    least); the C allocator may hold on to more of what was freed. On an offloaded model the rows'
    streams, `chains * (rows + 1) * d_model` numbers, stand in host memory beside that.
    """
    senders = single_heads(chain.model) if senders is None else senders
    _check_sweep(chain.model, original, replacement, token_ids, senders)
    runs = original, replacement
    return sweep(Recomputed, chain, *runs, senders, token_ids, log_probs, memory_mb)


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
    `UnsupportedModelError` for post-LN stacks, where it does not exist. Memory as `direct_effects`.
    """
    model = chain.model
    if model.anatomy.post_ln:
        raise UnsupportedModelError(
            "post-LN blocks normalise the whole stream after the MLP, so there is no frozen-MLP "
            "form for this model: use direct_effects."
        )
    senders = single_heads(model)
    _check_sweep(model, original, replacement, token_ids, senders)
    return sweep(Frozen, chain, original, replacement, senders, token_ids, False, memory_mb)


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
    frozen by edits). Raises `UnsupportedModelError` above 1e-4 standard deviations of the logits,
    in half precision above 2e-2 or what rounding does to the full pass (`rounding`, measured where
    it is asked for), and for an engine without weights (`patched_passes.chain_for` has a way then).
    Reads offloaded weights five times, in half precision up to seven times.
    """
    require(model, "weights", "path patching by single blocks")
    if model.module.training:
        raise MnemoscopeError("the model is in training mode, where dropout is on: call .eval().")
    chain = one_token_chain(model)
    gap, tolerance = _guard(chain, seed)
    if not gap <= tolerance:
        raise UnsupportedModelError(
            f"path patching is not exact on {model.name} (off by {gap:.2g} logit standard "
            f"deviations, at most {tolerance:.2g} allowed): something besides attention mixes "
            "positions, or heads are coupled before the output projection."
        )
    return chain


# -- the guard ------------------------------------------------------------------------------------


def _guard(chain: EndChain, seed: int) -> tuple[float, float]:
    """Largest difference to the hooked full pass and the largest allowed, in standard deviations
    of the logits."""
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

    def full() -> Tensor:
        logits = frozen_pass_logits(model, both.ids[:1], states.z[:, 1], heads)
        return logits[:, some.to(logits.device)]

    oracle = full()
    unit = float(oracle.std().clamp(min=1e-6))
    gap = float((effects.patched[0].to(oracle.device) - oracle).abs().max()) / unit
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 2e-2
    if gap > tolerance:
        tolerance = max(tolerance, half_precision_bound(model, full, oracle, unit))
    return gap, tolerance


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
