"""What runs inside nnsight traces: the passes of a request, each visited once in execution order.

These functions go to the server with a request, by value, and call nothing but torch and the
callbacks that come with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import nnsight
import torch
import torch.distributed as dist
from torch import Tensor

from .attention import AttentionCall
from .hooks import InstalledEdit, RunningBatch, note_pass
from .prompt_cache import forked

_KERNEL = "attention_interface_"
"""How nnsight names the call of the attention function in the source of an attention module."""


@dataclass
class Visit:
    """A place that a pass stops at, in the order of execution, and the callbacks it finds there.

    `side` is "input" or "output" of the module at `path`, "call" for both together, or "attention"
    for what its attention function is called with and returns.
    """

    layer: int
    path: str
    side: str
    heads: int
    """Query heads of the whole model, in one layer."""
    changes: list[Any] = field(default_factory=list)
    """Callbacks in the order of their installation; at "attention" pairs of "see" or "answer" and
    a callback."""


@dataclass
class Pass:
    """One forward pass of a request: its arguments, its stops, and whom to tell of the batch.

    Its rows may be more than those of the cache before it, which is then widened.
    """

    arguments: dict[str, Any]
    visits: list[Visit]
    running: list[RunningBatch]
    read: Callable[[Tensor], Tensor]


def run_passes(
    engine: Any, passes: Sequence[Pass], cache: Any, into: Sequence[Any], keep_cache: bool
) -> dict[str, Any]:
    """Run passes one behind the other; what the last one computed, and what callbacks wrote.

    `cache` is what stands before the first pass. The returned dict has plain values only: "logits",
    "cache" (where it is to be kept), and "written", one entry for each of `into`.
    """
    logits = None
    for one in passes:
        arguments = dict(one.arguments)
        ids = arguments["input_ids"]
        if cache is not None:
            arguments["past_key_values"] = cache = forked(cache, len(ids))
        past = 0 if cache is None else cache.get_seq_length()
        for running in one.running:
            note_pass(running, (ids.shape[0], ids.shape[1]), arguments["attention_mask"], past)
        visits = one.visits
        with engine.trace(**arguments):
            visit_all(engine, visits)
            found = nnsight.save(engine.output)
        logits, cache = one.read(found.logits), found.get("past_key_values")
    kept = cache if keep_cache else None
    return {"logits": logits, "cache": kept, "written": [plain(target) for target in into]}


def run_request(engine: Any, here: Pass, into: Sequence[Any]) -> dict[str, Any]:
    """The block of one vLLM request, inside its trace: `[token, width]` at every stop."""
    ids = here.arguments["input_ids"]
    for running in here.running:
        note_pass(running, (1, ids.shape[1]), here.arguments["attention_mask"], 0)
    for visit in here.visits:
        envoy = engine.get(visit.path)
        value = envoy.input if visit.side == "input" else envoy.output
        first = value[0] if isinstance(value, tuple) else value  # projections return their bias too
        new = changed(first.clone()[None], visit.changes)
        if new is None:
            continue
        if visit.side == "input":
            envoy.input = new[0]
        else:
            envoy.output = (new[0], *value[1:]) if isinstance(value, tuple) else new[0]
    logits = here.read(engine.logits[None, -1:])
    return {"logits": logits, "written": [plain(target) for target in into]}


def visit_all(engine: Any, visits: Sequence[Visit]) -> None:
    """Stop at every place, hand its tensor to the callbacks and put back what they return."""
    for visit in visits:
        envoy = engine.get(visit.path)
        if visit.side == "input":
            new = changed(envoy.input, visit.changes)
            if new is not None:
                envoy.input = new
        elif visit.side == "output":
            output = envoy.output
            # GPT-J's blocks return tuples, the other blocks bare tensors.
            whole = isinstance(output, tuple)
            new = changed(output[0] if whole else output, visit.changes)
            if new is not None:
                envoy.output = (new, *output[1:]) if whole else new
        elif visit.side == "call":
            given = envoy.input
            new = changed_call(Standing(envoy), given, envoy.output, visit.changes)
            if new is not None:
                envoy.output = new
        else:
            attend(envoy, visit)


def changed(x: Tensor, changes: Sequence[Callable[..., Any]]) -> Tensor | None:
    """The tensor after all changes, in their order; None where none of them changed it."""
    before = x
    for change in changes:
        new = change(x)
        x = x if new is None else new
    return None if x is before else x


class Standing:
    """A module that can be called once more within the pass, out of its turn."""

    def __init__(self, envoy: Any) -> None:
        self.forward = envoy.__call__


def changed_call(
    module: Standing, given: Tensor, output: Tensor, hooks: Sequence[Callable[..., Any]]
) -> Tensor | None:
    """The same for forward hooks, which see a module, its input and its output."""
    before = output
    for hook in hooks:
        new = hook(module, (given,), output)
        output = output if new is None else new
    return None if output is before else output


def attend(attn: Any, visit: Visit) -> None:
    """Hand the call of a layer's attention function to those who see it and those who answer it."""
    names = [name for name in attn.source.names if name.startswith(_KERNEL)]
    call = getattr(attn.source, names[-1])
    given, options = call.inputs
    split = len(given[1][0]) < visit.heads  # each process of a split model has its own heads
    q, k, v = (all_heads(x, 1) if split else x for x in given[1:4])
    # (module, query, key, value, mask) by position in all families of the interface
    asked = AttentionCall(visit.layer, q, k, v, given[4], dict(options))
    own: Any = None
    answer: Any = None
    before: Any = None
    for kind, callback in visit.changes:
        if kind == "see":
            callback(asked.layer, asked.query, asked.key, asked.value, asked.mask, asked.options)
            continue
        if before is None:
            own = call.output
            answer = before = (all_heads(own[0], 2), *own[1:]) if split else own
        answer = callback(asked, _held(answer))
    if answer is not before:
        call.output = (own_heads(answer[0], own[0], 2), *answer[1:]) if split else answer


def all_heads(x: Tensor, dim: int) -> Tensor:
    """The heads of all processes that share a model, in order."""
    if hasattr(x, "full_tensor"):
        return x.full_tensor()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim)


def own_heads(x: Tensor, own: Tensor, dim: int) -> Tensor:
    """Those of this process, where `own` has as many."""
    heads = own.shape[dim]
    return x.narrow(dim, dist.get_rank() * heads, heads).contiguous()


def _held(answer: Any) -> Callable[[], Any]:
    def own() -> Any:
        return answer

    return own


def plain(target: Any) -> Any:
    """What a callback wrote, in types that every process has."""
    if isinstance(target, InstalledEdit):
        return target.fired
    if isinstance(target, Tensor):
        return target.detach().cpu()
    if isinstance(target, dict):
        return {key: _on_cpu(value) for key, value in target.items()}
    return set(target)


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def write_back(targets: Sequence[Any], written: Sequence[Any]) -> None:
    """Bring what callbacks wrote elsewhere into the objects of this process."""
    for target, value in zip(targets, written, strict=True):
        if isinstance(target, InstalledEdit):
            target.fired = value
        elif isinstance(target, Tensor):
            target.copy_(value)
        elif isinstance(target, dict):
            target.update(value)
        else:
            target.clear()
            target.update(value)


def run_quietly(
    engine: Any, passes: Sequence[Pass], cache: Any, into: Sequence[Any], keep_cache: bool
) -> dict[str, Any]:
    """`run_passes` without gradients. (A decorator would not travel: functions go by source.)"""
    with torch.no_grad():
        return run_passes(engine, passes, cache, into, keep_cache)
