"""What a pruning does to the answers, measured before anything is written.

The heads are edited by hooks; that a reloaded checkpoint says the same up to rounding is tested for
every family and checked again on the written folder (`reload_gap`). The same prompts are asked of
the model as it is, of the edited model, and of the model with matched random heads edited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.facts.conflicts import Condition, ConflictItem
from ..data.facts.items import Relation, data_hash, split_subjects
from ..data.neutral import neutral_passages
from ..models.edits import Edit, mean, scale, zero
from ..models.hooked import HookedModel
from ..models.perplexity import perplexity
from ..models.types import HeadId
from ..probes.elicitation import conflict_items
from ..probes.knowledge_conflict import Answer, Comparison, answer_items, compare, rates_table
from ..results.controls import matched_random_heads
from ..results.figures import rates_figure
from ..results.provenance import JSON, collect_provenance, utc_now
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.storage import write_atomic
from .prune_config import CONFLICTS, KINDS, Controls, Evaluate, Gate, Method
from .scoring import relation_named

KIND = "prune-eval"
ASKED: tuple[Condition, ...] = ("closed", "agree", *CONFLICTS)
BEFORE, AFTER = "before", "pruned"

Means = Mapping[HeadId, Float[Tensor, " d_v"]]


@dataclass(frozen=True)
class Metric:
    """One number before and after, beside what matched random heads do to it.

    `change`, `low`, `high` and `random` are after minus before: points of a share of answers with
    its 95 % interval over subjects, or for `ppl` the share of what it was, without an interval.
    `p` is the paired sign-flip test over subjects, `mcnemar_p` the exact test over items.
    """

    name: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    p: float | None
    mcnemar_p: float | None
    random: tuple[float, ...]

    @property
    def beyond_random(self) -> bool:
        """Whether the change lies outside everything that the random draws did."""
        return not min(self.random) <= self.change <= max(self.random)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    run: Path
    items: int
    metrics: tuple[Metric, ...]
    note: str

    def summary(self) -> dict[str, JSON]:
        """For the manifest and for JSON output."""
        metrics: list[JSON] = [{**asdict(m), "random": list(m.random)} for m in self.metrics]
        return {"run": self.run.name, "items": self.items, "note": self.note, "metrics": metrics}

    def rows(self) -> list[tuple[object, ...]]:
        """One row a metric, for a table: before, after, change, interval, tests, random heads."""
        return [
            (
                m.name,
                m.before,
                m.after,
                f"{m.change:+.3f}",
                "–" if m.low is None or m.high is None else f"{m.low:+.3f} to {m.high:+.3f}",
                "–" if m.p is None else m.p,
                "–" if m.mcnemar_p is None else m.mcnemar_p,
                f"{min(m.random):+.3f} to {max(m.random):+.3f}",
                "yes" if m.beyond_random else "no",
            )
            for m in self.metrics
        ]


COLUMNS = (
    "metric",
    "before",
    "after",
    "change",
    "95 % interval",
    "p",
    "McNemar p",
    "random heads",
    "beyond random",
)


@dataclass(frozen=True, eq=False)
class Ground:
    """A model and the conflict items that it knows, asked once for all head sets of a batch."""

    model: HookedModel
    relation: Relation
    items: tuple[ConflictItem, ...]
    settings: Evaluate

    @cached_property
    def before(self) -> dict[str, Any]:
        """What the unedited model answers."""
        return _measured(self, ())


def ground_of(model: HookedModel, settings: Evaluate) -> Ground:
    """Items of the relation's test part, which finding heads and choosing their number do not use.

    Raises `MnemoscopeError` when the model knows none of them.
    """
    relation = relation_named(settings.relation)
    facts = split_subjects(relation, 0)["test"][: settings.subjects]
    return Ground(model, relation, conflict_items(model, relation, facts).items, settings)


def head_edits(method: Method, heads: Sequence[HeadId], means: Means) -> tuple[Edit, ...]:
    """The hooked form of what the method does to the checkpoint."""
    if method.mode == "scale" and method.factor is not None:
        return (scale(heads, method.factor),)
    if method.mode == "mean":
        return (mean(heads, torch.stack([means[head] for head in heads])),)
    return (zero(heads),)


def evaluate(
    ground: Ground,
    method: Method,
    heads: Sequence[HeadId],
    controls: Controls,
    root: Path,
    *,
    means_of: Callable[[Sequence[HeadId]], Means],
    force: bool,
    tell: Callable[[int, int], None],
) -> Evaluation:
    """Ask before and after and with matched random heads; continues or finds an earlier run.

    `report.json` and `report.html` lie in the run's folder. `means_of` is called in mean mode only.
    """
    anatomy = ground.model.anatomy
    drawn = matched_random_heads(
        heads,
        anatomy.n_layers,
        anatomy.n_heads,
        draws=controls.matched_random,
        seed=controls.seed,
    )
    sets = {AFTER: tuple(heads)} | {f"random {i + 1}": d for i, d in enumerate(drawn.draws)}
    with open_run(root, KIND, _key(ground, method, heads, controls), force=force) as run:
        if run.finished:
            measured = dict(run.done)
        else:
            measured = _ask(ground, method, sets, run, means_of, tell)
        answers = {label: _answers(row) for label, row in measured.items()}
        metrics = _metrics(measured, answers)
        if not run.finished:
            found = Evaluation(run.folder, len(ground.items), metrics, drawn.note)
            _finish(ground, method, heads, controls, found, answers, run)
        return Evaluation(run.folder, len(ground.items), metrics, drawn.note)


def failed_gates(gates: Sequence[Gate], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """One sentence for each gate that does not hold: which, and by how much."""
    return tuple(said for gate in gates if (said := _failed(gate, metrics)))


def reload_gap(
    model: HookedModel, pruned: HookedModel, edits: Sequence[Edit], prompt: str
) -> float:
    """Largest difference of logits between hooked and reloaded model, relative to the largest logit
    (at least 1), at the last token of a prompt."""
    batch = model.tokens(prompt)
    with model.intervene(edits):
        hooked = model.logits(batch, at="end").float()
    reloaded = pruned.logits(batch, at="end").float()
    return float((reloaded - hooked).abs().max() / max(1.0, float(hooked.abs().max())))


# -- measuring ------------------------------------------------------------------------------------


def _key(
    ground: Ground, method: Method, heads: Sequence[HeadId], controls: Controls
) -> dict[str, JSON]:
    return {
        "model": ground.model.name,
        "weights_sha256": ground.model.weights_sha256,
        "data_sha256": data_hash(ground.relation),
        "relation": ground.settings.relation,
        "subjects": ground.settings.subjects,
        "heads": [str(head) for head in heads],
        "mode": method.mode,
        "factor": method.factor,
        "matched_random": controls.matched_random,
        "seed": controls.seed,
    }


def _ask(
    ground: Ground,
    method: Method,
    sets: Mapping[str, tuple[HeadId, ...]],
    run: Run,
    means_of: Callable[[Sequence[HeadId]], Means],
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    everyone = sorted({head for heads in sets.values() for head in heads})
    means = means_of(everyone) if method.mode == "mean" else {}
    if BEFORE not in run.done:
        run.append(BEFORE, {"heads": [], **ground.before})
    for done, (label, heads) in enumerate(sets.items()):
        if label not in run.done:
            run.check_cancelled()
            found = _measured(ground, head_edits(method, heads, means))
            run.append(label, {"heads": [str(head) for head in heads], **found})
        run.progress(done + 2, len(sets) + 1, "asking")
        tell(done + 2, len(sets) + 1)
    return dict(run.done)


def _measured(ground: Ground, edits: Sequence[Edit]) -> dict[str, Any]:
    given = answer_items(ground.model, ground.items, ASKED, edits)
    return {
        "answers": [answer.row() for answer in given],
        "ppl": perplexity(ground.model, neutral_passages(), edits),
    }


def _answers(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    return tuple(Answer.from_row(answer) for answer in row["answers"])


def _metrics(
    measured: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]]
) -> tuple[Metric, ...]:
    draws = [label for label in measured if label.startswith("random")]
    rates = [_rate("closed", "closed", "memory", answers, draws)]
    rates.append(_rate("agree", "agree", "memory", answers, draws))
    rates += [
        _rate(f"{kind}_rate.{form}", form, kind, answers, draws)
        for form in CONFLICTS
        for kind in KINDS
    ]
    ppl = {label: float(row["ppl"]) for label, row in measured.items()}
    was, now = ppl[BEFORE], ppl[AFTER]
    random = tuple(ppl[label] / was - 1 for label in draws)
    return (*rates, Metric("ppl", was, now, now / was - 1, None, None, None, None, random))


def _rate(
    name: str,
    condition: Condition,
    kind: str,
    answers: Mapping[str, Sequence[Answer]],
    draws: Sequence[str],
) -> Metric:
    was, now = (_share(answers[label], condition, kind) for label in (BEFORE, AFTER))
    told: Comparison = compare(answers[BEFORE], answers[AFTER], condition, kind)
    random = tuple(_share(answers[label], condition, kind) - was for label in draws)
    change = told.change
    return Metric(
        name, was, now, change.value, change.low, change.high, told.p, told.mcnemar_p, random
    )


def _share(answers: Sequence[Answer], condition: Condition, kind: str) -> float:
    given = [answer.outcome.kind == kind for answer in answers if answer.condition == condition]
    return float(np.mean(given))


def _failed(gate: Gate, metrics: Sequence[Metric]) -> str | None:
    asked = f"{gate.metric}.{CONFLICTS[0]}" if gate.metric.endswith("_rate") else gate.metric
    metric = next(metric for metric in metrics if metric.name == asked)
    for name, value, sign in (
        ("max_increase", metric.change, 1),
        ("min_increase", metric.change, -1),
        ("max_drop", -metric.change, 1),
        ("min", metric.after, -1),
    ):
        bound = getattr(gate, name)
        # A share of items is a float: 3 of 20 must pass a bound of 0.15.
        if bound is not None and not sign * (value - bound) <= 1e-9:
            return (
                f"gate {gate.metric}: {name.replace('_', ' ')} is {bound:g} but it is {value:.4g}, "
                f"off by {abs(value - bound):.3g}"
            )
    return None


# -- writing it down ------------------------------------------------------------------------------


def _finish(
    ground: Ground,
    method: Method,
    heads: Sequence[HeadId],
    controls: Controls,
    found: Evaluation,
    answers: Mapping[str, Sequence[Answer]],
    run: Run,
) -> None:
    rates = rates_table(answers)
    named = ", ".join(map(str, heads))
    provenance = collect_provenance(
        **ground.model.identity,
        data_sha256=data_hash(ground.relation),
        prompt_template=ground.relation.templates[0],
        seed=controls.seed,
        estimand=f"rates of greedy answers, {method.mode} of {named} by hooks",
    )
    shown = rates.filter(polars.col("label").is_in([BEFORE, AFTER])).with_columns(
        (polars.col("condition") + ", " + polars.col("label")).alias("condition")
    )
    title = f"{ground.model.name}, {method.mode}: {named}"
    figure = rates_figure(shown, title=title)
    record = {
        "schema": "mnemoscope/prune-eval/1",
        "created": utc_now(),
        "model": ground.model.name,
        "method": method.model_dump(mode="json"),
        "heads": [str(head) for head in heads],
        **found.summary(),
        "rates": rates.to_dicts(),
    }
    write_atomic(run.folder / "report.json", json.dumps(record, indent=1) + "\n")
    report = render_report(
        title=title,
        claim=f"{found.items} conflict items of {ground.relation.name}, before and after.",
        tables={
            "Before, after, and the same number of random heads of the same layers": _frame(found),
            "All answers": rates,
        },
        figures={"Answers before and after": figure},
        provenance=provenance,
        notes=[
            "Changes are after minus before, in points; of ppl as a share of what it was. "
            "The rows of the head set and of random heads are hooked edits of one loaded model.",
            *([found.note] if found.note else []),
        ],
    )
    pages = {"rates.html": figure_html(figure, title=title)}
    run.finish(_frame(found), {"rate": rates["rate"].to_numpy()}, provenance, pages, report)


def _frame(found: Evaluation) -> polars.DataFrame:
    rows = [
        {
            **asdict(metric),
            "random": None,
            "random_low": min(metric.random),
            "random_high": max(metric.random),
            "beyond_random": metric.beyond_random,
        }
        for metric in found.metrics
    ]
    return polars.DataFrame(rows, infer_schema_length=None).drop("random")
