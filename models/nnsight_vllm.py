"""A vLLM engine through nnsight: head outputs, neurons and edits at the engine's speed.

Written against nnsight 0.8.1 and never run on a live engine by its authors: nnsight puts itself
into vLLM's GPU worker. What a CPU can prove (tests/models/test_nnsight_vllm.py) is that the visits
work on vLLM's layout: `[token, width]` without a batch axis, projections that return pairs, MLPs
that are fused.

A module of vLLM's may have the checkpoint's name and mean something else. So before an engine is
given out it is compared with the checkpoint's first block in transformers (`check_served`).

vLLM serves requests, not passes: one prompt each, whole, its last position's logits. Sites are
those that vLLM's own modules show: head outputs, attention and MLP outputs, neurons. No residual
stream (its blocks hand on two halves of it), no gate or up (fused), no queries and keys, no cached
prompts. nnsight's vLLM extra and TransformerLens's want different releases of vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from .anatomy import resolve_anatomy
from .backends import Capabilities, Inputs, Into, Read, unread
from .edits import StreamId, zero
from .errors import MnemoscopeError, UnsupportedModelError, UnsupportedSiteError
from .hooked import HookedModel, wrap
from .hooks import Change
from .nnsight_model import AbsentModule, TracedModel
from .nnsight_places import TracePlaces
from .tokens import TokenBatch
from .types import HeadId, Site

SITES = (Site.Z, Site.ATTN_OUT, Site.NEURON, Site.MLP_OUT)
"""What vLLM's modules show under the names that the checkpoint's own modules have."""

_SHARE = 0.05
"""Largest gap to the first block in transformers, as a share of a site's largest value: half
precision and other kernels stay far below it."""


@dataclass(frozen=True, eq=False)
class ServedPlaces(TracePlaces):
    """`TracePlaces` where callbacks see one request's tokens with a batch axis of one."""

    @contextmanager
    def site(self, site: Site, layer: int, change: Change, into: Into = ()) -> Iterator[None]:
        """See `Places`. Raises `UnsupportedSiteError` for a site that vLLM does not show."""
        if site not in SITES:
            raise UnsupportedSiteError(
                f"vLLM does not show {site}: its modules have {', '.join(SITES)}; load the model "
                "with backend='local' or 'nnsight'."
            )
        with super().site(site, layer, change, into):
            yield


@dataclass(frozen=True, eq=False)
class ServedModel(TracedModel):
    """A model that runs in a vLLM engine; passes are of one prompt, and give its END's logits."""

    @property
    def capabilities(self) -> Capabilities:
        """Passes alone."""
        return Capabilities("vLLM", False, False, attention=False, keeps_cache=False)

    @cached_property
    def _places(self) -> TracePlaces:
        why = "vLLM's kernels compute attention out of sight"
        return ServedPlaces(self.structure, self.anatomy, why)

    def run_pass(
        self, inputs: Inputs, columns: Int[Tensor, "batch k"] | None, read: Read = unread
    ) -> tuple[Float[Tensor, "batch k d_vocab"], Any]:
        """One request of one new token. Raises `MnemoscopeError` for more than one prompt, for
        other logits than END's, and behind a cached prompt."""
        from .nnsight_pass import run_request, write_back

        width = inputs.ids.shape[1]
        if len(inputs.ids) != 1 or inputs.cache is not None or inputs.use_cache:
            raise MnemoscopeError("vLLM takes one whole prompt at a time: run rows one by one.")
        if columns is None or columns.tolist() != [[width - 1]]:
            raise MnemoscopeError("vLLM shows the logits of END alone: ask with at='end'.")
        here = self._pass(inputs, None, read)
        into = self._places.written()
        found = request_of(self.engine, run_request, here, into)
        write_back(into, found["written"])
        return found["logits"], None


def request_of(engine: Any, body: Any, here: Any, into: list[Any]) -> dict[str, Any]:
    """The request itself; what the block saved in the engine's process comes back with it."""
    import nnsight

    nnsight.register(__name__.partition(".")[0])
    ids = here.arguments["input_ids"][0].tolist()
    with engine.trace(ids, temperature=0.0, max_tokens=1):
        found = nnsight.save(body(engine, here, into))
    return found  # noqa: RET504


def vllm_model(
    name: str, tokenizer: PreTrainedTokenizerBase, *, self_test: bool = True, **engine_options: Any
) -> ServedModel:
    """Start a vLLM engine for a checkpoint, for example `vllm_model(folder, tokenizer,
    tensor_parallel_size=2)`. Prefix caching stays off: tokens that it serves are never computed.

    With `self_test` the checkpoint's embeddings and first block are read here too, and the engine
    has to agree with them (`check_served`). Raises `MnemoscopeError` without vLLM (`pip install
    'nnsight[vllm]'`, on a GPU machine), `UnsupportedModelError` for an engine that disagrees.
    """
    if find_spec("vllm") is None:
        raise MnemoscopeError(
            "vLLM is not installed: pip install 'nnsight[vllm]' on a machine with a GPU, or use "
            "backend='nnsight'."
        )
    from nnsight.modeling.vllm import VLLM

    with torch.device("meta"):
        structure = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
    engine = VLLM(name, dispatch=True, enable_prefix_caching=False, **engine_options)
    model = ServedModel(
        AbsentModule(name, "a vLLM engine"),
        tokenizer,
        resolve_anatomy(structure),
        name,
        f"vLLM: {name}",
        engine=engine,
        structure=structure,
        remote="vllm",
    )
    return replace(model, seen_dtype=check_served(model, first_block(name))) if self_test else model


def first_block(name: str) -> HookedModel:
    """A checkpoint cut off after its first block, on the CPU in float32: embeddings, block,
    unembedding. Raises `UnsupportedModelError` as `wrap` does."""
    config = AutoConfig.from_pretrained(name)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    with _without_report():
        module = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True
        )
    return wrap(module, name=f"the first block of {name}")


def check_served(model: ServedModel, first: HookedModel) -> torch.dtype:
    """Run three tokens and compare END with the checkpoint's first block in transformers.

    The sites of layer 0 have its values, those of every layer their width, and edits of the heads
    and of the MLP of layer 0 reach the logits. The data type of what the engine shows. Raises
    `UnsupportedModelError`.
    """
    ids = torch.arange(3)[None] % model.anatomy.d_vocab
    batch = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    sites = [site for site in SITES if site is not Site.NEURON or model.anatomy.d_mlp is not None]
    want, seen = (one.capture(batch, sites, at="end") for one in (first, model))
    for site in sites:
        for layer in range(model.anatomy.n_layers):
            shape, whole = seen[site, layer].shape[2:], want[site, 0].shape[2:]
            if shape != whole:
                raise _unlike(model, f"{site} of layer {layer} is {[*shape]}, not {[*whole]}")
        gap = (seen[site, 0].float() - want[site, 0]).abs().max()
        if not gap <= _SHARE * want[site, 0].abs().max():
            raise _unlike(model, f"{site} of layer 0 has other values")
    heads = [HeadId(0, head) for head in range(model.anatomy.n_heads)]
    for what, edit in (("z", zero(heads)), ("mlp_out", zero([StreamId(0, Site.MLP_OUT)]))):
        with model.intervene([edit]):
            edited = model.logits(batch, at="end")
        if torch.equal(edited, seen.logits):
            raise _unlike(model, f"an edit of {what} of layer 0 does not reach the logits")
    return seen[Site.Z, 0].dtype


def _unlike(model: ServedModel, how: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"vLLM's modules of {model.name} are not those of the checkpoint ({how}): load the model "
        "with backend='local' or 'nnsight'."
    )


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers lists the weights of all other layers as unexpected."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
