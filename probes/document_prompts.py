"""Prompts of documents and a query, as token ids, with every document's span known.

Two sources: the passages of a needle haystack (the one that holds the asked needle is gold, those
that hold other statements are hard negatives), and any texts of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..data.facts.haystacks import Encode, piece_encoder, start_ids
from ..data.facts.needles import NeedleDesign, Trial
from ..models.errors import MnemoscopeError
from ..models.types import TokenSpan

NULL_QUERY = "N/A"
INSTRUCTION = "Here are some documents."
ASKING = "\nFind what answers the query in these documents.\nQuery: {query}"


@dataclass(frozen=True)
class DocumentPrompt:
    """A query over the documents of a context.

    The prompt is `context` and `query`; `null_query` is the same suffix with nothing asked, for
    calibration. `spans` are the documents in the context, in order and apart. `gold` are the
    documents that answer, `hard` those among the others that a query could be mistaken to be about.
    `unit` names what was sampled, to cluster errors by.

    Raises `MnemoscopeError` for fewer than two documents, spans that overlap or leave the context,
    no gold or no hard document, numbers that name none or both, and empty queries.
    """

    unit: str
    context: tuple[int, ...]
    spans: tuple[TokenSpan, ...]
    gold: tuple[int, ...]
    hard: tuple[int, ...]
    query: tuple[int, ...]
    null_query: tuple[int, ...]

    def __post_init__(self) -> None:
        borders = [border for span in self.spans for border in (span.start, span.stop)]
        if len(self.spans) < 2 or borders != sorted(borders) or borders[-1] > len(self.context):
            raise MnemoscopeError(
                f"{self.unit}: give at least two documents, one behind the other, within the "
                f"{len(self.context)} tokens of the context."
            )
        named = (*self.gold, *self.hard)
        known = set(named) <= set(range(len(self.spans))) and len(set(named)) == len(named)
        if not (self.gold and self.hard and known):
            raise MnemoscopeError(
                f"{self.unit}: name at least one gold and one other document, each once, by "
                f"numbers from 0 to {len(self.spans) - 1}."
            )
        if not self.query or not self.null_query:
            raise MnemoscopeError(f"{self.unit}: the query and the empty query need tokens.")


def needle_documents(
    design: NeedleDesign, encode: Encode, *, passage: int = 64
) -> tuple[DocumentPrompt, ...]:
    """One prompt a trial of a needle design, its haystack cut into passages of `passage` tokens.

    Cuts that would fall into a statement move behind it, so no statement is split; the last
    passage takes what is left over. Special tokens and the opening belong to no passage. Raises
    `MnemoscopeError` where no passage but the gold one holds a statement.
    """
    if passage < 1:
        raise MnemoscopeError(f"passages of {passage} tokens: use 1 or more.")
    null = piece_encoder(encode)(design.asking.replace("{question}", NULL_QUERY))
    cuts = [_passages(design, number, passage) for number in range(len(design.haystacks))]
    return tuple(_of_trial(design, trial, cuts[trial.haystack], null) for trial in design.trials)


def text_documents(
    encode: Encode,
    documents: Sequence[str],
    query: str,
    *,
    gold: Sequence[int],
    hard: Sequence[int] | None = None,
    unit: str = "",
    instruction: str = INSTRUCTION,
    asking: str = ASKING,
) -> DocumentPrompt:
    """Number texts under an instruction and ask a query about them; `unit` is the query by default.

    `asking` holds `{query}`. `hard` are by default all documents that are not gold. Raises
    `MnemoscopeError` as `DocumentPrompt`, and `ValueError` where the tokenizer merges texts.
    """
    if asking.count("{query}") != 1:
        raise MnemoscopeError(f"asking is {asking!r}: write {{query}} once.")
    piece = piece_encoder(encode)
    context = [*start_ids(encode), *piece(f" {instruction}")]
    spans: list[TokenSpan] = []
    for number, text in enumerate(documents, start=1):
        context += piece(f"\n[{number}]")
        body = piece(f" {text.strip()}")
        spans.append(TokenSpan(len(context), len(context) + len(body)))
        context += body
    others = [i for i in range(len(spans)) if i not in set(gold)]
    return DocumentPrompt(
        unit=unit or query,
        context=tuple(context),
        spans=tuple(spans),
        gold=tuple(gold),
        hard=tuple(others if hard is None else hard),
        query=piece(asking.replace("{query}", query)),
        null_query=piece(asking.replace("{query}", NULL_QUERY)),
    )


def _passages(design: NeedleDesign, number: int, passage: int) -> tuple[TokenSpan, ...]:
    haystack = design.haystacks[number]
    statements = [span for _, span in (*haystack.needles, *haystack.distractors)]
    borders = [len(design.start)]
    while haystack.length - borders[-1] >= 2 * passage:
        cut = borders[-1] + passage
        for span in sorted(statements):
            cut = span.stop if span.start < cut < span.stop else cut
        borders.append(cut)
    if haystack.length > borders[-1]:
        borders.append(haystack.length)
    return tuple(TokenSpan(a, b) for a, b in pairwise(borders))


def _of_trial(
    design: NeedleDesign, trial: Trial, spans: tuple[TokenSpan, ...], null: tuple[int, ...]
) -> DocumentPrompt:
    haystack = design.haystacks[trial.haystack]
    statements = [span for _, span in (*haystack.needles, *haystack.distractors)]
    holding = {
        i
        for i, span in enumerate(spans)
        if any(span.start <= other.start < span.stop for other in statements)
    }
    gold = [i for i, span in enumerate(spans) if span.start <= trial.needle.start < span.stop]
    return DocumentPrompt(
        unit=trial.needle_id,
        context=haystack.ids,
        spans=spans,
        gold=tuple(gold),
        hard=tuple(sorted(holding - set(gold))),
        query=trial.question_ids,
        null_query=null,
    )
