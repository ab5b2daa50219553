"""The deconfliction losses in TRL's DPO trainer, without importing TRL: mix it into the class.

    class Trainer(DeconflictionMixin, trl.DPOTrainer):
        deconfliction = Deconfliction("unlikelihood", strength=0.05)

    collator = RiskCollator(DataCollatorForPreference(pad_token_id=0), tracer)
    Trainer(model, args=DPOConfig(...), data_collator=collator, ...)

Written against TRL 1.16. Its trainer never builds logits, so the rows that hold a risk go through
the model once more; rows without one cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.errors import MnemoscopeError
from .deconfliction_batches import take_risks
from .deconfliction_losses import Deconfliction, Risks, risk_penalty

PENALTY = "deconfliction/penalty"


class DeconflictionMixin:
    """Adds the penalty of forms 1 and 2 to the trainer's loss, or shifts its margin (form 3).

    The margin needs the reference's log-probabilities in the batch: `precompute_ref_log_probs`.
    The mean penalty since the last log is logged beside the trainer's own figures, as
    `deconfliction/penalty`.
    """

    deconfliction = Deconfliction()
    beta: float
    _penalties: tuple[float, ...] = ()

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The trainer's loss with the deconfliction's. Raises `MnemoscopeError` for a batch without
        risks, and for the margin without the reference's log-probabilities."""
        plain, risks = take_risks(inputs)
        trainer: Any = super()
        if self.deconfliction.form == "margin":
            plain = shifted_references(plain, risks, self.deconfliction.strength / self.beta)
            return trainer.compute_loss(model, plain, return_outputs, num_items_in_batch)
        result = trainer.compute_loss(model, plain, return_outputs, num_items_in_batch)
        penalty = self._penalty(model, plain, risks)
        self._penalties += (float(penalty.detach()),)
        added = self.deconfliction.strength * penalty
        return (result[0] + added, result[1]) if return_outputs else result + added

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The trainer's own, of the batch without its risks."""
        trainer: Any = super()
        return trainer.compute_ref_log_probs(model, take_risks(inputs)[0])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's own, with the mean penalty since the last time."""
        if self._penalties:
            logs[PENALTY] = sum(self._penalties) / len(self._penalties)
        self._penalties = ()
        trainer: Any = super()
        trainer.log(logs, start_time)

    def _penalty(self, model: Any, batch: Mapping[str, Any], risks: Risks) -> Float[Tensor, ""]:
        risky = (risks.weights != 0).any(1) | (risks.values != 0).any(1)
        if not bool(risky.any()):
            return torch.zeros((), device=risky.device)
        ids, mask = batch["input_ids"][risky], batch["completion_mask"][risky]
        logits = model(
            input_ids=ids, attention_mask=batch["attention_mask"][risky], use_cache=False
        ).logits
        told = Risks(*(getattr(risks, name)[risky] for name in Risks.__dataclass_fields__))
        penalty = risk_penalty(logits, ids, mask, told, self.deconfliction.form)
        # Form 2 is a mean over rows, and those without a risk are rows too.
        share = float(risky.float().mean()) if self.deconfliction.form == "expected_risk" else 1.0
        return penalty * share


def shifted_references(batch: Mapping[str, Any], risks: Risks, shift: float) -> dict[str, Any]:
    """Form 3 for a trainer that knows only DPO: `beta D + gamma (R_w - R_l)` is `beta D` with
    `gamma / beta` times each answer's risk taken off its reference log-probability.

    Raises `MnemoscopeError` where the batch has no reference log-probabilities.
    """
    if "ref_chosen_logps" not in batch or "ref_rejected_logps" not in batch:
        raise MnemoscopeError(
            "the margin form shifts the reference's log-probabilities, and the batch has none: set "
            "precompute_ref_log_probs=True in the trainer's configuration."
        )
    chosen, rejected = risks.levels.chunk(2)
    return {
        **batch,
        "ref_chosen_logps": batch["ref_chosen_logps"] - shift * chosen,
        "ref_rejected_logps": batch["ref_rejected_logps"] - shift * rejected,
    }
