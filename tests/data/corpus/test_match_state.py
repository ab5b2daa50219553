"""The state of a text that grows says at every step what the whole text says."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from corpus_truth import Truth, index_of
from mnemoscope.data.corpus.kernels import KernelName
from mnemoscope.data.corpus.match_state import MatchState, start

both = pytest.mark.parametrize("kernels", ["numba", "numpy"])


def corpus(name: str) -> tuple[int, tuple[list[list[int]], ...]]:
    """Width and shards."""
    rng = random.Random(name)

    def row(size: int, n: int) -> list[int]:
        return [rng.randrange(size) for _ in range(n)]

    return {
        "two ids": (2, ([row(2, 300), row(2, 20), []],)),
        "long enough for the directory": (2, ([row(6, 1300), row(6, 1200)],)),
        "many ids": (4, ([[65_530 + t for t in row(12, 400)]],)),
        "periodic": (1, ([[0, 1] * 60, [1] * 90],)),
        "shards": (2, ([row(3, 200)], [[], row(5, 90)], [row(2, 9), row(3, 60)])),
    }[name]


each = pytest.mark.parametrize(
    "name", ["two ids", "long enough for the directory", "many ids", "periodic", "shards"]
)


def text_of(shards: Sequence[list[list[int]]], n: int, seed: int) -> list[int]:
    """Pieces of the documents, one after the other, with an unknown id now and then."""
    rng = random.Random(seed)
    full = [document for documents in shards for document in documents if document]
    text: list[int] = []
    while len(text) < n:
        document = rng.choice(full)
        place = rng.randrange(len(document))
        text += document[place : place + rng.randrange(1, 15)]
        text += [1 << 20] * (rng.random() < 0.1)
    return text[:n]


def expected(truth: Truth, text: list[int]) -> tuple[int, int]:
    longest = truth.longest_suffix(text)
    return longest, truth.count(text[-longest:]) if longest else 0


@both
@each
def test_every_step_says_the_longest_suffix_that_occurs(name: str, kernels: KernelName) -> None:
    width, shards = corpus(name)
    index, truth = index_of(shards, width=width, kernels=kernels), Truth(tuple(shards))
    text = text_of(shards, 40, seed=1)
    state = start(index)
    for i, token in enumerate(text):
        state = state.advance([token])
        longest, count = expected(truth, text[: i + 1])
        assert (state.longest[0], state.counts[0]) == (longest, count)
        suffix = text[i + 1 - longest : i + 1]
        want = {(s, d, o) for s, d, o in truth.places(suffix)} if longest else set()
        found = index.occurrences(state.intervals(0), limit=10**6)
        assert {(one.shard, one.document, one.offset) for one in found} == want


@both
def test_quotes_longer_than_the_usual_stay_exact(kernels: KernelName) -> None:
    """One suffix for each distinct count: 200 of them in a run of one token, few in plain text."""
    plain = list(range(300))
    index = index_of([[[7] * 200, plain]], kernels=kernels)
    run = start(index).extend([[7] * 250])
    assert (run.longest[0], run.counts[0], run.slots) == (200, 1, 200)
    quote = start(index).extend([plain])
    assert (quote.longest[0], quote.slots) == (300, 1)


@both
@each
def test_beams_go_their_own_ways(name: str, kernels: KernelName) -> None:
    """Forked and re-ordered as a beam search does, against texts that are kept whole."""
    width, shards = corpus(name)
    index, truth = index_of(shards, width=width, kernels=kernels), Truth(tuple(shards))
    rng = random.Random(2)
    texts: list[list[int]] = [[] for _ in range(3)]
    state = start(index, beams=3)
    for step in range(14):
        order = [rng.randrange(3) for _ in range(3)]
        tokens = [text_of(shards, 1, seed=10 * step + b)[0] for b in range(3)]
        earlier = [part.copy() for part in state.active]
        after = state.fork(order).advance(tokens)
        for part, before in zip(state.active, earlier, strict=True):
            np.testing.assert_array_equal(part, before)
        texts = [[*texts[source], token] for source, token in zip(order, tokens, strict=True)]
        state = after
        found = list(zip(state.longest.tolist(), state.counts.tolist(), strict=True))
        assert found == [expected(truth, text) for text in texts]


@both
@each
@pytest.mark.parametrize("min_length", [1, 3])
def test_candidates_say_what_advancing_would(
    name: str, min_length: int, kernels: KernelName
) -> None:
    width, shards = corpus(name)
    index = index_of(shards, width=width, kernels=kernels)
    every = sorted({token for documents in shards for d in documents for token in d})
    tokens = np.array([[*every[:12], 1 << 20]] * 2)
    state = start(index, beams=2)
    for i in range(12):
        length, count = state.candidates(tokens, min_length)
        for b in range(2):
            after = state.fork([b] * tokens.shape[1]).advance(tokens[b])
            long = after.longest >= min_length
            assert length[b].tolist() == np.where(long, after.longest, 0).tolist()
            assert count[b].tolist() == np.where(long, after.counts, 0).tolist()
        state = state.advance([text_of(shards, 1, seed=i)[0], text_of(shards, 1, seed=99 + i)[0]])


@both
def test_pieces_of_any_length_are_read_at_once(kernels: KernelName) -> None:
    width, shards = corpus("shards")
    index = index_of(shards, width=width, kernels=kernels)
    pieces = [[1, 0, 2], [], [2]]
    whole = start(index, beams=3).extend(pieces)
    for b, piece in enumerate(pieces):
        one = start(index)
        for token in piece:
            one = one.advance([token])
        assert (whole.longest[b], whole.counts[b]) == (one.longest[0], one.counts[0])


@both
def test_both_kernels_hold_the_same_ranks(kernels: KernelName) -> None:
    width, shards = corpus("shards")
    text = text_of(shards, 60, seed=4)

    def reached(name: KernelName) -> MatchState:
        return start(index_of(shards, width=width, kernels=name)).extend([text])

    for ours, theirs in zip(reached(kernels).active, reached("numpy").active, strict=True):
        size = min(ours.shape[2], theirs.shape[2])
        depth = reached("numpy").active.depth[:, :, :size] > 0
        np.testing.assert_array_equal(ours[:, :, :size][depth], theirs[:, :, :size][depth])


def test_a_token_for_each_beam_is_asked_for() -> None:
    state = start(index_of([[[1, 2]]]), beams=2)
    with pytest.raises(ValueError, match="holds 2 texts, got tokens for 1"):
        state.advance([1])
    with pytest.raises(ValueError, match="candidates of 2 texts"):
        state.candidates(np.array([[1, 2, 3]]))
