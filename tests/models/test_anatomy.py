"""The table of architectures holds for every family, and what contradicts it is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import plain
import pytest
import torch
import transformers as hf
from families import FAMILIES, tiny
from mnemoscope.models import HeadId, KVHeadId, MnemoscopeError, NeuronId, TokenSpan, wrap
from mnemoscope.models.anatomy import ARCHITECTURES, head_output_weights, resolve_anatomy
from mnemoscope.models.errors import UnitOutOfRangeError, UnsupportedModelError
from mnemoscope.models.types import parse_heads, unique_heads

WIDE_HEADS = ("qwen3", "gemma2", "gemma3")  # heads of 12, not 32 / 4
PARALLEL = ("gptj", "neox", "phi")
MODEL_TYPES = {"neox": "gpt_neox", "neox-sequential": "gpt_neox", "opt-post-ln": "opt"}
MODEL_TYPES |= {"gemma3": "gemma3_text"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_numbers_of_every_family(family: str) -> None:
    anatomy = resolve_anatomy(tiny(family))
    assert anatomy.model_type == MODEL_TYPES.get(family, family)
    assert (anatomy.n_layers, anatomy.n_heads) == (3, 4)
    gpt = family in ("gpt2", "gptj")
    grouped = not gpt and not family.startswith(("neox", "opt"))
    assert anatomy.n_kv_heads == (2 if grouped else 4)
    assert anatomy.heads_per_kv == (2 if grouped else 1)
    assert anatomy.d_model == 32
    assert anatomy.d_v == (12 if family in WIDE_HEADS else 8)
    assert anatomy.d_mlp == (None if family == "mixtral" else 128 if gpt else 48)
    assert anatomy.d_vocab == 61
    assert anatomy.max_context == 64
    assert anatomy.parallel == (family in PARALLEL)
    assert anatomy.post_ln == (family == "opt-post-ln")


def test_every_entry_of_the_table_is_tested() -> None:
    assert {MODEL_TYPES.get(family, family) for family in FAMILIES} == set(ARCHITECTURES)


def test_query_heads_and_the_key_value_heads_they_read() -> None:
    anatomy = plain.model_of("llama").anatomy
    heads = anatomy.all_heads()
    assert heads == tuple(HeadId(i, h) for i in range(3) for h in range(4))
    assert [anatomy.kv_of(head).kv_head for head in heads[:4]] == [0, 0, 1, 1]
    assert anatomy.kv_of(HeadId(2, 3)) == KVHeadId(2, 1)
    assert anatomy.sharing(HeadId(1, 0)) == (HeadId(1, 0), HeadId(1, 1))


def test_units_are_checked() -> None:
    anatomy = plain.model_of("llama").anatomy
    for head in (HeadId(0, 0), HeadId(2, 3)):
        anatomy.check_head(head)
    for head in (HeadId(3, 0), HeadId(-1, 0), HeadId(0, 4), HeadId(0, -1)):
        with pytest.raises(UnitOutOfRangeError):
            anatomy.check_head(head)
    anatomy.check_neuron(NeuronId(2, 47))
    for neuron in (NeuronId(3, 0), NeuronId(0, 48), NeuronId(0, -1)):
        with pytest.raises(UnitOutOfRangeError):
            anatomy.check_neuron(neuron)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_output_weights_of_heads_are_views(family: str) -> None:
    projection = plain.o_proj(plain.model_of(family).module, family, 0)
    slices = head_output_weights(projection, 4)
    assert slices.shape == (4, 8, 32)
    assert slices.untyped_storage().data_ptr() == projection.weight.untyped_storage().data_ptr()


# -- refused ---------------------------------------------------------------------------------------


def changed(family: str, **values: Any) -> Any:
    """A tiny module whose configuration says something else afterwards."""
    module = copy.deepcopy(tiny(family))
    for name, value in values.items():
        setattr(module.config, name, value)
    return module


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones() -> None:
    config = hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=4)
    with pytest.raises(UnsupportedModelError, match=r"'bloom'.*gemma2.*qwen3"):
        wrap(hf.AutoModelForCausalLM.from_config(config))


def test_a_model_of_another_kind_is_refused_though_its_type_is_known() -> None:
    with pytest.raises(UnsupportedModelError, match="has no part"):
        wrap(hf.AutoModelForSequenceClassification.from_config(hf.GPT2Config(**_SMALL)).transformer)


_SMALL = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}


@pytest.mark.parametrize("layers", [2, 4])
def test_a_wrong_layer_count_is_refused(layers: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"promises {layers} layers.*has 3"):
        wrap(changed("llama", num_hidden_layers=layers))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("heads", [2, 3, 8])
def test_a_wrong_head_count_is_refused(family: str, heads: int) -> None:
    # Phi-3 reads the count anew at every step and breaks; the others go on as they were built.
    says = rf"{heads} (equal )?heads|cannot run three tokens"
    with pytest.raises(UnsupportedModelError, match=says):
        wrap(changed(family, num_attention_heads=heads))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_a_wrong_key_value_head_count_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="2 heads of width"):
        wrap(changed(family, num_key_value_heads=4))


def test_layers_of_different_head_width_are_refused() -> None:
    module = copy.deepcopy(tiny("llama"))
    module.model.layers[1].self_attn.o_proj = torch.nn.Linear(48, 32).double()
    with pytest.raises(UnsupportedModelError, match="equal heads in every layer"):
        wrap(module)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_self_test_refuses_a_tampered_output_projection(family: str) -> None:
    module = copy.deepcopy(tiny(family))
    plain.o_proj(module, family, 2).register_forward_hook(lambda _, __, out: 1.01 * out)
    with pytest.raises(UnsupportedModelError, match="attention output of layer 2"):
        wrap(module)
    assert wrap(module, self_test=False).anatomy.n_layers == 3


def test_the_self_test_refuses_blocks_that_do_not_follow_each_other() -> None:
    module = copy.deepcopy(tiny("llama"))
    module.model.layers[1].register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    with pytest.raises(UnsupportedModelError, match="block output of layer 0"):
        wrap(module)


def test_the_self_test_refuses_an_entry_whose_part_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = copy.deepcopy(tiny("llama"))
    module.model.layers[0].spare = torch.nn.Identity()
    module.model.layers[1].spare = torch.nn.Identity()
    module.model.layers[2].spare = torch.nn.Identity()
    wrong = dataclasses.replace(ARCHITECTURES["llama"], mlp_out="spare")
    monkeypatch.setitem(ARCHITECTURES, "llama", wrong)
    with pytest.raises(UnsupportedModelError, match="mlp_out of layer 0 never ran"):
        wrap(module)


def test_the_self_test_leaves_no_hooks_and_an_eval_module() -> None:
    module = copy.deepcopy(tiny("llama"))
    module.train()
    hooks = plain.hook_count(module)
    wrap(module)
    assert not module.training
    assert plain.hook_count(module) == hooks


def test_half_precision_passes_the_self_test() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert wrap(tiny("llama", dtype=dtype)).dtype == dtype


# -- the small types -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["12:5", "12.5", "L12.H5", "l12.h5", " L12:H5 "])
def test_heads_are_read_as_people_write_them(text: str) -> None:
    assert HeadId.parse(text) == HeadId(12, 5)
    assert str(HeadId.parse(text)) == "L12.H5"


@pytest.mark.parametrize("text", ["", "12", "12-5", "H5.L12", "1:2:3", "-1:2"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(MnemoscopeError, match="layer:head"):
        HeadId.parse(text)


def test_lists_of_heads() -> None:
    assert parse_heads("12:5, 14:3") == (HeadId(12, 5), HeadId(14, 3))
    with pytest.raises(MnemoscopeError, match="no heads"):
        parse_heads(" , ")
    with pytest.raises(MnemoscopeError, match=r"L1\.H2"):
        unique_heads([HeadId(1, 2), HeadId(0, 0), HeadId(1, 2)])


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2)])
def test_empty_spans_are_refused(start: int, stop: int) -> None:
    with pytest.raises(MnemoscopeError, match="start < stop"):
        TokenSpan(start, stop)
