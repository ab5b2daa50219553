"""Relations, their facts, and the knowledge conflicts made from them."""

from .answers import Outcome, classify, normalise
from .conflicts import (
    CONDITIONS,
    Condition,
    ConflictItem,
    ConflictSet,
    build_conflicts,
)
from .external import ConflictRecord, External, load_external
from .items import (
    PARTS,
    Fact,
    Part,
    Relation,
    data_hash,
    load_relation,
    relation_names,
    split_subjects,
)

__all__ = [
    "CONDITIONS",
    "PARTS",
    "Condition",
    "ConflictItem",
    "ConflictRecord",
    "ConflictSet",
    "External",
    "Fact",
    "Outcome",
    "Part",
    "Relation",
    "build_conflicts",
    "classify",
    "data_hash",
    "load_external",
    "load_relation",
    "normalise",
    "relation_names",
    "split_subjects",
]
