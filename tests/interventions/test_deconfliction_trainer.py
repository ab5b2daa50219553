"""The mixin adds its penalty to a DPO trainer's loss: to a stand-in's, and to TRL's where it is."""

import pytest
import torch
from corpus_truth import index_of
from families import tiny
from mnemoscope.data.corpus.span_scores import RiskRule
from mnemoscope.interventions.deconfliction_batches import (
    PairCollator,
    RiskCollator,
    RiskTracer,
    take_risks,
)
from mnemoscope.interventions.deconfliction_losses import (
    Deconfliction,
    answer_log_probs,
    deconflicted_loss,
    risk_penalty,
)
from mnemoscope.interventions.deconfliction_trainer import DeconflictionMixin
from mnemoscope.models.errors import MnemoscopeError

SECRET = [10, 11, 12, 13, 14]
EXAMPLES = [
    {"prompt_ids": [3, 4], "chosen_ids": [9, *SECRET, 2], "rejected_ids": [6, 7, 8]},
    {"prompt_ids": [5], "chosen_ids": [8, 2], "rejected_ids": [7, 7, 2]},
]
BETA = 0.5


class StandInTrainer:
    """What the mixin asks of TRL's trainer: DPO on a batch laid out the same way; an unknown
    column would reach the model, and is an error."""

    def __init__(self, reference):
        self.reference, self.beta, self.logged = reference, BETA, {}

    def compute_ref_log_probs(self, model, inputs):
        with torch.no_grad():
            return self._log_probs(self.reference, inputs).chunk(2)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        chosen, rejected = self._log_probs(model, inputs).chunk(2)
        if "ref_chosen_logps" in inputs:
            given = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            with torch.no_grad():
                given = self._log_probs(self.reference, inputs).chunk(2)
        difference = (chosen - given[0]) - (rejected - given[1])
        loss = -torch.nn.functional.logsigmoid(self.beta * difference).mean()
        return (loss, "outputs") if return_outputs else loss

    def log(self, logs, start_time=None):
        self.logged = dict(logs)

    def _log_probs(self, model, inputs):
        known = {"input_ids", "attention_mask", "completion_mask"}
        assert not inputs.keys() - known - {"ref_chosen_logps", "ref_rejected_logps"}
        logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return answer_log_probs(logits, inputs["input_ids"], inputs["completion_mask"])


def tracer():
    rule = RiskRule(lambda ids, length, count: float(length), 2.0, 3, None)
    return RiskTracer(index_of([[[1, *SECRET, 20], [8, 10, 11, 12, 21]]]), rule, 2.0)


@pytest.fixture(scope="module")
def models():
    return tiny("llama", seed=0), tiny("llama", seed=1)


def batch_of(examples=EXAMPLES):
    return RiskCollator(PairCollator(), tracer())(examples)


def trainer(reference, settings):
    class Trainer(DeconflictionMixin, StandInTrainer):
        deconfliction = settings

    return Trainer(reference)


@pytest.mark.parametrize("form", ["unlikelihood", "expected_risk"])
def test_the_trainers_loss_is_that_of_the_plain_loop(models, form):
    model, reference = models
    settings, batch = Deconfliction(form, 0.7, BETA), batch_of()
    plain, risks = take_risks(batch)
    ids, mask = plain["input_ids"], plain["completion_mask"]
    told = (answer_log_probs(reference(ids).logits, ids, mask), risks, settings)
    terms = deconflicted_loss(model(ids).logits, ids, mask, *told)
    assert terms.penalty.item() > 0
    loss = trainer(reference, settings).compute_loss(model, batch)
    assert loss.item() == pytest.approx(terms.total.item(), rel=1e-6)


def test_the_margin_is_put_into_the_references_log_probabilities(models):
    model, reference = models
    settings, batch = Deconfliction("margin", 0.3, BETA), batch_of()
    plain, risks = take_risks(batch)
    ids, mask = plain["input_ids"], plain["completion_mask"]
    log_probs = answer_log_probs(reference(ids).logits, ids, mask).detach()
    terms = deconflicted_loss(model(ids).logits, ids, mask, log_probs, risks, settings)
    own = trainer(reference, settings)
    chosen, rejected = own.compute_ref_log_probs(reference, batch)
    with_references = {**batch, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = own.compute_loss(model, with_references)
    assert loss.item() == pytest.approx(terms.total.item(), rel=1e-6)
    plain_loss = StandInTrainer(reference).compute_loss(model, plain)
    assert loss.item() != pytest.approx(plain_loss.item(), rel=1e-3)


def test_the_margin_without_references_is_refused(models):
    with pytest.raises(MnemoscopeError, match="precompute_ref_log_probs"):
        trainer(models[1], Deconfliction("margin")).compute_loss(models[0], batch_of())


def test_outputs_are_passed_on(models):
    model, reference = models
    own = trainer(reference, Deconfliction("unlikelihood", 0.7))
    loss, outputs = own.compute_loss(model, batch_of(), return_outputs=True)
    assert outputs == "outputs"
    assert loss.item() == pytest.approx(own.compute_loss(model, batch_of()).item())


def test_the_mean_penalty_since_the_last_log_is_logged(models):
    model, reference = models
    own = trainer(reference, Deconfliction("unlikelihood", 0.7))
    own.compute_loss(model, batch_of())
    own.compute_loss(model, batch_of(EXAMPLES[1:]))  # without a risk: 0
    own.log({"loss": 1.0})
    plain, risks = take_risks(batch_of())
    ids = plain["input_ids"]
    one = risk_penalty(model(ids).logits, ids, plain["completion_mask"], risks, "unlikelihood")
    assert own.logged["deconfliction/penalty"] == pytest.approx(one.item() / 2, rel=1e-6)
    own.log({"loss": 1.0})
    assert "deconfliction/penalty" not in own.logged


@pytest.mark.parametrize("form", ["unlikelihood", "expected_risk", "margin"])
def test_trls_dpo_trainer_learns_to_avoid_the_span(form, tmp_path):
    """The same runs of TRL's own trainer, with and without a penalty that matters."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    def trained(strength):
        class Trainer(DeconflictionMixin, trl.DPOTrainer):
            deconfliction = Deconfliction(form, strength, BETA)

        model = tiny("llama", dtype=torch.float32)
        arguments = trl.DPOConfig(
            str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=3e-3,
            beta=BETA,
            precompute_ref_log_probs=form == "margin",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=3,
            save_strategy="no",
            disable_tqdm=True,
        )
        own = Trainer(
            model,
            ref_model=tiny("llama", dtype=torch.float32),
            args=arguments,
            data_collator=RiskCollator(DataCollatorForPreference(pad_token_id=0), tracer()),
            train_dataset=datasets.Dataset.from_list([_in_words(one) for one in EXAMPLES]),
            processing_class=_tokenizer(),
        )
        own.train()
        ids = torch.tensor([[3, 4, 9, *SECRET, 2]])
        span = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 0]])
        with torch.no_grad():
            seen = [one for one in own.state.log_history if "deconfliction/penalty" in one]
            return answer_log_probs(model(ids).logits, ids, span).item(), seen

    plain, _ = trained(0.0)
    penalised, logged = trained(1.0 if form != "margin" else 5.0)
    assert penalised < plain - 0.1
    assert len(logged) == (0 if form == "margin" else 2)


def _in_words(example):
    """A pair as text: word wN is token N. The trainer adds the end, w2, itself."""
    return {
        key.removesuffix("_ids"): " ".join(f"w{i}" for i in ids if i != 2)
        for key, ids in example.items()
    }


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
