"""A hand-set transformer that finds needles in haystacks: the oracle of all retrieval scores.

A GPT-2 of five layers with four heads each, in the frame of `frame.py`, over the words of
`retrieval_world.py`. It answers "Question: Which words did NAME choose? Answer:" with FIRST SECOND
from "The code of NAME is FIRST SECOND." anywhere in up to 1,024 tokens, and stops. Subspaces:

    token             what the word is                          embedding
    position          where it stands (waves)                   position embedding
    previous          the word before it                        L0.H1
    two_back          the name or "is" two words before it      L0.H0
    three_back        the name three words before it            L0.H3
    asked             the name, if its needle was found         locate head       L1.H2
    goal              the same, wherever the answer is told     question head     L2.H1
    out               evidence for each word of a code          L1, L3, L4 (only this is unembedded)

- *Locate head* L1.H2 works in the question: in the three tokens after the name ("choose ? Answer")
  it looks for an "is" after the same name, finds it in the needle, and writes the name to `asked`.
- *Question head* L2.H1 takes that from "?" to every later token, to `goal`.
- *Copy head* L3.H2 works in the answer. At END (":") it looks for a word after "is" with goal's
  name two words back, at FIRST for the word after that, and copies what it finds: `c_copy` logits.
  It finds by the question, never by the word that is there: a code word from elsewhere works too.
  Without the locate head it finds nothing.
- *Inert reader* L3.H0 attends as the copy head does and writes where nothing is read.
- *Induction head* L1.H0 looks for what followed the same word earlier, and copies words of codes:
  at END nothing, at FIRST the SECOND, `c_induction` logits.
- *Duplicate-token head* L1.H1 looks for the same word, its own place included.
- *Suppression head* L4.H0 looks for the code word that the layers before it predict and writes
  against it: minus `c_suppression` logits.
- *Sink head* L2.H3 looks at `<bos>` and nothing else.

A head that finds nothing rests on `<bos>`, which stores nothing. All other heads are noise, each
worth less than 2 % of the copy head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ..data.facts.needles import Needle, NeedleDesign, build_needle_design
from ..models.errors import MnemoscopeError
from ..models.tokens import encode
from ..models.types import HeadId
from . import frame
from .frame import Association, HeadPlan
from .retrieval_world import (
    BOS,
    END_OF_TEXT,
    FIRST,
    NAMES,
    SECOND,
    retrieval_filler,
    retrieval_needles,
    retrieval_tokenizer,
    retrieval_words,
)
from .world import PAD

PREVIOUS, TWO_BACK, THREE_BACK = HeadId(0, 1), HeadId(0, 0), HeadId(0, 3)
INDUCTION, DUPLICATE, LOCATE = HeadId(1, 0), HeadId(1, 1), HeadId(1, 2)
QUESTION, SINK = HeadId(2, 1), HeadId(2, 3)
INERT, COPY = HeadId(3, 0), HeadId(3, 2)
SUPPRESSION = HeadId(4, 0)

_N_LAYERS, _N_HEADS, _N_POSITIONS, _WAVES = 5, 4, 1024, 126
_LOGITS_PER_CODE = 50.0  # answers are written short, so noise of a head moves logits too
_FULL_STOP_LOGIT, _END_LOGIT = 3.0, 10.0
_POSITION_SCORE = 40.0
_FULL, _HALF = 2 * frame.SHARPNESS, frame.SHARPNESS
_REST = 1.5 * frame.SHARPNESS  # less than a full match, more than half of one
_UNREAD = 0.2  # length of what goes where nothing is read


@dataclass(frozen=True, eq=False)
class PlantedRetrieval:
    """A plain Hugging Face module in eval mode, its tokenizer and texts, and the truth about it.

    Every head of the module is in exactly one of the tuples of heads; in a null model all of them
    are noise. `needles` are what it can be asked, `filler` is the text to hide them in.
    """

    module: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    needles: tuple[Needle, ...]
    filler: str
    copy_heads: tuple[HeadId, ...]
    locate_heads: tuple[HeadId, ...]
    induction_heads: tuple[HeadId, ...]
    suppression_heads: tuple[HeadId, ...]
    inert_readers: tuple[HeadId, ...]
    duplicate_heads: tuple[HeadId, ...]
    sink_heads: tuple[HeadId, ...]
    offset_heads: tuple[HeadId, ...]
    question_heads: tuple[HeadId, ...]
    noise_heads: tuple[HeadId, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids with `<bos>` in front, as `build_needle_design` wants them."""
        return encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(list(ids)))


def planted_retrieval_model(
    *,
    c_copy: float = 10.0,
    c_induction: float = 5.0,
    c_suppression: float = 4.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PlantedRetrieval:
    """A model that answers from needles by known heads (module docstring); `seed` draws the noise.

    The three strengths are logits. The answer is right as long as `c_copy - c_suppression` is above
    3, the logit of ".". Raises `MnemoscopeError` unless `c_copy` is positive.
    """
    if c_copy <= 0:
        raise MnemoscopeError("c_copy must be positive: null_retrieval_model copies nothing.")
    return _build(dtype, seed, _Strengths(c_copy, c_induction, c_suppression))


def null_retrieval_model(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> PlantedRetrieval:
    """The same frame and words with noise heads only: it says "." to every question."""
    return _build(dtype, seed, None)


def planted_retrieval_design(
    planted: PlantedRetrieval,
    *,
    lengths: Sequence[int] = (128, 256),
    depths: int = 4,
    needles_per_haystack: int = 4,
    rounds: int = 2,
    seed: int = 0,
    paraphrased: bool = False,
) -> NeedleDesign:
    """Trials over all 24 needles in the model's own filler; see `build_needle_design`."""
    return build_needle_design(
        planted.needles,
        planted.encode,
        planted.decode,
        lengths=lengths,
        depths=depths,
        needles_per_haystack=needles_per_haystack,
        rounds=rounds,
        seed=seed,
        text=planted.filler,
        paraphrased=paraphrased,
    )


@dataclass(frozen=True)
class _Strengths:
    copy: float
    induction: float
    suppression: float


@dataclass(frozen=True, eq=False)
class _World:
    """The codes of the named subspaces; token and previous codes go by word."""

    words: tuple[str, ...]
    codes: Mapping[str, Float[Tensor, "item d_model"]]

    def rows(self, space: str, *words: str) -> Float[Tensor, "word d_model"]:
        """Codes of words in `token` or `previous`."""
        return self.codes[space][[self.words.index(word) for word in words]]

    @property
    def answers(self) -> Float[Tensor, "word d_model"]:
        """Token codes of all words of codes, in the order of `out`."""
        return self.rows("token", *FIRST, *SECOND)


def _build(dtype: torch.dtype, seed: int, strengths: _Strengths | None) -> PlantedRetrieval:
    words = retrieval_words()
    world = _World(words, frame.lay_out(_subspaces(len(words))))
    module = frame.bare_module(
        world.codes["token"],
        frame.wave_codes(world.codes["position"], _N_POSITIONS),
        _unembedding(world),
        pad_id=words.index(PAD),
        seed=seed,
        n_layers=_N_LAYERS,
        n_heads=_N_HEADS,
    )
    plans = _plans(world, strengths) if strengths else {}
    for head, plan in plans.items():
        frame.plant(module, head, plan)

    def there(*heads: HeadId) -> tuple[HeadId, ...]:
        return heads if plans else ()

    everywhere = [HeadId(i, h) for i in range(_N_LAYERS) for h in range(_N_HEADS)]
    return PlantedRetrieval(
        module=module.to(dtype),
        tokenizer=retrieval_tokenizer(),
        needles=retrieval_needles(),
        filler=retrieval_filler(),
        copy_heads=there(COPY),
        locate_heads=there(LOCATE),
        induction_heads=there(INDUCTION),
        suppression_heads=there(SUPPRESSION),
        inert_readers=there(INERT),
        duplicate_heads=there(DUPLICATE),
        sink_heads=there(SINK),
        offset_heads=there(TWO_BACK, PREVIOUS, THREE_BACK),
        question_heads=there(QUESTION),
        noise_heads=tuple(head for head in everywhere if head not in plans),
    )


def _subspaces(n_words: int) -> dict[str, int]:
    """Name and number of codes of each subspace of the residual stream."""
    n = len(NAMES)
    return {
        "token": n_words,
        "position": _WAVES,
        "previous": n_words,
        "two_back": n + 1,  # "is" comes last
        "three_back": n,
        "asked": n,
        "goal": n,
        "out": 2 * n,
    }


def _unembedding(world: _World) -> Float[Tensor, "word d_model"]:
    """Words of codes read `out`, "." a constant; after a full stop the text ends."""
    rows = torch.zeros(len(world.words), frame.D_MODEL, dtype=torch.float64)
    out = [world.words.index(word) for word in (*FIRST, *SECOND)]
    rows[out] = _LOGITS_PER_CODE * world.codes["out"]
    rows[world.words.index(".")] = _FULL_STOP_LOGIT * frame.CONSTANT[0]
    rows[world.words.index(END_OF_TEXT)] = _END_LOGIT * world.rows("token", ".")[0]
    return rows


def _plans(world: _World, strengths: _Strengths) -> dict[HeadId, HeadPlan]:
    """Every planted head and what it holds."""
    codes, answers = world.codes, world.answers
    everything, names = codes["token"], world.rows("token", *NAMES)
    names_and_is = torch.cat([names, world.rows("token", "is")])
    unread = codes["position"] * _UNREAD  # nothing reads positions after the first layer
    finds_answer = (*_match_answer(world), _rest(world, _REST))
    same_word = Association(everything * _FULL, everything)
    followed = Association(everything * _FULL, codes["previous"])
    predicted = Association(codes["out"] * (_FULL * _LOGITS_PER_CODE / strengths.copy), answers)
    sink = Association(frame.CONSTANT * _FULL, world.rows("token", BOS))
    return {
        PREVIOUS: _carry(world, 1, Association(everything, codes["previous"])),
        TWO_BACK: _carry(world, 2, Association(names_and_is, codes["two_back"])),
        THREE_BACK: _carry(world, 3, Association(names, codes["three_back"])),
        INDUCTION: HeadPlan(
            (followed, _rest(world, _HALF)), (_written(world, strengths.induction),)
        ),
        DUPLICATE: HeadPlan((same_word,), (Association(everything, unread[: len(everything)]),)),
        LOCATE: HeadPlan(
            (*_match_name(world), _rest(world, _REST)),
            (Association(world.rows("previous", *NAMES), codes["asked"]),),
        ),
        QUESTION: HeadPlan(
            (
                Association(frame.CONSTANT * _FULL, world.rows("token", "?")),
                _rest(world, _HALF),
            ),
            (Association(codes["asked"], codes["goal"]),),
        ),
        SINK: HeadPlan((sink,), (Association(frame.CONSTANT, unread[:1]),)),
        INERT: HeadPlan(finds_answer, (Association(answers, unread[: len(answers)]),)),
        COPY: HeadPlan(finds_answer, (_written(world, strengths.copy),)),
        SUPPRESSION: HeadPlan(
            (predicted, _rest(world, _HALF)), (_written(world, -strengths.suppression),)
        ),
    }


def _carry(world: _World, offset: int, move: Association) -> HeadPlan:
    match = frame.wave_match(world.codes["position"], offset, _POSITION_SCORE)
    return HeadPlan((match, _rest(world, _POSITION_SCORE / 2)), (move,))


def _rest(world: _World, score: float) -> Association:
    """`<bos>` gets this score from everywhere."""
    return Association(frame.CONSTANT * score, world.rows("token", BOS))


def _match_name(world: _World) -> tuple[Association, Association]:
    """From the three words after a name: a key after the same name, and the key "is"."""
    codes, n = world.codes, len(NAMES)
    before = world.rows("previous", *NAMES)
    heard = before + codes["two_back"][:n] + codes["three_back"]
    asking = world.rows("token", "choose", "?", "answer").sum(0, keepdim=True)
    return (
        Association(heard * _HALF, before),
        Association(asking * _HALF, world.rows("token", "is")),
    )


def _match_answer(world: _World) -> tuple[Association, ...]:
    """A key two or three words after goal's name; from ":" one after "is", from a first word of a
    code one that stands two words after "is"."""
    codes, n = world.codes, len(NAMES)
    told = codes["two_back"][:n] + codes["three_back"]
    first = world.rows("token", *FIRST).sum(0, keepdim=True)
    return (
        Association(codes["goal"] * _HALF, told),
        Association(world.rows("token", ":") * _HALF, world.rows("previous", "is")),
        Association(first * _HALF, codes["two_back"][n:]),
    )


def _written(world: _World, logit: float) -> Association:
    """`token(word) -> out(the same one)`, for the words of codes."""
    return Association(world.answers, world.codes["out"] * logit / _LOGITS_PER_CODE)
