"""Sets of MLP units edited under masks, grids of set sizes in one batch, and neutral values.

The other side of each equality is a hook of torch's own on one unpadded row at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.interventions import neuron_ablation
from mnemoscope.interventions.neuron_ablation import (
    blacklist,
    mean_abs,
    nested_edits,
    neuron_edits,
    neutral_means,
    values_at,
    write_norms,
    write_size,
)
from mnemoscope.models import HookedModel, MnemoscopeError, NeuronId, Site, TokenBatch, wrap
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError, UnsupportedSiteError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "granite")
WITH_NEURONS = tuple(family for family in FAMILIES if family != "mixtral")
RANKING = tuple(NeuronId(layer, 5 * i + layer) for i in range(6) for layer in (2, 0, 1))
VALUES = plain.noise(len(RANKING))
SIZES = (0, 2, 7, 18)
TEXTS = ("w5 w6 w7 w8 w9 w10 w11", "w20", "w20 w21 w22", "w40 w3 w17 w31 w9", "w1 w2")


def padded(side: str) -> TokenBatch:
    tokens, mask = plain.padded(side)
    return TokenBatch(tokens, mask.bool())


@contextmanager
def by_hand(
    model: HookedModel, family: str, units: Sequence[NeuronId], new: Any, first: int = 1
) -> Iterator[None]:
    """`x[:, first:, index] = new(x[:, first:, index], j)` for unit j, whatever runs; no padding."""

    def change_in(layer: int) -> Any:
        def change(x: Tensor) -> Tensor:
            rows = x.reshape(1, -1, x.shape[-1]).clone()  # OPT flattens batch and position
            for j, unit in enumerate(units):
                if unit.layer == layer:
                    rows[:, first:, unit.index] = new(rows[:, first:, unit.index], j)
            return rows.view_as(x)

        return change

    with ExitStack() as stack:
        for layer in range(plain.LAYERS):
            down = plain.down(model.module, family, layer)
            stack.enter_context(plain.input_changed(down, change_in(layer)))
        yield


# -- edits at masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", GATED)
def test_zero_at_gate_up_or_hidden_gives_identical_logits(family: str) -> None:
    model = plain.model_of(family)
    batch = model.batch(ids().tolist())
    units = [(0, 3), (1, 0), (2, 47), (1, 30)]
    logits = []
    for site in (Site.NEURON, Site.GATE_PRE, Site.UP):
        with model.intervene(neuron_edits([NeuronId(i, m, site) for i, m in units], "zero")):
            logits.append(model.logits(batch))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert (logits[0] - model.logits(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", WITH_NEURONS)
def test_every_real_token_but_the_first_is_edited_whatever_the_padding(
    family: str, side: str
) -> None:
    model = plain.padded_model_of(family)
    batch = padded(side)
    with model.intervene(neuron_edits(RANKING, "mean", values=VALUES)):
        got = model.logits(batch)
    for i in range(len(batch)):
        row = batch.row(i)[None]
        with by_hand(model, family, RANKING, lambda _, j: float(VALUES[j])):
            want = plain.forward(model.module, row).logits[0]
        plain.close(got[i][batch.mask[i]], want, plain.SINGLE)
        clean = plain.forward(model.module, row).logits[0]
        assert (want - clean).abs().max() > 0.1
        if not model.anatomy.post_ln:
            plain.close(want[0], clean[0], plain.SINGLE)  # the first token is spared


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_generated_tokens_are_edited_through_the_cache(family: str) -> None:
    model = plain.model_of(family)
    batch = padded("left")
    edits = neuron_edits(RANKING, "scale", factor=-3.0)
    with plain.stopping_at(model, None):
        clean = model.generate(batch, 6)
        with model.intervene(edits):
            got = model.generate(batch, 6)
        with model.intervene(neuron_edits(RANKING, "scale", factor=-3.0, phase="decode")):
            only_generated = model.generate(batch, 6)
    assert got == [greedy(model, family, batch.row(i), 1) for i in range(3)]
    assert only_generated == [
        greedy(model, family, batch.row(i), len(batch.row(i))) for i in range(3)
    ]
    assert clean != got != only_generated


def greedy(model: HookedModel, family: str, row: Tensor, first: int) -> list[int]:
    """Full passes over the growing sequence, units times -3 from position `first` on."""
    tokens = row[None]
    for _ in range(6):
        with by_hand(model, family, RANKING, lambda x, _: -3.0 * x, first):
            chosen = plain.forward(model.module, tokens).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, chosen[None]], dim=1)
    return tokens[0, -6:].tolist()


def test_after_leaving_logits_are_bit_identical_and_no_hook_stays() -> None:
    model = plain.model_of("llama")
    batch, mixed = padded("left"), [*RANKING, NeuronId(0, 3, Site.UP), NeuronId(1, 2, Site.MLP_OUT)]
    before, hooks = model.logits(batch), plain.hook_count(model.module)
    with model.intervene(neuron_edits(mixed, "zero")):
        assert not torch.equal(model.logits(batch), before)
    assert torch.equal(model.logits(batch), before)
    with pytest.raises(PromptError), model.intervene(neuron_edits(mixed, "zero")):
        model.generate(padded("right"))
    assert torch.equal(model.logits(batch), before)
    assert plain.hook_count(model.module) == hooks


def test_one_edit_a_site_with_the_values_of_its_own_units() -> None:
    mixed = [NeuronId(1, 4, Site.UP), NeuronId(0, 2), NeuronId(2, 4, Site.UP)]
    edits = neuron_edits(mixed, "set", values=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert [edit.units for edit in edits] == [(mixed[0], mixed[2]), (mixed[1],)]
    assert [edit.value.tolist() for edit in edits] == [[[1.0, 3.0], [4.0, 6.0]], [[2.0], [5.0]]]
    assert {edit.positions for edit in edits} == {"all_but_first"}
    everywhere = neuron_edits(mixed, "zero", positions="all", phase="prefill")
    assert {(edit.positions, edit.phase) for edit in everywhere} == {("all", "prefill")}


def test_what_cannot_be_edited_is_refused() -> None:
    two = [NeuronId(0, 1), NeuronId(1, 1)]
    with pytest.raises(MnemoscopeError, match="name at least one"):
        neuron_edits([], "zero")
    with pytest.raises(MnemoscopeError, match="needs values"):
        neuron_edits(two)
    with pytest.raises(MnemoscopeError, match="takes no values"):
        neuron_edits(two, "zero", values=torch.zeros(2))
    with pytest.raises(MnemoscopeError, match="do not fit 2 units"):
        neuron_edits(two, "mean", values=torch.zeros(2, 3))
    with pytest.raises(MnemoscopeError, match="'ablate' is unknown"):
        neuron_edits(two, "ablate")  # type: ignore[arg-type]
    model = plain.model_of("llama")
    with (
        pytest.raises(UnitOutOfRangeError),
        model.intervene(neuron_edits([NeuronId(0, 48)], "zero")),
    ):
        pass


# -- the grid of sizes in one batch ----------------------------------------------------------------

MIXED = tuple(
    NeuronId(one.layer, one.index, (Site.NEURON, Site.UP, Site.MLP_OUT)[i % 3])
    if one.index < 32
    else one
    for i, one in enumerate(RANKING)
)


def separate(
    model: HookedModel, batch: TokenBatch, units: Any, mode: Any, **options: Any
) -> Tensor:
    """One run a size, each with the set's own edits."""
    found = []
    for size in SIZES:
        own = dict(options)
        if "values" in own:
            own["values"] = own["values"][..., :size]
        with model.intervene(neuron_edits(units[:size], mode, **own) if size else ()):
            found.append(model.logits(batch)[batch.mask])
    return torch.cat(found)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("units", [RANKING, MIXED], ids=["hidden", "mixed sites"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("zero", {}),
        ("scale", {"factor": 0.3}),
        ("scale", {"factor": 4.0}),
        ("mean", {"values": VALUES}),
        ("set", {"values": 3 * VALUES}),
        ("resample", {"values": plain.noise(3, len(RANKING))}),
        ("resample", {"values": plain.noise(3, 9, len(RANKING))}),
    ],
)
def test_the_nested_batch_equals_separate_runs(
    side: str, units: Any, mode: Any, options: Any
) -> None:
    model, batch = plain.model_of("llama"), padded(side)
    grid = TokenBatch(batch.ids.repeat(len(SIZES), 1), batch.mask.repeat(len(SIZES), 1))
    with model.intervene(nested_edits(units, SIZES, len(batch), mode, **options)):
        got = model.logits(grid)[grid.mask]
    want = separate(model, batch, units, mode, **options)
    plain.close(got, want, plain.SINGLE)
    blocks = want.chunk(len(SIZES))
    assert min((a - b).abs().max() for a, b in pairwise(blocks)) > 1e-2


def test_the_nested_batch_generates_as_separate_runs_do() -> None:
    model, batch = plain.model_of("llama"), padded("left")
    grid = TokenBatch(batch.ids.repeat(len(SIZES), 1), batch.mask.repeat(len(SIZES), 1))
    want = []
    with plain.stopping_at(model, None):
        for size in SIZES:
            edits = neuron_edits(RANKING[:size], "mean", values=4 * VALUES[:size]) if size else ()
            with model.intervene(edits):
                want += model.generate(batch, 5)
        with model.intervene(nested_edits(RANKING, SIZES, 3, "mean", values=4 * VALUES)):
            assert model.generate(grid, 5) == want
    assert want[:3] != want[-3:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_nested_batch_keeps_the_type_of_the_model(dtype: torch.dtype) -> None:
    model = wrap(tiny("llama", dtype=dtype), self_test=False)
    batch = model.batch(ids(2).tolist())
    grid = model.batch(ids(2).tolist() * len(SIZES))
    with model.intervene(nested_edits(RANKING, SIZES, 2, "mean", values=VALUES)):
        got = model.logits(grid).flatten(0, 1)
    want = separate(model, batch, RANKING, "mean", values=VALUES)
    assert got.dtype == dtype
    plain.close(got.float(), want.float(), 1e-4 if dtype == torch.float32 else 0.5)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="ranking of 18"):
        nested_edits(RANKING, (2, 19), 3, "zero")
    with pytest.raises(MnemoscopeError, match="at least one row"):
        nested_edits(RANKING, (2,), 0, "zero")
    with pytest.raises(MnemoscopeError, match="2 rows do not fit blocks of 3"):
        nested_edits(RANKING, (2,), 3, "resample", values=torch.zeros(2, 18))
    assert nested_edits(RANKING, (0, 0), 3, "zero") == ()
    model = plain.model_of("llama")
    with (
        pytest.raises(MnemoscopeError, match=r"\[12, 1\]"),
        model.intervene(nested_edits(RANKING, SIZES, 3, "zero")),
    ):
        model.logits(padded("left"))


# -- what is neutral -------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(61)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def reader(family: str, dtype: torch.dtype = torch.float64) -> HookedModel:
    return wrap(tiny(family, dtype=dtype), tokenizer(), self_test=False)


def hidden_by_hand(model: HookedModel, family: str) -> list[Tensor]:
    """For each text `[layer, pos, unit]`: the down projections' inputs, one text at a time."""
    targets = {str(i): plain.down(model.module, family, i) for i in range(plain.LAYERS)}
    texts = [torch.tensor([[int(word[1:]) for word in text.split()]]) for text in TEXTS]
    given = [plain.inputs_and_outputs(model.module, targets, text)[0] for text in texts]
    return [
        torch.stack([one[str(i)].reshape(-1, one[str(i)].shape[-1]) for i in range(plain.LAYERS)])
        for one in given
    ]


def down_weight(model: HookedModel, family: str, layer: int) -> Tensor:
    """`[unit, d_model]`: what each hidden unit writes."""
    weight = plain.down(model.module, family, layer).weight.detach()
    return weight if family == "gpt2" else weight.T


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_neutral_values_are_those_of_a_loop_over_texts(family: str) -> None:
    model = reader(family, torch.float32 if family == "gemma2" else torch.float64)
    later = torch.cat([hidden[:, 1:] for hidden in hidden_by_hand(model, family)], dim=1)
    plain.close(neutral_means(model, TEXTS), later.mean(1), plain.SINGLE)
    plain.close(mean_abs(model, TEXTS), later.abs().mean(1), plain.SINGLE)
    norms = torch.stack([down_weight(model, family, i).norm(dim=1) for i in range(plain.LAYERS)])
    plain.close(write_norms(model), norms)
    plain.close(write_size(model, TEXTS), later.abs().mean(1) * norms, 10 * plain.SINGLE)


def test_chosen_layers_come_in_their_order() -> None:
    model = reader("llama")
    both, all_layers = neutral_means(model, TEXTS, layers=(2, 0)), neutral_means(model, TEXTS)
    assert torch.equal(both, all_layers[[2, 0]])
    assert torch.equal(write_norms(model, layers=(2, 0)), write_norms(model)[[2, 0]])
    units = [NeuronId(2, 5), NeuronId(0, 47)]
    assert torch.equal(values_at(all_layers, units), all_layers[[2, 0], [5, 47]])


def test_other_sites_are_read_where_they_are() -> None:
    model = reader("phi3")
    batch = model.tokens(list(TEXTS), side="right")
    later = batch.mask.clone()
    later[:, 0] = False
    for site in (Site.GATE_PRE, Site.UP, Site.MLP_OUT):
        seen = model.capture(batch, [site]).stack(site)[:, later]
        plain.close(neutral_means(model, TEXTS, site), seen.mean(1), plain.SINGLE)
    hidden = write_size(model, TEXTS)
    assert torch.equal(write_size(model, TEXTS, Site.UP), hidden)
    assert torch.equal(write_norms(model, Site.GATE_PRE), write_norms(model))
    stream = mean_abs(model, TEXTS, Site.MLP_OUT)
    assert stream.shape == (plain.LAYERS, 32)
    assert torch.equal(write_size(model, TEXTS, Site.MLP_OUT), stream)


def test_half_precision_is_summed_in_a_wider_type() -> None:
    model = reader("llama", torch.bfloat16)
    later = torch.cat([hidden[:, 1:] for hidden in hidden_by_hand(model, "llama")], dim=1)
    found = neutral_means(model, TEXTS)
    assert found.dtype == torch.float32
    plain.close(found, later.float().mean(1), 0.05)


def test_batches_do_not_change_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader("llama")
    together = neutral_means(model, TEXTS)
    monkeypatch.setattr(neuron_ablation, "_ROWS", 1)
    plain.close(neutral_means(model, TEXTS), together, plain.SINGLE)


def test_only_units_that_make_massive_writes_are_blacklisted() -> None:
    """One unit is huge at the first token of a text alone, where no mean would see it."""
    model = reader("llama")
    assert blacklist(model, TEXTS) == ()
    layer = plain.block(model.module, "llama", 1)
    seen = plain.inputs_and_outputs(model.module, {"mlp": layer.mlp}, torch.tensor([[20, 21, 22]]))
    first, *rest = seen[0]["mlp"][0]
    away = torch.linalg.lstsq(torch.stack(rest).T, first[:, None]).solution
    only_first = first - (torch.stack(rest).T @ away)[:, 0]
    with torch.no_grad():
        layer.mlp.gate_proj.weight[7] = 30 * only_first / only_first.norm()
        layer.mlp.up_proj.weight[7] = 30 * only_first / only_first.norm()
    text = ["w20 w21 w22"]
    mean = mean_abs(model, text)
    assert mean[1, 7] < mean[1].median()
    assert blacklist(model, text) == (NeuronId(1, 7),)
    assert blacklist(model, text, Site.UP) == (NeuronId(1, 7, Site.UP),)


def test_what_has_no_neutral_value_is_refused() -> None:
    with pytest.raises(PromptError, match="second token"):
        neutral_means(reader("llama"), ["w5", "w6"])
    with pytest.raises(UnsupportedSiteError, match="experts fused"):
        write_size(reader("mixtral"), TEXTS)
    with pytest.raises(UnsupportedSiteError, match="without a gate"):
        write_norms(reader("gpt2"), Site.UP)
    with pytest.raises(UnsupportedSiteError, match="without a gate"):
        blacklist(reader("gpt2"), TEXTS, Site.GATE_PRE)
    with pytest.raises(UnitOutOfRangeError, match="layer 3"):
        mean_abs(reader("llama"), TEXTS, layers=[3])
