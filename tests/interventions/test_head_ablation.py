"""Every way of ablating heads, in every part of a trial, against one plain pass over the trial."""

from __future__ import annotations

from typing import Any

import numpy as np
import plain
import pytest
import torch
from families import ids
from mnemoscope.interventions.head_ablation import (
    Mode,
    Where,
    ablation_edits,
    ablation_rows,
    resample_edits,
    run_answer,
    trial_outputs,
    with_span,
)
from mnemoscope.interventions.head_means import head_write_norms
from mnemoscope.models import (
    Edit,
    HeadId,
    HookedModel,
    MnemoscopeError,
    Site,
    StreamId,
    TokenSpan,
    load_model,
    zero,
)
from mnemoscope.models.errors import EditNeverFiredError, PromptError, UnitOutOfRangeError
from mnemoscope.results.controls import matched_random_heads
from plain import close, noise
from torch import Tensor

TOKENS = ids(1, 18)[0].tolist()
HAYSTACK, QUESTION, ANSWER = TOKENS[:11], TOKENS[11:15], TOKENS[15:]
END = 14
NEEDLE = TokenSpan(3, 6)
HEADS = (HeadId(2, 1), HeadId(0, 3), HeadId(2, 0))
SETS = ((HEADS[0],), (), (HEADS[1], HEADS[0]), HEADS)
FAMILIES = ("llama", "gemma3", "gpt2")
ROWS: dict[Where, range] = {
    "prefill": range(END),
    "question": range(11, END),
    "decode": range(END, 17),
    "question+decode": range(11, 17),
    "both": range(17),
}
"""The positions whose heads are ablated."""


def told(mode: Mode, model: HookedModel) -> dict[str, Any]:
    """What a mode needs beside heads."""
    values = dict(zip(HEADS, noise(3, model.anatomy.d_v), strict=True))
    needs: dict[str, dict[str, Any]] = {
        "mean": {"values": values},
        "mean_query": {"values": values},
        "knock_out": {"spans": [NEEDLE]},
        "streaming": {"sink": 1, "recent": 3},
    }
    return needs.get(mode, {})


MODES: tuple[Mode, ...] = ("zero", "mean", "uniform", "mean_query", "knock_out", "streaming")


def whole(model: HookedModel, edits: Any = ()) -> Tensor:
    """Log-probabilities `[answer, d_vocab]` of one pass over the whole trial."""
    batch = model.batch([TOKENS[:17]])
    if not edits:
        return model.logits(batch)[0, END:].float().log_softmax(-1)
    with model.intervene(edits):
        return model.logits(batch)[0, END:].float().log_softmax(-1)


def of_gold(log_probs: Tensor) -> Tensor:
    return log_probs[torch.arange(3), torch.tensor(ANSWER)]


# -- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablation_holds_where_it_is_said_to(family: str, where: Where) -> None:
    model = plain.model_of(family)
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, ablation_edits("zero", HEADS), where)
    want = whole(model, [zero(HEADS, positions=tuple(ROWS[where]), phase="prefill")])
    close(run.log_probs[0], of_gold(want), plain.SINGLE)
    assert run.choices[0].tolist() == want.argmax(-1).tolist()
    assert (of_gold(want) - of_gold(whole(model))).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mode_in_all_three_passes_is_one_pass(family: str, mode: Mode) -> None:
    model = plain.model_of(family)
    edits = ablation_edits(mode, HEADS, **told(mode, model))
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits)
    close(run.log_probs[0], of_gold(whole(model, edits)), plain.SINGLE)
    assert (run.log_probs[0] - of_gold(whole(model))).abs().max() > 1e-4


def test_without_edits_nothing_changes() -> None:
    model = plain.model_of("llama")
    assert ablation_edits("zero", ()) == ()
    for where in ROWS:
        run = run_answer(model, HAYSTACK, QUESTION, ANSWER, (), where)
        close(run.log_probs[0], of_gold(whole(model)), plain.SINGLE)


@pytest.mark.parametrize("mode", MODES)
def test_decoding_under_an_ablation_leaves_the_cache_alone(mode: Mode) -> None:
    model = plain.model_of("llama")
    cached = model.prefill(HAYSTACK)
    held = [(layer.keys.clone(), layer.values.clone()) for layer in cached.cache.layers]
    edits = ablation_edits(mode, HEADS, **told(mode, model))
    for where in ("decode", "question", "question+decode"):
        again = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, where, cached=cached)
        fresh = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, where)
        assert torch.equal(again.log_probs, fresh.log_probs)
    for layer, (keys, values) in zip(cached.cache.layers, held, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_an_edit_may_be_silent_in_the_haystack_but_not_everywhere() -> None:
    model = plain.model_of("llama")
    late = ablation_edits("streaming", HEADS, sink=4, recent=9)  # hides a key from position 13 on
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, late, "both")
    close(run.log_probs[0], of_gold(whole(model, late)), plain.SINGLE)
    never = ablation_edits("streaming", HEADS, sink=4, recent=15)
    with pytest.raises(EditNeverFiredError):
        run_answer(model, HAYSTACK, QUESTION, ANSWER, never, "both")


def test_a_question_of_one_token() -> None:
    model = plain.model_of("llama")
    edits = ablation_edits("zero", HEADS)
    run = run_answer(model, TOKENS[:14], TOKENS[14:15], ANSWER, edits, "prefill")
    same = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, "prefill")
    close(run.log_probs, same.log_probs)


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["decode", "question+decode"])
@pytest.mark.parametrize("mode", MODES)
def test_rows_ablate_their_own_sets(mode: Mode, where: Where) -> None:
    model = plain.model_of("llama")
    more = told(mode, model)
    edits = ablation_rows(mode, SETS, **more)
    together = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, where, rows=4)
    assert together.log_probs.shape == together.choices.shape == (4, 3)
    for row, heads in enumerate(SETS):
        alone = ablation_edits(mode, heads, **more)
        one = run_answer(model, HAYSTACK, QUESTION, ANSWER, alone, where)
        close(together.log_probs[row], one.log_probs[0], plain.SINGLE)


def test_a_set_named_for_one_row_is_for_all() -> None:
    model = plain.model_of("llama")
    edits = ablation_rows("uniform", [HEADS])
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, "decode", rows=2)
    assert torch.equal(run.log_probs[0], run.log_probs[1])


# -- outputs of another trial ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_resampled_outputs_are_those_of_the_other_trial(family: str, where: Where) -> None:
    model = plain.model_of(family)
    other = with_span(HAYSTACK, NEEDLE, [7, 8, 9])
    outputs = trial_outputs(model, other, QUESTION, ANSWER, HEADS)
    edits = resample_edits(HEADS, outputs)
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits, where)
    z = model.capture(model.batch([[*other, *TOKENS[11:17]]]), (Site.Z,))
    value = torch.stack([z[Site.Z, head.layer][:, :, head.head] for head in HEADS], dim=2)
    cells = tuple(ROWS[where])
    by_hand = Edit("set", HEADS, value, positions=cells, phase="prefill")
    close(run.log_probs[0], of_gold(whole(model, [by_hand])), plain.SINGLE)


def test_resampling_a_trial_by_itself_changes_nothing() -> None:
    model = plain.model_of("llama")
    edits = resample_edits(HEADS, trial_outputs(model, HAYSTACK, QUESTION, ANSWER, HEADS))
    assert list(edits) == ["haystack", "question", "answer"]
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, edits)
    close(run.log_probs[0], of_gold(whole(model)), plain.SINGLE)


def test_resampled_rows_have_sets_of_their_own() -> None:
    model = plain.model_of("llama")
    outputs = trial_outputs(model, with_span(HAYSTACK, NEEDLE, [7, 8, 9]), QUESTION, ANSWER, HEADS)
    passes = {name: ablation_rows("resample", SETS, values=v) for name, v in outputs.items()}
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, passes, "question+decode", rows=4)
    for row, heads in enumerate(SETS):
        one = run_answer(
            model, HAYSTACK, QUESTION, ANSWER, resample_edits(heads, outputs), "question+decode"
        )
        close(run.log_probs[row], one.log_probs[0], plain.SINGLE)


# -- what an ablation amounts to ------------------------------------------------------------------


def test_zero_in_all_heads_of_a_layer_takes_attention_away() -> None:
    model = plain.model_of("llama")
    every = [HeadId(1, head) for head in range(4)]
    run = run_answer(model, HAYSTACK, QUESTION, ANSWER, ablation_edits("zero", every))
    without = whole(model, [zero([StreamId(1, Site.ATTN_OUT)])])
    close(run.log_probs[0], of_gold(without), plain.SINGLE)


def test_controls_share_no_head_with_their_targets() -> None:
    model = load_model("engram")
    norms = head_write_norms(model, ["Anna lives in a small house.", "The river runs to the sea."])
    anatomy = model.anatomy
    target = [HeadId(1, 0), HeadId(1, 5), HeadId(4, 2)]
    drawn = matched_random_heads(target, anatomy.n_layers, anatomy.n_heads, seed=0, norms=norms)
    assert len(drawn.draws) >= 20
    for controls in drawn.draws:
        assert not set(controls) & set(target)
        assert [head.layer for head in controls] == [head.layer for head in target]
    gaps = np.abs(norms[1] - norms[1, 0])
    often = np.bincount([draw[0].head for draw in drawn.draws], minlength=8)
    free = [head for head in range(8) if HeadId(1, head) not in target]
    near = sorted(free, key=lambda head: gaps[head])
    assert often[near[:3]].sum() > often[near[3:]].sum()


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda m: ablation_edits("blur", HEADS), MnemoscopeError, "knows no 'blur'"),
        (lambda m: ablation_edits("mean", HEADS), MnemoscopeError, "needs values"),
        (lambda m: ablation_edits("zero", HEADS, values={}), MnemoscopeError, "takes no values"),
        (
            lambda m: ablation_edits("mean", HEADS, values={}),
            MnemoscopeError,
            "no values for L2.H1",
        ),
        (lambda m: ablation_edits("zero", HEADS * 2), MnemoscopeError, "named twice"),
        (lambda m: with_span(HAYSTACK, NEEDLE, [1, 2]), PromptError, "2 tokens do not fit"),
        (lambda m: with_span(HAYSTACK, TokenSpan(9, 12), [1, 2, 3]), PromptError, "11 tokens"),
        (lambda m: run_answer(m, [], QUESTION, ANSWER), PromptError, "one is empty"),
        (lambda m: run_answer(m, HAYSTACK, QUESTION, []), PromptError, "one is empty"),
        (
            lambda m: run_answer(m, HAYSTACK, [5], ANSWER, [zero(HEADS)], "question"),
            PromptError,
            "no token before END",
        ),
        (
            lambda m: run_answer(m, HAYSTACK, QUESTION, ANSWER, (), "there"),
            MnemoscopeError,
            "where",
        ),
        (lambda m: run_answer(m, HAYSTACK, QUESTION, ANSWER, rows=0), MnemoscopeError, "too few"),
        (
            lambda m: run_answer(m, HAYSTACK, QUESTION, ANSWER, cached=m.prefill(HAYSTACK)),
            MnemoscopeError,
            "leave cached out",
        ),
        (
            lambda m: run_answer(
                m, HAYSTACK, QUESTION, ANSWER, (), "decode", cached=m.prefill([5])
            ),
            MnemoscopeError,
            "not this haystack",
        ),
        (
            lambda m: trial_outputs(m, HAYSTACK, QUESTION, ANSWER, [HeadId(3, 0)]),
            UnitOutOfRangeError,
            "layer 3",
        ),
        (lambda m: run_answer(m, TOKENS * 4, QUESTION, ANSWER), PromptError, "64"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        call(plain.model_of("llama"))
