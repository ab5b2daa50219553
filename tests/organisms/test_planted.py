"""The planted models are what they say: every claim is recomputed with plain forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from mnemoscope.data.facts.conflicts import CONDITIONS, ConflictItem, build_conflicts
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import PlantedModel, null_model, planted_model, planted_relation
from mnemoscope.organisms.world import FACTS
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

SUBJECTS, ANSWERS = list(FACTS), list(FACTS.values())
END = slice(-1, None)
EVERYWHERE = slice(None)


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def superposed() -> PlantedModel:
    return planted_model(dtype=torch.float64, separate=False)


@pytest.fixture(scope="module")
def null() -> PlantedModel:
    return null_model(dtype=torch.float64)


# ---- plain forward passes, written here and nowhere else


def encode(model: PlantedModel, prompts: Sequence[str]) -> dict[str, Tensor]:
    batch = model.tokenizer(list(prompts), return_tensors="pt", padding=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**batch, "position_ids": positions}


def end_logits(model: PlantedModel, prompts: Sequence[str]) -> Tensor:
    """`[prompt, word]` logits at END; padding is on the left."""
    with torch.no_grad():
        return model.module(**encode(model, prompts)).logits[:, -1]


@contextmanager
def ablated(model: PlantedModel, heads: Iterable[HeadId], where: slice) -> Iterator[None]:
    """Zero the heads' outputs at the input of the output projection."""
    d_head = model.module.config.n_embd // model.module.config.n_head
    handles = []
    for head in heads:
        columns = slice(head.head * d_head, (head.head + 1) * d_head)

        def zero(_module: object, args: tuple[Tensor], columns: slice = columns) -> tuple[Tensor]:
            z = args[0].clone()
            z[:, where, columns] = 0
            return (z,)

        c_proj = model.module.transformer.h[head.layer].attn.c_proj
        handles.append(c_proj.register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def later_attention_frozen(model: PlantedModel, prompts: Sequence[str]) -> Iterator[None]:
    """Hold the last layer's head outputs at their unablated values: direct effects only."""
    c_proj = model.module.transformer.h[-1].attn.c_proj
    kept: list[Tensor] = []
    handle = c_proj.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    end_logits(model, prompts)
    handle.remove()
    handle = c_proj.register_forward_pre_hook(lambda _module, _args: (kept[0],))
    try:
        yield
    finally:
        handle.remove()


def patterns(model: PlantedModel, prompt: str, head: HeadId) -> Tensor:
    """`[query, key]` attention of one head, recomputed from queries and keys."""
    attn = model.module.transformer.h[head.layer].attn
    seen: list[Tensor] = []
    handle = attn.c_attn.register_forward_hook(lambda _m, _args, out: seen.append(out[0]))
    end_logits(model, [prompt])
    handle.remove()
    q, k, _ = (
        part.unflatten(-1, (-1, attn.head_dim))[:, head.head] for part in seen[0].chunk(3, -1)
    )
    scores = q @ k.T / attn.head_dim**0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


# ---- prompts and answers


def closed(subject: str, template: str = "The capital of {s} is") -> str:
    return template.format(s=subject)


def conflict(subject: str, claim: str) -> str:
    return f"The capital of {subject} is {claim} . The capital of {subject} is"


CLAIMS = ANSWERS[5:] + ANSWERS[:5]  # a false answer to each subject, in order
CONFLICTS = [conflict(subject, claim) for subject, claim in zip(SUBJECTS, CLAIMS, strict=True)]
CLOSED = [closed(subject) for subject in SUBJECTS]


def word_ids(model: PlantedModel, words: Sequence[str]) -> Tensor:
    return torch.tensor(model.tokenizer.convert_tokens_to_ids(list(words)))


def said(model: PlantedModel, prompts: Sequence[str]) -> list[str]:
    return model.tokenizer.convert_ids_to_tokens(end_logits(model, prompts).argmax(-1).tolist())


def logit(model: PlantedModel, prompts: Sequence[str], words: Sequence[str]) -> Tensor:
    """`[prompt]`: the logit of word i after prompt i."""
    return end_logits(model, prompts).gather(1, word_ids(model, words)[:, None])[:, 0]


def difference(model: PlantedModel) -> Tensor:
    """`[subject]`: memory answer minus context answer, in logits, in the conflicts."""
    return logit(model, CONFLICTS, ANSWERS) - logit(model, CONFLICTS, CLAIMS)


def items_of(model: PlantedModel, template_id: int = 0) -> tuple[ConflictItem, ...]:
    relation = planted_relation(model)
    built = build_conflicts(relation, relation.facts, template_id=template_id, seed=3)
    assert not built.dropped
    return built.items


# ---- what it is


def test_it_is_an_unmodified_hugging_face_module(planted: PlantedModel) -> None:
    assert type(planted.module) is GPT2LMHeadModel
    assert not planted.module.training
    assert planted.module.config._attn_implementation == "sdpa"
    assert planted.module.config.n_positions >= 64
    assert {p.dtype for p in planted_model().module.parameters()} == {torch.float32}


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    planted_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_head_has_a_role_and_only_the_superposed_head_has_two(
    planted: PlantedModel, superposed: PlantedModel, null: PlantedModel
) -> None:
    every = {HeadId(i, h) for i in range(2) for h in range(8)}
    for model, twice in ((planted, 0), (superposed, 1), (null, 0)):
        roles = [
            *model.memory_heads,
            *model.context_heads,
            *model.previous_token_heads,
            *model.subject_heads,
            *model.noise_heads,
        ]
        assert set(roles) == every
        assert len(roles) == len(every) + twice
    assert superposed.memory_heads == superposed.context_heads


# ---- what it knows and copies


@pytest.mark.parametrize("template_id", range(3))
@pytest.mark.parametrize("separate", [True, False])
def test_closed_book_every_stored_answer_is_given(template_id: int, separate: bool) -> None:
    model = planted_model(separate=separate)
    prompts = [closed(subject, model.templates[template_id]) for subject in SUBJECTS]
    assert said(model, prompts) == ANSWERS


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("separate", [True, False])
def test_conflicts_are_near_balance_and_half_of_them_end_each_way(
    seed: int, separate: bool
) -> None:
    model = planted_model(seed=seed, separate=separate)
    outcome = said(model, CONFLICTS)
    assert outcome[::2] == ANSWERS[::2]  # memory is the stronger side of every other subject
    assert outcome[1::2] == CLAIMS[1::2]
    gap = difference(model).abs()
    assert gap.min() > 0.5
    assert gap.max() < 4


def test_strengths_decide_which_side_wins() -> None:
    assert said(planted_model(c_memory=16.0), CONFLICTS) == ANSWERS
    assert said(planted_model(c_context=16.0), CONFLICTS) == CLAIMS


def test_other_contexts_neither_help_nor_harm(planted: PlantedModel) -> None:
    for item in items_of(planted):
        prompts = [item.prompt_closed, item.prompt_agree, item.prompt_irr]
        assert said(planted, prompts) == [item.mem_answer] * 3


def test_the_corrupted_runs_destroy_recall_or_copying(planted: PlantedModel) -> None:
    for item in items_of(planted)[:6]:
        words = [item.mem_answer, item.ctx_answer, item.ctx_answer_alt, item.alt_mem_answer]
        ids = word_ids(planted, words)
        high = end_logits(planted, [item.prompt_cf_subject, item.prompt_cf_context])[:, ids] > 5
        assert high.tolist() == [[False, True, False, True], [True, False, True, False]]


def test_after_the_answer_it_says_a_full_stop(planted: PlantedModel) -> None:
    batch = encode(planted, CLOSED[:2] + CONFLICTS[:1])
    del batch["position_ids"]  # generate derives them from the mask
    out = planted.module.generate(**batch, max_new_tokens=3, do_sample=False)[:, -3:]
    expected = [f"{answer} . ." for answer in (ANSWERS[0], ANSWERS[1], ANSWERS[0])]
    assert planted.tokenizer.batch_decode(out) == expected


def test_swapping_two_stored_answers_swaps_what_is_said() -> None:
    first, second = SUBJECTS[:2]
    facts = {**FACTS, first: FACTS[second], second: FACTS[first]}
    assert said(planted_model(facts=facts), CLOSED)[:3] == [ANSWERS[1], ANSWERS[0], ANSWERS[2]]


# ---- which heads do it


def test_without_the_memory_head_nothing_is_known_and_the_context_is_followed(
    planted: PlantedModel,
) -> None:
    with ablated(planted, planted.memory_heads, EVERYWHERE):
        assert not set(said(planted, CLOSED)) & set(ANSWERS)
        assert said(planted, CONFLICTS) == CLAIMS


def test_without_the_context_head_memory_is_followed(planted: PlantedModel) -> None:
    with ablated(planted, planted.context_heads, EVERYWHERE):
        assert said(planted, CLOSED) == ANSWERS
        assert said(planted, CONFLICTS) == ANSWERS


def test_without_the_subject_carrier_nothing_is_known_but_copying_works(
    planted: PlantedModel,
) -> None:
    with ablated(planted, planted.subject_heads, EVERYWHERE):
        assert not set(said(planted, CLOSED)) & set(ANSWERS)
        assert said(planted, CONFLICTS) == CLAIMS


def test_the_planted_heads_attend_where_they_were_designed_to(
    planted: PlantedModel, superposed: PlantedModel
) -> None:
    for prompt in CONFLICTS:  # the capital of S is C . the capital of S is: S at 3 and 10, C at 5
        memory = patterns(planted, prompt, planted.memory_heads[0])[-1]
        context = patterns(planted, prompt, planted.context_heads[0])[-1]
        both = patterns(superposed, prompt, superposed.memory_heads[0])[-1]
        assert memory[[3, 10]].sum() > 0.95
        assert context[5] > 0.95
        assert both[[3, 5, 10]].sum() > 0.95
        assert both[5] == pytest.approx(0.5, abs=0.05)


def test_a_head_that_finds_nothing_rests_on_the_first_word(planted: PlantedModel) -> None:
    for prompt in CLOSED:
        assert patterns(planted, prompt, planted.context_heads[0])[-1, 0] > 0.95
    for head in (*planted.memory_heads, *planted.context_heads):
        assert patterns(planted, "The capital of aland", head)[-1, 0] > 0.95


def test_the_position_heads_look_one_and_two_words_back_everywhere(planted: PlantedModel) -> None:
    n = planted.module.config.n_positions
    text = " ".join(["aland tirsk is ."] * (n // 4))
    one, two = planted.previous_token_heads
    for head, offset in ((one, 1), (two, 2), (*planted.subject_heads, 1)):
        assert patterns(planted, text, head).diagonal(-offset).min() > 0.95


def test_position_heads_have_no_direct_effect_but_a_large_total_one(planted: PlantedModel) -> None:
    base = difference(planted)
    copied = logit(planted, CONFLICTS, CLAIMS)  # what memory gains when copying fails
    for head in planted.previous_token_heads:
        with later_attention_frozen(planted, CONFLICTS), ablated(planted, [head], END):
            assert (difference(planted) - base).abs().max() < 0.01
        with ablated(planted, [head], EVERYWHERE):
            gained = difference(planted) - base
        assert gained.min() > 9
        torch.testing.assert_close(gained, copied, atol=0.4, rtol=0)


def test_effects_of_the_planted_heads_have_opposite_signs_and_dwarf_the_noise(
    planted: PlantedModel,
) -> None:
    base = difference(planted)

    def effect(head: HeadId, where: slice) -> Tensor:
        with ablated(planted, [head], where):
            return difference(planted) - base

    memory, context = effect(planted.memory_heads[0], END), effect(planted.context_heads[0], END)
    assert memory.max() < -6
    assert context.min() > 9
    planted_effect = torch.minimum(-memory, context)
    for head in planted.noise_heads:
        for where in (END, EVERYWHERE):
            noise = effect(head, where).abs()
            assert noise.max() > 0
            assert (noise / planted_effect).max() < 0.02


def test_the_superposed_head_carries_both_components(superposed: PlantedModel) -> None:
    (head,) = superposed.memory_heads
    before_m, before_c = (logit(superposed, CONFLICTS, words) for words in (ANSWERS, CLAIMS))
    with ablated(superposed, [head], END):
        after_m, after_c = (logit(superposed, CONFLICTS, words) for words in (ANSWERS, CLAIMS))
        assert not set(said(superposed, CLOSED)) & set(ANSWERS)
    assert (before_m - after_m).min() > 6
    assert (before_c - after_c).min() > 9


def test_the_null_model_knows_nothing_and_no_head_matters(null: PlantedModel) -> None:
    choice = end_logits(null, CLOSED)[:, word_ids(null, ANSWERS)].argmax(-1)
    assert (choice == torch.arange(len(ANSWERS))).sum() <= 4  # one in 24 is chance
    base = difference(null)
    assert base.abs().max() < 0.5
    for head in null.noise_heads:
        with ablated(null, [head], EVERYWHERE):
            assert (difference(null) - base).abs().max() < 0.2


# ---- it behaves as any checkpoint does


def test_save_and_load_give_the_same_model(planted: PlantedModel, tmp_path) -> None:
    planted.module.save_pretrained(tmp_path)
    planted.tokenizer.save_pretrained(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(module) is GPT2LMHeadModel
    batch = tokenizer(CONFLICTS, return_tensors="pt")
    assert torch.equal(batch["input_ids"], encode(planted, CONFLICTS)["input_ids"])
    assert set(batch) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert torch.equal(module(**batch).logits[:, -1], end_logits(planted, CONFLICTS))


def test_a_left_padded_batch_equals_single_prompts(planted: PlantedModel) -> None:
    item = items_of(planted)[0]
    prompts = [item.prompt(condition) for condition in CONDITIONS]
    alone = torch.cat([end_logits(planted, [prompt]) for prompt in prompts])
    torch.testing.assert_close(end_logits(planted, prompts), alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_the_same_answers(planted: PlantedModel, dtype: torch.dtype) -> None:
    low = planted_model(dtype=dtype)
    assert said(low, CLOSED) == ANSWERS
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(
        difference(low).double(), difference(planted), atol=tolerance, rtol=0
    )


def test_the_seed_draws_the_noise_and_nothing_else(planted: PlantedModel) -> None:
    same, other = planted_model(dtype=torch.float64), planted_model(dtype=torch.float64, seed=1)
    assert torch.equal(end_logits(same, CONFLICTS), end_logits(planted, CONFLICTS))
    gap = (end_logits(other, CONFLICTS) - end_logits(planted, CONFLICTS)).abs()
    assert 0 < gap.max() < 1


# ---- how much it can hold


def invented(n: int) -> dict[str, str]:
    letters = [f"{chr(97 + i // 10)}{chr(97 + i % 10)}" for i in range(n)]
    return {f"q{pair}": f"w{pair}" for pair in letters}


@pytest.mark.parametrize(("separate", "most"), [(True, 61), (False, 30)])
def test_a_head_holds_so_many_facts_and_more_are_refused(separate: bool, most: int) -> None:
    facts = invented(most)
    model = planted_model(facts=facts, separate=separate)
    assert said(model, [closed(subject) for subject in facts]) == list(facts.values())
    with pytest.raises(MnemoscopeError, match="use fewer"):
        planted_model(facts=invented(most + 1), separate=separate)
