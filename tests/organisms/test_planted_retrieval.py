"""The planted retrieval model is what it says: every claim is recomputed with plain forwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from mnemoscope.data.facts.needles import NeedleDesign, Trial, judge
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    frame,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from torch import Tensor


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def null() -> PlantedRetrieval:
    return null_retrieval_model()


@pytest.fixture(scope="module")
def design(planted: PlantedRetrieval) -> NeedleDesign:
    return planted_retrieval_design(planted)


# ---- plain forward passes, written here and nowhere else


def logits(model: PlantedRetrieval, ids: Iterable[int]) -> Tensor:
    """`[token, word]`."""
    with torch.no_grad():
        return model.module(torch.tensor([list(ids)])).logits[0]


def said(model: PlantedRetrieval, prompt: tuple[int, ...], longest: int = 6) -> str:
    """The greedy continuation up to the end of text."""
    new: list[int] = []
    while len(new) < longest:
        word = int(logits(model, (*prompt, *new))[-1].argmax())
        if word == model.tokenizer.eos_token_id:
            break
        new.append(word)
    return model.decode(new)


def rows(model: PlantedRetrieval, ids: Iterable[int], head: HeadId) -> Tensor:
    """`[query, key]` attention of one head, recomputed from queries and keys."""
    attn = model.module.transformer.h[head.layer].attn
    seen: list[Tensor] = []
    handle = attn.c_attn.register_forward_hook(lambda _m, _args, out: seen.append(out[0]))
    logits(model, ids)
    handle.remove()
    q, k, _ = (
        part.unflatten(-1, (-1, attn.head_dim))[:, head.head] for part in seen[0].chunk(3, -1)
    )
    scores = q @ k.T / attn.head_dim**0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


@contextmanager
def ablated(model: PlantedRetrieval, head: HeadId, rows: slice = slice(None)) -> Iterator[None]:
    """Zero the head's output in some rows."""
    attn = model.module.transformer.h[head.layer].attn
    columns = slice(head.head * attn.head_dim, (head.head + 1) * attn.head_dim)

    def zero(_module: object, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z[:, rows, columns] = 0
        return (z,)

    handle = attn.c_proj.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def forced(design: NeedleDesign, trial: Trial) -> tuple[tuple[int, ...], int]:
    """The prompt with its answer, and the position of END."""
    prompt = design.prompt(trial)
    return prompt + trial.answer_ids, len(prompt) - 1


# ---- behaviour


def test_it_answers_every_trial_from_its_needle(
    planted: PlantedRetrieval, design: NeedleDesign
) -> None:
    for trial in design.trials[::6]:
        needle, rivals = design.needle(trial.needle_id), design.rivals(trial)
        text = said(planted, design.prompt(trial))
        assert text == f"{needle.answer} ."
        assert judge(text, needle, rivals) == "needle"
        assert said(planted, design.control(trial)) == "."


def test_it_answers_paraphrases_at_the_full_length_of_its_context(
    planted: PlantedRetrieval,
) -> None:
    design = planted_retrieval_design(
        planted, lengths=(1000,), needles_per_haystack=4, rounds=1, paraphrased=True
    )
    for trial in [trial for trial in design.trials if trial.haystack == 2][:2]:  # both questions
        assert trial.length == 1000
        needle = design.needle(trial.needle_id)
        assert said(planted, design.prompt(trial)) == f"{needle.answer} ."


def test_the_null_model_finds_nothing(null: PlantedRetrieval, design: NeedleDesign) -> None:
    for trial in design.trials[::9]:
        assert said(null, design.prompt(trial)) == "."


def test_its_texts_have_no_unknown_word(planted: PlantedRetrieval, design: NeedleDesign) -> None:
    unknown = planted.tokenizer.unk_token_id
    assert all(unknown not in design.prompt(trial) for trial in design.trials)
    assert unknown not in planted.encode(planted.filler)
    assert design.start == (planted.tokenizer.bos_token_id,)


# ---- heads


def test_each_head_attends_where_it_should(planted: PlantedRetrieval, design: NeedleDesign) -> None:
    for trial in design.trials[::11]:
        ids, end = forced(design, trial)
        first, second = trial.answer.start, trial.answer.start + 1
        copy, inert, against = (
            rows(planted, ids, group[0])
            for group in (planted.copy_heads, planted.inert_readers, planted.suppression_heads)
        )
        for reader in (copy, inert, against):
            assert reader[end, first] > 0.99
            assert reader[end + 1, second] > 0.99
            assert reader[end + 2, 0] > 0.98  # the answer is told: back to <bos>
        induction = rows(planted, ids, planted.induction_heads[0])
        assert induction[end, trial.needle.start : trial.needle.stop].sum() < 1e-3
        assert induction[end + 1, second] > 0.99
        locate = rows(planted, ids, planted.locate_heads[0])
        assert (locate[end - 3 : end, first - 1] > 0.99).all()
        assert (locate[end:, 0] > 0.99).all()
        assert (rows(planted, ids, planted.sink_heads[0])[:, 0] > 0.99).all()
        for head, offset in zip(planted.offset_heads, (2, 1, 3), strict=True):
            assert (rows(planted, ids, head).diagonal(-offset) > 0.99).all()


def test_what_each_head_is_worth_to_the_answer(
    planted: PlantedRetrieval, design: NeedleDesign
) -> None:
    """In logits of FIRST at END and of SECOND at FIRST; later layers answer what earlier ones say:
    without the copy head there is nothing to suppress at END."""
    trial = design.trials[5]
    ids, end = forced(design, trial)

    def told() -> Tensor:
        out = logits(planted, ids)
        return torch.stack([out[end, trial.answer_ids[0]], out[end + 1, trial.answer_ids[1]]])

    whole = told()
    torch.testing.assert_close(whole, torch.tensor([6.0, 11.0]), atol=0.3, rtol=0)
    expected = {
        planted.copy_heads[0]: (0.0, 3.5),
        planted.induction_heads[0]: (6.0, 6.0),
        planted.suppression_heads[0]: (10.0, 15.0),
        planted.inert_readers[0]: (6.0, 11.0),
        planted.sink_heads[0]: (6.0, 11.0),
        planted.duplicate_heads[0]: (6.0, 11.0),
        planted.locate_heads[0]: (0.0, 3.5),
        planted.question_heads[0]: (0.0, 3.5),
    }
    for head, logit in expected.items():
        with ablated(planted, head):
            torch.testing.assert_close(told(), torch.tensor(logit), atol=0.8, rtol=0)
    for head in planted.noise_heads:
        with ablated(planted, head):
            torch.testing.assert_close(told(), whole, atol=0.2, rtol=0)


def test_the_copy_head_depends_on_the_locate_head_in_the_question(
    planted: PlantedRetrieval, design: NeedleDesign
) -> None:
    trial = design.trials[7]
    ids, end = forced(design, trial)
    copy, answer = planted.copy_heads[0], trial.answer.start
    locate = planted.locate_heads[0]
    with ablated(planted, locate, slice(None, end)):  # haystack and question, not END
        assert rows(planted, ids, copy)[end, answer] < 0.01
    with ablated(planted, locate, slice(end, None)):
        assert rows(planted, ids, copy)[end, answer] > 0.99


def test_every_head_has_one_role(planted: PlantedRetrieval, null: PlantedRetrieval) -> None:
    for model in (planted, null):
        groups = [value for name, value in vars(model).items() if name.endswith(("heads", "ers"))]
        heads = [head for group in groups for head in group]
        assert sorted(heads) == [HeadId(i, h) for i in range(5) for h in range(4)]
    assert len(null.noise_heads) == 20


def test_wave_codes_tell_a_thousand_positions_apart() -> None:
    basis = frame.lay_out({"position": 126})["position"]
    codes = frame.wave_codes(basis, 1024)
    products = codes @ codes.T
    torch.testing.assert_close(products.diagonal(), torch.ones(1024, dtype=torch.float64))
    assert (products - torch.eye(1024)).abs().max() < 0.3
    match = frame.wave_match(basis, 3, score=5.0)
    scores = (codes @ match.read.T) @ (codes @ match.write.T).T  # [query, key]
    torch.testing.assert_close(scores.diagonal(-3), torch.full((1021,), 5.0, dtype=torch.float64))


def test_nothing_to_copy_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="null_retrieval_model"):
        planted_retrieval_model(c_copy=0.0)
