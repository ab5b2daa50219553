"""The control that knows nothing: the same architecture and tokenizer with fresh weights."""

from __future__ import annotations

from copy import deepcopy

import torch

from .hooked import HookedModel, wrap


def random_initialised(model: HookedModel, seed: int = 0) -> HookedModel:
    """A new model of the same configuration and tokenizer, initialised as its family is.

    On the same device, in the same data type, and tied where the model is tied. What a probe finds
    here comes from token identity and architecture alone. Memory: the weights once more. The
    generators of random numbers stay as they were.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = deepcopy(model.module.config)
        module = type(model.module)._from_config(
            config, dtype=model.dtype, attn_implementation=config._attn_implementation
        )
    module = module.to(model.device)
    name = f"{model.name}, random weights {seed}"
    return wrap(module, model.tokenizer, name=name, source=f"initialised with seed {seed}")
