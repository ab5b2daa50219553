"""Where the parts of a decoder are: one table of architectures, confirmed by shape on each model.

The table is data. `resolve_anatomy` reads an entry against a real module and refuses, with the
reason, whatever is unknown or contradicts its entry; `models.self_test` then proves the entry by
running a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import UnitOutOfRangeError, UnsupportedModelError, UnsupportedSiteError
from .types import HeadId, KVHeadId, NeuronId, Site

GATE_SITES = (Site.GATE_PRE, Site.UP)

Queries = Literal["alone", "first", "within_head"]


@dataclass(frozen=True)
class ArchSpec:
    """Paths of the parts of one architecture. Paths below `blocks` start at a block."""

    blocks: str
    attn: str
    o_proj: str
    mlp_out: str
    """Module whose output is the MLP's output."""
    down: str | None
    """Module whose input is the neuron site; None where experts are fused."""
    resid_mid: str | None
    """Module whose input is `resid_mid`; None in parallel blocks."""
    parallel: bool | str = False
    """Attention and MLP read the same input; a string names the configuration flag that decides."""
    pre_norm_flag: str = ""
    """Configuration flag that is False for post-LN stacks; empty where blocks are never post-LN."""
    rotary: bool = True
    gate: str | None = None
    """Module whose output is the gate before its nonlinearity; None where MLPs have no gate."""
    up: str | None = None
    """Module whose output the gate multiplies. The same module as `gate` where they are fused: the
    gate's half comes first."""
    interface: bool = True
    """Attention goes through the attention interface of transformers."""
    query: str = "self_attn.q_proj"
    """Module whose output holds the queries, before any norm and rotary turn."""
    queries: Queries = "alone"
    """Where in that output: alone; first, before keys and values; or each head's beside its own."""
    joint_query_norm: str | None = None
    """Norm over the queries of all heads together; None where each head is normed by itself."""
    transposed: bool = False
    """Projections are Conv1D: their weights are stored `[in, out]`."""


_LLAMA = ArchSpec(
    blocks="model.layers",
    attn="self_attn",
    o_proj="self_attn.o_proj",
    mlp_out="mlp",
    down="mlp.down_proj",
    resid_mid="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
)
_GEMMA2 = ArchSpec(
    blocks="model.layers",
    attn="self_attn",
    o_proj="self_attn.o_proj",
    mlp_out="mlp",
    down="mlp.down_proj",
    resid_mid="pre_feedforward_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
)

ARCHITECTURES: dict[str, ArchSpec] = {
    "gpt2": ArchSpec(
        blocks="transformer.h",
        attn="attn",
        o_proj="attn.c_proj",
        mlp_out="mlp",
        down="mlp.c_proj",
        resid_mid="ln_2",
        rotary=False,
        transposed=True,
        query="attn.c_attn",
        queries="first",
    ),
    "gptj": ArchSpec(
        blocks="transformer.h",
        attn="attn",
        o_proj="attn.out_proj",
        mlp_out="mlp",
        down="mlp.fc_out",
        resid_mid=None,
        parallel=True,
        interface=False,
        query="attn.q_proj",
    ),
    "gpt_neox": ArchSpec(
        blocks="gpt_neox.layers",
        attn="attention",
        o_proj="attention.dense",
        mlp_out="mlp",
        down="mlp.dense_4h_to_h",
        resid_mid="post_attention_layernorm",
        parallel="use_parallel_residual",
        query="attention.query_key_value",
        queries="within_head",
    ),
    "opt": ArchSpec(
        blocks="model.decoder.layers",
        attn="self_attn",
        o_proj="self_attn.out_proj",
        mlp_out="fc2",
        down="fc2",
        resid_mid="final_layer_norm",
        pre_norm_flag="do_layer_norm_before",
        rotary=False,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": ArchSpec(
        blocks="model.layers",
        attn="self_attn",
        o_proj="self_attn.o_proj",
        mlp_out="mlp",
        down=None,
        resid_mid="post_attention_layernorm",
    ),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "phi": ArchSpec(
        blocks="model.layers",
        attn="self_attn",
        o_proj="self_attn.dense",
        mlp_out="mlp",
        down="mlp.fc2",
        resid_mid=None,
        parallel=True,
    ),
    "phi3": replace(
        _LLAMA,
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        query="self_attn.qkv_proj",
        queries="first",
    ),
    "olmo2": ArchSpec(
        blocks="model.layers",
        attn="self_attn",
        o_proj="self_attn.o_proj",
        mlp_out="mlp",
        down="mlp.down_proj",
        resid_mid="mlp",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        joint_query_norm="self_attn.q_norm",
    ),
    "granite": _LLAMA,
}


@dataclass(frozen=True)
class Anatomy:
    """The shape of one model and the paths of its parts. Plain data: it holds no module."""

    model_type: str
    spec: ArchSpec
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_v: int
    d_mlp: int | None
    d_vocab: int
    max_context: int | None
    parallel: bool
    post_ln: bool

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def all_heads(self) -> tuple[HeadId, ...]:
        """Every query head, layer by layer."""
        return tuple(HeadId(i, h) for i in range(self.n_layers) for h in range(self.n_heads))

    def kv_of(self, head: HeadId) -> KVHeadId:
        """The key/value head that a query head reads."""
        return KVHeadId(head.layer, head.head // self.heads_per_kv)

    def sharing(self, head: HeadId) -> tuple[HeadId, ...]:
        """All query heads (this one too) that share its key/value head."""
        first = self.kv_of(head).kv_head * self.heads_per_kv
        return tuple(HeadId(head.layer, first + j) for j in range(self.heads_per_kv))

    def check_head(self, head: HeadId) -> None:
        """Raises `UnitOutOfRangeError` unless the model has this query head."""
        self.check_layer(head.layer)
        if not 0 <= head.head < self.n_heads:
            raise UnitOutOfRangeError(
                f"{head}: this model has query heads 0 to {self.n_heads - 1} in each layer."
            )

    def check_neuron(self, neuron: NeuronId) -> None:
        """Raises `UnitOutOfRangeError` unless the model has this neuron."""
        self.check_layer(neuron.layer)
        n_units = self.n_units(neuron.site)
        if not 0 <= neuron.index < n_units:
            raise UnitOutOfRangeError(
                f"{neuron}: this model has units 0 to {n_units - 1} at {neuron.site} in each layer."
            )

    def n_units(self, site: Site) -> int:
        """Units of one layer at an MLP site: `d_mlp`, or `d_model` at `Site.MLP_OUT`.

        Raises `UnsupportedSiteError` where the architecture has no such units.
        """
        if site is Site.MLP_OUT:
            return self.d_model
        gated = self.spec.gate is not None
        if self.d_mlp is not None and (site is Site.NEURON or (site in GATE_SITES and gated)):
            return self.d_mlp
        raise UnsupportedSiteError(why_no_units(site, self.model_type, self.d_mlp))

    def chosen_layers(self, layers: Sequence[int] | None) -> list[int]:
        """The given layers, or all for None. Raises `UnitOutOfRangeError` for one that is not."""
        chosen = list(range(self.n_layers) if layers is None else layers)
        for layer in chosen:
            self.check_layer(layer)
        return chosen

    def check_layer(self, layer: int) -> None:
        """Raises `UnitOutOfRangeError` unless the model has this layer."""
        if not 0 <= layer < self.n_layers:
            raise UnitOutOfRangeError(
                f"layer {layer} does not exist: this model has layers 0 to {self.n_layers - 1}."
            )


def why_no_units(site: Site, model_type: str, d_mlp: int | None) -> str:
    """The reason, for an error, why an architecture has no single units at a site."""
    if site not in (Site.NEURON, *GATE_SITES):
        return f"{site} has no single units: use {', '.join((Site.NEURON, *GATE_SITES))}."
    if d_mlp is None:
        return f"{model_type} keeps its experts fused: it has no single-neuron site."
    return f"{model_type} has MLPs without a gate: there is no {site}; use {Site.NEURON}."


def resolve_anatomy(module: Any) -> Anatomy:
    """Read the anatomy of a Hugging Face causal LM and confirm the table's entry by shape.

    Raises `UnsupportedModelError` for an unknown architecture or a contradiction.
    """
    config = module.config.get_text_config()
    spec = known_architecture(config.model_type)
    blocks = part(module, spec.blocks)
    n_heads = int(config.num_attention_heads)
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    parallel = getattr(config, spec.parallel) if isinstance(spec.parallel, str) else spec.parallel
    post_ln = bool(spec.pre_norm_flag) and not getattr(config, spec.pre_norm_flag)
    if len(blocks) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"the configuration promises {config.num_hidden_layers} layers but the model has "
            f"{len(blocks)}: the checkpoint and its config.json do not belong together."
        )
    return Anatomy(
        model_type=config.model_type,
        spec=spec,
        n_layers=len(blocks),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_model=int(config.hidden_size),
        d_v=_head_width(blocks, spec, n_heads, config.model_type),
        d_mlp=None if spec.down is None else in_features(part(blocks[0], spec.down)),
        d_vocab=out_features(module.get_output_embeddings()),
        max_context=getattr(config, "max_position_embeddings", None),
        parallel=bool(parallel),
        post_ln=post_ln,
    )


def known_architecture(model_type: str) -> ArchSpec:
    """The table's entry. Raises `UnsupportedModelError` with the list of known architectures."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {model_type!r} is not in the table of known decoders "
            f"({', '.join(sorted(ARCHITECTURES))}). Add an entry to models/anatomy.py."
        )
    return ARCHITECTURES[model_type]


def part(module: Any, path: str) -> Any:
    """The submodule at a dotted path. Raises `UnsupportedModelError` when there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no part {path!r}, so its architecture entry does not fit."
        ) from None


def in_features(linear: Any) -> int:
    """Input width of a Linear, or of GPT-2's transposed Conv1D."""
    return int(linear.weight.shape[0] if isinstance(linear, Conv1D) else linear.in_features)


def out_features(linear: Any) -> int:
    """Output width of a Linear or Conv1D."""
    return int(linear.weight.shape[1] if isinstance(linear, Conv1D) else linear.out_features)


def head_output_weights(o_proj: Any, n_heads: int) -> Float[Tensor, "head d_v d_model"]:
    """A view of the output projection, one `[d_v, d_model]` slice a query head.

    `attn_out = sum_h z[h] @ slice[h] (+ bias)`; no copy is made.
    """
    weight = o_proj.weight if isinstance(o_proj, Conv1D) else o_proj.weight.T
    return rearrange(weight, "(head d_v) d_model -> head d_v d_model", head=n_heads)


def _head_width(blocks: nn.ModuleList, spec: ArchSpec, n_heads: int, model_type: str) -> int:
    """Width of z per head, from the output projections (never hidden // heads: wrong for Gemma)."""
    widths = {in_features(part(block, spec.o_proj)) for block in blocks}
    if len(widths) != 1 or next(iter(widths)) % n_heads:
        raise UnsupportedModelError(
            f"{model_type}: attention output projections take {sorted(widths)} inputs, which are "
            f"not {n_heads} equal heads in every layer."
        )
    return widths.pop() // n_heads
