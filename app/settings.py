"""What one start of the explorer serves: models, the runs folder and the folders of saved sets.

The launcher writes it into one environment variable as JSON; the pages read it there. Pages take
models from this list only, never from a path typed into the browser.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.errors import MnemoscopeError
from ..models.packaged import DEFAULT_MODEL, PACKAGED

VARIABLE = "MNEMOSCOPE_APP"
DEFAULT_MODELS = (DEFAULT_MODEL,)


@dataclass(frozen=True)
class Settings:
    """`models` maps the label shown to the name or path that `load_model` takes."""

    models: dict[str, str]
    runs_root: Path
    head_sets: Path

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
        }
        return json.dumps(record)


def settings_for(models: Sequence[str], runs_root: Path | str) -> Settings:
    """Settings for these models; head sets are kept in `head-sets` beside the runs folder.

    A folder is labelled by its last part, or by its whole path where two would be called the same.
    Raises `MnemoscopeError` for an empty list or a model that is neither packaged, a folder nor a
    GGUF file: the explorer loads nothing from the network by itself.
    """
    if not models:
        raise MnemoscopeError("no model to explore: name one, for example engram.")
    root = Path(runs_root).expanduser().resolve()
    places = [_place(name) for name in dict.fromkeys(models)]
    short = [Path(place).name for place in places]
    labels = [
        name if short.count(name) == 1 else place for name, place in zip(short, places, strict=True)
    ]
    return Settings(dict(zip(labels, places, strict=True)), root, root.with_name("head-sets"))


def settings_from_environment() -> Settings:
    """What the launcher said; the packaged model and `./runs` when there was no launcher."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return settings_for(DEFAULT_MODELS, "runs")
    record = json.loads(text)
    return Settings(dict(record["models"]), Path(record["runs_root"]), Path(record["head_sets"]))


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
