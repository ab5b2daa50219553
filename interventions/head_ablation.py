"""Ablating attention heads, in the ways of the literature and where in a trial they hold.

The two best-known repositories of retrieval heads ablate otherwise than readers assume
(retrieval_heads, 1.6 and 3.2): one evens out attention while decoding only, so that it cannot touch
heads that locate the needle from the question; the other replaces pre-rotary queries. Here the mode
and the place are two words, and every mode goes with every place.

A trial is three forward passes: the haystack; the question without its last token END; END and the
answer but its last token, whose logits predict the answer (teacher-forced). `Where` names the
passes that an ablation holds in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.attention_edits import AttentionEdit, knock_out, mean_query, streaming, uniform
from ..models.edits import Edit, mean, resample, zero
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.hooks import Change, site_hook
from ..models.prompt_cache import PromptCache, run_behind
from ..models.types import HeadId, Site, TokenSpan, unique_heads

Mode = Literal["zero", "mean", "resample", "uniform", "mean_query", "knock_out", "streaming"]
Where = Literal["prefill", "question", "decode", "question+decode", "both"]
Pass = Literal["haystack", "question", "answer"]

PASSES: Mapping[Where, tuple[Pass, ...]] = {
    "prefill": ("haystack", "question"),
    "question": ("question",),
    "decode": ("answer",),
    "question+decode": ("question", "answer"),
    "both": ("haystack", "question", "answer"),
}
"""The passes of a trial that an ablation holds in."""

AnyEdit = Edit | AttentionEdit
Edits = Sequence[AnyEdit] | Mapping[Pass, Sequence[AnyEdit]]
"""The same edits in every pass, or each pass its own (resampled outputs differ from pass to pass).
"""


def ablation_edits(
    mode: Mode,
    heads: Sequence[HeadId],
    *,
    values: Mapping[HeadId, Tensor] | None = None,
    spans: Sequence[TokenSpan] = (),
    sink: int = 0,
    recent: int = 0,
) -> tuple[AnyEdit, ...]:
    """The edits that ablate all heads; nothing for no heads.

    - zero: outputs become zero.
    - mean: outputs become `values`, `[d_v]` a head (`head_means.mean_head_outputs`).
    - resample: outputs become `values`, `[batch or 1, pos, d_v]` a head, those of another prompt
      (`trial_outputs`).
    - uniform, mean_query (`values`, `[d_head]` a head, `head_means.mean_queries`), knock_out
      (`spans`), streaming (`sink`, `recent`): see `models.attention_edits`.

    Raises `MnemoscopeError` for an unknown mode and for `values` that are missing; what the model
    lacks is refused when the edits are applied.
    """
    return ablation_rows(mode, [heads], values=values, spans=spans, sink=sink, recent=recent)


def ablation_rows(
    mode: Mode,
    sets: Sequence[Sequence[HeadId]],
    *,
    values: Mapping[HeadId, Tensor] | None = None,
    spans: Sequence[TokenSpan] = (),
    sink: int = 0,
    recent: int = 0,
) -> tuple[AnyEdit, ...]:
    """`ablation_edits` of many head sets in one batch: row `i` ablates `sets[i]`, which may be
    empty. A single set holds for all rows.

    In a row of its set a head is multiplied by 0 and given its value, in the others multiplied by 1
    and given 0; edits of what heads read name their rows.
    """
    if mode not in get_args(Mode):
        raise MnemoscopeError(f"ablation knows no {mode!r}: use {', '.join(get_args(Mode))}.")
    heads = tuple(dict.fromkeys(head for some in sets for head in unique_heads(some)))
    if not heads:
        return ()
    found = _values(mode, heads, values)
    if mode in ("zero", "mean", "resample"):
        if len(sets) == 1:
            return (_output_edit(mode, heads, found),)
        return _output_rows(heads, sets, found)
    edits: list[AnyEdit] = []
    for rows, places in _by_rows(heads, sets).items():
        here, of = [heads[i] for i in places], None if len(sets) == 1 else rows
        if mode == "uniform":
            edits.append(uniform(here, of))
        elif mode == "mean_query":
            assert found is not None
            edits.append(mean_query(here, found[places], of))
        elif mode == "knock_out":
            edits.append(knock_out(here, spans, of))
        else:
            edits.append(streaming(here, sink, recent, of))
    return tuple(edits)


@dataclass(frozen=True, eq=False)
class AnswerRun:
    """What the model made of a gold answer, a row for each row that ran."""

    log_probs: Float[Tensor, "row answer"]
    """Natural log-probability of each gold token, given those before it; float32."""
    choices: Int[Tensor, "row answer"]
    """The model's own most probable token at the same places."""


@torch.no_grad()
def run_answer(
    model: HookedModel,
    haystack_ids: Sequence[int],
    question_ids: Sequence[int],
    answer_ids: Sequence[int],
    edits: Edits = (),
    where: Where = "both",
    *,
    cached: PromptCache | None = None,
    rows: int = 1,
) -> AnswerRun:
    """The three passes of a trial, with the edits in force in those that `where` names.

    `cached` is the haystack prefilled before, which saves the first pass where it is not edited.
    With `rows` the question and the answer run in that many rows, for edits that differ by row
    (`ablation_rows`); the haystack is one row, so these leave it alone. Memory: keys and values,
    once more for every row.

    Raises `PromptError` for an empty part, or a question without tokens before END where only the
    question is edited; `MnemoscopeError` for an unknown place or a haystack that cannot be reused.
    """
    _check_trial(haystack_ids, question_ids, answer_ids, where, cached, rows)
    prompt, logits = cached, None
    for names, told in _stretches(edits, where):
        with model.intervene(told) if told else nullcontext():
            for name in names:
                if name == "haystack":
                    prompt = prompt or _haystack(
                        model, haystack_ids, whole=bool(told) and isinstance(edits, Mapping)
                    )
                elif name == "question":
                    assert prompt is not None
                    prompt = _question(model, prompt, question_ids[:-1], rows if told else 1)
                else:
                    ids = torch.tensor([[question_ids[-1], *answer_ids[:-1]]]).expand(rows, -1)
                    logits = run_behind(model, prompt, ids, None)[0]
    assert logits is not None
    scores = logits.float().log_softmax(-1)
    gold = torch.tensor(list(answer_ids), device=scores.device).expand(rows, -1)
    return AnswerRun(scores.gather(-1, gold[..., None])[..., 0], scores.argmax(-1))


@torch.no_grad()
def trial_outputs(
    model: HookedModel,
    haystack_ids: Sequence[int],
    question_ids: Sequence[int],
    answer_ids: Sequence[int],
    heads: Sequence[HeadId],
) -> dict[Pass, dict[HeadId, Float[Tensor, "one pos d_v"]]]:
    """Outputs of the heads in each pass of a trial: `values` of mode "resample" for another trial
    of the same lengths, for example one whose needle says something else (`with_span`).

    A pass without tokens is left out. Memory: the heads' outputs and one pass over all tokens.
    Raises `UnitOutOfRangeError` for heads that the model lacks, and as `run_answer` does.
    """
    for head in heads:
        model.anatomy.check_head(head)
    _check_trial(haystack_ids, question_ids, answer_ids, "both", None, 1)
    z: dict[HeadId, Tensor] = {}

    def keep(here: Sequence[HeadId]) -> Change:
        return lambda x: z.update((head, x[:, :, head.head].detach().clone()) for head in here)

    batch = model.batch([[*haystack_ids, *question_ids, *answer_ids[:-1]]])
    with model.lock, ExitStack() as stack:
        for layer in sorted({head.layer for head in unique_heads(heads)}):
            here = [head for head in heads if head.layer == layer]
            hook = site_hook(model.module, model.anatomy, Site.Z, layer, keep(here))
            stack.enter_context(hook)
        model.forward(batch, batch.ends[:, None])
    first, end = len(haystack_ids), len(haystack_ids) + len(question_ids) - 1
    pieces: dict[Pass, slice] = {
        "haystack": slice(0, first),
        "question": slice(first, end),
        "answer": slice(end, None),
    }
    return {
        name: {head: z[head][:, piece] for head in heads}
        for name, piece in pieces.items()
        if name != "question" or end > first
    }


def resample_edits(
    heads: Sequence[HeadId], outputs: Mapping[Pass, Mapping[HeadId, Tensor]]
) -> dict[Pass, tuple[AnyEdit, ...]]:
    """For each pass the edits that give the heads the outputs of another trial."""
    return {
        name: ablation_edits("resample", heads, values=values) for name, values in outputs.items()
    }


def with_span(ids: Sequence[int], span: TokenSpan, new: Sequence[int]) -> tuple[int, ...]:
    """`ids` with the tokens of a span replaced by as many others.

    Raises `PromptError` for another number: positions behind the span would no longer match.
    """
    if len(new) != span.stop - span.start or span.stop > len(ids):
        raise PromptError(
            f"{len(new)} tokens do not fit the span {span.start}:{span.stop} of {len(ids)} tokens: "
            "replace it by as many tokens as it has."
        )
    return (*ids[: span.start], *new, *ids[span.stop :])


# -- edits ----------------------------------------------------------------------------------------


def _values(
    mode: Mode, heads: Sequence[HeadId], values: Mapping[HeadId, Tensor] | None
) -> Float[Tensor, "head ..."] | None:
    if (values is not None) != (mode in ("mean", "resample", "mean_query")):
        raise MnemoscopeError(
            f"{mode!r} ablation {'takes no values' if values is not None else 'needs values'}."
        )
    if values is None:
        return None
    missing = [str(head) for head in heads if head not in values]
    if missing:
        raise MnemoscopeError(f"no values for {', '.join(missing)}: measure them for all heads.")
    return torch.stack([values[head] for head in heads])


def _output_edit(mode: Mode, heads: Sequence[HeadId], found: Tensor | None) -> Edit:
    if found is None:
        return zero(heads)
    return mean(heads, found) if mode == "mean" else resample(heads, found.movedim(0, -2))


def _output_rows(
    heads: Sequence[HeadId], sets: Sequence[Sequence[HeadId]], found: Tensor | None
) -> tuple[Edit, ...]:
    """Scale by 1 or 0, then add 0 or the value, row by row."""
    keeps = torch.tensor([[head not in some for head in heads] for some in sets])
    factor = keeps.double()[..., None]
    edits = [Edit("scale", tuple(heads), factor)]
    if found is not None:
        value = found.movedim(0, -2)  # [head, d_v], or [batch or 1, pos, head, d_v]
        gone = (~keeps)[..., None] if found.ndim == 2 else (~keeps)[:, None, :, None]
        edits.append(Edit("add", tuple(heads), torch.where(gone.to(value.device), value, 0.0)))
    return tuple(edits)


def _by_rows(
    heads: Sequence[HeadId], sets: Sequence[Sequence[HeadId]]
) -> dict[tuple[int, ...], list[int]]:
    """Places in `heads` of those that occur in the same sets."""
    found: dict[tuple[int, ...], list[int]] = {}
    members = [set(some) for some in sets]
    for i, head in enumerate(heads):
        found.setdefault(tuple(row for row, some in enumerate(members) if head in some), []).append(
            i
        )
    return found


# -- passes ---------------------------------------------------------------------------------------


def _stretches(edits: Edits, where: Where) -> Iterator[tuple[tuple[Pass, ...], Sequence[AnyEdit]]]:
    """Passes under the same edits, in order. The same edits of several passes are in force from the
    first to the last: one that is silent in the haystack may act in the answer."""
    passes: tuple[Pass, ...] = get_args(Pass)
    if isinstance(edits, Mapping):
        for name in passes:
            yield (name,), edits.get(name, ()) if name in PASSES[where] else ()
        return
    for inside, names in groupby(passes, key=lambda name: name in PASSES[where]):
        yield tuple(names), edits if inside else ()


def _haystack(model: HookedModel, ids: Sequence[int], *, whole: bool) -> PromptCache:
    """In one piece where outputs of another trial stand for each position."""
    return model.prefill(ids, chunk=len(ids)) if whole else model.prefill(ids)


def _question(
    model: HookedModel, prompt: PromptCache, ids: Sequence[int], rows: int
) -> PromptCache:
    """The cache behind the question, in several rows only where these differ."""
    if not ids:
        return prompt
    last = torch.full((rows, 1), len(ids) - 1)
    _, cache = run_behind(model, prompt, torch.tensor([list(ids)]).expand(rows, -1), last)
    return PromptCache((*prompt.ids, *ids), cache)


def _check_trial(
    haystack_ids: Sequence[int],
    question_ids: Sequence[int],
    answer_ids: Sequence[int],
    where: Where,
    cached: PromptCache | None,
    rows: int,
) -> None:
    if where not in PASSES:
        raise MnemoscopeError(f"an ablation holds nowhere called {where!r}: {', '.join(PASSES)}.")
    if rows < 1:
        raise MnemoscopeError(f"rows={rows} are too few: use 1 or more.")
    if not haystack_ids or not question_ids or not answer_ids:
        raise PromptError("a trial needs a haystack, a question and an answer: one is empty.")
    if where == "question" and len(question_ids) == 1:
        raise PromptError("the question has no token before END, so nothing of it can be ablated.")
    if cached is None:
        return
    if cached.ids != tuple(haystack_ids):
        raise MnemoscopeError("the cached prompt is not this haystack: prefill the trial's own.")
    if "haystack" in PASSES[where]:
        raise MnemoscopeError(
            f"where={where!r} edits the haystack's pass, so a cached one cannot stand for it: "
            "leave cached out."
        )
