"""What the answer loses without the first k heads, beside matched random heads, on the planted
retrieval model: the copy head costs it while answering, the locate head while asking."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.data.facts.needles import NeedleDesign, Trial
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.answer_curves import (
    Ablation,
    AnswerCurve,
    answer_curve,
    answer_curves,
    area_beyond_random,
    curve_table,
    gold_log_probs,
    size_weights,
)
from mnemoscope.results.run_folder import open_run

TRIALS = tuple(range(0, 48, 4))


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def design(planted: PlantedRetrieval) -> NeedleDesign:
    return planted_retrieval_design(planted)


def plain_log_prob(
    module: torch.nn.Module, prompt: Sequence[int], trial: Trial, zeroed: dict[HeadId, slice]
) -> float:
    """Log-probability of the answer with plain hooks on the whole prompt; no cache, no edits."""
    ids = torch.tensor([[*prompt, *trial.answer_ids[:-1]]])
    with ExitStack() as stack, torch.no_grad():
        for head, rows in zeroed.items():
            attn = module.transformer.h[head.layer].attn
            columns = slice(head.head * attn.head_dim, (head.head + 1) * attn.head_dim)

            def zero(_m: object, args: tuple[torch.Tensor], c=columns, r=rows) -> tuple[object]:
                z = args[0].clone()
                z[:, r, c] = 0
                return (z,)

            handle = attn.c_proj.register_forward_pre_hook(zero)
            stack.callback(handle.remove)
        told = module(ids).logits[0].log_softmax(-1)
    n = len(trial.answer_ids)
    return float(sum(told[-n + i, token] for i, token in enumerate(trial.answer_ids)))


# -- the log-probabilities of a batch of head sets -------------------------------------------------


@pytest.mark.parametrize("where", ["question", "decode", "question+decode"])
def test_sets_in_one_batch_are_what_plain_hooks_give(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign, where: str
) -> None:
    copy, locate = planted.copy_heads[0], planted.locate_heads[0]
    sets = ((), (copy,), (locate,), (copy, locate), planted.noise_heads[:2])
    found = gold_log_probs(model, design, sets, Ablation("zero", where), [0, 7])
    for column, number in enumerate((0, 7)):
        trial = design.trials[number]
        prompt = design.prompt(trial)
        start = len(prompt) - len(trial.question_ids)
        rows = {
            "question": slice(start, len(prompt) - 1),
            "decode": slice(len(prompt) - 1, None),
            "question+decode": slice(start, None),
        }[where]
        expected = [
            plain_log_prob(planted.module, prompt, trial, dict.fromkeys(heads, rows))
            for heads in sets
        ]
        np.testing.assert_allclose(found[:, column], expected, atol=2e-4)


def test_memory_only_splits_the_batch(model: HookedModel, design: NeedleDesign) -> None:
    sets = tuple((HeadId(layer, head),) for layer in range(5) for head in range(4))
    ablation = Ablation("zero")
    whole = gold_log_probs(model, design, sets, ablation, [3])
    split = gold_log_probs(model, design, sets, ablation, [3], memory_mb=1)
    np.testing.assert_allclose(split, whole, atol=1e-5)


def test_mean_ablation_writes_the_mean(model: HookedModel, design: NeedleDesign) -> None:
    """With a table of zeros it is zero ablation; with another one it is not."""
    sets = ((HeadId(3, 2),), (HeadId(3, 2), HeadId(0, 0)), ())
    table = dict.fromkeys(model.anatomy.all_heads(), torch.zeros(model.anatomy.d_v))
    loud = {head: value + 0.1 for head, value in table.items()}
    zero = gold_log_probs(model, design, sets, Ablation("zero"), [2])
    mean = gold_log_probs(model, design, sets, Ablation("mean", values=table), [2])
    other = gold_log_probs(model, design, sets, Ablation("mean", values=loud), [2])
    np.testing.assert_allclose(mean, zero, atol=1e-5)
    assert abs(other[0, 0] - zero[0, 0]) > 1e-3
    assert other[2, 0] == pytest.approx(zero[2, 0])


@pytest.mark.parametrize("mode", ["uniform", "knock_out", "streaming", "mean_query"])
def test_edits_inside_attention_hold_in_their_own_row(
    design: NeedleDesign, planted: PlantedRetrieval, mode: str
) -> None:
    """Each set alone gives what it gives beside the others; on a random model every head counts."""
    llama = wrap(tiny("llama", dtype=torch.float64), name="llama")
    short = shortened(design, 61)
    heads, asked = llama.anatomy.all_heads(), torch.randn(12, 8, dtype=torch.float64)
    table = dict(zip(heads, asked, strict=True)) if mode == "mean_query" else None
    ablation = Ablation(mode, values=table, sink=1, recent=2)
    sets = ((), (HeadId(0, 1),), (HeadId(1, 2), HeadId(2, 0)), (HeadId(0, 1), HeadId(2, 3)))
    together = gold_log_probs(llama, short, sets, ablation, [0])
    alone = [gold_log_probs(llama, short, (heads,), ablation, [0])[0, 0] for heads in sets]
    np.testing.assert_allclose(together[:, 0], alone, atol=1e-5)
    assert len(np.unique(np.round(alone, 6))) == 4


def shortened(design: NeedleDesign, vocab: int) -> NeedleDesign:
    """The first trial in a haystack of 24 tokens of a small vocabulary."""
    from dataclasses import replace

    from mnemoscope.data.facts.haystacks import Span

    trial = replace(
        design.trials[0], haystack=0, needle=Span(5, 12), answer=Span(9, 11),
        question_ids=(5, 9, 11, 4), answer_ids=(7, 30), length=24,
    )  # fmt: skip
    haystack = replace(design.haystacks[0], ids=tuple(3 + i * 7 % (vocab - 3) for i in range(24)))
    return replace(design, trials=(trial,), haystacks=(haystack,))


# -- curves ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> dict[str, AnswerCurve]:
    rankings = {
        "copy": (*planted.copy_heads, *planted.induction_heads),
        "noise": planted.noise_heads[:2],
        "suppression": (*planted.suppression_heads, *planted.inert_readers),
    }
    return answer_curves(model, design, rankings, (1, 2), draws=5, trials=TRIALS)


def test_the_copy_head_costs_the_answer_and_noise_does_not(curves: dict[str, AnswerCurve]) -> None:
    table = {name: curve_table(curve) for name, curve in curves.items()}
    assert table["copy"]["low"].min() > 5
    assert abs(table["noise"]["loss"][0]) < 1


def test_a_head_that_writes_against_the_answer_helps_by_its_absence(
    curves: dict[str, AnswerCurve],
) -> None:
    assert curves["suppression"].loss[0].mean() < 0


def test_random_heads_are_never_the_rankings_own(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> None:
    """Random heads of the copy head's layer: the noise and the inert reader. None costs 5 nats."""
    curve = answer_curve(model, design, planted.copy_heads, (1,), draws=20, trials=TRIALS)
    assert curve.random.shape == (20, 1, len(TRIALS))
    assert curve.random_loss.mean(axis=2).max() < 5 < curve.loss.mean()


def test_the_area_is_the_mean_loss_beyond_random(curves: dict[str, AnswerCurve]) -> None:
    curve = curves["copy"]
    area = area_beyond_random(curve)
    assert area.value == pytest.approx(curve.beyond.mean())  # two sizes weigh the same
    assert area.low < area.value < area.high
    assert area.against.p_loss == pytest.approx(1 / 6)
    assert area.against.effect == pytest.approx(curve.loss.mean())


def test_sizes_weigh_by_their_logarithm() -> None:
    np.testing.assert_allclose(size_weights((1, 2, 8)), np.array([1, 3, 2]) / 6)
    assert size_weights((5,)) == [1]


def test_intervals_are_over_needles(curves: dict[str, AnswerCurve]) -> None:
    """A needle asked about twice is one observation."""
    curve = curves["copy"]
    assert curve.needles == tuple(dict.fromkeys(curve.needles)) or len(set(curve.needles)) > 2
    row = curve_table(curve).row(0, named=True)
    assert row["loss"] == pytest.approx(curve.loss[0].mean())
    assert row["beyond"] == pytest.approx(curve.loss[0].mean() - curve.random_loss[:, 0].mean())
    assert row["low"] < row["loss"] < row["high"]


@pytest.mark.parametrize(("where", "costs"), [("question", True), ("decode", False)])
def test_the_locate_head_is_needed_while_asking_only(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign, where: str, costs: bool
) -> None:
    """What a decode-only ablation cannot see (1.6, and QRHead's failed reproduction)."""
    curve = answer_curve(
        model, design, planted.locate_heads, (1,), Ablation("zero", where), draws=2, trials=TRIALS
    )
    assert bool(curve.loss.mean() > 5) == costs


def test_no_head_of_the_null_model_costs_the_answer(design: NeedleDesign) -> None:
    null = null_retrieval_model()
    heads = [HeadId(layer, head) for layer in (1, 3, 4) for head in (0, 2)]
    curve = answer_curve(
        wrap(null.module, null.tokenizer), design, heads, (1, 3, 6), draws=9, trials=TRIALS
    )
    area = area_beyond_random(curve)
    assert area.low < 0 < area.high or abs(area.value) < 0.2


def test_perplexity_of_neutral_text_stands_beside_the_curve(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> None:
    text = planted.filler.split("\n\n")[:2]
    curve = answer_curve(
        model, design, planted.copy_heads, (1,), draws=2, trials=TRIALS[:2], texts=text
    )
    assert curve.perplexity is not None
    assert len(curve.perplexity) == 2
    hidden = answer_curve(
        model, design, planted.copy_heads, (1,), Ablation("knock_out"),
        draws=2, trials=TRIALS[:2], texts=text,
    )  # fmt: skip
    assert hidden.perplexity is None  # plain text has no needle


def test_an_interrupted_measurement_goes_on(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise StopError

    rankings = {"copy": planted.copy_heads}
    whole = answer_curves(model, design, rankings, (1,), draws=3, trials=TRIALS)["copy"]
    with open_run(tmp_path, "curves", {}) as run, pytest.raises(StopError):
        answer_curves(model, design, rankings, (1,), draws=3, trials=TRIALS, run=run, progress=stop)
    with open_run(tmp_path, "curves", {}) as run:
        assert 0 < len(run.done) < len({design.trials[i].haystack for i in TRIALS})
        rest = answer_curves(model, design, rankings, (1,), draws=3, trials=TRIALS, run=run)
        np.testing.assert_array_equal(rest["copy"].random, whole.random)
        other = {"copy": planted.induction_heads}
        with pytest.raises(MnemoscopeError, match="kept other head sets"):
            answer_curves(model, design, other, (1,), draws=3, trials=TRIALS, run=run)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 3)])
def test_sizes_that_do_not_fit_are_refused(
    model: HookedModel, design: NeedleDesign, sizes: tuple[int, ...]
) -> None:
    with pytest.raises(MnemoscopeError, match="sizes must grow"):
        answer_curve(model, design, [HeadId(0, 0), HeadId(0, 1)], sizes)


def test_ablations_that_rows_cannot_share_are_refused() -> None:
    for mode, where in (("resample", "decode"), ("zero", "prefill"), ("zero", "both")):
        with pytest.raises(MnemoscopeError, match="no curve of"):
            Ablation(mode, where)


def test_values_that_are_missing_are_refused(model: HookedModel, design: NeedleDesign) -> None:
    with pytest.raises(MnemoscopeError, match="needs values"):
        gold_log_probs(model, design, ((HeadId(0, 0),),), Ablation("mean"), [0])
