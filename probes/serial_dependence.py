"""Are the heads that emit led by those that locate? The test on `serial_retrieval`'s readings.

Locate heads are ablated in the question's rows alone; what emit heads then lay on the needle while
answering is held against the same after matched random heads were ablated there. The fall is a
share of what the emit heads read before: 1 means that they no longer find the needle at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..data.facts.needles import NeedleDesign
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId, unique_heads
from ..results.run import Run
from ..results.statistics import Interval, bootstrap_mean, matched_random_heads
from .answer_curves import Ablation
from .elicitation import Progress, silent
from .neuron_doses import AgainstControls, against_controls
from .retrieval_statistics import HeadStatistics, summarise_scores
from .serial_retrieval import SerialReadings, measure_serial

HIDDEN = Ablation("knock_out", "question")
"""The needle is hidden from the heads in the question, and they see all else."""


@dataclass(frozen=True, eq=False)
class SerialDependence:
    """How far the mass of `emit` heads on the needle falls without the `locate` heads.

    `before` and `fall` are means over the emit heads that stand behind the first locate head (the
    others cannot be led), with intervals over needles; `beyond` is the fall less the mean fall
    under the random draws. `against` compares the fall with the draws, `loss` (nats, of the gold
    answer's log-probability) likewise. `of_heads` is the fall of every head of the model against
    its mean fall under random draws, not of emit heads only.
    """

    locate: tuple[HeadId, ...]
    emit: tuple[HeadId, ...]
    before: Interval
    fall: Interval
    beyond: Interval
    against: AgainstControls
    loss: Interval
    loss_against: AgainstControls
    of_heads: HeadStatistics
    note: str

    @property
    def share(self) -> float:
        """Fall as a share of the mass before."""
        return float(self.fall.mean / self.before.mean)


def serial_dependence(
    model: HookedModel,
    design: NeedleDesign,
    locate: Sequence[HeadId],
    emit: Sequence[HeadId],
    trials: Sequence[int],
    *,
    ablation: Ablation = HIDDEN,
    draws: int = 20,
    norms: Float[np.ndarray, "layer head"] | None = None,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = silent,
) -> SerialDependence:
    """Ablate the locate heads, then each draw of matched random heads (same layers; with `norms`
    similar outputs; no locate and no emit head among them; equal draws once), in the question of
    the numbered trials.

    Raises `MnemoscopeError` where no emit head stands behind a locate head, `StatisticsError` where
    too few other heads are left to draw from or the trials are about one needle.
    """
    locate = unique_heads(locate)
    first = min((head.layer for head in locate), default=model.anatomy.n_layers)
    led = tuple(h for h in unique_heads(emit) if h.layer > first and h not in locate)
    if not led:
        raise MnemoscopeError(
            f"none of {len(emit)} emit heads stands in a layer behind the {len(locate)} locate "
            "heads, so none can be led: name other heads."
        )
    shape = (model.anatomy.n_layers, model.anatomy.n_heads)
    drawn = matched_random_heads(locate, *shape, draws=draws, seed=seed, norms=norms, exclude=led)
    controls = dict.fromkeys(tuple(sorted(some)) for some in drawn.draws)  # p counts each set once
    read = measure_serial(
        model, design, [(), locate, *controls], ablation, trials=trials, run=run,
        progress=progress,
    )  # fmt: skip
    return _summarised(read, locate, led, drawn.note, seed)


def _summarised(
    read: SerialReadings,
    locate: tuple[HeadId, ...],
    led: tuple[HeadId, ...],
    note: str,
    seed: int,
) -> SerialDependence:
    """Sets are, in order: none, the locate heads, the draws."""
    at = tuple(np.array([[head.layer, head.head] for head in led]).T)
    mass = np.nanmean(
        read.mass[:, :, *at], axis=-1
    )  # [set, trial]; emit heads in it see the needle
    fall, lost = mass[0] - mass[1:], read.log_prob[0] - read.log_prob[1:]
    falls = read.mass[0] - read.mass[1:]

    def over_needles(values: Float[np.ndarray, " trial"]) -> Interval:
        return bootstrap_mean(values, read.needles, seed=seed)

    return SerialDependence(
        locate=locate,
        emit=led,
        before=over_needles(mass[0]),
        fall=over_needles(fall[0]),
        beyond=over_needles(fall[0] - fall[1:].mean(0)),
        against=against_controls(float(fall[0].mean()), fall[1:].mean(1)),
        loss=over_needles(lost[0]),
        loss_against=against_controls(float(lost[0].mean()), lost[1:].mean(1)),
        of_heads=summarise_scores(
            falls[0],
            read.needles,
            null=falls[1:].mean(0),
            null_name="matched random heads ablated",
            seed=seed,
        ),
        note=note,
    )
