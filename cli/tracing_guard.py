"""The work behind `trace guard`: one answer, with and without the guard that decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList

from ..data.corpus.span_scores import (
    CorpusContrast,
    RiskRule,
    Significance,
    null_surprisals,
    significance_threshold,
)
from ..interventions.provenance_decoding import Generate, GuardedText, guarded, until
from ..interventions.trace_shield import ShieldReport, TraceShield
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.provenance import MIN_TOKENS
from .tracing_sources import OpenIndex, open_for

ALPHA = 0.01
CONTRAST = 3.0
"""A span twenty times more frequent than in the benign corpus."""


@dataclass(frozen=True)
class GuardConfig:
    """What decides the two answers."""

    index: str
    prompt: str
    model: str = "engram"
    benign: str = ""
    threshold: float | None = None
    min_length: int | None = None
    max_count: int = 10
    new_tokens: int = 64
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class GuardedAnswer:
    """The model's own answer with what the shield finds in it, and the guarded one."""

    prompt: str
    score: str
    threshold: float
    own_text: str
    shield: ShieldReport
    given: GuardedText
    text: str

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "prompt": self.prompt,
            "score": self.score,
            "threshold": self.threshold,
            "own": {
                "text": self.own_text,
                "refused": self.shield.refused,
                "findings": [
                    {"start": f.start, "stop": f.stop, "count": f.count, "risk": f.risk}
                    for f in self.shield.findings
                ],
            },
            "guarded": {
                "text": self.text,
                "refused": self.given.refused,
                "backed_up": len(self.given.backed_up),
            },
        }


def answer_guarded(config: GuardConfig) -> GuardedAnswer:
    """Greedy answers. Raises `MnemoscopeError` for an index that is not over the model's tokens."""
    opened = open_for(config.index)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    if opened.spelling.sha256 != model.tokenizer_sha256:
        raise MnemoscopeError(
            f"{config.index} is not over the tokens of {model.name}: build one with --tokenizer "
            f"{config.model} for the guard."
        )
    name, rule = _rule(config, opened)
    prompt = model.tokens([config.prompt]).ids
    generate, stop = _greedy(model), sorted(model.stop_ids)
    plain = generate(prompt, LogitsProcessorList(), config.new_tokens)
    own = until(plain[0, prompt.shape[1] :].tolist(), stop)
    given = guarded(
        generate, prompt, opened.index, rule, max_new_tokens=config.new_tokens, eos_ids=stop
    )
    return GuardedAnswer(
        prompt=config.prompt,
        score=name,
        threshold=rule.threshold,
        own_text=model.text_tokenizer.decode(list(own)),
        shield=TraceShield(opened.index, rule).judge(own),
        given=given,
        text=model.text_tokenizer.decode(list(given.ids)),
    )


def _rule(config: GuardConfig, opened: OpenIndex) -> tuple[str, RiskRule]:
    """Chance or contrast as the score; the threshold in its units."""
    length, count = config.min_length or MIN_TOKENS, config.max_count or None
    if config.benign:
        benign = open_for(config.benign).index
        limit = CONTRAST if config.threshold is None else config.threshold
        score = CorpusContrast(opened.index.n_tokens, benign)
        return "contrast with the benign corpus", RiskRule(score, limit, length, count)
    surprisals = null_surprisals(opened.index.unigram_counts)
    chance = significance_threshold(config.new_tokens, ALPHA)
    limit = chance if config.threshold is None else config.threshold
    significance = Significance(surprisals, opened.index.n_tokens)
    return "significance (-ln E)", RiskRule(significance, limit, length, count)


def _greedy(model: HookedModel) -> Generate:
    """Greedy decoding through the model's own `generate`, which takes processors."""

    def generate(
        ids: Int[Tensor, "row pos"], processors: LogitsProcessorList, new_tokens: int
    ) -> Int[Tensor, "row pos"]:
        if new_tokens < 1:
            return ids
        ids = ids.to(model.device)
        with model.lock, torch.no_grad():
            out: Tensor = model.module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=processors,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=min(model.stop_ids),
            )
        return out

    return generate
