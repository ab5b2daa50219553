"""Trials of retrieval: which needle stands how deep in how long a haystack, and what is asked then.

The budget goes to needles, not to cells of length and depth: between needles scores vary most, and
the needle is the unit that errors are clustered by. Every needle is seen at a few lengths and
depths only, all of them equally often (a fractional design). A haystack holds several needles, each
asked about in a suffix of its own, so that one prefill serves many trials.

No model is known here: a tokenizer comes in as two functions. Every choice is made by sorting
SHA-256 digests of the seed, so the same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ..neutral import neutral_passages
from .answers import classify
from .haystacks import Decode, Encode, Span, piece_encoder, sentences, start_ids
from .needle_layout import check_apart, check_numbers, lay_out
from .needle_templates import Needle, NeedleKind, make_needles, reordered
from .needle_trials import Haystack, Trial, Writer

__all__ = [
    "Haystack",
    "Needle",
    "NeedleDesign",
    "NeedleKind",
    "Span",
    "Trial",
    "Verdict",
    "build_needle_design",
    "judge",
    "make_needles",
    "reordered",
]

Verdict = Literal["needle", "rival", "other"]

ASKING = "\nQuestion: {question} Answer:"


@dataclass(frozen=True)
class NeedleDesign:
    """All haystacks and trials, in the order of haystacks; see `build_needle_design`.

    `start` holds the ids before the filler, `filler_sha256` is that of the text.
    """

    needles: tuple[Needle, ...]
    distractors: tuple[Needle, ...]
    haystacks: tuple[Haystack, ...]
    trials: tuple[Trial, ...]
    lengths: tuple[int, ...]
    depths: int
    rounds: int
    seed: int
    start: tuple[int, ...]
    opening: str
    asking: str
    filler_sha256: str

    def needle(self, needle_id: str) -> Needle:
        """A needle or distractor by its id. Raises ValueError for an unknown one."""
        if needle_id not in self._by_id:
            raise ValueError(f"this design has no needle {needle_id!r}: take an id of a trial.")
        return self._by_id[needle_id]

    def forks(self, haystack: int) -> tuple[Trial, ...]:
        """The trials that share a haystack's prefill."""
        return tuple(trial for trial in self.trials if trial.haystack == haystack)

    def prompt(self, trial: Trial) -> tuple[int, ...]:
        """Ids of the haystack and the question."""
        return self.haystacks[trial.haystack].ids + trial.question_ids

    def control(self, trial: Trial) -> tuple[int, ...]:
        """Ids of the same question without a haystack: nothing there tells the answer."""
        return self.start + trial.question_ids

    def rivals(self, trial: Trial) -> tuple[Needle, ...]:
        """The other needles and the distractors in the trial's haystack."""
        haystack = self.haystacks[trial.haystack]
        there = (needle_id for needle_id, _ in (*haystack.needles, *haystack.distractors))
        return tuple(self.needle(other) for other in there if other != trial.needle_id)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, answer not included."""
        return max(trial.length + len(trial.question_ids) for trial in self.trials)

    @cached_property
    def _by_id(self) -> dict[str, Needle]:
        return {needle.id: needle for needle in (*self.needles, *self.distractors)}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the design as canonical JSON: every text, token and span."""
        plain = asdict(self)
        for needle in (*plain["needles"], *plain["distractors"]):
            if not needle["told"]:  # as in designs made before words could be reordered
                del needle["told"]
        text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The design in plain JSON values, short enough for a result's provenance.

        Balance is stated as [fewest, most]: trials a cell of length and depth, and how often one
        needle meets the same length and the same depth.
        """
        plain = [trial for trial in self.trials if trial.question == 0]
        cells = Counter((t.length, t.stratum) for t in plain)
        grid = [cells[length, k] for length in self.lengths for k in range(self.depths)]
        return {
            "sha256": self.sha256,
            "seed": self.seed,
            "needles": dict(Counter(needle.kind for needle in self.needles)),
            "topics": dict(Counter(needle.topic for needle in self.needles)),
            "distractors": len(self.distractors),
            "lengths": list(self.lengths),
            "depths": self.depths,
            "rounds": self.rounds,
            "haystacks": len(self.haystacks),
            "trials": len(self.trials),
            "paraphrased": len(self.trials) - len(plain),
            "trials_a_cell": [min(grid), max(grid)],
            "same_length": max(Counter((t.needle_id, t.length) for t in plain).values()),
            "same_depth": max(Counter((t.needle_id, t.stratum) for t in plain).values()),
            "at_border": sum(trial.at_border for trial in plain) / len(plain),
            "longest_prompt": self.longest_prompt,
            "opening": self.opening,
            "asking": self.asking,
            "filler_sha256": self.filler_sha256,
            "filler_passes": max(haystack.passes for haystack in self.haystacks),
            "sentences_left_out": max(haystack.left_out for haystack in self.haystacks),
        }


def build_needle_design(
    needles: Sequence[Needle],
    encode: Encode,
    decode: Decode,
    *,
    lengths: Sequence[int],
    depths: int = 5,
    needles_per_haystack: int = 5,
    rounds: int = 2,
    seed: int = 0,
    text: str | None = None,
    distractors: Sequence[Needle] = (),
    paraphrased: bool = False,
    opening: str = "",
    asking: str = ASKING,
) -> NeedleDesign:
    """Put the needles into haystacks of exactly `lengths` tokens, questions not included.

    In each round every needle stands in one haystack, from round to round at the next length and
    the next depth, and in other company. The number of needles must be a multiple of `lengths` x
    `needles_per_haystack`; then all lengths are used equally often, and if it is a multiple of
    `lengths` x `depths` as well, so is every cell (else about equally: `describe` says). A needle
    meets no length twice in up to `len(lengths)` rounds and no depth twice in up to `depths`.
    Needles of one haystack stand in different strata of depth.

    `text` (paragraphs parted by blank lines) replaces the package's neutral passages; their order
    is shuffled for every haystack, sentences that tell a term of a needle there are left out, and
    a short text is gone through repeatedly. From `distractors` each needle gets one beside it in
    its haystack, of its own topic where possible and half the depths away. `paraphrased` asks every
    question of a needle, not the plain one only. `opening` is encoded before the filler in place of
    the bare special tokens (a chat template's head), `asking` holds `{question}` and ends right
    before the answer, without a space (with the line break of a chat template if need be).

    Statements are encoded in up to three pieces (before, answer, after), so a tokenizer that merges
    across word borders writes them a little otherwise than it would in one.

    Raises ValueError for numbers that do not fit, needles that give each other away, a length too
    short for its needles, and a tokenizer that loses a needle's words.
    """
    needles, distractors, lengths = tuple(needles), tuple(distractors), tuple(lengths)
    check_numbers(len(needles), lengths, depths, needles_per_haystack, rounds)
    check_apart((*needles, *distractors))
    if asking.count("{question}") != 1 or asking.endswith(" "):
        raise ValueError(f"asking is {asking!r}: write {{question}} once, and no space at the end.")
    passages = neutral_passages() if text is None else _passages(text)
    writer = Writer(
        piece=piece_encoder(encode),
        decode=decode,
        start=tuple(encode(opening)) if opening else start_ids(encode),
        passages=tuple(sentences(passage) for passage in passages),
        asking=asking,
        depths=depths,
        distractors=distractors,
        seed=seed,
    )
    haystacks: list[Haystack] = []
    trials: list[Trial] = []
    for group in lay_out(needles, lengths, depths, needles_per_haystack, rounds, seed):
        haystack, stood = writer.haystack(len(haystacks), group)
        for one in stood:
            asked = one.needle.questions if paraphrased else one.needle.questions[:1]
            suffixes = [writer.piece(asking.replace("{question}", text)) for text in asked]
            trials += [
                writer.trial(len(haystacks), haystack.length, one, number, suffix)
                for number, suffix in enumerate(suffixes)
            ]
        haystacks.append(haystack)
    return NeedleDesign(
        needles=needles,
        distractors=distractors,
        haystacks=tuple(haystacks),
        trials=tuple(trials),
        lengths=lengths,
        depths=depths,
        rounds=rounds,
        seed=seed,
        start=writer.start,
        opening=opening,
        asking=asking,
        filler_sha256=hashlib.sha256("\n\n".join(passages).encode()).hexdigest(),
    )


def judge(
    continuation: str, needle: Needle, rivals: Sequence[Needle] = (), words: int = 16
) -> Verdict:
    """The success gate: whose answer a continuation gives, by `classify` on its first words.

    Sixteen words, since chat models begin by repeating the statement and answers stand at its end.
    `rivals` are the other statements of the haystack (`NeedleDesign.rivals`). Judged on what is
    said to the control prompt it tells a needle that can be answered without its haystack.
    """
    outcome = classify(continuation, [rival.answer for rival in rivals], [needle.answer], words)
    verdicts: dict[str, Verdict] = {"context": "needle", "memory": "rival", "other": "other"}
    return verdicts[outcome.kind]


def _passages(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"\n\s*\n", text) if part.strip())
