"""The work behind `heads score`: one configuration, one resumable run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars

from ..data.facts.items import data_hash, load_relation, split_subjects
from ..interventions.patched_passes import chain_for
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.conflict_heads import (
    Answers,
    ConflictEffects,
    ConflictHeads,
    Estimand,
    Form,
    head_set,
    measure_effects,
    summarise,
    superposed,
    table,
)
from ..probes.elicitation import conflict_items
from ..results.figures import head_grid_figure
from ..results.head_set import save_head_set
from ..results.provenance import Provenance, collect_provenance
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run

KIND = "head-scores"


@dataclass(frozen=True)
class ScoreConfig:
    """Everything that decides the numbers of a `heads score` run, and nothing else."""

    model: str
    relation: str = "capital"
    subjects: int = 60
    form: str = "substitution"
    estimand: str = "direct"
    answers: str = "first"
    templates: tuple[int, ...] = (0, 1, 2)
    demonstrations: int = 3
    top: int = 10
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    memory_mb: int = 512

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word that is not offered."""
        for name, allowed in (("form", Form), ("estimand", Estimand), ("answers", Answers)):
            if getattr(self, name) not in get_args(allowed):
                raise MnemoscopeError(
                    f"--{name} is {getattr(self, name)!r}: use {' or '.join(get_args(allowed))}."
                )


@dataclass(frozen=True)
class ScoreResult:
    """A finished run and its table."""

    folder: Path
    table: polars.DataFrame
    facts: dict[str, Any]

    def top_rows(self, role: str, k: int) -> list[tuple[object, ...]]:
        """The `k` best heads of a role, for a table."""
        rows = self.table.sort(role, descending=True).head(k).to_dicts()
        return [
            (
                f"L{row['layer']}.H{row['head']}",
                row[role],
                f"{row[f'{role}_low']:.3g} to {row[f'{role}_high']:.3g}",
                row[f"{role}_q"],
            )
            for row in rows
        ]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.facts, "heads": self.table.to_dicts()}


def score_heads(
    config: ScoreConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> ScoreResult:
    """Load, elicit, patch, summarise and save; continues an interrupted run of the same kind."""
    relation = relation_named(config.relation)
    _check_templates(relation, config.templates)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    with open_run(root, KIND, run_key(config, model), force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            _measure(config, model, relation, run, say, tell)
        return read_scores(run.folder)


def run_key(config: ScoreConfig, model: HookedModel) -> dict[str, Any]:
    """What names the run of a configuration. Raises `MnemoscopeError` for an unknown relation."""
    return {
        **asdict(config),
        "templates": list(config.templates),
        "weights_sha256": model.weights_sha256,
        "data_sha256": data_hash(relation_named(config.relation)),
    }


def read_scores(folder: Path) -> ScoreResult:
    """A finished `head-scores` run."""
    from ..results.run_reading import load_run

    loaded = load_run(folder)
    return ScoreResult(folder, loaded.table, dict(loaded.rows.get("summary", {})))


def _measure(
    config: ScoreConfig,
    model: HookedModel,
    relation: Any,
    run: Run,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> None:
    chain = chain_for(model, seed=config.seed)
    facts = split_subjects(relation, config.seed)["find"][: config.subjects]
    known = conflict_items(
        model,
        relation,
        facts,
        templates=config.templates,
        demonstrations=config.demonstrations,
        seed=config.seed,
    )
    say(f"{len(known.items)} conflict items that the model knows; dropped: {known.dropped or 0}")

    def both(done: int, total: int) -> None:
        run.progress(done, total, "patching heads")
        tell(done, total)

    effects = measure_effects(
        chain,
        known.items,
        form=_as(config.form),
        estimand=_as(config.estimand),
        answers=_as(config.answers),
        memory_mb=config.memory_mb,
        run=run,
        progress=both,
    )
    heads = summarise(effects, estimand=config.estimand, seed=config.seed)
    _finish(config, model, relation, run, known.dropped, effects, heads)


def _finish(
    config: ScoreConfig,
    model: HookedModel,
    relation: Any,
    run: Run,
    dropped: dict[str, int],
    effects: ConflictEffects,
    heads: ConflictHeads,
) -> None:
    facts = _summary(model, dropped, heads)
    if "summary" not in run.done:
        run.append("summary", facts)
    estimand = f"{config.estimand}, {config.form}, {config.answers} answer tokens"
    provenance = run_provenance(config, model, relation, estimand)
    figures = _figures(heads)
    scores = table(heads, model)
    report = render_report(
        title=f"Memory and context heads of {model.name}",
        claim="Positive scores: the head speaks for the answer of its role at END.",
        tables={"Heads, best memory score first": scores.sort("memory", descending=True).head(30)},
        figures=figures,
        provenance=provenance,
        notes=[f"{name}: {value}" for name, value in facts.items()],
    )
    arrays = {"change": effects.change.astype(np.float32), "clean": effects.clean}
    pages = {
        f"{role}.html": figure_html(figure, title=f"{role} heads")
        for role, figure in figures.items()
    }
    _save_head_sets(config, model, heads, run)
    run.finish(scores, arrays, provenance, pages, report)


def _save_head_sets(
    config: ScoreConfig, model: HookedModel, heads: ConflictHeads, run: Run
) -> None:
    """One head set a role, in the run's own folder; a note where a role has no head at all."""
    for role in ("memory", "context"):
        try:
            found = head_set(heads, model, _as(role), k=config.top, run_id=run.id)
        except MnemoscopeError as none_found:
            note = run.folder / f"no-{role}-heads.txt"
            note.write_text(f"{none_found}\n", encoding="utf-8")
        else:
            save_head_set(run.folder / f"headset-{role}.json", found, force=True)


def _summary(model: HookedModel, dropped: dict[str, int], heads: ConflictHeads) -> dict[str, Any]:
    both = [f"L{layer}.H{head}" for layer, head in np.argwhere(superposed(heads))]
    return {
        "model": model.name,
        "estimand": heads.estimand,
        "items": heads.n_items,
        "subjects": heads.n_subjects,
        "dropped": dropped,
        "reliability": heads.reliability,
        "template_stability": heads.template_stability,
        "superposed": both,
    }


def _figures(heads: ConflictHeads) -> dict[str, Any]:
    return {
        role: head_grid_figure(
            heads.scores(_as(role)),
            title=f"{role} score of each head",
            axis_label=f"{role} score (logits; positive: speaks for the {role} answer)",
            significant=heads.q(_as(role)) <= 0.05,
        )
        for role in ("memory", "context")
    }


def run_provenance(
    config: ScoreConfig, model: HookedModel, relation: Any, estimand: str
) -> Provenance:
    """Where the numbers of a run came from."""
    return collect_provenance(
        **model.identity,
        data_sha256=data_hash(relation),
        prompt_template=" | ".join(relation.templates[t] for t in config.templates),
        seed=config.seed,
        estimand=estimand,
    )


def _check_templates(relation: Any, templates: tuple[int, ...]) -> None:
    unknown = [t for t in templates if not 0 <= t < len(relation.templates)]
    if unknown or not templates or len(set(templates)) < len(templates):
        raise MnemoscopeError(
            f"--templates {','.join(map(str, templates))}: {relation.name} has wordings 0 to "
            f"{len(relation.templates) - 1}; name each at most once."
        )


def relation_named(name: str) -> Any:
    """A shipped relation or a file. Raises `MnemoscopeError` with the loader's reason."""
    try:
        return load_relation(name)
    except (ValueError, FileNotFoundError) as error:
        raise MnemoscopeError(str(error)) from error


def _as(word: str) -> Any:
    """A word that `ScoreConfig` has checked, as the literal type that the probes take."""
    return word
