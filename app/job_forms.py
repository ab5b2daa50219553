"""What each page can start as a job: the fields, and the very configuration of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from ..cli import binding_probing, neuron_finding, prune_kept, retrieval_scoring, scoring
from ..cli.binding_pairs import PairsConfig, asked_pairs
from ..cli.prune_config import PruneConfig
from ..data.facts.items import relation_names
from ..models.errors import CheckpointError
from ..results.run import RunFolder
from ..results.run_folder import run_id_of
from . import cached
from .binding_pairs import relation_names as pair_relation_names
from .job_section import Order, show_job_start, start
from .neuron_scene import FEW
from .plain import told
from .settings import Settings

Ordered = Callable[[], Order]


def show_heads_job(settings: Settings, label: str) -> None:
    """`heads score`: many subjects, with intervals and tests."""

    def form() -> Ordered:
        left, right = st.columns(2)
        relation = left.selectbox("Relation", relation_names(), _first("capital"), key="job_facts")
        subjects = right.number_input("Subjects", 2, 1000, 60, key="job_subjects")

        def order() -> Order:
            place = settings.models[label]
            config = scoring.ScoreConfig(place, relation=relation, subjects=int(subjects))
            return Order(scoring.KIND, scoring.run_key(config, cached.loaded_model(place).model))

        return order

    words = "Scores every head over many subjects in three wordings, with intervals and tests."
    show_job_start(settings, words, form)


def show_neurons_job(settings: Settings, label: str) -> None:
    """`neurons find`: the units of several relations."""

    def form() -> Ordered:
        relations = st.multiselect(
            "Relations", neuron_finding.RELATIONS, FEW.split(","), key="job_relations"
        )
        subjects = st.number_input("Subjects of each", 4, 1000, 20, key="job_subjects")

        def order() -> Order:
            place = settings.models[label]
            config = neuron_finding.FindConfig(
                place, relations=tuple(relations), subjects=int(subjects)
            )
            design = neuron_finding.design_of(config)
            model = cached.loaded_model(place).model
            return Order(neuron_finding.KIND, neuron_finding.run_key(config, model, design))

        return order

    words = "Ranks every unit of the MLPs by how well it tells a relation, in several wordings."
    show_job_start(settings, words, form)


def show_retrieval_job(settings: Settings, label: str) -> None:
    """`retrieval score`: many needles."""

    def form() -> Ordered:
        left, right = st.columns(2)
        needles = left.number_input("Needles", 2, 1000, 40, key="job_needles")
        kind = right.selectbox("Kind", ("literal", "non-literal", "both"), key="job_kind")

        def order() -> Order:
            place = settings.models[label]
            config = retrieval_scoring.ScoreConfig(place, needles=int(needles), kind=kind)
            model = cached.loaded_model(place).model
            design = retrieval_scoring.design_of(config, model)
            return Order(retrieval_scoring.KIND, retrieval_scoring.run_key(config, model, design))

        return order

    words = "Hides many needles at many depths and scores what every head reads and writes."
    show_job_start(settings, words, form)


def show_binding_job(settings: Settings, label: str) -> None:
    """`binding probe`: is an entity that is read the one that is about to be said?"""

    def form() -> Ordered:
        place = settings.models[label]
        left, right = st.columns(2)
        name = left.selectbox("Relation of pairs", pair_relation_names(place), key="job_pairs")
        most = right.number_input("Pairs", 16, 1000, 128, key="job_most")

        def order() -> Order:
            config = binding_probing.ProbeConfig(PairsConfig(place, name, int(most)))
            asked = asked_pairs(config.pairs, cached.loaded_model(place).model)
            return Order(binding_probing.KIND, binding_probing.run_key(config, asked))

        return order

    words = "Compares an entity that is read with one about to be said, layer by layer, controlled."
    show_job_start(settings, words, form)


def show_prune_now(settings: Settings, config: PruneConfig) -> None:
    """A button that starts `prune run`; the card of the job is where the page shows that of its
    address. What is in the way is said below the button."""
    if not st.button("Prune now", type="primary", key="prune_now"):
        return
    with told():
        check_free(settings.runs_root, config)
        start(settings, Order(prune_kept.KIND, config.document()))
        st.caption("Started as a job: its card is further down on this page.")


def check_free(root: Path, config: PruneConfig) -> None:
    """Raises `CheckpointError` where `prune run` would refuse the folder, or find its run finished
    and the folder gone, which a job leaves as it is."""
    out, run = (
        Path(config.output.path),
        RunFolder(root, run_id_of(prune_kept.KIND, config.document())),
    )
    if out.exists() and not run.partial.is_dir():
        raise CheckpointError(f"{out} exists already: choose another name.")
    if run.final.is_dir() and not out.exists():
        raise CheckpointError(
            f"{out} is gone since the run {run.id} wrote it: choose another name, or give the "
            "command in a terminal, which writes it anew."
        )


def _first(name: str) -> int:
    """The place of a relation in the list, 0 where there is none of this name."""
    names = list(relation_names())
    return names.index(name) if name in names else 0
