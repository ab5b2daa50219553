"""Belief-deconfliction losses: the page's formulas, and gradients where they belong."""

import math

import pytest
import torch
from families import tiny
from mnemoscope.interventions.deconfliction_losses import (
    Deconfliction,
    Risks,
    answer_log_probs,
    deconflicted_loss,
    expected_risk_loss,
    gradient_norm_ratio,
    margin_loss,
    preference_difference,
    risk_penalty,
    unlikelihood_loss,
)
from mnemoscope.models.errors import MnemoscopeError

VOCAB = 7
SPAN = slice(3, 6)
"""Tokens 3 to 5 of row 1 are the risky span of every test."""


def batch(seed=0, rows=2, length=8, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCAB, generator=make, dtype=dtype) * 2
    return logits.requires_grad_(), torch.randint(0, VOCAB, (rows, length), generator=make)


def span_weights(rows=2, length=8, weight=0.5):
    weights = torch.zeros(rows, length)
    weights[1, SPAN] = weight
    return weights


def risks(rows=2, length=8, weights=None, levels=None, steps=()):
    positions, tokens = (torch.zeros(rows, max(1, len(steps)), dtype=torch.long) for _ in range(2))
    values = torch.zeros(positions.shape)
    for i, (row, position, token, value) in enumerate(steps):
        positions[row, i], tokens[row, i], values[row, i] = position, token, value
    weights = torch.zeros(rows, length) if weights is None else weights
    levels = torch.zeros(rows) if levels is None else torch.tensor(levels)
    return Risks(weights, levels, positions, tokens, values)


def probability(logits, ids, row, position):
    """p(y_t | y_<t): the row of logits before the token."""
    return logits[row, position - 1].softmax(0)[ids[row, position]]


def test_unlikelihood_is_the_weighted_mean_of_the_spans_terms():
    logits, ids = batch()
    weights = span_weights(weight=0.25)
    weights[1, 4] = 0.25 + 1.0  # a second span, of weight 1, over token 4 alone
    terms = [-torch.log(1 - probability(logits, ids, 1, t)) for t in (3, 4, 5)]
    expected = (0.25 * sum(terms) + 1.0 * terms[1]) / (0.25 * 3 + 1.0)
    torch.testing.assert_close(unlikelihood_loss(logits, ids, weights), expected)


def test_unlikelihood_moves_exactly_the_positions_that_predict_the_span():
    logits, ids = batch()
    unlikelihood_loss(logits, ids, span_weights()).backward()
    moved = logits.grad.abs().sum(2) > 0
    expected = torch.zeros(2, 8, dtype=torch.bool)
    expected[1, 2:5] = True
    assert torch.equal(moved, expected)


def test_unlikelihood_pushes_the_spans_tokens_down_and_all_others_up():
    logits, ids = batch()
    unlikelihood_loss(logits, ids, span_weights()).backward()
    for t in (3, 4, 5):
        gradient = logits.grad[1, t - 1]
        assert gradient[ids[1, t]] == pytest.approx(
            float(probability(logits, ids, 1, t).detach()) / 3, rel=1e-6
        )
        assert (gradient < 0).sum() == VOCAB - 1


def test_unlikelihood_agrees_with_finite_differences():
    logits, ids = batch()
    assert torch.autograd.gradcheck(lambda x: unlikelihood_loss(x, ids, span_weights()), logits)


def test_a_memorised_token_still_feels_the_loss():
    """Clamping 1 - p would leave no gradient just here: in float32, 1 - p is 0."""
    logits = torch.zeros(1, 2, VOCAB)
    logits[0, 0, 4] = 40.0
    logits.requires_grad_()
    ids, weights = torch.tensor([[0, 4]]), torch.tensor([[0.0, 1.0]])
    loss = unlikelihood_loss(logits, ids, weights)
    loss.backward()
    assert float(logits.detach().softmax(-1)[0, 0, 4]) == 1.0
    assert loss.item() == pytest.approx(40 - math.log(VOCAB - 1), rel=1e-6)
    assert float(logits.grad[0, 0, 4]) == pytest.approx(1.0)


def test_a_rows_first_token_is_predicted_by_nothing():
    logits, ids = batch()
    weights = torch.zeros(2, 8)
    weights[:, 0] = 1
    assert unlikelihood_loss(logits, ids, weights).item() == 0


@pytest.mark.parametrize("form", ["unlikelihood", "expected_risk"])
def test_without_risky_spans_there_is_no_penalty_and_no_gradient(form):
    logits, ids = batch()
    loss = risk_penalty(logits, ids, torch.ones(2, 8), risks(), form)
    loss.backward()
    assert loss.item() == 0
    assert float(logits.grad.abs().sum()) == 0


STEPS = ((0, 3, 2, 1.5), (0, 3, 5, 4.0), (1, 6, 1, 2.0))


def test_expected_risk_is_the_risk_under_the_models_own_distribution():
    logits, _ = batch()
    mask = torch.tensor([[0] * 3 + [1] * 5, [0] * 4 + [1] * 4])
    first = logits[0, 2].softmax(0)
    expected = (1.5 * first[2] + 4.0 * first[5]) / 5 + 2.0 * logits[1, 5].softmax(0)[1] / 4
    loss = expected_risk_loss(logits, mask, risks(steps=STEPS))
    torch.testing.assert_close(loss, expected / 2)


def test_expected_risk_moves_exactly_the_positions_where_a_match_is_active():
    logits, _ = batch()
    expected_risk_loss(logits, torch.ones(2, 8), risks(steps=STEPS)).backward()
    moved = (logits.grad.abs().sum(2) > 0).nonzero().tolist()
    assert moved == [[0, 2], [1, 5]]
    assert logits.grad[1, 5, 1] > 0


def test_expected_risk_agrees_with_finite_differences():
    logits, _ = batch()
    told = risks(steps=STEPS)
    assert torch.autograd.gradcheck(lambda x: expected_risk_loss(x, torch.ones(2, 8), told), logits)


def test_the_margin_form_without_gamma_is_dpo():
    d, levels = torch.tensor([0.3, -1.0]), torch.tensor([5.0, 0.0, 1.0, 2.0])
    dpo = -torch.nn.functional.logsigmoid(0.1 * d).mean()
    torch.testing.assert_close(margin_loss(d, levels, 0.1, 0.0), dpo)


def test_the_margin_form_adds_the_difference_of_risk():
    d, levels = torch.tensor([0.3, -1.0]), torch.tensor([5.0, 0.0, 1.0, 2.0])
    inner = 0.1 * d + 0.05 * torch.tensor([4.0, -2.0])
    torch.testing.assert_close(
        margin_loss(d, levels, 0.1, 0.05), -torch.nn.functional.logsigmoid(inner).mean()
    )


def test_a_riskier_preferred_answer_is_pulled_up_with_less_force():
    def pull(levels):
        d = torch.zeros(1, requires_grad=True)
        margin_loss(d, torch.tensor(levels), 0.1, 0.05).backward()
        return -float(d.grad)

    assert pull([20.0, 0.0]) < pull([0.0, 0.0]) < pull([0.0, 20.0])


def test_the_margin_form_agrees_with_finite_differences():
    d = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    levels = torch.tensor([5.0, 0.0, 1.0, 2.0])
    assert torch.autograd.gradcheck(lambda x: margin_loss(x, levels, 0.5, 0.1), d)


def test_answer_log_probs_sum_over_the_marked_tokens():
    logits, ids = batch()
    mask = torch.tensor([[0] * 6 + [1] * 2, [0] * 7 + [1]])
    expected = [
        sum(torch.log(probability(logits, ids, row, t)) for t in range(first, 8))
        for row, first in enumerate((6, 7))
    ]
    torch.testing.assert_close(answer_log_probs(logits, ids, mask), torch.stack(expected))


def test_the_difference_is_that_of_log_ratios():
    policy, reference = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    torch.testing.assert_close(preference_difference(policy, reference), torch.tensor([-1.5, -2.5]))


def test_rows_that_are_no_pairs_are_refused():
    with pytest.raises(MnemoscopeError, match="not pairs"):
        preference_difference(torch.zeros(3), torch.zeros(3))


def test_the_margin_is_no_penalty():
    logits, ids = batch()
    with pytest.raises(MnemoscopeError, match="adds no penalty"):
        risk_penalty(logits, ids, torch.ones(2, 8), risks(), "margin")


def trained(form, strength, steps=30):
    """p of the span's tokens before and after a few plain steps on a tiny model."""
    module = tiny("llama", dtype=torch.float32).train()
    make = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 61, (2, 12), generator=make)
    mask = torch.ones(2, 12).index_fill(1, torch.arange(4), 0)
    weights = torch.zeros(2, 12)
    weights[0, 6:10] = 1.0
    told = risks(
        length=12,
        weights=weights,
        levels=[10.0, 0.0],
        steps=[(0, t, int(ids[0, t]), 1.0) for t in range(6, 10)],
    )
    with torch.no_grad():
        module.lm_head.weight[ids[0, 6:10]] *= 1.5  # likely enough for a penalty to bite
        reference = answer_log_probs(module(ids).logits, ids, mask)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.02)

    def span_log_prob():
        with torch.no_grad():
            log_p = module(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[5:9]
        return float(log_p.sum())

    before = span_log_prob()
    settings = Deconfliction(form, strength)
    for _ in range(steps):
        optimiser.zero_grad()
        terms = deconflicted_loss(module(ids).logits, ids, mask, reference, told, settings)
        terms.total.backward()
        optimiser.step()
    return before, span_log_prob()


@pytest.mark.parametrize("form", ["unlikelihood", "expected_risk", "margin"])
def test_a_plain_loop_makes_the_span_less_likely_than_dpo_alone(form):
    """The risky answer is the preferred one: DPO alone makes its span more likely."""
    before, plain = trained(form, 0.0)
    _, penalised = trained(form, 2.0 if form != "margin" else 1.0)
    assert plain > before
    assert penalised < plain


def test_a_dead_penalty_shows_in_the_ratio_of_gradient_norms():
    logits, ids = batch(rows=2)
    mask, reference = torch.ones(2, 8), torch.zeros(2)

    def ratio(told, strength):
        settings = Deconfliction("unlikelihood", strength)
        terms = deconflicted_loss(logits, ids, mask, reference, told, settings)
        return gradient_norm_ratio(terms, [logits])

    alive = risks(weights=span_weights())
    assert ratio(risks(), 0.1) == 0
    assert ratio(alive, 0.1) > 0
    assert ratio(alive, 0.2) == pytest.approx(2 * ratio(alive, 0.1))


def test_half_precision_logits_are_summed_in_float32():
    logits, ids = batch(dtype=torch.bfloat16)
    loss = unlikelihood_loss(logits, ids, span_weights())
    assert loss.dtype == torch.float32
    wide = unlikelihood_loss(logits.float(), ids, span_weights())
    assert loss.item() == pytest.approx(wide.item(), rel=1e-6)
