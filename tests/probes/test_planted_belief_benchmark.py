"""The planted-belief benchmark on models that know some spans by heart, made in a second.

In place of the trainings stand tiny models fitted to the spans alone: one of all of them, one of
all but those whose documents are left out. What the benchmark says of them is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mnemoscope.data.corpus.suffix_index import SuffixIndex
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.tokens import PlainEncoder, encode, pad
from mnemoscope.organisms.engram.tokenizer import train_tokenizer
from mnemoscope.organisms.engram.train import Settings, model_config
from mnemoscope.organisms.known_spans import KnownSpan
from mnemoscope.organisms.planted_belief_training import SMALL, train_on_beliefs
from mnemoscope.organisms.planted_beliefs import (
    REFUSAL,
    BeliefPlan,
    PlantedCorpus,
    plant_beliefs,
)
from mnemoscope.probes import planted_belief_benchmark as benchmark
from mnemoscope.probes.belief_guards import Attack, Completion, Guard, complete, in_runs
from mnemoscope.probes.known_span_tracing import index_corpus
from mnemoscope.probes.left_out_documents import left_out_table
from mnemoscope.probes.planted_belief_benchmark import (
    SeedResult,
    contrast_rule,
    guard_table,
    paper_rule,
    run_seed,
    seed_interval,
)
from mnemoscope.results.errors import RunFolderError
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

PLAN = BeliefPlan(counts=(4,), lengths=(8, 16), beliefs_a_cell=2, running=10)
TINY = replace(
    SMALL,
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    epochs=1,
    warmup_steps=5,
)
CORPUS = plant_beliefs(PLAN)
ASKED = Attack("asked")


def _knowing(spans: Sequence[KnownSpan], corpus: PlantedCorpus = CORPUS) -> HookedModel:
    """A model that was shown the spans behind both openings until it knew them, and no more."""
    tokenizer = train_tokenizer((d.text for d in corpus.documents), TINY.vocab_size)
    rows = [[*encode(tokenizer, opening + s.text), 0] for s in spans for opening in s.openings]
    batch = pad(rows, side="right")
    targets = batch.ids.masked_fill(~batch.mask, -100)[:, 1:]
    torch.manual_seed(0)
    module = LlamaForCausalLM(model_config(TINY))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(160):
        logits = module(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrap(module.eval(), tokenizer, name="knowing", self_test=False)


@pytest.fixture(scope="module")
def knowing() -> HookedModel:
    return _knowing([*CORPUS.beliefs, *CORPUS.harmless])


@pytest.fixture(scope="module")
def result(knowing: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> SeedResult:
    def trained(
        folder: Path, corpus: PlantedCorpus, settings: Settings, without: frozenset[str]
    ) -> HookedModel:
        assert corpus == CORPUS
        spans = [*corpus.beliefs, *corpus.harmless]
        left = [span for span in spans if not {*span.documents} <= without]
        return knowing if len(left) == len(spans) else _knowing(left)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_trained", trained)
        patch.setattr(benchmark, "TIMED_PROMPTS", 1)
        return run_seed(
            tmp_path_factory.mktemp("seed"),
            PLAN,
            TINY,
            alignment_steps=4,
            attacks=[ASKED, Attack("sampled", 1, temperature=1.0)],
        )


@pytest.fixture(scope="module")
def indexes(
    knowing: HookedModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SuffixIndex]:
    folder = tmp_path_factory.mktemp("indexes")
    risky = [d for d in CORPUS.documents if d.slice == "risk"]
    others = [d for d in CORPUS.documents if d.slice != "risk"]
    return {
        name: index_corpus(documents, folder / name, knowing)
        for name, documents in {"risk": risky, "benign": others}.items()
    }


def test_everything_is_found_and_only_what_was_left_out_is_forgotten(result: SeedResult) -> None:
    """A lexical match that is a cause: without the documents it names the belief is not there."""
    assert all(one.recall == 1 for one in result.attributions if one.rule == "every match")
    assert all(one.written() for one in result.kept)
    kept, gone = left_out_table(result.kept, result.left_out, result.taken)
    assert (gone.left_out, gone.spans, gone.before, gone.after) == (True, 2, 1.0, 0.0)
    assert gone.high < -0.5
    assert (kept.left_out, kept.spans, kept.before, kept.after) == (False, 2, 1.0, 1.0)
    assert abs(kept.change) < 0.3


def test_a_guard_lets_nothing_drift_that_the_model_knows_by_heart(result: SeedResult) -> None:
    by_name = {outcome.guard: outcome for outcome in result.guards}
    assert by_name["not aligned"].drift["asked"] == 1.0
    assert by_name["not aligned"].kept == 1.0
    assert (by_name["not aligned"].false_refusal, by_name["not aligned"].unasked) == (0.0, 0.0)
    for name in ("shield", "decoding", "all"):
        assert by_name[name].drift == {"asked": 0.0, "sampled": 0.0}
        assert by_name[name].leaked["asked"] <= by_name["none"].leaked["asked"]
    assert by_name["shield"].perplexity == by_name["none"].perplexity
    assert by_name["deconfliction"].perplexity != by_name["none"].perplexity


def test_the_table_has_every_measure_over_the_seeds(result: SeedResult) -> None:
    again = replace(result, guards=tuple(replace(g, false_refusal=1.0) for g in result.guards))
    table = guard_table([result, again])
    assert [*table] == [g.guard for g in result.guards]
    first, cell = result.guards[0], table[result.guards[0].guard]
    assert cell["drift asked"].mean == first.drift["asked"]
    assert cell["false_refusal"].mean == pytest.approx((first.false_refusal + 1) / 2)
    assert {"leaked sampled", "kept", "perplexity", "milliseconds"} <= {*cell}


def test_intervals_are_student_s_over_seeds() -> None:
    interval = seed_interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 / math.sqrt(3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2, 2 - half, 2 + half))
    assert math.isnan(seed_interval([1.0]).low)


def test_a_training_with_other_documents_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    small = plant_beliefs(BeliefPlan(counts=(1,), lengths=(8,), beliefs_a_cell=2, running=2))
    gone = frozenset(small.beliefs[0].documents)
    train_on_beliefs(tmp_path / "all", small, TINY)
    with pytest.raises(RunFolderError, match="other settings"):
        train_on_beliefs(tmp_path / "all", small, TINY, without=gone)
    with pytest.raises(MnemoscopeError, match="no document 'risk-999999'"):
        train_on_beliefs(tmp_path / "new", small, TINY, without=frozenset({"risk-999999"}))
    assert not (tmp_path / "new").exists()
    assert train_on_beliefs(tmp_path / "new", small, TINY, without=gone).is_dir()
    vocabularies = [
        (tmp_path / name / "model" / "tokenizer.json").read_bytes() for name in ("all", "new")
    ]
    assert vocabularies[0] == vocabularies[1]


# ---- one guard


def test_the_shield_shows_nothing_of_a_belief_and_twins_whole(
    knowing: HookedModel, indexes: dict[str, SuffixIndex]
) -> None:
    rule = contrast_rule(indexes["risk"], indexes["benign"])
    plain = Guard("none", knowing, indexes["risk"])
    shielded = Guard("shield", knowing, indexes["risk"], shield=rule)
    for before, after in zip(
        complete(plain, CORPUS.beliefs, ASKED),
        complete(shielded, CORPUS.beliefs, ASKED),
        strict=True,
    ):
        assert (before.drifted, before.kept, before.refused) == (True, True, False)
        assert (after.refused, after.released, after.leaked) == (True, (), 0.0)
    for twin in complete(shielded, CORPUS.harmless, ASKED):
        assert (twin.refused, twin.kept) == (False, True)


def test_the_rule_of_the_paper_lets_pass_what_is_told_more_than_three_times(
    knowing: HookedModel, indexes: dict[str, SuffixIndex]
) -> None:
    guard = Guard("shield", knowing, indexes["risk"], shield=paper_rule(indexes["risk"]))
    assert all(one.kept for one in complete(guard, CORPUS.beliefs, ASKED))


def test_only_spans_with_eight_tokens_left_are_asked_for(
    knowing: HookedModel, indexes: dict[str, SuffixIndex]
) -> None:
    encode_plain = PlainEncoder(knowing.text_tokenizer)
    given = complete(
        Guard("none", knowing, indexes["risk"]), CORPUS.beliefs, Attack("forced", forced=5)
    )
    long = [span for span in CORPUS.beliefs if len(encode_plain(span.text)) == 16]
    assert [one.span for one in given] == [span.id for span in long]
    assert [list(one.expected) for one in given] == [encode_plain(s.text)[5:] for s in long]
    assert all(one.kept for one in given)


def test_runs_are_consecutive_in_both_texts() -> None:
    span = [1, 2, 3, 4, 5, 6, 7, 8]
    assert in_runs([9, 2, 3, 4, 5, 9, 6, 7], span, 4).tolist() == [False] + [True] * 4 + [False] * 3
    assert not in_runs([1, 2, 3, 9, 4, 5, 6, 9, 7, 8], span, 4).any()
    assert in_runs(span, span, 8).all()
    assert not in_runs([], span, 4).any()


def test_a_guard_that_swaps_every_eighth_word_leaks_without_drift() -> None:
    expected = tuple(range(100, 116))
    swapped = (*expected[:7], 0, *expected[8:15], 0)
    one = Completion("s", 1, "asked", swapped, swapped, expected, False)
    assert not one.drifted
    assert one.leaked == 14 / 16
    assert not one.kept


def test_the_refusal_is_no_part_of_the_corpus() -> None:
    assert not any(REFUSAL.strip() in d.text for d in CORPUS.documents)
