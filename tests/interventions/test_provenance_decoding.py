"""Decoding with a veto: the corpus is what the model says by itself, and it must not say it."""

import math

import numpy as np
import pytest
import torch
from corpus_truth import Truth, index_of
from families import ids as random_ids
from families import tiny
from mnemoscope.data.corpus.span_scores import RiskRule
from mnemoscope.interventions.followed_texts import FollowedTexts
from mnemoscope.interventions.provenance_decoding import (
    DeadEnd,
    ProvenanceVeto,
    Veto,
    guarded,
)
from mnemoscope.interventions.trace_shield import TraceShield
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.load import load_model
from mnemoscope.models.token_bytes import token_bytes
from transformers import LogitsProcessorList

PROMPT = random_ids(batch=2, length=6, seed=6)
NEW = 24
EOS = 2
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.3},
    "beams": {"do_sample": False, "num_beams": 4},
    "beam sampling": {"do_sample": True, "num_beams": 3},
}


@pytest.fixture(scope="module")
def model():
    return tiny("llama", dtype=torch.float32)


def say(model, prompt, mode, processors=(), seed=0, new=NEW):
    torch.manual_seed(seed)
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        logits_processor=LogitsProcessorList(processors),
        pad_token_id=0,
        eos_token_id=EOS,
        **MODES[mode],
    )
    return out[:, prompt.shape[1] :]


def text_of(row):
    ids = row.tolist()
    return ids[: ids.index(EOS)] if EOS in ids else ids


def length_rule(min_length=4, max_count=None):
    return RiskRule(lambda ids, length, count: float(length), 0.0, min_length, max_count)


def own_corpus(model, mode, seeds=3):
    """What the model says by itself, in every way of the mode, and some random text."""
    documents = [text_of(row) for s in range(seeds) for row in say(model, PROMPT, mode, seed=s)]
    rng = np.random.default_rng(0)
    return [*documents, *(rng.integers(3, 61, 20).tolist() for _ in range(3))]


def forbidden(truth, text, rule):
    """Risky spans of a text, by search: at each token the longest match that ends there."""
    for end in range(1, len(text) + 1):
        n = truth.longest_suffix(text[:end])
        if n and rule.forbids(text[:end], n, truth.count(text[end - n : end])):
            yield end - n, end


def veto_of(documents, rule, **settings):
    settings = {"prompt_length": PROMPT.shape[1], "eos_ids": [EOS], **settings}
    return ProvenanceVeto(index_of([documents[::2], documents[1::2]]), rule, **settings)


@pytest.mark.parametrize("mode", MODES)
def test_no_generated_text_holds_a_vetoed_span(model, mode):
    documents, rule = own_corpus(model, mode), length_rule()
    truth = Truth((documents,))
    free = [text_of(row) for row in say(model, PROMPT, mode)]
    assert any(list(forbidden(truth, text, rule)) for text in free)
    for seed in range(3):
        rows = say(model, PROMPT, mode, [veto_of(documents, rule)], seed)
        texts = [text_of(row) for row in rows]
        assert max(map(len, texts)) > 10
        assert [list(forbidden(truth, text, rule)) for text in texts] == [[], []]


def test_common_spans_pass_where_the_rule_says_so(model):
    (text,) = say(model, PROMPT[:1], "greedy").tolist()
    rule = length_rule(max_count=1)
    assert say(model, PROMPT[:1], "greedy", [veto_of([text, text], rule)]).tolist() == [text]
    assert say(model, PROMPT[:1], "greedy", [veto_of([text], rule)]).tolist() != [text]


def test_a_text_far_from_the_corpus_is_decoded_as_if_there_were_no_veto(model):
    far = [np.random.default_rng(1).integers(3, 61, 50).tolist()]
    for mode in MODES:
        plain = say(model, PROMPT, mode)
        assert torch.equal(plain, say(model, PROMPT, mode, [veto_of(far, length_rule(7))]))


def test_the_prompt_is_not_held_against_the_text(model):
    """The corpus holds the prompt and the first three tokens after it: nine tokens in a row."""
    (text,) = say(model, PROMPT[:1], "greedy").tolist()
    document = [*PROMPT[0].tolist(), *text[:3]]
    assert say(model, PROMPT[:1], "greedy", [veto_of([document], length_rule())]).tolist() == [text]
    whole = veto_of([document], length_rule(), prompt_length=0)
    assert say(model, PROMPT[:1], "greedy", [whole]).tolist() != [text]


class FromScratch(ProvenanceVeto):
    """Reads every row anew at every step."""

    def __call__(self, input_ids, scores):
        texts = self._texts
        self._texts = FollowedTexts(texts.index, texts.prompt_length)
        return super().__call__(input_ids, scores)


class Watched(ProvenanceVeto):
    """Counts the steps at which a beam goes on from another beam's row."""

    moved = 0
    before = ()

    def __call__(self, input_ids, scores):
        rows = [tuple(row) for row in input_ids.tolist()]
        origins = [self.before.index(row[:-1]) for row in rows if row[:-1] in self.before]
        self.moved += origins != list(range(len(origins)))
        self.before = rows
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("mode", ["beams", "beam sampling"])
def test_a_state_that_follows_the_beams_is_the_state_read_from_scratch(model, mode):
    documents, rule = own_corpus(model, mode), length_rule(3)
    settings = {"prompt_length": PROMPT.shape[1], "eos_ids": [EOS]}
    index = index_of([documents])
    watched = Watched(index, rule, **settings)
    followed = say(model, PROMPT, mode, [watched])
    assert watched.moved > 3
    assert torch.equal(followed, say(model, PROMPT, mode, [FromScratch(index, rule, **settings)]))


def test_followed_states_are_those_of_the_rows_however_they_move():
    rng, index = np.random.default_rng(3), index_of([[[3, 4, 3, 4, 4, 3, 3, 5]]])
    texts = FollowedTexts(index, 1)
    rows = np.full((4, 1), 9)
    for _ in range(12):
        rows = np.hstack([rows[rng.integers(0, 4, 4)], rng.integers(3, 6, (4, 1))])
        state = texts(torch.from_numpy(rows))
        fresh = FollowedTexts(index, 1)(torch.from_numpy(rows))
        assert state.longest.tolist() == fresh.longest.tolist()
        assert state.counts.tolist() == fresh.counts.tolist()
        probe = np.tile([3, 4, 5], (4, 1))
        for a, b in zip(state.candidates(probe), fresh.candidates(probe), strict=True):
            assert a.tolist() == b.tolist()


def test_a_processor_serves_one_generation_after_another(model):
    documents, rule = own_corpus(model, "greedy"), length_rule()
    used = veto_of(documents, rule)
    first = say(model, PROMPT, "greedy", [used])
    say(model, PROMPT.flip(0), "greedy", [used])
    assert torch.equal(first, say(model, PROMPT, "greedy", [used]))


ALL = Veto(candidates=61)

SCORES = torch.linspace(3, 0, 12)[None]
"""Scores of a vocabulary of 12: token 0 is best, 11 worst."""


def one_step(documents, text, **settings):
    """What is left of SCORES after the veto, when `text` has been generated."""
    veto = veto_of(documents, length_rule(3), prompt_length=0, eos_ids=[11], **settings)
    return veto, veto(torch.tensor([text]), SCORES)[0]


def test_only_tokens_that_complete_a_risky_span_are_taken_away():
    _, left = one_step([[5, 6, 0], [5, 6, 1], [6, 2]], [5, 6])
    assert left[:2].tolist() == [-math.inf, -math.inf]
    assert torch.equal(left[2:], SCORES[0, 2:])


def test_at_such_a_step_the_tail_that_was_not_scored_is_left_out():
    _, left = one_step([[5, 6, 0], [5, 6, 9]], [5, 6], veto=Veto(candidates=4))
    assert (left > -math.inf).nonzero()[:, 0].tolist() == [1, 2, 3]


def test_a_soft_veto_lowers_a_logit_by_gamma_per_unit_of_risk():
    _, left = one_step([[5, 6, 0], [4, 5, 6, 1]], [4, 5, 6], veto=Veto(gamma=0.25))
    expected = SCORES[0].clone()
    expected[0] -= 0.25 * 3
    expected[1] -= 0.25 * 4
    torch.testing.assert_close(left, expected)


def test_more_candidates_are_scored_when_all_are_vetoed():
    documents = [[5, 6, token] for token in range(4)]
    veto, left = one_step(documents, [5, 6], veto=Veto(candidates=2))
    assert (left > -math.inf).nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    assert veto.dead_ends == {}


def test_a_row_without_a_way_on_ends_and_says_where_the_span_began():
    documents = [[5, 6, token] for token in range(8)]
    veto, left = one_step(documents, [7, 5, 6], veto=Veto(candidates=2))
    assert (left > -math.inf).nonzero()[:, 0].tolist() == [11]
    assert veto.dead_ends == {(7, 5, 6): DeadEnd((7, 5, 6), 1)}


def test_the_end_of_the_text_is_never_vetoed():
    _, left = one_step([[5, 6, 11]], [5, 6])
    assert torch.equal(left, SCORES[0])


def test_a_row_can_be_given_up_as_soon_as_its_best_token_is_vetoed():
    veto, left = one_step([[5, 6, 0]], [5, 6], veto=Veto(give_up="best_vetoed"))
    assert (left > -math.inf).nonzero()[:, 0].tolist() == [11]
    assert veto.dead_ends[(5, 6)].span_start == 0


def test_barred_tokens_are_barred_after_their_text_alone():
    _, left = one_step([[1]], [5, 6], barred={(5, 6): {3}, (5,): {4}})
    assert (left == -math.inf).nonzero()[:, 0].tolist() == [3]


def test_a_token_of_several_ids_is_vetoed_where_a_span_ends_inside_it():
    """Token t is the ids 2t and 2t + 1: 5 completes 8 9 10 in its first half."""
    documents = [[8, 9, 10, 3], [8, 9, 12, 13, 1]]
    _, left = one_step(documents, [4], units=lambda token: (2 * token, 2 * token + 1))
    assert (left == -math.inf).nonzero()[:, 0].tolist() == [5, 6]


def test_a_span_that_begins_inside_a_token_goes_back_to_that_token():
    documents = [[9, 10, 11, 2 * token] for token in range(10)]
    veto, _ = one_step(
        documents,
        [1, 4, 5],
        units=lambda token: (2 * token, 2 * token + 1),
        veto=Veto(candidates=2),
    )
    assert veto.dead_ends[(1, 4, 5)].span_start == 1


def guard(model, documents, mode="greedy", veto=ALL, rule=None, **settings):
    """The text of the first prompt, guarded."""

    def generate(ids, processors, new):
        return torch.cat([ids, say(model, ids, mode, processors, new=new)], dim=1)

    return guarded(
        generate,
        PROMPT[:1],
        index_of([documents]),
        rule or length_rule(),
        max_new_tokens=NEW,
        eos_ids=[EOS],
        veto=veto,
        **settings,
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_guarded_text_holds_no_span_and_needs_no_backing_up_where_a_way_is_open(model, mode):
    documents = own_corpus(model, mode)
    result = guard(model, documents, mode)
    assert not result.refused
    assert result.backed_up == ()
    assert list(forbidden(Truth((documents,)), list(result.ids), length_rule())) == []


def test_backing_up_leaves_nothing_of_the_span_in_the_text(model):
    """Given up at the first veto, the text turns off before the span, not in its midst."""
    (text,) = say(model, PROMPT[:1], "greedy").tolist()
    documents = [text[5:11]]
    result = guard(model, documents, veto=Veto(candidates=61, give_up="best_vetoed"))
    assert not result.refused
    assert result.backed_up[0].span_start == 5
    assert list(result.ids[:5]) == text[:5]
    assert result.ids[5] != text[5]


def test_a_text_that_finds_no_way_out_is_refused(model):
    """Every pair of tokens is in the corpus and forbidden: nothing can be said."""
    pairs = [[a, b] for a in range(61) for b in range(61) if EOS not in (a, b)]
    result = guard(model, pairs, rule=length_rule(2), backups=2)
    assert result.refused
    assert result.ids == ()
    assert len(result.backed_up) == 3
    assert len({end.ids for end in result.backed_up}) == 3  # another way was tried each time


def test_a_veto_must_be_able_to_end_a_text():
    with pytest.raises(MnemoscopeError, match="eos_ids"):
        veto_of([[1]], length_rule(), eos_ids=[])


def test_one_prompt_is_guarded_at_a_time():
    with pytest.raises(MnemoscopeError, match="one prompt at a time"):
        guarded(
            lambda ids, processors, new: ids,
            PROMPT,
            index_of([[[1]]]),
            length_rule(),
            max_new_tokens=1,
            eos_ids=[EOS],
        )


def test_an_index_over_bytes_guards_a_model_of_any_tokenizer():
    """Engram must not say a dozen bytes of what it says by itself, wherever tokens are cut."""
    engram = load_model("engram")
    prompt = torch.tensor([engram.text_tokenizer("The town of").input_ids])
    bytes_of = token_bytes(engram.text_tokenizer)

    def generate(ids, processors, new):
        return engram.module.generate(
            ids, max_new_tokens=new, do_sample=False, logits_processor=processors
        )

    def written(ids):
        return b"".join(map(bytes_of, ids))

    own = generate(prompt, LogitsProcessorList(), 20)[0, prompt.shape[1] :].tolist()
    index, rule = index_of([[list(written(own))]], width=1), length_rule(12)
    result = guarded(
        generate,
        prompt,
        index,
        rule,
        max_new_tokens=20,
        eos_ids=[engram.text_tokenizer.eos_token_id],
        units=bytes_of,
    )
    assert TraceShield(index, rule).judge(written(own)).refused
    assert not TraceShield(index, rule).judge(written(result.ids)).refused
    assert len(written(result.ids)) >= 12
    assert not result.refused
