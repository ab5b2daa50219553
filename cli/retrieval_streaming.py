"""The work behind `retrieval stream`: text from a cache whose streaming heads forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.facts.needles import Verdict, judge
from ..interventions.streaming import stream_prompt, streaming_attention
from ..interventions.streaming_cache import cache_bytes
from ..interventions.streaming_pattern import StreamingPattern
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.prompt_cache import check_room
from ..models.tokens import encode
from ..probes.retrieval_designs import design_for
from .retrieval_patterns import load_pattern, streaming_pattern
from .retrieval_scoring import default_lengths, read_text


@dataclass(frozen=True)
class StreamConfig:
    """What to continue, and how. `None` takes what the pattern says."""

    pattern: Path
    model: str = "engram"
    text: Path | None = None
    length: int = 0
    streaming: float | None = None
    sink: int | None = None
    recent: int | None = None
    prefill: str = "streaming"
    chunk: int = 2048
    tail: int = 1
    new_tokens: int = 16
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Streamed:
    """Greedy text with the full cache and with the streaming one, and what each of them holds.

    Bytes are those of keys and values behind the prompt. `gold` is the needle's answer and the
    verdicts say who gave it, None for a user's text.
    """

    model: str
    pattern_text: str
    prefill: str
    prompt_tokens: int
    full_text: str
    streaming_text: str
    full_bytes: int
    streaming_bytes: int
    gold: str | None
    full_verdict: Verdict | None
    streaming_verdict: Verdict | None

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return self.full_text == self.streaming_text

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        share = self.streaming_bytes / self.full_bytes
        return {**vars(self), "same": self.same, "held": share}


@dataclass(frozen=True)
class _Prompt:
    """Token ids to continue; for a needle the way to judge what is said."""

    ids: tuple[int, ...]
    gold: str | None = None
    judged: Any = None

    def verdict(self, text: str) -> Verdict | None:
        return None if self.judged is None else judge(text, *self.judged)


def stream_text(config: StreamConfig) -> Streamed:
    """Continue a text, or answer a needle haystack's question, in both ways.

    The last `tail` tokens of the prompt are read after the streaming heads have forgotten. Raises
    `MnemoscopeError` for a pattern that cannot be read or is of another model, a text that is too
    long, and models without the attention interface.
    """
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    pattern = streaming_pattern(
        load_pattern(config.pattern),
        model,
        sparsity=config.streaming,
        sink=config.sink,
        recent=config.recent,
    )
    prompt = _prompt(config, model)
    check_room(model, prompt.ids, None, config.new_tokens)
    if not 1 <= config.tail < len(prompt.ids):
        raise MnemoscopeError(
            f"--tail {config.tail} of {len(prompt.ids)} tokens leaves nothing before it: give a "
            "longer text or a shorter tail."
        )
    before, end = prompt.ids[: -config.tail], prompt.ids[-config.tail :]
    full = model.prefill(before, chunk=config.chunk)
    full_text = _said(model, model.greedy_from(full, end, config.new_tokens))
    full_bytes = cache_bytes(full.cache)
    del full
    prefill: Any = config.prefill
    held = stream_prompt(model, before, pattern, prefill=prefill, chunk=config.chunk)
    with streaming_attention(model):
        streaming_text = _said(model, model.greedy_from(held, end, config.new_tokens))
    return Streamed(
        model=model.name,
        pattern_text=_told(pattern),
        prefill=config.prefill,
        prompt_tokens=len(prompt.ids),
        full_text=full_text,
        streaming_text=streaming_text,
        full_bytes=full_bytes,
        streaming_bytes=cache_bytes(held.cache),
        gold=prompt.gold,
        full_verdict=prompt.verdict(full_text),
        streaming_verdict=prompt.verdict(streaming_text),
    )


def _prompt(config: StreamConfig, model: HookedModel) -> _Prompt:
    if config.text is not None:
        return _Prompt(tuple(encode(model.text_tokenizer, read_text(config.text))))
    design = design_for(
        model,
        lengths=(config.length or default_lengths(model)[1],),
        needles=1,
        needles_per_haystack=1,
        depths=3,
        seed=config.seed,
    )
    trial = design.trials[0]
    needle = design.needle(trial.needle_id)
    return _Prompt(design.prompt(trial), needle.answer, (needle, design.rivals(trial)))


def _said(model: HookedModel, ids: Sequence[int]) -> str:
    return str(model.text_tokenizer.decode(list(ids))).strip()


def _told(pattern: StreamingPattern) -> str:
    n = pattern.full.numel()
    streaming = n - int(pattern.full.sum())
    return (
        f"{streaming} of {n} key/value heads keep the first {pattern.sink} and the last "
        f"{pattern.recent} keys"
    )
