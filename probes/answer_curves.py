"""The common yard-stick of all methods: what does the answer lose when a ranking's heads are taken?

For each trial the natural log-probability of the gold answer is read (teacher-forced, so that it
is defined for failures too) while the first k heads of a ranking are ablated, and the same for
matched random heads: same layers, similar norms, none of the ranking's own. The haystack is
prefilled once and never edited; many head sets are the rows of one batch behind it. Loss is clean
minus ablated, in nats: positive hurts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars
from jaxtyping import Float
from torch import Tensor

from ..data.facts.needles import NeedleDesign, Trial
from ..interventions.head_ablation import AnyEdit, Mode, ablation_rows, run_answer
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.perplexity import perplexity
from ..models.prompt_cache import PromptCache
from ..models.types import HeadId, TokenSpan, unique_heads
from ..results.provenance import sha256_of_json
from ..results.run import Run
from ..results.statistics import bootstrap_mean, matched_random_heads
from .elicitation import Progress, silent
from .neuron_doses import Area, against_controls

Where = Literal["question", "decode", "question+decode"]
"""The haystack's pass is shared by all rows, so nothing is ablated there."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """How heads are ablated (`interventions.head_ablation`), and in which passes of a trial.

    "mean" and "mean_query" need `values` of all heads; "knock_out" hides each trial's needle;
    "streaming" leaves the first `sink` and the last `recent` keys.
    """

    mode: Mode = "zero"
    where: Where = "question+decode"
    values: Mapping[HeadId, Tensor] | None = None
    sink: int = 4
    recent: int = 64

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for "resample" (its values differ from trial to trial) and for a
        place where the rows of a batch cannot differ."""
        if self.mode == "resample" or self.where not in get_args(Where):
            raise MnemoscopeError(
                f"no curve of {self.mode!r} in {self.where!r}: use another mode than 'resample', "
                f"in {', '.join(get_args(Where))}."
            )

    def edits(
        self, sets: Sequence[Sequence[HeadId]], needle: TokenSpan | None = None
    ) -> tuple[AnyEdit, ...]:
        """The edits of a batch whose row i ablates `sets[i]`; one set holds for all rows."""
        streams = self.mode == "streaming"
        return ablation_rows(
            self.mode,
            sets,
            values=self.values,
            spans=(needle,) if needle is not None and self.mode == "knock_out" else (),
            sink=self.sink if streams else 0,
            recent=self.recent if streams else 0,
        )


ZERO = Ablation()
"""Heads write nothing, from the question on."""


@dataclass(frozen=True, eq=False)
class AnswerCurve:
    """Gold-answer log-probabilities of the same trials under growing ablations, nats.

    `trials` number the design's trials, `needles` names the needle of each. In a random draw head
    i stands for head i of `ranking`. `perplexity` of neutral text is that of the whole model, then
    of each size; None where the ablation says nothing about plain text, or no text was given.
    `note` says where matching fell short.
    """

    ranking: tuple[HeadId, ...]
    sizes: tuple[int, ...]
    mode: Mode
    where: Where
    trials: tuple[int, ...]
    needles: tuple[str, ...]
    clean: Float[np.ndarray, " trial"]
    target: Float[np.ndarray, "size trial"]
    random: Float[np.ndarray, "draw size trial"]
    perplexity: tuple[float, ...] | None
    note: str

    @property
    def loss(self) -> Float[np.ndarray, "size trial"]:
        """What each trial's answer loses."""
        return self.clean - self.target

    @property
    def random_loss(self) -> Float[np.ndarray, "draw size trial"]:
        """What it loses under each random draw."""
        return self.clean - self.random

    @property
    def beyond(self) -> Float[np.ndarray, "size trial"]:
        """Loss minus the mean loss under random draws."""
        return self.loss - self.random_loss.mean(axis=0)


def answer_curves(
    model: HookedModel,
    design: NeedleDesign,
    rankings: Mapping[str, Sequence[HeadId]],
    sizes: Sequence[int],
    ablation: Ablation = ZERO,
    *,
    draws: int = 20,
    norms: Float[np.ndarray, "layer head"] | None = None,
    trials: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    seed: int = 0,
    memory_mb: int = 1024,
    run: Run | None = None,
    progress: Progress = silent,
) -> dict[str, AnswerCurve]:
    """One curve for each ranking, all on the same trials and in one pass over the haystacks.

    `norms` (of head outputs) match random heads in size too; `trials` picks some of the design's;
    `texts` is neutral text for perplexity. With a `run` each haystack is one unit of it. Memory:
    one haystack's cache, and `memory_mb` for the rows behind it. Raises `MnemoscopeError` unless
    sizes grow from 1 at least to what every ranking holds, and `StatisticsError` when too few heads
    are left for random draws.
    """
    for ranking in rankings.values():
        _check(model, ranking, sizes)
    chosen = tuple(range(len(design.trials))) if trials is None else tuple(trials)
    if not rankings or not chosen:
        raise MnemoscopeError("an answer curve needs a ranking and a trial at least.")
    anatomy = model.anatomy
    matched = {
        name: matched_random_heads(
            ranking[: sizes[-1]],
            anatomy.n_layers,
            anatomy.n_heads,
            draws=draws,
            seed=seed,
            norms=norms,
        )
        for name, ranking in rankings.items()
    }
    sets: dict[tuple[HeadId, ...], int] = {(): 0}
    places = {
        name: np.array(
            [
                [sets.setdefault(tuple(sorted(heads[:k])), len(sets)) for k in sizes]
                for heads in (rankings[name], *found.draws)
            ]
        )
        for name, found in matched.items()
    }
    told = gold_log_probs(
        model, design, tuple(sets), ablation, chosen, memory_mb=memory_mb, run=run,
        progress=progress,
    )  # fmt: skip
    return {
        name: AnswerCurve(
            ranking=tuple(rankings[name][: sizes[-1]]),
            sizes=tuple(sizes),
            mode=ablation.mode,
            where=ablation.where,
            trials=chosen,
            needles=tuple(design.trials[i].needle_id for i in chosen),
            clean=told[0],
            target=told[places[name][0]],
            random=told[places[name][1:]],
            perplexity=_perplexities(model, rankings[name], sizes, ablation, texts),
            note=matched[name].note,
        )
        for name in rankings
    }


def answer_curve(
    model: HookedModel,
    design: NeedleDesign,
    ranking: Sequence[HeadId],
    sizes: Sequence[int],
    ablation: Ablation = ZERO,
    *,
    draws: int = 20,
    norms: Float[np.ndarray, "layer head"] | None = None,
    trials: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    seed: int = 0,
) -> AnswerCurve:
    """The curve of one ranking; see `answer_curves`."""
    found = answer_curves(
        model, design, {"": ranking}, sizes, ablation,
        draws=draws, norms=norms, trials=trials, texts=texts, seed=seed,
    )  # fmt: skip
    return found[""]


def gold_log_probs(
    model: HookedModel,
    design: NeedleDesign,
    sets: Sequence[Sequence[HeadId]],
    ablation: Ablation,
    trials: Sequence[int],
    *,
    hidden: Mapping[int, TokenSpan] | None = None,
    memory_mb: int = 1024,
    run: Run | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "set trial"]:
    """Log-probability of each trial's gold answer with each head set ablated, nats.

    "knock_out" hides a trial's needle, or what `hidden` holds for its number.

    Raises `MnemoscopeError` when the run kept other sets, and as `HookedModel.prefill` does.
    """
    print_of = sha256_of_json([[[h.layer, h.head] for h in heads] for heads in sets])
    found = np.full((len(sets), len(trials)), np.nan)
    by_haystack: dict[int, list[int]] = {}
    for column, number in enumerate(trials):
        by_haystack.setdefault(design.trials[number].haystack, []).append(column)
    done = 0
    for haystack, columns in sorted(by_haystack.items()):
        forks = [design.trials[trials[column]] for column in columns]
        key = f"ablations: haystack {haystack}"
        if run is not None and key in run.done:
            if run.done[key]["sets"] != print_of or run.done[key]["columns"] != columns:
                raise MnemoscopeError(f"run {run.id} kept other head sets: start another run.")
            found[:, columns] = run.load_unit_arrays(key)["log_probs"]
        else:
            prompt = model.prefill(design.haystacks[haystack].ids)
            for column, trial in zip(columns, forks, strict=True):
                span = (hidden or {}).get(trials[column], trial.needle)
                place = TokenSpan(span.start, span.stop)
                found[:, column] = _of_trial(model, prompt, trial, place, sets, ablation, memory_mb)
            if run is not None:
                run.check_cancelled()
                run.save_unit_arrays(key, {"log_probs": found[:, columns]})
                run.append(key, {"sets": print_of, "columns": columns})
        done += len(columns)
        progress(done, len(trials))
    return found


def curve_table(curve: AnswerCurve, *, level: float = 0.95, seed: int = 0) -> polars.DataFrame:
    """One row a size: loss and loss beyond random with intervals over needles, the range of the
    random draws, `p` (share of draws, this set counted too, that lose as much), perplexity."""
    loss = bootstrap_mean(curve.loss.T, curve.needles, level=level, seed=seed)
    beyond = bootstrap_mean(curve.beyond.T, curve.needles, level=level, seed=seed)
    random = curve.random_loss.mean(axis=2)
    tail = (1 - level) / 2
    low, high = np.quantile(random, [tail, 1 - tail], axis=0)
    rows = [
        {
            "heads": size,
            "loss": float(loss.mean[i]),
            "low": float(loss.low[i]),
            "high": float(loss.high[i]),
            "random": float(random[:, i].mean()),
            "random_low": float(low[i]),
            "random_high": float(high[i]),
            "beyond": float(beyond.mean[i]),
            "beyond_low": float(beyond.low[i]),
            "beyond_high": float(beyond.high[i]),
            "p": against_controls(float(loss.mean[i]), random[:, i]).p_loss,
            "perplexity": None if curve.perplexity is None else curve.perplexity[i + 1],
            "perplexity_before": None if curve.perplexity is None else curve.perplexity[0],
        }
        for i, size in enumerate(curve.sizes)
    ]
    return polars.DataFrame(rows)


def area_beyond_random(curve: AnswerCurve, *, seed: int = 0) -> Area:
    """Area between the curve and the mean of its random draws over log size, nats: the mean loss
    beyond random over the range of sizes, with its interval over needles."""
    weights = size_weights(curve.sizes)
    interval = bootstrap_mean(weights @ curve.beyond, curve.needles, seed=seed)
    effect = float((weights @ curve.loss).mean())
    against = against_controls(effect, np.einsum("s,dst->d", weights, curve.random_loss) / len(
        curve.trials
    ))  # fmt: skip
    return Area(float(interval.mean), float(interval.low), float(interval.high), against)


def size_weights(sizes: Sequence[int]) -> Float[np.ndarray, " size"]:
    """Trapezoid weights over the logarithm of the size; they sum to 1."""
    if len(sizes) == 1:
        return np.ones(1)
    gaps = np.diff(np.log(sizes))
    return (np.append(gaps, 0) + np.append(0, gaps)) / 2 / gaps.sum()


def _of_trial(
    model: HookedModel,
    prompt: PromptCache,
    trial: Trial,
    hidden: TokenSpan,
    sets: Sequence[Sequence[HeadId]],
    ablation: Ablation,
    memory_mb: int,
) -> Float[np.ndarray, " set"]:
    suffix = len(trial.question_ids) + len(trial.answer_ids)
    rows = _rows_that_fit(model, prompt, suffix, memory_mb)
    parts = []
    for first in range(0, len(sets), rows):
        batch = sets[first : first + rows]
        answered = run_answer(
            model,
            prompt.ids,
            trial.question_ids,
            trial.answer_ids,
            ablation.edits(batch, hidden),
            ablation.where,
            cached=prompt,
            rows=len(batch),
        )
        parts.append(answered.log_probs.double().sum(1).cpu().numpy())
    return np.concatenate(parts)


def _rows_that_fit(model: HookedModel, prompt: PromptCache, suffix: int, memory_mb: int) -> int:
    """Rows whose keys, values and logits take `memory_mb` at most, one at least."""
    layers = [layer for layer in prompt.cache.layers if layer.keys is not None]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    a_row = held * (1 + suffix / len(prompt)) + 8 * suffix * model.module.config.vocab_size
    return max(1, int(memory_mb * 2**20 / a_row))


def _perplexities(
    model: HookedModel,
    ranking: Sequence[HeadId],
    sizes: Sequence[int],
    ablation: Ablation,
    texts: Sequence[str],
) -> tuple[float, ...] | None:
    if not texts or ablation.mode == "knock_out":
        return None
    return tuple(perplexity(model, texts, ablation.edits([ranking[:k]])) for k in (0, *sizes))


def _check(model: HookedModel, ranking: Sequence[HeadId], sizes: Sequence[int]) -> None:
    for head in unique_heads(ranking):
        model.anatomy.check_head(head)
    if not sizes or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= len(
        ranking
    ):  # fmt: skip
        raise MnemoscopeError(
            f"sizes must grow from 1 at least to the {len(ranking)} heads of the ranking at most; "
            f"got {list(sizes)}."
        )
