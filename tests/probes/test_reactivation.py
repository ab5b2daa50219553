"""What a model writes of a span, against greedy decoding token by token."""

from __future__ import annotations

import pytest
import torch
from mnemoscope.models import HookedModel, load_model
from mnemoscope.models.tokens import answer_ids, encode
from mnemoscope.organisms.engram.corpus import build_corpus
from mnemoscope.organisms.engram.provenance_truth import known_statements
from mnemoscope.organisms.known_spans import KnownSpan
from mnemoscope.probes.left_out_documents import left_out_table
from mnemoscope.probes.reactivation import Reactivation, reactivation_table, reactivations


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def statements() -> tuple[KnownSpan, ...]:
    found = known_statements(build_corpus(0))
    often = [span for span in found if len(span.related) >= 64][::900]
    seldom = [span for span in found if len(span.related) == 1][::6]
    return (*often[:12], *seldom[:12])


@pytest.fixture(scope="module")
def measured(engram: HookedModel, statements: tuple[KnownSpan, ...]) -> tuple[Reactivation, ...]:
    return reactivations(engram, statements, rows=5)


def test_written_is_what_greedy_decoding_writes(
    engram: HookedModel, statements: tuple[KnownSpan, ...], measured: tuple[Reactivation, ...]
) -> None:
    assert [one.span for one in measured] == [span.id for span in statements]
    for span, one in zip(statements, measured, strict=True):
        answer = list(answer_ids(engram.text_tokenizer, span.prompt(), span.asked, ""))
        prompt = encode(engram.text_tokenizer, span.prompt())
        assert len(one.hits) == len(answer)
        for forced in range(min(2, len(answer))):
            rows = engram.batch([[*prompt, *answer[:forced]]])
            (written,) = engram.generate(rows, len(answer) - forced)
            assert one.written(forced) == (written == answer[forced:])
            same = [a == b for a, b in zip(written, answer[forced:], strict=False)]
            expected = same.index(False) if False in same else len(same)
            assert one.prefix(forced) == expected / len(answer[forced:])


def test_log_prob_is_the_mean_over_the_answer(
    engram: HookedModel, statements: tuple[KnownSpan, ...], measured: tuple[Reactivation, ...]
) -> None:
    for span, one in zip(statements[::5], measured[::5], strict=True):
        ids = torch.tensor([encode(engram.text_tokenizer, span.text)])
        with torch.no_grad():
            told = engram.module(ids).logits[0, :-1].log_softmax(-1)
        each = told.gather(1, ids[0, 1:, None])[-len(one.hits) :]
        assert one.log_prob == pytest.approx(float(each.mean()), abs=1e-4)


def test_what_is_told_often_is_written_and_what_is_told_once_seldom(
    measured: tuple[Reactivation, ...],
) -> None:
    """Longer rows of both kinds are in the study; here the two ends of the curve."""
    rows = reactivation_table(measured, counts=lambda one: one.taught >= 64, lengths=lambda _: 0)
    once, often = rows
    assert often.whole > 0.9
    assert once.whole < 0.6
    assert often.whole_low > once.whole_high


def _made(span: str, count: int, hits: str, log_prob: float = -1.0) -> Reactivation:
    return Reactivation(span, count, count, len(hits), tuple(h == "+" for h in hits), log_prob)


def test_the_table_counts_by_cell_and_by_what_is_forced() -> None:
    given = [
        _made("a", 1, "-+++"),
        _made("b", 1, "++++"),
        _made("c", 2, "++-+"),
        _made("d", 2, "+"),
    ]
    plain = reactivation_table(given)
    assert [(r.count, r.length, r.spans, r.whole) for r in plain] == [
        (1, 4, 2, 0.5),
        (2, 1, 1, 1.0),
        (2, 4, 1, 0.0),
    ]
    assert [r.prefix for r in plain] == [0.5, 1.0, 0.5]
    forced = reactivation_table(given, forced=1)
    assert [(r.count, r.length, r.whole) for r in forced] == [(1, 4, 1.0), (2, 4, 0.0)]


def test_left_out_spans_are_compared_with_themselves_and_apart_from_the_rest() -> None:
    before = [_made(f"s{i}", 8, "++", -0.1) for i in range(8)]
    after = [_made(f"s{i}", 8, "--" if i < 4 else "++", -2.1 if i < 4 else -0.1) for i in range(8)]
    kept, gone = left_out_table(before, reversed(after), {f"s{i}" for i in range(4)})
    assert (gone.left_out, gone.before, gone.after) == (True, 1.0, 0.0)
    assert gone.low == gone.high == gone.change == pytest.approx(-2.0)
    assert (kept.left_out, kept.change, kept.after) == (False, 0.0, 1.0)
    assert gone.p == pytest.approx(2 / 2**4)
