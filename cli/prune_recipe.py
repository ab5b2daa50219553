"""Recipes of `prune run`: a pruning or a batch of them as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from .prune_config import RECIPE_SCHEMA, PruneBatch, PruneConfig
from .recipe_files import RecipeError, mistakes, read_recipe_file

_NEXT = "Next: see a whole recipe with prune run MODEL --heads 12:5 --out DIR --print-config"


def read_recipe(path: Path) -> PruneConfig | PruneBatch:
    """Read a recipe. A file with `checkpoints` or `head_sets` is a batch.

    Raises `RecipeError` naming every mistake with its line.
    """
    return read_recipe_file(path, _kind_of, schema=RECIPE_SCHEMA, hint=_NEXT)


def config_of(record: Mapping[str, Any]) -> PruneConfig:
    """The configuration of command-line options, laid out as a recipe without its schema.

    Raises `RecipeError` naming the fields that are wrong.
    """
    try:
        return PruneConfig.model_validate({"schema": RECIPE_SCHEMA, **record})
    except ValidationError as error:
        raise RecipeError("\n".join(mistakes(error))) from error


def recipe_text(config: PruneConfig | PruneBatch) -> str:
    """The resolved recipe as YAML; reading it gives the same configuration."""
    return str(yaml.safe_dump(config.document(), sort_keys=False, allow_unicode=True))


def _kind_of(record: Mapping[str, Any]) -> type[PruneConfig | PruneBatch]:
    return PruneBatch if {"checkpoints", "head_sets"} & set(record) else PruneConfig
