"""What heads write onto the answer's logit from the needle: LOCOS in its cheap exact form.

Reading is not writing: a head can look at the needle and add nothing to the answer, or push it
down. For an answer row that predicts token y, the write of a set of keys is the sum over them of
`weight x (u_y W_O v)`, with `u_y` the direction that raises y's logit (final norm and post-norms at
the run's own scales, `interventions.logit_directions`). The sum over all keys is `u_y W_O z`, so
only the needle's share of `z` has to be summed, and no row is kept (LOCOS, arXiv 2607.01002, after
retrieval_heads 3.2; there the norms are left out).

Rows are teacher-forced: END and all answer tokens but the last, with the gold answer behind END.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.facts.needles import NeedleDesign, Trial
from ..interventions.end_chain import EndChain
from ..interventions.logit_directions import logit_directions
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.hooks import site_hook
from ..models.prompt_cache import PromptCache, check_room
from ..models.suffix_readings import SuffixReading
from ..models.types import Site
from ..results.kept_units import kept_arrays
from ..results.run import Run
from ..results.statistics import Interval, benjamini_hochberg, bootstrap_mean, bootstrap_p
from .elicitation import Progress, silent

Role = Literal["copy", "semantic", "suppress", "inert"]


@dataclass(frozen=True, eq=False)
class WriteScores:
    """Means over a trial's answer rows, `[trial, layer, head]`, float32; writes are in logits.

    NaN where the head can see no key of the needle (a sliding window). `units` names each trial's
    needle.
    """

    units: tuple[str, ...]
    read: Float[np.ndarray, "trial layer head"]
    """Attention mass on the needle's statement, 0 to 1."""
    write: Float[np.ndarray, "trial layer head"]
    """What the head writes onto the predicted token's logit from the needle's keys."""
    contrast: Float[np.ndarray, "trial layer head"]
    """LOCOS: `write` less what as many keys outside the needle write on average."""
    copied: Float[np.ndarray, "trial layer head"]
    """The part of `write` from keys of the answer that hold the predicted token itself."""
    whole: Float[np.ndarray, "trial layer head"]
    """What the head writes from all keys."""
    logit: Float[np.ndarray, " trial"]
    """The predicted tokens' mean logit, as the unembedding gives it."""


@dataclass(frozen=True, eq=False)
class HeadRoles:
    """A role for every head by what it writes from the needle, `[layer, head]`.

    *copy*: writes for the answer, at least half of it from the predicted token's own place;
    *semantic*: writes for it, mostly from other words of the needle; *suppress*: writes against it;
    *inert*: neither, whatever it reads (`read` tells), or too little to matter.
    """

    role: np.ndarray
    """`[layer, head]` of `Role`."""
    read: Float[np.ndarray, "layer head"]
    contrast: Interval
    """Of LOCOS, over needles, `[layer, head]`."""
    q: Float[np.ndarray, "layer head"]
    """Benjamini-Hochberg over all heads, of the two-sided bootstrap p of the contrast."""
    copied_share: Float[np.ndarray, "layer head"]
    """Mean `copied` over mean `write`; NaN for inert heads."""


def measure_writes(
    chain: EndChain,
    design: NeedleDesign,
    *,
    trials: Sequence[int] | None = None,
    run: Run | None = None,
    progress: Progress = silent,
) -> WriteScores:
    """Score every head on the design's trials (all, or those numbered, in the design's order).

    Cost a trial: one pass over question and answer behind the cached haystack, and each block's
    residual path on its answer rows. With a `run`, finished haystacks are read back and new ones
    are kept. Raises `PromptError` before anything runs for a prompt that is too long,
    `MnemoscopeError` for no trials or unknown ones, `UnsupportedModelError` for post-LN models.
    """
    numbers = range(len(design.trials)) if trials is None else sorted(set(trials))
    if not numbers or not set(numbers) <= set(range(len(design.trials))):
        raise MnemoscopeError(
            f"no trials to score: name some by numbers from 0 to {len(design.trials) - 1}."
        )
    for number in numbers:
        trial = design.trials[number]
        check_room(chain.model, (*design.prompt(trial), *trial.answer_ids[:-1]), None)
    parts: list[Mapping[str, np.ndarray]] = []
    done = 0
    for _, group in groupby(numbers, key=lambda number: design.trials[number].haystack):
        here = list(group)
        key = f"writes-{'-'.join(map(str, here))}"
        parts.append(kept_arrays(run, key, partial(_haystack, chain, design, here)))
        done += len(here)
        progress(done, len(numbers))
    read, write, contrast, copied, whole = np.concatenate([p["scores"] for p in parts], axis=1)
    logit = np.concatenate([part["logit"] for part in parts])
    units = tuple(design.trials[number].needle_id for number in numbers)
    return WriteScores(units, read, write, contrast, copied, whole, logit)


def _haystack(chain: EndChain, design: NeedleDesign, here: Sequence[int]) -> dict[str, np.ndarray]:
    """`scores` `[score, trial, layer, head]` and `logit` of trials that share a haystack."""
    trials = [design.trials[number] for number in here]
    cache = chain.model.prefill(design.haystacks[trials[0].haystack].ids)
    found = [trial_writes(chain, cache, trial) for trial in trials]
    scores = torch.stack([writes for writes, _ in found], dim=1).numpy()
    return {"scores": scores, "logit": np.array([logit for _, logit in found], dtype=np.float32)}


def trial_writes(
    chain: EndChain, cache: PromptCache, trial: Trial
) -> tuple[Float[Tensor, "score layer head"], float]:
    """`read, write, contrast, copied, whole` of one trial behind its haystack, and the logit."""
    model = chain.model
    suffix = (*trial.question_ids, *trial.answer_ids[:-1])
    queries = range(len(trial.question_ids) - 1, len(suffix))
    spans = _spans(cache, suffix, trial)
    reading, final = _read(model, cache, suffix, queries, spans)
    assert reading.z is not None
    assert reading.span_value is not None
    directions = logit_directions(chain, final, reading.z, torch.tensor(trial.answer_ids))
    heads = directions.of_heads(model)  # [layer, row, head, d_v]
    whole = torch.einsum("lrhv,lrhv->lhr", heads, reading.z.to(heads.dtype))
    writes = torch.einsum("lrhv,lhrsv->lhrs", heads, reading.span_value.to(heads.dtype))
    row = torch.arange(len(trial.answer_ids))
    copied = writes[:, :, row, 1 + row.to(writes.device)]
    inside, outside = _visible_keys(cache, spans[0], len(cache) + torch.tensor(queries))
    needle = writes[..., 0]
    rest = (inside / outside)[:, None].to(needle.device) * (whole - needle)
    mass = reading.rows.mass[:, 0, ..., 0].to(needle.device)
    rows = torch.stack([mass, needle, needle - rest, copied, whole]).float()
    rows = rows.masked_fill(~reading.rows.visible[:, 0, ..., 0].to(rows.device), torch.nan)
    return rows.nanmean(-1).cpu(), float(directions.logit.mean())


def head_roles(
    scores: WriteScores,
    *,
    accepted: Bool[np.ndarray, " trial"] | None = None,
    level: float = 0.05,
    least: float = 0.01,
    draws: int = 1000,
    seed: int = 0,
) -> HeadRoles:
    """Give every head its role from the trials that are `accepted` (all by default).

    A head writes for or against the answer when its contrast differs from 0 with a false discovery
    rate of `level` over all heads, and is at least the share `least` of all heads' absolute
    contrasts together. Heads with NaN in any of the trials are inert. Raises `MnemoscopeError`
    where the trials have fewer than two needles.
    """
    kept = np.ones(len(scores.units), dtype=bool) if accepted is None else accepted
    units = [unit for unit, keep in zip(scores.units, kept, strict=True) if keep]
    if len(set(units)) < 2:
        raise MnemoscopeError(
            f"{len(units)} of {len(scores.units)} trials with {len(set(units))} different needles "
            "are too few for intervals: use two or more."
        )
    contrast = scores.contrast[kept]
    known = ~np.isnan(contrast).any(0)
    filled = np.where(known, contrast, 0.0)
    interval = bootstrap_mean(filled, units, draws=draws, seed=seed)
    p = bootstrap_p(filled, units, draws=draws, seed=seed)
    q = np.ones_like(p)
    q[known] = benjamini_hochberg(p[known])
    enough = np.abs(interval.mean) >= least * np.abs(interval.mean).sum()
    does = known & (q < level) & enough
    share = np.full(known.shape, np.nan)
    share[does] = scores.copied[kept].mean(0)[does] / scores.write[kept].mean(0)[does]
    role = np.full(known.shape, "inert", dtype="<U8")
    role[does & (interval.mean > 0)] = "semantic"
    role[does & (interval.mean > 0) & (share >= 0.5)] = "copy"
    role[does & (interval.mean < 0)] = "suppress"
    return HeadRoles(role, scores.read[kept].mean(0), interval, q, share)


def _spans(cache: PromptCache, suffix: Sequence[int], trial: Trial) -> Bool[Tensor, "span key"]:
    """The needle, and for each answer row the keys of the needle's answer that hold its token."""
    masks = torch.zeros(1 + len(trial.answer_ids), len(cache) + len(suffix), dtype=torch.bool)
    masks[0, trial.needle.start : trial.needle.stop] = True
    answer = slice(trial.answer.start, trial.answer.stop)
    held = torch.tensor(cache.ids[answer])
    masks[1:, answer] = held == torch.tensor(trial.answer_ids)[:, None]
    return masks


def _read(
    model: HookedModel,
    cache: PromptCache,
    suffix: Sequence[int],
    queries: range,
    spans: Bool[Tensor, "span key"],
) -> tuple[SuffixReading, Float[Tensor, "row d_model"]]:
    """The reading of the answer rows, and their last residual stream."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> None:
        kept.append(x[0, list(queries)].detach())

    last = model.anatomy.n_layers - 1
    with model.lock, site_hook(model.module, model.anatomy, Site.RESID_POST, last, keep):
        reading = model.read_suffix(cache, suffix, list(queries), spans, values=True)
    return reading, kept[0]


def _visible_keys(
    cache: PromptCache, needle: Bool[Tensor, " key"], positions: Tensor
) -> tuple[Float[Tensor, "layer row"], Float[Tensor, "layer row"]]:
    """How many keys of the needle, and of everything else, each row sees in each layer."""
    window = torch.tensor(
        [getattr(layer, "sliding_window", None) or len(needle) for layer in cache.cache.layers]
    )
    key = torch.arange(len(needle))
    own = positions[None, :, None]
    seen = (key <= own) & (key > own - window[:, None, None])  # [layer, row, key]
    inside = (seen & needle).sum(-1).float()
    return inside, (seen.sum(-1) - inside).clamp(min=1)
