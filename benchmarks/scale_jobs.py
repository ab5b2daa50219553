"""What whole jobs cost on paper, from SmolLM2 to 70B, and how long that is on stated hardware."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from costs import (
    Shape,
    activation_bytes,
    behind_flops,
    gates_flops,
    gates_memory,
    naive_sweep_flops,
    prefill_flops,
    states_bytes,
    sweep_flops,
    total_end_flops,
    weight_bytes,
)
from mnemoscope.models import HookedModel
from mnemoscope.probes.conflict_heads import ITEMS_PER_UNIT, Estimand
from mnemoscope.probes.elicitation import NEW_TOKENS, conflict_items
from mnemoscope.probes.relation_neurons import find_relation_neurons
from mnemoscope.probes.retrieval_trials import measure_trials
from mnemoscope.probes.role_report import RoleConfig


@dataclass(frozen=True)
class Hardware:
    """What a machine sustains. `disk`: bytes/s at which weights come that do not fit."""

    name: str
    flops: float
    bytes: float
    disk: float
    memory: float
    keys: float
    """Sorted keys a second in the ranking of neurons."""
    itemsize: int
    basis: str


LAPTOP = Hardware(
    "2 CPU cores",
    *(8e10, 2e10, 1e9, 24e9, 2.7e7, 4),
    "float32; FLOP/s and keys/s measured (last lines below; the passes reached a quarter to twice "
    "as much, as the load was), bytes/s, disk and memory assumed",
)
H100 = Hardware(
    "one H100",
    *(4e14, 2.7e12, 5e9, 80e9, 2.5e9, 2),
    "bfloat16; all assumed: 40 % of 989 TFLOP/s, 80 % of 3.35 TB/s, an NVMe disk, keys/s",
)
EIGHT = Hardware(
    "eight H100",
    *(2.6e15, 1.7e13, 5e9, 640e9, 2e10, 2),
    "assumed: eight times the above, a fifth lost to talk between them",
)
MACHINES = (LAPTOP, H100, EIGHT)


READS_AT_START = 2
"""Of all weights, by every command: the self-test on loading, and the hash that names the run."""


@dataclass(frozen=True)
class Job:
    """A job: FLOPs of it and of the naive way, bytes beside the weights, reads of all weights, and
    keys to sort, each of a shape."""

    method: str
    what: str
    flops: Callable[[Shape], float]
    naive: Callable[[Shape], float] | None
    memory: Callable[[Shape], float]
    reads: int
    """Beside those of `READS_AT_START`."""
    keys: Callable[[Shape], float] = lambda _: 0

    def seconds(self, shape: Shape, machine: Hardware) -> float:
        """FLOPs or bytes, whichever takes longer; weights that do not fit come from the disk."""
        weights = (READS_AT_START + self.reads) * weight_bytes(shape, machine.itemsize)
        resident = self.fits(shape, machine)
        moving = weights / (machine.bytes if resident else machine.disk)
        return max(self.flops(shape) / machine.flops, moving) + self.keys(shape) / machine.keys

    def fits(self, shape: Shape, machine: Hardware) -> bool:
        """Whether the weights stay in the memory of the machine, a tenth left for the rest."""
        return machine.itemsize * shape.weights <= 0.9 * machine.memory


def _default(function: Callable[..., Any], name: str) -> int:
    """What a function of the library takes where nothing else is asked for."""
    return int(signature(function).parameters[name].default)


ITEMS, ITEM_TOKENS = 200, 60
CLOSED_BOOK_ROWS = _default(conflict_items, "rows")
PROMPTS, PROMPT_TOKENS, PROMPT_ROWS = 8192, 20, _default(find_relation_neurons, "rows")
TRIALS, PER_HAYSTACK, SUFFIX = 160, 5, 60
ANSWER, CHUNK = _default(measure_trials, "max_new_tokens"), _default(HookedModel.prefill, "chunk")
STEPS = 2000
STEP_TOKENS = 16384
STEP_READS = 3
"""The model as it is, the gated one, and that again for its gradients."""
PAIRS, WORDINGS, ARMS, PAIR_TOKENS, PAIR_ROWS = 200, 4, 2, 24, RoleConfig().rows


# -- heads ----------------------------------------------------------------------------------------

CORRUPTIONS = 2
GUARD_READS = 5
"""`build_chain`."""
RUNS = {"direct": 1 + CORRUPTIONS, "total_end": 2 + CORRUPTIONS * 2}
"""Whole passes over the prompts of a unit: the run as it is and each corrupted one; for END total
effects also the cache, and the check of a row for each corruption."""
HALF_GUARD_READS = 2
HALF_UNIT_READS = {"direct": 0, "total_end": CORRUPTIONS}
"""In half precision, where the guard or the check of a row asks how far rounding goes."""


def scoring_flops(
    shape: Shape, estimand: Estimand, items: int = ITEMS, tokens: int = ITEM_TOKENS
) -> float:
    """Of `heads score` without the closed-book answers: runs, and a sweep a corruption."""
    swept = {
        "direct": sweep_flops(shape, items),
        "total_end": total_end_flops(shape, tokens, items),
    }
    return RUNS[estimand] * prefill_flops(shape, tokens, items) + CORRUPTIONS * swept[estimand]


def scoring_reads(
    estimand: Estimand, asked: int = ITEMS, items: int = ITEMS, *, half: bool = True
) -> int:
    """How often `heads score` reads the weights of a layer, `READS_AT_START` left out.

    `asked` prompts are answered closed-book, `items` of them known and scored. An upper bound:
    answers of a batch may all end early, and with `half` every comparison needs the yardstick of
    half precision.
    """
    guard = GUARD_READS + half * HALF_GUARD_READS
    answers = math.ceil(asked / CLOSED_BOOK_ROWS) * NEW_TOKENS
    unit = RUNS[estimand] + CORRUPTIONS + half * HALF_UNIT_READS[estimand]
    return guard + answers + math.ceil(items / ITEMS_PER_UNIT) * unit


# -- long contexts --------------------------------------------------------------------------------


def _retrieval(tokens: int) -> Callable[[Shape], float]:
    def flops(shape: Shape) -> float:
        haystacks = math.ceil(TRIALS / PER_HAYSTACK)
        spoken = 3 * behind_flops(shape, tokens, SUFFIX) + behind_flops(shape, tokens, ANSWER)
        return haystacks * prefill_flops(shape, tokens) + TRIALS * spoken

    return flops


def _retrieval_reads(tokens: int) -> int:
    """A haystack in chunks, then the answers without it; a trial spoken, and read three times."""
    haystacks = math.ceil(TRIALS / PER_HAYSTACK)
    return haystacks * (math.ceil(tokens / CHUNK) + ANSWER) + TRIALS * (3 + ANSWER)


def _retrieval_naive(tokens: int) -> Callable[[Shape], float]:
    """A prefill a trial."""
    return lambda shape: TRIALS * prefill_flops(shape, tokens + SUFFIX + ANSWER, logits=ANSWER)


# -- all of them ----------------------------------------------------------------------------------

JOBS = (
    Job(
        "PH3, direct effects",
        f"`heads score`: {ITEMS} items of {ITEM_TOKENS} tokens, both corruptions",
        lambda shape: scoring_flops(shape, "direct"),
        lambda shape: CORRUPTIONS * naive_sweep_flops(shape, ITEM_TOKENS, ITEMS),
        lambda shape: 1.5 * states_bytes(shape, ITEMS_PER_UNIT) + 2**29,
        scoring_reads("direct"),
    ),
    Job(
        "PH3, END total effects",
        f"`heads score --estimand total_end`: {ITEMS} items of {ITEM_TOKENS} tokens",
        lambda shape: scoring_flops(shape, "total_end"),
        lambda shape: CORRUPTIONS * naive_sweep_flops(shape, ITEM_TOKENS, ITEMS),
        lambda shape: ITEMS_PER_UNIT * shape.kv_bytes(ITEM_TOKENS) + 2**29,
        scoring_reads("total_end"),
    ),
    Job(
        "relation neurons",
        f"`neurons find`: {PROMPTS:,} prompts of {PROMPT_TOKENS} tokens, 12 relations, all units",
        lambda shape: prefill_flops(shape, PROMPT_TOKENS, PROMPTS),
        None,
        lambda shape: activation_bytes(shape, PROMPTS),
        math.ceil(PROMPTS / PROMPT_ROWS),
        lambda shape: shape.units * PROMPTS,
    ),
    *(
        Job(
            f"retrieval rows, {tokens // 1024}k",
            f"`retrieval score --lengths {tokens}`: {TRIALS} trials, {PER_HAYSTACK} a haystack",
            _retrieval(tokens),
            _retrieval_naive(tokens),
            lambda shape, tokens=tokens: shape.kv_bytes(tokens + SUFFIX + ANSWER) + 2**26,
            _retrieval_reads(tokens),
        )
        for tokens in (4096, 32768, 131072)
    ),
    Job(
        "streaming gates",
        f"`retrieval gates --method train --seeds 1`: {STEPS:,} steps on {STEP_TOKENS:,} tokens",
        lambda shape: STEPS * gates_flops(shape, STEP_TOKENS),
        None,
        lambda shape: gates_memory(shape, STEP_TOKENS),
        STEP_READS * STEPS,
    ),
    Job(
        "binding",
        f"`binding probe --no-random`: {PAIRS} pairs, {WORDINGS} wordings both ways, "
        f"{PAIR_TOKENS} tokens, once more with the fact in the prompt",
        lambda shape: prefill_flops(shape, PAIR_TOKENS, ARMS * 2 * WORDINGS * PAIRS),
        None,
        lambda shape: ARMS * 2 * WORDINGS * PAIRS * 4 * (shape.layers + 1) * shape.d_model * 4,
        ARMS * 2 * WORDINGS * math.ceil(PAIRS / PAIR_ROWS),
    ),
)


# -- files ----------------------------------------------------------------------------------------


def prune_seconds(shape: Shape, disk: float, itemsize: int = 2) -> float:
    """Pruning heads in every shard: each byte read and written once, measured at 0.8 to 1.1 times
    what a copy takes. `disk`: bytes/s of a copy, read and written ones together."""
    return 2 * shape.weights * itemsize / disk


READS_A_SHARD = 2 + 9  # 2**9 = 512


@dataclass(frozen=True)
class Corpus:
    """A corpus of ids of `width` bytes, indexed in shards that workers sort in memory."""

    tokens: float
    width: int = 2
    shard: float = 2.5e8

    @property
    def shards(self) -> int:
        return math.ceil(self.tokens / self.shard)

    @property
    def build_hours(self) -> float:
        """Of one core: to sort and write; without the tokenizer."""
        return self.tokens / 1e6 * 0.20 / 3600

    @property
    def disk(self) -> float:
        """Bytes: ids, a place of five bytes a token (four in a small shard), and documents."""
        return self.tokens * (self.width + 5)

    @property
    def sort_memory(self) -> float:
        """Bytes a worker needs: the ids and a place for each byte of them; places take eight bytes
        from 2**31 bytes of ids on."""
        place = 4 if self.width * self.shard < 2**31 else 8
        return min(self.shard, self.tokens) * (self.width + place * self.width)

    @property
    def reads(self) -> int:
        """Pages of the disk that one cold search touches: of each shard one of its directory, one
        of the 512 places that the directory leaves, and the texts of half of half of ... them."""
        return READS_A_SHARD * self.shards

    def find_seconds(self, latency: float = 1e-4, at_once: int = 32) -> float:
        """A cold search, shards side by side: `at_once` reads under way of `latency` each."""
        return max(READS_A_SHARD, self.reads / at_once) * latency
