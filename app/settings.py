"""What one start of the explorer serves: models, runs, saved sets and indexes of corpora.

The launcher writes it into one environment variable as JSON; the pages read it there. Pages take
models and indexes from here only, never from a path typed into the browser.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..models.errors import MnemoscopeError
from ..models.packaged import DEFAULT_MODEL, PACKAGED

VARIABLE = "MNEMOSCOPE_APP"
DEFAULT_MODELS = (DEFAULT_MODEL,)


@dataclass(frozen=True)
class Settings:
    """`models` maps the label shown to the name or path that `load_model` takes, `indexes` to the
    folder of an index."""

    models: dict[str, str]
    runs_root: Path
    head_sets: Path
    indexes: Mapping[str, str] = field(default_factory=dict)

    @property
    def index_folder(self) -> Path:
        """Where indexes are looked for too, beside the runs folder."""
        return self.runs_root.with_name("indexes")

    @property
    def texts(self) -> Path:
        """Where texts of one's own are looked for, beside the runs folder."""
        return self.runs_root.with_name("texts")

    @property
    def neuron_sets(self) -> Path:
        """The folder of saved neuron sets, beside that of the head sets."""
        return self.head_sets.with_name("neuron-sets")

    def to_json(self) -> str:
        """The settings as one line, for the environment variable."""
        record = {
            "models": self.models,
            "runs_root": str(self.runs_root),
            "head_sets": str(self.head_sets),
            "indexes": dict(self.indexes),
        }
        return json.dumps(record)


def settings_for(
    models: Sequence[str], runs_root: Path | str, indexes: Sequence[Path | str] = ()
) -> Settings:
    """Settings for these models and indexes; head sets are kept beside the runs folder.

    A folder is labelled by its last part, or by its whole path where two would be called the same.
    Raises `MnemoscopeError` for an empty list, a model that is neither packaged, a folder nor a
    GGUF file (the explorer loads nothing from the network by itself), and an index that is no
    folder.
    """
    if not models:
        raise MnemoscopeError("no model to explore: name one, for example engram.")
    root = Path(runs_root).expanduser().resolve()
    places = [_place(name) for name in dict.fromkeys(models)]
    folders = [_index_place(name) for name in dict.fromkeys(indexes)]
    head_sets = root.with_name("head-sets")
    return Settings(_labelled(places), root, head_sets, _labelled(folders))


def settings_from_environment() -> Settings:
    """What the launcher said; the packaged model and `./runs` when there was no launcher."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return settings_for(DEFAULT_MODELS, "runs")
    record = json.loads(text)
    return Settings(
        dict(record["models"]),
        Path(record["runs_root"]),
        Path(record["head_sets"]),
        dict(record["indexes"]),
    )


def _labelled(places: Sequence[str]) -> dict[str, str]:
    short = [Path(place).name for place in places]
    return {
        name if short.count(name) == 1 else place: place
        for name, place in zip(short, places, strict=True)
    }


def _index_place(folder: Path | str) -> str:
    path = Path(folder).expanduser()
    if path.is_dir():
        return str(path.resolve())
    raise MnemoscopeError(f"there is no index folder {folder}: build one with trace index.")


def _place(name: str) -> str:
    path = Path(name).expanduser()
    if name in PACKAGED:
        return name
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return str(path.resolve())
    raise MnemoscopeError(
        f"{name!r} is neither a checkpoint folder nor a GGUF file on this machine: give a folder, "
        f"or one of {', '.join(PACKAGED)}."
    )
