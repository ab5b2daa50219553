"""The attention basin: do documents at the edges of a context get more attention than the middle?

K documents of equal length stand one behind the other, a question follows, and each slot's mean
attention is read from the question's rows and from the answer's (after "attention basin", arXiv
2508.05128; the score is ours: retrieval_heads, section 3.2):

    basin = (first + last) / 2 - mean(middle)      in attention mass on one document

Every document stands in every slot equally often, so that only the slots differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ..data.facts.haystacks import fill, piece_encoder, sentence_ids, sentences, start_ids
from ..data.neutral import neutral_passages
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..models.types import TokenSpan
from .elicitation import Progress, silent
from .retrieval_statistics import HeadStatistics, summarise_scores

Reader = Literal["question", "answer"]

HEADER = "\nText:"
QUESTION = "\nQuestion: What do these texts tell? Answer:"


@dataclass(frozen=True)
class BasinPrompt:
    """One order of documents: the tokens before the question, and the span of each slot.

    `unit` counts the rounds; all orders of a round have the same documents.
    """

    unit: int
    context: tuple[int, ...]
    slots: tuple[TokenSpan, ...]
    question: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AttentionBasin:
    """Mean attention mass on each slot, `[prompt, layer, head, slot]`, float32.

    `question` is over the question's rows without END, `answer` over END and the model's own
    greedy answer but its last token. NaN where a head cannot see a slot (a sliding window).
    `units` names each prompt's round.
    """

    question: Float[np.ndarray, "prompt layer head slot"]
    answer: Float[np.ndarray, "prompt layer head slot"]
    units: tuple[int, ...]

    def profile(self, reader: Reader) -> Float[np.ndarray, "layer head slot"]:
        """Mean attention by slot, first to last."""
        return np.asarray(self._mass(reader).mean(axis=0))

    def statistics(self, reader: Reader, *, draws: int = 2000, seed: int = 0) -> HeadStatistics:
        """The basin of every head, with intervals over rounds, and p and q that it is above 0."""
        return summarise_scores(basin(self._mass(reader)), self.units, draws=draws, seed=seed)

    def _mass(self, reader: Reader) -> Float[np.ndarray, "prompt layer head slot"]:
        return self.question if reader == "question" else self.answer


def basin(profile: Float[np.ndarray, "*cells slot"]) -> Float[np.ndarray, "*cells"]:
    """`(first + last) / 2 - mean(middle)` over the last axis; NaN where a slot is.

    Raises `MnemoscopeError` for fewer than three slots.
    """
    if profile.shape[-1] < 3:
        raise MnemoscopeError(
            f"{profile.shape[-1]} documents have no middle: use three documents or more."
        )
    edges = (profile[..., 0] + profile[..., -1]) / 2
    return np.asarray(edges - profile[..., 1:-1].mean(axis=-1))


def basin_prompts(
    model: HookedModel,
    *,
    documents: int = 6,
    length: int = 48,
    rounds: int = 8,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    header: str = HEADER,
    question: str = QUESTION,
) -> tuple[BasinPrompt, ...]:
    """`rounds` sets of documents of exactly `length` tokens, each set in `documents` orders.

    A round cuts its documents from `texts` (default: the package's neutral passages) in an order
    of its own; its orders are rotations, so each document stands in each slot once. With fewer than
    six or so rounds no p can be small. `header` goes before every document and belongs to none.
    Raises `MnemoscopeError` for fewer than three documents or two rounds.
    """
    if documents < 3 or rounds < 2 or length < 1:
        raise MnemoscopeError(
            f"{documents} documents of {length} tokens in {rounds} rounds: use three documents, "
            "two rounds and one token at least."
        )
    tokenizer = model.text_tokenizer
    start = start_ids(lambda text: encode(tokenizer, text))
    piece = piece_encoder(lambda text: encode(tokenizer, text))
    passages = [
        [sentence_ids(piece, sentence) for sentence in sentences(text)]
        for text in (neutral_passages() if texts is None else texts)
    ]
    before, asked = piece(header), piece(question)
    prompts = []
    for turn in range(rounds):
        ids = fill(passages, documents * length, seed, "basin", turn).ids
        cut = [ids[i : i + length] for i in range(0, len(ids), length)]
        for first in range(documents):
            context, slots = _in_order(start, before, cut[first:] + cut[:first])
            prompts.append(BasinPrompt(turn, context, slots, asked))
    return tuple(prompts)


def measure_basin(
    model: HookedModel,
    prompts: Sequence[BasinPrompt],
    *,
    max_new_tokens: int = 8,
    progress: Progress = silent,
) -> AttentionBasin:
    """Read every slot from the question and from the model's own answer, in all heads.

    Raises `MnemoscopeError` without prompts or for different numbers of slots, `PromptError` where
    a prompt with its answer does not fit the model's context.
    """
    if not prompts or len({len(prompt.slots) for prompt in prompts}) > 1:
        raise MnemoscopeError("the basin needs prompts, all with as many documents.")
    read = []
    for i, prompt in enumerate(prompts):
        read.append(_read(model, prompt, max_new_tokens))
        progress(i + 1, len(prompts))
    question, answer = np.stack(read, axis=1)
    return AttentionBasin(question, answer, tuple(prompt.unit for prompt in prompts))


def _in_order(
    start: tuple[int, ...], header: tuple[int, ...], documents: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[TokenSpan, ...]]:
    ids, slots = list(start), []
    for document in documents:
        ids += header
        slots.append(TokenSpan(len(ids), len(ids) + len(document)))
        ids += document
    return tuple(ids), tuple(slots)


def _read(
    model: HookedModel, prompt: BasinPrompt, max_new_tokens: int
) -> Float[np.ndarray, "reader layer head slot"]:
    """One prompt's mean masses, of the question's rows and of the answer's."""
    cache = model.prefill(prompt.context)
    answer = model.greedy_from(cache, prompt.question, max_new_tokens)
    suffix = (*prompt.question, *answer[:-1])
    mass = model.read_suffix(cache, suffix, spans=prompt.slots).rows.mass[:, 0]
    end = len(prompt.question) - 1
    means = [mass[:, :, :end].mean(2), mass[:, :, end:].mean(2)]
    return torch.stack(means).cpu().numpy()
