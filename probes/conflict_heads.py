"""Memory heads and context heads: who speaks for the weights, who for the passage? (PH3)

For each conflict item two corrupted runs are made: `cf_subject` swaps the subject and keeps the
claimed answer (recall is destroyed), `cf_context` swaps the claimed answer only (copying is
destroyed). Each head's `z` at END is replaced by its corrupted value and the change of the two
answers' logits is read (Jin et al. 2024, reconstructed in docs/ph3.md). Two signed scores a head:

- memory score  = -mean d(logit mem - logit ctx) under `cf_subject`;
- context score = +mean d(logit mem - logit ctx) under `cf_context`.

Positive means that the head does this job; a head may do both (superposed), or work against one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.conflicts import ConflictItem
from ..interventions.end_chain import EndChain
from ..interventions.end_total_effect import clean_run, end_total_effects
from ..interventions.patched_passes import PassChain, effects_by_passes
from ..interventions.path_patching import direct_effects, end_states
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import TokenBatch, encode
from ..results.head_set import HeadScore, HeadSet
from ..results.run import Run
from ..results.statistics import (
    Interval,
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_p,
    rank_stability,
    split_half_reliability,
)
from .elicitation import Progress, silent

Form = Literal["substitution", "coherent"]
Estimand = Literal["direct", "total_end"]
Answers = Literal["first", "whole"]
Role = Literal["memory", "context"]
ROLES: tuple[Role, ...] = ("memory", "context")

CORRUPTIONS = ("cf_subject", "cf_context")
ITEMS_PER_UNIT = 8


@dataclass(frozen=True, eq=False)
class ConflictEffects:
    """What replacing each head does, item by item, before any averaging.

    `change` `[corruption, item, layer, head, answer]`: logit (or whole-answer log-probability)
    patched minus clean; corruption 0 is cf_subject, answer 0 is the memory answer. `clean`
    `[item, answer]` is the unpatched value.
    """

    item_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    templates: tuple[int, ...]
    change: Float[np.ndarray, "corruption item layer head answer"]
    clean: Float[np.ndarray, "item answer"]

    @property
    def memory(self) -> Float[np.ndarray, "item layer head"]:
        """Per item: `-d(LD)` under cf_subject."""
        return -(self.change[0, ..., 0] - self.change[0, ..., 1])

    @property
    def context(self) -> Float[np.ndarray, "item layer head"]:
        """Per item: `+d(LD)` under cf_context."""
        return self.change[1, ..., 0] - self.change[1, ..., 1]


@dataclass(frozen=True, eq=False)
class ConflictHeads:
    """Scores of all heads with their uncertainty. Arrays are `[layer, head]`.

    `*_q` are Benjamini-Hochberg adjusted two-sided bootstrap p-values over subjects;
    `reliability` is split-half over subjects; `template_stability` the mean Spearman correlation
    between wordings (None with one).
    """

    memory: Interval
    context: Interval
    memory_q: Float[np.ndarray, "layer head"]
    context_q: Float[np.ndarray, "layer head"]
    reliability: dict[str, float]
    template_stability: dict[str, float] | None
    n_items: int
    n_subjects: int
    estimand: str

    def scores(self, role: Role) -> Float[np.ndarray, "layer head"]:
        """Mean scores of a role; positive does the job."""
        return self.memory.mean if role == "memory" else self.context.mean

    def q(self, role: Role) -> Float[np.ndarray, "layer head"]:
        """Adjusted p-values of a role."""
        return self.memory_q if role == "memory" else self.context_q

    def interval(self, role: Role) -> Interval:
        """The scores of a role with their interval."""
        return self.memory if role == "memory" else self.context


def measure_effects(
    chain: EndChain | PassChain,
    items: Sequence[ConflictItem],
    *,
    form: Form = "substitution",
    estimand: Estimand = "direct",
    answers: Answers = "first",
    memory_mb: int = 512,
    run: Run | None = None,
    progress: Progress = silent,
) -> ConflictEffects:
    """Patch every head of every item under both corruptions.

    `answers="first"` reads the logits of the answers' first tokens, "whole" the teacher-forced
    log-probability of the whole answers (direct effects only). With a `run`, finished units are
    read back and new ones are kept, so that an interrupted measurement continues. Raises
    `MnemoscopeError` when first tokens collide or a prompt is too long.
    """
    if answers == "whole" and estimand != "direct":
        raise MnemoscopeError("whole answers are scored with the direct effect only.")
    if not items:
        raise MnemoscopeError("no conflict items to measure.")
    lengths = [len(encode(chain.model.text_tokenizer, item.prompt(form))) for item in items]
    units = length_buckets(lengths, ITEMS_PER_UNIT)
    anatomy = chain.model.anatomy
    change = np.zeros((2, len(items), anatomy.n_layers, anatomy.n_heads, 2))
    clean = np.zeros((len(items), 2))
    done = 0
    for number, unit in enumerate(units):
        key = f"effects-{number:05d}"
        if run is None or key not in run.done:
            parts = _measure_unit(chain, items, unit, form, estimand, answers, memory_mb)
            if run is not None:
                run.check_cancelled()
                run.save_unit_arrays(key, {"change": parts[0], "clean": parts[1]})
                run.append(key, {"items": [items[i].id for i in unit]})
        else:
            saved = run.load_unit_arrays(key)
            parts = saved["change"], saved["clean"]
        change[:, unit], clean[unit] = parts
        done += len(unit)
        progress(done, len(items))
    return ConflictEffects(
        tuple(item.id for item in items),
        tuple(item.subject for item in items),
        tuple(item.template_id for item in items),
        change,
        clean,
    )


def summarise(effects: ConflictEffects, *, estimand: str, seed: int = 0) -> ConflictHeads:
    """Scores with intervals over subjects, adjusted p-values, reliability and stability."""
    memory, context, units = effects.memory, effects.context, effects.subjects
    if len(set(units)) < 2:
        raise MnemoscopeError("one subject gives no uncertainty: measure at least two.")
    per_role = {"memory": memory, "context": context}
    return ConflictHeads(
        memory=bootstrap_mean(memory, units, seed=seed),
        context=bootstrap_mean(context, units, seed=seed),
        memory_q=benjamini_hochberg(bootstrap_p(memory, units, seed=seed)),
        context_q=benjamini_hochberg(bootstrap_p(context, units, seed=seed)),
        reliability={
            role: split_half_reliability(values, units, seed=seed).reliability
            for role, values in per_role.items()
        },
        template_stability=_template_stability(effects, per_role),
        n_items=len(effects.item_ids),
        n_subjects=len(set(units)),
        estimand=estimand,
    )


def table(heads: ConflictHeads, model: HookedModel) -> polars.DataFrame:
    """One row a head: both scores with intervals and q, and the key/value head it reads."""
    rows = []
    for head in model.anatomy.all_heads():
        at = (head.layer, head.head)
        row: dict[str, object] = {
            "layer": head.layer,
            "head": head.head,
            "kv_head": model.anatomy.kv_of(head).kv_head,
        }
        for role in ROLES:
            interval = heads.interval(role)
            row[role] = float(interval.mean[at])
            row[f"{role}_low"] = float(interval.low[at])
            row[f"{role}_high"] = float(interval.high[at])
            row[f"{role}_q"] = float(heads.q(role)[at])
        rows.append(row)
    return polars.DataFrame(rows)


def head_set(
    heads: ConflictHeads,
    model: HookedModel,
    role: Role,
    *,
    k: int,
    run_id: str | None = None,
    max_q: float = 1.0,
) -> HeadSet:
    """The `k` heads with the highest score of a role (fewer when scores or q fall short).

    Only positive scores with `q <= max_q` count. Raises `MnemoscopeError` when none is left.
    """
    scores, interval, q = heads.scores(role), heads.interval(role), heads.q(role)
    found = [
        HeadScore(
            head,
            float(scores[at]),
            role,
            float(q[at]),
            (float(interval.low[at]), float(interval.high[at])),
        )
        for head in model.anatomy.all_heads()
        if scores[at := (head.layer, head.head)] > 0 and q[at] <= max_q
    ]
    if not found:
        raise MnemoscopeError(f"no {role} heads found: no score is positive with q <= {max_q}.")
    anatomy = model.anatomy
    whole = HeadSet(
        name=f"{role} heads of {model.name}",
        model_id=model.name,
        n_layers=anatomy.n_layers,
        n_heads=anatomy.n_heads,
        n_kv_heads=anatomy.n_kv_heads,
        method=f"conflict heads, {heads.estimand}",
        run_id=run_id,
        heads=tuple(found),
    )
    return whole.top(min(k, len(found)))


def superposed(
    heads: ConflictHeads, *, floor: float = 0.1, share: float = 0.5, max_q: float = 0.05
) -> np.ndarray:
    """Heads `[layer, head]` that do both jobs, which one should never prune blindly.

    Each score is taken relative to the best head of its role. Both must be significant and at
    least `floor`, and the weaker at least `share` of the stronger.
    """
    memory = heads.memory.mean / max(float(heads.memory.mean.max()), 1e-12)
    context = heads.context.mean / max(float(heads.context.mean.max()), 1e-12)
    weaker, stronger = np.minimum(memory, context), np.maximum(memory, context)
    significant = (heads.memory_q <= max_q) & (heads.context_q <= max_q)
    return significant & (weaker >= floor) & (weaker >= share * stronger)


# -- one unit of work ---------------------------------------------------------------------------


def _measure_unit(
    chain: EndChain | PassChain,
    items: Sequence[ConflictItem],
    unit: Sequence[int],
    form: Form,
    estimand: Estimand,
    answers: Answers,
    memory_mb: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(change `[corruption, item, layer, head, answer]`, clean `[item, answer]`) of one unit."""
    anatomy = chain.model.anatomy
    change = np.zeros((2, len(unit), anatomy.n_layers, anatomy.n_heads, 2))
    clean = np.zeros((len(unit), 2))
    place = {i: j for j, i in enumerate(unit)}

    def patch(batch: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        chosen = [items[i] for i in batch]
        if answers == "whole":
            return [_whole_answers(chain, chosen, form, c, memory_mb) for c in (0, 1)]
        return _first_tokens(chain, chosen, form, estimand, memory_mb)

    for batch, results in adaptive([unit], patch):
        rows = [place[i] for i in batch]
        for corruption, (delta, base) in enumerate(results):
            change[corruption][rows], clean[rows] = delta, base
    return change, clean


def _first_tokens(
    chain: EndChain | PassChain,
    items: Sequence[ConflictItem],
    form: Form,
    estimand: Estimand,
    memory_mb: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(change, clean) under each corruption; the runs of the prompts as they are, are shared."""
    model = chain.model
    batch = model.tokens([item.prompt(form) for item in items])
    token_ids = torch.stack([_first_ids(model, item, form) for item in items])
    corruptions = [
        model.tokens([_corrupted(item, form, corruption) for item in items])
        for corruption in (0, 1)
    ]
    if isinstance(chain, PassChain):
        frozen = estimand == "direct"
        passes = [
            effects_by_passes(model, batch, other, token_ids, frozen=frozen, memory_mb=memory_mb)
            for other in corruptions
        ]
        return [(_grid(model, one.change), one.clean.double().cpu().numpy()) for one in passes]
    replacements = (end_states(model, corrupted).z for corrupted in corruptions)
    if estimand == "direct":
        original = end_states(model, batch)
        found = [
            direct_effects(chain, original, replacement, token_ids, memory_mb=memory_mb)
            for replacement in replacements
        ]
    else:
        clean = clean_run(model, batch)
        found = [
            end_total_effects(model, clean, replacement, token_ids) for replacement in replacements
        ]
    return [(_grid(model, one.change), one.clean.double().cpu().numpy()) for one in found]


def _whole_answers(
    chain: EndChain | PassChain,
    items: Sequence[ConflictItem],
    form: Form,
    corruption: int,
    memory_mb: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced log-probabilities: one chain an answer token, summed over the answer."""
    per_answer = [
        _forced(
            chain,
            [item.prompt(form) for item in items],
            [_corrupted(item, form, corruption) for item in items],
            [item.mem_answer if which == 0 else item.ctx_answer for item in items],
            memory_mb,
        )
        for which in (0, 1)
    ]
    change = np.stack([change for change, _ in per_answer], axis=-1)
    return change, np.stack([clean for _, clean in per_answer], axis=-1)


def _forced(
    chain: EndChain | PassChain,
    prompts: Sequence[str],
    corrupted: Sequence[str],
    answers: Sequence[str],
    memory_mb: int,
) -> tuple[np.ndarray, np.ndarray]:
    model = chain.model
    ids = [
        model.answer_ids(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch, at, real = _with_answers(model, prompts, ids)
    other, other_at, _ = _with_answers(model, corrupted, ids)
    targets = torch.zeros_like(at)
    for i, answer in enumerate(ids):
        targets[i, : len(answer)] = torch.tensor(answer)
    wanted = targets.flatten()[:, None]
    if isinstance(chain, PassChain):
        effects = effects_by_passes(
            model,
            batch,
            other,
            wanted,
            at=at,
            corrupted_at=other_at,
            log_probs=True,
            memory_mb=memory_mb,
        )
    else:
        effects = direct_effects(
            chain,
            end_states(model, batch, at=at),
            end_states(model, other, at=other_at).z,
            wanted,
            log_probs=True,
            memory_mb=memory_mb,
        )
    k = at.shape[1]
    change = effects.change.unflatten(0, (-1, k))[..., 0] * real[..., None]  # [item, k, row]
    clean = effects.clean.unflatten(0, (-1, k))[..., 0] * real
    grid = _grid(model, change.sum(1)[..., None])[..., 0]
    return grid, clean.sum(1).double().cpu().numpy()


def _with_answers(
    model: HookedModel, prompts: Sequence[str], answers: Sequence[tuple[int, ...]]
) -> tuple[TokenBatch, Int[Tensor, "item k"], Tensor]:
    """Prompts continued by all but the last answer token; the columns that predict each token."""
    starts = [encode(model.text_tokenizer, prompt) for prompt in prompts]
    rows = [start + list(a[:-1]) for start, a in zip(starts, answers, strict=True)]
    batch = model.batch(rows)
    k = max(map(len, answers))
    steps = torch.arange(k, device=batch.ids.device)[None]
    n = torch.tensor([len(a) for a in answers], device=batch.ids.device)[:, None]
    at = batch.ends[:, None] - (n - 1) + steps.clamp(max=n - 1)
    return batch, at, (steps < n).to(torch.float32)


def _first_ids(model: HookedModel, item: ConflictItem, form: Form) -> Tensor:
    prompt = item.prompt(form)
    first = [model.answer_ids(prompt, answer)[0] for answer in (item.mem_answer, item.ctx_answer)]
    if first[0] == first[1]:
        raise MnemoscopeError(
            f"{item.mem_answer!r} and {item.ctx_answer!r} start with the same token in "
            f"{model.name}: score whole answers (answers='whole') or drop the item."
        )
    return torch.tensor(first)


def _corrupted(item: ConflictItem, form: Form, corruption: int) -> str:
    if form == "substitution":
        return item.prompt_cf_subject if corruption == 0 else item.prompt_cf_context
    return item.prompt_coh_cf_subject if corruption == 0 else item.prompt_coh_cf_context


def _grid(model: HookedModel, change: Tensor) -> np.ndarray:
    shape = (model.anatomy.n_layers, model.anatomy.n_heads)
    return change.unflatten(1, shape).double().cpu().numpy()


def _template_stability(
    effects: ConflictEffects, per_role: dict[str, np.ndarray]
) -> dict[str, float] | None:
    templates = np.array(effects.templates)
    kinds = sorted(set(effects.templates))
    if len(kinds) < 2:
        return None
    return {
        role: rank_stability([values[templates == t].mean(0).ravel() for t in kinds]).mean
        for role, values in per_role.items()
    }
