"""The work behind `neurons ablate`: what happens to a relation without its units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from jaxtyping import Float

from ..data.facts.items import data_hash, split_subjects
from ..data.facts.wordings import DETECTION, wordings
from ..data.neutral import neutral_passages
from ..interventions.neuron_ablation import (
    blacklist,
    neuron_edits,
    neutral_means,
    values_at,
    write_size,
)
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.perplexity import perplexity
from ..models.types import NeuronId, Site
from ..probes.asked_facts import Asked, asked_facts
from ..probes.neuron_doses import DoseCurve, area_between, curve_table, dose_curve, factor_curve
from ..probes.neuron_effects import Effects, effect_matrix, specificity
from ..probes.neuron_outcomes import greedy_outcomes, losses
from ..results.neuron_controls import matched_random_neurons
from ..results.neuron_set import check_neurons_fit
from ..results.provenance import collect_provenance, sha256_of_json
from ..results.report import figure_html
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_inputs import note_inputs
from ..results.run_reading import load_run
from .neuron_effect_report import effect_figures, effect_report, named
from .neuron_finding import plain
from .neuron_sets import RelationSet, sets_in
from .neuron_verdicts import verdict_of

KIND = "neuron-effects"
MODES = ("mean", "zero")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AblateConfig:
    """Everything that decides the numbers of a `neurons ablate` run, beside the sets' content.

    No `sizes`: half the run's k, k and three times k, as far as the rankings go.
    """

    model: str
    sizes: tuple[int, ...] = ()
    mode: str = "mean"
    factors: tuple[float, ...] = (0.0, 0.5, 2.0, 4.0)
    wording: str = "cloze 2"
    facts: int = 30
    candidates: int = 10
    controls: int = 20
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a mode that is not offered or doses that do not grow."""
        if self.mode not in MODES:
            raise MnemoscopeError(f"--mode is {self.mode!r}: use {' or '.join(MODES)}.")
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.sizes, default=1) < 1:
            raise MnemoscopeError(
                f"--sizes {','.join(map(str, self.sizes))}: give growing whole numbers from 1."
            )
        if not self.factors or list(self.factors) != sorted(set(self.factors)):
            raise MnemoscopeError(
                f"--factors {','.join(f'{x:g}' for x in self.factors)}: give growing numbers."
            )


@dataclass(frozen=True)
class Target:
    """One relation, its units that may be ablated, the facts that are asked, and the controls."""

    name: str
    given: RelationSet
    ranking: tuple[NeuronId, ...]
    asked: tuple[Asked, ...]
    controls: tuple[tuple[NeuronId, ...], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class AblateResult:
    """A finished run: effects by relation and dose, and what they mean."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary}


@dataclass(frozen=True)
class _Bench:
    """What every measurement of a run needs; `sizes` are the sizes asked for."""

    config: AblateConfig
    model: HookedModel
    site: Site
    texts: tuple[str, ...]
    means: Float[torch.Tensor, "layer unit"]
    sizes: tuple[int, ...]
    run: Run

    def edits(self, target: Target) -> tuple[Edit, ...]:
        """The ablation of the largest size."""
        units = target.ranking[: self.sizes[-1]]
        if self.config.mode == "zero":
            return neuron_edits(units, "zero")
        return neuron_edits(units, "mean", values=values_at(self.means, units))


def ablate_neurons(
    config: AblateConfig,
    sets: Sequence[RelationSet],
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> AblateResult:
    """Dose curves, amplification, relation by relation matrix and outcomes; resumable.

    Raises `MnemoscopeError` for sets that do not fit the model, or are shorter than the sizes.
    """
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    for one in sets:
        check_neurons_fit(one.units, model.anatomy.n_layers, int(model.anatomy.d_mlp or 0))
    key = {
        **asdict(config),
        "sets": {one.relation.name: _identity(one) for one in sets},
        "weights_sha256": model.weights_sha256,
    }
    key |= {"sizes": list(config.sizes), "factors": list(config.factors)}
    with open_run(root, KIND, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            note_inputs(run.folder, {"paths": [str(one.file.resolve()) for one in sets]})
            _measure(config, model, sets, run, say, tell)
        return read_effects(run.folder)


def ablate_found(
    config: AblateConfig,
    paths: Sequence[Path],
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> AblateResult:
    """`ablate_neurons` with the sets of these files or folders. Raises as `sets_in` does too."""
    return ablate_neurons(config, sets_in(paths, root), root, force=force, say=say, tell=tell)


def read_effects(folder: Path) -> AblateResult:
    """A finished `neuron-effects` run. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "effects" not in summary:
        raise MnemoscopeError(
            f"{folder} is not a run of `neurons ablate`: name one of its folders."
        )
    return AblateResult(folder, loaded.table, dict(summary))


def _identity(one: RelationSet) -> dict[str, Any]:
    return {
        "units_sha256": sha256_of_json([str(unit) for unit in one.units.ids]),
        "data_sha256": data_hash(one.relation),
        "k": one.k,
        "split_seed": one.split_seed,
        "finding": one.finding,
    }


def _measure(
    config: AblateConfig,
    model: HookedModel,
    sets: Sequence[RelationSet],
    run: Run,
    say: Callable[[str], None],
    tell: Progress,
) -> None:
    site, texts = sets[0].units.ids[0].site, neutral_passages()
    barred = blacklist(model, texts, site)
    targets = [_target(config, model, one, barred) for one in sets]
    sizes = _sizes(config.sizes, targets)
    targets = _with_controls(config, model, targets, sizes[-1], texts, barred)
    bench = _Bench(config, model, site, texts, neutral_means(model, texts, site), sizes, run)
    notes = [*_notes(config, model, sets), f"{len(barred)} massive-activation units left out."]
    say(
        f"{len(targets)} relations, {sum(len(one.asked) for one in targets)} facts, "
        f"{', '.join(map(str, sizes))} units; {' '.join(notes)}"
    )
    curve_steps = config.controls + 2  # clean, the target, every control
    total = len(targets) * (2 * curve_steps + 2) + 1

    def from_step(start: int) -> Progress:
        def both(done: int, _: int) -> None:
            run.progress(start + done, total, "ablating")
            tell(start + done, total)

        return both

    curves = {
        one.name: _curves(bench, one, from_step(2 * i * curve_steps))
        for i, one in enumerate(targets)
    }
    asked = [one for target in targets for one in target.asked]
    edits = {one.name: bench.edits(one) for one in targets}
    matrix_from = 2 * len(targets) * curve_steps
    effects = effect_matrix(model, asked, edits, run=run, progress=from_step(matrix_from))
    rows = []
    for i, target in enumerate(targets):
        rows.append(_effect(bench, target, curves[target.name][0], effects))
        from_step(matrix_from + len(targets) + 2 + i)(0, total)
    _finish(bench, targets, curves, effects, rows, notes)


def _target(
    config: AblateConfig, model: HookedModel, given: RelationSet, barred: Sequence[NeuronId]
) -> Target:
    relation = given.relation
    asked_as = {wording.name: wording for wording in wordings(relation)}
    if config.wording not in asked_as:
        raise MnemoscopeError(
            f"{relation.name} has no wording {config.wording!r}: use one of {', '.join(asked_as)}."
        )
    seed = config.seed if given.split_seed is None else given.split_seed
    asked = asked_facts(
        model,
        relation,
        split_subjects(relation, seed)["test"][: config.facts],
        asked_as[config.wording],
        n_candidates=config.candidates,
        seed=config.seed,
    )
    spared = set(barred)
    ranking = tuple(unit for unit in given.units.ids if unit not in spared)
    return Target(relation.name, given, ranking, asked)


def _sizes(wanted: Sequence[int], targets: Sequence[Target]) -> tuple[int, ...]:
    """The sizes asked for, or the default ones as far as the shortest ranking goes."""
    shortest = min(targets, key=lambda one: len(one.ranking))
    most = len(shortest.ranking)
    if most < max(wanted, default=1):
        raise MnemoscopeError(
            f"--sizes go to {max(wanted, default=1)}, but the set of {shortest.name} holds {most} "
            "units that may be ablated: ask for fewer, or name the run's folder."
        )
    k = min(one.given.k for one in targets)
    return tuple(wanted) or tuple(sorted({min(most, max(1, n)) for n in (k // 2, k, 3 * k)}))


def _with_controls(
    config: AblateConfig,
    model: HookedModel,
    targets: Sequence[Target],
    largest: int,
    texts: Sequence[str],
    barred: Sequence[NeuronId],
) -> list[Target]:
    """Random sets matched unit by unit to the largest set of each relation."""
    site = targets[0].ranking[0].site
    writer = Site.MLP_OUT if site is Site.MLP_OUT else Site.NEURON  # gate and up write through it
    writes = {writer: write_size(model, texts, site).double().numpy()}
    made = []
    for one in targets:
        drawn = matched_random_neurons(
            one.ranking[:largest],
            writes,
            draws=config.controls,
            seed=config.seed,
            exclude=barred,
        )
        made.append(replace(one, controls=drawn.draws, note=drawn.note))
    return made


def _notes(config: AblateConfig, model: HookedModel, sets: Sequence[RelationSet]) -> list[str]:
    """What a reader must know about the sets beside the numbers."""
    notes = []
    others = {one.weights_sha256 for one in sets} - {None, model.weights_sha256}
    if others or any(one.units.model_id != model.name for one in sets):
        notes.append("The units were found in another model, or in other weights of this one.")
    if any(one.split_seed is None for one in sets):
        notes.append("Of some sets the run is unknown: the facts may be those that found them.")
    if config.wording in DETECTION:
        notes.append(f"The wording {config.wording!r} is one that finds units.")
    return notes


def _curves(bench: _Bench, target: Target, progress: Progress) -> tuple[DoseCurve, DoseCurve]:
    """Ablation by size, and the largest set multiplied by each factor."""
    config, steps = bench.config, len(target.controls) + 2
    sizes = dose_curve(
        bench.model,
        target.asked,
        target.ranking,
        bench.sizes,
        mode="mean" if config.mode == "mean" else "zero",
        means=bench.means if config.mode == "mean" else None,
        controls=target.controls,
        run=bench.run,
        label=f"{target.name}: sizes",
        progress=progress,
    )
    factors = factor_curve(
        bench.model,
        target.asked,
        target.ranking[: bench.sizes[-1]],
        config.factors,
        controls=target.controls,
        run=bench.run,
        label=f"{target.name}: factors",
        progress=lambda done, total: progress(steps + done, total),
    )
    return sizes, factors


def _effect(bench: _Bench, target: Target, curve: DoseCurve, effects: Effects) -> dict[str, Any]:
    """One relation's row of the summary; losses in nats, positive where the edit hurts."""
    area = area_between(curve, seed=bench.config.seed)
    row: dict[str, Any] = {"relation": target.name, "set": target.given.finding}
    row |= {"facts": len(target.asked), "loss beyond controls": area.value}
    row |= {"low": area.low, "high": area.high, "z": area.against.z}
    row |= {"p": area.against.p_loss, "p gain": area.against.p_gain}
    low = None
    if len(effects.relations) > 1:
        found = {one.relation: one for one in specificity(effects, seed=bench.config.seed)}
        one = found[target.name]
        row |= {"own loss": one.own, "others' loss": one.others}
        row |= {"specificity": one.index, "specificity low": one.low, "specificity high": one.high}
        low = one.low
    row["text"] = verdict_of(row, low, len(target.controls))
    row |= _kept(bench.run, f"{target.name}: answers", lambda: _outcomes(bench, target))
    row |= _damage(bench, f"{target.name}: text", bench.edits(target))
    return plain({**row, "controls": target.note})


def _outcomes(bench: _Bench, target: Target) -> dict[str, Any]:
    """What greedy answers lose under the largest size, counted by kind."""
    before = greedy_outcomes(bench.model, target.asked)
    after = greedy_outcomes(bench.model, target.asked, bench.edits(target))
    right = sum(said.outcome == "gold" for said in before)
    still = sum(said.outcome == "gold" for said in after)
    counts = {str(name): n for name, n in losses(before, after).items()}
    return {"right before": right, "right after": still, **counts}


def _damage(bench: _Bench, key: str, edits: Sequence[Edit]) -> dict[str, Any]:
    """Perplexity of the neutral passages under the edits."""
    return _kept(
        bench.run, key, lambda: {"perplexity": perplexity(bench.model, bench.texts, edits)}
    )


def _kept(run: Run, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gives, or the run has of it."""
    if key not in run.done:
        run.check_cancelled()
        run.append(key, measure())
    return dict(run.done[key])


def _finish(
    bench: _Bench,
    targets: Sequence[Target],
    curves: Mapping[str, tuple[DoseCurve, DoseCurve]],
    effects: Effects,
    rows: list[dict[str, Any]],
    notes: Sequence[str],
) -> None:
    config, model, run = bench.config, bench.model, bench.run
    summary: dict[str, Any] = {"model": model.name, "site": str(bench.site), "mode": config.mode}
    summary |= {"sizes": list(bench.sizes), "largest": bench.sizes[-1], "notes": list(notes)}
    summary |= {"perplexity": _damage(bench, "text", ())["perplexity"], "effects": rows}
    if "summary" not in run.done:
        run.append("summary", summary)
    provenance = collect_provenance(
        **model.identity,
        data_sha256=sha256_of_json([data_hash(target.given.relation) for target in targets]),
        prompt_template=config.wording,
        seed=config.seed,
        estimand=f"candidate margin under {config.mode} of units, first token spared",
    )
    doses = polars.concat(
        named(curve_table(curve, seed=config.seed), name)
        for name, pair in curves.items()
        for curve in pair
    )
    figures = effect_figures(curves, effects, seed=config.seed)
    report = effect_report(
        model.name, summary, doses, effects, figures, provenance, seed=config.seed
    )
    arrays = {"loss": effects.loss.astype(np.float32)}
    for name, (sizes, _) in curves.items():
        arrays[f"{name} sizes"] = sizes.loss.astype(np.float32)
    pages = {f"{name}.html": figure_html(page, title=name) for name, page in figures.items()}
    run.finish(doses, arrays, provenance, pages, report)
