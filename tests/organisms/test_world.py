"""The world of the planted models: its text becomes whole words, and bad facts are refused."""

from __future__ import annotations

import pytest
from mnemoscope.data.facts.conflicts import CONDITIONS, build_conflicts
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms import PlantedModel, planted_model, planted_relation
from mnemoscope.organisms.world import FACTS


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model()


def test_every_prompt_of_the_conflict_builder_is_made_of_known_words(planted: PlantedModel) -> None:
    relation = planted_relation(planted)
    prompts = []
    for template_id in range(len(planted.templates)):
        built = build_conflicts(
            relation,
            relation.facts,
            template_id=template_id,
            seed=template_id,
            demonstrations=relation.facts[:2],
        )
        assert len(built.items) == len(FACTS) - 2
        prompts += [item.prompt(condition) for item in built.items for condition in CONDITIONS]
    ids = planted.tokenizer(prompts, return_tensors="pt", padding=True)["input_ids"]
    assert not (ids == planted.tokenizer.unk_token_id).any()
    assert ids.shape[1] <= planted.module.config.n_positions


def test_ordinary_writing_and_spaced_writing_give_the_same_tokens(planted: PlantedModel) -> None:
    read = planted.tokenizer
    spaced = read("the capital of aland is tirsk . the capital")["input_ids"]
    assert read("The capital of Aland is tirsk. The capital")["input_ids"] == spaced
    assert len(spaced) == 9


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({**FACTS, "aland": "New Tirsk"}, "not one lower-case word"),
        ({**FACTS, "aland": FACTS["bravia"]}, "stands for two things"),
        ({**FACTS, "capital": "bergen"}, "stands for two things"),
        ({"aland": "tirsk", "bravia": "monpel"}, "at least four"),
    ],
)
def test_facts_that_cannot_be_planted_are_refused(facts: dict[str, str], complaint: str) -> None:
    with pytest.raises(MnemoscopeError, match=complaint):
        planted_model(facts=facts)
