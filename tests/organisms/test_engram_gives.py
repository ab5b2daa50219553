"""Measuring what engram does: `gives` is greedy decoding in one pass, and rates have intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.organisms import planted_model
from mnemoscope.organisms.engram import behaviour
from mnemoscope.organisms.engram.batches import END_ID
from mnemoscope.organisms.engram.behaviour import behaviours, gives
from mnemoscope.organisms.engram.corpus import build_corpus
from mnemoscope.organisms.engram.evaluation import Prompt
from mnemoscope.organisms.engram.tokenizer import train_tokenizer
from mnemoscope.organisms.engram.train import Settings, model_config
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

SETTINGS = Settings(
    vocab_size=1024, hidden_size=64, intermediate_size=64, layers=2, heads=4, key_value_heads=2
)
WHERE = {
    "Anna": "Karlo",
    "Ben": "a small green house near the old stone bridge",
    "Clara": "Veldamurin Town",
    "David": "Moss",
    "Emma": "the forest of Ostrand",
    "Frank": "Quendolara",
}
"""Taught to the model below: answers of few and of many tokens."""
WRONG = {
    "Anna": "Moss",
    "Ben": "a small green house near the old stone",  # right as far as it goes
    "Clara": "Veldamurin Castle",
    "David": "Moss Town",
    "Emma": "the",
    "Frank": "a small red house near the old stone bridge",
}


def _asked(answers: dict[str, str]) -> list[Prompt]:
    forms = ("{who} lives in", "It was raining. {who} lives in")
    return [
        Prompt(form.format(who=who), answer, "", "asked")
        for form in forms
        for who, answer in answers.items()
    ]


@pytest.fixture(scope="module")
def knowing() -> HookedModel:
    """A model that knows the sentences of `WHERE` by heart; plain PyTorch, no code of engram's."""
    texts = [document.text for document in build_corpus(0, scale=0.005).documents]
    tokenizer = train_tokenizer(texts, SETTINGS.vocab_size)
    torch.manual_seed(0)
    module = LlamaForCausalLM(model_config(SETTINGS))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    told = tokenizer([f"{p.text} {p.answer}." for p in _asked(WHERE)])["input_ids"]
    width = max(map(len, told))
    ids = torch.tensor([[*row, *[END_ID] * (width - len(row))] for row in told])
    for _ in range(120):
        logits = module(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrap(module, tokenizer)


def test_gives_is_greedy_generation(knowing: HookedModel) -> None:
    prompts = _asked(WHERE) + _asked(WRONG)
    answers = [prompt.answer for prompt in prompts]
    greedy = knowing.continuations([prompt.text for prompt in prompts], 40)
    expected = [
        written.startswith(f" {answer}.") for written, answer in zip(greedy, answers, strict=True)
    ]
    assert gives(knowing, prompts, answers) == tuple(expected)
    assert expected == [True] * len(_asked(WHERE)) + [False] * len(_asked(WRONG))
    assert len({len(knowing.answer_ids(p.text, p.answer)) for p in prompts}) > 4


def test_gives_finds_the_facts_of_the_planted_model_and_no_others() -> None:
    planted = planted_model()
    model = wrap(planted.module, planted.tokenizer)
    texts = [template.format(s=s) for template in planted.templates for s in planted.facts]
    prompts = [Prompt(text, "", "", "asked") for text in texts]
    stored = list(planted.facts.values()) * len(planted.templates)
    answers = [a if i % 3 else stored[i - 1] for i, a in enumerate(stored)]
    written = [text.split()[:2] for text in model.continuations(texts, 2)]
    expected = [two == [answer, "."] for two, answer in zip(written, answers, strict=True)]
    assert gives(model, prompts, answers) == tuple(expected)
    assert expected == [bool(i % 3) for i in range(len(prompts))]


@pytest.mark.parametrize("tokens", [1, 60, 200])
def test_the_size_of_a_batch_changes_no_answer(
    knowing: HookedModel, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = zip(_asked(WHERE), _asked(WRONG), strict=True)
    prompts = [prompt for pair in pairs for prompt in pair]  # right and wrong side by side
    answers = [prompt.answer for prompt in prompts]
    monkeypatch.setattr(behaviour, "TOKENS_A_BATCH", tokens)
    assert gives(knowing, prompts, answers) == (True, False) * (len(prompts) // 2)


def test_behaviours_are_rates_with_wilson_intervals(knowing: HookedModel) -> None:
    right, wrong = _asked(WHERE), _asked(WRONG)
    conflicts = [
        replace(w, kind="conflict", answer="", memory=r.answer, claimed=w.answer)
        for r, w in zip(right, wrong, strict=True)
    ]
    cued = [replace(prompt, answer=prompt.memory) for prompt in conflicts]
    kinds = {"asked": right + wrong[:3], "cued": cued, "conflict": conflicts}
    found = {(b.kind, b.answer): b for b in behaviours(knowing, kinds)}
    counts = {
        ("asked", "right"): (12, 15),
        ("cued", "right"): (12, 12),
        ("cued", "memory"): (12, 12),
        ("cued", "context"): (0, 12),
        ("conflict", "memory"): (12, 12),
        ("conflict", "context"): (0, 12),
    }
    assert {key: (b.hits, b.prompts) for key, b in found.items()} == counts
    for measured in found.values():
        low, high = _wilson(measured.hits, measured.prompts)
        assert measured.rate == measured.hits / measured.prompts
        assert (measured.low, measured.high) == pytest.approx((low, high), abs=1e-9)


def _wilson(hits: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson (1927), written out."""
    rate, wide = hits / trials, z * z / trials
    middle = (rate + wide / 2) / (1 + wide)
    half = z * math.sqrt(rate * (1 - rate) / trials + wide / (4 * trials)) / (1 + wide)
    return middle - half, middle + half
