"""How far rounding alone moves a pass in half precision, measured on the model at hand.

Two ways of the same arithmetic agree in float32 to 1e-4 whatever the model is. In bfloat16 they
drift apart with depth and with the size of single coordinates of the stream (30 layers of SmolLM2:
a quarter of a standard deviation of the logits), so that no fixed number tells rounding from
another arithmetic. Here every block reads its stream off by up to one machine epsilon; what that
does to the logits is the yardstick. A repeat with other batch sizes is none: the kernels often
round alike, and the difference is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..models.hooked import HookedModel
from ..models.hooks import site_hook
from ..models.types import Site

SLACK = 2
"""Differences of exact ways were 0.2 to 0.6 times the noise (random models, SmolLM2, Engram)."""


def half_precision_bound(
    model: HookedModel, full: Callable[[], Tensor], found: Tensor, unit: float
) -> float:
    """How far another way may be from `found`, which `full()` gives, in `unit`s of it.

    `SLACK` times the largest change of `full()` under `shaken` blocks, one pass more; 0 in float32
    and wider, where rounding is no excuse.
    """
    if model.dtype.itemsize >= 4:
        return 0.0
    with shaken(model):
        moved = full()
    return SLACK * float((moved - found).abs().max()) / unit


@contextmanager
def shaken(model: HookedModel, seed: int = 0) -> Iterator[None]:
    """Let every block read each number of its stream off by up to one machine epsilon, relatively.

    That is somewhat more than what the additions and products of one block round away.
    """
    with ExitStack() as stack:
        for layer in range(model.anatomy.n_layers):
            hook = site_hook(
                model.module, model.anatomy, Site.RESID_PRE, layer, _shake(seed, layer)
            )
            stack.enter_context(hook)
        yield


def _shake(seed: int, layer: int) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(1000 * seed + layer)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        u = torch.empty_like(wide).uniform_(-1, 1, generator=generator)
        return (wide + u * wide * torch.finfo(x.dtype).eps).to(x.dtype)

    return change
