"""`TracedModel`: every pass of a `HookedModel` as an nnsight trace, here or on a server.

Capture, edits, rows and cached prompts are those of `HookedModel`; what changes is how a pass runs.
In this process the callbacks see the live tensors. On a server they are sent along, read and fold
there, and only what they wrote comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .anatomy import resolve_anatomy
from .backends import Capabilities, Inputs, Places, Read, unread
from .errors import MnemoscopeError, PlacementError, UnsupportedModelError
from .hooked import HookedModel
from .nnsight_places import TracePlaces
from .nnsight_server import Remote, engine_on_server, request
from .placement import execution_device
from .prompt_cache import PromptCache, prefill
from .tokens import TokenBatch
from .types import Site
from .unembedding import picking

if TYPE_CHECKING:
    from .nnsight_pass import Pass


@dataclass(frozen=True, eq=False)
class TracedModel(HookedModel):
    """A model that runs as nnsight traces.

    `module` is the Hugging Face module where its weights lie in this process; elsewhere it is an
    `AbsentModule`, which refuses whatever is asked of it with the reason.
    """

    engine: Any = None
    """The nnsight model."""
    structure: Any = None
    """The module with its shapes, with or without its weights."""
    remote: Remote = False
    """False: in this process. True: NDIF. A URL: another server. "local": nnsight's rehearsal of a
    remote run in this process."""
    seen_dtype: torch.dtype | None = None
    """Data type of the residual stream that a server's self-test showed; None: that of the
    structure, which a server need not share."""

    # -- the engine -------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What this engine gives; probes ask with `backends.require`."""
        sees = not self._blind
        if not self.remote:
            whole = not _is_sharded(self.structure)
            return Capabilities("nnsight in this process", whole, whole, sees)
        where = "NDIF" if self.remote is True else self.remote
        return Capabilities(f"nnsight ({where})", False, False, sees, keeps_cache=False)

    @cached_property
    def places(self) -> Places:
        """Where callbacks are noted for the passes to come."""
        return self._places

    @cached_property
    def _places(self) -> TracePlaces:
        return TracePlaces(self.structure, self.anatomy, self._blind)

    @property
    def _blind(self) -> str:
        if not self.anatomy.spec.interface:
            kind = self.anatomy.model_type
            return f"{kind} does not use the attention interface of transformers"
        return ""

    def run_pass(
        self, inputs: Inputs, columns: Int[Tensor, "batch k"] | None, read: Read = unread
    ) -> tuple[Float[Tensor, "batch k d_vocab"], Any]:
        """One trace with the callbacks in force. On a server the cache that is returned is the
        list of passes so far, which are run again before the next one."""
        from .nnsight_pass import run_passes, write_back

        here = self._pass(inputs, columns, read)
        if not self.remote:
            found = run_passes(self.engine, [here], inputs.cache, (), inputs.use_cache)
            return found["logits"], found["cache"]
        passes = (*(inputs.cache or ()), here)
        into = self._places.written()
        found = request(self.engine, self.remote, self.name, passes, into)
        write_back(into, found["written"])
        return found["logits"], passes if inputs.use_cache else None

    def forked(self, cache: Any, rows: int) -> Any:
        """The cache as it is: passes fork it themselves."""
        return cache

    def _pass(self, inputs: Inputs, columns: Tensor | None, read: Read) -> Pass:
        from .nnsight_pass import Pass, Visit

        visits = self._places.visits()
        if columns is not None:
            unembedding = _path_of(self.structure, self.structure.get_output_embeddings())
            layers, heads = self.anatomy.n_layers, self.anatomy.n_heads
            visits.append(Visit(layers, unembedding, "input", heads, [picking(columns)]))
        arguments = Inputs(inputs.ids, inputs.mask, inputs.positions, None, inputs.use_cache)
        return Pass(arguments.arguments(), visits, list(self._places.running), read)

    def prefill(
        self, ids: Sequence[int], *, before: PromptCache | None = None, chunk: int = 2048
    ) -> PromptCache:
        """`HookedModel.prefill`. On a server nothing is kept: the prompt is run again, with the
        edits in force now, before whatever stands behind it."""
        if not self.remote or self._places.noted:
            return prefill(self, ids, before, chunk)
        unrun = _Unrun(**{one.name: getattr(self, one.name) for one in fields(self)})
        return prefill(unrun, ids, before, chunk)

    # -- facts ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where token ids go: the embeddings' device, or the CPU for a server."""
        if self.remote and self.remote != "local":
            return torch.device("cpu")
        return execution_device(self.structure.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the embeddings, as the engine computes."""
        return self.seen_dtype or self.structure.get_input_embeddings().weight.dtype

    @cached_property
    def weights_sha256(self) -> str:
        """As `HookedModel` has it; a server's weights cannot be read, so the server's name of the
        model stands for them."""
        if self.capabilities.weights or self.remote == "local":
            return HookedModel.weights_sha256.func(self)  # type: ignore[attr-defined]
        return f"not read: {self.source}"

    @property
    def identity(self) -> dict[str, str]:
        """What a result has to say of its model, the engine among it."""
        engine = self.capabilities.engine
        if self.capabilities.weights:
            return {**super().identity, "device": f"{super().identity['device']}, {engine}"}
        return {
            "model_id": self.name,
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "bos_rule": self.bos_rule,
            "device": engine,
            "dtype": str(self.dtype),
            "attention": self._kernel,
        }

    @property
    def _kernel(self) -> str:
        if self.remote and self.remote != "local":
            return "not read"  # the structure's own says nothing of the server's
        return str(self.structure.config._attn_implementation)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a generation."""
        ids = self.structure.generation_config.eos_token_id
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


@dataclass(frozen=True, eq=False)
class _Unrun(TracedModel):
    """The same model while passes are only written down."""

    def run_pass(
        self, inputs: Inputs, columns: Int[Tensor, "batch k"] | None, read: Read = unread
    ) -> tuple[Float[Tensor, "batch k d_vocab"], Any]:
        """The pass, for later."""
        nothing = torch.empty(len(inputs.ids), 0, self.anatomy.d_vocab)
        return nothing, (*(inputs.cache or ()), self._pass(inputs, columns, read))


class AbsentModule:
    """Stands where a model's module would be when its weights are not in this process."""

    def __init__(self, name: str, where: str) -> None:
        self._why = (
            f"this needs the weights of {name} in this process, but they are at {where}: load the "
            "model with backend='local', or use a probe that works through passes alone."
        )

    def __getattr__(self, part: str) -> Any:
        if part.startswith("__"):
            raise AttributeError(part)
        raise UnsupportedModelError(self._why)


# -- opening --------------------------------------------------------------------------------------


def traced(model: HookedModel, *, rehearse: bool = False) -> TracedModel:
    """The same model, its passes as nnsight traces in this process; weights are shared.

    With `rehearse` every pass goes through nnsight's local rehearsal of a remote run: it is
    serialised, and read back with this package hidden. Needs a tokenizer. Raises `MnemoscopeError`
    when nnsight is not installed, `PlacementError` where the embeddings are left on disk.
    """
    nnsight = _nnsight()
    if next(model.module.parameters()).device.type == "meta":
        raise PlacementError(
            f"nnsight sends token ids to the first weight, and that of {model.name} is left on "
            "disk: give the first device of max_memory room for the embeddings and one layer "
            "more, or leave backend='nnsight' out."
        )
    if rehearse:
        engine = nnsight.TransformersModel(model.module, tokenizer=model.text_tokenizer)
    else:
        engine = nnsight.NNsight(model.module)
    return TracedModel(
        model.module,
        model.tokenizer,
        model.anatomy,
        model.name,
        model.source,
        model.lock,
        engine=engine,
        structure=model.module,
        remote="local" if rehearse else False,
    )


def on_server(
    name: str, tokenizer: PreTrainedTokenizerBase, remote: bool | str, *, self_test: bool = True
) -> TracedModel:
    """A model that a server runs: NDIF (`remote=True`) or the server at a URL.

    Only the configuration is read here. `name` is a hub id, or a folder that both machines see.
    With `self_test` three tokens are run. Raises `MnemoscopeError` without nnsight or a key,
    `RemoteRunError` when the server refuses, `UnsupportedModelError` for an unknown architecture.
    """
    _nnsight()
    engine = engine_on_server(name, tokenizer, remote)
    structure = engine._module
    where = "NDIF" if remote is True else str(remote)
    model = TracedModel(
        AbsentModule(name, where),
        tokenizer,
        resolve_anatomy(structure),
        name,
        f"{where}: {engine.to_model_key()}",
        engine=engine,
        structure=structure,
        remote=remote,
    )
    return replace(model, seen_dtype=check_passes(model)) if self_test else model


def tensor_parallel(
    folder: str, degree: int, tokenizer: PreTrainedTokenizerBase | None = None, **load: Any
) -> TracedModel:
    """A checkpoint split over the `degree` processes of this launch (`torchrun`), each with its
    slices; captures are whole and equal on every process, edits hold on all of them.

    Every process has to make the same calls in the same order. `load` goes to transformers.
    Raises `UnsupportedModelError` when heads, key/value heads or the MLP's width cannot be split.
    """
    nnsight = _nnsight()
    from nnsight.modeling.tp import UnshardableCheckpoint
    from transformers.distributed import DistributedConfig

    try:
        engine = nnsight.TransformersModel(
            folder,
            task="text-generation",
            tokenizer=tokenizer,
            dispatch=True,
            distributed_config=DistributedConfig(tp_size=degree),
            **load,
        )
    except UnshardableCheckpoint as error:
        raise UnsupportedModelError(f"{folder} cannot be split {degree} ways: {error}") from error
    module = engine._module.eval()
    model = TracedModel(
        AbsentModule(folder, f"{degree} processes, each with its slices"),
        tokenizer,
        resolve_anatomy(module),
        folder,
        f"{folder}, split {degree} ways",
        engine=engine,
        structure=module,
    )
    check_passes(model)
    return model


def check_passes(model: TracedModel) -> torch.dtype:
    """Run three tokens: every site of every layer is met, and block outputs are the next block's
    inputs. The data type of the first one. Raises `UnsupportedModelError`."""
    ids = torch.arange(3)[None] % model.anatomy.d_vocab
    sites = (Site.RESID_PRE, Site.Z, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST)
    seen = model.capture(TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool)), sites)
    heads = (model.anatomy.n_heads, model.anatomy.d_v)
    for layer in range(model.anatomy.n_layers):
        if seen[Site.Z, layer].shape[2:] != heads:
            raise UnsupportedModelError(
                f"head outputs of layer {layer} of {model.name} are "
                f"{tuple(seen[Site.Z, layer].shape[2:])}, not {heads}: the engine shows a part."
            )
        after = seen.values.get((Site.RESID_PRE, layer + 1))
        if after is not None and not torch.equal(seen[Site.RESID_POST, layer], after):
            raise UnsupportedModelError(
                f"the output of block {layer} of {model.name} is not the next block's input."
            )
    return seen[Site.RESID_PRE, 0].dtype


def _is_sharded(structure: Any) -> bool:
    return any(hasattr(parameter, "placements") for parameter in structure.parameters())


def _path_of(structure: Any, wanted: Any) -> str:
    return next(path for path, module in structure.named_modules() if module is wanted)


def _nnsight() -> Any:
    try:
        import nnsight
    except ImportError as error:
        raise MnemoscopeError(
            f"nnsight could not be imported ({error}): pip install 'mnemoscope[remote]'."
        ) from error
    return nnsight
