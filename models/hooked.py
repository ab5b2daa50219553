"""`HookedModel`: an unmodified Hugging Face decoder with three operations on top.

- `capture`: run once and keep only what is asked, at the positions asked, reduced in the hook.
- `intervene`: a context manager over edits that are data; an edit that never fired raises.
- `rows`: attention rows of chosen query positions, beside the model's own attention kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .anatomy import Anatomy, resolve_anatomy
from .attention import ATTENTION_SITES, attention_rows, keep_inputs
from .attention_edits import AttentionEdit, check_attention_edit
from .attention_hooks import intervention_hooks
from .backends import Capabilities, Inputs, Places, Read, unread
from .edits import Edit, check_edit
from .errors import MnemoscopeError, PromptError
from .greedy import greedy_ids
from .hooks import InstalledEdit, in_batch_shape
from .mean_rows import mean_rows
from .module_places import ModulePlaces
from .placement import devices, execution_device, named_weights
from .prompt_cache import PromptCache, forked, greedy_from, prefill, suffix_logits
from .row_summaries import RowSummaries, Spans, row_summaries
from .self_test import run_self_test
from .suffix_readings import SuffixReading, read_suffix
from .tokens import (
    TokenBatch,
    answer_ids,
    bos_rule,
    encode,
    pad,
    text_pieces,
    vocabulary_sha256,
)
from .types import HeadId, Site, TokenSpan
from .unembedding import unembed_only

At = Literal["all", "end"] | Int[Tensor, "batch k"]
Reduce = Literal["mean", "max", "norm"]


@dataclass(frozen=True, eq=False)
class Captured:
    """What one run kept: `captured[site, layer]`, and the logits at the same positions."""

    values: Mapping[tuple[Site, int], Tensor]
    logits: Float[Tensor, "batch k d_vocab"]

    def __getitem__(self, key: tuple[Site, int]) -> Tensor:
        return self.values[key]

    def stack(self, site: Site) -> Tensor:
        """The site's tensors of all captured layers, `[layer, batch, ...]`.

        On the device of the first of these layers.
        """
        found = [value for (s, _), value in sorted(self.values.items()) if s == site]
        return torch.stack([value.to(found[0].device) for value in found])


@dataclass(frozen=True, eq=False)
class HookedModel:
    """A Hugging Face causal LM, its tokenizer and its anatomy.

    The module is never rewired or copied. Hooks live only inside `capture` and `intervene`; `lock`
    is held while they do, so two threads cannot see each other's edits.
    """

    module: Any
    """The Hugging Face causal LM, unmodified."""
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    name: str
    source: str = ""
    """Where the weights came from (folder, hub revision, GGUF file and its quantisation)."""
    lock: Any = field(default_factory=RLock, repr=False)

    # -- text ---------------------------------------------------------------------------------

    def tokens(
        self, texts: Sequence[str] | str, side: Literal["left", "right"] = "left"
    ) -> TokenBatch:
        """Encode texts under the one BOS rule and pad them.

        Raises `PromptError` for an empty text or one longer than the model's context.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [encode(self.text_tokenizer, text) for text in texts]
        return self.batch(rows, side)

    def batch(
        self, rows: Sequence[Sequence[int]], side: Literal["left", "right"] = "left"
    ) -> TokenBatch:
        """Pad rows of token ids; raises `PromptError` for a row longer than the context."""
        longest = max(map(len, rows), default=0)
        limit = self.anatomy.max_context
        if limit is not None and longest > limit:
            raise PromptError(
                f"a prompt has {longest} tokens but {self.name} reads at most {limit}: shorten it."
            )
        return pad(rows, side=side).to(self.device)

    def answer_ids(self, prompt: str, answer: str, separator: str = " ") -> tuple[int, ...]:
        """Token ids that the answer adds to the prompt; see `tokens.answer_ids`."""
        return answer_ids(self.text_tokenizer, prompt, answer, separator)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return text_pieces(self.text_tokenizer, ids)

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; raises `MnemoscopeError` for a model that was wrapped without one."""
        if self.tokenizer is None:
            raise MnemoscopeError(f"{self.name} has no tokenizer: pass token ids instead of text.")
        return self.tokenizer

    @property
    def bos_rule(self) -> str:
        """The BOS rule in words, for provenance."""
        return "token ids given" if self.tokenizer is None else bos_rule(self.tokenizer)

    # -- facts about the weights ------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device that the embeddings compute on, where token ids go."""
        return execution_device(self.module.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the embeddings."""
        return self.module.get_input_embeddings().weight.dtype

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all weights, in name order.

        The same wherever the weights are; offloaded ones are read once, part by part.
        """
        digest = hashlib.sha256()
        for name, tensor in named_weights(self.module):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the vocabulary, id by id; empty without a tokenizer."""
        return "" if self.tokenizer is None else vocabulary_sha256(self.tokenizer)

    @property
    def identity(self) -> dict[str, str]:
        """What a result has to say of its model, in the names of its provenance."""
        return {
            "model_id": self.name,
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "bos_rule": self.bos_rule,
            "device": ", ".join(devices(self.module)),
            "dtype": str(self.dtype),
            "attention": str(self.module.config._attn_implementation),
        }

    # -- the engine -------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What this engine gives; probes ask with `backends.require`."""
        return Capabilities("this process")

    @cached_property
    def places(self) -> Places:
        """Where callbacks are installed."""
        return ModulePlaces(self.module, self.anatomy)

    # -- running --------------------------------------------------------------------------------

    def logits(self, batch: TokenBatch, at: At = "all") -> Float[Tensor, "batch k d_vocab"]:
        """Logits at all positions, at END, or at columns `[batch, k]`; no gradients are kept.

        Only the asked positions are multiplied with the unembedding.
        """
        return self.capture(batch, (), at=at).logits

    @torch.no_grad()
    def capture(
        self,
        batch: TokenBatch,
        sites: Sequence[Site],
        *,
        layers: Sequence[int] | None = None,
        at: At = "all",
        reduce: Reduce | None = None,
        among: Bool[Tensor, "batch pos"] | None = None,
    ) -> Captured:
        """Run once and keep the sites of the layers (all by default).

        `at` chooses the positions that are kept; `reduce` then folds the position axis inside the
        hook, over real tokens only ("norm" is the root mean square), or over those `among` them (a
        mask; a row needs one cell at least). With `reduce` the logits are those of END. Memory:
        what is kept, plus the forward pass itself. Raises `UnsupportedSiteError`,
        `UnitOutOfRangeError`.
        """
        layers = self.anatomy.chosen_layers(layers)
        if reduce is not None and reduce not in get_args(Reduce):
            raise MnemoscopeError(
                f"reduce={reduce!r} is unknown: use {', '.join(get_args(Reduce))}."
            )
        columns = _columns(batch, at)
        folded = batch.mask if among is None else _checked_cells(batch, among, reduce)
        kept: dict[tuple[str, int], Tensor] = {}
        with self.lock, ExitStack() as stack:
            running = stack.enter_context(self.places.batch())

            def keep(site: Site, layer: int) -> Callable[[Tensor], None]:
                def store(x: Tensor) -> None:
                    value = _at(in_batch_shape(x, running), columns)
                    kept[str(site), layer] = _reduced(value, _at(folded, columns), reduce)

                return store

            inside = [site for site in sites if site in ATTENTION_SITES]
            if inside and self.anatomy.spec.interface:
                see = keep_inputs(inside, layers, keep)
                stack.enter_context(self.places.scores(see, layers, into=(kept,)))
                sites = [site for site in sites if site not in ATTENTION_SITES]
            for site in sites:
                for layer in layers:
                    hook = self.places.site(site, layer, keep(site, layer), into=(kept,))
                    stack.enter_context(hook)
            read = columns if reduce is None else batch.ends[:, None]
            logits = self.forward(batch, read)
        return Captured({(Site(s), layer): x for (s, layer), x in kept.items()}, logits)

    def forward(
        self, batch: TokenBatch, columns: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch k d_vocab"]:
        """The plain forward pass (gradients flow); logits at `columns`, or everywhere."""
        batch = batch.to(self.device)
        return self.run_pass(Inputs(batch.ids, batch.mask.long(), batch.position_ids), columns)[0]

    def run_pass(
        self, inputs: Inputs, columns: Int[Tensor, "batch k"] | None, read: Read = unread
    ) -> tuple[Float[Tensor, "batch k d_vocab"], Any]:
        """One forward pass with the callbacks in force: logits at `columns` (None: everywhere), or
        what `read` makes of them, and the longer cache (None where none is used)."""
        with unembed_only(self.module, columns):
            output = self.module(**inputs.arguments())
        return read(output.logits), output.past_key_values if inputs.use_cache else None

    def forked(self, cache: Any, rows: int) -> Any:
        """A cache of `run_pass` for `rows` rows; running on it leaves the old one as it is."""
        return forked(cache, rows)

    @contextmanager
    def intervene(
        self, edits: Sequence[Edit | AttentionEdit]
    ) -> Iterator[tuple[InstalledEdit, ...]]:
        """Apply edits to every run inside the block, for example::

            with model.intervene([zero([HeadId(3, 1)])]):
                changed = model.logits(batch, at="end")

        `Edit` replaces what a part of the model computes, `AttentionEdit` what a head may read.
        Yields the installed edits with their firing counts. Raises before running for wrong units;
        raises `EditNeverFiredError` on leaving the block if one of them changed nothing.
        """
        for edit in edits:
            if isinstance(edit, AttentionEdit):
                check_attention_edit(edit, self.anatomy)
            else:
                check_edit(edit, self.anatomy)
        with self.lock, intervention_hooks(self.places, self.anatomy, edits) as installed:
            yield installed

    def generate(self, batch: TokenBatch, max_new_tokens: int = 8) -> list[list[int]]:
        """Greedy continuation of each row, new ids only, cut before the first EOS.

        Rows must be padded on the left. Prompt plus new tokens have to fit the context; otherwise
        raises `PromptError`.
        """
        if not bool(batch.mask[:, -1].all()):
            raise PromptError("generation needs prompts padded on the left: tokens(side='left').")
        if max_new_tokens < 1:
            raise MnemoscopeError("generation needs max_new_tokens of at least 1.")
        limit = self.anatomy.max_context
        if limit is not None and batch.ids.shape[1] + max_new_tokens > limit:
            raise PromptError(
                f"{batch.ids.shape[1]} prompt tokens and {max_new_tokens} new ones exceed the "
                f"context of {limit}: shorten the prompt."
            )
        with self.lock:
            new = greedy_ids(self.run_pass, batch.to(self.device), max_new_tokens, self.stop_ids)
        return [_until(row, self.stop_ids) for row in new.tolist()]

    def continuations(self, texts: Sequence[str], max_new_tokens: int = 8) -> list[str]:
        """Greedy continuation of each text, as text."""
        rows = self.generate(self.tokens(texts), max_new_tokens)
        return [self.text_tokenizer.decode(row) for row in rows]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a generation."""
        config = getattr(self.module, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    # -- behind a cached prompt ------------------------------------------------------------------

    def prefill(
        self, ids: Sequence[int], *, before: PromptCache | None = None, chunk: int = 2048
    ) -> PromptCache:
        """Run token ids (behind another cached prompt) and keep keys and values for what follows.

        One row, no padding, `chunk` tokens at a time; edits in force apply. `before` stays as it
        is. Memory: keys and values, and the pass of one chunk. Raises `PromptError` for no tokens
        or more than the model's context.
        """
        return prefill(self, ids, before, chunk)

    def suffix_logits(
        self,
        prompt: PromptCache,
        suffix: Sequence[int],
        queries: Sequence[int] | None = None,
        *,
        rows: int = 1,
    ) -> Float[Tensor, "row query d_vocab"]:
        """Logits at offsets `queries` of a suffix behind a cached prompt (None: at all of them).

        `rows` puts the same suffix into several rows of one batch, so that edits can differ by
        row. Memory: keys and values once more for every row. Raises like `prefill`.
        """
        return suffix_logits(self, prompt, suffix, queries, rows)

    def greedy_from(
        self, prompt: PromptCache, suffix: Sequence[int], max_new_tokens: int = 8
    ) -> list[int]:
        """Greedy continuation of a cached prompt and a suffix: new ids, cut before the first EOS.

        Raises `PromptError` where prompt, suffix and new tokens exceed the context.
        """
        return greedy_from(self, prompt, suffix, max_new_tokens)

    def read_suffix(
        self,
        prompt: PromptCache,
        suffix: Sequence[int],
        queries: Sequence[int] | None = None,
        spans: Sequence[TokenSpan] | Bool[Tensor, "span key"] = (),
        *,
        layers: Sequence[int] | None = None,
        top: int = 1,
        values: bool = False,
    ) -> SuffixReading:
        """What the rows of a suffix read of a cached prompt (and of the suffix itself).

        `spans` are positions in prompt and suffix together. With `values` the head outputs `z` and
        what each span contributes to them are kept too. Memory as `row_summaries`. Raises
        `PromptError` for spans, offsets or a suffix that do not fit.
        """
        layers = self.anatomy.chosen_layers(layers)
        return read_suffix(self, prompt, suffix, queries, spans, layers, top, values)

    def mean_rows(
        self,
        prompt: PromptCache,
        suffix: Sequence[int],
        queries: Sequence[int] | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "layer head key"]:
        """Mean attention row of a suffix's offsets `queries` (None: all), float32.

        Keys are positions in prompt and suffix; NaN where none of the queries can look. Memory:
        the result and 64 MiB. Raises like `read_suffix`; see `models.mean_rows`.
        """
        layers = self.anatomy.chosen_layers(layers)
        return mean_rows(self, prompt, suffix, queries, layers)

    @torch.no_grad()
    def rows(
        self,
        batch: TokenBatch,
        queries: At = "end",
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[HeadId] | None = None,
    ) -> Float[Tensor, "layer batch head query key"]:
        """Attention rows (softmax over keys) of chosen query positions, in float32.

        Computed from post-rotary q and k beside the model's own kernel, which stays in use. Give
        `layers` (all heads of each) or `heads` of one layer. Memory: the result, and one layer's
        `[batch, head, query, key]` scores.
        """
        layers = range(self.anatomy.n_layers) if layers is None else list(layers)
        if heads is not None:
            for head in heads:
                self.anatomy.check_head(head)
            layers = sorted({head.layer for head in heads})
            if len(layers) > 1:
                raise MnemoscopeError("rows of chosen heads are read one layer at a time.")
        if not layers:
            raise MnemoscopeError("no rows to read: name at least one layer or head.")
        for layer in layers:
            self.anatomy.check_layer(layer)
        columns = _columns(batch, queries)
        with self.lock:
            rows = attention_rows(self, batch, columns, layers)
        return rows if heads is None else rows[:, :, [head.head for head in heads]]

    def row_summaries(
        self,
        batch: TokenBatch,
        queries: At = "end",
        spans: Spans | None = None,
        *,
        layers: Sequence[int] | None = None,
        top: int = 1,
    ) -> RowSummaries:
        """`rows` folded as they are computed: the `top` keys, logsumexp, and the mass on `spans`.

        For prompts and numbers of queries whose rows would not fit, in one pass with the model's
        own kernel. Memory: the result and at most 64 MiB, whatever the length. Raises like `rows`,
        and `PromptError` for spans that do not fit their prompts.
        """
        layers = self.anatomy.chosen_layers(layers)
        columns = _columns(batch, queries)
        if columns is None:
            columns = torch.arange(batch.ids.shape[1]).expand(len(batch), -1)
        with self.lock:
            return row_summaries(self, batch, columns, spans, layers, top=top)


def wrap(
    module: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "",
    source: str = "in memory",
    self_test: bool = True,
) -> HookedModel:
    """Wrap a loaded Hugging Face causal LM. The module is put into eval mode, nothing else.

    Raises `UnsupportedModelError` for an unknown or contradicting architecture.
    """
    module.eval()
    anatomy = resolve_anatomy(module)
    if self_test:
        run_self_test(module, anatomy)
    return HookedModel(module, tokenizer, anatomy, name or type(module).__name__, source)


def _columns(batch: TokenBatch, at: At) -> Int[Tensor, "batch k"] | None:
    if isinstance(at, Tensor):
        if at.ndim != 2 or at.shape[0] != len(batch):
            raise MnemoscopeError(f"positions must be columns [batch, k], got {tuple(at.shape)}.")
        if int(at.min()) < 0 or int(at.max()) >= batch.ids.shape[1]:
            raise MnemoscopeError(f"positions must lie in 0..{batch.ids.shape[1] - 1}.")
        return at
    if at not in ("all", "end"):
        raise MnemoscopeError(f"positions {at!r} are unknown: use 'all', 'end' or columns.")
    return batch.ends[:, None] if at == "end" else None


def _at(x: Tensor, columns: Tensor | None) -> Tensor:
    if columns is None:
        return x.detach().clone()
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, columns.to(x.device)].detach()


def _checked_cells(batch: TokenBatch, among: Tensor, reduce: Reduce | None) -> Tensor:
    if reduce is None or among.shape != batch.mask.shape:
        raise MnemoscopeError(
            f"among is a mask {tuple(batch.mask.shape)} of cells to reduce, got "
            f"{tuple(among.shape)} with reduce={reduce!r}."
        )
    cells = among.to(batch.mask.device) & batch.mask
    if not bool(cells.any(1).all()):
        raise PromptError("a row has no token among those to reduce: choose other cells.")
    return cells


def _reduced(value: Tensor, real: Tensor, how: Reduce | None) -> Tensor:
    if how is None:
        return value
    real = real.to(value.device)
    real = real.reshape(*real.shape, *[1] * (value.ndim - 2))
    value = value.float() if value.dtype.itemsize < 4 else value
    if how == "max":
        return value.masked_fill(~real, -torch.inf).amax(dim=1)
    total = (value**2 if how == "norm" else value).masked_fill(~real, 0).sum(1) / real.sum(1)
    return total.sqrt() if how == "norm" else total


def _until(row: list[int], stops: frozenset[int]) -> list[int]:
    for i, token in enumerate(row):
        if token in stops:
            return row[:i]
    return row
