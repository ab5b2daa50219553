"""What the page about relation neurons is about: model, run and relation of the sidebar."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from ..data.facts.designs import Prompt
from ..models.types import NeuronId
from . import cached, neuron_cached, selection
from .neuron_runs import NeuronRun, check_run_fits, finished_neuron_runs
from .plain import as_text
from .settings import Settings

FEW = "capital,currency,continent"
"""Relations of the example command: seconds on the packaged model."""


@dataclass(frozen=True, eq=False)
class NeuronScene:
    """What the whole page is about; `stamp` names this state of the run in caches."""

    settings: Settings
    label: str
    loaded: cached.Loaded
    run: NeuronRun
    stamp: str
    relation: str

    @property
    def set_units(self) -> tuple[NeuronId, ...]:
        """The units of the relation's set, best first."""
        return self.run.sets[self.relation].ids

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the run. Raises `MnemoscopeError` when they cannot be made again."""
        return neuron_cached.prompts_of(self.run, self.stamp)


def neuron_sidebar(settings: Settings) -> NeuronScene | None:
    """Model, run and relation, each part of the address; None where no run is there yet."""
    with st.sidebar:
        label = selection.choose_model(settings)
    loaded = cached.loaded_model(settings.models[label])
    runs = {info.id: info for info in finished_neuron_runs(settings.runs_root, loaded.model.name)}
    if not runs:
        show_no_run(settings, label)
        return None
    with st.sidebar:
        repair("neuron_run", list(runs))
        run_id = st.selectbox("Run", list(runs), key="neuron_run", bind="query-params")
    info = runs[run_id]
    run = neuron_cached.run_of(str(info.folder), info.updated)
    check_run_fits(run, loaded.model)
    with st.sidebar:
        repair("relation", run.relations)
        relation = st.selectbox("Relation", run.relations, key="relation", bind="query-params")
        if run.config.get("weights_sha256") != loaded.model.weights_sha256:
            st.warning(
                "This run measured other weights, or other number types, than the model that is "
                "loaded: its units may be different ones here. Choose another run, or search again."
            )
    return NeuronScene(settings, label, loaded, run, f"{info.folder} {info.updated}", relation)


def show_no_run(settings: Settings, label: str) -> None:
    """Which command makes a run."""
    st.info(
        as_text(f"No run has looked for the relation neurons of {label} yet.")
        + " Start one below as a job, or in a terminal, for example:"
    )
    st.code(find_command(settings, label), language="bash", wrap_lines=True)
    st.caption(
        "It asks about several relations in several wordings and ranks every unit of the MLPs. "
        "Once it is finished, load this page again."
    )


def find_command(settings: Settings, label: str) -> str:
    """The command that makes a run which this page finds, quoted for a shell."""
    parts = ("mnemoscope", "neurons", "find", settings.models[label], "--relations", FEW)
    return shlex.join([*parts, "--subjects", "20", "--runs", str(settings.runs_root)])


def repair(key: str, options: Sequence[str]) -> None:
    """A choice of another run or relation that is not offered here becomes the first one."""
    if key in st.session_state and st.session_state[key] not in options:
        st.session_state[key] = options[0]
