"""LOCOS: what a head writes from the needle, its identities, and heads of known roles."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.haystacks import Span
from mnemoscope.data.facts.needles import NeedleDesign, Trial, build_needle_design, make_needles
from mnemoscope.interventions.end_chain import EndChain
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HeadId, Site, load_model, wrap
from mnemoscope.models.anatomy import head_output_weights, part
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.tokens import encode
from mnemoscope.organisms.planted_retrieval import (
    COPY,
    INDUCTION,
    INERT,
    SUPPRESSION,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.write_scores import WriteScores, head_roles, measure_writes, trial_writes
from mnemoscope.results.run_folder import open_run
from plain import model_of

HAYSTACK = tuple(range(3, 23))
TRIAL = Trial(
    haystack=0,
    needle_id="tiny",
    kind="literal",
    question=0,
    question_ids=(40, 9, 33),
    answer_ids=(20, 21, 50),
    needle=Span(16, 20),  # half in sight of Mistral's window of six
    answer=Span(17, 19),  # tokens 20 and 21: the third answer token is not in the needle
    length=20,
    depth=0.5,
    stratum=0,
    at_border=True,
)
ROW = (*HAYSTACK, *TRIAL.question_ids, *TRIAL.answer_ids[:-1])
POSITIONS = torch.tensor([[22, 23, 24]])  # END and the answer but its last token


def phi(family: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`phi[layer, head, row, key]` = weight x (u_y W_O v), key by key; the rows; `u_y W_O z`.

    Pre-norm family with an RMS final norm of weight w and no other norm on the way.
    """
    model = model_of(family)
    batch = model.batch([ROW])
    kept = model.capture(batch, [Site.Z, Site.RESID_POST], at=POSITIONS)
    values = model.capture(batch, [Site.V]).stack(Site.V)[:, 0]  # [layer, key, kv_head, d]
    values = values.repeat_interleave(4 // values.shape[2], dim=2)
    rows = model.rows(batch, POSITIONS)[:, 0].double()
    x, norm = kept[Site.RESID_POST, 2][0], model.module.model.norm
    scale = (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    u = model.module.lm_head.weight[list(TRIAL.answer_ids)] * norm.weight * scale
    blocks = part(model.module, model.anatomy.spec.blocks)
    w_o = torch.stack([head_output_weights(b.self_attn.o_proj, 4) for b in blocks])
    written = torch.einsum("lhvd,lkhv,rd->lhrk", w_o, values, u).detach()
    whole = torch.einsum("lhvd,lrhv,rd->lhr", w_o, kept.stack(Site.Z)[:, 0], u).detach()
    return rows * written, rows, whole


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_writes_are_those_of_a_sum_over_single_keys(family: str) -> None:
    by_key, rows, by_head = phi(family)
    # The identity that makes it cheap: the sum over all keys is u W_O z.
    torch.testing.assert_close(by_key.sum(-1), by_head, rtol=0, atol=1e-6)
    seen = rows > 0
    needle = torch.zeros(len(ROW), dtype=torch.bool)
    needle[TRIAL.needle.start : TRIAL.needle.stop] = True
    inside = by_key[..., needle].sum(-1)
    m, rest = (seen & needle).sum(-1), (seen & ~needle).sum(-1)
    contrast = inside - m / rest * (by_key.sum(-1) - inside)
    own = torch.stack([by_key[:, :, 0, 17], by_key[:, :, 1, 18], torch.zeros(3, 4)], dim=-1)
    want = torch.stack([rows[..., needle].sum(-1), inside, contrast, own, by_head])
    want = want.masked_fill(m == 0, torch.nan).nanmean(-1).float()
    model = model_of(family)
    got, logit = trial_writes(build_chain(model), model.prefill(HAYSTACK), TRIAL)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6, equal_nan=True)
    logits = model.logits(model.batch([ROW]), POSITIONS)[0]
    assert logit == pytest.approx(logits[range(3), TRIAL.answer_ids].mean().item(), abs=1e-6)


def test_a_needle_behind_the_window_is_not_applicable() -> None:
    model = model_of("mistral")
    early = replace(TRIAL, needle=Span(2, 6), answer=Span(3, 5))
    scores, _ = trial_writes(build_chain(model), model.prefill(HAYSTACK), early)
    assert bool(scores.isnan().all())


# -- the oracle -----------------------------------------------------------------------------------


@cache
def oracle(null: bool = False) -> tuple[EndChain, NeedleDesign, WriteScores]:
    planted = null_retrieval_model() if null else planted_retrieval_model()
    chain = build_chain(wrap(planted.module, planted.tokenizer, self_test=False))
    design = planted_retrieval_design(planted, lengths=(64, 96), needles_per_haystack=3, rounds=1)
    return chain, design, measure_writes(chain, design)


def of(values: np.ndarray, head: HeadId) -> float:
    return float(values.mean(0)[head.layer, head.head])


def test_planted_strengths_are_read_off_in_logits() -> None:
    _, _, scores = oracle()
    assert of(scores.contrast, COPY) == pytest.approx(10, abs=0.3)
    assert of(scores.contrast, SUPPRESSION) == pytest.approx(-4, abs=0.3)
    # Five logits, at the second of two answer tokens only.
    assert of(scores.contrast, INDUCTION) == pytest.approx(2.5, abs=0.2)
    assert of(scores.copied, COPY) == pytest.approx(of(scores.write, COPY), rel=1e-3)
    # It reads what the copy head reads, and writes nothing.
    assert of(scores.read, INERT) == pytest.approx(of(scores.read, COPY), abs=0.01)
    assert abs(of(scores.whole, INERT)) < 0.2


def test_roles_are_the_planted_ones() -> None:
    found = head_roles(oracle()[2])
    for head, role in (
        (COPY, "copy"),
        (INDUCTION, "copy"),
        (SUPPRESSION, "suppress"),
        (INERT, "inert"),
    ):
        assert found.role[head.layer, head.head] == role
    assert (found.role != "inert").sum() == 3
    assert found.read[INERT.layer, INERT.head] > 0.9
    assert np.isnan(found.copied_share[INERT.layer, INERT.head])


def test_what_is_written_from_other_words_is_semantic() -> None:
    scores = oracle()[2]
    found = head_roles(replace(scores, copied=0.3 * scores.write))
    assert found.role[COPY.layer, COPY.head] == "semantic"


def test_the_null_model_writes_nothing() -> None:
    scores = oracle(null=True)[2]
    assert np.abs(scores.contrast.mean(0)).max() < 0.2


def test_chosen_trials_and_accepted_ones() -> None:
    chain, design, scores = oracle()
    some = measure_writes(chain, design, trials=[4, 1])
    assert some.units == (design.trials[1].needle_id, design.trials[4].needle_id)
    np.testing.assert_allclose(some.contrast, scores.contrast[[1, 4]], atol=1e-5)
    accepted = np.arange(len(scores.units)) < 12
    half = head_roles(scores, accepted=accepted)
    np.testing.assert_allclose(half.contrast.mean, scores.contrast[:12].mean(0), atol=1e-6)
    with pytest.raises(MnemoscopeError, match="1 of 24 trials with 1 different"):
        head_roles(scores, accepted=np.arange(24) == 3)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    chain, design, scores = oracle()

    def pull_the_plug(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "writes", {"a": 1}) as run:
        measure_writes(chain, design, run=run, progress=pull_the_plug)
    with open_run(tmp_path, "writes", {"a": 1}) as run:
        assert len(run.done) == 1
        again = measure_writes(chain, design, run=run)
    np.testing.assert_array_equal(again.contrast, scores.contrast)
    np.testing.assert_array_equal(again.logit, scores.logit)


def test_bad_input_is_refused() -> None:
    chain, design, _ = oracle()
    with pytest.raises(MnemoscopeError, match="no trials"):
        measure_writes(chain, design, trials=[])
    with pytest.raises(MnemoscopeError, match="0 to 23"):
        measure_writes(chain, design, trials=[24])
    long = replace(design.trials[0], question_ids=(5,) * 2000)
    with pytest.raises(PromptError, match="1024"):
        measure_writes(chain, replace(design, trials=(long,)))


# -- a trained model ------------------------------------------------------------------------------


def test_engram_copies_with_heads_of_layer_four() -> None:
    model = load_model("engram")

    def ids(text: str) -> list[int]:
        return encode(model.text_tokenizer, text)

    design = build_needle_design(
        make_needles("literal", 10, seed=1),
        ids,
        lambda row: str(model.text_tokenizer.decode(list(row))),
        lengths=(200,),
        depths=5,
        needles_per_haystack=5,
        rounds=1,
    )
    scores = measure_writes(build_chain(model), design)
    best = np.argsort(-scores.contrast.mean(0).ravel())[:3]
    assert {int(i) // 8 for i in best} == {4}
    # They copy: nearly all of it comes from the predicted token's own place.
    share = scores.copied.mean(0).ravel()[best] / scores.write.mean(0).ravel()[best]
    assert (share > 0.8).all()
