"""Units across languages: on relations whose detectors fire in two languages and are exchanged in
a third."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.items import Relation, load_relation
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.organisms.unit_world import RELATION_WORDS
from mnemoscope.probes.languages import (
    in_language,
    languages_of,
    measure_knowledge,
    translated,
)
from mnemoscope.probes.neuron_languages import (
    POOLED,
    LanguageUnits,
    detect_in_languages,
    language_effects,
    overlap_table,
    overlaps,
    transfer_table,
)

COUNTRIES = ("capital", "continent", "currency", "official_language")


def frames(words: tuple[str, ...]) -> tuple[str, ...]:
    """Wordings that no planted relation has, around the telling words of one."""
    first, second, third = words[:3]
    return (
        f"Tell me the {first} of {{s}} which is",
        f"Please name the {second} of {{s}} and it is",
        f"About {{s}} : what the {third} is called is",
    )


def abroad(relation: Relation, siblings: dict[str, str]) -> Relation:
    """Adds "xx", which says the same in other sentences, "yy", where the words of two siblings are
    exchanged, and "zz", which does not say what it asks for."""
    languages = {
        "xx": frames(RELATION_WORDS[relation.name]),
        "yy": frames(RELATION_WORDS[siblings[relation.name]]),
        "zz": frames(("word", "sentence", "name")),
    }
    facts = tuple(
        replace(
            fact,
            names=dict.fromkeys(languages, fact.subject),
            object_names=dict.fromkeys(languages, fact.object),
        )
        for fact in relation.facts
    )
    return replace(relation, templates_by_language=languages, facts=facts)


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model()


@pytest.fixture(scope="module")
def model(planted: PlantedUnits) -> HookedModel:
    return wrap(planted.module, planted.tokenizer)


@pytest.fixture(scope="module")
def relations(planted: PlantedUnits) -> tuple[Relation, ...]:
    return tuple(abroad(relation, dict(planted.siblings)) for relation in planted.relations)


@pytest.fixture(scope="module")
def found(model: HookedModel, relations: tuple[Relation, ...]) -> LanguageUnits:
    return detect_in_languages(model, relations, ("en", "xx", "yy"), k=1)


# -- relations in other languages ---------------------------------------------------------------


def test_a_relation_in_another_language_is_a_relation() -> None:
    capital = load_relation("capital")
    french = in_language(capital, "fr")
    assert french.name == "capital (fr)"
    assert french.templates == capital.templates_by_language["fr"]
    kabul = translated(capital, "fr")["Afghanistan"]
    assert (kabul.subject, kabul.object) == ("Afghanistan", "Kaboul")
    assert "Kabul" in kabul.answers  # the English spelling stays right
    assert french.question == ""


def test_a_missing_name_is_the_english_one_in_latin_script_only() -> None:
    capital = load_relation("capital")
    assert translated(capital, "de")["Albania"].object == "Tirana"
    assert "Albania" not in translated(capital, "ja")
    assert translated(capital, "ja")["Afghanistan"].object == "カブール"
    assert translated(capital, "en")["Albania"] == capital.fact("Albania")


def test_four_shipped_relations_share_eight_languages() -> None:
    relations = [load_relation(name) for name in COUNTRIES]
    assert languages_of(relations) == ("en", "ar", "de", "es", "fr", "ja", "ru", "zh")
    assert languages_of([*relations, load_relation("demonym")]) == ("en",)
    with pytest.raises(MnemoscopeError, match="no wordings in 'fr', only in en"):
        in_language(load_relation("demonym"), "fr")


def test_knowledge_is_measured_in_each_language_and_says_which_fail(
    model: HookedModel, relations: tuple[Relation, ...]
) -> None:
    known = measure_knowledge(model, relations, facts=6)
    assert known.languages == ("en", "xx", "yy", "zz")
    assert known.known() == ("en", "xx")
    assert (known.share[:2] == 1).all()
    assert (known.share[3] == 0).all()
    assert (known.asked == 6).all()
    assert known.verdicts()["zz"] == "not known: 0% right, 30% needed"
    assert known.verdicts(0.9)["xx"] == "known: 100% right, 90% needed"
    row = known.table().row(0, named=True)
    assert row == {"language": "en", "relation": "capital", "right": 6, "asked": 6, "share": 1.0}


# -- units --------------------------------------------------------------------------------------


def test_a_detector_is_found_in_each_language_that_says_its_words(
    found: LanguageUnits, planted: PlantedUnits
) -> None:
    for name in found.relations:
        detector, exchanged = planted.detectors[name], planted.detectors[planted.siblings[name]]
        assert found.neurons(name, "en") == (detector,)
        assert found.neurons(name, "xx") == (detector,)
        assert found.neurons(name, "yy") == (exchanged,)
    assert (found.sign[:3] == 1).all()
    np.testing.assert_allclose(found.score[:3], 1)
    assert (found.score[3] < 0.9).all()  # nothing tells a relation in all three at once


def test_units_pooled_over_languages_that_agree_are_those_of_each(
    model: HookedModel, relations: tuple[Relation, ...], planted: PlantedUnits
) -> None:
    agreed = detect_in_languages(model, relations, ("en", "xx"), k=1)
    for name in agreed.relations:
        assert agreed.neurons(name, POOLED) == (planted.detectors[name],)


def test_transfer_holds_where_words_mean_the_same(found: LanguageUnits) -> None:
    alike, exchanged = [0, 1], 2
    np.testing.assert_allclose(found.test_ap[np.ix_(alike, alike)], 1)
    np.testing.assert_allclose(found.test_ap[exchanged, exchanged], 1)
    assert (found.test_ap[alike, exchanged] < 0.5).all()
    assert (found.test_ap[exchanged, alike] < 0.5).all()
    table = transfer_table(found)
    assert len(table) == 6 * 4 * 3
    (row,) = table.filter(detected="en", tested="xx", relation="capital").to_dicts()
    assert row["ap"] == pytest.approx(1)


def test_overlap_between_languages_stands_beside_ceiling_and_control(
    model: HookedModel, relations: tuple[Relation, ...]
) -> None:
    """Half of the subjects may not tell the detector from the carrier, so sets of two hold both of
    them, or the detector at least."""
    found = detect_in_languages(model, relations, ("en", "xx", "yy"), k=2)
    shared = overlaps(found)
    assert (np.einsum("aar->ar", shared.across) >= 0.5).all()  # the ceiling
    assert (shared.across[0, 1] >= 0.5).all()
    assert (shared.limited[0, 1] > 0.7).all()
    np.testing.assert_allclose(shared.across[0, 2], 0)
    np.testing.assert_allclose(shared.control, 0)
    assert shared.chance == 2 / 512
    assert len(overlap_table(found)) == 6 * 3


def by_hand(halves: np.ndarray) -> LanguageUnits:
    """Two languages, two relations, sets of 2 of 10 units."""
    sets = np.zeros((3, 2, 2))
    return LanguageUnits(
        ("en", "fr"), ("a", "b"), Site.NEURON, 5, 10, 2, sets.astype(int), sets.astype(int), sets,
        halves, np.zeros((3, 2, 2)), {}, {},
    )  # fmt: skip


def test_overlaps_of_sets_made_by_hand() -> None:
    first = [[[0, 1], [2, 3]], [[0, 4], [2, 0]]]  # language, relation, units
    second = [[[0, 5], [2, 3]], [[1, 0], [8, 9]]]
    shared = overlaps(by_hand(np.array([first, second])))
    # relation a: en halves share {0}; fr {0}; en with fr {0, 1} and {0}
    np.testing.assert_allclose(shared.across[:, :, 0], [[0.5, 0.75], [0.75, 0.5]])
    np.testing.assert_allclose(shared.limited[0, 1, 0], 0.75 / 0.5)
    # relation b: en halves share {2, 3}; fr nothing; en with fr nothing and {2}
    np.testing.assert_allclose(shared.across[:, :, 1], [[1, 0.25], [0.25, 0]])
    assert np.isnan(shared.limited[0, 1, 1])
    # in French a's {0, 4} and b's {8, 9} share nothing, b's {2, 0} and a's {1, 0} share {0}
    np.testing.assert_allclose(shared.control, [[0, 0], [0.25, 0.25]])
    assert shared.chance == 0.2


def test_finding_and_judging_share_no_subject_and_ask_the_same_everywhere(
    found: LanguageUnits,
) -> None:
    for name in found.relations:
        assert not set(found.find_subjects[name]) & set(found.test_subjects[name])
    sizes = {len(s) for s in (*found.find_subjects.values(), *found.test_subjects.values())}
    assert min(sizes) >= 4
    assert len(sizes) <= 2


def test_memory_bounds_change_no_number(
    model: HookedModel, relations: tuple[Relation, ...], found: LanguageUnits
) -> None:
    n_prompts = sum(map(len, found.find_subjects.values()))
    tight = detect_in_languages(
        model, relations, ("en", "xx", "yy"), k=1, memory_bytes=256 * n_prompts * 4, rows=5
    )
    assert (tight.top == found.top).all()
    np.testing.assert_allclose(tight.test_ap, found.test_ap, atol=1e-6)


def test_effects_of_a_carrier_reach_every_language_that_says_its_words(
    model: HookedModel,
    relations: tuple[Relation, ...],
    found: LanguageUnits,
    planted: PlantedUnits,
) -> None:
    carrier = planted.carriers["capital"]
    top = found.top.copy()
    top[0, 0] = carrier.layer * found.n_units + carrier.index
    chosen = replace(found, top=top)
    assert chosen.neurons("capital", "en") == (carrier,)
    means = torch.zeros(model.anatomy.n_layers, found.n_units)
    effects = language_effects(model, chosen, relations[0], means)
    assert effects.relations == ("capital (en)", "capital (xx)", "capital (yy)")
    assert effects.ablated == ("en", "xx", "yy", POOLED)
    loss = {name: effects.loss[:, effects.rows_of(name)].mean(1) for name in effects.relations}
    assert loss["capital (en)"][0] > 3
    assert loss["capital (xx)"][0] > 3
    assert abs(loss["capital (yy)"][0]) < 1  # there the words ask for the currency
    assert abs(loss["capital (xx)"][1]) < 1  # a detector carries nothing


def test_what_cannot_be_compared_is_refused(
    model: HookedModel, relations: tuple[Relation, ...], found: LanguageUnits
) -> None:
    with pytest.raises(MnemoscopeError, match="two different languages"):
        detect_in_languages(model, relations, ("en",))
    with pytest.raises(MnemoscopeError, match="two different relations"):
        detect_in_languages(model, relations[:1], ("en", "xx"))
    with pytest.raises(MnemoscopeError, match="must be different"):
        detect_in_languages(model, relations, ("en", "xx"), detection=(0, 2))
    with pytest.raises(MnemoscopeError, match="templates 0 to 2"):
        detect_in_languages(model, relations, ("en", "xx"), evaluation=(3,))
    with pytest.raises(MnemoscopeError, match="choose k"):
        detect_in_languages(model, relations, ("en", "xx"), k=513)
    with pytest.raises(MnemoscopeError, match="4 are needed"):
        detect_in_languages(model, relations, ("en", "xx"), subjects=3)
    with pytest.raises(MnemoscopeError, match="there are capital"):
        found.neurons("capital", "fr")
    assert isinstance(found.neurons("capital", POOLED)[0], NeuronId)
