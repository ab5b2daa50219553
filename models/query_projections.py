"""The queries of a layer before their norm and rotary turn, wherever a family computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .anatomy import Anatomy, out_features, part
from .errors import UnsupportedModelError
from .hooks import Change


@contextmanager
def query_hook(
    module: nn.Module, anatomy: Anatomy, layer: int, heads: Sequence[int], change: Change
) -> Iterator[None]:
    """Call `change` with the layer's queries `[batch, pos, head, d_head]`, before norm and rotary.

    Of what it returns the model goes on with `heads`; the others keep their own, also behind a norm
    that runs over all of them. Raises `UnsupportedModelError` as `query_width` does.
    """
    block = part(module, anatomy.spec.blocks)[layer]
    query_width(module, anatomy)
    path, hook = query_place(anatomy, heads, change)
    handle = part(block, path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def query_place(anatomy: Anatomy, heads: Sequence[int], change: Change) -> tuple[str, Any]:
    """The module below a block whose output holds the queries, and the forward hook for it."""
    joint = anatomy.spec.joint_query_norm
    if joint is None:
        return anatomy.spec.query, _on_projection(anatomy, change)
    return joint, _on_joint_norm(anatomy, heads, change)


def query_width(module: nn.Module, anatomy: Anatomy) -> int:
    """Width of one head's query. Raises `UnsupportedModelError` where the projection is not laid
    out as the architecture's entry says."""
    block = part(module, anatomy.spec.blocks)[0]
    width = out_features(part(block, anatomy.spec.query))
    parts = {
        "alone": anatomy.n_heads,
        "first": anatomy.n_heads + 2 * anatomy.n_kv_heads,
        "within_head": 3 * anatomy.n_heads,
    }[anatomy.spec.queries]
    if width % parts:
        raise UnsupportedModelError(
            f"{anatomy.model_type}: {anatomy.spec.query} has {width} outputs, which are not "
            f"{parts} equal parts, so its queries cannot be found."
        )
    return width // parts


def _on_projection(anatomy: Anatomy, change: Change) -> Any:
    """Queries as a view of the projection's output, and what replaces them put back there."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        new = change(_queries(output, anatomy))
        if new is None:
            return None
        changed = output.clone()
        _queries(changed, anatomy).copy_(new)
        return changed

    return hook


def _queries(output: Tensor, anatomy: Anatomy) -> Tensor:
    heads, groups = anatomy.n_heads, anatomy.n_kv_heads
    if anatomy.spec.queries == "within_head":
        return output.unflatten(-1, (heads, 3, -1))[..., 0, :]
    parts = heads if anatomy.spec.queries == "alone" else heads + 2 * groups
    return output.unflatten(-1, (parts, -1))[..., :heads, :]


def _on_joint_norm(anatomy: Anatomy, heads: Sequence[int], change: Change) -> Any:
    """Norm the changed queries once more, and take the result for `heads` only."""

    def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        new = change(args[0].unflatten(-1, (anatomy.n_heads, -1)))
        if new is None:
            return None
        normed = norm.forward(new.flatten(-2)).unflatten(-1, (anatomy.n_heads, -1))
        changed = output.clone().unflatten(-1, (anatomy.n_heads, -1))
        changed[..., list(heads), :] = normed[..., list(heads), :]
        return changed.flatten(-2)

    return hook
