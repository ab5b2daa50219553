"""Prov-Decode: while a text is decoded, no token may complete a risky span of an indexed corpus.

At most steps nothing is near: no match of the text so far is long enough for one more token to
make it risky, and scores pass untouched. At the others the best candidates are scored against the
index (tracealign.md 5.5). A hard veto takes away those that would complete a risky span, and at
these steps the tail of tokens that were not scored; a soft one makes them less likely. Where every
candidate is vetoed more are scored, then the row is given up: `guarded` goes back to the token
before the span began and takes another way from there, or refuses.

The released code scores the whole vocabulary at every step against the last 8 words, and lowers
logits by a constant (1.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..data.corpus.match_state import MatchState
from ..data.corpus.span_scores import RiskRule
from ..data.corpus.suffix_index import SuffixIndex
from ..models.errors import MnemoscopeError
from .followed_texts import FollowedTexts, Units, unknown_for_separator

GiveUp = Literal["all_vetoed", "best_vetoed"]
Generate = Callable[[Int[Tensor, "row pos"], LogitsProcessorList, int], Int[Tensor, "row pos"]]
"""Prompt ids, processors and the number of new tokens to the ids with the new tokens behind."""

_WIDER = 4
# Far below any real score, far above the -1e9 that beam search marks unused beams with.
_LAST_RESORT = -1e6


@dataclass(frozen=True)
class Veto:
    """How candidates are held off.

    `candidates` are scored at first, and `widenings` times four times as many when all of them are
    vetoed. `gamma` None is a hard veto; a number takes `gamma` per unit of risk above the threshold
    from the logit instead, which promises nothing. A row is given up when all its candidates are
    vetoed, or as soon as its best one is: a veto alone leaves all but the last token of a span in
    the text.
    """

    candidates: int = 50
    widenings: int = 1
    gamma: float | None = None
    give_up: GiveUp = "all_vetoed"


@dataclass(frozen=True)
class DeadEnd:
    """Generated tokens from which no way led on, and where the span in the way begins in them."""

    ids: tuple[int, ...]
    span_start: int


@dataclass(frozen=True)
class GuardedText:
    """What `guarded` made: new ids (none if refused) and the dead ends it went back from."""

    ids: tuple[int, ...]
    refused: bool
    backed_up: tuple[DeadEnd, ...]


class ProvenanceVeto(LogitsProcessor):  # type: ignore[misc]
    """The veto as a processor for `generate`: greedy, sampling and beam search.

    `prompt_length` is the width of the padded prompts, whose text is never held against a row.
    `eos_ids` end a text: they are never vetoed, and the first ends a row that is given up
    (`dead_ends` tells which, by their generated ids). `units` gives the index's ids of a token of
    the model where they are not the same. `barred` are tokens not to be taken after some generated
    ids. A beam search with fewer candidates than it keeps beams can return vetoed ones at score
    -inf: give it at least two a beam.

    Raises `MnemoscopeError` without `eos_ids`, and for less than one candidate.
    """

    def __init__(
        self,
        index: SuffixIndex,
        rule: RiskRule,
        *,
        prompt_length: int,
        eos_ids: Sequence[int],
        veto: Veto = Veto(),
        units: Units | None = None,
        barred: dict[tuple[int, ...], set[int]] | None = None,
    ) -> None:
        if not eos_ids or veto.candidates < 1 or veto.widenings < 0:
            raise MnemoscopeError(
                "a veto needs eos_ids to end a text with, at least one candidate and no negative "
                "number of widenings."
            )
        self.index, self.rule, self.veto = index, rule, veto
        self.eos_ids = list(eos_ids)
        self.barred = barred or {}
        self.dead_ends: dict[tuple[int, ...], DeadEnd] = {}
        self._texts = FollowedTexts(index, prompt_length, units)

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """The scores of the next token with the risky ones held off."""
        state, new = self._texts(input_ids), self._texts.generated(input_ids)
        near = (state.longest + 1 >= self.rule.min_length) | (not self._texts.one_to_one)
        if not self.barred and not near.any():
            return scores
        scores = scores.clone()
        for row, ids in enumerate(map(tuple, new.tolist())):
            for token in self.barred.get(ids, ()):
                scores[row, token] = -torch.inf
            if near[row]:
                scores[row] = self._held_off(state.fork([row]), ids, scores[row])
        return scores

    def _held_off(
        self, state: MatchState, ids: tuple[int, ...], scores: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        """One row's scores; soft ones are lowered, with a hard veto only free tokens are left."""
        history, wanted = self._texts.units(ids), self.veto.candidates
        for _ in range(self.veto.widenings + 1):
            tokens = best_tokens(scores, wanted)
            risks, lengths = self._risks(state, history, tokens.tolist())
            if self.veto.gamma is not None or len(tokens) == 0:
                return self._lowered(scores, tokens, risks)
            vetoed = risks > self.rule.threshold
            free = tokens[torch.from_numpy(~vetoed).to(tokens.device)]
            if self._goes_on(free, vetoed):
                return torch.full_like(scores, -torch.inf).scatter(0, free, scores[free])
            if len(tokens) < wanted or self.veto.give_up == "best_vetoed":
                break
            wanted *= _WIDER
        self._give_up(ids, history, int(lengths[vetoed].max()))
        ended = torch.full_like(scores, -torch.inf)
        ended[self.eos_ids[0]] = _LAST_RESORT
        return ended

    def _goes_on(self, free: Int[Tensor, " k"], vetoed: Bool[np.ndarray, " k"]) -> bool:
        """Is there a way on: a free token other than the text's end, unless that is the best?"""
        if self.veto.give_up == "best_vetoed" and vetoed[0]:
            return False
        return any(token not in self.eos_ids for token in free.tolist()) or not vetoed[0]

    def _lowered(
        self,
        scores: Float[Tensor, " vocab"],
        tokens: Int[Tensor, " k"],
        risks: Float[np.ndarray, " k"],
    ) -> Float[Tensor, " vocab"]:
        excess = torch.from_numpy(np.maximum(risks - self.rule.threshold, 0.0)).to(scores)
        return scores.index_add(0, tokens, -(self.veto.gamma or 0.0) * excess)

    def _risks(
        self, state: MatchState, history: list[int], tokens: list[int]
    ) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Each token's risk, `-inf` for none, and the length of the match that it completes."""
        if self._texts.one_to_one:
            risks, lengths = self._token_risks(state, history, tokens)
        else:
            risks, lengths = self._piece_risks(state, history, tokens)
        risks[np.isin(tokens, self.eos_ids)] = -np.inf
        return risks, lengths

    def _token_risks(
        self, state: MatchState, history: list[int], tokens: list[int]
    ) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        keys = unknown_for_separator(self.index, tokens)[None]
        lengths, counts = (part[0] for part in state.candidates(keys, self.rule.min_length))
        risks = np.full(len(tokens), -np.inf)
        for i in lengths.nonzero()[0].tolist():
            span = [*history[len(history) - int(lengths[i]) + 1 :], int(tokens[i])]
            risks[i] = self.rule.risk(span, int(lengths[i]), int(counts[i]))
        return risks, lengths

    def _piece_risks(
        self, state: MatchState, history: list[int], tokens: list[int]
    ) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """The same where a token is several ids of the index: the riskiest end inside it."""
        pieces = [self._texts.units([token]) for token in tokens]
        risks, lengths = np.full(len(tokens), -np.inf), np.zeros(len(tokens), dtype=np.int64)
        alive, states = [i for i, piece in enumerate(pieces) if piece], state
        places = [0] * len(alive)
        for step in range(max(map(len, pieces), default=0)):
            states = states.fork(places).advance([pieces[i][step] for i in alive])
            for place, i in enumerate(alive):
                length, count = int(states.longest[place]), int(states.counts[place])
                if length >= self.rule.min_length:
                    span = [*history, *pieces[i][: step + 1]][-length:]
                    risk = self.rule.risk(span, length, count)
                    # Back to the start of the span, seen from before this token.
                    risks[i], lengths[i] = max((risks[i], lengths[i]), (risk, length - step))
            places = [place for place, i in enumerate(alive) if len(pieces[i]) > step + 1]
            alive = [alive[place] for place in places]
        return risks, lengths

    def _give_up(self, ids: tuple[int, ...], history: list[int], length: int) -> None:
        """Note the dead end; `length` counts ids of the index, the one to come included."""
        unit, start = len(history) - (length - 1), 0
        if not self._texts.one_to_one:
            ends = np.cumsum([len(self._texts.units([token])) for token in ids])
            start = int(np.searchsorted(ends, unit, side="right"))
        else:
            start = unit
        self.dead_ends[ids] = DeadEnd(ids, max(0, min(start, len(ids))))


def guarded(
    generate: Generate,
    prompt: Int[Tensor, "1 pos"],
    index: SuffixIndex,
    rule: RiskRule,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    veto: Veto = Veto(),
    units: Units | None = None,
    backups: int = 3,
) -> GuardedText:
    """One prompt's continuation without a risky span, or a refusal.

    `generate` decodes as the caller likes (greedy, sampling, beams) with the processors it is
    given. From a dead end it is called again with the text up to where the span began, whose first
    token is barred there; after `backups` times the text is refused. Raises `MnemoscopeError` for
    more than one prompt.
    """
    if len(prompt) != 1:
        raise MnemoscopeError(f"guarded decodes one prompt at a time, got {len(prompt)} rows.")
    barred: dict[tuple[int, ...], set[int]] = {}
    kept: tuple[int, ...] = ()
    dead: list[DeadEnd] = []
    for _ in range(backups + 1):
        processor = ProvenanceVeto(
            index,
            rule,
            prompt_length=prompt.shape[1],
            eos_ids=eos_ids,
            veto=veto,
            units=units,
            barred=barred,
        )
        ids = torch.cat([prompt, prompt.new_tensor([kept], dtype=prompt.dtype)], dim=1)
        out = generate(ids, LogitsProcessorList([processor]), max_new_tokens - len(kept))
        text = until(out[0, prompt.shape[1] :].tolist(), eos_ids)
        end = processor.dead_ends.get(text)
        if end is None:
            return GuardedText(text, False, tuple(dead))
        dead.append(end)
        kept = end.ids[: end.span_start]
        barred.setdefault(kept, set()).update(end.ids[end.span_start : end.span_start + 1])
    return GuardedText((), True, tuple(dead))


def best_tokens(scores: Float[Tensor, " vocab"], n: int) -> Int[Tensor, " k"]:
    """At most `n` tokens by score, best first, without those at -inf."""
    best = scores.topk(min(n, len(scores)))
    return best.indices[best.values > -torch.inf]


def until(ids: Sequence[int], eos_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids before the first that ends a text."""
    stop = next((i for i, token in enumerate(ids) if token in set(eos_ids)), len(ids))
    return tuple(ids[:stop])
