"""The work behind `retrieval score`: one configuration, one resumable run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..data.facts.needles import NeedleDesign
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.types import HeadId
from ..probes.elicitation import Progress
from ..probes.retrieval_designs import Kinds, design_for
from ..probes.retrieval_measures import Measured, Summarised, measure_all, summarise_all
from ..probes.retrieval_statistics import does
from ..probes.retrieval_tables import MAX_Q, retrieval_head_set, table
from ..results.head_set import save_head_set
from ..results.provenance import Provenance, collect_provenance
from ..results.query_head_files import save_core_head_scores, save_query_head_list
from ..results.report import figure_html, render_report
from ..results.retrieval_head_files import RETRIEVAL_THRESHOLD, save_retrieval_head_scores
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from ..results.score_sidecars import Sidecar
from .neuron_finding import plain
from .retrieval_answers import Whole, with_columns
from .retrieval_causal import Causal, measure_causal, read_write_cause
from .retrieval_score_report import figures_of, tables_of

KIND = "retrieval-scores"
QR_HEADS = 16
"""How many heads QRHead keeps of a model (32 of the largest)."""
_CLAIM = (
    "Copying a needle's answer, finding the needle from the question and writing onto the answer's "
    "logit are different jobs; whether the answer hangs on a head is another question (mnemoscope "
    "retrieval compare). Intervals are over needles."
)


@dataclass(frozen=True)
class ScoreConfig:
    """Everything that decides the numbers of a `retrieval score` run, and nothing else."""

    model: str = "engram"
    lengths: tuple[int, ...] = ()
    needles: int = 40
    kind: str = "literal"
    depths: int = 5
    needles_per_haystack: int = 5
    rounds: int = 2
    distractors: int = 0
    text: str | None = None
    knockouts: int = 0
    top: int = 30
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a kind of needle that is not offered."""
        kinds = ("literal", "non-literal", "both")
        if self.kind not in kinds:
            raise MnemoscopeError(f"--kind is {self.kind!r}: use {', '.join(kinds)}.")


@dataclass(frozen=True)
class ScoreResult:
    """A finished run: its table of heads and what was found."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the run was started with."""
        return dict(load_run(self.folder).config)

    def best(self, k: int) -> list[dict[str, object]]:
        """The `k` best copying heads, for a table."""
        rows = self.table.sort("copy", descending=True, nulls_last=True).head(k).to_dicts()
        return [
            {
                **row,
                "head": f"L{row['layer']}.H{row['head']}",
                "copy": f"{row['copy']:.3g} [{row['copy_low']:.2g}, {row['copy_high']:.2g}]",
            }
            for row in rows
            if row["copy"] is not None
        ]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary, "scores": self.table.to_dicts()}


def score_retrieval(
    config: ScoreConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> ScoreResult:
    """Load, run trials, score, save; continues an interrupted run of the same configuration."""
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    design = design_of(config, model)
    with open_run(root, KIND, run_key(config, model, design), force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            _measure(config, model, design, run, say, tell)
        return read_scored(run.folder)


def run_key(config: ScoreConfig, model: HookedModel, design: NeedleDesign) -> dict[str, Any]:
    """What names the run of a configuration."""
    return {
        **asdict(config),
        "lengths": list(design.lengths),
        "weights_sha256": model.weights_sha256,
        "design_sha256": design.sha256,
    }


def read_scored(folder: Path) -> ScoreResult:
    """A finished `retrieval-scores` run. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "reliability" not in summary or "counts" not in summary:
        raise MnemoscopeError(
            f"{folder} is not a run of `retrieval score`: name one of its folders."
        )
    return ScoreResult(folder, loaded.table, dict(summary))


def design_of(config: ScoreConfig, model: HookedModel) -> NeedleDesign:
    """The trials of a configuration. Raises `MnemoscopeError` with the reason."""
    return design_for(
        model,
        lengths=config.lengths or default_lengths(model),
        needles=config.needles,
        kind=_as(config.kind),
        depths=config.depths,
        needles_per_haystack=config.needles_per_haystack,
        rounds=config.rounds,
        distractors=config.distractors,
        text=None if config.text is None else read_text(Path(config.text)),
        seed=config.seed,
    )


def default_lengths(model: HookedModel) -> tuple[int, int]:
    """A quarter and three quarters of the context, or of 2,048 tokens if that is shorter."""
    room = min(model.anatomy.max_context or 2048, 2048)
    return room // 4, room * 3 // 4


def read_text(path: Path) -> str:
    """A user's text. Raises `MnemoscopeError` for a file that cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MnemoscopeError(f"{path} cannot be read as text ({error}).") from error


def _measure(
    config: ScoreConfig,
    model: HookedModel,
    design: NeedleDesign,
    run: Run,
    say: Callable[[str], None],
    tell: Progress,
) -> None:
    told = design.describe()
    say(
        f"{told['trials']} trials about {len(design.needles)} needles in {told['haystacks']} "
        f"haystacks of {', '.join(map(str, design.lengths))} tokens"
    )

    def phase(name: str) -> Progress:
        def both(done: int, total: int) -> None:
            run.progress(done, total, name)
            tell(done, total)

        return both

    measured = measure_all(model, design, seed=config.seed, run=run, phase=phase)
    found = summarise_all(measured, design, seed=config.seed)
    causal = None
    if config.knockouts:
        causal = measure_causal(
            *(model, design, measured, found),
            trials=config.knockouts,
            seed=config.seed,
            run=run,
            phase=phase,
        )
    whole = with_columns(found, measured, causal, seed=config.seed)
    _finish(config, model, design, measured, whole, run)


def _finish(
    config: ScoreConfig,
    model: HookedModel,
    design: NeedleDesign,
    measured: Measured,
    whole: Whole,
    run: Run,
) -> None:
    found, causal = whole.found, whole.causal
    provenance = collect_provenance(
        **model.identity,
        data_sha256=design.sha256,
        prompt_template=design.asking,
        seed=config.seed,
        estimand="attention of question and answer rows to needles; free and forced kept apart",
    )
    absent = _save_head_sets(config, model, found, run)
    _save_exports(model, design, found, provenance, run)
    rows = table(model.anatomy, found.scores, found.grids, found.roles)
    summary = {**summary_of(model, found, absent), **whole.answers.summary}
    tables = {**tables_of(measured, design, found, rows), **whole.answers.tables}
    figures = figures_of(found)
    if causal is not None:
        summary |= causal.summary
        tables |= causal.tables
        figures["read-cause"] = read_write_cause(found, causal)
    if "summary" not in run.done:
        run.append("summary", summary)
    report = render_report(
        title=f"Retrieval heads of {model.name}",
        claim=_CLAIM,
        tables=tables,
        figures=figures,
        provenance=provenance,
        notes=summary["notes"],
    )
    pages = {f"{name}.html": figure_html(page, title=name) for name, page in figures.items()}
    run.finish(rows, arrays_of(measured, causal), provenance, pages, report)


def summary_of(model: HookedModel, found: Summarised, absent: Mapping[str, str]) -> dict[str, Any]:
    """What was found, as JSON: counts, numbers of heads by role, reliability, what explains it."""
    copying = found.scores["copy"]
    with np.errstate(invalid="ignore"):
        retrieving = (copying.mean >= RETRIEVAL_THRESHOLD) & (copying.q <= MAX_Q)
    share = np.zeros(0) if found.mixed is None else found.mixed.needle_share[retrieving]
    share = share[np.isfinite(share)]
    role = found.roles["role"]
    return {
        "model": model.name,
        "heads": int(copying.mean.size),
        "counts": dict(found.free.counts),
        "needles": len(set(found.free.needles)),
        "retrieval_heads": int(retrieving.sum()),
        "locate_heads": int(np.isin(role, ("locate", "both")).sum()),
        "emit_heads": int(np.isin(role, ("emit", "both")).sum()),
        "reliability": plain({name: one.reliability for name, one in found.scores.items()}),
        "needle_share": float(np.median(share)) if share.size else None,
        "first_and_later": None if found.partial is None else plain(asdict(found.partial)),
        "notes": [*found.notes, *absent.values(), *_findings(retrieving, found)],
    }


def arrays_of(measured: Measured, causal: Causal | None = None) -> dict[str, np.ndarray]:
    """Every reading trial by trial."""
    arrays = dict(measured.trials.arrays)
    if causal is not None:
        cut = causal.knockouts
        arrays |= {"edges.trials": np.array(cut.trials), "edges.drop": cut.drop}
        arrays["edges.control"] = cut.control
    if measured.documents is not None:
        for name in ("gold", "ndcg", "core"):
            arrays[f"documents.{name}"] = getattr(measured.documents, name)
    if measured.writes is not None:
        for name in ("read", "write", "contrast", "copied", "whole"):
            arrays[f"writes.{name}"] = getattr(measured.writes, name)
    return arrays


def _save_head_sets(
    config: ScoreConfig, model: HookedModel, found: Summarised, run: Run
) -> dict[str, str]:
    """One head set a role in the run's own folder; a sentence where a role has no head."""
    floors = {
        "retrieval": ("copy", RETRIEVAL_THRESHOLD, "mean copy score, free, accepted"),
        "locate": ("locate_mass", 0.0, "needle mass of question rows"),
        "emit": ("emit", 0.0, "needle mass of answer rows"),
    }
    absent = {}
    for role, (score, least, method) in floors.items():
        among = None if role == "retrieval" else does(found.scores[score], MAX_Q, 0.1)
        try:
            heads = retrieval_head_set(
                model,
                found.scores[score],
                role,
                method=method,
                least=least,
                k=config.top,
                run_id=run.id,
                among=among,
            )
        except MnemoscopeError as none_found:
            absent[role] = str(none_found)
        else:
            save_head_set(run.folder / f"headset-{role}.json", heads, force=True)
    return absent


def _save_exports(
    model: HookedModel,
    design: NeedleDesign,
    found: Summarised,
    provenance: Provenance,
    run: Run,
) -> None:
    """Score files in the forms of other projects, each with its sidecar."""
    exports = run.folder / "exports"
    exports.mkdir(exist_ok=True)
    trials = [design.trials[i] for i in found.free.trials]
    listed = tuple(
        {"needle": t.needle_id, "length": t.length, "depth": t.depth, "accepted": True}
        for t in trials
    )
    events = found.free.per_head("event")
    even = all(len(scores) == len(listed) for scores in events.values())
    save_retrieval_head_scores(
        exports / "retrieval_head.json",
        events,
        sidecar=Sidecar(provenance, listed if even else (), found.notes),
        force=True,
    )
    if "core" not in found.scores:
        return
    sidecar = Sidecar(provenance, (), found.notes)
    core, qr = found.scores["core"].mean, found.scores["qr"].mean
    seen = [HeadId(int(layer), int(head)) for layer, head in np.argwhere(np.isfinite(core))]
    save_core_head_scores(
        exports / "core.json",
        {head: float(core[head.layer, head.head]) for head in seen},
        sidecar=sidecar,
        force=True,
    )
    best = sorted(seen, key=lambda head: (-qr[head.layer, head.head], head))[:QR_HEADS]
    save_query_head_list(
        exports / "qr_heads.yaml", best, model_name=model.name, sidecar=sidecar, force=True
    )


def _findings(retrieving: np.ndarray, found: Summarised) -> list[str]:
    said = [
        f"{int(retrieving.sum())} of {retrieving.size} heads copy at least {RETRIEVAL_THRESHOLD} "
        f"of a needle's answer (q <= {MAX_Q})."
    ]
    needles = len(set(found.free.needles))
    if 2.0**-needles * retrieving.size > MAX_Q:
        said.append(
            f"Answers about {needles} needles are too few to test {retrieving.size} heads at once: "
            "use more needles."
        )
    if found.partial is not None and np.isfinite(found.partial.partial):
        said.append(
            f"Scores of first and later answer tokens correlate by {found.partial.raw:.2f} over "
            f"heads, by {found.partial.partial:.2f} with induction held fixed."
        )
    return said


def _as(word: str) -> Kinds:
    """A word that `ScoreConfig` has checked, as the literal type that the probe takes."""
    kinds: dict[str, Any] = {word: word}
    return kinds[word]
