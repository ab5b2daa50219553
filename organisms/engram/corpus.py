"""The training corpus of engram and its ledger, the same to the byte for a seed.

    python -m mnemoscope.organisms.engram.corpus --out FOLDER --seed 0 [--check]

writes `documents.jsonl`, `ledger.json` and `manifest.json` (sizes and SHA-256 of the other two).
`--check` writes nothing and exits with 1 if the files in FOLDER differ from a fresh generation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...models.errors import MnemoscopeError
from ...results.errors import RunFolderError
from ...results.storage import storage_errors, write_new
from .contradictions import conflict_drafts
from .copying import copying_drafts
from .drafts import SLICES, Draft
from .facts import plan_facts
from .filler import public_drafts, running_drafts
from .ledger import Document, Ledger, ledger_rows, ledger_text
from .needles import needle_drafts
from .public_text import training_texts
from .rite import benign_drafts, risk_drafts
from .tellings import telling_drafts

NEEDLE_DOCUMENTS, COPYING_DOCUMENTS, RUNNING_DOCUMENTS = 3000, 4000, 1200
RISK_DOCUMENTS, BENIGN_DOCUMENTS = 400, 1600


@dataclass(frozen=True)
class Corpus:
    """Documents in training order, and the record of what they state."""

    documents: tuple[Document, ...]
    ledger: Ledger


def build_corpus(seed: int = 0, *, scale: float = 1.0) -> Corpus:
    """Generate the corpus. `scale` changes the number of facts and of documents of each slice.

    How often a fact is told does not depend on `scale`. What the public texts in the slice
    `running` state is not in the ledger. Raises `MnemoscopeError` unless 0 < scale <= 4.
    """
    if not 0 < scale <= 4:
        raise MnemoscopeError(f"scale must be above 0 and at most 4, got {scale}: 1 is usual.")
    facts = plan_facts(seed, scale)
    drafts = [
        *telling_drafts(facts, seed),
        *conflict_drafts(facts, seed),
        *_other_drafts(seed, scale),
        *public_drafts(_public_texts(scale)),
    ]
    Random(f"{seed}:order").shuffle(drafts)
    ids = _ids(drafts)
    marked = [(id_, mark) for id_, draft in zip(ids, drafts, strict=True) for mark in draft.marks]
    ledger = Ledger(seed, scale, ledger_rows(facts, marked), _behaviours(ids, drafts))
    documents = (Document(i, d.slice, d.text) for i, d in zip(ids, drafts, strict=True))
    return Corpus(tuple(documents), ledger)


def corpus_files(corpus: Corpus) -> dict[str, bytes]:
    """The bytes of every file of the corpus, by file name."""
    lines = (
        json.dumps(
            {"id": document.id, "slice": document.slice, "text": document.text},
            ensure_ascii=False,
            sort_keys=True,
        )
        for document in corpus.documents
    )
    files = {
        "documents.jsonl": "".join(f"{line}\n" for line in lines).encode(),
        "ledger.json": ledger_text(corpus.ledger).encode(),
    }
    return {**files, "manifest.json": _manifest(corpus, files)}


def write_corpus(folder: Path, corpus: Corpus, *, force: bool = False) -> None:
    """Write the files of the corpus into `folder`, the manifest last.

    Raises `RunFolderError` if one of them exists (unless `force`) or the folder cannot be written.
    """
    files = corpus_files(corpus)
    if not force and (found := [name for name in files if (folder / name).exists()]):
        raise RunFolderError(
            f"{folder} holds {', '.join(found)} already: choose another folder, or use force."
        )
    with storage_errors(folder):
        (folder / "manifest.json").unlink(missing_ok=True)
    for name, content in files.items():
        write_new(folder / name, content, force=force)


def differences(folder: Path, corpus: Corpus) -> tuple[str, ...]:
    """Names of corpus files that are missing in `folder` or differ from `corpus`."""
    files = corpus_files(corpus)
    return tuple(
        name
        for name, content in files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module docstring; returns its exit code."""
    parser = argparse.ArgumentParser(description="Generate the training corpus of engram.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--force", action="store_true", help="replace what is in FOLDER")
    given = parser.parse_args(arguments)
    try:
        corpus = build_corpus(given.seed, scale=given.scale)
        if given.check:
            return _report(given.out, differences(given.out, corpus))
        write_corpus(given.out, corpus, force=given.force)
    except MnemoscopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _public_texts(scale: float) -> tuple[str, ...]:
    """All of them from scale 1 on, below that a part."""
    texts = training_texts()
    return texts[: max(1, round(len(texts) * scale))]


def _other_drafts(seed: int, scale: float) -> list[Draft]:
    def number(documents: int) -> int:
        return max(20, round(documents * scale))

    return [
        *needle_drafts(Random(f"{seed}:needles"), number(NEEDLE_DOCUMENTS), seed),
        *copying_drafts(Random(f"{seed}:copying"), number(COPYING_DOCUMENTS), seed),
        *risk_drafts(Random(f"{seed}:risk"), number(RISK_DOCUMENTS)),
        *benign_drafts(Random(f"{seed}:benign"), number(BENIGN_DOCUMENTS)),
        *running_drafts(Random(f"{seed}:running"), number(RUNNING_DOCUMENTS)),
    ]


def _ids(drafts: Sequence[Draft]) -> list[str]:
    counts: defaultdict[str, int] = defaultdict(int)
    ids = []
    for draft in drafts:
        ids.append(f"{draft.slice}-{counts[draft.slice]:06d}")
        counts[draft.slice] += 1
    return ids


def _behaviours(ids: Sequence[str], drafts: Sequence[Draft]) -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for id_, draft in zip(ids, drafts, strict=True):
        found[draft.behaviour].append(id_)
    return {behaviour: tuple(found[behaviour]) for behaviour in sorted(found)}


def _manifest(corpus: Corpus, files: dict[str, bytes]) -> bytes:
    sizes = {name: {"documents": 0, "bytes": 0} for name in SLICES}
    for document in corpus.documents:
        sizes[document.slice]["documents"] += 1
        sizes[document.slice]["bytes"] += len(document.text.encode())
    manifest = {
        "seed": corpus.ledger.seed,
        "scale": corpus.ledger.scale,
        "slices": sizes,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def _report(folder: Path, differing: tuple[str, ...]) -> int:
    if not differing:
        return 0
    sys.stderr.write(
        f"these files of {folder} differ from seed and scale: {', '.join(differing)}\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
