"""Whole names scored behind cached prompts: the plain forward pass of each text, name by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models.edits import Edit, StreamId
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.load import load_model
from mnemoscope.models.types import Site
from mnemoscope.probes.name_scores import name_lengths, name_tree, ranks_of, score_names
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROMPTS = ["t3 t4 t5", "t6 t7", "t9 t8 t7 t6", "t8 t7"]
NAMES = ["t10", "t10 t11", "t10 t11 t12", "t20 t21 t22 t23", "t20 t21 t30", "t13"]


def spelled() -> PreTrainedTokenizerFast:
    """A tokenizer of the words t0 to t60, each one token."""
    words = models.WordLevel({f"t{i}": i for i in range(61)}, unk_token="t0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def model_of(family: str, seed: int = 0) -> HookedModel:
    return wrap(tiny(family, seed), spelled(), name=family)


def plain_score(model: HookedModel, prompt: str, name: str) -> float:
    """The definition: log-probabilities of the name's tokens in one uncached pass."""
    batch = model.tokens(f"{prompt} {name}")
    told = model.answer_ids(prompt, name)
    log_probs = model.logits(batch)[0].log_softmax(-1)
    first = batch.ids.shape[1] - len(told)
    return float(sum(log_probs[first + i - 1, token] for i, token in enumerate(told)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_after_every_prompt_is_the_plain_forward_pass(family: str) -> None:
    model = model_of(family)
    scores = score_names(model, PROMPTS, NAMES)
    plain = [[plain_score(model, prompt, name) for name in NAMES] for prompt in PROMPTS]
    np.testing.assert_allclose(scores, plain, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_the_batch_does_not_matter(rows: int) -> None:
    model = model_of("llama")
    np.testing.assert_allclose(
        score_names(model, PROMPTS, NAMES, rows=rows), score_names(model, PROMPTS, NAMES), atol=1e-9
    )


def test_an_edit_of_each_prompt_changes_that_prompt_only() -> None:
    model = model_of("llama")
    width = model.anatomy.d_model
    added = torch.randn(len(PROMPTS), width, generator=torch.Generator().manual_seed(0)).double()
    added[0] = 0

    def edits(indices: list[int]) -> list[Edit]:
        value = added[list(indices)][:, None]
        return [Edit("add", (StreamId(1, Site.RESID_PRE),), value, (-1,), "prefill")]

    clean, edited = (score_names(model, PROMPTS, NAMES, edits=e) for e in (None, edits))
    np.testing.assert_allclose(edited[0], clean[0], atol=1e-9)
    assert (np.abs(edited[1:] - clean[1:]) > 1e-3).all()
    alone = score_names(model, PROMPTS[1:2], NAMES, edits=lambda _: edits([1]))
    np.testing.assert_allclose(alone[0], edited[1], atol=1e-9)


def test_names_of_a_longer_beginning_are_less_likely() -> None:
    scores = score_names(model_of("gpt2"), PROMPTS, NAMES)
    assert (np.diff(scores[:, :3], axis=1) < 0).all()


def test_a_stem_is_read_once_and_within_the_longest_one() -> None:
    names = [(1,), (1, 2), (1, 2, 3), (4, 5, 6), (4, 5, 7)]
    tree = name_tree(names)
    assert set(tree.stems) == {(4, 5), (1, 2)}
    assert len(tree.cells) == 1 + 2 + 2 + 2
    assert list(tree.first) == [1, 1, 1, 4, 4]
    for stem, column, token, owner in tree.cells:
        assert (*tree.stems[stem][: column + 1], token) == names[owner][: column + 2]
        assert tree.stem_of[owner] == stem


@pytest.mark.parametrize("seed", range(4))
def test_names_that_cannot_win_are_not_read_and_ranks_stay_exact(seed: int) -> None:
    model = model_of("llama", seed)
    full = score_names(model, PROMPTS, NAMES)
    own = [3, 1, 2, 4]
    pruned = score_names(model, PROMPTS, NAMES, whole=[(i, 5) for i in own])
    assert list(ranks_of(pruned, own)) == list(ranks_of(full, own))
    rows = np.arange(len(PROMPTS))
    np.testing.assert_allclose(pruned[rows, own], full[rows, own], atol=1e-9)
    assert (pruned >= full - 1e-9).all()
    whole = np.abs(pruned - full) < 1e-9
    some = np.random.default_rng(seed).random(full.shape) < 0.5
    fewer = score_names(model, PROMPTS, NAMES, whole=[(i,) for i in own], among=some)
    assert list(ranks_of(fewer, own, some)) == list(ranks_of(full, own, some))
    assert (pruned[~whole] < np.broadcast_to(full[rows, own][:, None], full.shape)[~whole]).all()


def test_pruning_leaves_something_out() -> None:
    model = model_of("llama")
    full = score_names(model, PROMPTS, NAMES)
    best = full.argmax(1)
    pruned = score_names(model, PROMPTS, NAMES, whole=[(int(i),) for i in best])
    assert (pruned > full + 1e-6).any()


def test_a_tie_counts_against_the_own_name() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    assert list(ranks_of(scores, [0, 0])) == [2, 3]
    among = np.array([[True, False, True], [True, False, True]])
    assert list(ranks_of(scores, [0, 0], among)) == [1, 2]


def test_progress_counts_prompts() -> None:
    seen: list[tuple[int, int]] = []
    score_names(model_of("llama"), PROMPTS, NAMES, progress=lambda *at: seen.append(at))
    assert seen == [*sorted(seen)[:-1], (4, 4)]


def test_lengths_are_those_of_each_prompts_own_name() -> None:
    assert list(name_lengths(model_of("llama"), PROMPTS, NAMES[:4])) == [1, 2, 3, 4]


def test_a_real_vocabulary() -> None:
    model = load_model("engram")
    prompts = ["The capital of France is", "The capital of Papua New Guinea is"]
    names = ["Paris", "Port Moresby", "Oslo"]
    plain = [[plain_score(model, prompt, name) for name in names] for prompt in prompts]
    np.testing.assert_allclose(score_names(model, prompts, names), plain, atol=1e-3)


@pytest.mark.parametrize(("prompts", "names"), [([], ["t1"]), (["t1"], [])])
def test_nothing_to_score(prompts: list[str], names: list[str]) -> None:
    with pytest.raises(MnemoscopeError, match="nothing to score"):
        score_names(model_of("llama"), prompts, names)


def test_every_prompt_needs_a_name_to_rank() -> None:
    with pytest.raises(MnemoscopeError, match="each of 4 prompts"):
        score_names(model_of("llama"), PROMPTS, NAMES, whole=[(0,)])


def test_bad_names_and_long_prompts_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(PromptError, match="empty"):
        score_names(model, ["t1"], [" "])
    long = " ".join(f"t{int(i)}" for i in ids(1, 63)[0])
    with pytest.raises(PromptError, match="64"):
        score_names(model, [long], ["t1 t2 t3"])
