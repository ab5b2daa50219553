"""Which heads' look at the needle does the answer hang on? One edge after the other is cut.

The causal column beside what a head reads (needle mass) and what it writes from there (LOCOS): the
needle's keys are hidden from one head (scores of -inf), in the question, in the answer or in both,
and all else runs as it was. *Drop* is what the gold answer's log-probability loses, nats. As a
control the same head loses another span of as many tokens, drawn from the filler.

Heads stand in for each other, so drops of single heads understate (and do not add up). The heads
are rows of one batch behind the cached haystack; a trial costs heads times one plus `controls`
passes over question and answer (retrieval_heads, sections 10.3 and 10.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..data.facts.needles import NeedleDesign, Trial
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId, TokenSpan, unique_heads
from ..results.run import Run
from ..results.run_part import RunPart
from .answer_curves import Ablation, Where, gold_log_probs
from .elicitation import Progress, silent
from .retrieval_readings import SINK
from .retrieval_statistics import HeadStatistics, does, summarise_scores


@dataclass(frozen=True, eq=False)
class EdgeKnockouts:
    """What answers lose without single edges from heads to the needle, nats; positive: it hurts.

    `drop` and `control` `[trial, layer, head]`, NaN for heads that were not cut; `control` is the
    mean over other spans of the same length. `trials` are places in the design, `clean` the gold
    answer's log-probability as it is.
    """

    drop: Float[np.ndarray, "trial layer head"]
    control: Float[np.ndarray, "trial layer head"]
    clean: Float[np.ndarray, " trial"]
    trials: tuple[int, ...]
    needles: tuple[str, ...]
    where: Where

    def statistics(self, *, sign: int = 1, seed: int = 0) -> HeadStatistics:
        """Drops (with `sign=-1`: gains) of every head against the same head's control spans.

        With n needles no p is below 1 / 2^n, and q comes on top of it. Raises `StatisticsError` for
        fewer than two needles.
        """
        return summarise_scores(
            sign * self.drop,
            self.needles,
            null=sign * self.control,
            null_name="as many other tokens hidden",
            seed=seed,
        )

    def roles(self, *, max_q: float = 0.05, floor: float = 0.1, seed: int = 0) -> np.ndarray:
        """`[layer, head]`: "needed" where the answer loses, "hinders" where it gains by the cut,
        and "" for neither, for too little (below `floor` of the most) and for heads not cut."""
        gain, loss = (does(self.statistics(sign=sign, seed=seed), max_q, floor) for sign in (-1, 1))
        return np.array(["", "needed", "hinders"])[loss + 2 * gain]


def measure_knockouts(
    model: HookedModel,
    design: NeedleDesign,
    trials: Sequence[int],
    *,
    heads: Sequence[HeadId] | None = None,
    where: Where = "question+decode",
    controls: int = 1,
    seed: int = 0,
    memory_mb: int = 1024,
    run: Run | None = None,
    progress: Progress = silent,
) -> EdgeKnockouts:
    """Cut the edge from each of the `heads` (all by default) to the needle in the numbered trials.

    With a `run` each haystack is a unit, once for the needle and once for each control; `progress`
    counts trials of all of these. Raises `MnemoscopeError` for no trials, no control, a head that
    the model lacks or a haystack without room for control spans.
    """
    if not trials or controls < 1:
        raise MnemoscopeError("cutting edges needs a trial and a control span at least.")
    chosen = model.anatomy.all_heads() if heads is None else unique_heads(heads)
    for head in chosen:
        model.anatomy.check_head(head)
    sets = [(), *((head,) for head in chosen)]
    found = []
    for i in range(1 + controls):
        name = f"{where}, {f'control {i}, seed {seed}' if i else 'needle'}"
        found.append(
            gold_log_probs(
                model,
                design,
                sets,
                Ablation("knock_out", where),
                trials,
                hidden=_control_spans(design, trials, (seed, i)) if i else None,
                memory_mb=memory_mb,
                run=None if run is None else RunPart(run, name),
                progress=_part(progress, i, 1 + controls),
            )
        )
    drops = np.stack([told[0] - told[1:] for told in found])  # [span, head, trial]
    shape = (len(trials), model.anatomy.n_layers, model.anatomy.n_heads)
    drop, control = np.full(shape, np.nan), np.full(shape, np.nan)
    at = tuple(np.array([[head.layer, head.head] for head in chosen]).T)
    drop[:, *at], control[:, *at] = drops[0].T, drops[1:].mean(0).T
    return EdgeKnockouts(
        drop=drop,
        control=control,
        clean=found[0][0],
        trials=tuple(trials),
        needles=tuple(design.trials[number].needle_id for number in trials),
        where=where,
    )


def trials_of_needles(
    design: NeedleDesign, kept: Bool[np.ndarray, " trial"], count: int
) -> tuple[int, ...]:
    """The first `count` of the `kept` trials that are about different needles, or fewer, in the
    order of the design: each costs as much, and only needles count."""
    first: dict[str, int] = {}
    for number in np.flatnonzero(kept).tolist():
        first.setdefault(design.trials[number].needle_id, number)
    return tuple(sorted([*first.values()][:count]))


def _control_spans(
    design: NeedleDesign, trials: Sequence[int], seed: Sequence[int]
) -> dict[int, TokenSpan]:
    return {
        number: control_span(design, design.trials[number], (*seed, number)) for number in trials
    }


def _part(progress: Progress, i: int, parts: int) -> Progress:
    """Of part `i` of as many measurements of one length."""
    return lambda done, total: progress(i * total + done, parts * total)


def control_span(design: NeedleDesign, trial: Trial, seed: Sequence[int]) -> TokenSpan:
    """A random span of the haystack, as long as the needle, with nothing of a statement in it nor
    of the first tokens. Raises `MnemoscopeError` where there is none."""
    haystack, length = design.haystacks[trial.haystack], trial.needle.stop - trial.needle.start
    taken = np.zeros(haystack.length, dtype=bool)
    taken[:SINK] = True
    for _, span in (*haystack.needles, *haystack.distractors):
        taken[span.start : span.stop] = True
    windows = np.lib.stride_tricks.sliding_window_view(taken, length)
    starts = np.flatnonzero(~windows.any(1))
    if not starts.size:
        raise MnemoscopeError(
            f"a haystack of {haystack.length} tokens has no {length} tokens in a row without a "
            "statement to compare with: use longer haystacks."
        )
    start = int(np.random.default_rng([*seed]).choice(starts))
    return TokenSpan(start, start + length)
