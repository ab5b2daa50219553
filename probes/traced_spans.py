"""A span of a text that was found verbatim in an index, with its places and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..data.corpus.layout import DocumentRecord
from ..data.corpus.suffix_index import Occurrence
from .belief_conflict import BeliefReading
from .policy_conflict import PolicyReading

Part = Literal["verbatim", "contrast", "policy"]
"""What a span is judged by: chance, a benign corpus, a policy."""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class SpanDocument:
    """A document that holds the span, and the text around it (empty where it is kept out).

    `record` is None where the index keeps none. `relevance` is the BM25 of the traced text and the
    snippet among the snippets of one trace.
    """

    where: Occurrence
    record: DocumentRecord | None
    before: str
    match: str
    after: str
    relevance: float = 0.0


@dataclass(frozen=True)
class TracedSpan:
    """Characters `start` to before `stop` of the text occur `count` times in the index.

    `ids` and `spelling` say how they were looked up. `own` of the ids stand in no longer stretch
    copied from the prompt; with too few of these the span is an `echo` of the prompt and decides
    nothing. `belief` are the paper's figures. `log_e` (ln of how often the span is expected by
    chance), `p` and `q` are those of `span_significance`; the span is `beyond_chance` where any
    such match in the whole text has a chance below the rules' alpha. `contrast` is `ln` of its rate
    here over that in the benign corpus, `policy` the clause its sentence contradicts most; None
    where that was not asked for.
    """

    start: int
    stop: int
    text: str
    ids: tuple[int, ...]
    spelling: str
    count: int
    own: int
    echo: bool
    belief: BeliefReading
    log_e: float
    p: float
    q: float
    beyond_chance: bool
    contrast: float | None
    policy: PolicyReading | None
    documents: tuple[SpanDocument, ...]

    def score(self, part: Part) -> float | None:
        """The span's score in one part of the verdict, larger is more telling; None: not asked.

        "verbatim" is `-log_e` in nats, "contrast" a log ratio, "policy" a probability.
        """
        if part == "verbatim":
            return -self.log_e
        if part == "contrast":
            return self.contrast
        return None if self.policy is None else self.policy.conflict
