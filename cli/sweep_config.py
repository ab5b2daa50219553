"""What a sweep is asked to be: checkpoints, and probes with the options of their commands.

Paths are relative to the working directory. Every field is checked before anything is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ..models.errors import MnemoscopeError
from .prune_config import Strict
from .recipe_files import read_recipe_file
from .resuming import WORKS, Work

SWEEP_SCHEMA = "probe-sweep/1"
PROBES: Mapping[str, str] = {
    "heads score": "head-scores",
    "neurons find": "relation-neurons",
    "retrieval score": "retrieval-scores",
    "retrieval gates": "retrieval-gates",
    "binding probe": "binding-roles",
    "binding recall": "binding-recall",
    "binding swap": "binding-swap",
    "binding entangle": "binding-entanglement",
    "binding context": "binding-context",
}
"""Commands that measure one model, and the kind of their runs."""

RESERVED = ("table", "numbers")
"""Tables of a merged run that are not a probe's."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"
_HINT = "Next: see docs/batch.md for a whole sweep."


class Checkpoint(Strict):
    """A model as its command takes it; `name` is what tables call it."""

    path: str = Field(min_length=1)
    name: str = Field(pattern=_NAME)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        given = {"path": given} if isinstance(given, str) else given
        if isinstance(given, dict) and isinstance(given.get("path"), str):
            return {"name": Path(given["path"]).name.removesuffix(".gguf"), **given}
        return given


class Probe(Strict):
    """A command, and fields of its configuration as a run's config.json has them."""

    model_config = ConfigDict(extra="allow")

    probe: str
    name: str = Field(pattern=_NAME)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("probe"), str):
            return {"name": re.sub(r"[^A-Za-z0-9]+", "-", given["probe"]), **given}
        return given

    @model_validator(mode="after")
    def _makes_sense(self) -> Probe:
        if self.name in RESERVED:
            raise ValueError(f"{self.name!r} is a table of every sweep: choose another name.")
        if self.probe not in PROBES:
            raise ValueError(f"{self.probe!r} is no probe: use one of {', '.join(PROBES)}.")
        unknown = sorted(set(self.options) - set(_fields(self.work)) - set(self.work.more))
        if unknown:
            known = sorted({*_fields(self.work), *self.work.more} - {"model"})
            raise ValueError(
                f"{self.probe} has no field {', '.join(unknown)}: it has {', '.join(known)}."
            )
        if "model" in self.options:
            raise ValueError("the model is that of each checkpoint: leave it out.")
        self.config_for("model")
        return self

    @property
    def work(self) -> Work:
        """Where the work is done."""
        return WORKS[PROBES[self.probe]]

    @property
    def options(self) -> dict[str, Any]:
        """The fields beside `probe` and `name`."""
        return dict(self.model_extra or {})

    @property
    def more(self) -> dict[str, Any]:
        """Options that do not decide numbers."""
        return {**self.work.more, **{k: v for k, v in self.options.items() if k in self.work.more}}

    def config_for(self, model: str) -> Any:
        """The command's configuration. Raises `ValueError` naming the field that is wrong."""
        kind = _config_type(self.work)
        record: dict[str, Any] = {"model": model}
        record |= {k: v for k, v in self.options.items() if k not in self.work.more}
        nested = _nested(kind)
        if nested is not None:
            inner = {field.name for field in fields(nested)}
            outer = {k: v for k, v in record.items() if k not in inner}
            record = {**outer, "pairs": {k: v for k, v in record.items() if k in inner}}
        try:
            return TypeAdapter(kind).validate_python(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}") from error
        except MnemoscopeError as error:
            raise ValueError(str(error)) from error


class Sweep(Strict):
    """Every checkpoint with every probe."""

    schema_: Literal["probe-sweep/1"] = Field(alias="schema")
    checkpoints: tuple[Checkpoint, ...] = Field(min_length=1, strict=False)
    probes: tuple[Probe, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _names_differ(self) -> Sweep:
        for what, names in (
            ("checkpoints", [one.name for one in self.checkpoints]),
            ("probes", [one.name for one in self.probes]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} named {', '.join(twice)} twice: give each a name.")
        return self

    def document(self) -> dict[str, Any]:
        """The whole recipe as plain values."""
        return self.model_dump(mode="json", by_alias=True)

    def units(self) -> dict[str, tuple[Checkpoint, Probe]]:
        """`checkpoint/probe` to what is measured there, all of one checkpoint together."""
        return {
            f"{checkpoint.name}/{probe.name}": (checkpoint, probe)
            for checkpoint in self.checkpoints
            for probe in self.probes
        }


def read_sweep(path: Path) -> Sweep:
    """Read a recipe. Raises `RecipeError` naming every mistake with its line."""
    return read_recipe_file(path, lambda record: Sweep, schema=SWEEP_SCHEMA, hint=_HINT)


def _config_type(work: Work) -> Any:
    return getattr(import_module(f".{work.module}", __package__), work.config)


def _fields(work: Work) -> list[str]:
    """What a recipe may name: the configuration's fields, those of its pairs among them."""
    kind = _config_type(work)
    nested = _nested(kind)
    own = [field.name for field in fields(kind) if nested is None or field.name != "pairs"]
    return own if nested is None else [*own, *(field.name for field in fields(nested))]


def _nested(kind: Any) -> Any | None:
    """The configuration of pairs inside one of a `binding` command."""
    inner = get_type_hints(kind).get("pairs")
    return inner if isinstance(inner, type) and is_dataclass(inner) else None
