"""All scores of retrieval on one model: trials, documents, writes, repeats, suppression, basin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..data.facts.needles import NeedleDesign
from ..interventions.end_chain import EndChain
from ..interventions.path_patching import build_chain
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..results.errors import StatisticsError
from ..results.kept_units import kept_arrays
from ..results.run import Run
from .attention_basin import AttentionBasin, basin_prompts, measure_basin
from .copy_suppression import CopySuppression, measure_copy_suppression, neutral_rows
from .document_prompts import DocumentPrompt, needle_documents
from .elicitation import Progress
from .induction_heads import InductionScores, measure_induction
from .query_heads import QueryHeadScores, measure_query_heads
from .retrieval_heads import RetrievalScores, score_trials
from .retrieval_mixed_model import MixedModel, fit_mixed_model
from .retrieval_statistics import (
    HeadStatistics,
    PartialCorrelation,
    locate_emit,
    partial_correlation,
    summarise_scores,
)
from .retrieval_trials import RetrievalTrials, measure_trials
from .write_scores import WriteScores, head_roles, measure_writes

SUPPRESSION_TOKENS = 128
"""Tokens of each neutral text; the unembedding of every layer's stream is what costs."""
Grid = Float[np.ndarray, "layer head"]
Phase = Callable[[str], Progress]
"""Gives the progress callback of a named phase."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured on one model. `documents`, `writes` and `suppression` are None
    where the model or the design does not allow them; `notes` say why."""

    trials: RetrievalTrials
    documents: QueryHeadScores | None
    hard: tuple[int, ...]
    writes: WriteScores | None
    induction: InductionScores
    suppression: CopySuppression | None
    basin: AttentionBasin | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Summarised:
    """Scores of all heads: `scores` with intervals over needles (or sequences, texts, rounds),
    `grids` without, `roles` in words."""

    free: RetrievalScores
    forced: RetrievalScores
    scores: Mapping[str, HeadStatistics]
    grids: Mapping[str, Grid]
    roles: Mapping[str, np.ndarray]
    mixed: MixedModel | None
    partial: PartialCorrelation | None
    notes: tuple[str, ...]


def measure_all(
    model: HookedModel, design: NeedleDesign, *, seed: int, run: Run, phase: Phase
) -> Measured:
    """Run every measurement, each unit of work kept in the run."""
    notes: list[str] = []
    trials = measure_trials(model, design, run=run, progress=phase("trials"))
    prompts = _documents(model, design, notes)
    documents = (
        measure_query_heads(model, prompts, run=run, progress=phase("documents"))
        if prompts
        else None
    )
    chain = _chain(model, seed, notes)
    return Measured(
        trials=trials,
        documents=documents,
        hard=tuple(len(prompt.hard) for prompt in prompts),
        writes=None
        if chain is None
        else measure_writes(chain, design, run=run, progress=phase("writes")),
        induction=_induction(model, seed, run, phase("repeated tokens")),
        suppression=None if chain is None else _suppression(chain, run, phase("suppression")),
        basin=_basin(model, seed, run, phase("basin"), notes),
        notes=tuple(notes),
    )


def summarise_all(measured: Measured, design: NeedleDesign, *, seed: int) -> Summarised:
    """Statistics of every score, clustered by what was sampled.

    Copying and what depends on it is read on accepted trials; documents and rows of the question
    exist for every trial. Raises `MnemoscopeError` with the counts when no trial was accepted, or
    the accepted ones are about one needle.
    """
    trials = measured.trials
    free = score_trials(trials, mode="free", among="accepted")
    forced = score_trials(trials, mode="forced", among="accepted")
    if len(set(free.needles)) < 2:
        raise MnemoscopeError(
            f"{free.counts['kept']} of {free.counts['asked']} trials were answered, all about one "
            "needle: use more needles or shorter haystacks."
        )
    scores = {**_of_trials(free, forced, design, seed), **_of_others(measured, seed)}
    grids = _grids(measured, free, forced)
    roles = {"role": locate_emit(scores["locate_mass"], scores["emit"])}
    if measured.writes is not None:
        accepted = trials.accepted & ~trials.known
        roles["write_role"] = head_roles(measured.writes, accepted=accepted, seed=seed).role
    return Summarised(
        free=free,
        forced=forced,
        scores=scores,
        grids=grids,
        roles=roles,
        mixed=_mixed(free),
        partial=_partial(scores),
        notes=(*free.notes, *measured.notes),
    )


# -- measuring ------------------------------------------------------------------------------------


def _documents(
    model: HookedModel, design: NeedleDesign, notes: list[str]
) -> tuple[DocumentPrompt, ...]:
    try:
        return needle_documents(design, lambda text: encode(model.text_tokenizer, text))
    except MnemoscopeError as error:
        notes.append(f"No query-focused scores: {error}")
        return ()


def _chain(model: HookedModel, seed: int, notes: list[str]) -> EndChain | None:
    try:
        return build_chain(model, seed=seed)
    except UnsupportedModelError as error:
        notes.append(f"No scores of writes: {error}")
        return None


def _induction(model: HookedModel, seed: int, run: Run, progress: Progress) -> InductionScores:
    length = 50

    def measure() -> dict[str, np.ndarray]:
        found = measure_induction(model, length=length, seed=seed, progress=progress)
        return {"induction": found.induction, "echo": found.echo, "other": found.other}

    kept = kept_arrays(run, "repeated tokens", measure)
    return InductionScores(**kept, length=length, seed=seed)


def _suppression(chain: EndChain, run: Run, progress: Progress) -> CopySuppression:
    def measure() -> dict[str, np.ndarray]:
        texts = neutral_rows(chain.model, SUPPRESSION_TOKENS)
        found = measure_copy_suppression(chain, texts, progress=progress)
        shape = {"top": np.array(found.top), "rows": found.rows}
        return {"score": found.score, "attention": found.attention, **shape}

    kept = dict(kept_arrays(run, "suppression", measure))
    top = int(kept.pop("top"))
    return CopySuppression(**kept, top=top)


def _basin(
    model: HookedModel, seed: int, run: Run, progress: Progress, notes: list[str]
) -> AttentionBasin | None:
    try:
        prompts = basin_prompts(model, seed=seed)
    except MnemoscopeError as error:
        notes.append(f"No attention basin: {error}")
        return None

    def measure() -> dict[str, np.ndarray]:
        found = measure_basin(model, prompts, progress=progress)
        return {"question": found.question, "answer": found.answer}

    kept = kept_arrays(run, "basin", measure)
    return AttentionBasin(**kept, units=tuple(prompt.unit for prompt in prompts))


# -- statistics -----------------------------------------------------------------------------------


def _of_trials(
    free: RetrievalScores, forced: RetrievalScores, design: NeedleDesign, seed: int
) -> dict[str, HeadStatistics]:
    """Answer rows of accepted trials (copying: as the model said it; else teacher-forced), and
    question rows. A head's attention to the needle is held against that to another statement."""
    others = np.array([len(design.rivals(design.trials[i])) for i in forced.trials])
    a_rival = np.where(others > 0, others, 1)[:, None, None]
    chosen = (
        ("copy", free, "copy", None),
        ("first", forced, "first", None),
        ("continuation", forced, "continuation", None),
        ("emit", forced, "emit", "rival"),
        ("contrast", forced, "contrast", None),
        ("margin", forced, "margin", None),
        ("r2", forced, "r2", None),
        ("locate", forced, "locate", None),
        ("locate_mass", forced, "locate_mass", "locate_rival"),
    )
    found = {}
    for name, scores, score, rival in chosen:
        null = 0.0 if rival is None else np.nan_to_num(scores.values[rival] / a_rival)  # type: ignore[index]
        found[name] = summarise_scores(
            scores.values[score],  # type: ignore[index]
            scores.needles,
            null=null,
            null_name="0" if rival is None else "another statement",
            seed=seed,
        )
    return found


def _of_others(measured: Measured, seed: int) -> dict[str, HeadStatistics]:
    found = {
        "induction": measured.induction.statistics("induction"),
        "echo": measured.induction.statistics("echo"),
    }
    trials = measured.trials
    if measured.documents is not None:
        found |= _of_documents(measured.documents, measured.hard, ~trials.known, seed)
    if measured.writes is not None:
        kept = trials.accepted & ~trials.known
        units = _chosen(measured.writes.units, kept)
        found["locos"] = summarise_scores(measured.writes.contrast[kept], units, seed=seed)
    if measured.suppression is not None:
        found["suppression"] = measured.suppression.statistics(seed=seed)
    if measured.basin is not None:
        found["basin_question"] = measured.basin.statistics("question", seed=seed)
        found["basin_answer"] = measured.basin.statistics("answer", seed=seed)
    return found


def _of_documents(
    documents: QueryHeadScores, hard: tuple[int, ...], kept: Bool[np.ndarray, " trial"], seed: int
) -> dict[str, HeadStatistics]:
    units = _chosen(documents.units, kept)
    even = np.broadcast_to((1 / (1 + np.array(hard)))[:, None, None], documents.core.shape)
    return {
        "qr": summarise_scores(documents.gold[kept], units, seed=seed),
        "qr_ndcg": summarise_scores(
            documents.ndcg[kept],
            units,
            null=documents.chance_ndcg,
            null_name="a random order",
            seed=seed,
        ),
        "core": summarise_scores(
            documents.core[kept], units, null=even[kept], null_name="even attention", seed=seed
        ),
    }


def _grids(measured: Measured, free: RetrievalScores, forced: RetrievalScores) -> dict[str, Grid]:
    """Means that need no interval, those of rejected trials among them."""
    grids: dict[str, Grid] = {
        "event": free.mean("event"),
        "active": free.active(),
        "soft": forced.mean("soft"),
        "sink": forced.mean("sink"),
        "rival": forced.mean("rival"),
        "copy_forced": forced.mean("copy"),
    }
    if measured.writes is not None:
        kept = measured.trials.accepted & ~measured.trials.known
        for name in ("write", "copied"):
            seen = np.ma.masked_invalid(getattr(measured.writes, name)[kept])
            grids[name] = seen.mean(axis=0).filled(np.nan)
    rejected = ~measured.trials.accepted & ~measured.trials.known
    if rejected.any():
        failed = score_trials(measured.trials, mode="forced", among="rejected")
        for name in ("copy", "emit", "rival", "sink"):
            grids[f"{name}_rejected"] = failed.mean(name)  # type: ignore[arg-type]
    return grids


def _mixed(free: RetrievalScores) -> MixedModel | None:
    """None where no needle was answered twice."""
    try:
        return fit_mixed_model(
            free.values["copy"], free.needles, free.lengths.tolist(), free.depths.tolist()
        )
    except StatisticsError:
        return None


def _partial(scores: Mapping[str, HeadStatistics]) -> PartialCorrelation | None:
    """None for too small a model."""
    try:
        return partial_correlation(
            scores["first"].mean, scores["continuation"].mean, scores["induction"].mean
        )
    except StatisticsError:
        return None


def _chosen(units: tuple[str, ...], kept: Bool[np.ndarray, " trial"]) -> list[str]:
    return [unit for unit, keep in zip(units, kept, strict=True) if keep]
