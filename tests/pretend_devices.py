"""Two devices that are no devices: host memory under other names, where mixing them raises.

For a process of its own, since torch takes one such back end for good; see `two_devices`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_ACROSS = {"copy_", "_to_copy", "_copy_from", "_copy_from_and_resize"}
_INDEXED = {"index", "index_put", "index_put_", "_unsafe_index"}  # indices may be on the host


class Pretend(torch.Tensor):
    """A host tensor that says it is elsewhere."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor, at: torch.device, requires_grad: bool = False) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=at,
            requires_grad=requires_grad,
        )
        made.raw = raw.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretend({self.raw!r}, {self.device})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        at = {x.device for x in given if isinstance(x, Pretend)}
        if name not in _ACROSS:
            held = args[:1] if name in _INDEXED else (args, kwargs)
            host = [x for x in tree_iter(held) if _on_host(x)]
            if len(at) > 1 or (host and at):
                raise RuntimeError(f"{name} mixes devices {[str(x.device) for x in given]}")
        out = torch.device(kwargs.get("device") or next(iter(at)))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        bare = tree_map_only(Pretend, lambda x: x.raw, (args, kwargs))
        result = func(*bare[0], **bare[1])
        if out.type != NAME:
            return result
        result = tree_map_only(torch.Tensor, lambda x: Pretend(x, out), result)
        return return_and_correct_aliasing(func, args, kwargs, result)


def _on_host(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Pretend) and x.ndim > 0


def install() -> None:
    """Make `torch.device("pretend:0")` and `"pretend:1"` known to this process."""
    _setup_privateuseone_for_python_backend(NAME)
    kernels = torch.library.Library("aten", "IMPL")
    _KEPT.append(kernels)

    def empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Pretend:
        return Pretend(torch.empty(size, dtype=dtype), torch.device(device))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any):
        return Pretend(torch.empty_strided(size, stride, dtype=dtype), torch.device(device))

    def copy_from(source: torch.Tensor, target: torch.Tensor, *_: Any) -> torch.Tensor:
        bare = [x.raw if isinstance(x, Pretend) else x for x in (source, target)]
        bare[1].copy_(bare[0])  # `torch.tensor(..., device=)` comes here past the dispatch above
        return target

    kernels.impl("empty.memory_format", empty, "PrivateUse1")
    kernels.impl("_copy_from", copy_from, "PrivateUse1")
    kernels.impl("empty_strided", empty_strided, "PrivateUse1")


_KEPT: list[Any] = []
