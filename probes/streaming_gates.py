"""Which key/value heads need the whole context? Learned gates (DuoAttention, arXiv 2410.10819).

Each key/value head gets a gate a in [0, 1], the weights stay as they are:

    out = a * full + (1 - a) * stream        stream: the first `sink` and last `recent` keys only

and the gates are trained so that the final hidden states on the labels stay those of the model:

    loss = mean over labels and d_model of (h - h')^2 + penalty * mean |a|

AdamW without decay; the learning rate rises from 10 % over the first fifth of the steps and falls
back to 10 % over the last. Gates start at 1 and are clamped. Two readings of `full`:

- `teacher_full` (the released code): the attention output of the *unmodified* model. No gradient
  flows through full attention, and what streaming heads spoil is put right at every full one.
- `self_full` (the paper's formula): full attention over the gated model's own states.

At a = 1 both are the model itself. Gates are float32 whatever the model is: in bfloat16 the late
steps round away. A gate near 1 says that the head needed more than its window on these samples, not
that it retrieves; gates of one quantile may all be near 1 (`results.attention_patterns`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from ..data.facts.passkeys import PasskeySample
from ..models.attention import AttentionCall
from ..models.backends import require
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.placement import is_offloaded
from ..results.provenance import Provenance, collect_provenance, sha256_of_json
from ..results.run import Run
from ..results.stability import RankStability, rank_stability
from .elicitation import Progress, silent
from .fact_batches import wide
from .streaming_heads import (
    Mix,
    check_interface,
    check_window,
    checkpointed_blocks,
    mixed_attention,
    streaming_output,
)

Full = Literal["teacher_full", "self_full"]
Labels = Literal["suffix", "answers"]

STEPS_A_UNIT = 50
"""Steps between two saved states of a run."""


class Samples(Protocol):
    """Where the samples of a training come from; `Passkeys` is one."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""

    @property
    def sha256(self) -> str:
        """What tells this source from others."""

    def sample(self, step: int) -> PasskeySample:
        """The sample of a step, the same whenever it is asked for."""


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained. `labels`: everything after the context (the released code) or the
    answers' tokens only (the paper's text)."""

    sink: int = 128
    recent: int = 256
    full: Full = "teacher_full"
    labels: Labels = "suffix"
    steps: int = 2000
    learning_rate: float = 0.02
    penalty: float = 0.05

    def check(self) -> None:
        """Raises `MnemoscopeError` for settings that train nothing."""
        check_window(self.sink, self.recent)
        for value, known in ((self.full, get_args(Full)), (self.labels, get_args(Labels))):
            if value not in known:
                raise MnemoscopeError(f"{value!r} is unknown: use {' or '.join(known)}.")
        if self.steps < 1 or self.learning_rate <= 0 or self.penalty < 0:
            raise MnemoscopeError(
                f"gates need steps of at least 1, a positive learning rate and no negative penalty,"
                f" got {self.steps}, {self.learning_rate} and {self.penalty}."
            )

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step counted from 0."""
        fifth = max(1, self.steps // 5)
        rise = 0.1 + 0.9 * step / fifth
        fall = 0.1 + 0.9 * (self.steps - 1 - step) / fifth
        return min(1.0, rise, fall)


@dataclass(frozen=True, eq=False)
class StreamingGates:
    """Trained gates: 1 needs the whole context, 0 does as well with sink and window.

    `alpha` is the mean over seeds of `by_seed`; `loss` holds the distillation loss of every step
    (before the step, without the penalty); `stability` compares the seeds' rankings (None with one
    seed).
    """

    alpha: Float[np.ndarray, "layer kv_head"]
    by_seed: Float[np.ndarray, "seed layer kv_head"]
    loss: Float[np.ndarray, "seed step"]
    stability: RankStability | None
    settings: GateSettings
    provenance: Provenance


def train_gates(
    model: HookedModel,
    sources: Sequence[Samples],
    settings: GateSettings | None = None,
    *,
    run: Run | None = None,
    progress: Progress = silent,
) -> StreamingGates:
    """Train gates on each source from the start, one sample a step; for several seeds of
    one passkey task give `[task.with_seed(seed) for seed in seeds]`.

    With a `run` the state is kept every `STEPS_A_UNIT` steps and training goes on from there, with
    the same result as without an interruption. Memory: the model, a hidden state `[pos, d_model]` a
    layer (`teacher_full`: two), and the activations of one block. Of an offloaded model one block
    is in memory at a time, and a step reads its weights three times.

    Raises `MnemoscopeError` for settings that do not fit, no source, or a run begun with other
    ones, `UnsupportedModelError` for models without the attention interface, and `PromptError`
    before anything runs where samples are longer than the model reads or a sample has no label.
    """
    settings = settings or GateSettings()
    check_training(model, sources, settings)
    trained: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    for number, source in enumerate(sources):

        def tell(done: int, total: int, before: int = number * settings.steps) -> None:
            progress(before + done, len(sources) * total)

        alpha, loss = _trained(model, source, settings, number, run, tell)
        trained.append(alpha)
        losses.append(loss)
    by_seed = np.stack(trained)
    return StreamingGates(
        alpha=by_seed.mean(0),
        by_seed=by_seed,
        loss=np.stack(losses),
        stability=rank_stability([seed.ravel() for seed in by_seed]) if len(by_seed) > 1 else None,
        settings=settings,
        provenance=_provenance(model, sources, settings),
    )


@dataclass(frozen=True, eq=False)
class Distilled:
    """The distillation loss of one sample and its gradient with respect to the gates."""

    loss: float
    gradient: Float[Tensor, "layer kv_head"]


def distil(
    model: HookedModel,
    sample: PasskeySample,
    alpha: Float[Tensor, "layer kv_head"],
    settings: GateSettings,
) -> Distilled:
    """Mean squared difference of final hidden states on the labels, without the penalty.

    Computed in float32 (float64 for a float64 model). Reads offloaded weights three times: for the
    model as it is, the gated one, and its gradients. Raises `PromptError` for a sample without a
    label.
    """
    labels = list(sample.labels if settings.labels == "suffix" else sample.answer_positions)
    if not labels:
        raise PromptError("a sample has nothing after its context to compare: give it an answer.")
    kept: dict[int, Tensor] = {}
    keep = _keeping(kept) if settings.full == "teacher_full" else _unchanged
    with torch.no_grad(), mixed_attention(model, keep):
        target = wide(_final_states(model, sample, labels))
    alpha = alpha.detach().requires_grad_()
    mix = _mixing(alpha, kept, settings)
    # The backward pass runs blocks again: it needs them mixed too.
    with _backward(model), checkpointed_blocks(model), mixed_attention(model, mix):
        found = wide(_final_states(model, sample, labels))
        loss = (found - target).square().mean()
        (gradient,) = torch.autograd.grad(loss, alpha)
    return Distilled(float(loss.detach()), gradient)


@contextmanager
def _backward(model: HookedModel) -> Iterator[None]:
    """Gradients of all but the weights: an offloaded one is kept no longer than its block runs."""
    # A block that is run again stops before its last product is made, which nothing needs; but then
    # the part that makes it never lets go of its weights.
    stop = set_checkpoint_early_stop(not is_offloaded(model.module))
    with model.lock, _frozen(model.module), stop, torch.enable_grad():
        yield


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside the block: the graph would keep those that do."""
    wanted = {name: weight.requires_grad for name, weight in _weights(module)}
    module.requires_grad_(False)
    try:
        yield
    finally:
        # An offloaded weight is another object now: its part has run since.
        for name, weight in _weights(module):
            weight.requires_grad_(wanted[name])


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _final_states(
    model: HookedModel, sample: PasskeySample, labels: list[int]
) -> Float[Tensor, "label d_model"]:
    """Hidden states after the last norm, where the unembedding reads them."""
    kept: list[Tensor] = []

    def keep(_: Any, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0][0, labels])

    handle = model.module.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        # One position is unembedded, for the logits are not used.
        model.forward(model.batch([sample.ids]), torch.tensor([[0]]))
    finally:
        handle.remove()
    return kept[0]


def _unchanged(_: AttentionCall, own: Callable[[], Tensor]) -> Tensor:
    return own()


def _keeping(kept: dict[int, Tensor]) -> Mix:
    def mix(call: AttentionCall, own: Callable[[], Tensor]) -> Tensor:
        kept[call.layer] = own()
        return kept[call.layer]

    return mix


def _mixing(alpha: Tensor, teacher: dict[int, Tensor], settings: GateSettings) -> Mix:
    def mix(call: AttentionCall, own: Callable[[], Tensor]) -> Tensor:
        full = teacher[call.layer] if call.layer in teacher else own()
        stream = streaming_output(call, settings.sink, settings.recent)
        group = full.shape[2] // alpha.shape[1]
        gate = alpha[call.layer].clamp(0, 1).repeat_interleave(group)[:, None].to(full.device)
        return (gate * wide(full) + (1 - gate) * wide(stream)).to(full.dtype)

    return mix


# -- the training -----------------------------------------------------------------------------


@dataclass(eq=False)
class _Training:
    """Gates, optimiser and losses so far; a value only between two steps."""

    alpha: Tensor
    optimiser: torch.optim.AdamW
    loss: list[float] = field(default_factory=list)

    @classmethod
    def begun(cls, model: HookedModel, settings: GateSettings) -> _Training:
        shape = (model.anatomy.n_layers, model.anatomy.n_kv_heads)
        alpha = torch.ones(shape, requires_grad=True, device=model.device)
        return cls(alpha, torch.optim.AdamW([alpha], lr=settings.learning_rate, weight_decay=0.0))

    def step(self, model: HookedModel, sample: PasskeySample, settings: GateSettings) -> None:
        distilled = distil(model, sample, self.alpha, settings)
        penalty = settings.penalty * self.alpha.detach().sign() / self.alpha.numel()
        self.alpha.grad = distilled.gradient + penalty
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(len(self.loss))
        self.optimiser.step()
        with torch.no_grad():
            self.alpha.clamp_(0, 1)
        self.loss.append(distilled.loss)

    def arrays(self) -> dict[str, np.ndarray]:
        state = self.optimiser.state[self.alpha]
        tensors = {"alpha": self.alpha.detach(), **{key: state[key] for key in _MOMENTS}}
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        return {**arrays, "loss": np.array(self.loss)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            self.alpha.copy_(torch.from_numpy(arrays["alpha"]))
        moments = {key: torch.from_numpy(arrays[key]).to(self.alpha.device) for key in _MOMENTS}
        self.loss = arrays["loss"].tolist()
        done = torch.tensor(float(len(self.loss)))
        self.optimiser.state[self.alpha] = {"step": done, **moments}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _trained(
    model: HookedModel,
    source: Samples,
    settings: GateSettings,
    number: int,
    run: Run | None,
    progress: Callable[[int, int], None],
) -> tuple[Float[np.ndarray, "layer kv_head"], Float[np.ndarray, " step"]]:
    """Gates and losses of one source, going on from the last state of the run."""
    task = sha256_of_json({**asdict(settings), "samples": source.sha256})
    training = _Training.begun(model, settings)
    done = _restored(training, number, task, run)
    for step in range(done, settings.steps):
        training.step(model, source.sample(step), settings)
        due = (step + 1) % STEPS_A_UNIT == 0 or step + 1 == settings.steps
        if run is not None and due:
            key = _key(number, step + 1)
            run.save_unit_arrays(key, training.arrays())
            run.append(key, {"task": task, "loss": training.loss[-1]})
            run.check_cancelled()
        progress(step + 1, settings.steps)
    return training.alpha.detach().cpu().numpy(), np.array(training.loss)


def _restored(training: _Training, number: int, task: str, run: Run | None) -> int:
    mine = [key for key in (run.done if run else ()) if key.startswith(_key(number, 0)[:-6])]
    if run is None or not mine:
        return 0
    last = max(mine)
    if run.done[last]["task"] != task:
        raise MnemoscopeError(
            f"run {run.id} trains gates with other settings or samples: start another run, or go "
            "on with the settings it was begun with."
        )
    training.restore(run.load_unit_arrays(last))
    return int(last[-6:])


def _key(number: int, step: int) -> str:
    return f"gates-{number:02d}-{step:06d}"


def check_training(model: HookedModel, sources: Sequence[Samples], settings: GateSettings) -> None:
    """Raises what `train_gates` raises before anything runs."""
    require(model, "gradients", "training of gates")
    settings.check()
    check_interface(model)
    if not sources:
        raise MnemoscopeError("no samples to train gates on: give one source at least.")
    limit, longest = model.anatomy.max_context, max(source.longest for source in sources)
    if limit is not None and longest > limit:
        raise PromptError(
            f"samples have {longest} tokens but {model.name} reads at most {limit}: shorten them."
        )


def _provenance(
    model: HookedModel, sources: Sequence[Samples], settings: GateSettings
) -> Provenance:
    return collect_provenance(
        **model.identity,
        data_sha256=sha256_of_json([source.sha256 for source in sources]),
        prompt_template=None,
        seed=None,
        estimand=f"streaming gates, {settings.full}, sink {settings.sink}, recent "
        f"{settings.recent}, {settings.steps} steps, {len(sources)} sources",
    )
