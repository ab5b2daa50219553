"""The paper's own procedure, step by step, on a planted model; its golden file on SmolLM2.

Run as a script, this file writes the golden file anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from mnemoscope.data.facts.items import Fact, load_relation
from mnemoscope.models import HookedModel, MnemoscopeError, load_model, wrap
from mnemoscope.models.errors import UnsupportedSiteError
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import (
    PlantedUnits,
    null_units_model,
    planted_units_model,
)
from mnemoscope.probes import paper_relation_effects
from mnemoscope.probes.paper_relation_effects import (
    Answers,
    Cumulativity,
    PaperEffects,
    answer,
    detection_table,
    measure_cumulativity,
    measure_paper_effects,
)
from mnemoscope.probes.paper_relation_neurons import PaperNeurons, UnitPool, find_paper_neurons
from mnemoscope.probes.paper_relations import (
    PAPER_RELATIONS,
    PaperPreset,
    PaperPrompt,
    PaperRelation,
    is_right,
    labels,
    paper_relation,
    paper_relations,
    prompts_of,
    split_triples,
)
from mnemoscope.results.run_folder import open_run

GOLDEN = Path(__file__).parent / "golden" / "paper_relation_neurons.json"
GOLDEN_RANKS = (1, 20, 100, 393, 1_000, 6_000)
LLAMA_2_7B = 32 * (2 * 11_008 + 4_096)
PATHS = {Site.GATE_PRE: "mlp.gate_proj", Site.UP: "mlp.up_proj", Site.MLP_OUT: "mlp.down_proj"}
# The planted models end an answer with a full stop, so the second token is never the object's.
SMALL = PaperPreset(held_out=8, new_tokens=1, k=12, sizes=(2, 12, 40))


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model()


@pytest.fixture(scope="module")
def model(planted: PlantedUnits) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted units")


@pytest.fixture(scope="module")
def found(planted: PlantedUnits, model: HookedModel) -> PaperNeurons:
    return find_paper_neurons(model, [paper_relation(r) for r in planted.relations], SMALL)


@pytest.fixture(scope="module")
def effects(model: HookedModel, found: PaperNeurons) -> PaperEffects:
    return measure_paper_effects(model, found)


# -- relations, prompts, split, matching -----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        (" Quarterback", "quarterback", True),
        (" mid", "midfielder", True),
        ("\nNew York", "New York City", True),
        (" The piano", "piano", False),
        (" piano.", "piano", False),
        ("", "piano", False),
        (" \n", "piano", False),
    ],
)
def test_a_beginning_of_the_object_is_right_in_any_case(said: str, gold: str, right: bool) -> None:
    assert is_right(said, gold) is right


def test_the_preset_gives_the_papers_numbers_in_its_model_and_fractions_of_them_in_others() -> None:
    preset = PaperPreset()
    assert (preset.held_out, preset.negatives, preset.new_tokens, preset.random_draws) == (
        (50, 4, 2, 10)
    )
    assert preset.sites == (Site.GATE_PRE, Site.UP, Site.MLP_OUT)
    assert preset.set_size(LLAMA_2_7B) == 3_000
    assert preset.budgets(LLAMA_2_7B) == (10, 50, 200, 500, 1_000, 3_000, 10_000, 20_000, 50_000)
    smollm2 = 30 * (2 * 1_536 + 576)
    assert preset.set_size(smollm2) == round(0.00359 * smollm2)
    assert PaperPreset(k=3_000).set_size(smollm2) == 3_000
    assert PaperPreset(sizes=(50, 10, 10**6)).budgets(smollm2) == (10, 50)
    for wrong in (0, smollm2 + 1):
        with pytest.raises(MnemoscopeError, match="choose k"):
            PaperPreset(k=wrong).set_size(smollm2)
    with pytest.raises(MnemoscopeError, match="negatives"):
        PaperPreset(negatives=0)


def two_answers_a_subject(n: int) -> PaperRelation:
    facts = tuple(Fact(f"thing {i // 2}", f"maker {i}") for i in range(n))
    return PaperRelation("makes", ("{s} is by? Answer:", "Who made {s}? Answer:"), (), facts)


def test_fifty_triples_are_held_out_and_share_no_subject_with_detection() -> None:
    relation = two_answers_a_subject(200)
    detection, held_out = split_triples(relation, 50, seed=3)
    assert len(set(held_out)) == 50
    assert not {f.subject for f in detection} & {f.subject for f in held_out}
    rest = {f for f in relation.facts if f.subject not in {h.subject for h in held_out}}
    assert set(detection) == rest
    assert split_triples(relation, 50, seed=3) == (detection, held_out)
    assert split_triples(relation, 50, seed=4)[1] != held_out
    assert split_triples(replace(relation, name="other"), 50, seed=3)[1] != held_out
    with pytest.raises(MnemoscopeError, match="held_out"):
        split_triples(two_answers_a_subject(50), 50, seed=0)


def test_each_fact_is_asked_once_in_each_template() -> None:
    relation = two_answers_a_subject(6)
    prompts = prompts_of(relation, relation.facts, relation.templates)
    assert len(prompts) == 12
    assert {p.text for p in prompts} == {
        text
        for i in range(3)
        for text in (f"thing {i} is by? Answer:", f"Who made thing {i}? Answer:")
    }
    for prompt in prompts:
        assert prompt.text[prompt.subject_start :].startswith(prompt.subject)


def test_any_relation_is_asked_zero_shot_in_its_first_templates() -> None:
    relation = load_relation("capital")
    asked = paper_relation(relation)
    assert asked.templates == tuple(f"{text}? Answer:" for text in relation.templates[:2])
    assert asked.new_templates == tuple(f"{text}? Answer:" for text in relation.templates[2:])
    assert asked.facts == relation.facts
    with pytest.raises(MnemoscopeError, match="templates"):
        paper_relation(relation, templates=len(relation.templates) + 1)


def lre_file(folder: Path, file: str, few_shot: Sequence[str], zero_shot: Sequence[str]) -> None:
    content = {
        "name": file.replace("_", " "),
        "prompt_templates": [text.replace("{s}", "{}") for text in few_shot],
        "prompt_templates_zs": [text.replace("{s}", "{}") for text in zero_shot],
        "properties": {"relation_type": "factual"},
        "samples": [{"subject": f"{file} {i}", "object": f"object {i}"} for i in range(3)],
    }
    (folder / f"{file}.json").write_text(json.dumps(content))


def test_the_twelve_relations_are_read_from_lre_by_file(tmp_path: Path) -> None:
    for _, file, templates in PAPER_RELATIONS:
        lre_file(tmp_path, file, templates, (templates[0], "Tell me of {s}. It is"))
    lre_file(tmp_path, "person_native_language", ("{s} speaks",), ())
    relations = paper_relations(tmp_path)
    assert [r.name for r in relations] == [name for name, _, _ in PAPER_RELATIONS]
    assert len(relations) == 12
    by_name = {r.name: r for r in relations}
    assert by_name["company_ceo"].templates == (
        "{s}'s CEO is? Answer:",
        "The CEO of {s} is? Answer:",
    )
    assert by_name["person_pro_sport"].templates == ("{s} plays the sport of? Answer:",)
    assert by_name["person_pro_sport"].facts[0].subject == "person_plays_pro_sport 0"
    assert all(r.new_templates == ("Tell me of {s}. It is? Answer:",) for r in relations)


def test_missing_relations_are_named(tmp_path: Path) -> None:
    lre_file(tmp_path, "company_ceo", ("{s}'s CEO is",), ())
    with pytest.raises(MnemoscopeError, match=r"company_hq\.json.*whole copy"):
        paper_relations(tmp_path)


def some_prompts(sizes: Sequence[int]) -> list[PaperPrompt]:
    return [
        PaperPrompt(f"r{r}", f"s{i}", "o", f"s{i} of r{r}", "w", 0)
        for r, size in enumerate(sizes)
        for i in range(size)
    ]


def test_negatives_are_four_times_the_positives_drawn_from_the_others_with_the_seed() -> None:
    prompts = some_prompts((10, 40, 30))
    positive, member = labels(["r0", "r1", "r2"], prompts, 4, seed=0)
    assert positive.sum(1).tolist() == [10, 40, 30]
    assert not (positive & ~member).any()
    # The last two relations have fewer than four negatives a positive, so they take them all.
    assert (member & ~positive).sum(1).tolist() == [40, 40, 50]
    assert np.array_equal(member, labels(["r0", "r1", "r2"], prompts, 4, seed=0)[1])
    assert not np.array_equal(member, labels(["r0", "r1", "r2"], prompts, 4, seed=1)[1])


# -- scores and sets -------------------------------------------------------------------------------


@contextmanager
def output_hooks(model: HookedModel, path: str, hook: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for i, block in enumerate(model.module.model.layers):
            target = block.get_submodule(path)
            handle = target.register_forward_hook(lambda _, __, out, i=i: hook(i, out))
            stack.callback(handle.remove)
        yield


def module_means(model: HookedModel, text: str) -> torch.Tensor:
    """Mean over all tokens of every gate, up and down projection's output, in the pool's order."""
    seen: dict[tuple[int, str], torch.Tensor] = {}
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with ExitStack() as stack:
        for path in PATHS.values():

            def keep(i: int, out: torch.Tensor, path: str = path) -> None:
                seen[i, path] = out[0].float().mean(0)

            stack.enter_context(output_hooks(model, path, keep))
        with torch.no_grad():
            model.module(input_ids=ids)
    n_layers = len(model.module.model.layers)
    return torch.cat([seen[i, path] for i in range(n_layers) for path in PATHS.values()])


def rank_form(scores: np.ndarray, positive: np.ndarray) -> float:
    at_least = scores[None, :] >= scores[positive][:, None]
    return float((at_least[:, positive].sum(1) / at_least.sum(1)).mean())


def test_units_rank_by_the_average_precision_of_their_signed_mean(
    model: HookedModel, found: PaperNeurons
) -> None:
    positive, member = labels(found.relations, found.detection, 4, SMALL.seed)
    means = np.stack([module_means(model, p.text).numpy() for p in found.detection], axis=1)
    r = 2
    own, design = positive[r][member[r]], means[:, member[r]]
    expected = np.array([rank_form(scores, own) for scores in design])
    order = np.argsort(-expected, kind="stable")
    assert np.allclose(found.ap[r], expected[order[: found.ap.shape[1]]], atol=1e-6)
    here, there = means[:, positive[r]], means[:, member[r] & ~positive[r]]
    spread = np.sqrt((here.var(1) + there.var(1)) / 2)
    gap = (here.mean(1) - there.mean(1)) / spread
    order = np.lexsort((-gap, -expected))
    assert found.ranking[r, :12].tolist() == order[:12].tolist()
    assert found.n_tied[r] == (expected == expected[order[11]]).sum()
    # What is low for the relation does not count: there is such a unit, and it is not in the set.
    mirrored = np.array([rank_form(-scores, own) for scores in design])
    low = np.flatnonzero((mirrored > found.ap[r, 11]) & (expected < 0.2))
    assert len(low) > 0
    assert not set(low) & set(found.ranking[r, :12])


def test_a_planted_detector_is_found_by_its_gate_and_by_its_up_projection(
    planted: PlantedUnits, found: PaperNeurons
) -> None:
    for relation, unit in planted.detectors.items():
        handles = {NeuronId(unit.layer, unit.index, site) for site in (Site.GATE_PRE, Site.UP)}
        assert handles <= set(found.neurons(relation))
        assert found.ap[found.row(relation), 0] == pytest.approx(1)


def test_units_are_numbered_layer_by_layer_and_site_by_site() -> None:
    pool = UnitPool(2, (Site.GATE_PRE, Site.UP, Site.MLP_OUT), (4, 4, 3))
    assert len(pool) == 22
    assert pool.neurons(np.array([0, 3, 4, 10, 11, 21])) == (
        NeuronId(0, 0, Site.GATE_PRE),
        NeuronId(0, 3, Site.GATE_PRE),
        NeuronId(0, 0, Site.UP),
        NeuronId(0, 2, Site.MLP_OUT),
        NeuronId(1, 0, Site.GATE_PRE),
        NeuronId(1, 2, Site.MLP_OUT),
    )
    assert (pool.place(Site.UP), pool.place(Site.MLP_OUT)) == (slice(4, 8), slice(8, 11))


def test_only_right_answers_detect_and_held_out_facts_never_do(
    planted: PlantedUnits, model: HookedModel, found: PaperNeurons
) -> None:
    assert found.n_asked.tolist() == [2 * (24 - 8)] * 6
    assert found.n_positives.sum() == len(found.detection)
    texts = model.continuations([p.text for p in found.detection], 1)
    gold = {(r.name, f.subject): f.object for r in planted.relations for f in r.facts}
    for said, prompt in zip(texts, found.detection, strict=True):
        assert gold[prompt.relation, prompt.subject].startswith(said.strip())
    kept = {(p.relation, p.subject) for p in found.held_out}
    assert len(found.held_out) == 6 * 8 * 2
    assert len(kept) == 6 * 8
    assert not kept & {(p.relation, p.subject) for p in found.detection}
    assert {(p.relation, p.subject) for p in found.reworded} == kept
    assert not {p.wording for p in found.reworded} & {p.wording for p in found.held_out}


def test_sets_overlap_and_lie_in_layers_as_their_units_say(found: PaperNeurons) -> None:
    sets = [set(found.neurons(name)) for name in found.relations]
    assert found.overlaps().tolist() == [[len(a & b) for b in sets] for a in sets]
    assert found.layers().tolist() == [[sum(u.layer == i for u in s) for i in (0, 1)] for s in sets]
    table = found.table()
    assert table.columns == ["relation", "rank", "layer", "site", "index", "ap"]
    assert table.height == 6 * 12
    for name, chosen in zip(found.relations, sets, strict=True):
        rows = table.filter(polars.col("relation") == name).rows()
        assert {NeuronId(layer, i, Site(site)) for _, _, layer, site, i, _ in rows} == chosen
    with pytest.raises(MnemoscopeError, match="ranks"):
        found.neurons("capital", 10**6)
    with pytest.raises(MnemoscopeError, match="use one of"):
        found.neurons("height")


def test_memory_batches_and_company_do_not_change_a_ranking(
    planted: PlantedUnits, model: HookedModel, found: PaperNeurons
) -> None:
    asked = [paper_relation(r) for r in planted.relations]
    again = find_paper_neurons(model, asked, SMALL, rows=5, memory_bytes=2**20)
    assert np.allclose(again.ap, found.ap, atol=1e-9)
    assert again.detection == found.detection
    pair = find_paper_neurons(model, asked[:2], SMALL)
    assert [p for p in found.held_out if p.relation in pair.relations] == list(pair.held_out)


def test_random_sets_are_ten_even_seeded_and_different(found: PaperNeurons) -> None:
    draws = found.random_sets()
    assert [len(set(draw)) for draw in draws] == [12] * 10
    assert len({frozenset(draw) for draw in draws}) == 10
    assert found.random_sets() == draws
    other = replace(found, preset=replace(SMALL, seed=1))
    assert other.random_sets() != draws
    many = found.random_sets(1000)[0]
    shares = {site: sum(u.site is site for u in many) / 1000 for site in PATHS}
    expected = {Site.GATE_PRE: 256 / 896, Site.UP: 256 / 896, Site.MLP_OUT: 384 / 896}
    assert shares == pytest.approx(expected, abs=0.05)


def test_what_cannot_be_found_is_refused(
    planted: PlantedUnits, model: HookedModel, request: Any
) -> None:
    asked = [paper_relation(r) for r in planted.relations]
    for wrong in ([], asked[:1], [asked[0], asked[0]]):
        with pytest.raises(MnemoscopeError, match="two or more"):
            find_paper_neurons(model, wrong, SMALL)
    null = null_units_model()
    with pytest.raises(
        MnemoscopeError, match=r"answers no detection prompt of capital \(0 of 32\)"
    ):
        find_paper_neurons(wrap(null.module, null.tokenizer), asked, SMALL)
    without_gate: HookedModel = request.getfixturevalue("planted_gpt2")
    with pytest.raises(UnsupportedSiteError, match="gate"):
        find_paper_neurons(without_gate, asked, SMALL)


@pytest.fixture
def planted_gpt2() -> HookedModel:
    from mnemoscope.organisms import planted_model

    organism = planted_model()
    return wrap(organism.module, organism.tokenizer)


# -- ablation --------------------------------------------------------------------------------------


def zeroed_answers(
    model: HookedModel, prompts: Sequence[PaperPrompt], neurons: Sequence[NeuronId], new: int
) -> list[str]:
    """Greedy answers, one prompt at a time and without a cache, the units' outputs at 0."""
    columns: dict[tuple[Site, int], list[int]] = {}
    for unit in neurons:
        columns.setdefault((unit.site, unit.layer), []).append(unit.index)
    with ExitStack() as stack:
        for site, path in PATHS.items():

            def zero(i: int, out: torch.Tensor, site: Site = site) -> torch.Tensor:
                out = out.clone()
                out[..., columns.get((site, i), [])] = 0
                return out

            stack.enter_context(output_hooks(model, path, zero))
        texts = []
        for prompt in prompts:
            ids = list(model.tokenizer(prompt.text)["input_ids"])
            start = len(ids)
            while len(ids) < start + new:
                with torch.no_grad():
                    logits = model.module(input_ids=torch.tensor([ids])).logits
                ids.append(int(logits[0, -1].argmax()))
            texts.append(model.tokenizer.decode(ids[start:]))
    return texts


def test_ablated_units_are_zero_at_every_position_and_in_generation(
    model: HookedModel, found: PaperNeurons
) -> None:
    prompts = found.held_out[::5]
    many = found.random_sets(500)[0]
    given = answer(model, prompts, many, new_tokens=3)
    assert [t.strip() for t in given.texts] == [
        t.split("<eos>")[0].strip() for t in zeroed_answers(model, prompts, many, 3)
    ]
    plain = answer(model, prompts, (), new_tokens=3)
    assert list(given.texts) != list(plain.texts)
    judged = [is_right(said, p.gold) for said, p in zip(given.texts, prompts, strict=True)]
    assert given.right.tolist() == judged


def test_ablating_the_carriers_breaks_their_relation_alone(
    planted: PlantedUnits, model: HookedModel, found: PaperNeurons
) -> None:
    carrier = planted.carriers["teacher"]
    for site in (Site.GATE_PRE, Site.UP):
        cut = answer(model, found.held_out, [replace(carrier, site=site)], new_tokens=1)
        whole = answer(model, found.held_out, (), new_tokens=1)
        own = np.array([p.relation == "teacher" for p in found.held_out])
        assert not cut.right[own].any()
        assert whole.right[own].all()
        assert np.array_equal(cut.right[~own], whole.right[~own])


def test_effects_are_of_each_set_on_each_relation_and_of_ten_random_draws(
    model: HookedModel, found: PaperNeurons, effects: PaperEffects
) -> None:
    assert len(effects.ablated) == 6
    assert len(effects.random) == 10
    for i, name in enumerate(found.relations):
        expected = answer(model, found.held_out, found.neurons(name), new_tokens=1)
        assert effects.ablated[i].texts == expected.texts
    draw = answer(model, found.held_out, found.random_sets()[7], new_tokens=1)
    assert effects.random[7].texts == draw.texts
    assert effects.drop.shape == (6, 6)
    assert effects.random_drop.shape == (6, 10)


def test_new_wordings_and_other_sizes_are_asked_too(
    model: HookedModel, found: PaperNeurons
) -> None:
    few = replace(found, preset=replace(SMALL, random_draws=1))
    new = measure_paper_effects(model, few, "reworded", k=3)
    assert new.prompts == found.reworded
    assert new.k == 3
    expected = answer(model, found.reworded, found.neurons("spouse", 3), new_tokens=1)
    assert new.ablated[found.row("spouse")].texts == expected.texts
    with pytest.raises(MnemoscopeError, match="no reworded prompts"):
        measure_paper_effects(model, replace(found, reworded=()), "reworded")


def answers(right: str, texts: Sequence[str] = ()) -> Answers:
    return Answers(tuple(texts or right), np.array([mark == "+" for mark in right]))


def by_hand() -> PaperEffects:
    """Four prompts of "a", two of "b", one of "c"."""
    return PaperEffects(
        relations=("a", "b", "c"),
        k=5,
        prompts=tuple(some_prompts_of("aaaabbc")),
        original=answers("++++-+-"),
        ablated=(
            answers("----++-", ["the cap", "A.", "The", "rome", "x", "x", "x"]),
            answers("+++--++"),
            answers("++++-+-"),
        ),
        random=(answers("++++-+-"), answers("++---+-")),
    )


def some_prompts_of(relations: str) -> Iterator[PaperPrompt]:
    for i, name in enumerate(relations):
        yield PaperPrompt(name, f"s{i}", "o", f"The capital of s{i} is? Answer:", "w", 15)


def test_the_drop_is_relative_in_per_cent_and_negative_where_answers_improve() -> None:
    effects = by_hand()
    expected = [[100, 25, 0], [-100, 0, 0], [np.nan] * 3]
    assert np.allclose(effects.drop, expected, equal_nan=True)
    assert np.allclose(effects.random_drop[:2], [[0, 50], [0, 0]])
    row = effects.table().row(0, named=True)
    assert row == {
        "asked": "a",
        "ablated": "a",
        "n": 4,
        "original": 1.0,
        "accuracy": 0.0,
        "random": 0.75,
        "drop": 100.0,
    }


def test_lost_answers_are_told_by_what_was_said_instead() -> None:
    lost = by_hand().lost_answers()
    assert lost.row(0) == ("a", 4, 1, 1, 1, 1)
    assert lost.row(1) == ("b", 0, 0, 0, 0, 0)


def test_accuracy_on_detection_prompts(model: HookedModel, found: PaperNeurons) -> None:
    few = replace(found, preset=replace(SMALL, random_draws=2))
    table = detection_table(model, few)
    assert table["n"].to_list() == found.n_positives.tolist()
    assert set(table["original"]) == {1.0}
    asked = [p for p in found.detection if p.relation == "captain"]
    own = answer(model, asked, found.neurons("captain"), new_tokens=1).right.mean()
    draws = [answer(model, asked, drawn, new_tokens=1) for drawn in few.random_sets()]
    row = table.filter(polars.col("relation") == "captain").row(0, named=True)
    assert row["accuracy"] == pytest.approx(own)
    assert row["random"] == pytest.approx(np.mean([a.right.mean() for a in draws]))


def test_cumulativity_counts_answers_lost_with_the_larger_budget_and_without_the_smaller(
    model: HookedModel, found: PaperNeurons
) -> None:
    measured = measure_cumulativity(model, found)
    assert measured.sizes == (2, 12, 40)
    for r, name in enumerate(found.relations):
        asked = [p for p in found.held_out if p.relation == name]
        ranks = found.neurons(name, 40)
        right = {k: answer(model, asked, ranks[:k], new_tokens=1).right for k in (2, 12, 40)}
        assert measured.accuracy[r].tolist() == [right[k].mean() for k in (2, 12, 40)]
        for pair, (a, b) in enumerate([(2, 12), (12, 40)]):
            lost = right[a] & ~right[b]
            alone = answer(model, asked, ranks[a:b], new_tokens=1).right
            assert measured.total[r, pair] == lost.sum()
            assert measured.affected[r, pair] == (lost & ~alone).sum()
    assert measured.total.sum() > 0


def test_cumulativity_of_the_papers_rows() -> None:
    total = np.array([[0, 26], [3, 7], [13, 6], [0, 16], [7, 6], [1, 20], [8, 1]])
    affected = np.array([[0, 5], [3, 5], [11, 0], [0, 0], [2, 0], [0, 5], [7, 0]])
    measured = Cumulativity(tuple("abcdefg"), (1, 2, 3), np.zeros((7, 3)), total, affected)
    assert measured.micro == pytest.approx([0.28, 0.82], abs=0.005)
    assert np.isnan(measured.by_relation[0, 0])
    assert measured.by_relation[1, 0] == 0
    assert measured.macro[0] == pytest.approx(np.mean([0, 2 / 13, 5 / 7, 1, 1 / 8]))


def test_kept_answers_are_read_back(
    model: HookedModel,
    found: PaperNeurons,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = replace(found, preset=replace(SMALL, random_draws=2))
    straight = measure_paper_effects(model, found)
    with open_run(tmp_path, "paper", {"seed": 0}) as run:
        first = measure_paper_effects(model, found, run=run)
        assert len(run.done) == 1 + 6 + 2

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("asked again")

        monkeypatch.setattr(paper_relation_effects, "greedy_texts", refuse)
        again = measure_paper_effects(model, found, run=run)
    for given in (first, again):
        assert given.original.texts == straight.original.texts
        assert np.array_equal(given.drop, straight.drop, equal_nan=True)


# -- golden ----------------------------------------------------------------------------------------


def golden_numbers() -> dict[str, Any]:
    """Counts of prompts, the top twenty units, AP down the ranking and the layers of the sets, for
    four shipped relations in SmolLM2, 60 facts each."""
    names = ("capital", "city_in_country", "continent", "demonym")
    cut = [paper_relation(replace(r, facts=r.facts[:60])) for r in map(load_relation, names)]
    found = find_paper_neurons(load_model("smollm2"), cut, PaperPreset(held_out=10))
    return {
        "k": found.k,
        "asked": found.n_asked.tolist(),
        "positives": found.n_positives.tolist(),
        "negatives": found.n_negatives.tolist(),
        "tied": found.n_tied.tolist(),
        "ranks": list(GOLDEN_RANKS),
        "ap": {
            name: [round(float(row[rank - 1]), 4) for rank in GOLDEN_RANKS]
            for name, row in zip(found.relations, found.ap, strict=True)
        },
        "layers": dict(zip(found.relations, found.layers().tolist(), strict=True)),
        "top": {
            name: [f"{unit.site} {unit.layer}:{unit.index}" for unit in found.neurons(name, 20)]
            for name in found.relations
        },
    }


@pytest.mark.slow
def test_smollm2_gives_the_golden_units() -> None:
    """The kernels of another processor round otherwise and may swap prompts of nearly equal
    activation, and so a unit or two; more is a change of method."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = golden_numbers()
    for key in ("k", "asked", "positives", "negatives", "ranks"):
        assert found[key] == golden[key], key
    for name, units in golden["top"].items():
        assert len(set(units) & set(found["top"][name])) >= 18
        assert found["ap"][name] == pytest.approx(golden["ap"][name], abs=0.005)
        moved = np.abs(np.subtract(found["layers"][name], golden["layers"][name])).sum()
        assert moved <= 8


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    text = json.dumps(golden_numbers(), indent=1)
    GOLDEN.write_text(text + "\n", encoding="utf-8")
