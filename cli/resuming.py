"""Going on with a run by its id alone: its folder names the command, its options and its inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..models.errors import MnemoscopeError
from ..probes.elicitation import Progress
from ..results.errors import RunFolderError
from ..results.run import RunFolder
from ..results.run_inputs import read_inputs


@dataclass(frozen=True)
class Work:
    """Where a kind of run is done: `function(config, root, force=, say=, tell=, **more)`.

    It returns a result with the run's `folder`.
    """

    module: str
    config: str
    function: str
    more: Mapping[str, int] = field(default_factory=dict)
    """Options of the command that do not decide its numbers, at their defaults."""
    paths: bool = False
    """Whether files come between `config` and `root`; `inputs.json` has their places."""
    device: str = "auto"
    """Where the work is done if its configuration names no device."""


WORKS: Mapping[str, Work] = {
    "head-scores": Work("scoring", "ScoreConfig", "score_heads"),
    "relation-neurons": Work("neuron_finding", "FindConfig", "find_neurons", {"memory_mb": 1024}),
    "paper-relation-neurons": Work(
        "neuron_paper", "PaperConfig", "find_as_paper", {"memory_mb": 1024}
    ),
    "neuron-effects": Work("neuron_ablating", "AblateConfig", "ablate_found", paths=True),
    "retrieval-scores": Work("retrieval_scoring", "ScoreConfig", "score_retrieval"),
    "retrieval-gates": Work("retrieval_gates", "GateConfig", "find_gates", {"memory_mb": 512}),
    "retrieval-comparison": Work(
        "retrieval_comparing",
        "CompareConfig",
        "compare_retrieval",
        {"memory_mb": 1024},
        paths=True,
    ),
    "trace": Work("tracing_text", "TextConfig", "trace_given"),
    "trace-index": Work("tracing_index_run", "IndexPlan", "index_corpus", device="cpu"),
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
    "prune": Work("prune_kept", "PruneConfig", "prune_kept"),
    "prune-batch": Work("prune_batch", "PruneBatch", "prune_batch"),
    "probe-sweep": Work("sweep_run", "Sweep", "run_sweep"),
    "demo": Work("journey", "JourneyConfig", "journey_in"),
}
"""Kinds of runs whose folder is all that their command needs."""

_ELSEWHERE = {
    "prune-eval": "it belongs to a run of `prune`: resume that one.",
    "study": "run its study again with the same preset, it goes on where it stopped.",
}


def work_of(folder: RunFolder) -> Work:
    """What is to be done. Raises `RunFolderError` for a run that cannot be resumed by its id."""
    kind = folder.id.rpartition("-")[0]
    work = WORKS.get(kind)
    if work is None:
        way = _ELSEWHERE.get(kind, _ELSEWHERE.get(kind.partition("-")[0]))
        raise RunFolderError(
            f"{folder.id} cannot be resumed by id: {way or 'run its own command again.'}"
        )
    if work.paths and "paths" not in read_inputs(folder.path):
        raise RunFolderError(
            f"{folder.id} does not say where its inputs are: run its own command again."
        )
    return work


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


def models_of(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that a run loads; none for runs that train their own or ask no model."""
    checkpoints = [config.get("source"), *(config.get("checkpoints") or ())]
    named = [_own(config).get("model"), inputs.get("model")]
    named += [one["path"] if isinstance(one, dict) else one for one in checkpoints]
    return tuple(str(one) for one in named if one)


def device_of(folder: RunFolder) -> str:
    """The device that a run works on, as torch names it: `cpu`, `cuda:0`.

    Raises `RunFolderError` for a run that cannot be resumed.
    """
    named = str(_own(run_config(folder)).get("device", work_of(folder).device))
    if named == "auto":
        import torch

        named = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if named == "cuda" else named


def resume_run(folder: RunFolder, *, say: Callable[[str], None], tell: Progress) -> Path:
    """Go on with an unfinished run until it is finished; returns the folder of the result.

    That is another folder where the model or the data have changed since. Raises `RunFolderError`
    for a run that needs its own command, `MnemoscopeError` as that command does.
    """
    config = run_config(folder)
    if folder.final.is_dir():
        say(f"{folder.id} is finished already.")
        return folder.final
    work, inputs = work_of(folder), read_inputs(folder.path)
    module = import_module(f".{work.module}", __package__)
    function: Any = getattr(module, work.function)
    made = _made(getattr(module, work.config), {**config, **inputs.get("config", {})}, folder)
    given = [[Path(path) for path in inputs["paths"]]] if work.paths else []
    root = folder.root.absolute()
    with _in_folder(inputs.get("cwd", ".")):
        result = function(made, *given, root, force=False, say=say, tell=tell, **work.more)
    found = Path(result.folder)
    return folder.path if found.name == f"{folder.id}.ledger" else found  # others work on it too


@contextmanager
def _in_folder(place: str) -> Iterator[None]:
    """Where relative paths of the configuration are meant from."""
    if not Path(place).is_dir():
        raise MnemoscopeError(
            f"the folder {place} is gone, in which this run was started: run its command again."
        )
    with chdir(place):
        yield


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
