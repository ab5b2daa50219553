"""Streaming gates with a budget: so many key/value heads may keep the whole context, and no more.

`streaming_gates` weighs a penalty against the loss, and where gates end between 0 and 1 someone has
to draw a line. Here gates are random switches while they are trained (hard concrete: Louizos et al.
2018, arXiv 1712.01312), exactly 0 or 1 most of the time, and the share that is expected to be open
is held to a `budget` by two Lagrange multipliers (Wang et al. 2020, arXiv 1910.04732; so too in
PruLong, arXiv 2506.17121). With u uniform in (0, 1) and one trained number a for each head:

    z = clamp(1.2 sigmoid((ln u - ln(1 - u) + a) / (2/3)) - 0.1, 0, 1)
    loss = distillation(z) + m1 (open - target) + m2 (open - target)^2       open = mean P(z > 0)

Distillation counts as a share of what it is where every head streams (on the first samples), for
its own scale differs by orders of magnitude between models. The target falls from 1 to the budget
over the first half of the steps, and the multipliers climb. What is asked for is found: a head that
stays open is among the best `budget`, which does not say that it needs the context. Look at the
loss, and at other sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.provenance import sha256_of_json
from ..results.run import Run
from ..results.stability import RankStability, rank_stability
from .elicitation import Progress, silent
from .streaming_gates import STEPS_A_UNIT, GateSettings, Samples, check_training, distil

_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_OPEN_SHIFT = _TEMPERATURE * float(np.log(-_LOW / _HIGH))
_OPEN_AT_START = 3.0
_REFERENCE = 4


@dataclass(frozen=True)
class ConcreteSettings:
    """How switches are trained: window, teacher, labels, steps and learning rate of `gates` (its
    penalty is not used), the `budget`, a share of key/value heads, and the seed of the switches."""

    gates: GateSettings = field(default_factory=lambda: GateSettings(learning_rate=0.1))
    budget: float = 0.5
    seed: int = 0

    def target(self, step: int) -> float:
        """Share of heads that should be open at a step."""
        half = max(1, self.gates.steps // 2)
        return 1 - (1 - self.budget) * min(1.0, (step + 1) / half)


@dataclass(frozen=True, eq=False)
class ConcreteGates:
    """Switches as they stand after training, with nothing random: 1 open, 0 streaming.

    `open_share` is the expected share of open heads at every step, `loss` the distillation loss of
    the switches drawn there, as a share of that of all heads streaming; `stability` compares the
    sources' rankings (None with one).
    """

    gate: Float[np.ndarray, "layer kv_head"]
    by_source: Float[np.ndarray, "source layer kv_head"]
    loss: Float[np.ndarray, "source step"]
    open_share: Float[np.ndarray, "source step"]
    stability: RankStability | None
    settings: ConcreteSettings


def train_concrete_gates(
    model: HookedModel,
    sources: Sequence[Samples],
    settings: ConcreteSettings | None = None,
    *,
    run: Run | None = None,
    progress: Progress = silent,
) -> ConcreteGates:
    """Train switches on each source from the start, one sample a step.

    With a `run` training goes on where it was stopped, with the same result. Memory and errors as
    in `train_gates`; raises `MnemoscopeError` too for a budget that is not between 0 and 1.
    """
    settings = settings or ConcreteSettings()
    if not 0 < settings.budget < 1:
        raise MnemoscopeError(
            f"a budget of {settings.budget} of the heads: choose a share between 0 and 1."
        )
    check_training(model, sources, settings.gates)
    steps = settings.gates.steps
    trained = []
    for number, source in enumerate(sources):
        state = _Switches.begun(model, source, settings.gates)
        task = sha256_of_json({**asdict(settings), "samples": source.sha256})
        for step in range(_restored(state, number, task, run), steps):
            state.step(model, source, step, settings)
            if run is not None and ((step + 1) % STEPS_A_UNIT == 0 or step + 1 == steps):
                run.save_unit_arrays(_key(number, step + 1), state.arrays())
                run.append(_key(number, step + 1), {"task": task})
                run.check_cancelled()
            progress(number * steps + step + 1, len(sources) * steps)
        trained.append(state)
    by_source = np.stack([_settled(state.a).cpu().numpy() for state in trained])
    ranks = [state.a.detach().cpu().numpy().ravel() for state in trained]
    return ConcreteGates(
        gate=by_source.mean(0),
        by_source=by_source,
        loss=np.stack([state.loss for state in trained]),
        open_share=np.stack([state.open for state in trained]),
        stability=rank_stability(ranks) if len(ranks) > 1 else None,
        settings=settings,
    )


@dataclass(eq=False)
class _Switches:
    """Numbers of the switches, multipliers, Adam's moments of both, and losses so far."""

    a: Tensor
    multipliers: Tensor
    worst: float
    """Distillation loss where every head streams."""
    moments: dict[str, Tensor]
    loss: list[float] = field(default_factory=list)
    open: list[float] = field(default_factory=list)

    @classmethod
    def begun(cls, model: HookedModel, source: Samples, gates: GateSettings) -> _Switches:
        shape = (model.anatomy.n_layers, model.anatomy.n_kv_heads)
        a = torch.full(shape, _OPEN_AT_START, device=model.device)
        multipliers = torch.zeros(2, device=model.device)
        named = {"a": a, "multipliers": multipliers}
        moments = {f"{n}_{k}": torch.zeros_like(x) for n, x in named.items() for k in (1, 2)}
        none = torch.zeros_like(a)
        worst = [distil(model, source.sample(i), none, gates).loss for i in range(_REFERENCE)]
        # Where no head loses anything by streaming, nothing can be told apart.
        return cls(a, multipliers, float(np.mean(worst)) or 1.0, moments)

    def step(
        self, model: HookedModel, source: Samples, step: int, settings: ConcreteSettings
    ) -> None:
        noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        u = torch.rand(self.a.shape, generator=noise).clamp(1e-6, 1 - 1e-6).to(self.a.device)
        a, multipliers = self.a.requires_grad_(), self.multipliers.requires_grad_()
        with torch.enable_grad():
            noisy = (u.log() - (1 - u).log() + a) / _TEMPERATURE
            z = _stretched(torch.sigmoid(noisy))
            distilled = distil(model, source.sample(step), z, settings.gates)
            share = torch.sigmoid(a - _OPEN_SHIFT).mean()
            gap = share - settings.target(step)
            budget = multipliers[0] * gap + multipliers[1] * gap**2
            of_z = (
                z * distilled.gradient
            ).sum() / self.worst  # its gradient in `a` is that of the loss
            of_a, of_multipliers = torch.autograd.grad(of_z + budget, (a, multipliers))
        rate = settings.gates.learning_rate * settings.gates.rate(step)
        self.a = self._adam("a", a.detach(), of_a, rate, step)
        self.multipliers = self._adam(
            "multipliers", multipliers.detach(), -of_multipliers, rate, step
        )
        self.loss.append(distilled.loss / self.worst)
        self.open.append(float(share.detach()))

    def _adam(self, name: str, x: Tensor, gradient: Tensor, rate: float, step: int) -> Tensor:
        first, second = (self.moments[f"{name}_{k}"] for k in (1, 2))
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        return x - rate * mean / (square.sqrt() + 1e-8)

    def arrays(self) -> dict[str, np.ndarray]:
        tensors = {"a": self.a, "multipliers": self.multipliers, **self.moments}
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}
        return {**arrays, "loss": np.array(self.loss), "open": np.array(self.open)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        device = self.a.device
        self.a = torch.from_numpy(arrays["a"]).to(device)
        self.multipliers = torch.from_numpy(arrays["multipliers"]).to(device)
        self.moments = {name: torch.from_numpy(arrays[name]).to(device) for name in self.moments}
        self.loss, self.open = arrays["loss"].tolist(), arrays["open"].tolist()


def _stretched(s: Tensor) -> Tensor:
    return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _settled(a: Tensor) -> Tensor:
    """The switch without its noise (Louizos et al. 2018, eq. 13)."""
    return _stretched(torch.sigmoid(a.detach()))


def _restored(state: _Switches, number: int, task: str, run: Run | None) -> int:
    mine = [key for key in (run.done if run else ()) if key.startswith(_key(number, 0)[:-6])]
    if run is None or not mine:
        return 0
    last = max(mine)
    if run.done[last]["task"] != task:
        raise MnemoscopeError(
            f"run {run.id} trains switches with other settings or samples: start another run."
        )
    state.restore(dict(run.load_unit_arrays(last)))
    return int(last[-6:])


def _key(number: int, step: int) -> str:
    return f"switches-{number:02d}-{step:06d}"
