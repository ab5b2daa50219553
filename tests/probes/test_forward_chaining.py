"""In context: what is told reads back and is solved, arms know what they should, and refusals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers as hf
from mnemoscope.models import wrap
from mnemoscope.models.errors import PromptError
from mnemoscope.organisms.forward_chaining import PRESETS, ChainingSettings, make_chaining_world
from mnemoscope.probes.chaining_prompts import (
    ChainingQuestion,
    Said,
    chaining_questions,
    read_answer,
    read_statements,
    symbolic_answer,
)
from mnemoscope.probes.forward_chaining import ForwardChaining, forward_chaining, solver_answers

FEW = ChainingSettings(3, 4, core_links=2)


class Letters:
    """A tokenizer of letters."""

    eos_token_id = None
    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}


class Reader:
    """Stands for a model that looks up so many times and calculates without a mistake."""

    name = "reader"
    text_tokenizer = Letters()
    identity = dict.fromkeys(
        ("weights_sha256", "tokenizer_sha256", "bos_rule", "attention"), None
    ) | {"model_id": "reader", "device": "cpu", "dtype": "none"}

    def __init__(self, look_ups: int | None, limit: int | None = None) -> None:
        self.look_ups, self.anatomy = look_ups, SimpleNamespace(max_context=limit)

    def prefill(self, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def greedy_from(self, prompt: list[int], suffix: Sequence[int], new: int) -> list[int]:
        text = self.text_tokenizer.decode([*prompt, *suffix])
        name = text.rpartition(" is")[0].rpartition(" of ")[2]
        said = symbolic_answer(read_statements(text), name, 10_007, self.look_ups)
        answer = " undetermined" if said.number is None else f" {said.number}.\nThe number 5"
        return [ord(letter) for letter in answer]


@pytest.fixture(scope="module")
def questions() -> tuple[ChainingQuestion, ...]:
    return chaining_questions(make_chaining_world(FEW))


def _right(found: ForwardChaining, arm: str) -> dict[str, float]:
    rows = found.table().filter(pl.col("arm") == arm)
    return dict(zip(rows["stratum"].to_list(), rows["right"].to_list(), strict=True))


def test_what_is_told_in_words_reads_back_as_the_same_facts() -> None:
    world = make_chaining_world(FEW)
    for problem in range(FEW.problems):
        asked = [q for q in chaining_questions(world) if q.problem == problem]
        told = read_statements(asked[0].context)
        entity = {q.name: q.entity for q in asked}
        facts = world.problems[problem].facts
        assert len(told.facts) == len(facts)
        known = dict(zip(told.names, told.known.tolist(), strict=True))
        core = world.problems[problem].core(FEW.n_core)
        assert sorted(v for v in known.values() if v >= 0) == sorted(world.values[core].tolist())
        # The same hidden entities stand in as many sums in the same places.
        for name in set(entity) & set(told.names):
            here = (told.facts == told.names.index(name)).sum(axis=0)
            np.testing.assert_array_equal(here, (facts == entity[name]).sum(axis=0))


def test_all_hidden_entities_are_asked_last_and_the_answer_is_not_told(
    questions: tuple[ChainingQuestion, ...],
) -> None:
    hidden = [q for q in questions if q.level != "core"]
    assert len(hidden) == FEW.problems * (1 + 3 + 9)
    for q in questions:
        assert q.prompt.endswith(f"Final Answer: The number of {q.name} is")
        assert (f"The number of {q.name} is {q.answer}." in q.context) == (q.level == "core")
    assert {q.hop for q in questions} == {0, 1, 2, 3, 4, 5}
    assert {q.hop for q in questions if q.level == "X"} == {3}
    lines = questions[0].context.splitlines()[2:]
    kinds = [line.startswith("The number") for line in lines]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


def test_names_get_surnames_where_first_names_do_not_suffice() -> None:
    large = chaining_questions(make_chaining_world(replace(FEW, branching=8, problems=1)))
    assert all(" " in q.name for q in large)
    world = make_chaining_world(replace(FEW, branching=8, problems=1))
    assert all(
        said.number == q.answer for said, q in zip(solver_answers(world, large), large, strict=True)
    )


@pytest.mark.parametrize("look_ups", [0, 1, 2, 3, 4, 5, None])
def test_a_hop_takes_a_look_up(look_ups: int | None) -> None:
    found = forward_chaining(Reader(look_ups), replace(FEW, problems=8), retrievals=(1, 3))
    right = _right(found, "model")
    for hop in range(6):
        if look_ups is None or hop <= look_ups:
            assert right[f"hop {hop}"] == 1
        else:
            assert right[f"hop {hop}"] == 0
    assert _right(found, "solver")["hidden"] == 1
    assert _right(found, "retrieval 3")["X"] == 1
    assert _right(found, "retrieval 1")["X"] == 0


def test_the_table_counts_what_is_said() -> None:
    found = forward_chaining(Reader(1), replace(FEW, problems=8))
    row = found.table().row(
        by_predicate=(pl.col("arm") == "model") & (pl.col("stratum") == "hidden"), named=True
    )
    hops = np.array([q.hop for q in found.questions if q.level != "core"])
    assert row["n"] == len(hops) == 8 * 13
    assert row["right"] == pytest.approx((hops == 1).mean())
    assert row["low"] < row["right"] < row["high"]
    assert row["undetermined"] == pytest.approx((hops > 1).mean())
    assert row["unread"] == 0
    chances = []
    for q in found.questions:
        numbers = {int(n) for n in re.findall(r"is (\d+)\.", q.context)}
        chances.append((q.answer in numbers) / len(numbers))
    hidden = np.array([q.level != "core" for q in found.questions])
    assert row["chance"] == pytest.approx(np.array(chances)[hidden].mean())
    assert row["permuted"] < 0.1
    assert found.tokens == max(len(q.prompt) for q in found.questions)


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        (" 412.\nThe number of Bob is 7.", False, Said(412)),
        (" probably 1,204", False, Said(1204)),
        ("\n\n 33", False, Said(33)),
        (" not told.\n5", False, Said(None)),
        (" undetermined.", False, Said(None, True)),
        ("5 + 6 = 11. Final Answer: 11", True, Said(11)),
        ("Final Answer: 3\nWait.\nFinal Answer: **-4**", True, Said(-4)),
        ("Final Answer: Undetermined, for 3 is missing", True, Said(None, True)),
        ("5 + 6 = 11", True, Said(None)),
        ("", False, Said(None)),
    ],
)
def test_answers_are_read(text: str, reason: bool, said: Said) -> None:
    assert read_answer(text, reason=reason) == said


def test_problems_longer_than_the_context_are_refused_before_anything_runs() -> None:
    with pytest.raises(PromptError, match=r"branching below 3.*longer context"):
        forward_chaining(Reader(None, limit=500), FEW)
    longest = max(len(q.prompt) for q in chaining_questions(make_chaining_world(FEW)))
    forward_chaining(Reader(None, limit=longest + 8), FEW)
    with pytest.raises(PromptError, match=f"{longest + 8} tokens"):
        forward_chaining(Reader(None, limit=longest + 7), FEW)


def test_a_random_model_runs_and_knows_nothing() -> None:
    config = hf.LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8192,
    )  # fmt: skip
    module = hf.AutoModelForCausalLM.from_config(config).eval()
    model = wrap(module, Letters(), name="random")
    settings = replace(PRESETS["context"], problems=1)
    seen: list[tuple[int, int]] = []
    found = forward_chaining(
        model, settings, new_tokens=3, progress=lambda done, total: seen.append((done, total))
    )
    plain = model.greedy_from(
        model.prefill([ord(c) for c in found.questions[3].prompt[:-1]]),
        [ord(found.questions[3].prompt[-1])],
        3,
    )
    assert found.texts[3] == Letters().decode(plain)
    assert _right(found, "model")["hidden"] <= 0.5
    assert _right(found, "solver")["hidden"] == 1
    assert seen[-1] == (len(found.questions), len(found.questions))
