"""The work behind `retrieval gates`: which key/value heads need the whole context, as a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.passkeys import Passkeys, build_passkeys
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.tokens import encode
from ..probes.elicitation import Progress
from ..probes.streaming_costs import MEASURES, StreamingCosts, single_head_costs
from ..probes.streaming_gates import GateSettings, StreamingGates, train_gates
from ..results.attention_patterns import AttentionPattern, save_pattern_folder
from ..results.figures import finished, head_grid_figure
from ..results.provenance import collect_provenance
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from ..results.score_sidecars import Sidecar
from ..results.statistics import bootstrap_mean
from .retrieval_patterns import FOLDER, cost_ranks, full_heads, rule_of
from .retrieval_scoring import default_lengths

KIND = "retrieval-gates"
METHODS = ("costs", "train")
NEAR_ONE = 0.9
_CLAIM = (
    "A head that needs more than its window on these samples is no retrieval head yet, and a share "
    "of heads is a budget, not a finding: look at the value at which the line was drawn."
)


@dataclass(frozen=True)
class GateConfig:
    """Everything that decides the numbers of a `retrieval gates` run, and nothing else."""

    model: str = "engram"
    method: str = "costs"
    sink: int = 16
    recent: int = 64
    streaming: float = 0.5
    threshold: float | None = None
    lengths: tuple[int, ...] = ()
    passkeys: int = 4
    words: int = 8
    samples: int = 8
    steps: int = 400
    seeds: int = 2
    full: str = "teacher_full"
    labels: str = "suffix"
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a method that is not offered and settings that do not
        fit."""
        if self.method not in METHODS:
            raise MnemoscopeError(f"--method is {self.method!r}: use {' or '.join(METHODS)}.")
        self.settings.check()

    @property
    def settings(self) -> GateSettings:
        """The training's settings."""
        words: dict[str, Any] = {"full": self.full, "labels": self.labels}
        return GateSettings(sink=self.sink, recent=self.recent, steps=self.steps, **words)


@dataclass(frozen=True)
class GateResult:
    """A finished run: a table of key/value heads, and the pattern made of it."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    @property
    def pattern(self) -> Path:
        """The pattern folder."""
        return self.folder / FOLDER

    def best(self, k: int) -> list[dict[str, object]]:
        """The `k` heads that need the context most, for a table."""
        rows = self.table.sort("value", descending=True).head(k).to_dicts()
        return [
            {
                "kv_head": f"L{row['layer']}.KV{row['kv_head']}",
                "value": row["value"],
                "kept": "whole" if row["full"] else "sink and recent",
            }
            for row in rows
        ]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        told = {"run": str(self.folder), "pattern": str(self.pattern)}
        return {**told, **self.summary, "kv_heads": self.table.to_dicts()}


@dataclass(frozen=True, eq=False)
class _Found:
    """What a method gave: the value of each head and its gate, table columns, arrays, figures."""

    quantity: str
    value: np.ndarray
    gates: np.ndarray
    rule: dict[str, Any]
    columns: Mapping[str, np.ndarray]
    arrays: Mapping[str, np.ndarray]
    figures: Mapping[str, go.Figure]
    notes: tuple[str, ...]


def find_gates(
    config: GateConfig,
    root: Path,
    *,
    memory_mb: int,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> GateResult:
    """Load, measure or train, write the pattern; continues an interrupted run."""
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    source = samples_of(config, model)
    key = {
        **asdict(config),
        "lengths": list(source.lengths),
        "weights_sha256": model.weights_sha256,
        "samples_sha256": source.sha256,
    }
    with open_run(root, KIND, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            _measure(config, model, source, run, memory_mb, tell)
        return read_gates(run.folder)


def read_gates(folder: Path) -> GateResult:
    """A finished `retrieval-gates` run. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "streaming_heads" not in summary:
        raise MnemoscopeError(
            f"{folder} is not a run of `retrieval gates`: name one of its folders."
        )
    return GateResult(folder, loaded.table, dict(summary))


def samples_of(config: GateConfig, model: HookedModel) -> Passkeys:
    """The passkey samples of a configuration. Raises `MnemoscopeError` with the reason."""
    room = default_lengths(model)
    try:
        return build_passkeys(
            lambda text: encode(model.text_tokenizer, text),
            lengths=config.lengths or (2 * room[0], room[1]),
            passkeys=config.passkeys,
            words=config.words,
            seed=config.seed,
        )
    except ValueError as error:
        raise MnemoscopeError(str(error)) from error


def _measure(
    config: GateConfig,
    model: HookedModel,
    source: Passkeys,
    run: Run,
    memory_mb: int,
    tell: Progress,
) -> None:
    def both(done: int, total: int) -> None:
        run.progress(done, total, config.method)
        tell(done, total)

    if config.method == "costs":
        samples = [source.sample(i) for i in range(config.samples)]
        costs = single_head_costs(
            model,
            samples,
            sink=config.sink,
            recent=config.recent,
            memory_mb=memory_mb,
            run=run,
            progress=both,
        )
        found = _of_costs(config, model, costs)
    else:
        sources = [source.with_seed(config.seed + i) for i in range(config.seeds)]
        gates = train_gates(model, sources, config.settings, run=run, progress=both)
        found = _of_training(config, gates)
    _finish(config, model, source, found, run)


def _of_costs(config: GateConfig, model: HookedModel, costs: StreamingCosts) -> _Found:
    grids = {name: costs.by_head(name, model.anatomy.n_layers) for name in MEASURES}
    value = grids["kl"].mean(axis=0)
    gates = cost_ranks(value)
    columns = {name: grid.mean(axis=0) for name, grid in grids.items()}
    if config.samples > 1:
        spread = bootstrap_mean(grids["kl"], range(config.samples), seed=config.seed)
        columns |= {"kl_low": spread.low, "kl_high": spread.high}
    rule = rule_of(config.streaming, None)
    if config.threshold is not None:
        kept = gates[value >= config.threshold]
        rule = rule_of(0, float(kept.min())) if kept.size else rule_of(1, None)
    label = "cost of streaming, KL in nats (positive: needs the context)"
    return _Found(
        quantity="KL, nats",
        value=value,
        gates=gates,
        rule=rule,
        columns=columns,
        arrays=grids,
        figures={"costs": _grid(value, "Cost of streaming each key/value head alone", label)},
        notes=("Gates of the pattern are ranks of the costs: the share of heads that cost less.",),
    )


def _of_training(config: GateConfig, gates: StreamingGates) -> _Found:
    columns = {"gate": gates.alpha, "gate_sd": gates.by_seed.std(axis=0)}
    figures = {
        "gates": _grid(
            gates.alpha, "Gate of each key/value head", "gate (1: the whole context, 0: a window)"
        ),
        "loss": _loss(gates),
    }
    stable = gates.stability
    notes = (
        ("One seed says nothing about stability: use --seeds 2 or more.",)
        if stable is None
        else (f"Gates of {config.seeds} seeds rank heads alike by {stable.mean:.2f} (Spearman).",)
    )
    return _Found(
        quantity="gate",
        value=gates.alpha,
        gates=gates.alpha,
        rule=rule_of(config.streaming, config.threshold),
        columns=columns,
        arrays={"by_seed": gates.by_seed, "loss": gates.loss},
        figures=figures,
        notes=notes,
    )


def _finish(
    config: GateConfig, model: HookedModel, source: Passkeys, found: _Found, run: Run
) -> None:
    full = full_heads(found.gates, found.rule)
    notes = (*found.notes, *_line_notes(config, found, full))
    summary: dict[str, Any] = {
        "model": model.name,
        "method": config.method,
        "quantity": found.quantity,
        "sink": config.sink,
        "recent": config.recent,
        "kv_heads_in_all": int(full.size),
        "streaming_heads": int((~full).sum()),
        "least_full": float(found.value[full].min()) if full.any() else None,
        "notes": list(notes),
    }
    provenance = collect_provenance(
        **model.identity,
        data_sha256=source.sha256,
        prompt_template=None,
        seed=config.seed,
        estimand="leave-one-out cost of streaming in the suffix"
        if config.method == "costs"
        else f"trained gates, {config.full}",
    )
    settings = {**asdict(config), **found.rule, "lengths": list(source.lengths)}
    save_pattern_folder(
        run.folder / FOLDER,
        AttentionPattern(found.gates, config.sink, config.recent, _only(settings, found.rule)),
        sidecar=Sidecar(provenance, (), notes),
        force=True,
    )
    if "summary" not in run.done:
        run.append("summary", summary)
    rows = _table(found, full)
    report = render_report(
        title=f"Key/value heads of {model.name} that need the context",
        claim=_CLAIM,
        tables={"Heads, in need of the context first": rows.sort("value", descending=True)},
        figures=found.figures,
        provenance=provenance,
        notes=notes,
    )
    pages = {
        f"{name}.html": figure_html(figure, title=name) for name, figure in found.figures.items()
    }
    run.finish(rows, {**found.arrays, "gates": found.gates}, provenance, pages, report)


def _table(found: _Found, full: np.ndarray) -> polars.DataFrame:
    layer, kv_head = np.indices(full.shape).reshape(2, -1)
    columns = {name: grid.ravel() for name, grid in found.columns.items()}
    told = {"value": found.value.ravel(), "pattern_gate": found.gates.ravel(), "full": full.ravel()}
    return polars.DataFrame({"layer": layer, "kv_head": kv_head, **told, **columns})


def _only(settings: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the one rule that holds."""
    other = {"streaming", "threshold"} - set(rule)
    return {name: value for name, value in settings.items() if name not in other}


def _line_notes(config: GateConfig, found: _Found, full: np.ndarray) -> list[str]:
    """Where the line between full and streaming heads was drawn, and whether it means anything."""
    said = [
        f"{int((~full).sum())} of {full.size} key/value heads stream with the first {config.sink} "
        f"and the last {config.recent} keys."
    ]
    if full.any() and not full.all():
        highest = float(found.value[~full].max())
        said.append(
            f"The largest {found.quantity.split(',')[0]} of a streaming head: {highest:.3g}."
        )
        if config.method == "train" and highest >= NEAR_ONE:
            said.append(
                "That gate is near 1: the budget made this head stream, not its gate. Ask for "
                "fewer (--streaming) or draw a line (--threshold)."
            )
    return said


def _grid(values: np.ndarray, title: str, label: str) -> go.Figure:
    figure = head_grid_figure(values, title=title, axis_label=label)
    return figure.update_xaxes(title="key/value head", dtick=1)


def _loss(gates: StreamingGates) -> go.Figure:
    figure = go.Figure(
        [go.Scatter(y=loss, name=f"seed {i}", mode="lines") for i, loss in enumerate(gates.loss)]
    )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="mean squared difference of final hidden states", type="log")
    return finished(figure, "Distillation loss")
