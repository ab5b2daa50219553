"""The whole measurement on the organism that ships: its tables are tied, its capitals learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mnemoscope.data.facts.pairs import PairRelation, with_pairs
from mnemoscope.models import HookedModel, load_model
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.engram.pairs import engram_pairs
from mnemoscope.probes.role_consistency import RoleConfig, RoleConsistency, role_consistency
from mnemoscope.results.role_figures import role_curves_alt, role_curves_figure
from mnemoscope.results.run_folder import open_run

SMALL = RoleConfig(least_pairs=16, most_pairs=24, draws=100, permutations=20)


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram", device="cpu")


@pytest.fixture(scope="module")
def capitals() -> PairRelation:
    relation = engram_pairs(relations=("capital",))["capital"]
    return replace(
        with_pairs(relation, relation.pairs[:48]),
        forward=relation.forward[:2],
        reverse=tuple(text for text in relation.reverse if not text.startswith("{b}"))[:2],
    )


@pytest.fixture(scope="module")
def measured(engram: HookedModel, capitals: PairRelation) -> RoleConsistency:
    return role_consistency(engram, capitals, SMALL)


def test_where_one_table_serves_both_ends_a_read_name_is_itself_at_depth_0(
    measured: RoleConsistency,
) -> None:
    assert measured.tie.tied
    assert np.allclose(measured.tie.cosine, 1)
    assert measured.same_tokens == 1
    assert measured.curve("cos_same", "S-O").value[0] == pytest.approx(1)


def test_at_depth_0_nothing_of_the_predicted_name_is_there(measured: RoleConsistency) -> None:
    mrr = measured.curve("mrr")
    assert mrr.value[0] == pytest.approx(mrr.floor[0])
    assert measured.curve("score").value[0] == 0


def test_a_model_that_learned_the_pairs_is_above_permuted_entities_and_random_weights(
    measured: RoleConsistency,
) -> None:
    mrr = measured.curve("mrr")
    best = int(mrr.value.argmax())
    assert mrr.low[best] > mrr.floor_high[best]
    assert mrr.null.max() < mrr.value.max() / 2
    assert mrr.ceiling.max() > mrr.value.max()


def test_random_weights_show_what_a_shared_token_alone_makes_alike(
    measured: RoleConsistency,
) -> None:
    read = measured.curve("mrr", "S-O")
    assert read.null[0] > 0.8  # the same name was read: similar with no knowledge at all
    assert measured.curve("mrr").null.max() < 0.5


def test_the_layers_end_where_the_model_answers(measured: RoleConsistency) -> None:
    forward = next(b for b in measured.behaviour if b.way == "forward" and not b.in_context)
    ranks = measured.readout.ranks["forward"]
    assert ranks.shape[0] == 7  # six blocks and the output
    assert forward.hit == pytest.approx((ranks[-1] == 1).mean())
    assert forward.hit > 0.5 > forward.chance_hit


def test_the_tables_and_the_summary_are_whole(measured: RoleConsistency) -> None:
    table = measured.table()
    assert {"S-P", "S-O", "S-P_mean", "P-P"} == set(table["roles"])
    assert set(table["layer"]) == set(range(7))
    assert any(name.startswith("among shared 0") for name in table["stratum"])
    assert any(name.startswith("fact in the prompt") for name in table["stratum"])
    text = json.dumps(measured.summary(), allow_nan=False)
    assert json.loads(text)["reading"]["word"] == measured.reading.word
    assert np.array_equal(measured.arrays()["mrr/S-P/all/value"], measured.curve("mrr").value)
    assert role_curves_alt(table, "mrr").startswith("mrr, S-P: highest")
    assert role_curves_figure(table, "mrr", title="", axis_label="MRR").data


def test_pairs_told_one_way_only_are_missing_here_and_it_says_so(
    measured: RoleConsistency,
) -> None:
    assert measured.told == {"both": measured.n_pairs, "forward": 0, "reverse": 0}
    assert measured.told_by == "training"
    assert not measured.contrasts
    assert "too few to contrast" in measured.skipped["told both ways against told one way"]


def test_wordings_that_open_with_the_name_spell_it_in_other_tokens(
    engram: HookedModel, capitals: PairRelation
) -> None:
    opening = replace(capitals, reverse=("{b} is the capital of",))
    bare = replace(SMALL, random_control=False, in_context=False, draws=1, permutations=1)
    found = role_consistency(engram, opening, bare)
    assert found.same_tokens < 0.5
    assert found.curve("cos_same", "S-O").value[0] < 1
    assert np.isnan(found.curve("mrr").null).all()
    assert "one wording only" in found.skipped["ceiling"]


def test_what_is_dropped_is_counted(measured: RoleConsistency, capitals: PairRelation) -> None:
    assert measured.n_pairs + sum(measured.dropped.values()) == len(capitals.pairs)


def test_too_few_pairs_are_refused(engram: HookedModel, capitals: PairRelation) -> None:
    with pytest.raises(MnemoscopeError, match="are asked for"):
        role_consistency(engram, capitals, replace(SMALL, least_pairs=49))


def test_a_run_that_goes_on_gives_the_same(
    engram: HookedModel, capitals: PairRelation, measured: RoleConsistency, tmp_path: Path
) -> None:
    config = {"relation": capitals.name}
    with open_run(tmp_path, "roles", config) as run:
        role_consistency(engram, capitals, replace(SMALL, draws=1, permutations=1), run=run)
        kept = set(run.done)
    with open_run(tmp_path, "roles", config) as run:
        again = role_consistency(engram, capitals, SMALL, run=run)
        assert set(run.done) == kept  # nothing was computed anew
    assert np.array_equal(again.curve("mrr").value, measured.curve("mrr").value)
    assert np.allclose(again.curve("mrr").null, measured.curve("mrr").null)
