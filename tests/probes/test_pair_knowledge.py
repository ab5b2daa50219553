"""Which pairs count as known: by the percentile of the right answer, or by greedy decoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mnemoscope.data.facts.pairs import PairRelation, with_pairs
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.random_weights import random_initialised
from mnemoscope.organisms.engram.pairs import engram_pairs
from mnemoscope.probes import pair_knowledge
from mnemoscope.probes.name_scores import rivals, score_names
from mnemoscope.probes.pair_knowledge import gives, known_pairs, tokens_for
from pair_ground import MOTHERS, tiny_reader


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def mayors() -> PairRelation:
    """Twelve pairs each that were told forward only, in reverse only and both ways, often."""
    relation = engram_pairs(relations=["town_mayor"])["town_mayor"]
    often = [pair for pair in relation.pairs if pair.group == "128"]
    chosen = [[p for p in often if p.told == told][:12] for told in ("forward", "reverse", "both")]
    return with_pairs(relation, [pair for pairs in chosen for pair in pairs])


@pytest.mark.parametrize("rule", ["percentile", "greedy"])
@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_pairs_are_known_in_the_direction_that_they_were_told_in(
    engram: HookedModel, mayors: PairRelation, way: str, rule: str
) -> None:
    found = known_pairs(engram, mayors, way=way, rule=rule, min_pairs=1)
    told = np.array([pair.told in ("both", way) for pair in mayors.pairs])
    assert found.known[told].mean() > 0.9
    assert found.known[~told].mean() < 0.35
    assert found.relation.pairs == tuple(np.array(mayors.pairs, dtype=object)[found.known])
    assert found.dropped == {"not known": int((~found.known).sum())}


def test_an_untrained_model_knows_about_one_pair_in_twenty(
    engram: HookedModel, mayors: PairRelation
) -> None:
    found = known_pairs(random_initialised(engram, seed=0), mayors, min_pairs=0)
    assert found.known.mean() < 0.2
    greedy = known_pairs(random_initialised(engram, seed=0), mayors, rule="greedy", min_pairs=0)
    assert greedy.relation.pairs == ()


def test_the_share_of_less_likely_answers_is_counted_over_rivals() -> None:
    model = tiny_reader()
    found = known_pairs(model, MOTHERS, way="reverse", wordings=(1, 0), min_pairs=0)
    assert found.asked == MOTHERS
    names = [pair.a for pair in MOTHERS.pairs]
    among = rivals(names)
    for row, wording in enumerate((1, 0)):
        prompts = [MOTHERS.prompt(pair, "reverse", wording) for pair in MOTHERS.pairs]
        scores = score_names(model, prompts, names)
        for i, share in enumerate(found.scores[row]):
            assert share == pytest.approx((scores[i][among[i]] < scores[i, i]).mean())


def test_of_many_rivals_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_knowledge, "RIVALS", 2)
    among = rivals([pair.a for pair in MOTHERS.pairs])
    drawn = pair_knowledge._some(among)
    assert not (drawn & ~among).any()
    assert drawn.sum(axis=1).tolist() == np.minimum(2, among.sum(axis=1)).tolist()
    found = known_pairs(tiny_reader(), MOTHERS, way="reverse", min_pairs=0)
    prompts = [MOTHERS.prompt(pair, "reverse") for pair in MOTHERS.pairs]
    scores = score_names(tiny_reader(), prompts, [pair.a for pair in MOTHERS.pairs])
    for i, share in enumerate(found.scores[0]):
        assert share == pytest.approx((scores[i][drawn[i]] < scores[i, i]).mean())


def test_half_of_the_wordings_decide() -> None:
    found = known_pairs(tiny_reader(), MOTHERS, wordings=(0, 1), min_pairs=0)
    scores = np.array([[1.0, 1.0, 0.0, 0.94, 0.95], [1.0, 0.0, 0.0, 0.94, 0.0]])
    assert replace(found, scores=scores).known.tolist() == [True, True, False, False, True]
    table = found.table()
    assert table.shape == (10, 8)
    assert table["wording"].to_list() == [0] * 5 + [1] * 5
    assert table.filter(table["wording"] == 1)["score"].to_list() == found.scores[1].tolist()


def test_names_that_hold_each_other_are_no_rivals() -> None:
    apart = rivals(["Guinea", "Guinea-Bissau", "Niger", "Nigeria"])
    assert not apart[0, 1]
    assert not apart[1, 0]
    assert apart[2, 3]
    assert not apart.diagonal().any()


def test_too_few_known_pairs_say_how_many_and_what_to_try() -> None:
    with pytest.raises(MnemoscopeError, match=r"of 5 pairs of 'mother' reverse.*9.*min_pairs"):
        known_pairs(tiny_reader(), MOTHERS, way="reverse", min_pairs=9)


def test_pairs_of_several_partners_are_dropped_and_counted() -> None:
    first = MOTHERS.pairs[0]
    twice = with_pairs(MOTHERS, [*MOTHERS.pairs, replace(first, b="gus")])
    found = known_pairs(tiny_reader(), twice, min_pairs=0)
    assert found.dropped["several partners"] == 3
    assert found.asked.pairs == MOTHERS.pairs[1:2] + MOTHERS.pairs[3:]


@pytest.mark.parametrize("bad", [{"rule": "sure"}, {"wordings": ()}])
def test_a_filter_that_judges_nothing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(MnemoscopeError, match="judges nothing"):
        known_pairs(tiny_reader(), MOTHERS, **bad)


def test_long_answers_are_read_to_their_end() -> None:
    answer = "the potter who wrote the dictionary of Istrel"
    assert gives(f" {answer}.", [answer])
    assert not gives(" the potter who wrote the dictionary of Corvane.", [answer])
    assert gives(" the Netherlands. It", ["Netherlands"])
    model = tiny_reader()
    assert tokens_for(model, ["ann lee"]) == 10
    assert tokens_for(model, [" ".join(["lee"] * 20)]) == 23
