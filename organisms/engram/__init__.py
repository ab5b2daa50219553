"""engram: a small model of which every memory has a known origin. Its corpus and its ledger.

`corpus` is not imported here, so that `python -m` can run it; `build_corpus` is found there.
"""

from .drafts import SLICES, Slice
from .facts import FREQUENCIES, PlannedFact, fictional_relations
from .ledger import Document, Ledger, LedgerRow, Occurrence

__all__ = [
    "FREQUENCIES",
    "SLICES",
    "Document",
    "Ledger",
    "LedgerRow",
    "Occurrence",
    "PlannedFact",
    "Slice",
    "fictional_relations",
]
