"""The law of length gives back what leads were made of, and the planted heads their horizons."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.models import wrap
from mnemoscope.organisms import planted_retrieval_design, planted_retrieval_model
from mnemoscope.probes.length_laws import FARTHEST, fit_length_law
from mnemoscope.probes.retrieval_heads import score_trials
from mnemoscope.probes.retrieval_trials import measure_trials
from mnemoscope.results.errors import StatisticsError

LENGTHS = np.tile([256, 1024, 4096], 20)
NEEDLES = [f"needle {i}" for i in np.repeat(np.arange(20), 3)]


def leads(at_one: float, decay: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Of one head: needles differ, lengths fall on the law."""
    rng = np.random.default_rng(seed)
    of_needle = np.repeat(rng.normal(0, noise, 20), 3)
    lead = at_one - decay * np.log(LENGTHS) + of_needle + rng.normal(0, noise / 4, 60)
    return lead[:, None, None]


def test_an_exact_law_is_given_back() -> None:
    lead = np.concatenate([leads(8, 1), leads(10, 0.5), leads(2, 1)], axis=2)
    law = fit_length_law(lead, NEEDLES, LENGTHS)
    assert law.decay[0] == pytest.approx([1, 0.5, 1])
    assert law.horizon[0] == pytest.approx(np.exp([8, 20, 2]))
    assert law.horizon_low[0] == pytest.approx(law.horizon[0])
    assert law.extrapolated.tolist() == [[False, True, True]]
    assert law.sees_beyond.tolist() == [[False, True, False]]
    assert law.lead[0, 0] == pytest.approx(8 - np.log(LENGTHS).mean())


def test_leads_that_do_not_fall_have_no_horizon() -> None:
    lead = np.concatenate([leads(1, 0), leads(-1, 0), leads(-20, -1), leads(1, -1)], axis=2)
    law = fit_length_law(lead, NEEDLES, LENGTHS)
    assert law.horizon[0].tolist() == [FARTHEST, 0, 0, FARTHEST]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = [
        law.horizon_low[0, 0] <= np.exp(8) <= law.horizon_high[0, 0]
        for seed in range(150)
        for law in [fit_length_law(leads(8, 1, 1.0, seed), NEEDLES, LENGTHS, draws=300)]
    ]
    assert 0.86 <= np.mean(held) <= 0.99


def test_heads_that_cannot_see_have_no_law() -> None:
    lead = np.concatenate([leads(8, 1), leads(8, 1)], axis=2)
    lead[4, 0, 1] = np.nan
    law = fit_length_law(lead, NEEDLES, LENGTHS)
    assert np.isfinite(law.horizon[0, 0])
    assert np.isnan(law.horizon[0, 1])


def test_a_law_needs_lengths_and_needles() -> None:
    with pytest.raises(StatisticsError, match="two lengths"):
        fit_length_law(leads(8, 1), NEEDLES, np.full(60, 512))
    with pytest.raises(StatisticsError, match="do not fit"):
        fit_length_law(leads(8, 1), NEEDLES[:5], LENGTHS)


def test_planted_heads_never_lose_the_needle_and_noise_never_has_it() -> None:
    """The copy head's only other key of weight is `<bos>`, however long the haystack; to a noise
    head all keys are alike, so its lead falls by one unit of ln T and is below 0 throughout."""
    planted = planted_retrieval_model()
    model = wrap(planted.module, planted.tokenizer, name="planted")
    design = planted_retrieval_design(planted, lengths=(64, 256, 512), rounds=1, depths=2,
                                      needles_per_haystack=2)  # fmt: skip
    scores = score_trials(measure_trials(model, design, max_new_tokens=3), mode="forced")
    law = fit_length_law(scores.values["lead"], scores.needles, scores.lengths)
    (copy,) = planted.copy_heads
    assert law.lead[copy.layer, copy.head] > 5
    assert law.horizon[copy.layer, copy.head] > 1e4
    for head in planted.noise_heads:
        assert law.decay[head.layer, head.head] == pytest.approx(1, abs=0.25)
        assert law.horizon[head.layer, head.head] < 10
