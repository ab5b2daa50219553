"""Going on with a run by its id alone: its configuration names the command and its options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..models.errors import MnemoscopeError
from ..probes.elicitation import Progress
from ..results.errors import RunFolderError
from ..results.run import RunFolder


@dataclass(frozen=True)
class Work:
    """Where a kind of run is done: `function(config, root, force=, say=, tell=, **more)`."""

    module: str
    config: str
    function: str
    more: Mapping[str, int] = field(default_factory=dict)
    """Options of the command that do not decide its numbers, at their defaults."""


WORKS: Mapping[str, Work] = {
    "head-scores": Work("scoring", "ScoreConfig", "score_heads"),
    "relation-neurons": Work("neuron_finding", "FindConfig", "find_neurons", {"memory_mb": 1024}),
    "retrieval-scores": Work("retrieval_scoring", "ScoreConfig", "score_retrieval"),
    "retrieval-gates": Work("retrieval_gates", "GateConfig", "find_gates", {"memory_mb": 512}),
    "trace": Work("tracing_text", "TextConfig", "trace_given"),
    "binding-roles": Work("binding_probing", "ProbeConfig", "probe_binding"),
    "binding-recall": Work("binding_recall", "RecallConfig", "recall_binding"),
    "binding-swap": Work("binding_swapping", "SwapConfig", "swap_binding"),
    "binding-entanglement": Work(
        "binding_entangling", "EntangleConfig", "entangle_binding", {"memory_mb": 512}
    ),
    "binding-context": Work("binding_contexts", "ContextConfig", "bind_in_context"),
    "chaining-context": Work("binding_chaining", "ChainConfig", "chain_in_context"),
    "chaining-toy": Work("binding_chaining", "ChainToyConfig", "chain_in_weights"),
    "reversal-toy": Work("binding_toys", "ToyConfig", "train_toys"),
}
"""Kinds of runs whose configuration is all that their command needs."""


def resumable(kind: str) -> bool:
    """Whether runs of this kind can be gone on with by their id."""
    return kind in WORKS


def run_config(folder: RunFolder) -> dict[str, Any]:
    """The configuration of a run as it was written. Raises `RunFolderError` if it is unreadable."""
    path = folder.path / "config.json"
    if not folder.path.is_dir():
        raise RunFolderError(
            f"there is no run {folder.id!r} in {folder.root}: see mnemoscope runs ls."
        )
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}): delete the folder and run the command again."
        ) from error
    return record


def model_of(config: Mapping[str, Any]) -> str | None:
    """The model that a configuration names; None for runs that train their own."""
    return _own(config).get("model")


def device_of(config: Mapping[str, Any]) -> str:
    """The device that a configuration works on, as torch names it: `cpu`, `cuda:0`."""
    import torch

    named = str(_own(config).get("device", "auto"))
    if named == "auto":
        named = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if named == "cuda" else named


def resume_run(folder: RunFolder, *, say: Callable[[str], None], tell: Progress) -> Path:
    """Go on with an unfinished run until it is finished; returns the folder of the result.

    That is another folder where the model or the data have changed since. Raises `RunFolderError`
    for a kind that needs its own command, `MnemoscopeError` as that command does.
    """
    work = WORKS.get(folder.id.rpartition("-")[0])
    config = run_config(folder)
    if work is None:
        raise RunFolderError(f"{folder.id} cannot be resumed by id: run its own command again.")
    module = import_module(f".{work.module}", __package__)
    function: Any = getattr(module, work.function)
    made = _made(getattr(module, work.config), config, folder)
    result = function(made, folder.root, force=False, say=say, tell=tell, **work.more)
    return Path(result.folder)


def _own(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that names model and device."""
    pairs = config.get("pairs")
    return pairs if isinstance(pairs, dict) else config


def _made(kind: Any, config: Mapping[str, Any], folder: RunFolder) -> Any:
    """The command's options out of a run's configuration; hashes in it are left aside."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MnemoscopeError(
            f"the configuration of {folder.id} does not fit its command ({where}: {first['msg']}): "
            "run the command anew."
        ) from error
