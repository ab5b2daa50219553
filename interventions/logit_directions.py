"""Which direction of each layer's stream raises a token's logit, every norm at the scale it ran at.

With the norms' scales frozen the logit before caps is linear in what attention, MLPs and embedding
add: `logit = offset + u . x_final`, and `u` pulled back through a layer's post-norm or residual
scale weighs that layer's attention output. So the write of a head, or of what it reads off some of
its keys, is one dot product, and the writes of all parts add up to the logit (direct logit
attribution; Elhage et al. 2021).

No norm is known by name here. The frozen map follows from the gradient of the model's own code: a
norm is blind to the length of its input, and that one missing component is what the output itself
says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.anatomy import head_output_weights, part
from ..models.errors import UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.placement import materialised
from .end_chain import (
    EndChain,
    advance,
    after_blocks,
    layer_weights,
    mlp_stubbed,
    unembed_ids,
    wide_type,
)

_BLOCK_MB = 512
_FAR = 3


@dataclass(frozen=True, eq=False)
class LogitDirections:
    """For each row (a position and the token it shall predict) what raises that token's logit."""

    logit: Float[Tensor, " row"]
    """What the unembedding gives: before soft caps and constant scales that may follow it."""
    offset: Float[Tensor, " row"]
    """What no part of the stream gives: biases of the final norm and the unembedding."""
    final: Float[Tensor, "row d_model"]
    """`logit = offset + final . x_final`."""
    attention: Float[Tensor, "layer row d_model"]
    """`attention . a` is what attention output `a` (output bias included) adds to the logit."""

    def of_heads(self, model: HookedModel) -> Float[Tensor, "layer row head d_v"]:
        """Directions for head outputs `z`, or for any share of them: pulled back through W_O."""
        anatomy = model.anatomy
        blocks = part(model.module, anatomy.spec.blocks)
        projections = [part(block, anatomy.spec.o_proj) for block in blocks]
        device = self.attention.device
        pulled = []
        for directions, projection in zip(self.attention, projections, strict=True):
            with materialised([projection]):
                weights = head_output_weights(projection, anatomy.n_heads)
                weights = weights.detach().to(device, directions.dtype)
            pulled.append(torch.einsum("rd,hvd->rhv", directions, weights))
        return torch.stack(pulled)


def logit_directions(
    chain: EndChain,
    final: Float[Tensor, "row d_model"],
    z: Float[Tensor, "layer row head d_v"],
    token_ids: Int[Tensor, " row"],
) -> LogitDirections:
    """Directions for the run in which the last block gave `final` and the heads gave `z`.

    Float32 or wider. Cost: each block's residual path, forward and backward, on four times the
    rows, with its attention and MLP stubbed. Raises `UnsupportedModelError` for post-LN stacks,
    whose norms take the whole stream, so that parts do not add up.
    """
    model = chain.model
    if model.anatomy.post_ln:
        raise UnsupportedModelError(
            "post-LN blocks normalise the whole stream after each part, so parts do not add up to "
            "a logit: measure direct effects by path patching instead."
        )
    wide = wide_type(final.dtype)
    ids = token_ids.to(model.device)[:, None]

    def logits(x: Tensor) -> Tensor:
        return _unembedded(chain, x, ids.repeat(len(x) // len(ids), 1))[:, None]

    ones = torch.ones(len(ids), 1, dtype=wide, device=model.device)
    final_direction, offset, logit = _frozen(logits, final, ones)
    blocks = part(model.module, model.anatomy.spec.blocks)
    attention = []
    for layer, block in enumerate(blocks):

        def added(a: Tensor, layer: int = layer) -> Tensor:
            with mlp_stubbed(model, layer):
                return advance(chain, layer, torch.zeros_like(a)[None], a[None], _BLOCK_MB)[0]

        with layer_weights(model, layer):
            with torch.no_grad():
                a = part(block, model.anatomy.spec.o_proj)(z[layer].flatten(1))
            direction = _frozen(added, a, final_direction.to(a.device))[0]
        attention.append(direction.to(final_direction.device))
    return LogitDirections(logit, offset, final_direction, torch.stack(attention))


def _unembedded(chain: EndChain, x: Tensor, ids: Tensor) -> Float[Tensor, " row"]:
    """Logits of one token a row, as they leave the unembedding."""
    kept: list[Tensor] = []
    unembed = unembed_ids(chain.model.module.get_output_embeddings(), ids)

    def keeping(hidden: Tensor) -> Tensor:
        kept.append(unembed(hidden))
        return kept[0]

    after_blocks(chain, x[:, None], keeping)
    return kept[0][:, 0, 0]


def _frozen(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "row d"], weights: Float[Tensor, "row out"]
) -> tuple[Float[Tensor, "row d"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """`(g, at_zero, value)` with `weights . f(x) = at_zero + g . x`, the norm in `f` frozen at `x`.

    `f` is linear, or a norm and then linear. The gradient of a norm lacks the component along its
    (centred) input, and nothing else of the frozen map; `f(x)` tells how long that one is.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        fixed = x.detach()
        far = _FAR * fixed.pow(2).mean(-1, keepdim=True).sqrt()
        given = f(torch.cat([x, torch.zeros_like(x), fixed + far, fixed - far]))
        given = given.to(weights.dtype).reshape(4, *weights.shape)
        value, at_zero, *shifted = (given * weights.to(given.device)).sum(-1).to(x.device)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    value, at_zero, shift = value.detach(), at_zero.detach(), torch.stack(shifted).detach()
    gradient, x = gradient.to(weights.dtype), fixed.to(weights.dtype)
    # Norms that take off the mean do not see the shifts; to others they are most of the input.
    centred = bool(((shift - value).abs() < (value - at_zero).abs().max() / 4).all())
    along = x - x.mean(-1, keepdim=True) if centred else x
    missing = value - at_zero - (gradient * x).sum(-1)
    length = along.pow(2).sum(-1).clamp(min=torch.finfo(x.dtype).tiny)
    return gradient + (missing / length)[:, None] * along, at_zero, value
