"""Induction and echo on repeated random tokens, against rows read one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.models import HookedModel, load_model, wrap
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.organisms.engram.filler import COMMON_WORDS
from mnemoscope.probes import induction_heads
from mnemoscope.probes.induction_heads import measure_induction, plain_tokens, random_rows


def expected(model: HookedModel, length: int, before: list[int], between: list[int]) -> np.ndarray:
    """`[score, sequence, layer, head]` from whole rows of attention."""
    found = []
    for once in random_rows(plain_tokens(model), 3, length, 0).tolist():
        ids = [*before, *once, *between, *once]
        rows = model.rows(model.batch([ids]), "all")[:, 0]
        first, second = len(before), len(before) + length + len(between)
        echo = torch.stack([rows[..., second + i, first + i] for i in range(length)])
        after = torch.stack([rows[..., second + i, first + i + 1] for i in range(length)])
        everything = rows[..., second : second + length, first : first + length + 1].sum(-1)
        others = (everything.movedim(-1, 0) - echo - after) / (length - 1)
        found.append(torch.stack([after, echo, others]).mean(1))
    return torch.stack(found, dim=1).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gptj"])
@pytest.mark.parametrize("around", [([], []), ([5, 6, 7], [8, 9])])
def test_scores_are_the_mean_weights_of_the_second_copy(
    family: str, around: tuple[list[int], list[int]]
) -> None:
    model = wrap(tiny(family))
    before, between = around
    # Gemma-2's sliding layers see five tokens back; a copy of three stays inside.
    length = 3 if family == "gemma2" and not between else 12 if family != "gemma2" else 2
    scores = measure_induction(model, sequences=3, length=length, before=before, between=between)
    read = np.stack([scores.induction, scores.echo, scores.other])
    np.testing.assert_allclose(read, expected(model, length, before, between), atol=1e-5)


def test_reading_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(tiny("qwen3"))
    whole = measure_induction(model, sequences=4, length=11)
    monkeypatch.setattr(induction_heads, "_QUERIES", 3)
    monkeypatch.setattr(induction_heads, "_RESULT_BYTES", 1)
    calls: list[tuple[int, int]] = []
    pieces = measure_induction(
        model, sequences=4, length=11, progress=lambda *done: calls.append(done)
    )
    np.testing.assert_allclose(pieces.induction, whole.induction, atol=1e-6)
    np.testing.assert_allclose(pieces.other, whole.other, atol=1e-6)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_windowed_head_that_cannot_see_so_far_has_no_score() -> None:
    model = wrap(tiny("mistral"))  # sees itself and five tokens back
    near, border, far = (measure_induction(model, sequences=2, length=n) for n in (5, 6, 7))
    assert np.isfinite(near.echo).all()
    assert np.isnan(border.echo).all()
    assert np.isfinite(border.induction).all()
    assert np.isnan(far.induction).all()


def test_tokens_are_plain_different_and_drawn_by_the_seed() -> None:
    model = load_model("engram")
    special = set(model.text_tokenizer.all_special_ids)
    assert special
    assert not special & set(plain_tokens(model))
    drawn = random_rows(range(10, 40), 5, 20, seed=3)
    assert drawn.shape == (5, 20)
    assert all(len(set(row)) == 20 for row in drawn.tolist())
    assert torch.equal(drawn, random_rows(range(10, 40), 5, 20, seed=3))
    assert not torch.equal(drawn, random_rows(range(10, 40), 5, 20, seed=4))


def test_engram_copies_by_induction_where_it_is_told_to_copy() -> None:
    """Its words, in the form of its training text; on bare random tokens it copies nothing."""
    model = load_model("engram")

    def ids(text: str) -> list[int]:
        return list(model.text_tokenizer(text)["input_ids"])[1:]

    lower = [word for word in COMMON_WORDS.split() if word.isalpha() and word.islower()]
    words = sorted({pieces[0] for word in lower if len(pieces := ids(f" {word}")) == 1})
    told = measure_induction(
        model,
        sequences=8,
        length=20,
        vocabulary=words,
        before=ids("Copy:"),
        between=ids("a. Again:")[1:],
    ).statistics("induction")
    bare = measure_induction(model, sequences=8, length=20).statistics("induction")
    assert np.nanmax(told.interval.low) > 0.9
    assert np.nanmax(bare.mean) < 0.3
    assert told.q[np.unravel_index(np.nanargmax(told.mean), told.mean.shape)] < 0.05


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sequences": 1}, "1 sequences of 50 tokens tell nothing"),
        ({"length": 1}, "use 2 or more of each"),
        ({"vocabulary": [1, 2, 3, 3]}, "3 different tokens make no row of 50"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, object], error: str) -> None:
    with pytest.raises(MnemoscopeError, match=error):
        measure_induction(wrap(tiny("llama")), **options)  # type: ignore[arg-type]


def test_copies_beyond_the_context_are_refused() -> None:
    with pytest.raises(PromptError, match="66 tokens"):
        measure_induction(wrap(tiny("llama")), length=33)
