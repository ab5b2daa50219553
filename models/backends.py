"""What a probe may ask of a model, wherever it runs, and what a back end says it lacks.

A back end installs callbacks at places of the computation (`Places`) and runs passes
(`DecoderModel.run_pass`); capture, edits, rows and cached prompts are built on these two and exist
once. `HookedModel` does both with hooks on a module in this process, `TracedModel` with nnsight
traces, here or on a server. A probe that needs more than passes asks first: `require`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from jaxtyping import Float, Int
from torch import Tensor

from .errors import UnsupportedModelError
from .types import Site

if TYPE_CHECKING:
    from .anatomy import Anatomy
    from .attention import See
    from .hooks import Change, RunningBatch

Into = Sequence[Any]
"""What a callback writes to: dicts and sets with plain keys, tensors, `InstalledEdit`s. A model
that runs elsewhere sends these back; callbacks that write to anything else do so in vain there."""


Read = Callable[[Tensor], Tensor]
"""What is made of a pass's logits before they leave the engine."""


def unread(logits: Tensor) -> Tensor:
    """The logits as they are."""
    return logits


class Places(Protocol):
    """Where callbacks are installed; every method is a context manager that takes them out."""

    def batch(self) -> AbstractContextManager[RunningBatch]:
        """A `RunningBatch` that is up to date whenever a callback runs."""
        ...

    def site(
        self, site: Site, layer: int, change: Change, into: Into = ()
    ) -> AbstractContextManager[None]:
        """Call `change` with the tensor at a site. Raises `UnsupportedSiteError`."""
        ...

    def queries(
        self, layer: int, heads: Sequence[int], change: Change, into: Into = ()
    ) -> AbstractContextManager[None]:
        """Call `change` with a layer's queries before their norm and rotary turn; see
        `query_projections.query_hook`."""
        ...

    def attention(
        self, around: Callable[..., Any], layers: Sequence[int], into: Into = ()
    ) -> AbstractContextManager[None]:
        """Let `around` answer the attention calls of the layers; see
        `attention.around_attention`."""
        ...

    def scores(
        self, see: See, layers: Sequence[int], into: Into = ()
    ) -> AbstractContextManager[None]:
        """Call `see` with what the attention calls of the layers score."""
        ...

    def query_width(self) -> int:
        """Width of one head's query. Raises `UnsupportedModelError`."""
        ...


Need = Literal["weights", "gradients", "attention"]


@dataclass(frozen=True)
class Capabilities:
    """What an engine offers beyond passes with captured and edited sites.

    `weights`: they lie in this process, so that single blocks can be run and slices be read.
    `gradients`: passes can be differentiated. `attention`: queries, keys and values are seen, so
    that rows and attention edits work. `keeps_cache`: keys and values of a prompt are kept; without
    it a prompt is run again for everything that stands behind it.
    """

    engine: str
    weights: bool = True
    gradients: bool = True
    attention: bool = True
    keeps_cache: bool = True


_WHAT: dict[Need, str] = {
    "weights": "the weights in this process",
    "gradients": "gradients",
    "attention": "queries and keys of single heads",
}


class DecoderModel(Protocol):
    """The part of `HookedModel` that every back end has and that the others are built on."""

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def places(self) -> Places: ...

    def run_pass(
        self, inputs: Inputs, columns: Int[Tensor, "batch k"] | None, read: Read = ...
    ) -> tuple[Float[Tensor, "batch k d_vocab"], Any]: ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of one forward pass; `mask` covers what is in the cache too."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch past_and_pos"]
    positions: Int[Tensor, "batch pos"]
    cache: Any = None
    use_cache: bool = False

    def arguments(self) -> dict[str, Any]:
        """As a decoder of transformers takes them."""
        given = {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "use_cache": self.use_cache,
        }
        return given if self.cache is None else {**given, "past_key_values": self.cache}


def require(model: DecoderModel, need: Need, purpose: str) -> None:
    """Raises `UnsupportedModelError`, one sentence, when the model's engine lacks what is needed.

    `purpose` begins the sentence, for example "path patching by single blocks".
    """
    if need not in get_args(Need):
        raise ValueError(f"no engine declares {need!r}: ask for {', '.join(get_args(Need))}.")
    can = model.capabilities
    if not getattr(can, need):
        raise UnsupportedModelError(
            f"{purpose} needs {_WHAT[need]}, which {can.engine} does not give for {model.name}: "
            "load the model with backend='local'."
        )
