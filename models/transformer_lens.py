"""TransformerLens spoken both ways: site names, and models to and from a `TransformerBridge`.

TransformerLens (the optional extra `lens`, 4.3 or later) rewires the module that it is given and
computes rotary attention itself, eagerly. So neither direction hands a module over: the other side
gets a fresh Hugging Face module with the same weights, and a three-token run proves the two equal.
"""

from __future__ import annotations

import copy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .anatomy import GATE_SITES, Anatomy
from .errors import MnemoscopeError, UnsupportedModelError, UnsupportedSiteError
from .hooked import HookedModel, wrap
from .placement import is_offloaded
from .tokens import TokenBatch
from .types import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_HOOKS: dict[Site, str] = {
    Site.RESID_PRE: "hook_resid_pre",
    Site.RESID_MID: "hook_resid_mid",
    Site.RESID_POST: "hook_resid_post",
    Site.Z: "attn.hook_z",
    # Not hook_attn_out and hook_mlp_out: those follow the post-norms of Gemma and OLMo-2 and the
    # residual multiplier of Granite.
    Site.ATTN_OUT: "attn.hook_out",
    Site.MLP_OUT: "mlp.hook_out",
    Site.NEURON: "mlp.hook_post",
    Site.GATE_PRE: "mlp.hook_pre",
    Site.UP: "mlp.hook_pre_linear",
    Site.ROT_Q: "attn.hook_rot_q",
    Site.ROT_K: "attn.hook_rot_k",
    Site.V: "attn.hook_v",
}
_WITHOUT_ROTARY = {Site.ROT_Q: "attn.hook_q", Site.ROT_K: "attn.hook_k"}

_SILENT_ROTARY = ("gptj", "gpt_neox", "phi3")
"""Here TransformerLens 4.3 has hook_rot_q and hook_rot_k but never calls them."""


def hook_name(site: Site, layer: int, anatomy: Anatomy) -> str:
    """The TransformerLens hook whose tensor has the same equation as our site (docs/sites.md).

    Raises `UnsupportedSiteError` where the model has no such site or TransformerLens no hook that
    fires there, `UnitOutOfRangeError` for a layer that does not exist.
    """
    anatomy.check_layer(layer)
    reason = _why_absent(site, anatomy)
    if reason:
        raise UnsupportedSiteError(f"{site} has no TransformerLens hook here: {reason}.")
    hook = _HOOKS[site] if anatomy.spec.rotary else _WITHOUT_ROTARY.get(site, _HOOKS[site])
    return f"blocks.{layer}.{hook}"


def site_of(name: str, anatomy: Anatomy) -> tuple[Site, int]:
    """The site and layer of a TransformerLens hook name: the inverse of `hook_name`.

    The anatomy is needed because a name alone does not say what it means: `attn.hook_q` is `rot_q`
    in a model without rotary positions and something earlier in one with them; in Mixtral
    `mlp.hook_post` holds no neurons. Raises `MnemoscopeError`, with close matches, for a name that
    is no site of this model.
    """
    layers = range(anatomy.n_layers)
    sites = [site for site in Site if not _why_absent(site, anatomy)]
    known = {hook_name(site, i, anatomy): (site, i) for i in layers for site in sites}
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.5) or list(known)[: len(sites)]
        raise MnemoscopeError(
            f"{name!r} is not the TransformerLens name of a site of this {anatomy.model_type} "
            f"model. Close matches: {', '.join(close)}."
        )
    return known[name]


def to_bridge(model: HookedModel) -> TransformerBridge:
    """A `TransformerBridge` over a copy of the model; no network is used and ours is untouched.

    Memory: a second copy of all weights, on the same device. Attention is eager in the copy, which
    is what TransformerLens needs to show scores and patterns. The tokenizer is copied too and the
    bridge set to its own BOS rule, so that `bridge.to_tokens(text)` gives our ids; without a
    tokenizer the bridge takes token ids only.

    Raises `UnsupportedModelError` for weights that are offloaded or spread over devices, an
    architecture unknown to TransformerLens, or a bridge with other logits than the model;
    `MnemoscopeError` when TransformerLens is not installed.
    """
    sources = _lens()
    with model.lock:
        module = _fresh(_local(model.module), attention="eager", share=False)
    architecture = type(module).__name__
    try:
        bridge = sources.build_bridge_from_module(
            module, architecture, hf_config=module.config, model_name=model.name
        )
    except ValueError as error:
        raise UnsupportedModelError(
            f"TransformerLens does not know the architecture {architecture}: {error}"
        ) from error
    if model.tokenizer is not None:
        _give_tokenizer(bridge, model.tokenizer, sources.detect_tokenizer_bos_eos)
    _check_same_logits(bridge, model)
    return bridge


def from_bridge(bridge: TransformerBridge) -> HookedModel:
    """A `HookedModel` over a fresh Hugging Face module with the weights of a bridge.

    Memory: the weights are shared, not copied, so that changing one in place changes both. The
    module uses the attention kernel that transformers chooses for it. The tokenizer is the
    bridge's as it is, with the BOS that TransformerLens may have switched on.

    Raises `UnsupportedModelError` when compatibility mode has rewritten the weights, when the
    bridge is not over a Hugging Face module in this process, or when the logits differ (hooks left
    on the bridge, for example).
    """
    _lens()
    original = _local(getattr(bridge, "original_model", None))
    if bridge._weights_processed:
        raise UnsupportedModelError(
            "this bridge's weights were folded or centred by compatibility mode and no longer "
            "belong to the architecture: boot it again and leave enable_compatibility_mode out, or "
            "give it no_processing=True."
        )
    module = _fresh(original, attention=None, share=True)
    name = str(bridge.cfg.model_name)
    model = wrap(module, bridge.tokenizer, name=name, source=f"TransformerBridge of {name}")
    _check_same_logits(bridge, model)
    return model


def _why_absent(site: Site, anatomy: Anatomy) -> str:
    kind = anatomy.model_type
    if site is Site.RESID_MID and anatomy.parallel:
        return f"{kind} blocks are parallel"
    if site is Site.RESID_MID and anatomy.post_ln:
        return f"{kind} blocks are post-LN, where no norm reads the stream between the two"
    if site in (Site.NEURON, *GATE_SITES):
        try:
            anatomy.n_units(site)
        except UnsupportedSiteError as error:
            return str(error).rstrip(".")
    if site in _WITHOUT_ROTARY and kind in _SILENT_ROTARY:
        return f"TransformerLens never calls {_HOOKS[site]} for {kind}"
    return ""


def _lens() -> Any:
    try:
        from transformer_lens.model_bridge import sources
    except ImportError as error:
        raise MnemoscopeError(
            f"TransformerLens could not be imported ({error}): pip install 'mnemoscope[lens]'."
        ) from error
    return sources


def _local(module: nn.Module | None) -> PreTrainedModel:
    """The module, if a fresh one with its weights can be made here."""
    if not isinstance(module, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(module).__name__} is no Hugging Face model in this process: TransformerLens "
            "bridges of other kinds (vLLM, Inspect, native) have nothing to convert."
        )
    placed = {str(p.device) for p in module.parameters()}
    if is_offloaded(module) or len(placed) > 1:
        where = ", ".join(sorted(placed))
        raise UnsupportedModelError(
            f"the weights are spread over {where}: load the model on one device in memory."
        )
    return module


def _fresh(original: Any, *, attention: str | None, share: bool) -> Any:
    """A module of the same class and configuration, without hooks, with the same weights.

    Names inside a bridge differ only by the wrappers that sit between the parts; the wrapped
    tensors are still there under their own names. `attention=None` takes the default kernel.
    """
    config = copy.deepcopy(original.config)
    config._attn_implementation = attention
    with init_empty_weights(include_buffers=False):
        module = type(original)(config)
    weights = _plain_names(original.state_dict())
    wanted = module.state_dict().keys()
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise UnsupportedModelError(
            f"{type(original).__name__} has no tensor {missing[0]!r}, which its configuration "
            "promises: quantised or rebuilt modules cannot be converted."
        )
    module.load_state_dict({k: _held(weights[k], share) for k in wanted}, assign=True)
    # Buffers outside the state dict (rotary frequencies) may have been cast with the module.
    buffers = _plain_names(dict(original.named_buffers()))
    for name, own in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = _held(buffers.get(name, own), share)
    module.tie_weights()
    module.generation_config = copy.deepcopy(original.generation_config)
    return module.eval()


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("._original_component", ""): value for name, value in tensors.items()}


def _held(tensor: Tensor, share: bool) -> Tensor:
    return tensor.detach() if share else tensor.detach().clone()


def _give_tokenizer(bridge: Any, tokenizer: PreTrainedTokenizerBase, detect: Any) -> None:
    """Give the bridge a copy, by hand: TransformerLens would load one with BOS from the hub."""
    own = copy.deepcopy(tokenizer)
    if own.pad_token is None:
        own.pad_token = own.eos_token
    bridge.tokenizer = own
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect(own)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos


@torch.no_grad()
def _check_same_logits(bridge: Any, model: HookedModel) -> None:
    """Raises `UnsupportedModelError` unless both give the same logits on three tokens."""
    ids = torch.arange(3, device=model.device)[None] % model.anatomy.d_vocab
    ours = model.logits(TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))).float()
    theirs = bridge(ids, attention_mask=torch.ones_like(ids), use_cache=False).float()
    gap = float((ours - theirs).abs().max())
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 5e-2
    if not gap <= tolerance * (1.0 + float(ours.abs().max())):
        raise UnsupportedModelError(
            f"the bridge's logits differ from the model's by {gap:.2g}: remove hooks and edits "
            "from both (bridge.reset_hooks()) and convert again; if there are none, this release "
            f"of TransformerLens computes {model.anatomy.model_type} differently."
        )
