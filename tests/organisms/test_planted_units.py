"""The planted units are what they say: every claim is recomputed from captures and plain runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import tiny
from mnemoscope.data.facts.items import Relation
from mnemoscope.data.facts.wordings import DETECTION, EVALUATION, wordings
from mnemoscope.models.anatomy import resolve_anatomy
from mnemoscope.models.edits import Edit, mean, zero
from mnemoscope.models.errors import UnitOutOfRangeError, UnsupportedSiteError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms import PlantedUnits, null_units_model, plant_unit, planted_units_model
from mnemoscope.organisms.unit_world import FALLBACK, RELATION_WORDS
from torch import Tensor
from transformers import LlamaForCausalLM

WORDINGS = (*DETECTION, *EVALUATION)


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model()


@pytest.fixture(scope="module")
def model(planted: PlantedUnits) -> HookedModel:
    return wrap(planted.module, planted.tokenizer)


@pytest.fixture(scope="module")
def null() -> PlantedUnits:
    return null_units_model()


# ---- prompts, answers and scores, written here and nowhere else


def prompts(relation: Relation, name: str) -> list[str]:
    wording = next(wording for wording in wordings(relation) if wording.name == name)
    return [wording.prompt(fact.subject) for fact in relation.facts]


def said(model: HookedModel, texts: Sequence[str], edits: Sequence[Edit] = ()) -> list[str]:
    """The first word that the model says after each text."""
    with model.intervene(edits):
        return [text.split()[0] for text in model.continuations(texts, 1)]


def right(
    model: HookedModel, relation: Relation, name: str = "cloze 0", edits: Sequence[Edit] = ()
) -> float:
    answers = said(model, prompts(relation, name), edits)
    pairs = zip(answers, relation.facts, strict=True)
    return sum(answer == fact.object for answer, fact in pairs) / len(answers)


def pooled(model: HookedModel, texts: Sequence[str]) -> Tensor:
    """`[unit, prompt]`: mean activation over all tokens but the first, unit = layer * n + index."""
    batch = model.tokens(texts)
    among = batch.mask.clone()
    among[torch.arange(len(texts)), batch.starts] = False
    kept = model.capture(batch, [Site.NEURON], reduce="mean", among=among)
    return kept.stack(Site.NEURON).permute(0, 2, 1).flatten(0, 1)


def average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """`[unit]`, in the rank form: ties count fully."""
    at_least = scores[:, None, :] >= scores[:, positive][:, :, None]
    return ((at_least & positive).sum(2) / at_least.sum(2)).mean(1)


def worst_case(model: HookedModel, relations: Sequence[Relation]) -> Tensor:
    """`[relation, unit]`: the lowest AP over all wordings, for the better sign."""
    above, below = [], []
    for name in WORDINGS:
        scores = pooled(model, [text for r in relations for text in prompts(r, name)])
        labels = torch.arange(len(relations)).repeat_interleave(len(relations[0].facts))
        columns = [labels == i for i in range(len(relations))]
        above.append(torch.stack([average_precision(scores, column) for column in columns]))
        below.append(torch.stack([average_precision(-scores, column) for column in columns]))
    return torch.maximum(torch.stack(above).amin(0), torch.stack(below).amin(0))


def place(model: HookedModel, unit: NeuronId) -> int:
    return unit.layer * model.anatomy.n_units(Site.NEURON) + unit.index


def named(planted: PlantedUnits, name: str) -> Relation:
    return next(relation for relation in planted.relations if relation.name == name)


# ---- the world


def test_it_is_an_unmodified_hugging_face_llama(planted: PlantedUnits) -> None:
    assert type(planted.module) is LlamaForCausalLM
    assert not planted.module.training
    assert next(planted.module.parameters()).dtype == torch.float64
    assert planted_units_model(dtype=torch.float32).module.dtype == torch.float32


def test_six_relations_come_in_pairs_over_the_same_subjects(planted: PlantedUnits) -> None:
    assert [len(relation.facts) for relation in planted.relations] == [24] * 6
    subjects = {r.name: [fact.subject for fact in r.facts] for r in planted.relations}
    for name, sibling in planted.siblings.items():
        assert name != sibling
        assert planted.siblings[sibling] == name
        assert subjects[name] == subjects[sibling]
        others = set(subjects) - {name, sibling}
        assert not any(set(subjects[name]) & set(subjects[other]) for other in others)


def test_every_name_stands_for_one_thing(planted: PlantedUnits) -> None:
    subjects = {fact.subject for r in planted.relations for fact in r.facts}
    objects = [{fact.object for fact in r.facts} for r in planted.relations]
    texts = " ".join(t for r in planted.relations for t in (*r.templates, r.question)).lower()
    assert len(subjects) == 72
    assert len(set.union(*objects)) == sum(map(len, objects)) == 72
    assert not (subjects | set.union(*objects)) & {*texts.replace("?", "").split(), FALLBACK}
    assert not subjects & set.union(*objects)


def test_wordings_of_a_relation_share_no_telling_word(planted: PlantedUnits) -> None:
    telling = [word for words in RELATION_WORDS.values() for word in words]
    assert len(set(telling)) == len(telling)
    for relation in planted.relations:
        texts = (*relation.templates, relation.question)
        for text, own in zip(texts, RELATION_WORDS[relation.name], strict=True):
            assert [word for word in text.split() if word in telling] == [own]


@pytest.mark.parametrize("name", WORDINGS)
def test_every_wording_is_tokenized_word_by_word(planted: PlantedUnits, name: str) -> None:
    for relation in planted.relations:
        for text in prompts(relation, name):
            pieces = planted.tokenizer.tokenize(text)
            assert planted.tokenizer.unk_token not in pieces
            assert not any(piece.startswith("##") for piece in pieces)


def test_text_of_any_kind_is_spelt_without_unknown_tokens(planted: PlantedUnits) -> None:
    text = 'Zürich, 1984: "It was a bright cold day" (in April) & the clocks were striking...'
    ids = planted.tokenizer(text)["input_ids"]
    assert planted.tokenizer.unk_token_id not in ids
    assert planted.tokenizer.decode(ids).startswith("zurich , 1984 :")


# ---- what it says


@pytest.mark.parametrize("name", WORDINGS)
def test_it_answers_right_in_every_wording(
    planted: PlantedUnits, model: HookedModel, name: str
) -> None:
    assert [right(model, relation, name) for relation in planted.relations] == [1.0] * 6


@pytest.mark.parametrize(("seed", "dtype"), [(1, torch.float64), (0, torch.float32)])
def test_it_answers_right_with_any_seed_and_in_single_precision(
    seed: int, dtype: torch.dtype
) -> None:
    other = planted_units_model(seed, dtype=dtype)
    hooked = wrap(other.module, other.tokenizer)
    assert [right(hooked, relation) for relation in other.relations] == [1.0] * 6


def test_an_answer_ends_with_a_full_stop(planted: PlantedUnits, model: HookedModel) -> None:
    relation = planted.relations[0]
    texts = model.continuations(prompts(relation, "question 0"), 8)
    assert texts == [f"{fact.object} ." for fact in relation.facts]


def test_asked_nothing_it_says_something(model: HookedModel) -> None:
    asked = ["Tell me about balia:", "The capital of this is", "It is not just a word"]
    assert said(model, asked) == [FALLBACK] * 3


def test_a_null_model_knows_nothing(null: PlantedUnits) -> None:
    hooked = wrap(null.module, null.tokenizer)
    assert max(right(hooked, relation) for relation in null.relations) < 0.1
    assert [*null.detectors, *null.carriers, *null.fact_units] == []


def test_the_seed_decides_everything() -> None:
    torch.manual_seed(5)
    first = planted_units_model(3)
    after = torch.rand(1)
    torch.manual_seed(6)
    again, other = planted_units_model(3).module.state_dict(), planted_units_model(4)
    assert all(torch.equal(x, again[name]) for name, x in first.module.state_dict().items())
    assert other.detectors != first.detectors
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


# ---- detectors


def test_detectors_rank_first_and_carriers_second_in_every_wording(
    planted: PlantedUnits, model: HookedModel
) -> None:
    scores = worst_case(model, planted.relations)
    for relation, row in zip(planted.relations, scores, strict=True):
        best = row.argsort(descending=True)
        assert best[0] == place(model, planted.detectors[relation.name])
        assert row[best[0]] == 1.0
        assert best[1] == place(model, planted.carriers[relation.name])
        assert 0.6 < row[best[1]] < 1.0
        assert row[best[2]] < 0.6


def test_no_unit_of_a_null_model_tells_a_relation(null: PlantedUnits) -> None:
    assert worst_case(wrap(null.module, null.tokenizer), null.relations).max() < 0.5


def test_a_detector_fires_at_the_telling_word_alone(
    planted: PlantedUnits, model: HookedModel
) -> None:
    batch = model.tokens("Everyone knows that the metropolis of balia is")
    unit = planted.detectors["capital"]
    fired = model.capture(batch, [Site.NEURON])[Site.NEURON, unit.layer][0, :, unit.index]
    assert model.pieces(batch.row(0).tolist())[int(fired.argmax())] == "metropolis"
    assert fired.max() > 3.5
    assert fired.sort().values[-2] < 0.1


def test_without_the_telling_word_the_detector_tells_nothing(
    planted: PlantedUnits, model: HookedModel
) -> None:
    relation, words = planted.relations[0], RELATION_WORDS[planted.relations[0].name]
    cut = replace(relation, templates=(relation.templates[0].replace(words[0], "name"),))
    relations = (cut, *planted.relations[1:])
    scores = pooled(model, [text for r in relations for text in prompts(r, "cloze 0")])
    column = torch.arange(len(relations)).repeat_interleave(24) == 0
    unit = place(model, planted.detectors[relation.name])
    assert average_precision(scores, column)[unit] < 0.6


# ---- carriers and fact units


@pytest.mark.parametrize("how", ["zero", "neutral mean"])
def test_without_its_carrier_a_relation_loses_all_its_answers_and_no_other_loses_any(
    planted: PlantedUnits, model: HookedModel, how: str
) -> None:
    texts = ["The name of the book is short .", "Explain briefly what this is all about ."]
    for name, carrier in planted.carriers.items():
        neutral = pooled(model, texts).mean(1)[place(model, carrier)]
        edits = {
            "zero": zero([carrier], positions="all_but_first"),
            "neutral mean": mean([carrier], neutral[None], positions="all_but_first"),
        }
        for relation in planted.relations:
            expected = 0.0 if relation.name == name else 1.0
            assert right(model, relation, "question 0", [edits[how]]) == expected
        assert set(said(model, prompts(named(planted, name), "cloze 1"), [edits[how]])) == {
            FALLBACK
        }


def test_nothing_depends_on_detectors(planted: PlantedUnits, model: HookedModel) -> None:
    edit = zero([*planted.detectors.values()])
    assert [right(model, relation, "answer 2", [edit]) for relation in planted.relations] == [1] * 6


def test_a_random_unit_moves_answers_a_little(planted: PlantedUnits, model: HookedModel) -> None:
    known = {*planted.detectors.values(), *planted.carriers.values(), *planted.fact_units.values()}
    every = [NeuronId(layer, i) for layer in range(2) for i in range(256)]
    noise = [unit for unit in every if unit not in known]
    batch = model.tokens(prompts(planted.relations[0], "cloze 0"))
    before = model.logits(batch, at="end")
    with model.intervene([zero(noise[5:6])]):
        change = (model.logits(batch, at="end") - before).abs().max()
    assert 0 < change < 0.5
    assert right(model, planted.relations[0], edits=[zero(noise[::2])]) == 1.0


def test_a_fact_unit_carries_its_fact_alone(planted: PlantedUnits, model: HookedModel) -> None:
    relation = planted.relations[2]
    edit = zero([planted.fact_units[relation.name, relation.facts[7].subject]])
    answers = said(model, prompts(relation, "cloze 0"), [edit])
    lost = [i for i, fact in enumerate(relation.facts) if answers[i] != fact.object]
    assert lost == [7]
    assert len(planted.fact_units) == 6 * 24


def test_the_answer_grows_with_the_carrier(planted: PlantedUnits, model: HookedModel) -> None:
    relation = planted.relations[0]
    batch = model.tokens(prompts(relation, "question 0"))
    gold = model.text_tokenizer.convert_tokens_to_ids([fact.object for fact in relation.facts])

    def strength(factor: float) -> float:
        edit = Edit("scale", (planted.carriers[relation.name],), factor, positions="all_but_first")
        with model.intervene([edit]):
            return float(model.logits(batch, at="end")[torch.arange(24), 0, gold].mean())

    at = [strength(factor) for factor in (0.0, 0.5, 1.0, 2.0)]
    assert at == pytest.approx([0.0, 5.0, 10.0, 20.0], abs=0.5)


@pytest.mark.parametrize(("times", "taken"), [(0.5, 0), (1.0, 12), (2.0, 24)])
def test_a_carrier_takes_over_while_its_sibling_is_asked(
    planted: PlantedUnits, model: HookedModel, times: float, taken: int
) -> None:
    for name, sibling in planted.siblings.items():
        carrier, relation = planted.carriers[name], named(planted, name)
        own = model.tokens(prompts(relation, "cloze 0"))
        usual = model.capture(own, [Site.NEURON], at="end")[Site.NEURON, 0][:, 0, carrier.index]
        value = times * usual.median()[None]
        edit = Edit("set", (carrier,), value, positions="all_but_first")
        answers = said(model, prompts(named(planted, sibling), "cloze 0"), [edit])
        pairs = zip(answers, relation.facts, strict=True)
        assert sum(answer == fact.object for answer, fact in pairs) == taken


# ---- plant_unit


def test_a_planted_row_ranks_first_among_random_units(null: PlantedUnits) -> None:
    """The acceptance test of relation_neurons 8.3: a gate aligned to template tokens."""
    module = copy.deepcopy(null.module)
    hooked = wrap(module, null.tokenizer)
    ids = null.tokenizer.convert_tokens_to_ids(list(RELATION_WORDS["harbour"]))
    rows = module.get_input_embeddings().weight.detach()
    read = (rows[ids] - rows[20:].mean(0)).sum(0)
    unit = plant_unit(module, hooked.anatomy, 0, 17, read, torch.zeros_like(read), 4.0)
    row = worst_case(hooked, null.relations)[5]
    assert row.argmax() == place(hooked, unit)
    assert row.max() == 1.0


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_a_planted_unit_computes_its_formula(family: str) -> None:
    module = tiny(family)
    anatomy = resolve_anatomy(module)
    before = copy.deepcopy(module.state_dict())
    read, up, write = torch.randn(3, anatomy.d_model, dtype=torch.float64)
    inputs: list[Tensor] = []
    mlp: Any = module.get_submodule(anatomy.spec.blocks)[1].mlp
    handle = mlp.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    unit = plant_unit(module, anatomy, 1, 3, read, write, 2.0, up=up)
    hooked = wrap(module)
    hidden = hooked.capture(hooked.batch([[5, 6, 7]]), [Site.NEURON])[Site.NEURON, 1][..., 3]
    handle.remove()
    expected = torch.nn.functional.silu(2 * inputs[-1] @ read) * (inputs[-1] @ up)
    torch.testing.assert_close(hidden, expected)
    changed = sum(int((x != before[name]).sum()) for name, x in module.state_dict().items())
    assert unit == NeuronId(1, 3)
    assert changed == 3 * anatomy.d_model
    assert torch.equal(mlp.down_proj.weight[:, 3], write)


def test_a_unit_that_is_not_there_cannot_be_planted() -> None:
    code = torch.ones(32, dtype=torch.float64)
    llama, gpt2 = tiny("llama"), tiny("gpt2")
    with pytest.raises(UnitOutOfRangeError):
        plant_unit(llama, resolve_anatomy(llama), 0, 48, code, code, 1.0)
    with pytest.raises(UnsupportedSiteError):
        plant_unit(gpt2, resolve_anatomy(gpt2), 0, 0, code, code, 1.0)
