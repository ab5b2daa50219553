"""Hand-set models whose pairs (A, B) are known to the digit, to swap roles in.

"so <a> mother" asks for B, "so <b> child" asks for A. A pair's code is a random point on a sphere
in eight dimensions. At "mother" the first layer writes the code of A's pair into the space
*predicted*, whence B is read off. At "child" the second layer reads the name's place, and A is read
off what it finds there:

- `consistent`: it reads *predicted*, where the token B carries its pair's code too (faintly, if
  told so: then the name alone hardly brings out A, and what predicts B does);
- `rotated`: it reads *named*, where the token B carries the code turned into other directions;
- `absent`: it reads *named*, but what B carries there has nothing to do with what predicts B;
- `leaky`: it reads A's own word, which END of "so <a> mother" has copied, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from mnemoscope.data.facts.pairs import Pair, PairRelation
from mnemoscope.models import HeadId, HookedModel, wrap
from mnemoscope.organisms import frame
from mnemoscope.organisms.frame import Association, HeadPlan
from mnemoscope.organisms.world import PAD, UNKNOWN, world_tokenizer
from torch import Tensor

Kind = Literal["consistent", "rotated", "absent", "leaky"]
DIMS = 8


@dataclass(frozen=True)
class Ground:
    model: HookedModel
    relation: PairRelation


def ground(
    kind: Kind, *, faint: float = 1.0, sharpness: float = 20.0, n: int = 32, seed: int = 0
) -> Ground:
    """A model of `n` pairs; the token B carries its code with strength `faint`.

    `sharpness` is the logit of a name whose code is found in full; those of other pairs have a
    fraction of it.
    """
    a, b = [f"anna{i}" for i in range(n)], [f"bert{i}" for i in range(n)]
    words = (PAD, UNKNOWN, "so", *a, *b, "mother", "parent", "child", "kid")
    codes = frame.lay_out({"word": len(words), "predicted": DIMS, "named": DIMS, "answer": DIMS})
    word = codes["word"]
    of_a, of_b = word[3 : 3 + n], word[3 + n : 3 + 2 * n]
    predicted, carried, read = _codes(kind, n, seed)
    space = codes["predicted" if kind == "consistent" else "named"]
    tokens, out = word.clone(), torch.zeros_like(word)
    tokens[3 + n : 3 + 2 * n] += faint * carried @ space
    out[3 : 3 + n] = sharpness * read @ codes["answer"]
    out[3 + n : 3 + 2 * n] = sharpness * predicted @ codes["predicted"]
    still = torch.zeros(frame.N_POSITIONS, frame.D_MODEL, dtype=torch.float64)
    module = frame.bare_module(tokens, still, out, 0, seed)
    forward, reverse, rest = word[-4:-2], word[-2:], word[2:3]
    moves = [Association(of_a, predicted @ codes["predicted"])]
    if kind == "leaky":
        moves.append(Association(of_a, of_a))
    found = Association(space, codes["answer"])
    if kind == "leaky":
        found = Association(of_a, read @ codes["answer"])
    ask_b = HeadPlan(_look_at(forward, torch.cat([of_a, of_b]), rest), tuple(moves))
    ask_a = HeadPlan(_look_away(reverse, rest), (found,))
    frame.plant(module, HeadId(0, 0), ask_b)
    frame.plant(module, HeadId(1, 0), ask_a)
    model = wrap(module, world_tokenizer(words), name=f"{kind} roles")
    pairs = tuple(Pair(x, y, told="forward") for x, y in zip(a, b, strict=True))
    wordings = ("so {a} mother", "so {a} parent"), ("so {b} child", "so {b} kid")
    return Ground(model, PairRelation(kind, *wordings, pairs))


def _codes(kind: Kind, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts B, what the token B carries, and what A is read off, `[pair, 8]`."""
    drawn = torch.randn(2, n, DIMS, generator=torch.Generator().manual_seed(seed)).double()
    own, unrelated = drawn / drawn.norm(dim=2, keepdim=True)
    turned = own @ torch.linalg.qr(drawn[1, :DIMS])[0]
    if kind == "consistent":
        return own, own, own
    if kind == "rotated":
        return own, turned, turned
    return own, unrelated, unrelated


def _look_at(
    asking: Float[Tensor, "k d"], names: Float[Tensor, "name d"], rest: Float[Tensor, "1 d"]
) -> tuple[Association, ...]:
    """Asking words look at names, all others at the first word."""
    strong = 2 * frame.SHARPNESS
    return (
        Association(asking * strong, names.sum(0, keepdim=True).expand(len(asking), -1)),
        Association(frame.CONSTANT * frame.SHARPNESS, rest),
    )


def _look_away(asking: Float[Tensor, "k d"], rest: Float[Tensor, "1 d"]) -> tuple[Association, ...]:
    """Asking words look at whatever is neither the first word nor themselves."""
    strong = 2 * frame.SHARPNESS
    away = (asking.sum(0, keepdim=True) + rest).expand(len(asking), -1)
    return (
        Association(asking * -strong, away),
        Association(frame.CONSTANT * frame.SHARPNESS, rest),
    )
