"""Trials of retrieval: readings against plain loops over eager attention, replay, resuming."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from families import FAMILIES
from mnemoscope.data.facts.needles import NeedleDesign, Trial, build_needle_design, make_needles
from mnemoscope.models import load_model, wrap
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.tokens import encode
from mnemoscope.probes.retrieval_designs import design_for
from mnemoscope.probes.retrieval_readings import AnswerReadings, QuestionReadings, heard
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials
from mnemoscope.results.run_folder import open_run

CLOSE = 2e-5


@cache
def engram() -> HookedModel:
    return load_model("engram")


@cache
def engram_design() -> NeedleDesign:
    return design_for(engram(), lengths=(192,), needles=9, seed=1)


@cache
def engram_trials() -> RetrievalTrials:
    return measure_trials(engram(), engram_design())


def tiny_reader(family: str, window: int | None = None, seed: int = 0) -> HookedModel:
    """A random model of a family that reads engram's tokens."""
    config = deepcopy(FAMILIES[family])
    config.vocab_size, config.max_position_embeddings = 4096, 512
    if window is not None:
        config.sliding_window = window
    torch.manual_seed(seed)
    module = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    return wrap(module.float(), engram().tokenizer, name=family)


def tiny_design(
    model: HookedModel, needles: int = 2, length: int = 72, distractors: int = 1
) -> NeedleDesign:
    made = make_needles("literal", needles + distractors, 0)
    return build_needle_design(
        made[:needles],
        lambda text: encode(model.text_tokenizer, text),
        lambda ids: model.text_tokenizer.decode(list(ids)),
        lengths=(length,),
        depths=2,
        needles_per_haystack=min(needles, 2) if distractors == 0 else 1,
        rounds=1,
        distractors=made[needles:],
    )


# -- against plain loops --------------------------------------------------------------------------


def eager_rows(model: HookedModel, ids: Sequence[int]) -> np.ndarray:
    """The whole attention `[layer, head, query, key]`, as transformers returns it."""
    out = model.module(torch.tensor([list(ids)]), output_attentions=True)
    return torch.stack([layer[0] for layer in out.attentions]).double().detach().numpy()


def plain_answer(
    p: np.ndarray,
    trial: Trial,
    ids: Sequence[int],
    following: Sequence[int],
    window: int = 0,
    begins: int = 0,
) -> dict[str, float]:
    """The readings of one head from its attention matrix, token by token."""
    end = len(ids) - len(following) - 1  # the row of END
    needle = range(trial.needle.start, trial.needle.stop)
    answer = range(trial.answer.start, trial.answer.stop)
    gold = [i for i in trial.answer_ids if i in [ids[j] for j in answer]]
    hits: dict[int, float] = {}
    soft, margin, masses, outside, tops, r2, copied = [], [], [], [], [], [], set()
    for step, token in enumerate(following):
        row = p[end + step]
        seen = [j for j in range(end + step + 1) if window <= 0 or end + step - j < window]
        if not set(seen) & set(needle):
            continue
        rest = [j for j in seen if j not in needle]
        masses.append(sum(row[j] for j in needle))
        outside.append(sum(row[j] for j in rest) / (end + step + 1 - len(needle)))
        order = sorted(seen, key=lambda j: -row[j])
        tops.append(float(order[0] in needle))
        r2.append(sum(row[j] for j in order[: len(needle)] if j in needle) / len(needle))
        if not set(seen) & set(answer):
            continue
        hits[step] = float(order[0] in answer and ids[order[0]] == token)
        if hits[step]:
            copied.add(token)
        same = [j for j in answer if ids[j] == token and j in seen]
        if same:
            soft.append(sum(row[j] for j in same))
            margin.append(np.log(max(row[j] for j in same)) - np.log(max(row[j] for j in rest)))

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if len(values) else np.nan

    later = [
        hits[s]
        for s in hits
        if begins < s < begins + len(trial.answer_ids) and following[s] in gold
    ]
    return {
        "hits_set": len(copied & set(gold)) / len(set(gold)) if hits else np.nan,
        "hits_event": sum(hits.values()) / len(answer) if hits else np.nan,
        "first_hit": hits.get(begins, np.nan),
        "later_hits": mean(later),
        "soft": mean(soft),
        "margin": mean(margin),
        "needle_mass": mean(masses),
        "contrast": mean([m / len(needle) - o for m, o in zip(masses, outside, strict=True)]),
        "top_is_needle": mean(tops),
        "r2": sum(r2) if r2 else np.nan,
    }


@pytest.mark.parametrize(
    ("family", "windows"),
    [("llama", (0, 0, 0)), ("gpt2", (0, 0, 0)), ("gemma3", (60, 0, 60)), ("mistral", (40,) * 3)],
)
def test_forced_readings_equal_plain_loops_over_eager_attention(
    family: str, windows: tuple[int, ...]
) -> None:
    model = tiny_reader(family, max(windows) or None)
    design = tiny_design(model)
    trials = measure_trials(model, design)
    blind = 0
    for i, trial in enumerate(design.trials):
        ids = (*design.prompt(trial), *trial.answer_ids)
        whole = eager_rows(model, ids[:-1])
        for layer, head in np.ndindex(*whole.shape[:2]):
            expected = plain_answer(
                whole[layer, head], trial, ids, trial.answer_ids, windows[layer]
            )
            for name, value in expected.items():
                measured = getattr(trials.forced, name)[i, layer, head]
                assert measured == pytest.approx(value, abs=CLOSE, rel=1e-4, nan_ok=True), name
            blind += np.isnan(expected["needle_mass"])
    assert (blind > 0) == (windows[0] > 0)  # a window ends before the needle somewhere


def test_readings_of_a_model_that_copies_equal_plain_loops_in_both_modes() -> None:
    module = deepcopy(engram().module).float()
    module.set_attn_implementation("eager")
    model, design = replace(engram(), module=module), engram_design()
    trials = measure_trials(model, design)
    for i in (0, 1, 3):
        trial = design.trials[i]
        haystack = model.prefill(design.haystacks[trial.haystack].ids)
        said = model.greedy_from(haystack, trial.question_ids, 16)
        gold, spoken = trial.answer_ids, said
        if gold == tuple(said[: len(gold)]):
            spoken = said[: len(gold)]
        for mode, following in ((trials.forced, gold), (trials.free, spoken)):
            ids = (*design.prompt(trial), *following)
            whole = eager_rows(model, ids[:-1])
            begins = 0 if tuple(following[:1]) == gold[:1] else -99
            for layer, head in np.ndindex(*whole.shape[:2]):
                expected = plain_answer(whole[layer, head], trial, ids, following, begins=begins)
                for name, value in expected.items():
                    measured = getattr(mode, name)[i, layer, head]
                    assert measured == pytest.approx(value, abs=1e-4, nan_ok=True), name
    assert trials.forced.hits_set[trials.accepted].mean(0).max() > 0.7


def test_question_rows_leave_out_end_and_equal_plain_means() -> None:
    model = tiny_reader("llama")
    design = tiny_design(model)
    trials = measure_trials(model, design)
    for i, trial in enumerate(design.trials):
        ids = design.prompt(trial)
        rows = eager_rows(model, ids)[:, :, trial.length : -1]
        needle = rows[..., trial.needle.start : trial.needle.stop]
        rivals = [span for _, span in design.haystacks[trial.haystack].distractors]
        rival_mass = sum(rows[..., span.start : span.stop].sum(-1) for span in rivals)
        m, n = needle.shape[-1], np.arange(trial.length, len(ids) - 1) + 1
        contrast = needle.sum(-1) / m - (1 - needle.sum(-1)) / (n - m)
        for name, expected in {
            "needle_mass": needle.sum(-1).mean(-1),
            "peak": needle.max((-1, -2)),
            "rival_mass": rival_mass.mean(-1),
            "contrast": contrast.mean(-1),
        }.items():
            assert np.allclose(getattr(trials.question, name)[i], expected, atol=CLOSE), name


def test_the_answer_s_log_probability_is_that_of_one_plain_pass() -> None:
    model, design, trials = engram(), engram_design(), engram_trials()
    for i, trial in enumerate(design.trials):
        for prompt, measured in (
            (design.prompt(trial), trials.forced_logprob),
            (design.control(trial), trials.control_logprob),
        ):
            batch = model.batch([(*prompt, *trial.answer_ids)])
            logprobs = model.logits(batch)[0].log_softmax(-1)
            steps = range(len(prompt) - 1, len(prompt) + len(trial.answer_ids) - 1)
            expected = sum(float(logprobs[s, batch.ids[0, s + 1]]) for s in steps)
            assert measured[i] == pytest.approx(expected, abs=0.02)  # bfloat16 weights


def test_spans_without_a_rival_do_not_apply() -> None:
    model = tiny_reader("llama")
    design = tiny_design(model, needles=2, distractors=0)
    alone = replace(
        design,
        haystacks=tuple(replace(h, needles=h.needles[:1]) for h in design.haystacks),
        trials=design.trials[:1],
    )
    assert np.isnan(measure_trials(model, alone).forced.rival_mass).all()
    assert not np.isnan(measure_trials(model, design).forced.rival_mass).any()


# -- replay and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "engram"])
def test_replay_reads_what_step_by_step_decoding_reads(name: str) -> None:
    model = engram() if name == "engram" else tiny_reader(name)
    exact = replace(model, module=deepcopy(model.module).float())
    design = engram_design() if name == "engram" else tiny_design(model)
    trial = design.trials[0]
    haystack = exact.prefill(design.haystacks[trial.haystack].ids)
    said = exact.greedy_from(haystack, trial.question_ids, 6)
    replayed = exact.read_suffix(haystack, (*trial.question_ids, *said[:-1])).rows
    state, steps = exact.prefill(trial.question_ids[:-1], before=haystack), []
    for token in (trial.question_ids[-1], *said[:-1]):
        steps.append(exact.read_suffix(state, [token]).rows)
        state = exact.prefill([token], before=state)
    start = len(trial.question_ids) - 1
    keys = torch.cat([step.key for step in steps], dim=-1)
    assert torch.equal(replayed.key[..., start:], keys)
    weights = torch.cat([step.top_weight for step in steps], dim=-2)
    assert torch.allclose(replayed.top_weight[..., start:, :], weights, atol=1e-5)


def test_free_rows_are_the_forced_ones_where_the_gold_answer_was_said() -> None:
    trials = engram_trials()
    golden = [
        text.startswith(f" {trials.design.needle(trial.needle_id).answer}.")
        for text, trial in zip(trials.continuations, trials.design.trials, strict=True)
    ]
    assert any(golden)
    assert not all(golden)
    for i, said_gold in enumerate(golden):
        same = all(
            np.array_equal(
                getattr(trials.free, f.name)[i], getattr(trials.forced, f.name)[i], equal_nan=True
            )
            for f in fields(AnswerReadings)
        )
        assert same == said_gold
    assert trials.accepted[golden].all()
    assert (trials.free.own_choice == 1).all()


def test_a_model_that_ends_at_once_has_no_free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HookedModel, "greedy_from", lambda *_: [])
    model = tiny_reader("llama")
    trials = measure_trials(model, tiny_design(model))
    assert (trials.free.steps == 0).all()
    assert np.isnan(trials.free.needle_mass).all()
    assert np.isnan(trials.free.own_choice).all()
    assert not np.isnan(trials.forced.needle_mass).any()
    assert trials.verdicts == ("other",) * len(trials.verdicts)


def test_where_an_answer_is_heard() -> None:
    assert heard([5, 6, 7], [5, 6, 7]) == (0, 3)
    assert heard([1, 5, 6, 7, 2], [5, 6, 7]) == (1, 4)
    assert heard([5, 1, 5, 6, 2], [5, 6, 7]) == (2, 4)  # the longest beginning
    assert heard([5, 1, 5, 2], [5, 6, 7]) == (0, 1)  # of equals the first
    assert heard([1, 6, 7], [5, 6, 7]) is None
    assert heard([], [5]) is None


# -- gates ----------------------------------------------------------------------------------------


def test_the_gate_follows_what_was_said() -> None:
    trials = engram_trials()
    for i, trial in enumerate(trials.design.trials):
        answer = trials.design.needle(trial.needle_id).answer
        rivals = [rival.answer for rival in trials.design.rivals(trial)]
        said = trials.continuations[i]
        first = min(
            (a for a in (answer, *rivals) if a in said), key=lambda a: said.index(a), default=None
        )
        assert trials.accepted[i] == (first == answer)
        assert (trials.verdicts[i] == "rival") == (first in rivals)
    assert not trials.known.any()  # invented names: nothing to know
    assert trials.forced_logprob.mean() > trials.control_logprob.mean() + 3


def test_a_needle_that_the_question_alone_gets_right_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, design = tiny_reader("llama"), tiny_design(tiny_reader("llama"))
    told = [list(trial.answer_ids) for trial in design.trials]
    monkeypatch.setattr(
        HookedModel, "generate", lambda _, batch, new: [told.pop(0) for _ in range(len(batch))]
    )
    assert measure_trials(model, design).known.all()


def test_low_acceptance_is_said_with_the_numbers() -> None:
    model = tiny_reader("llama")
    notes = measure_trials(model, tiny_design(model)).notes
    assert notes[0].startswith("Only 0 of 2 trials were answered (0%)")
    fine = replace(engram_trials(), accepted=np.ones(9, bool))
    assert not any("trials were answered (" in note for note in fine.notes)


def test_an_answer_that_opens_a_line_is_noted() -> None:
    design = engram_design()
    other = [replace(trial, answer_ids=(3, *trial.answer_ids[1:])) for trial in design.trials]
    assert 3 not in {i for h in design.haystacks for i in h.ids}
    notes = replace(engram_trials(), design=replace(design, trials=tuple(other))).notes
    assert any(
        note.startswith("In 9 of 9 trials the answer's first token differs") for note in notes
    )


# -- resuming -------------------------------------------------------------------------------------


def test_an_interrupted_measurement_continues_to_the_same_numbers(tmp_path: Path) -> None:
    model = tiny_reader("llama")
    design = tiny_design(model, needles=3, distractors=1)
    straight = measure_trials(model, design)

    def stop_after_one(done: int, total: int) -> None:
        assert total == 3
        if done < total:
            raise KeyboardInterrupt

    config = {"design": design.sha256}
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "retrieval", config) as run:
        measure_trials(model, design, run=run, progress=stop_after_one)
    calls: list[tuple[int, int]] = []
    with open_run(tmp_path, "retrieval", config) as run:
        assert list(run.done) == ["rows-00000"]
        resumed = measure_trials(
            model, design, run=run, progress=lambda done, total: calls.append((done, total))
        )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert resumed.continuations == straight.continuations
    assert resumed.verdicts == straight.verdicts
    assert resumed.arrays.keys() == straight.arrays.keys()
    for name, array in straight.arrays.items():
        assert np.array_equal(array, resumed.arrays[name], equal_nan=array.dtype.kind == "f"), name
        assert len(array) == 3


def test_every_reading_is_among_the_arrays() -> None:
    arrays = engram_trials().arrays
    heads = (9, engram().anatomy.n_layers, engram().anatomy.n_heads)
    for kind, prefixes in ((AnswerReadings, ("forced", "free")), (QuestionReadings, ("question",))):
        for f in fields(kind):
            for prefix in prefixes:
                array = arrays[f"{prefix}_{f.name}"]
                assert array.shape == ((9,) if f.name in ("own_choice", "steps") else heads)


# -- bad input ------------------------------------------------------------------------------------


def refused(
    monkeypatch: pytest.MonkeyPatch, model: Any, design: NeedleDesign, **options: Any
) -> Any:
    """The error of a measurement that must not run anything."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(HookedModel, "prefill", never)
    with pytest.raises(MnemoscopeError) as caught:
        measure_trials(model, design, **options)
    return caught.value


def test_a_prompt_beyond_the_context_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reader("llama")
    design = tiny_design(model, length=500)
    error = refused(monkeypatch, model, design)
    assert isinstance(error, PromptError)
    room = 512 - 16 - (design.longest_prompt - 500)
    assert f"haystacks of at most {room} tokens" in str(error)


def test_an_answer_longer_than_the_continuation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reader("llama")
    error = refused(monkeypatch, model, tiny_design(model), max_new_tokens=1)
    assert "allow" in str(error)


def test_a_needle_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    design = engram_design()
    gone = tuple(replace(h, ids=h.ids[::-1]) for h in design.haystacks)
    error = refused(monkeypatch, engram(), replace(design, haystacks=gone))
    assert "build the design with this model's tokenizer" in str(error)


def test_a_design_that_mixes_haystacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    design = engram_design()
    error = refused(monkeypatch, engram(), replace(design, trials=design.trials[::-1]))
    assert "haystack by haystack" in str(error)
