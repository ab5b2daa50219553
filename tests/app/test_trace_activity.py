"""What heads and units write on a span agrees with the model's own parts, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mnemoscope.app.trace_activity import (
    SINK,
    Activity,
    Usual,
    activity,
    head_ids,
    said_span,
    unit_ids,
    usual_writes,
)
from mnemoscope.app.trace_answers import Asked, span_in_model, written
from mnemoscope.models.anatomy import head_output_weights, part
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import Site, TokenSpan
from mnemoscope.probes.index_spelling import token_spelling

TEXT = "Nobody knows it. The capital of France is Paris. It is large."
SENTENCE = " The capital of France is Paris."
AT = (TEXT.index(SENTENCE), TEXT.index(SENTENCE) + len(SENTENCE))


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def usual(engram: HookedModel) -> Usual:
    return usual_writes(engram)


def said_of(model: HookedModel, before: tuple[int, ...] = (0,)):
    return said_span(model, before, token_spelling(model.text_tokenizer).spell(TEXT), *AT)


@pytest.fixture(scope="module")
def found(engram: HookedModel, usual: Usual) -> Activity:
    return activity(engram, said_of(engram), usual, most=10_000)


def test_the_span_is_cut_out_of_what_the_model_reads(engram: HookedModel) -> None:
    said = said_of(engram)
    decode = engram.text_tokenizer.decode
    assert decode(said.ids[said.span.start : said.span.stop]) == SENTENCE
    assert said.span.stop == len(said.ids)
    assert said.ids[0] == 0


def test_a_text_longer_than_the_context_loses_its_front(engram: HookedModel) -> None:
    context = engram.anatomy.max_context or 0
    said = said_of(engram, (5,) * (context + 7))
    assert len(said.ids) == context
    decode = engram.text_tokenizer.decode
    assert decode(said.ids[said.span.start : said.span.stop]) == SENTENCE


def test_a_span_with_nothing_before_it_begins_with_its_second_token(engram: HookedModel) -> None:
    spelled = token_spelling(engram.text_tokenizer).spell(TEXT)
    assert said_span(engram, (), spelled, 0, 20).span.start == 1
    with pytest.raises(MnemoscopeError, match="nothing stands before"):
        said_span(engram, (), spelled, 0, 1)
    with pytest.raises(MnemoscopeError, match="no token"):
        said_span(engram, (), spelled, 900, 901)


def test_heads_write_what_their_slice_of_the_projection_makes_of_z(
    engram: HookedModel, found: Activity
) -> None:
    said = said_of(engram)
    z = engram.capture(engram.batch([said.ids]), [Site.Z]).stack(Site.Z)[:, 0]
    predicting = z[:, said.span.start - 1 : said.span.stop - 1]
    for row in found.heads.head(6).iter_rows(named=True):
        block = part(engram.module, engram.anatomy.spec.blocks)[row["layer"]]
        weights = head_output_weights(part(block, engram.anatomy.spec.o_proj), 8)[row["head"]]
        lengths = (predicting[row["layer"], :, row["head"]] @ weights).norm(dim=-1)
        assert row["write"] == pytest.approx(float(lengths.mean().detach()), rel=1e-4)


def test_attention_on_the_span_and_before_it_is_that_of_the_rows(
    engram: HookedModel, found: Activity
) -> None:
    said = said_of(engram)
    queries = torch.arange(said.span.start - 1, said.span.stop - 1)[None]
    rows = engram.rows(engram.batch([said.ids]), queries)[:, 0].mean(2).numpy()
    for row, head in zip(found.heads.iter_rows(named=True), head_ids(found.heads), strict=True):
        own = rows[head.layer, head.head]
        assert row["before"] == pytest.approx(own[SINK : said.span.start].sum(), abs=1e-4)
        # The first of the positions stands before the span and sees nothing of it.
        assert row["span"] == pytest.approx(own[said.span.start :].sum(), abs=1e-4)


def test_units_write_their_activation_along_their_column(
    engram: HookedModel, found: Activity
) -> None:
    said = said_of(engram)
    a = engram.capture(engram.batch([said.ids]), [Site.NEURON]).stack(Site.NEURON)[:, 0]
    sizes = a[:, said.span.start - 1 : said.span.stop - 1].abs().mean(1)
    for row, unit in zip(
        found.units.head(5).iter_rows(named=True), unit_ids(found.units), strict=False
    ):
        block = part(engram.module, engram.anatomy.spec.blocks)[unit.layer]
        column = part(block, str(engram.anatomy.spec.down)).weight[:, unit.index].norm()
        assert row["write"] == pytest.approx(
            float((sizes[unit.layer, unit.index] * column).detach()), rel=1e-4
        )


def test_order_is_by_excess_over_the_usual_and_all_are_there(
    engram: HookedModel, usual: Usual, found: Activity
) -> None:
    for frame, table in ((found.heads, usual.heads), (found.units, usual.units)):
        assert frame.height == table.size
        excess = (frame["write"] - frame["usual"]).to_numpy()
        assert (np.diff(excess) <= 1e-12).all()
        first = frame.row(0)
        assert frame["usual"][0] == pytest.approx(table[first[0], first[1]])
    assert found.heads["times"][0] == found.heads["write"][0] / found.heads["usual"][0]


def test_certainty_is_the_probability_of_the_span_s_own_tokens(
    engram: HookedModel, found: Activity
) -> None:
    said = said_of(engram)
    shares = engram.logits(engram.batch([said.ids]))[0].softmax(-1)
    inside = range(said.span.start, said.span.stop)
    own = [float(shares[i - 1, said.ids[i]]) for i in inside]
    first = [int(shares[i - 1].argmax()) == said.ids[i] for i in inside]
    assert found.tokens == len(own)
    assert found.certainty == pytest.approx(np.mean(own), abs=1e-5)
    assert found.greedy == np.mean(first)


def test_a_span_of_an_answer_is_found_behind_its_prompt(engram: HookedModel) -> None:
    said = written(engram, Asked("an answer", "", "The capital of France is ", 12))
    assert said.prompt.endswith("is")
    text = engram.text_tokenizer.decode(said.ids)
    assert said.text == text

    class Span:
        start, stop = 0, text.index(".") + 1

    inside = span_in_model(engram, said, Span)
    assert inside.ids[: len(said.prompt_ids)] == said.prompt_ids
    assert inside.span.start == len(said.prompt_ids)
    shown = engram.text_tokenizer.decode(inside.ids[inside.span.start : inside.span.stop])
    assert shown == text[: Span.stop]
    found = activity(engram, inside, usual_writes(engram), most=3)
    assert found.greedy == 1.0, "it was written greedily"


def test_a_typed_text_is_read_with_the_tokenizer_s_own_beginning(engram: HookedModel) -> None:
    class Span:
        start, stop = AT

    said = span_in_model(engram, written(engram, Asked("a text", TEXT, "", 0)), Span)
    assert said == said_of(engram)
    assert said.span == TokenSpan(said.span.start, len(said.ids))
