"""Losses that make a model let go of risky training spans, and whose gradient is not zero.

The released contrastive belief deconfliction adds a Python number computed from argmax ids to the
DPO loss: its gradient is 0 (tracealign.md 1.4). Three forms that do train (1.6):

1. `unlikelihood_loss`: the tokens of risky spans become less likely. The default.
2. `expected_risk_loss`: so does every token that would extend a risky match, whether or not the
   answer at hand takes it.
3. `margin_loss`: preference for the riskier answer is asked for with less force.

A batch is laid out as in TRL: chosen answers in the first half of the rows, rejected ones in the
second. Position `t` of `logits` predicts token `t + 1` of `ids`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..models.errors import MnemoscopeError
from .end_chain import wide_type

Form = Literal["unlikelihood", "expected_risk", "margin"]

_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Risks:
    """What the index says about a batch; constants, no gradient goes through them.

    A row's last axis `k` is padded with zeros, which weigh nothing.
    """

    weights: Float[Tensor, "batch pos"]
    """For each token the sum of the weights (0 to 1) of the risky spans it lies in."""
    levels: Float[Tensor, " batch"]
    """The riskiest span of each row: its score above the threshold, 0 without one."""
    positions: Int[Tensor, "batch k"]
    """Where a risky match could be extended, and below with which token, at which risk."""
    tokens: Int[Tensor, "batch k"]
    values: Float[Tensor, "batch k"]


@dataclass(frozen=True)
class Deconfliction:
    """Which form, how strong (lambda of forms 1 and 2, gamma of form 3), and DPO's own beta.

    Starting points (to be swept): 0.05 for form 1, 0.1 to 1 for form 2, 0.01 to 0.05 for form 3.
    """

    form: Form = "unlikelihood"
    strength: float = 0.05
    beta: float = 0.1


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The two terms apart, so that a dead penalty shows; `total` is what is to be minimised.

    The penalty is 0 for the margin form, which has no term of its own.
    """

    preference: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    strength: float

    @property
    def total(self) -> Float[Tensor, ""]:
        """`preference + strength * penalty`."""
        return self.preference + self.strength * self.penalty


def deconflicted_loss(
    logits: Float[Tensor, "batch pos vocab"],
    ids: Int[Tensor, "batch pos"],
    answer_mask: Int[Tensor, "batch pos"],
    reference: Float[Tensor, " batch"],
    risks: Risks,
    settings: Deconfliction,
) -> LossTerms:
    """DPO's sigmoid loss with one of the three forms, for a plain training loop.

    `reference` are the reference model's `answer_log_probs` of the same batch. Raises
    `MnemoscopeError` for an odd number of rows and an unknown form.
    """
    logps = answer_log_probs(logits, ids, answer_mask)
    difference = preference_difference(logps, reference)
    if settings.form == "margin":
        loss = margin_loss(difference, risks.levels, settings.beta, settings.strength)
        return LossTerms(loss, torch.zeros_like(loss), 0.0)
    preference = -logsigmoid(settings.beta * difference).mean()
    penalty = risk_penalty(logits, ids, answer_mask, risks, settings.form)
    return LossTerms(preference, penalty, settings.strength)


def risk_penalty(
    logits: Float[Tensor, "batch pos vocab"],
    ids: Int[Tensor, "batch pos"],
    answer_mask: Int[Tensor, "batch pos"],
    risks: Risks,
    form: Form,
) -> Float[Tensor, ""]:
    """The term that form 1 or 2 adds. Raises `MnemoscopeError` for another form."""
    if form == "unlikelihood":
        return unlikelihood_loss(logits, ids, risks.weights)
    if form == "expected_risk":
        return expected_risk_loss(logits, answer_mask, risks)
    raise MnemoscopeError(
        f"{form!r} adds no penalty: take 'unlikelihood' or 'expected_risk'; 'margin' changes the "
        "preference loss itself."
    )


def unlikelihood_loss(
    logits: Float[Tensor, "batch pos vocab"],
    ids: Int[Tensor, "batch pos"],
    weights: Float[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Form 1: weighted mean of `-ln(1 - p(y_t | y_<t))` over the tokens of risky spans, in nats.

    `ln(1 - p)` is the log-sum-exp of all other tokens, so that no clamp kills the gradient where
    the model is surest, that is where it has memorised; on the span token's logit it is `p`. A
    row's first token is predicted by nothing and does not count. 0 where nothing is risky.
    """
    rows, at = weights[:, 1:].nonzero(as_tuple=True)
    given = _wide(logits[rows, at])
    target = ids[rows, at + 1, None]
    others = given.scatter(1, target, -torch.inf)
    surprise = given.logsumexp(1) - others.logsumexp(1)
    weight = weights[rows, at + 1].to(given.dtype)
    return (weight * surprise).sum() / (weight.sum() + _EPS)


def expected_risk_loss(
    logits: Float[Tensor, "batch pos vocab"], answer_mask: Int[Tensor, "batch pos"], risks: Risks
) -> Float[Tensor, ""]:
    """Form 2: the risk that the model's next token would add, expected over its own distribution.

    For each row the mean over its answer's tokens of `sum_v p(v | y_<t) risk_t(v)`, then the mean
    over rows. Only the positions where a match is active are touched. 0 where there is none.
    """
    rows, column = risks.values.nonzero(as_tuple=True)
    before = risks.positions[rows, column] - 1
    # A position with many extensions is read once.
    sites, which = torch.unique(rows * logits.shape[1] + before, return_inverse=True)
    given = _wide(logits.flatten(0, 1)[sites])
    log_p = given[which, risks.tokens[rows, column]] - given.logsumexp(1)[which]
    share = risks.values[rows, column] / answer_mask.sum(1).clamp(min=1)[rows]
    return (share.to(log_p.dtype) * log_p.exp()).sum() / len(logits)


def margin_loss(
    difference: Float[Tensor, " pair"],
    levels: Float[Tensor, " batch"],
    beta: float,
    gamma: float,
) -> Float[Tensor, ""]:
    """Form 3: `-ln sigma(beta D + gamma (R(y_w) - R(y_l)))`, mean over pairs; DPO at `gamma=0`.

    It is DPO for the reward less `gamma R`: people preferred `y_w` in spite of its risk, so the
    model need not. The sign matters: with a minus before `gamma` the loss is larger for a risky
    preferred answer, but so is the pull towards it, and memorisation is rewarded.
    """
    chosen, rejected = _halves(levels)
    return -logsigmoid(beta * difference + gamma * (chosen - rejected).to(difference)).mean()


def answer_log_probs(
    logits: Float[Tensor, "batch pos vocab"],
    ids: Int[Tensor, "batch pos"],
    answer_mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, " batch"]:
    """Log-probability of each row's answer: the sum over the tokens that the mask marks."""
    given = _wide(logits[:, :-1])
    chosen = given.gather(2, ids[:, 1:, None])[..., 0] - given.logsumexp(2)
    return (chosen * answer_mask[:, 1:]).sum(1)


def preference_difference(
    policy: Float[Tensor, " batch"], reference: Float[Tensor, " batch"]
) -> Float[Tensor, " pair"]:
    """`D`: log-ratio to the reference of the chosen answer less that of the rejected one."""
    chosen, rejected = _halves(policy - reference.to(policy))
    return chosen - rejected


def gradient_norm_ratio(terms: LossTerms, parameters: Iterable[Tensor]) -> float:
    """Norm of the penalty's gradient, strength included, over that of the preference loss.

    0 tells of a dead penalty, inf of a dead preference loss. Keeps the graph for `backward`.
    """
    wanted = [one for one in parameters if one.requires_grad]
    penalty = _gradient_norm(terms.strength * terms.penalty, wanted)
    preference = _gradient_norm(terms.preference, wanted)
    if preference == 0:
        return 0.0 if penalty == 0 else float("inf")
    return penalty / preference


def _gradient_norm(loss: Tensor, parameters: list[Tensor]) -> float:
    if not loss.requires_grad:
        return 0.0
    parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return sum(float(g.double().square().sum()) for g in parts if g is not None) ** 0.5


def _wide(logits: Tensor) -> Tensor:
    return logits.to(wide_type(logits.dtype))


def _halves(rows: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
    if len(rows) % 2:
        raise MnemoscopeError(
            f"{len(rows)} rows are not pairs: put the chosen answers first, then as many rejected."
        )
    chosen, rejected = rows.chunk(2)
    return chosen, rejected
