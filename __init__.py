"""Mnemoscope: where did the model's answer come from?

A notebook needs two names, `load_model` and `HeadId`; the rest is in the folders' own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import HeadId, load_model

__version__ = "0.1.0"
__all__ = ["HeadId", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name in ("HeadId", "load_model"):
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
