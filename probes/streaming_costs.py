"""What does it cost when one key/value head may read only a sink and a window? Leave one out.

The cheap and signed companion of learned gates (`streaming_gates`): a sample's context is prefilled
once with full attention, then its suffix (questions and answers) runs behind that cache with one
key/value head restricted to `sink` and `recent` keys, several heads as rows of one batch. Nothing
is trained, and whether costs of single heads add up is checked on pairs.

Compared with the unrestricted run, at the suffix's positions (positive means that it hurts):

- `kl`: mean over labels of KL(full || restricted) of the next-token distributions, nats;
- `hidden`: mean over labels and d_model of the squared difference of final hidden states, the
  quantity that gates are trained on;
- `nll`: rise of the answers' mean negative log-likelihood, nats a token; negative where the head
  does better without the context.

Restricting the suffix only asks what is *read* from the cache; a gate acts while the context itself
is read too, so the two can disagree about heads that gather context early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from ..data.facts.passkeys import PasskeySample
from ..models.attention import AttentionCall
from ..models.batching import adaptive
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache
from ..models.types import KVHeadId
from ..results.provenance import sha256_of_json
from ..results.run import Run
from .elicitation import Progress, silent
from .fact_batches import wide
from .streaming_heads import check_interface, check_window, mixed_attention, streaming_output

MEASURES = ("kl", "hidden", "nll")


@dataclass(frozen=True, eq=False)
class StreamingCosts:
    """Cost of each restriction on each sample; what a restriction is says the function.

    `kl`, `nll` in nats a token, `hidden` mean squared difference; see the module's docstring.
    """

    kl: Float[np.ndarray, "sample restriction"]
    hidden: Float[np.ndarray, "sample restriction"]
    nll: Float[np.ndarray, "sample restriction"]
    sink: int
    recent: int

    def by_head(self, measure: str, n_layers: int) -> Float[np.ndarray, "sample layer kv_head"]:
        """The costs of `single_head_costs` as grids."""
        costs: np.ndarray = getattr(self, measure)
        return costs.reshape(len(costs), n_layers, -1)


@dataclass(frozen=True, eq=False)
class PairCosts:
    """Do costs add up? Means over samples; `excess` is joint minus the sum of the two.

    A positive excess says that the heads stand in for each other, a negative one that they serve
    the same path.
    """

    pairs: tuple[tuple[KVHeadId, KVHeadId], ...]
    joint: Float[np.ndarray, " pair"]
    summed: Float[np.ndarray, " pair"]

    @property
    def excess(self) -> Float[np.ndarray, " pair"]:
        """Joint cost minus the sum of single costs."""
        return self.joint - self.summed


def single_head_costs(
    model: HookedModel,
    samples: Sequence[PasskeySample],
    *,
    sink: int = 128,
    recent: int = 256,
    memory_mb: int = 512,
    run: Run | None = None,
    progress: Progress = silent,
) -> StreamingCosts:
    """The cost of each key/value head alone; restriction i is head `i % n_kv` of layer `i // n_kv`.

    Raises like `restriction_costs`.
    """
    anatomy = model.anatomy
    size = anatomy.n_layers * anatomy.n_kv_heads
    alone = np.eye(size, dtype=bool).reshape(size, anatomy.n_layers, anatomy.n_kv_heads)
    return restriction_costs(
        model,
        samples,
        alone,
        sink=sink,
        recent=recent,
        memory_mb=memory_mb,
        run=run,
        progress=progress,
    )


def pair_costs(
    model: HookedModel,
    samples: Sequence[PasskeySample],
    pairs: Sequence[tuple[KVHeadId, KVHeadId]],
    *,
    sink: int = 128,
    recent: int = 256,
    measure: str = "kl",
    memory_mb: int = 512,
) -> PairCosts:
    """Restrict two heads together and each alone. Raises like `restriction_costs`, and
    `MnemoscopeError` for a pair of one head with itself."""
    heads = sorted({head for pair in pairs for head in pair})
    if not pairs or any(a == b for a, b in pairs) or measure not in MEASURES:
        raise MnemoscopeError(
            f"pairs need two different heads each and a measure of {', '.join(MEASURES)}."
        )
    grids = np.concatenate([_grids(model, [{head} for head in heads]), _grids(model, pairs)])
    found = restriction_costs(model, samples, grids, sink=sink, recent=recent, memory_mb=memory_mb)
    mean = getattr(found, measure).mean(0)
    alone = dict(zip(heads, mean, strict=False))
    summed = np.array([alone[a] + alone[b] for a, b in pairs])
    return PairCosts(tuple(pairs), mean[len(heads) :], summed)


def restriction_costs(
    model: HookedModel,
    samples: Sequence[PasskeySample],
    restrictions: Bool[np.ndarray, "restriction layer kv_head"],
    *,
    sink: int = 128,
    recent: int = 256,
    memory_mb: int = 512,
    run: Run | None = None,
    progress: Progress = silent,
) -> StreamingCosts:
    """The cost of restricting any sets of key/value heads (True: streams in the suffix).

    With a `run` finished samples are read back. Memory: the context's keys and values once for
    every row, and logits of the suffix; `memory_mb` bounds both (one row runs in any case).

    Raises `MnemoscopeError` for no samples, restrictions of another shape or a run of another task,
    `UnsupportedModelError` for models without the attention interface, and `PromptError` before
    anything runs for samples without answers or longer than the model reads.
    """
    _check(model, samples, restrictions, sink, recent)
    told = {"sink": sink, "recent": recent, "restrictions": restrictions.astype(int).tolist()}
    found = []
    for number, sample in enumerate(samples):
        key = f"streaming-costs-{number:05d}"
        task = sha256_of_json({**told, "sample": sample.ids})
        if run is None or key not in run.done:
            costs = _sample_costs(model, sample, restrictions, sink, recent, memory_mb)
            if run is not None:
                run.save_unit_arrays(key, costs)
                run.append(key, {"task": task})
                run.check_cancelled()
        elif run.done[key]["task"] != task:
            raise MnemoscopeError(
                f"run {run.id} measured other samples or restrictions: start another run."
            )
        else:
            costs = run.load_unit_arrays(key)
        found.append(costs)
        progress(number + 1, len(samples))
    stacked = {name: np.stack([costs[name] for costs in found]) for name in MEASURES}
    return StreamingCosts(**stacked, sink=sink, recent=recent)


def agreement(
    gates: Float[np.ndarray, "layer kv_head"], costs: Float[np.ndarray, "sample layer kv_head"]
) -> float:
    """Spearman correlation over heads of gates and mean costs; NaN where one is constant."""
    return float(stats.spearmanr(gates.ravel(), costs.mean(0).ravel()).statistic)


# -- one sample -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Read:
    """What one pass over the suffix gave, for each row."""

    logprobs: Float[Tensor, "row suffix d_vocab"]
    hidden: Float[Tensor, "row suffix d_model"]


def _sample_costs(
    model: HookedModel,
    sample: PasskeySample,
    restrictions: Bool[np.ndarray, "restriction layer kv_head"],
    sink: int,
    recent: int,
    memory_mb: int,
) -> dict[str, np.ndarray]:
    prompt = model.prefill(sample.ids[: sample.context])
    suffix = sample.ids[sample.context :]
    none = np.zeros((1, *restrictions.shape[1:]), dtype=bool)
    full = _read(model, prompt, suffix, none, sink, recent)
    costs = {name: np.zeros(len(restrictions)) for name in MEASURES}
    rows = _rows_at_once(model, len(sample.ids), len(suffix), memory_mb)
    order = range(len(restrictions))
    batches = [list(order[i : i + rows]) for i in range(0, len(order), rows)]
    answers = [position - sample.context for position in sample.answer_positions]

    def measure(chosen: Sequence[int]) -> dict[str, np.ndarray]:
        read = _read(model, prompt, suffix, restrictions[list(chosen)], sink, recent)
        return _compared(full, read, suffix, answers)

    for chosen, found in adaptive(batches, measure):
        for name in MEASURES:
            costs[name][list(chosen)] = found[name]
    return costs


@torch.no_grad()
def _read(
    model: HookedModel,
    prompt: PromptCache,
    suffix: Sequence[int],
    restricted: Bool[np.ndarray, "row layer kv_head"],
    sink: int,
    recent: int,
) -> _Read:
    """The suffix in as many rows as there are restrictions, each row under its own."""
    total, hidden = len(prompt) + len(suffix), []

    def keep(_: object, args: tuple[Tensor, ...]) -> None:
        hidden.append(args[0])

    def mix(call: AttentionCall, own: Callable[[], Tensor]) -> Tensor:
        rows, heads = np.nonzero(restricted[:, call.layer])
        full = own()
        return full if not len(rows) else _restricted(call, full, rows, heads, sink, recent, total)

    handle = model.module.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        with mixed_attention(model, mix):
            logits = model.suffix_logits(prompt, suffix, rows=len(restricted))
    finally:
        handle.remove()
    return _Read(torch.log_softmax(wide(logits), dim=-1), wide(hidden[0]))


def _restricted(
    call: AttentionCall,
    full: Float[Tensor, "row pos head d_v"],
    rows: np.ndarray,
    heads: np.ndarray,
    sink: int,
    recent: int,
    total: int,
) -> Float[Tensor, "row pos head d_v"]:
    """Put streaming outputs where (row, kv head) is restricted; each such pair is a batch row."""
    at, of = torch.from_numpy(rows).to(full.device), torch.from_numpy(heads).to(full.device)
    n_kv = call.key.shape[1]
    part = AttentionCall(
        call.layer,
        call.query.unflatten(1, (n_kv, -1))[at, of],
        call.key[at, of][:, None],
        call.value[at, of][:, None],
        None if call.mask is None else call.mask[:1],  # equal rows are masked alike
        call.options,
    )
    stream = streaming_output(part, sink, recent, first_key=total - call.key.shape[2])
    changed = full.unflatten(2, (n_kv, -1)).clone()  # [row, pos, kv, group, d_v]
    changed[at, :, of] = stream
    return changed.flatten(2, 3)


def _compared(
    full: _Read, read: _Read, suffix: Sequence[int], answers: Sequence[int]
) -> dict[str, np.ndarray]:
    kl = (full.logprobs.exp() * (full.logprobs - read.logprobs)).sum(-1).mean(-1)
    hidden = (full.hidden - read.hidden).square().mean((1, 2))
    told = torch.tensor(answers, device=kl.device)
    tokens = torch.tensor([suffix[i] for i in answers], device=kl.device)
    rise = (full.logprobs - read.logprobs)[:, told - 1, tokens].mean(-1)
    found = {"kl": kl, "hidden": hidden, "nll": rise}
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def _rows_at_once(model: HookedModel, tokens: int, suffix: int, memory_mb: int) -> int:
    """Rows whose keys, values and log-probabilities (with what comparing them takes) fit."""
    anatomy = model.anatomy
    cache = 2 * anatomy.n_layers * anatomy.n_kv_heads * anatomy.d_v * model.dtype.itemsize * tokens
    return max(1, memory_mb * 2**20 // (cache + 4 * 4 * suffix * anatomy.d_vocab))


def _grids(
    model: HookedModel, sets: Sequence[Sequence[KVHeadId] | set[KVHeadId]]
) -> Bool[np.ndarray, "set layer kv_head"]:
    grids = np.zeros((len(sets), model.anatomy.n_layers, model.anatomy.n_kv_heads), dtype=bool)
    for i, heads in enumerate(sets):
        for head in heads:
            model.anatomy.check_layer(head.layer)
            if not 0 <= head.kv_head < model.anatomy.n_kv_heads:
                raise MnemoscopeError(
                    f"{head}: this model has key/value heads 0 to {model.anatomy.n_kv_heads - 1}."
                )
            grids[i, head.layer, head.kv_head] = True
    return grids


def _check(
    model: HookedModel,
    samples: Sequence[PasskeySample],
    restrictions: np.ndarray,
    sink: int,
    recent: int,
) -> None:
    check_interface(model)
    check_window(sink, recent)
    wanted = (model.anatomy.n_layers, model.anatomy.n_kv_heads)
    if not samples or len(restrictions) == 0 or restrictions.shape[1:] != wanted:
        raise MnemoscopeError(
            f"costs need samples and restrictions [restriction, layer, kv_head] = "
            f"[any, {wanted[0]}, {wanted[1]}], got {len(samples)} samples and "
            f"{list(restrictions.shape)}."
        )
    limit = model.anatomy.max_context
    for sample in samples:
        if not sample.answer_positions or min(sample.answer_positions) <= sample.context:
            raise PromptError("a sample's answers must follow a question after its context.")
        if limit is not None and len(sample.ids) > limit:
            raise PromptError(
                f"a sample has {len(sample.ids)} tokens but {model.name} reads at most {limit}: "
                "shorten it."
            )
