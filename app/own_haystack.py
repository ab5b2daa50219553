"""A text of one's own as a haystack: where the answer stands in it, and the trial that follows."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..data.facts.answers import leaks
from ..data.facts.haystacks import Span
from ..data.facts.needles import Haystack, Needle, NeedleDesign, Trial
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.tokens import encode_with_offsets
from .answers import Question, greedy, resolve_answers

FILE_KINDS = (".txt", ".md")
MOST_FILE_BYTES = 2**20
DEPTHS = 5
NEEDLE = "own"
"""The id of the one needle, and its topic."""
_END = re.compile(r"(?<=\w\w[.!?])[\"”’)\]]*\s+|\n|[。！？]")


@dataclass(frozen=True)
class OwnText:
    """Somebody's context and the prompt behind it; `answer` stands in the context and is what the
    prompt is expected to be continued with, empty for the model's own."""

    context: str
    prompt: str
    answer: str = ""

    @property
    def question(self) -> Question:
        """The same as the other pages ask it."""
        return Question(self.prompt, self.context)


@dataclass(frozen=True)
class Split:
    """The whole text as tokens, and where the context ends: its `haystack` tokens come first."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    haystack: int

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The special tokens in front."""
        count = next(i for i, (a, b) in enumerate(self.offsets) if a < b)
        return self.ids[:count]

    def span(self, start: int, stop: int) -> Span:
        """The tokens that hold a character of this part of the text."""
        inside = [i for i, (a, b) in enumerate(self.offsets) if a < stop and b > start and a < b]
        return Span(inside[0], inside[-1] + 1)


def text_files(folder: Path) -> tuple[str, ...]:
    """Names of the text files in the folder, none where there is no folder."""
    if not folder.is_dir():
        return ()
    found = (path for path in folder.iterdir() if path.suffix.lower() in FILE_KINDS)
    return tuple(sorted(path.name for path in found if path.is_file()))


def read_text_file(folder: Path, name: str) -> str:
    """A file of the folder. Raises `MnemoscopeError` for another name, a large file, no UTF-8."""
    if name not in text_files(folder):
        raise MnemoscopeError(f"there is no text {name} in {folder}: choose one that is listed.")
    path = folder / name
    if path.stat().st_size > MOST_FILE_BYTES:
        raise MnemoscopeError(f"{name} is larger than {MOST_FILE_BYTES >> 20} MB: cut it down.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MnemoscopeError(f"{name} is not UTF-8 text: save it as UTF-8.") from error


def split(model: HookedModel, own: OwnText, longest: int) -> Split:
    """The context, one space (or its line break) and the prompt, encoded as one text.

    Raises `PromptError` for an empty context or prompt, and for more than `longest` tokens.
    """
    text = own.question.given
    if text is None:
        raise PromptError("there is no context to read: paste one on the left.")
    if not own.question.closed.strip():
        raise PromptError("there is no prompt behind the context: type one on the left.")
    ((ids, offsets),) = encode_with_offsets(model.text_tokenizer, [text])
    if len(ids) > longest:
        raise PromptError(
            f"context and prompt have {len(ids)} tokens, but {model.name} is given {longest} here "
            "at the most: shorten the context."
        )
    end = len(own.context.rstrip())
    haystack = sum(b <= end for _, b in offsets)
    if haystack == sum(a == b for a, b in offsets) or haystack == len(ids):
        raise PromptError("context and prompt share their only token: make one of them longer.")
    return Split(tuple(ids), tuple(offsets), haystack)


def own_design(model: HookedModel, own: OwnText, longest: int) -> tuple[NeedleDesign, Trial]:
    """The design with the text as its only haystack: the needle is the sentence that tells the
    answer, the first of several.

    Raises `PromptError` where the answer does not stand in the context, or what `split` raises.
    """
    whole = split(model, own, longest)
    needle, place, told = _needle(own, own.answer.strip() or _own_answer(model, own))
    statement = whole.span(place.start, place.stop)
    haystack = Haystack(whole.ids[: whole.haystack], ((NEEDLE, statement),), (), 1.0, 0)
    before = (statement.start - len(whole.start)) / (whole.haystack - len(whole.start))
    trial = Trial(
        haystack=0,
        needle_id=NEEDLE,
        kind="literal",
        question=0,
        question_ids=whole.ids[whole.haystack :],
        answer_ids=model.answer_ids(str(own.question.given), needle.answer),
        needle=statement,
        answer=whole.span(told.start, told.stop),
        length=whole.haystack,
        depth=before,
        stratum=min(DEPTHS - 1, int(before * DEPTHS)),
        at_border=True,
    )
    design = NeedleDesign(
        needles=(needle,),
        distractors=(),
        haystacks=(haystack,),
        trials=(trial,),
        lengths=(whole.haystack,),
        depths=DEPTHS,
        rounds=1,
        seed=0,
        start=whole.start,
        opening="",
        asking="",
        filler_sha256=hashlib.sha256(own.context.encode()).hexdigest(),
    )
    return design, trial


def times_told(own: OwnText, answer: str) -> int:
    """How often the context tells the answer as a whole word, in any case."""
    return len(_places(own.context, answer))


def _own_answer(model: HookedModel, own: OwnText) -> str:
    """What the other pages take for the context answer, if it stands in the context."""
    found = resolve_answers(own.question, greedy(model, own.question)).context
    if found is None or not _places(own.context, found):
        raise PromptError(
            "the model's answer does not stand in the context: type the words that should be found "
            "there on the left."
        )
    return found


def _needle(own: OwnText, answer: str) -> tuple[Needle, Span, Span]:
    """The sentence that tells the answer, its characters, and those of the answer."""
    context, places = own.context, _places(own.context, answer)
    if not places:
        raise PromptError(
            f"{answer!r} does not stand in the context as whole words: type words that do."
        )
    if leaks(own.prompt, [answer]):
        raise PromptError(f"the prompt says {answer!r} itself: ask without it.")
    told = places[0]
    start = max((m.end() for m in _END.finditer(context, 0, told.start)), default=0)
    end = _END.search(context, told.stop)
    stop = len(context.rstrip()) if end is None else end.start()
    stop = max(stop, told.stop)
    start += len(context[start : told.start]) - len(context[start : told.start].lstrip())
    said = context[told.start : told.stop]
    before, after = context[start : told.start], context[told.stop : stop]
    prompt = own.question.closed
    try:
        needle = Needle(NEEDLE, "literal", NEEDLE, before, said, after, (prompt,), (said,))
    except ValueError as error:
        raise PromptError(
            f"the sentence “{context[start:stop].strip()}” tells {answer!r} twice: give words that "
            "it tells once."
        ) from error
    return needle, Span(start, stop), told


def _places(context: str, answer: str) -> list[Span]:
    pattern = rf"(?<!\w){re.escape(answer)}(?!\w)"
    return [Span(m.start(), m.end()) for m in re.finditer(pattern, context, re.IGNORECASE)]
