"""The work behind `binding context`: does the model bind names to attributes that it just read?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.binding_contexts import Attribute, BindingTask, binding_task, binding_task_names
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.binding_form import FormMatches, binding_forms, match_by_form
from ..probes.binding_mixture import MixtureSwaps, mixture_prompts, mixture_swaps
from ..probes.binding_probe import BindingIds, probe_binding_ids
from ..probes.binding_prompts import binding_prompts
from ..probes.elicitation import Progress
from ..probes.mixture_fit import FEWEST, MixtureFit, fit_mixture
from ..probes.ordering_subspace import OrderingSubspaces, ordering_subspaces
from ..results.figures import dose_figure
from ..results.run import Run
from ..results.statistics import Interval
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "binding-context"
_CLAIM = (
    "Only the context can answer: who goes with what is drawn anew for each. Accuracy without any "
    "intervention stands in every table; where it is at chance, the rest says nothing."
)


@dataclass(frozen=True)
class ContextConfig:
    """Everything that decides the numbers of a `binding context` run, and nothing else.

    `task` is a shipped one or a JSON file. `slots` are those of the contexts in which the mixture
    of routes, the ordering subspace and the binding form are measured; 0 leaves these out.
    """

    model: str
    task: str = "home"
    contexts: int = 100
    slots: int = 5
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a number that is not offered."""
        if self.slots and self.slots < 4:
            raise MnemoscopeError("--slots needs 4 at least to tell the routes apart; 0: none.")
        if self.slots and self.contexts < FEWEST:
            raise MnemoscopeError(f"--contexts needs {FEWEST} at least, unless --slots is 0.")


@dataclass(frozen=True, eq=False)
class Many:
    """What contexts of several slots show: routes, the fit at every layer, order and form."""

    mixture: MixtureSwaps
    fits: tuple[MixtureFit, ...]
    ordering: OrderingSubspaces
    form: FormMatches

    @property
    def best_form(self) -> dict[str, Any]:
        """The layer at which the form matches most contexts whole."""
        return self.form.table().sort("exact", descending=True).row(0, named=True)

    @property
    def best_order(self) -> dict[str, Any]:
        """The layer at which a component goes most with the slot."""
        return self.ordering.table().sort("spearman", descending=True).row(0, named=True)


def bind_in_context(
    config: ContextConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Draw contexts, intervene, save; goes on with an interrupted run."""
    task = task_named(config.task)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    key = {**asdict(config), "weights_sha256": model.weights_sha256, "told": asdict(task)}

    def measure(run: Run, phase: Phases) -> Findings:
        say(f"{config.contexts} contexts of two names, task {task.name}")
        pair = probe_binding_ids(
            *(model, task),
            contexts=config.contexts,
            seed=config.seed,
            run=run,
            progress=phase("contexts of two"),
        )
        many = _many(config, model, task, run, phase) if config.slots else None
        return _findings(config, model, pair, many)

    return binding_run(KIND, key, root, measure, force=force, say=say, tell=tell)


def task_named(name: str) -> BindingTask:
    """A shipped task or a JSON file with the fields of `BindingTask`.

    Raises `MnemoscopeError` for an unknown name or a file of another form.
    """
    path = Path(name)
    try:
        if path.suffix != ".json":
            return binding_task(name)
        raw = json.loads(path.read_text(encoding="utf-8"))
        words = tuple(Attribute(one["text"], one["answer"]) for one in raw.pop("attributes"))
        for field in ("statements", "entities"):
            raw[field] = tuple(raw[field])
        return BindingTask(**raw, attributes=words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if path.suffix != ".json":
            raise MnemoscopeError(str(error)) from error
        raise MnemoscopeError(
            f"cannot read {path} as a binding task ({error!r}): give an object with name, "
            "statements, question, entities and attributes (text, answer), or one of "
            f"{', '.join(binding_task_names())}."
        ) from error


def _many(
    config: ContextConfig, model: HookedModel, task: BindingTask, run: Run, phase: Phases
) -> Many:
    n, slots, seed = config.contexts, config.slots, config.seed
    prompts = binding_prompts(model, task, n, slots=slots, seed=seed)
    swapped = mixture_swaps(
        model,
        mixture_prompts(model, prompts, seed=seed),
        run=run,
        progress=phase("routes"),
    )
    fits, fitted = [], phase("mixtures fitted")
    for given in swapped.probability:
        fits.append(fit_mixture(given, swapped.slots, seed=seed))
        fitted(len(fits), len(swapped.layers))
    ordering = ordering_subspaces(model, prompts, seed=seed, progress=phase("order"))
    # Judged in the other wording, where the order of words cannot be what is read.
    wording = len(task.statements) - 1
    others = binding_prompts(model, task, n, slots=slots, wording=wording, seed=seed + 1)
    forms = binding_forms(model, prompts, progress=phase("forms"))
    matched = match_by_form(model, others, forms, seed=seed, progress=phase("matches"))
    return Many(swapped, tuple(fits), ordering, matched)


def intervention_rows(pair: BindingIds, seed: int) -> list[dict[str, Any]]:
    """One row an intervention and condition: how often it moves the answer as predicted, and
    leaves alone what it should."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in pair.table(seed).iter_rows(named=True):
        key = one["intervention"], one["condition"]
        row = rows.setdefault(key, {"intervention": key[0], "condition": key[1]})
        for name in ("accuracy", "low", "high", "calibrated"):
            row[f"{one['measure']} {name}"] = one[name]
    return list(rows.values())


def route_rows(many: Many) -> list[dict[str, Any]]:
    """One row a layer: share of answers by route, and the fit of the mixture."""
    table = many.mixture.table()
    rows = []
    for layer, fit in zip(many.mixture.layers, many.fits, strict=True):
        shares = table.filter(polars.col("layer") == layer)
        told = dict(zip(shares["route"], shares["share"], strict=True))
        rows.append({"layer": layer, **told, **fit.summary()})
    return rows


def _findings(
    config: ContextConfig, model: HookedModel, pair: BindingIds, many: Many | None
) -> Findings:
    seed, behaviour = config.seed, pair.behaviour(config.seed)
    table = pair.table(seed)
    tables = {
        "Interventions on contexts of two": table,
        "What replacing a slot's word does to each answer": pair.patches.changes(seed),
        "What adding mean differences does": pair.swaps.gap_table(seed),
        **{
            f"Shifted positions of {part}": found.gap_table(seed)
            for part, found in pair.shifts.items()
        },
    }
    if many is not None:
        tables |= {
            f"Routes, {config.slots} slots": many.mixture.table(seed),
            "Mixture by layer, on held-out examples": polars.DataFrame(route_rows(many)),
            "Order along a component": many.ordering.table(),
            "Names matched to attributes by a bilinear form": many.form.table(seed),
        }
    return Findings(
        title=f"Binding in context by {model.name}",
        claim=_CLAIM,
        summary={
            "model": model.name,
            "task": config.task,
            "contexts": config.contexts,
            "dropped": pair.dropped,
            "behaviour": _named(behaviour),
            "interventions": intervention_rows(pair, seed),
            "shifts_refused": pair.shifts_refused,
            "many": None if many is None else _many_summary(config, many),
        },
        table=table,
        provenance=pair.provenance,
        tables=tables,
        figures={} if many is None else _figures(many),
        arrays={"patches": pair.patches.log_prob, "swaps": pair.swaps.log_prob},
        notes=_notes(config, pair, behaviour, many),
    )


def _many_summary(config: ContextConfig, many: Many) -> dict[str, Any]:
    return {
        "slots": config.slots,
        "behaviour": float(many.mixture.behaviour.mean()),
        "routes": route_rows(many),
        "order": many.best_order,
        "form": many.best_form,
    }


def _figures(many: Many) -> dict[str, go.Figure]:
    routes = many.mixture.table().rename({"route": "series", "layer": "dose", "share": "value"})
    form = many.form.table().select("layer", "exact", "low", "high")
    return {
        "routes": dose_figure(
            routes,
            title="Where the answer goes when the last state comes from another context",
            dose_label="layer of the swap",
            axis_label="share of answers",
        ),
        "form": dose_figure(
            form.rename({"layer": "dose", "exact": "value"}).with_columns(
                series=polars.lit("bilinear form")
            ),
            title="Contexts whose names are all matched to their attributes",
            dose_label="layer",
            axis_label="share of contexts",
        ),
    }


def _notes(
    config: ContextConfig, pair: BindingIds, behaviour: Interval, many: Many | None
) -> list[str]:
    told = _named(behaviour)
    low = "" if told["low"] > 0.5 else " That is not above chance: what follows shows no binding."
    said = [
        f"Without intervention {told['accuracy']:.2f} of the questions are answered right "
        f"({told['low']:.2f} to {told['high']:.2f}; chance 0.5).{low}"
    ]
    if pair.shifts_refused:
        said.append(pair.shifts_refused)
    if many is not None:
        right, chance = float(many.mixture.behaviour.mean()), 1 / config.slots
        order, form = many.best_order, many.best_form
        said += [
            f"With {config.slots} names {right:.2f} are answered right (chance {chance:.2f}).",
            f"Order: a component goes with the slot by {order['spearman']:.2f} at layer "
            f"{order['layer']} (fitted to shuffled slots {order['spearman_shuffled']:.2f}).",
            f"Form: {form['exact']:.2f} of the contexts are matched whole at layer "
            f"{form['layer']} (random forms {form['random']:.2f}, chance {form['chance']:.3f}).",
        ]
    return said


def _named(interval: Interval) -> dict[str, float]:
    names = {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
    return {name: float(np.asarray(value)) for name, value in names.items()}
