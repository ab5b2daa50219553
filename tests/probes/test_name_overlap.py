"""Overlap of names: shared tokens, first tokens, lengths, surnames and groups."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.data.facts.items import load_relation
from mnemoscope.models import load_model
from mnemoscope.models.errors import PromptError
from mnemoscope.probes.name_overlap import group_strata, name_overlap, same_group
from pair_ground import PAIRS, tiny_reader

READER = tiny_reader()
NAMES = ("ann lee", "bob lee", "cat", "dan moe", "ann moe lee", "moe")


def pairs_in(mask: np.ndarray) -> set[tuple[int, int]]:
    assert np.array_equal(mask, mask.T)
    return {(i, j) for i, j in np.argwhere(mask).tolist() if i < j}


def test_the_classes_of_a_handful_of_names() -> None:
    masks = name_overlap(READER, NAMES).masks()
    assert pairs_in(masks["shared 2+"]) == {(0, 4)}
    assert pairs_in(masks["shared 1"]) == {(0, 1), (1, 4), (3, 4), (3, 5), (4, 5)}
    assert pairs_in(masks["same first token"]) == {(0, 4)}
    assert pairs_in(masks["same token length"]) == {(0, 1), (0, 3), (1, 3), (2, 5)}
    assert pairs_in(masks["same surname"]) == {(0, 1), (0, 4), (1, 4)}  # "moe" is no surname


def test_overlap_is_that_of_the_sets_of_tokens() -> None:
    model = load_model("engram")
    names = [fact.subject for fact in load_relation("capital").facts[:60]]
    overlap = name_overlap(model, names)
    sets = [set(model.answer_ids("It is", name)) for name in names]
    assert overlap.shared_tokens.tolist() == [[len(a & b) for b in sets] for a in sets]
    firsts = [ids[0] for ids in overlap.token_ids]
    assert overlap.same_first_token.sum() == sum(
        a == b for i, a in enumerate(firsts) for j, b in enumerate(firsts) if i != j
    )


def test_every_two_names_share_none_one_or_more_and_no_name_is_compared_with_itself() -> None:
    masks = name_overlap(READER, NAMES).masks()
    shared = sum(masks[f"shared {n}"].astype(int) for n in ("0", "1", "2+"))
    assert np.array_equal(shared, 1 - np.eye(len(NAMES)))
    assert not any(np.diag(mask).any() for mask in masks.values())


def test_surnames_are_folded_and_juniors_have_their_fathers() -> None:
    names = ("Ann Brontë", "Bob bronte", "Ann Bronte Jr.", "Bronte", "Ann Lee")
    assert pairs_in(name_overlap(READER, names).same_surname) == {(0, 1), (0, 2), (1, 2)}


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(PromptError, match="empty"):
        name_overlap(READER, ["ann", ""])


def test_pairs_of_one_group_are_matched_and_those_without_a_group_are_not() -> None:
    assert pairs_in(same_group(PAIRS)) == {(0, 2), (1, 3)}
    assert pairs_in(same_group([*PAIRS, PAIRS[4]])) == {(0, 2), (1, 3)}
    strata = group_strata(PAIRS)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in strata.items()} == {
        "often": [0, 2],
        "once": [1, 3],
    }
    assert list(strata) == ["often", "once"]
    assert group_strata(PAIRS[4:]) == {}
