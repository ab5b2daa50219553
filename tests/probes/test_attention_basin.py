"""The attention basin: orders, spans, and means against whole rows of attention."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from families import tiny
from mnemoscope.models import HookedModel, load_model, wrap
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.types import TokenSpan
from mnemoscope.probes.attention_basin import (
    BasinPrompt,
    basin,
    basin_prompts,
    measure_basin,
)


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


def test_the_basin_is_the_edges_less_the_middle() -> None:
    assert basin(np.array([0.4, 0.1, 0.2, 0.3])) == pytest.approx(0.35 - 0.15)
    level = np.full((2, 3, 5), 0.2)
    np.testing.assert_allclose(basin(level), np.zeros((2, 3)), atol=1e-12)
    assert np.isnan(basin(np.array([np.nan, 0.1, 0.2])))
    with pytest.raises(MnemoscopeError, match="no middle"):
        basin(np.array([0.5, 0.5]))


def test_every_document_stands_in_every_slot_once(engram: HookedModel) -> None:
    prompts = basin_prompts(engram, documents=5, length=20, rounds=2)
    assert [prompt.unit for prompt in prompts] == [0] * 5 + [1] * 5
    for turn in (0, 1):
        stands = Counter(
            (prompt.context[span.start : span.stop], slot)
            for prompt in prompts
            if prompt.unit == turn
            for slot, span in enumerate(prompt.slots)
        )
        assert set(stands.values()) == {1}
        assert len(stands) == 25
        assert len({document for document, _ in stands}) == 5
        assert {len(document) for document, _ in stands} == {20}
    first, second = prompts[0], prompts[5]
    assert first.context != second.context
    text = engram.text_tokenizer.decode(first.context)
    assert text.count("\nText:") == 5
    assert first.context[0] == engram.text_tokenizer.bos_token_id
    assert engram.text_tokenizer.decode(first.question).endswith("Answer:")


def test_means_are_those_of_the_rows(engram: HookedModel) -> None:
    prompt = basin_prompts(engram, documents=3, length=15, rounds=2)[1]
    found = measure_basin(engram, [prompt], max_new_tokens=4)
    ids = [*prompt.context, *prompt.question]
    ids += engram.generate(engram.batch([ids]), 4)[0][:-1]
    rows = engram.rows(engram.batch([ids]), "all")[:, 0]
    end = len(prompt.context) + len(prompt.question) - 1
    for slot, span in enumerate(prompt.slots):
        mass = rows[..., span.start : span.stop].sum(-1)
        question, answer = mass[..., len(prompt.context) : end], mass[..., end:]
        # bfloat16 states differ a little between one pass and a cached one
        np.testing.assert_allclose(found.question[0, ..., slot], question.mean(-1), atol=0.02)
        np.testing.assert_allclose(found.answer[0, ..., slot], answer.mean(-1), atol=0.02)


def test_rounds_are_the_units_of_the_interval(engram: HookedModel) -> None:
    prompts = basin_prompts(engram, documents=3, length=12, rounds=3)
    calls: list[tuple[int, int]] = []
    found = measure_basin(
        engram, prompts, max_new_tokens=1, progress=lambda *done: calls.append(done)
    )
    assert calls[-1] == (9, 9)
    statistics = found.statistics("question")
    assert (statistics.n_needles == 3).all()
    assert (statistics.n_trials == 9).all()
    np.testing.assert_allclose(statistics.mean, basin(found.profile("question")), atol=1e-6)


def test_a_slot_out_of_sight_is_no_zero() -> None:
    model = wrap(tiny("mistral"))  # sees itself and five tokens back
    slots = tuple(TokenSpan(i, i + 4) for i in (0, 4, 8))
    prompt = BasinPrompt(0, tuple(range(3, 15)), slots, (20, 21, 22))
    found = measure_basin(model, [prompt], max_new_tokens=1)
    assert np.isnan(found.question[..., 0]).all()
    assert (found.question[..., 2] > 0).all()
    assert np.isnan(basin(found.question)).all()


@pytest.mark.parametrize("options", [{"documents": 2}, {"rounds": 1}, {"length": 0}])
def test_too_few_documents_are_refused(engram: HookedModel, options: dict[str, int]) -> None:
    with pytest.raises(MnemoscopeError, match="three documents, two rounds and one token"):
        basin_prompts(engram, **options)


def test_prompts_that_do_not_fit_are_refused(engram: HookedModel) -> None:
    with pytest.raises(PromptError, match="1024"):
        measure_basin(engram, basin_prompts(engram, documents=20, length=60, rounds=2)[:1])
    with pytest.raises(MnemoscopeError, match="as many documents"):
        measure_basin(engram, [])
