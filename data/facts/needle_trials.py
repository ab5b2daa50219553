"""One haystack with its needles as token ids; every span is known as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .answers import leaks, normalise
from .haystacks import Decode, Filler, Span, answer_after, fill, insert, place, sentence_ids
from .needle_layout import Group
from .needle_templates import Needle, NeedleKind, digest

_FEWEST_FILLER_TOKENS = 16


@dataclass(frozen=True)
class Haystack:
    """The tokens before the question: special tokens, filler and statements, `length` in all.

    `needles` and `distractors` are spans by id. `passes`: how often the filler text was gone
    through; above 1 parts of it repeat. `left_out`: sentences of that text that tell one of the
    terms and were not used.
    """

    ids: tuple[int, ...]
    needles: tuple[tuple[str, Span], ...]
    distractors: tuple[tuple[str, Span], ...]
    passes: float
    left_out: int

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return len(self.ids)


@dataclass(frozen=True)
class Trial:
    """One question about one needle of haystack number `haystack`.

    The prompt is the haystack's ids and `question_ids`; `needle` and `answer` are spans in it, of
    the whole statement and of the answer in it. `answer_ids` is the answer as it follows the
    question (where that ends in a line break its first token may differ from the needle's).
    `question`: which of the needle's questions (0 the plain one). `depth`: share of the filler that
    stands before the needle, within `stratum` of equal shares; `at_border`: whether the needle
    stands between sentences. Errors are clustered by `needle_id`.
    """

    haystack: int
    needle_id: str
    kind: NeedleKind
    question: int
    question_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    needle: Span
    answer: Span
    length: int
    depth: float
    stratum: int
    at_border: bool


@dataclass(frozen=True)
class _Statement:
    """A statement as token ids, and where its answer stands in them."""

    ids: tuple[int, ...]
    answer: Span


@dataclass(frozen=True)
class Stood:
    """A needle where it came to stand."""

    needle: Needle
    span: Span
    answer: Span
    stratum: int
    depth: float
    at_border: bool


@dataclass(frozen=True)
class Writer:
    """Writes the haystacks of one design as token ids."""

    piece: Callable[[str], tuple[int, ...]]
    decode: Decode
    start: tuple[int, ...]
    passages: tuple[tuple[str, ...], ...]
    asking: str
    depths: int
    distractors: tuple[Needle, ...]
    seed: int

    def haystack(self, number: int, group: Group) -> tuple[Haystack, tuple[Stood, ...]]:
        beside = self._beside(group)
        members = [*group.members, *beside]
        statements = [self.statement(needle) for needle, _ in members]
        filler, left_out = self._filler(number, group.length, [n for n, _ in members], statements)
        places: list[tuple[int, bool]] = []
        for _, stratum in members:
            places.append(place(filler, stratum, self.depths, [offset for offset, _ in places]))
        offsets = [offset for offset, _ in places]
        ids, spans = insert(
            self.start, filler, [(o, s.ids) for o, s in zip(offsets, statements, strict=True)]
        )
        stood = tuple(
            Stood(
                needle=needle,
                span=span,
                answer=Span(span.start + written.answer.start, span.start + written.answer.stop),
                stratum=stratum,
                depth=offset / len(filler.ids),
                at_border=at_border,
            )
            for (needle, stratum), written, span, (offset, at_border) in zip(
                members, statements, spans, places, strict=True
            )
        )
        asked, not_asked = stood[: len(group.members)], stood[len(group.members) :]
        haystack = Haystack(
            ids=ids,
            needles=tuple((one.needle.id, one.span) for one in asked),
            distractors=tuple((one.needle.id, one.span) for one in not_asked),
            passes=filler.passes,
            left_out=left_out,
        )
        return haystack, asked

    def statement(self, needle: Needle) -> _Statement:
        """The needle as ids, with the space before it; the pieces' borders are the answer's."""
        # A space belongs to the word behind it, as tokenizers have it and as the answer follows a
        # question.
        before = f" {needle.before}".removesuffix(" ")
        gap = f" {needle.before}"[len(before) :]
        head = self.piece(before) if before else ()
        answer = self.piece(gap + needle.written)
        tail = self.piece(needle.after) if needle.after else ()
        ids = (*head, *answer, *tail)
        if normalise(self.decode(ids)) != normalise(needle.statement):
            raise ValueError(
                f"the tokenizer writes {needle.statement!r} as {self.decode(ids)!r}: "
                "use names and words that it can tell apart."
            )
        return _Statement(ids, Span(len(head), len(head) + len(answer)))

    def trial(
        self, haystack: int, length: int, one: Stood, question: int, question_ids: tuple[int, ...]
    ) -> Trial:
        return Trial(
            haystack=haystack,
            needle_id=one.needle.id,
            kind=one.needle.kind,
            question=question,
            question_ids=question_ids,
            answer_ids=answer_after(self.piece, self.asking, one.needle.answer),
            needle=one.span,
            answer=one.answer,
            length=length,
            depth=one.depth,
            stratum=one.stratum,
            at_border=one.at_border,
        )

    def _filler(
        self, number: int, length: int, needles: Sequence[Needle], statements: Sequence[_Statement]
    ) -> tuple[Filler, int]:
        room = length - len(self.start) - sum(len(statement.ids) for statement in statements)
        if room < _FEWEST_FILLER_TOKENS:
            raise ValueError(
                f"a haystack of {length} tokens leaves {max(room, 0)} for filler beside "
                f"{len(needles)} statements: take lengths from "
                f"{length - room + _FEWEST_FILLER_TOKENS} or fewer needles a haystack."
            )
        terms = [term for needle in needles for term in needle.terms]
        kept = [[s for s in passage if not leaks(s, terms)] for passage in self.passages]
        left_out = sum(map(len, self.passages)) - sum(map(len, kept))
        tokens = [[sentence_ids(self.piece, s) for s in passage] for passage in kept if passage]
        return fill(tokens, room, self.seed, number), left_out

    def _beside(self, group: Group) -> list[tuple[Needle, int]]:
        """One distractor for each needle, of its topic where one is left, half the depths away."""
        if not self.distractors:
            return []
        if len(self.distractors) < len(group.members):
            raise ValueError(
                f"{len(self.distractors)} distractors are too few for the {len(group.members)} "
                "needles of a haystack: give as many at least."
            )
        beside: list[tuple[Needle, int]] = []
        for needle, stratum in group.members:
            taken = {other.id for other, _ in beside}
            other = min(
                (other for other in self.distractors if other.id not in taken),
                key=lambda o: (
                    o.topic != needle.topic,
                    o.kind != needle.kind,
                    digest(self.seed, "distractor", group.length, needle.id, o.id),
                ),
            )
            beside.append((other, (stratum + self.depths // 2) % self.depths))
        return beside
