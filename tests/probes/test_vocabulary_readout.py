"""The readout is the model's own: at the last output its ranks are those of the model's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import Site
from mnemoscope.probes.vocabulary_readout import middle_ranks, vocabulary_readout

PAIRS, WORDINGS = 4, 2


def end_streams(model: HookedModel, tokens: torch.Tensor) -> np.ndarray:
    """Every layer's input and the last output at END, `[layer, wording, pair, d_model]`."""
    batch = model.batch(tokens.tolist())
    kept = model.capture(batch, (Site.RESID_PRE, Site.RESID_POST), at="end")
    last = model.anatomy.n_layers - 1
    streams = torch.cat([kept.stack(Site.RESID_PRE), kept[Site.RESID_POST, last][None]])
    return streams[:, :, 0].unflatten(1, (WORDINGS, PAIRS)).numpy()


def plain_ranks(logits: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    return np.array(
        [1 + int((row > row[t]).sum()) for row, t in zip(logits, targets.flat, strict=True)]
    ).reshape(targets.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_output_the_ranks_are_those_of_the_logits(family: str) -> None:
    model = wrap(tiny(family))
    tokens = ids(WORDINGS * PAIRS, 6)
    targets = np.arange(10, 10 + WORDINGS * PAIRS).reshape(WORDINGS, PAIRS)
    readout = vocabulary_readout(
        build_chain(model), {"forward": end_streams(model, tokens)}, {"forward": targets}
    )
    with torch.no_grad():
        logits = model.module(input_ids=tokens).logits[:, -1]
    assert np.array_equal(readout.ranks["forward"][-1], plain_ranks(logits, targets))
    assert readout.ranks["forward"].shape == (model.anatomy.n_layers + 1, WORDINGS, PAIRS)


def test_the_null_reads_another_pairs_token_from_the_same_state() -> None:
    model = wrap(tiny("llama"))
    tokens = ids(WORDINGS * PAIRS, 6)
    targets = np.tile(np.arange(10, 10 + PAIRS), (WORDINGS, 1))
    states = {"reverse": end_streams(model, tokens)}
    readout = vocabulary_readout(build_chain(model), states, {"reverse": targets}, seed=3)
    logits = model.module(input_ids=tokens).logits[:, -1].detach()
    by_token = [plain_ranks(logits, np.full((WORDINGS, PAIRS), t)) for t in targets[0]]
    for pair in range(PAIRS):
        found = readout.null["reverse"][-1, :, pair]
        others = [by_token[t][:, pair] for t in range(PAIRS) if t != pair]
        assert any(np.array_equal(found, other) for other in others)


def test_equal_targets_have_no_null() -> None:
    model = wrap(tiny("llama"))
    states = {"reverse": end_streams(model, ids(WORDINGS * PAIRS, 6))}
    same = np.full((WORDINGS, PAIRS), 5)
    readout = vocabulary_readout(build_chain(model), states, {"reverse": same})
    assert np.isnan(readout.null["reverse"]).all()
    assert readout.table()["null"].is_nan().all()


def test_a_model_that_says_the_same_of_every_token_ranks_them_in_the_middle() -> None:
    ranks = middle_ranks(torch.zeros(3, 61), torch.tensor([[4], [0], [60]]))
    assert torch.equal(ranks, torch.full((3, 1), 31.0, dtype=torch.float64))


def test_the_table_has_the_mean_over_pairs_and_wordings() -> None:
    model = wrap(tiny("gpt2"))
    states = {"forward": end_streams(model, ids(WORDINGS * PAIRS, 6))}
    targets = np.arange(10, 10 + WORDINGS * PAIRS).reshape(WORDINGS, PAIRS)
    readout = vocabulary_readout(build_chain(model), states, {"forward": targets})
    table = readout.table(draws=50)
    ranks = readout.ranks["forward"]
    assert np.allclose(table["log10_rank"], np.log10(ranks).mean(axis=(1, 2)))
    assert np.allclose(table["mrr"], (1 / ranks).mean(axis=(1, 2)))
    assert (table["low"] <= table["log10_rank"]).all()
    assert (table["log10_rank"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("shape", "message"), [((4, 2, 3, 32), "belong|ask for"), ((4, 2, 4, 31), "ask for")]
)
def test_states_and_targets_have_to_belong_together(shape: Any, message: str) -> None:
    chain = build_chain(wrap(tiny("llama")))
    with pytest.raises(MnemoscopeError, match=message):
        vocabulary_readout(
            chain, {"forward": np.zeros(shape)}, {"forward": np.zeros((2, 4), dtype=int)}
        )


def test_one_pair_has_no_null_to_be_compared_with() -> None:
    chain = build_chain(wrap(tiny("llama")))
    with pytest.raises(MnemoscopeError, match="two pairs"):
        vocabulary_readout(
            chain, {"forward": np.zeros((4, 2, 1, 32))}, {"forward": np.zeros((2, 1), dtype=int)}
        )
