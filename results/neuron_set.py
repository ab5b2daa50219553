"""Neuron sets: the same kind of file as a head set, for hidden units of the MLPs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..models.types import NeuronId, Site
from .errors import UnitSetError
from .unit_set_files import (
    Record,
    expect_fields,
    interval_or_none,
    number,
    probability_or_none,
    read_set,
    text,
    text_or_none,
    whole,
    write_set,
)

NEURON_SET_SCHEMA = "mnemoscope/neuron-set/1"

_NEURON_FIELDS = ("layer", "index", "site", "score", "role", "p", "ci")
_SET_FIELDS = ("schema", "name", "model_id", "n_layers", "d_mlp", "method", "run_id", "neurons")


@dataclass(frozen=True)
class NeuronScore:
    """One neuron with its score; `ci` is (low, high), `p` and `ci` are `None` if unknown."""

    neuron: NeuronId
    score: float
    role: str = ""
    p: float | None = None
    ci: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises `UnitSetError` for a score that is not finite or a p outside 0 to 1."""
        object.__setattr__(self, "score", number(self.score, f"the score of {self.neuron}"))
        object.__setattr__(self, "p", probability_or_none(self.p))
        object.__setattr__(self, "ci", interval_or_none(self.ci))


@dataclass(frozen=True)
class NeuronSet:
    """Neurons of one model with `d_mlp` hidden units a layer.

    Raises `UnitSetError` for a neuron that the model does not have or that is named twice.
    """

    name: str
    model_id: str
    n_layers: int
    d_mlp: int
    method: str
    run_id: str | None
    neurons: tuple[NeuronScore, ...]
    schema: str = NEURON_SET_SCHEMA

    def __post_init__(self) -> None:
        """Check every neuron."""
        if self.schema != NEURON_SET_SCHEMA:
            raise UnitSetError(f"this version writes {NEURON_SET_SCHEMA}, not {self.schema!r}.")
        object.__setattr__(self, "neurons", tuple(self.neurons))
        check_neurons_fit(self, self.n_layers, self.d_mlp)
        if len(set(self.ids)) < len(self.neurons):
            raise UnitSetError(f"neuron set {self.name!r} names a neuron twice.")

    @property
    def ids(self) -> tuple[NeuronId, ...]:
        """The neurons without their scores, in the order of the set."""
        return tuple(scored.neuron for scored in self.neurons)

    def top(self, k: int) -> NeuronSet:
        """The `k` highest scores, highest first, ties in the order of layer and index."""
        if k < 1:
            raise UnitSetError(f"cannot take the top {k} neurons: k starts at 1.")
        ranked = sorted(self.neurons, key=lambda scored: (-scored.score, scored.neuron))
        return replace(self, neurons=tuple(ranked[:k]))

    def where(self, *, role: str) -> NeuronSet:
        """The neurons of one role, in the order of the set."""
        return replace(self, neurons=tuple(one for one in self.neurons if one.role == role))


def check_neurons_fit(neuron_set: NeuronSet, n_layers: int, d_mlp: int) -> None:
    """Raise `UnitSetError` when the set does not fit a model of this size.

    How many residual dimensions there are a set does not say: those are checked when edited.
    """
    for neuron in neuron_set.ids:
        inside = neuron.site is Site.MLP_OUT or neuron.index < d_mlp
        if not (0 <= neuron.layer < n_layers and neuron.index >= 0 and inside):
            raise UnitSetError(
                f"{neuron} does not exist in a model of {n_layers} layers with {d_mlp} neurons."
            )
    if (neuron_set.n_layers, neuron_set.d_mlp) != (n_layers, d_mlp):
        raise UnitSetError(
            f"neuron set {neuron_set.name!r} is for {neuron_set.n_layers} layers of "
            f"{neuron_set.d_mlp} neurons, this model has {n_layers} of {d_mlp}."
        )


def save_neuron_set(path: Path | str, neuron_set: NeuronSet, *, force: bool = False) -> None:
    """Write the set as JSON in one step; the file must not exist unless `force`."""
    neurons = [
        {
            "layer": int(scored.neuron.layer),
            "index": int(scored.neuron.index),
            "site": scored.neuron.site.value,
            "score": scored.score,
            "role": scored.role,
            "p": scored.p,
            "ci": scored.ci,
        }
        for scored in neuron_set.neurons
    ]
    record = {name: getattr(neuron_set, name) for name in _SET_FIELDS[:-1]}
    write_set(path, {**record, "neurons": neurons}, force=force)


def load_neuron_set(path: Path | str) -> NeuronSet:
    """Read a neuron-set file. Raises `UnitSetError` naming the file and what is wrong with it."""
    return read_set(path, NEURON_SET_SCHEMA, _neuron_set)


def _neuron_set(record: Record) -> NeuronSet:
    expect_fields(record, _SET_FIELDS, "a neuron set")
    if not isinstance(record["neurons"], list):
        raise UnitSetError("neurons must be a list.")
    return NeuronSet(
        name=text(record, "name"),
        model_id=text(record, "model_id"),
        n_layers=whole(record, "n_layers"),
        d_mlp=whole(record, "d_mlp"),
        method=text(record, "method"),
        run_id=text_or_none(record, "run_id"),
        neurons=tuple(_neuron_score(neuron) for neuron in record["neurons"]),
    )


def _neuron_score(record: Any) -> NeuronScore:
    record = expect_fields(record, _NEURON_FIELDS, "a neuron")
    if record["site"] not in set(Site):
        raise UnitSetError(f"site must be one of {[site.value for site in Site]}.")
    neuron = NeuronId(whole(record, "layer"), whole(record, "index"), Site(record["site"]))
    return NeuronScore(neuron, record["score"], text(record, "role"), record["p"], record["ci"])
