"""The first journey: who speaks for an answer, and what does the model say without them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..data.facts.conflicts import Condition
from ..data.facts.items import split_subjects
from ..interventions.checkpoint_surgery import prune_checkpoint, verify_pruned
from ..interventions.pruning_plan import plan_pruning
from ..models.edits import Edit, zero
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import checkpoint_folder, load_model
from ..models.types import HeadId
from ..probes.conflict_heads import Role
from ..probes.elicitation import conflict_items
from ..probes.knowledge_conflict import Answer, compare, kept_answers, rates_table
from ..results.controls import matched_random_heads
from ..results.figures import rates_figure
from ..results.head_set import load_head_set
from ..results.report import figure_html
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from .prune_eval import reload_gap
from .scoring import ScoreConfig, relation_named, run_provenance, score_heads

CONFLICT: dict[Role, Condition] = {"memory": "coherent", "context": "qa"}
"""The conflict form in which the other side has something to gain when a role is pruned."""
ALONE: Condition = "substitution"
"""The form for prompts without demonstrations, which may be answered either way as they are."""
WANTED: dict[Role, Role] = {"memory": "context", "context": "memory"}
RANDOM_DRAWS = 5
_SCORED = 10  # heads in the sets that are written; controls are drawn outside both
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class JourneyConfig:
    """What decides the numbers of the demo."""

    model: str
    relation: str
    subjects: int
    role: Role
    top: int
    demonstrations: int

    @property
    def form(self) -> Condition:
        """The conflict form in which the effect is judged."""
        return CONFLICT[self.role] if self.demonstrations else ALONE

    @property
    def scores(self) -> ScoreConfig:
        """What decides the heads."""
        return ScoreConfig(
            self.model,
            self.relation,
            self.subjects,
            templates=(0,),
            demonstrations=self.demonstrations,
            top=_SCORED,
        )


@dataclass(frozen=True)
class Journey:
    """A finished demo: rates before and after, the checkpoint, the figure."""

    heads: tuple[str, ...]
    table: polars.DataFrame
    verdict: tuple[str, ...]
    checkpoint: Path
    figure: Path

    @property
    def folder(self) -> Path:
        """The run that holds them."""
        return self.figure.parents[1]

    def rate_rows(self) -> list[tuple[object, ...]]:
        """One row a model and condition: RM, RC, RO, items; random draws by their median."""
        drawn = polars.col("label").str.starts_with("random")
        label = f"random heads, median of {RANDOM_DRAWS}"
        named = self.table.with_columns(
            polars.when(drawn).then(polars.lit(label)).otherwise(polars.col("label")).alias("label")
        )
        keys = ("label", "condition")
        rates = named.group_by(*keys, "answer", maintain_order=True).agg(
            polars.col("rate").median(), polars.col("n").first()
        )
        rows = rates.group_by(*keys, maintain_order=True).agg("rate", "n")
        return [
            (row["label"], row["condition"], *row["rate"], row["n"][0])
            for row in rows.iter_rows(named=True)
        ]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "heads": list(self.heads),
            "rates": self.table.to_dicts(),
            "verdict": list(self.verdict),
            "checkpoint": str(self.checkpoint),
            "figure": str(self.figure),
        }


def journey(
    config: JourneyConfig,
    out: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> Journey:
    """Score, prune, reload, ask again. Every finished step is kept and found again."""
    scored = score_heads(
        config.scores,
        out / "runs",
        force=force,
        say=say,
        tell=tell,
    )
    heads = load_head_set(scored.folder / f"headset-{config.role}.json").top(config.top).ids
    rivals = _best_heads(scored.folder, heads)
    folder = out / f"pruned-{config.role}-{config.top}"
    checkpoint = _pruned(config, heads, folder, scored.folder.name, force, say)
    key = {**asdict(config), "scores": scored.folder.name}
    with open_run(out / "runs", "demo", key, force=force) as run:
        if not run.finished:
            _ask(config, heads, rivals, checkpoint, run, tell)
        folder = run.folder
    loaded = load_run(folder)
    return Journey(
        tuple(map(str, heads)),
        loaded.table,
        tuple(loaded.rows["verdict"]["lines"]),
        checkpoint,
        folder / "figures" / "rates.html",
    )


def journey_in(
    config: JourneyConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> Journey:
    """`journey` whose runs lie in `root`, and its checkpoints beside that."""
    return journey(config, root.parent, force=force, say=say, tell=tell)


def _best_heads(folder: Path, but: Sequence[HeadId]) -> tuple[HeadId, ...]:
    """Heads of either role besides these: a control that happened to prune them would be none."""
    sets = [load_head_set(path).ids for path in sorted(folder.glob("headset-*.json"))]
    return tuple(sorted({head for ids in sets for head in ids} - set(but)))


def _pruned(
    config: JourneyConfig,
    heads: Sequence[HeadId],
    out: Path,
    run_id: str,
    force: bool,
    say: Callable[[str], None],
) -> Path:
    folder = out / run_id
    if folder.exists() and not force:
        verify_pruned(folder)
        return folder
    plan = plan_pruning(checkpoint_folder(config.model), heads)
    say(plan.describe())
    folder.parent.mkdir(parents=True, exist_ok=True)
    return prune_checkpoint(plan, folder, force=force, manifest_extra={"run_id": run_id})


def _ask(
    config: JourneyConfig,
    heads: Sequence[HeadId],
    rivals: Sequence[HeadId],
    checkpoint: Path,
    run: Run,
    tell: Callable[[int, int], None],
) -> None:
    model = load_model(config.model)
    relation = relation_named(config.relation)
    facts = split_subjects(relation, 0)["tune"]
    items = conflict_items(model, relation, facts, demonstrations=config.demonstrations).items
    pruned = load_model(checkpoint)
    conditions: tuple[Condition, ...] = tuple(
        dict.fromkeys(("closed", "agree", "substitution", config.form))
    )
    _check_equal(model, pruned, heads, items[0].prompt("substitution"))
    anatomy = model.anatomy
    draws = matched_random_heads(
        heads,
        anatomy.n_layers,
        anatomy.n_heads,
        draws=RANDOM_DRAWS,
        seed=0,
        exclude=rivals,
    ).draws
    plans: list[tuple[str, HookedModel, tuple[Edit, ...]]] = [
        ("before", model, ()),
        ("pruned", pruned, ()),
        *((f"random {i + 1}", model, (zero(draw),)) for i, draw in enumerate(draws)),
    ]
    answers: dict[str, tuple[Answer, ...]] = {}
    for done, (label, asked, edits) in enumerate(plans):
        answers[label] = kept_answers(run, label, asked, items, conditions, edits)
        run.progress(done + 1, len(plans), "asking")
        tell(done + 1, len(plans))
    _finish(config, model, relation, run, answers)


def _finish(
    config: JourneyConfig,
    model: HookedModel,
    relation: Any,
    run: Run,
    answers: dict[str, tuple[Answer, ...]],
) -> None:
    table = rates_table(answers)
    if "verdict" not in run.done:
        run.append("verdict", {"lines": _verdict(answers, config)})
    shown = table.filter(
        (polars.col("condition") == config.form) & polars.col("label").is_in(["before", "pruned"])
    ).with_columns(polars.col("label").alias("condition"))
    figure = rates_figure(shown, title=f"{model.name}: answers under conflict")
    run.finish(
        table,
        {"rate": table["rate"].to_numpy()},
        run_provenance(config.scores, model, relation, "rates of greedy answers"),
        {"rates.html": figure_html(figure, title="answers under conflict")},
    )


def _verdict(answers: dict[str, tuple[Answer, ...]], config: JourneyConfig) -> list[str]:
    """The change of the wanted rate in words, beside what random heads do, and its price."""
    form, wanted = config.form, WANTED[config.role]
    before, rate = answers["before"], "RM" if wanted == "memory" else "RC"
    change = compare(before, answers["pruned"], form, wanted)
    random = [
        compare(before, given, form, wanted).change.value
        for label, given in answers.items()
        if label.startswith("random")
    ]
    closed = compare(before, answers["pruned"], "closed", "memory").change.value
    low, high = float(np.min(random)), float(np.max(random))
    inside = low <= change.change.value <= high
    return [
        f"{rate} under {form} conflict changes by {change.change.value:+.3f} "
        f"(95 % interval {change.change.low:+.3f} to {change.change.high:+.3f}; "
        f"McNemar p = {change.mcnemar_p:.3g}).",
        f"{RANDOM_DRAWS} draws of random heads of the same or nearest layers: {low:+.3f} to "
        f"{high:+.3f}{': NOT better than random.' if inside else '.'}",
        f"Side effect: closed-book accuracy changes by {closed:+.3f}.",
    ]


def _check_equal(
    model: HookedModel, pruned: HookedModel, heads: Sequence[HeadId], prompt: str
) -> None:
    """The reloaded checkpoint must say what the hooked model says."""
    gap = reload_gap(model, pruned, [zero(heads)], prompt)
    if not gap <= _TOLERANCE:
        raise MnemoscopeError(
            f"the pruned checkpoint differs from the hooked model by {gap:.3g} of the largest "
            "logit."
        )
