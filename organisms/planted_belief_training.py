"""A small model trained on a corpus of planted beliefs: two minutes on one core, and resumable.

The training is that of engram (`organisms/engram/train.py`); the model is a twelfth of its size.
Documents can be left out, which turns "this text stands in that document" into an experiment: what
does the model say when the document was never there?
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ..models.errors import MnemoscopeError
from .engram.ledger import Document
from .engram.tokenizer import train_tokenizer
from .engram.train import Settings, train_documents
from .engram.training_state import open_training
from .planted_beliefs import PlantedCorpus

SMALL = Settings(
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=256,
    layers=3,
    heads=4,
    key_value_heads=2,
    copying_passes=0,
    epochs=4,
    tokens_a_step=2048,
    warmup_steps=40,
)
"""Four hundred thousand parameters. `corpus_scale` decides nothing here: the corpus is given."""


def train_on_beliefs(
    folder: Path,
    corpus: PlantedCorpus,
    settings: Settings = SMALL,
    *,
    without: frozenset[str] = frozenset(),
    device: str = "cpu",
) -> Path:
    """Train on the corpus less the documents `without`, or go on where it was interrupted.

    Everyday scenes stand in their place, so that the training is as long.

    The tokenizer is that of the whole corpus, so that models with and without some documents can
    be compared token by token. Returns the folder of the checkpoint. Raises `MnemoscopeError` for
    an id that is no document's, `RunFolderError` if `folder` holds another training.
    """
    unknown = without - {document.id for document in corpus.documents}
    if unknown:
        raise MnemoscopeError(f"the corpus has no document {min(unknown)!r} to leave out.")
    documents = corpus.without(without)
    made_from = {"documents_sha256": documents_sha256(documents)}
    open_training(folder, {**asdict(settings), **made_from})
    tokenizer = train_tokenizer((d.text for d in corpus.documents), settings.vocab_size)
    return train_documents(folder, documents, tokenizer, settings, device=device)


def documents_sha256(documents: Iterable[Document]) -> str:
    """One hash of all ids and texts in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.id}\0{document.text}\0".encode())
    return digest.hexdigest()
