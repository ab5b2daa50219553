"""Does the sweep of all heads stay under `memory_mb`? Peak memory in fresh processes (glibc)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import repeat

import torch
from measuring import (
    arguments,
    fresh_processes,
    highest_resident,
    report,
    resident_after_cleaning,
    table,
)
from mnemoscope.interventions.end_sweep import EndStates
from mnemoscope.interventions.path_patching import build_chain, direct_effects, head_sets
from mnemoscope.models import HeadId, HookedModel
from shapes import CONFIGS, GPT2_SMALL, LLAMA, TINY_GPT2, random_model

CLAIM = (
    "The live memory of `direct_effects` over all heads, beyond the model and its inputs, stays "
    "under `memory_mb`."
)
NOTE = (
    "Each figure is a fresh process with one thread: resident memory at its highest in the sweep, "
    "above what was resident when the sweep began (model, states of both runs, one warm-up; free "
    "heap given back), as the kernel counts it (`VmHWM`), so temporaries inside torch's kernels "
    "count too. *live*: every block of 64 KiB and more has a mapping of its own, so memory that "
    "was freed is gone: what the sweep holds. *resident*: glibc's default, which keeps freed "
    "blocks of up to 32 MiB in its heap, where blocks of growing sizes leave holes; this slack is "
    "the allocator's and no part of the bound. *streams*: the `d_model`-wide state of all rows "
    "once, which a sweep without pieces copies several times."
)
COLUMNS = (
    *("model", "chains", "read", "streams MB", "memory_mb", "live MB", "ratio", "within bound"),
    "resident MB",
)
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h


@dataclass(frozen=True)
class Setting:
    """A sweep over `chains` prompts with random states, all heads as senders."""

    model: str
    chains: int
    memory_mb: int
    log_probs: bool

    @property
    def read(self) -> str:
        return "log_probs" if self.log_probs else "logits"


TOY = (Setting(TINY_GPT2, 700, 8, True),)
FULL = tuple(
    Setting(model, chains, memory_mb, log_probs)
    for model, by_budget in ((GPT2_SMALL, {64: 32, 512: 128}), (LLAMA, {64: 16, 512: 64}))
    for memory_mb, chains in by_budget.items()  # more than one piece each
    for log_probs in (False, True)
)


def main() -> None:
    given = arguments(CLAIM)
    settings = TOY if given.toy else FULL
    with fresh_processes(2) as pool:
        live = pool.map(measure, settings, repeat(True))
        resident = pool.map(measure, settings, repeat(False))
        rows = [_row(*figures) for figures in zip(settings, live, resident, strict=True)]
    report(given, "path_patching_memory", CLAIM, f"{table(COLUMNS, rows)}\n\n{NOTE}")


def measure(setting: Setting, own_mappings: bool) -> float:
    """Peak of the sweep in MiB; to be run in a process of its own."""
    if own_mappings:
        ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, 2**16)
    torch.set_num_threads(1)
    model = random_model(setting.model)
    chain = build_chain(model)
    states, replacement = _states(model, setting.chains, 1), _states(model, setting.chains, 2).z
    ids = torch.randint(model.anatomy.d_vocab, (setting.chains, 2))
    first = EndStates(states.resid_pre[:, :1], states.z[:, :1])
    how = {"log_probs": setting.log_probs, "memory_mb": setting.memory_mb}
    one = head_sets(model, [[HeadId(0, 0)]])
    direct_effects(chain, first, replacement[:, :1], ids[:1], senders=one, **how)
    before = resident_after_cleaning()
    direct_effects(chain, states, replacement, ids, **how)
    return highest_resident() - before


def _row(setting: Setting, live: float, resident: float) -> tuple[object, ...]:
    config = CONFIGS[setting.model]
    rows = setting.chains * (config.num_hidden_layers * config.num_attention_heads + 1)
    bound = setting.memory_mb
    return (
        *(setting.model, setting.chains, setting.read, rows * config.hidden_size * 4 / 2**20),
        *(bound, live, live / bound, "yes" if live <= bound else "NO", resident),
    )


def _states(model: HookedModel, chains: int, seed: int) -> EndStates:
    """Random states of the right shapes: a run would leave its own free heap behind."""
    generator = torch.Generator().manual_seed(seed)
    a = model.anatomy
    return EndStates(
        torch.randn(a.n_layers, chains, a.d_model, generator=generator),
        torch.randn(a.n_layers, chains, a.n_heads, a.d_v, generator=generator),
    )


if __name__ == "__main__":
    main()
