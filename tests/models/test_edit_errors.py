"""No edit is silent, none outlives its block, and wrong ones are refused before they run."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext

import plain
import pytest
import torch
from families import ids
from mnemoscope.models import (
    Edit,
    HeadId,
    MnemoscopeError,
    NeuronId,
    Site,
    StreamId,
    TokenBatch,
    mean,
    scale,
    zero,
)
from mnemoscope.models.errors import (
    EditNeverFiredError,
    UnitOutOfRangeError,
    UnsupportedSiteError,
)
from plain import noise
from torch import Tensor

IDS = ids()
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))


# -- nothing is left behind, and nothing is silent ------------------------------------------------


class _OnPurposeError(Exception):
    pass


ENDINGS = {
    "normal": None,
    "exception": _OnPurposeError,
    "failing forward": IndexError,
    "never fired": EditNeverFiredError,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_hooks_are_gone_however_the_block_ends(ending: str) -> None:
    model = plain.model_of("llama")
    before = model.logits(FULL)
    hooks = plain.hook_count(model.module)
    edits = [zero([HeadId(1, 0)]), zero([NeuronId(0, 3)]), zero([StreamId(2, Site.ATTN_OUT)])]
    error = ENDINGS[ending]
    with nullcontext() if error is None else pytest.raises(error), model.intervene(edits):
        assert plain.hook_count(model.module) > hooks
        if ending == "normal":
            model.logits(FULL)
        if ending == "exception":
            raise _OnPurposeError
        if ending == "failing forward":
            model.logits(model.batch([[10**6]]))  # no such token
    assert plain.hook_count(model.module) == hooks
    assert torch.equal(model.logits(FULL), before)


def test_an_exception_inside_is_not_masked_by_an_edit_that_never_fired() -> None:
    model = plain.model_of("llama")
    with pytest.raises(_OnPurposeError), model.intervene([zero([HeadId(1, 0)])]):
        raise _OnPurposeError


@pytest.mark.parametrize(
    "edit",
    [
        zero([HeadId(1, 0)], phase="decode"),
        zero([HeadId(1, 0)], positions=(9,)),
        zero([HeadId(1, 0)], positions=(-10,)),
        zero([StreamId(1, Site.MLP_OUT)], positions=(30, -30)),
    ],
    ids=["phase", "offset", "offset from end", "stream"],
)
def test_an_edit_that_never_fired_raises(edit: Edit) -> None:
    model = plain.model_of("llama")
    with (
        pytest.raises(EditNeverFiredError, match=str(edit.units[0])),
        model.intervene([zero([HeadId(0, 0)]), edit]),
    ):
        model.logits(FULL)


def test_a_block_in_which_nothing_ran_raises() -> None:
    model = plain.model_of("llama")
    with (
        pytest.raises(EditNeverFiredError, match="run inside"),
        model.intervene([zero([HeadId(0, 0)])]),
    ):
        pass


def test_a_prefill_edit_fires_in_a_generation_and_a_decode_edit_needs_a_second_token() -> None:
    model = plain.model_of("llama")
    decode = zero([HeadId(1, 0)], phase="decode")
    with pytest.raises(EditNeverFiredError), model.intervene([decode]):
        model.generate(FULL, 1)
    with model.intervene([zero([HeadId(1, 0)], phase="prefill")]) as installed:
        model.generate(FULL, 1)
    assert installed[0].fired == 27


def test_another_thread_never_sees_an_edit() -> None:
    model = plain.model_of("llama")
    before = model.logits(FULL)
    seen: list[Tensor] = []
    other = threading.Thread(target=lambda: seen.append(model.logits(FULL)))
    with model.intervene([zero([HeadId(0, h) for h in range(4)])]):
        other.start()
        assert not torch.equal(model.logits(FULL), before)
        other.join(timeout=0.2)
        assert not seen  # it waits for the block to end
    other.join(timeout=10)
    assert torch.equal(seen[0], before)


# -- what cannot be edited is refused before anything runs ----------------------------------------


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (zero([HeadId(3, 0)]), UnitOutOfRangeError, "layers 0 to 2"),
        (zero([HeadId(-1, 0)]), UnitOutOfRangeError, "layers 0 to 2"),
        (zero([HeadId(0, 4)]), UnitOutOfRangeError, "query heads 0 to 3"),
        (zero([NeuronId(0, 48)]), UnitOutOfRangeError, "units 0 to 47"),
        (zero([StreamId(9, Site.MLP_OUT)]), UnitOutOfRangeError, "layers 0 to 2"),
        (zero([HeadId(0, 1), HeadId(0, 1)]), MnemoscopeError, "twice"),
        (zero([HeadId(0, 1), NeuronId(0, 1)]), MnemoscopeError, "one kind"),
        (
            zero([StreamId(0, Site.MLP_OUT), StreamId(0, Site.RESID_PRE)]),
            MnemoscopeError,
            "one kind",
        ),
        (zero([]), MnemoscopeError, "at least one"),
        (zero([StreamId(0, Site.RESID_MID)]), UnsupportedSiteError, "captured but not edited"),
        (zero([StreamId(0, Site.ROT_Q)]), UnsupportedSiteError, "captured but not edited"),
        (zero([NeuronId(0, 0, Site.Z)]), UnsupportedSiteError, "neuron"),
        (Edit("zero", (HeadId(0, 0),), 1.0), MnemoscopeError, "no value"),
        (Edit("set", (HeadId(0, 0),)), MnemoscopeError, "a value"),
        (Edit("swap", (HeadId(0, 0),), 1.0), MnemoscopeError, "swap"),  # type: ignore[arg-type]
        (zero([HeadId(0, 0)], phase="later"), MnemoscopeError, "later"),  # type: ignore[arg-type]
        (zero([HeadId(0, 0)], positions="last"), MnemoscopeError, "last"),  # type: ignore[arg-type]
        (zero([HeadId(0, 0)], positions=()), MnemoscopeError, "positions"),
        (zero([HeadId(0, 0)], positions=((0,), ())), MnemoscopeError, "for each row"),
        (zero([HeadId(0, 0)], positions="end", phase="decode"), MnemoscopeError, "prefill"),
        (mean([HeadId(0, 0)], torch.zeros(2, 8)), MnemoscopeError, r"\(1, 8\)"),
        (mean([HeadId(0, 0)], torch.zeros(1, 7)), MnemoscopeError, r"\(1, 8\)"),
        (mean([HeadId(0, 0)], torch.zeros(8)), MnemoscopeError, r"\(1, 8\)"),
        (mean([HeadId(0, 0)], torch.zeros(1, 3, 9, 1, 8)), MnemoscopeError, r"\(1, 8\)"),
        (mean([NeuronId(0, 0)], torch.zeros(2)), MnemoscopeError, r"\(1,\)"),
        (mean([StreamId(0, Site.MLP_OUT)], torch.zeros(1, 8)), MnemoscopeError, r"\(1, 32\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_wrong_edits_are_refused_before_anything_runs(
    edit: Edit, error: type[Exception], says: str
) -> None:
    model = plain.model_of("llama")
    hooks = plain.hook_count(model.module)
    with pytest.raises(error, match=says), model.intervene([edit]):
        pytest.fail("the block was entered")
    assert plain.hook_count(model.module) == hooks


def test_neurons_of_fused_experts_are_refused() -> None:
    with (
        pytest.raises(UnsupportedSiteError, match="experts fused"),
        plain.model_of("mixtral").intervene([zero([NeuronId(0, 0)])]),
    ):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("shape", [(2, 1, 8), (3, 4, 1, 8)])
def test_values_for_another_batch_are_refused(shape: tuple[int, ...]) -> None:
    model = plain.model_of("llama")
    edit = Edit("set", (HeadId(0, 0),), torch.zeros(shape))
    with pytest.raises(MnemoscopeError, match=r"\[3, 9\]"), model.intervene([edit]):
        model.logits(FULL)


def test_offsets_by_row_are_one_tuple_for_each_row() -> None:
    model = plain.model_of("llama")
    edit = zero([HeadId(0, 0)], positions=((0,), (1,), (2,)))
    with (
        pytest.raises(MnemoscopeError, match="3 rows but the model runs 2"),
        model.intervene([edit]),
    ):
        model.logits(model.batch([[1, 2, 3], [4, 5, 6]]))


def test_chosen_positions_need_a_mask() -> None:
    model = plain.model_of("llama")
    with (
        pytest.raises(MnemoscopeError, match="attention mask"),
        model.intervene([zero([HeadId(0, 0)], "end")]),
    ):
        model.module(IDS)


# -- an edit is data ------------------------------------------------------------------------------


def test_an_edit_describes_itself_as_json() -> None:
    value = noise(1, 8)
    edit = Edit("set", (HeadId(1, 2),), value, (0, -1), "prefill")
    read = json.loads(json.dumps(edit.describe()))
    assert read["op"] == "set"
    assert read["site"] == "z"
    assert read["units"] == ["L1.H2"]
    assert read["positions"] == [0, -1]
    assert read["phase"] == "prefill"
    assert read["value"]["shape"] == [1, 8]
    same = Edit("set", (HeadId(1, 2),), value.clone()).describe()["value"]
    other = Edit("set", (HeadId(1, 2),), value + 1e-12).describe()["value"]
    assert same == read["value"]
    assert other != read["value"]
    half = Edit("set", (NeuronId(0, 1),), torch.ones(1, dtype=torch.bfloat16)).describe()
    assert json.loads(json.dumps(half))["units"] == ["L0.N1"]
    plain_number = scale([StreamId(2, Site.MLP_OUT)], 0.5).describe()
    assert (plain_number["value"], plain_number["units"]) == (0.5, ["L2.mlp_out"])
