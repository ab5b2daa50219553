"""Recipes: a pruning or a batch of them as a YAML file, and errors that name field and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from ..models.errors import MnemoscopeError
from .prune_config import RECIPE_SCHEMA, PruneBatch, PruneConfig

_NEXT = "Next: see a whole recipe with prune run MODEL --heads 12:5 --out DIR --print-config"


class RecipeError(MnemoscopeError):
    """A recipe cannot be read; the message names the file, the line and the field."""


def read_recipe(path: Path) -> PruneConfig | PruneBatch:
    """Read a recipe. A file with `checkpoints` or `head_sets` is a batch.

    Raises `RecipeError` naming every mistake with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path} ({error}): check the path.") from error
    node, record = _parsed(text, path)
    kind = PruneBatch if {"checkpoints", "head_sets"} & set(record) else PruneConfig
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        raise RecipeError("\n".join((*_mistakes(error, node, path), _NEXT))) from error


def config_of(record: Mapping[str, Any]) -> PruneConfig:
    """The configuration of command-line options, laid out as a recipe without its schema.

    Raises `RecipeError` naming the fields that are wrong.
    """
    try:
        return PruneConfig.model_validate({"schema": RECIPE_SCHEMA, **record})
    except ValidationError as error:
        raise RecipeError("\n".join(_mistakes(error, None, None))) from error


def recipe_text(config: PruneConfig | PruneBatch) -> str:
    """The resolved recipe as YAML; reading it gives the same configuration."""
    return str(yaml.safe_dump(config.document(), sort_keys=False, allow_unicode=True))


def _parsed(text: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """The node tree (it knows the lines) and the plain values of one mapping."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _wrong(path, event.start_mark.line, "aliases (*name) are not read: write out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(path, 0, f"a recipe is a mapping that starts with schema: {RECIPE_SCHEMA}")
        for twice, line in _repeated(node):
            raise _wrong(path, line, f"{twice} is given twice: keep one")
        return node, yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "special characters"
        raise _wrong(path, mark.line if mark else 0, f"this is no YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # a date that does not exist, endless nesting
        raise _wrong(path, 0, f"this cannot be read: {error}") from error


def _wrong(path: Path, line: int, what: str) -> RecipeError:
    return RecipeError(f"{path}, line {line + 1}: {what}.")


def _repeated(node: Any) -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one mapping, which YAML would settle silently."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield str(key.value), key.start_mark.line
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _repeated(entry)


def _mistakes(error: ValidationError, node: Any, path: Path | None) -> Iterator[str]:
    """One line for each mistake: file, line, field, what is wrong."""
    for mistake in error.errors():
        place = ".".join(map(str, mistake["loc"])) or "recipe"
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "there is no such field"
        elif mistake["type"] == "missing":
            message = "this field is missing"
        line = "" if path is None else f"{path}, line {_line(node, mistake['loc']) + 1}, "
        yield f"{line}{place}: {message}"


def _line(node: Any, places: Sequence[int | str]) -> int:
    """The line of the innermost part of `places` that is there; fields left out are skipped."""
    line = int(node.start_mark.line)
    for place in places:
        if isinstance(node, yaml.SequenceNode) and isinstance(place, int):
            node = node.value[place]
            line = int(node.start_mark.line)
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == place]
            for key, value in found:
                line, node = int(key.start_mark.line), value
    return line
