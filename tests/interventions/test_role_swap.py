"""Writing a vector into the slot of a name: exactly one cell a row, whatever the padding."""

from __future__ import annotations

import plain
import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.interventions.role_swap import (
    AskedRows,
    halves_and_others,
    matched_noise,
    principal_directions,
    replaced_component,
    swapped_scores,
    without_directions,
)
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError, UnitOutOfRangeError
from plain import close
from torch import Tensor

ASKED = AskedRows(
    prompts=((5, 9, 7), (4, 8, 6, 11, 12), (3, 10, 13, 14)),
    slots=(0, 2, 3),
    answers=((20,), (21, 22, 23), (24, 25)),
)


def _by_hand(
    model: HookedModel, row: int, layer: int | None, value: Tensor | None, op: str = "set"
) -> Tensor:
    """Log-probabilities of the answer's tokens, one unpadded row, with a hook of its own."""
    prompt, answer = ASKED.prompts[row], ASKED.answers[row]

    def hook(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        slot = ASKED.slots[row]
        x[0, slot] = value if op == "set" else x[0, slot] + value
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    blocks = model.module.get_submodule(model.anatomy.spec.blocks)
    handle = None
    if layer is not None:
        handle = blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        logits = model.module(torch.tensor([[*prompt, *answer]])).logits[0]
    if handle is not None:
        handle.remove()
    told = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return told.gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_of_a_batch_equal_single_rows_with_a_hook_by_hand(family: str) -> None:
    model = plain.padded_model_of(family)
    values = torch.randn(3, model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    values = values.to(model.dtype)
    near = 1e-4 if family in ("gemma2", "gptj") else plain.EXACT  # softmax in float32
    for op in ("set", "add"):
        got = swapped_scores(model, ASKED, 1, values, op=op, candidates=torch.tensor([20, 24]))
        want = [_by_hand(model, row, 1, values[row], op) for row in range(3)]
        close(got.whole, torch.stack([each.sum() for each in want]), near)
        close(got.first, torch.stack([each[0] for each in want]), near)
        close(got.candidates[0, 0], want[0][0], near)
        close(got.candidates[2, 1], want[2][0], near)


def test_without_values_the_model_runs_as_it_is_and_the_batch_does_not_matter() -> None:
    model = wrap(tiny("llama"))
    want = torch.stack([_by_hand(model, row, None, None).sum() for row in range(3)])
    done: list[int] = []
    for rows in (1, 2, 64):
        got = swapped_scores(model, ASKED, rows=rows, done=done.append)
        torch.testing.assert_close(got.whole, want)
        assert got.candidates.shape == (3, 0)
    assert done == [1, 1, 1, 2, 1, 3]


def test_rows_can_be_taken_several_times() -> None:
    model = wrap(tiny("gpt2"))
    values = torch.zeros(4, 32).double()
    got = swapped_scores(model, ASKED.take([2, 0, 2, 1]), 0, values).whole
    torch.testing.assert_close(got[0], got[2])
    torch.testing.assert_close(got[3], _by_hand(model, 1, 0, values[0]).sum())


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    model = wrap(tiny("llama"))
    with pytest.raises(MnemoscopeError, match="2 vectors for 3 rows"):
        swapped_scores(model, ASKED, 0, torch.zeros(2, 32))
    with pytest.raises(UnitOutOfRangeError):
        swapped_scores(model, ASKED, 3, torch.zeros(3, 32))
    with pytest.raises(MnemoscopeError, match="slot 3 lies outside"):
        AskedRows(((1, 2, 3),), (3,), ((4,),))
    with pytest.raises(MnemoscopeError, match="no tokens"):
        AskedRows(((1, 2, 3),), (1,), ((),))
    with pytest.raises(MnemoscopeError, match="one of each a row"):
        AskedRows(((1, 2, 3),), (1, 2), ((4,),))


# -- vectors --------------------------------------------------------------------------------------


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_only_the_component_in_the_span_is_replaced() -> None:
    own, new = _random(6, 10), _random(6, 10, seed=1)
    basis = torch.linalg.qr(_random(10, 3, seed=2))[0].T
    got = replaced_component(own, new, basis)
    torch.testing.assert_close(got @ basis.T, new @ basis.T)
    rest = torch.eye(10).double() - basis.T @ basis
    torch.testing.assert_close(got @ rest, own @ rest)
    torch.testing.assert_close(replaced_component(own, new, None), new)


def test_nothing_is_left_along_the_directions_and_all_the_rest_is() -> None:
    vectors, directions = _random(4, 10), _random(4, 3, 10, seed=1)
    directions[0, 2] = directions[0, 0] - directions[0, 1]  # adds nothing to the span
    directions[1] = 0
    got = without_directions(vectors, directions)
    shares = torch.einsum("rd,rkd->rk", got, directions)
    assert shares.abs().max() < 1e-9
    torch.testing.assert_close(got[1], vectors[1])
    for row in (0, 2, 3):
        taken = vectors[row] - got[row]
        fit = torch.linalg.lstsq(directions[row].T, taken[:, None], driver="gelsd").solution
        torch.testing.assert_close((directions[row].T @ fit)[:, 0], taken)


def test_noise_moves_as_far_as_the_swap_does() -> None:
    own, new = _random(5, 64), _random(5, 64, seed=1)
    got = matched_noise(own, new, seed=3)
    torch.testing.assert_close((got - own).norm(dim=1), (new - own).norm(dim=1))
    cosines = torch.cosine_similarity(got - own, new - own)
    assert cosines.abs().max() < 0.6
    torch.testing.assert_close(got, matched_noise(own, new, seed=3))


def test_principal_directions_are_those_along_which_entities_differ() -> None:
    axes = torch.linalg.qr(_random(12, 2))[0].T
    states = _random(40, 2, seed=1) * torch.tensor([3.0, 1.0]) @ axes + 5.0
    got = principal_directions(states, 2)
    torch.testing.assert_close(got @ got.T, torch.eye(2).double())
    torch.testing.assert_close(got.T @ got, axes.T @ axes)
    assert principal_directions(states[:3], 9).shape == (2, 12)


def test_halves_are_even_and_the_other_entity_stays_in_its_half() -> None:
    for n in (4, 7, 32):
        half, other = halves_and_others(n, seed=1)
        assert abs(int((half == 0).sum()) - int((half == 1).sum())) <= 1
        assert torch.equal(half[other], half)
        assert not bool((other == torch.arange(n)).any())
        assert sorted(other.tolist()) == list(range(n))
    with pytest.raises(MnemoscopeError, match="4 at least"):
        halves_and_others(3, seed=0)
