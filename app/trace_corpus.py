"""Which indexes the page about provenance offers, and the shipped corpus as the first of them.

The corpus that engram was trained on, and its slices of a forbidden rite and of harmless text in
the same words, are generated and indexed in the user's cache folder when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..cli.tracing_index import IndexPlan, make_index
from ..cli.tracing_sources import SHIPPED, OpenIndex, one_sentence, open_for
from ..data.corpus.index_info import INFO_NAME
from ..data.corpus.joined_index import JOINED_NAME
from ..data.corpus.suffix_index import open_index
from ..models.checkpoint_files import file_sha256
from ..models.errors import MnemoscopeError
from ..models.gguf import cache_folder
from ..models.packaged import engram_folder
from ..probes.elicitation import Progress
from .settings import Settings

RISK = "risk"
"""The label of an index whose documents stay hidden until somebody asks for them."""


@dataclass(frozen=True)
class Offer:
    """An index folder that may be chosen; `source` is what builds it where it is not there yet."""

    folder: Path
    source: str = ""
    label: str = ""

    @property
    def built(self) -> bool:
        """Whether there is anything to open."""
        return not self.source or (self.folder / INFO_NAME).is_file()


def offers(settings: Settings) -> dict[str, Offer]:
    """The shipped corpus and its slices, indexes named at the start, and those in `indexes` beside
    the runs folder, by what they are called on the page."""
    shipped = {
        "engram, whole corpus": Offer(_shipped("all"), SHIPPED, "training"),
        "engram, risk slice": Offer(_shipped("risk"), f"{SHIPPED}:risk", RISK),
        "engram, benign slice": Offer(_shipped("benign"), f"{SHIPPED}:benign", "benign"),
    }
    found = {
        path.parent.name: Offer(path.parent)
        for name in (INFO_NAME, JOINED_NAME)
        for path in sorted(settings.index_folder.glob(f"*/{name}"))
    }
    named = {name: Offer(Path(place)) for name, place in settings.indexes.items()}
    return _distinct(shipped, named, found)


def build(offer: Offer, progress: Progress) -> None:
    """Generate the documents and index them; an interrupted build is gone on with.

    Raises `MnemoscopeError` with the reason.
    """
    offer.folder.parent.mkdir(parents=True, exist_ok=True)
    plan = IndexPlan((offer.source,), offer.folder, label=offer.label, any_path=True)
    make_index(plan, force=False, tell=progress)


def opened(folder: Path, place: str, tokenizer_sha256: str) -> OpenIndex:
    """The index with the spelling of its own tokenizer; nothing is fetched.

    The tokenizer is that of the model at `place` where the index was built with it or does not say
    with which, else engram's or one in a folder here. Raises `MnemoscopeError` where the index is
    damaged or its tokenizer is not at hand.
    """
    with one_sentence():
        info = open_index(folder).info
    if info.mode == "bytes":
        return open_for(folder)
    if info.tokenizer_sha256 in ("", tokenizer_sha256):
        return open_for(folder, place)
    if not _at_hand(info.tokenizer_name):
        raise MnemoscopeError(
            f"{folder.name} was built with the tokenizer {info.tokenizer_name or 'of no name'}, "
            "which is not on this machine: choose a model with that tokenizer."
        )
    return open_for(folder)


def _at_hand(tokenizer: str) -> bool:
    """Whether its name can be loaded from this machine; another packaged model would be fetched."""
    return tokenizer == SHIPPED or (tokenizer != "" and Path(tokenizer).exists())


def _shipped(name: str) -> Path:
    """Another version of the tokenizer gets another folder."""
    return cache_folder() / "corpora" / f"engram-{name}-{_tokenizer_sha256()[:12]}"


@cache
def _tokenizer_sha256() -> str:
    return file_sha256(engram_folder() / "tokenizer.json")


def _distinct(*groups: Mapping[str, Offer]) -> dict[str, Offer]:
    """All groups in one; a name that is taken already gets its whole path."""
    merged: dict[str, Offer] = {}
    for group in groups:
        for name, offer in group.items():
            merged[name if name not in merged else str(offer.folder)] = offer
    return merged
