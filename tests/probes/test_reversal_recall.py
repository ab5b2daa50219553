"""Recall in both directions: against brute force, and on facts whose telling is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from mnemoscope.data.facts.pairs import WAYS, with_pairs
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.random_weights import random_initialised
from mnemoscope.organisms.engram.pairs import engram_pairs
from mnemoscope.probes.name_scores import rivals, score_names
from mnemoscope.probes.reversal_recall import (
    MEASURES,
    ReversalRecall,
    other_names,
    reversal_recall,
)
from mnemoscope.results.statistics import wilson
from pair_ground import MOTHERS, tiny_reader
from scipy import stats


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def mayors(engram: HookedModel) -> ReversalRecall:
    """Mayors that were told 128 times, 16 of them each way."""
    relation = engram_pairs(relations=["town_mayor"])["town_mayor"]
    often = [pair for pair in relation.pairs if pair.group == "128"]
    return reversal_recall(engram, with_pairs(relation, often))


def value(recall: ReversalRecall, way: str, stratum: str, measure: str) -> dict[str, float]:
    table = recall.table()
    names = {"way": way, "stratum": stratum, "measure": measure}
    return table.filter([pl.col(name) == one for name, one in names.items()]).row(-1, named=True)


def test_what_was_told_one_way_is_recalled_that_way_only(mayors: ReversalRecall) -> None:
    for told, other in (("forward", "reverse"), ("reverse", "forward")):
        assert value(mayors, told, f"told {told}", "exact")["low"] > 0.75
        assert value(mayors, other, f"told {told}", "exact")["high"] < 0.25
        assert value(mayors, other, f"told {told}", "mrr")["value"] < 0.35
        assert value(mayors, told, "told both", "exact")["low"] > 0.75
    forward = value(mayors, "forward - reverse", "told forward", "mrr")
    assert forward["low"] > 0.5
    assert forward["p"] < 0.01
    both = value(mayors, "forward - reverse", "told both", "exact")
    assert both["low"] <= 0 <= both["high"]


def test_an_untrained_model_recalls_nothing(engram: HookedModel, mayors: ReversalRecall) -> None:
    some = with_pairs(mayors.relation, mayors.relation.pairs[::2])
    null = reversal_recall(random_initialised(engram, seed=1), some)
    for way in WAYS:
        assert value(null, way, "all", "exact")["value"] == 0
        mrr = value(null, way, "all", "mrr")
        assert mrr["low"] <= mrr["chance"] <= mrr["high"]
        assert value(null, way, "all", "gain")["p"] > 0.01
        assert value(null, way, "all", "ks")["p"] > 0.01


def test_every_number_is_that_of_brute_force() -> None:
    model = tiny_reader()
    recall = reversal_recall(model, MOTHERS, wordings=(1, 0), seed=3)
    for way in WAYS:
        names = [pair.asked(way) for pair in MOTHERS.pairs]
        among = rivals(names)
        other = other_names(among, 3)
        read = recall.ways[way]
        for row, wording in enumerate((1, 0)):
            prompts = [MOTHERS.prompt(pair, way, wording) for pair in MOTHERS.pairs]
            scores = score_names(model, prompts, names)
            own = scores.diagonal()
            rank = 1 + (among & (scores >= own[:, None])).sum(axis=1)
            assert read.rank[row].tolist() == rank.tolist()
            np.testing.assert_allclose(read.log_prob[row], own)
            np.testing.assert_allclose(read.other[row], scores[np.arange(5), other])
            assert read.tokens[row].tolist() == [len(name.split()) for name in names]
            assert read.other_tokens[row].tolist() == [len(names[i].split()) for i in other]
        n = among.sum(axis=1) + 1
        chance = [sum(1 / k for k in range(1, one + 1)) / one for one in n]
        np.testing.assert_allclose(read.chance["mrr"], chance)


def test_the_table_averages_wordings_within_a_pair() -> None:
    recall = reversal_recall(tiny_reader(), MOTHERS, wordings=(0, 1))
    table = recall.table()
    assert set(table["wording"]) == {"0", "1", "all"}
    read = recall.ways["reverse"]
    row = value(recall, "reverse", "all", "mrr")
    assert row["wording"] == "all"
    assert row["value"] == pytest.approx((1 / read.rank).mean())
    ks = stats.ks_2samp(read.log_prob.mean(0), read.other.mean(0), method="asymp")
    assert value(recall, "reverse", "all", "ks")["p"] == pytest.approx(ks.pvalue)
    assert set(table["measure"]) == {*MEASURES, "ks"}
    a_token = read.log_prob / np.array([[len(pair.a.split()) for pair in MOTHERS.pairs]])
    found = value(recall, "reverse", "all", "log_prob a token")["value"]
    assert found == pytest.approx(a_token.mean())


def test_a_rate_in_one_wording_has_wilsons_interval(mayors: ReversalRecall) -> None:
    row = value(mayors, "reverse", "told forward", "hit@1")
    hits = mayors.ways["reverse"].rank[0][mayors.strata["told forward"]] == 1
    share = wilson(int(hits.sum()), len(hits))
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        (share.rate, share.low, share.high)
    )


def test_strata_are_told_groups_and_names_that_share() -> None:
    strata = reversal_recall(tiny_reader(), MOTHERS).strata
    assert strata["group often"].tolist() == [True, False, True, False, False]
    assert strata["group once"].tolist() == [False, True, False, True, False]
    # "ann lee" and "eve lee" alone share a surname, so that stratum has one pair only.
    assert "names share" not in strata
    assert strata["names apart"].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("seed", range(5))
def test_another_name_is_a_permutation_without_fixed_points(seed: int) -> None:
    among = ~np.eye(7, dtype=bool)
    other = other_names(among, seed)
    assert sorted(other) == list(range(7))
    assert (other != np.arange(7)).all()
    among[0, 1:6] = among[1:6, 0] = False
    assert other_names(among, seed)[0] == 6


def test_progress_reaches_its_end() -> None:
    seen: list[tuple[int, int]] = []
    reversal_recall(tiny_reader(), MOTHERS, wordings=(0, 1), progress=lambda *at: seen.append(at))
    assert seen[-1] == (40, 40)
    assert seen == sorted(seen)


def test_the_same_seed_gives_the_same_table() -> None:
    one, again = (reversal_recall(tiny_reader(), MOTHERS, seed=2).table() for _ in range(2))
    assert one.equals(again)


def test_wordings_that_are_not_there_and_names_without_rivals() -> None:
    with pytest.raises(MnemoscopeError, match="forward wordings 0 to 1"):
        reversal_recall(tiny_reader(), MOTHERS, wordings=(2,))
    with pytest.raises(MnemoscopeError, match="more pairs"):
        reversal_recall(tiny_reader(), with_pairs(MOTHERS, MOTHERS.pairs[:1]))
