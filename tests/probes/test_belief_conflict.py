"""The paper's index exactly as published, and the figures that show what it is worth."""

import math

import numpy as np
import pytest
from corpus_truth import index_of
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.belief_conflict import belief_index, measure_weakness, paper_verdict

SECRET = [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]


def zipf(seed: int, n: int) -> list[int]:
    shares = 1 / np.arange(1, 31)
    return np.random.default_rng(seed).choice(30, n, p=shares / shares.sum()).tolist()


INDEX = index_of([[zipf(0, 3000), [*zipf(1, 50), *SECRET]]], kernels="numpy")
COUNTS = INDEX.unigram_counts


def surprisal(token: int) -> float:
    """By the released code's words."""
    if COUNTS[token] == 0:
        return -math.log(1e-9)
    return -math.log(COUNTS[token] / COUNTS.sum() + 1e-12)


def test_the_paper_mode_is_the_released_codes_sum():
    reading = belief_index(INDEX).read([0, 5, 5, 999])
    values = [surprisal(token) for token in (0, 5, 5, 999)]
    assert reading.conflict == pytest.approx(sum(values), rel=1e-12)
    assert reading.density == pytest.approx(sum(values) / 4)
    assert reading.highest == pytest.approx(20.723, abs=1e-3)
    kl = sum(s * (math.log(s) + surprisal(t)) for t, s in ((0, 0.25), (5, 0.5), (999, 0.25)))
    assert reading.divergence == pytest.approx(kl)


def test_the_base_changes_the_units_of_all_four_figures():
    nats, bits = belief_index(INDEX).read(SECRET), belief_index(INDEX, log_base=2).read(SECRET)
    for name in ("conflict", "density", "divergence", "highest"):
        assert getattr(bits, name) == pytest.approx(getattr(nats, name) / math.log(2))


def test_the_raw_sum_is_compared_with_tau_not_the_density():
    long = [0] * 40
    reading = belief_index(INDEX, tau=20).read(long)
    assert reading.density < 2
    assert reading.high_risk
    assert not belief_index(INDEX, tau=1000).read(long).high_risk


def test_the_smoothed_mode_has_no_cliff_at_unseen_tokens():
    paper = belief_index(INDEX).read([999]).conflict
    smoothed = belief_index(INDEX, bci_mode="smoothed").read([999]).conflict
    padded = COUNTS + 0.5
    assert smoothed == pytest.approx(math.log(padded.sum() / 0.5))
    assert smoothed < paper


def test_a_base_of_one_is_refused():
    with pytest.raises(MnemoscopeError, match="log_base"):
        belief_index(INDEX, log_base=1.0)


def test_the_shield_refuses_rare_windows_that_occur():
    text = [*zipf(9, 20), *SECRET]
    verdict = paper_verdict(INDEX, text, belief_index(INDEX))
    held = [i for i in range(len(text) - 7) if INDEX.count(text[i : i + 8])]
    rare = [i for i in held if INDEX.count(text[i : i + 8]) <= 3]
    assert verdict.n_windows == 23
    assert verdict.found == len(held) >= 3
    assert [one.start for one in verdict.risky] == rare
    assert verdict.refused


def test_a_text_shorter_than_a_window_is_never_refused():
    verdict = paper_verdict(INDEX, SECRET[:7], belief_index(INDEX, tau=0))
    assert verdict.n_windows == 0
    assert not verdict.refused


def test_the_frequency_filter_lets_common_windows_pass():
    common = [[*SECRET, 0] for _ in range(4)]
    index = index_of([common], kernels="numpy")
    belief = belief_index(index, tau=5)
    assert not paper_verdict(index, SECRET, belief).refused
    assert paper_verdict(index, SECRET, belief, max_count=None).refused


def test_the_verdict_says_how_few_tokens_pass_the_threshold():
    verdict = paper_verdict(INDEX, SECRET, belief_index(INDEX))
    shares = COUNTS[COUNTS > 0] / COUNTS.sum()
    entropy = -(shares * np.log(shares)).sum()
    assert verdict.mean_surprisal == pytest.approx(entropy, abs=1e-6)
    assert f"any {math.ceil(20 / entropy)} tokens" in verdict.weakness
    assert "not cause" in verdict.weakness


def test_the_index_follows_length_on_harmless_text_and_refuses_it():
    passages = [zipf(seed, 200) for seed in range(100, 140)]
    belief = belief_index(INDEX)
    weak = measure_weakness(INDEX, passages, belief, taus=(5, 20, 1000))
    lengths, conflicts = [], []
    for passage in passages:
        for span in INDEX.maximal_spans(passage):
            lengths.append(span.stop - span.start)
            conflicts.append(sum(surprisal(t) for t in passage[span.start : span.stop]))
    assert weak.n_spans == len(lengths)
    assert weak.correlation == pytest.approx(np.corrcoef(lengths, conflicts)[0, 1])
    assert weak.slope == pytest.approx(np.polyfit(lengths, conflicts, 1)[0])
    assert weak.refusals["refused"].to_list()[0] == 1.0
    assert weak.refusals["refused"].to_list()[2] == 0.0


def test_too_little_text_shows_no_trend():
    with pytest.raises(MnemoscopeError, match="trend"):
        measure_weakness(INDEX, [[0]], belief_index(INDEX))
