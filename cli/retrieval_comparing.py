"""The work behind `retrieval compare`: all methods in one table, with one causal yard-stick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.needles import NeedleDesign
from ..data.neutral import neutral_passages
from ..interventions.head_means import head_write_norms, mean_head_outputs, mean_queries
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.answer_curves import (
    Ablation,
    AnswerCurve,
    Where,
    answer_curves,
    area_beyond_random,
    curve_table,
)
from ..probes.elicitation import Progress
from ..probes.method_comparison import (
    MethodComparison,
    compare_methods,
    gate_agreement,
    ranking_of,
)
from ..results.figures import dose_figure
from ..results.neuron_figures import matrix_figure
from ..results.provenance import collect_provenance
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_inputs import note_inputs
from ..results.run_reading import load_run
from .neuron_finding import plain
from .retrieval_scoring import design_of
from .retrieval_sources import Method, ScoredRun, fingerprint, methods_of, sort_out

KIND = "retrieval-comparison"
MODES = ("mean", "zero", "uniform", "mean_query", "knock_out", "streaming")
DAMAGE = 1.5
"""By how much perplexity of neutral text may rise before a method's heads are said to hold up all
text."""
_CLAIM = (
    "Scores of the same heads can agree on names and differ in what they find. The yard-stick is "
    "what the right answer loses when a method's first heads are ablated, beyond random heads of "
    "the same layers and norms."
)


@dataclass(frozen=True)
class CompareConfig:
    """How methods are compared and heads ablated."""

    methods: tuple[str, ...] = ()
    k: int = 10
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    mode: str = "mean"
    where: str = "question+decode"
    trials: int = 24
    draws: int = 20
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word that is not offered."""
        for name, allowed in (("mode", MODES), ("where", get_args(Where))):
            if getattr(self, name) not in allowed:
                raise MnemoscopeError(
                    f"--{name} is {getattr(self, name)!r}: use {', '.join(allowed)}."
                )


@dataclass(frozen=True)
class CompareResult:
    """A finished run: losses by method and number of heads, and what was found."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    def methods(self) -> list[dict[str, object]]:
        """One row a method, the largest loss beyond random first."""
        return [
            {
                **one,
                "top": " ".join(one["top"][:4]),
                "area": f"{one['area']:.3g} [{one['low']:.2g}, {one['high']:.2g}]",
            }
            for one in self.summary["methods"]
        ]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary, "curves": self.table.to_dicts()}


def compare_retrieval(
    config: CompareConfig,
    paths: Sequence[Path],
    root: Path,
    *,
    memory_mb: int,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> CompareResult:
    """Read, compare, ablate, save; continues an interrupted run of the same configuration."""
    scored, gates, files = sort_out(paths)
    first = scored[0].config
    model = load_model(first.model, device=config.device, dtype=config.dtype)
    if model.weights_sha256 != load_run(scored[0].result.folder).config["weights_sha256"]:
        raise MnemoscopeError(
            f"{first.model} has other weights than when {scored[0].result.folder.name} was made: "
            "score it again."
        )
    methods = methods_of(scored, gates, files, config.methods, model.anatomy)
    key = {
        **asdict(config),
        "methods": [method.name for method in methods],
        "sizes": list(config.sizes),
        "weights_sha256": model.weights_sha256,
        "compared_sha256": fingerprint(scored, methods),
    }
    with open_run(root, KIND, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            asked = {"methods": list(config.methods)}  # the key names what they turned out to be
            places = [str(path.resolve()) for path in paths]
            note_inputs(run.folder, {"config": asked, "paths": places, "model": first.model})
            _measure(config, model, scored[0], methods, run, memory_mb, say, tell)
        return read_compared(run.folder)


def read_compared(folder: Path) -> CompareResult:
    """A finished `retrieval-comparison` run. Raises `MnemoscopeError` for one of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "pairs" not in summary:
        raise MnemoscopeError(f"{folder} is not a run of `retrieval compare`.")
    return CompareResult(folder, loaded.table, dict(summary))


def chosen_trials(scored: ScoredRun, design: NeedleDesign, most: int) -> tuple[int, ...]:
    """Trials that were answered, at most so many: every needle once before any comes again.

    Raises `MnemoscopeError` where the answered trials are about fewer than two needles.
    """
    seen: dict[str, int] = {}
    places = []
    for number in np.flatnonzero(scored.answered).tolist():
        needle = design.trials[number].needle_id
        seen[needle] = seen.get(needle, -1) + 1
        places.append((seen[needle], number))
    chosen = tuple(sorted(number for _, number in sorted(places)[:most]))
    if len({design.trials[number].needle_id for number in chosen}) < 2:
        raise MnemoscopeError(
            f"{len(places)} trials of {scored.result.folder.name} were answered: ablation needs "
            "answers about two needles at least."
        )
    return chosen


def ablation_of(config: CompareConfig, model: HookedModel) -> Ablation:
    """The ablation with the values that it writes, of neutral text."""
    heads, texts = model.anatomy.all_heads(), neutral_passages()
    mode: Any = config.mode
    where: Any = config.where
    if mode == "mean":
        return Ablation(mode, where, mean_head_outputs(model, texts, heads))
    if mode == "mean_query":
        return Ablation(mode, where, mean_queries(model, texts, heads))
    return Ablation(mode, where)


def _measure(
    config: CompareConfig,
    model: HookedModel,
    scored: ScoredRun,
    methods: Sequence[Method],
    run: Run,
    memory_mb: int,
    say: Callable[[str], None],
    tell: Progress,
) -> None:
    compared = compare_methods({m.name: m.scores for m in methods}, config.k, seed=config.seed)
    design = design_of(scored.config, model)
    trials = chosen_trials(scored, design, config.trials)
    say(
        f"{len(methods)} methods, {len(config.sizes)} sizes, {config.draws} random sets each, "
        f"{len(trials)} answered trials"
    )

    def both(done: int, total: int) -> None:
        run.progress(done, total, "ablating heads")
        tell(done, total)

    texts = neutral_passages()
    curves = answer_curves(
        model,
        design,
        {m.name: ranking_of(m.scores, max(config.sizes, default=1)) for m in methods},
        config.sizes,
        ablation_of(config, model),
        draws=config.draws,
        norms=head_write_norms(model, texts),
        trials=trials,
        texts=texts,
        seed=config.seed,
        memory_mb=memory_mb,
        run=run,
        progress=both,
    )
    _finish(config, model, design, methods, compared, curves, run)


def _finish(
    config: CompareConfig,
    model: HookedModel,
    design: NeedleDesign,
    methods: Sequence[Method],
    compared: MethodComparison,
    curves: Mapping[str, AnswerCurve],
    run: Run,
) -> None:
    rows = polars.concat(
        [
            curve_table(curve, seed=config.seed).select(
                polars.lit(name).alias("method"), polars.all()
            )
            for name, curve in curves.items()
        ]
    )
    summary = summary_of(config, model, methods, compared, curves, rows)
    if "summary" not in run.done:
        run.append("summary", summary)
    provenance = collect_provenance(
        **model.identity,
        data_sha256=design.sha256,
        prompt_template=design.asking,
        seed=config.seed,
        estimand=f"log-probability of the gold answer, {config.mode} ablation in {config.where}",
    )
    figures = figures_of(compared, rows)
    report = render_report(
        title=f"Methods for retrieval heads on {model.name}",
        claim=_CLAIM,
        tables={
            "Loss of the right answer beyond random heads, over all sizes": polars.DataFrame(
                [{**one, "top": " ".join(one["top"])} for one in summary["methods"]]
            ),
            "Loss by number of heads": rows,
            "Agreement of every pair of methods": compared.table(),
            **_gate_tables(summary),
        },
        figures=figures,
        provenance=provenance,
        notes=summary["notes"],
    )
    arrays = {f"scores.{m.name}": m.scores for m in methods}
    for name, curve in curves.items():
        arrays[f"loss.{name}"] = curve.loss
        arrays[f"random_loss.{name}"] = curve.random_loss
    pages = {f"{name}.html": figure_html(page, title=name) for name, page in figures.items()}
    run.finish(rows, arrays, provenance, pages, report)


def summary_of(
    config: CompareConfig,
    model: HookedModel,
    methods: Sequence[Method],
    compared: MethodComparison,
    curves: Mapping[str, AnswerCurve],
    rows: polars.DataFrame,
) -> dict[str, Any]:
    """What was found, as JSON."""
    any_curve = next(iter(curves.values()))
    told = [_told(name, curve, rows, config.seed) for name, curve in curves.items()]
    before = any_curve.perplexity
    return {
        "model": model.name,
        "mode": config.mode,
        "where": config.where,
        "k": config.k,
        "heads": compared.n_heads,
        "largest": config.sizes[-1],
        "trials": len(any_curve.trials),
        "needles": len(set(any_curve.needles)),
        "clean_log_prob": float(any_curve.clean.mean()),
        "perplexity": None if before is None else round(before[0], 3),
        "methods": sorted(told, key=lambda one: -one["area"]),
        "pairs": [plain(row) for row in compared.table().to_dicts()],
        "gates": _gates(methods),
        "notes": [*_damage_notes(told, before), *_matching_notes(curves)],
    }


def figures_of(compared: MethodComparison, rows: polars.DataFrame) -> dict[str, go.Figure]:
    """Curves of loss beyond random, rank correlations, overlaps of the tops."""
    names = compared.methods
    series = rows.select(
        polars.col("method").alias("series"),
        polars.col("heads").alias("dose"),
        polars.col("beyond").alias("value"),
        polars.col("beyond_low").alias("low"),
        polars.col("beyond_high").alias("high"),
    )
    return {
        "curves": dose_figure(
            series,
            title="What the answer loses without a method's first heads",
            dose_label="heads ablated",
            axis_label="log-probability lost beyond random heads, nats (positive: hurts)",
        ),
        "spearman": matrix_figure(
            compared.spearman,
            names,
            names,
            title="Rank correlation of the scores",
            axis_label="Spearman",
            centred=True,
            row_label="method",
            column_label="method",
        ),
        "overlap": matrix_figure(
            compared.jaccard,
            names,
            names,
            title=f"Overlap of the first {compared.k} heads (star: p <= 0.05, chance "
            f"{compared.jaccard_null:.2f})",
            axis_label="Jaccard",
            marked=(compared.p <= 0.05) & ~np.eye(len(names), dtype=bool),
            row_label="method",
            column_label="method",
        ),
    }


def _told(name: str, curve: AnswerCurve, rows: polars.DataFrame, seed: int) -> dict[str, Any]:
    area = area_beyond_random(curve, seed=seed)
    last = rows.filter(polars.col("method") == name).row(-1, named=True)
    return plain(
        {
            "method": name,
            "top": [str(head) for head in curve.ranking],
            "area": area.value,
            "low": area.low,
            "high": area.high,
            "p": area.against.p_loss,
            "loss": last["loss"],
            "random": last["random"],
            "perplexity": last["perplexity"],
        }
    )


def _damage_notes(told: Sequence[Mapping[str, Any]], before: Sequence[float] | None) -> list[str]:
    """Methods whose heads hold up all text, not answers alone."""
    if before is None:
        return []
    return [
        f"{one['method']}: without its heads perplexity of neutral text rises from {before[0]:.3g} "
        f"to {one['perplexity']:.3g}, so it is not answers alone that are lost."
        for one in told
        if one["perplexity"] is not None and one["perplexity"] > DAMAGE * before[0]
    ]


def _matching_notes(curves: Mapping[str, AnswerCurve]) -> list[str]:
    """Where random heads could not be matched as asked, methods of one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, curve in curves.items():
        reasons.setdefault(curve.note, []).append(name)
    return [f"{', '.join(names)}: {note}." for note, names in reasons.items() if note]


def _gates(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Gates of key/value heads beside the copy score, as in retrieval_heads.md 2.4."""
    copying = [method for method in methods if method.name.split(":")[-1] == "copy"]
    return [
        {
            "gates": method.name,
            "scores": score.name,
            **plain(asdict(gate_agreement(method.gates, score.scores))),
        }
        for method in methods
        for score in copying
        if method.gates is not None
    ]


def _gate_tables(summary: Mapping[str, Any]) -> dict[str, polars.DataFrame]:
    if not summary["gates"]:
        return {}
    return {"Gates beside copy scores (on: a head scores 0.1)": polars.DataFrame(summary["gates"])}
