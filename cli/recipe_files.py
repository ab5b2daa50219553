"""Recipes: YAML files that are read strictly, with every mistake named by line and field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from ..models.errors import MnemoscopeError

Record = TypeVar("Record", bound=BaseModel)


class RecipeError(MnemoscopeError):
    """A recipe cannot be read; the message names the file, the line and the field."""


def read_recipe_file(
    path: Path, kind_of: Callable[[Mapping[str, Any]], type[Record]], *, schema: str, hint: str
) -> Record:
    """The file's mapping as the record that `kind_of` chooses for it.

    Raises `RecipeError` naming every mistake with its line, and `hint`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path} ({error}): check the path.") from error
    node, record = _parsed(text, path, schema)
    try:
        return kind_of(record).model_validate(record)
    except ValidationError as error:
        raise RecipeError("\n".join((*mistakes(error, node, path), hint))) from error


def mistakes(error: ValidationError, node: Any = None, path: Path | None = None) -> Iterator[str]:
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


def _parsed(text: str, path: Path, schema: str) -> tuple[Any, dict[str, Any]]:
    """The node tree (it knows the lines) and the plain values of one mapping."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _wrong(path, event.start_mark.line, "aliases (*name) are not read: write out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(path, 0, f"a recipe is a mapping that starts with schema: {schema}")
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
