"""The options of `prune run` as the configuration that a recipe would have given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from ..models.types import parse_heads
from .prune_config import PruneConfig
from .prune_recipe import config_of

BESIDE_A_RECIPE = (
    *("recipe", "runs", "shard", "retry"),
    *("dry_run", "print_config", "force", "json"),
)
"""Options that say how to run, not what: all others are fields of the recipe."""

_GATE = re.compile(r"([a-z_]+?(?:\.[a-z]+)?)(?:_(increase|drop))?\s*(<=|>=)\s*([-+.\de]+)")
_BOUNDS = {
    ("increase", "<="): "max_increase",
    ("increase", ">="): "min_increase",
    ("drop", "<="): "max_drop",
    (None, ">="): "min",
}


def config_from_options(given: Mapping[str, Any]) -> PruneConfig:
    """The configuration of the options, by their parameter names.

    Raises `BadParameter` (exit 2) for options that do not go together, `MnemoscopeError` for
    values that cannot be.
    """
    if not given["checkpoint"] or given["out"] is None:
        raise typer.BadParameter("give a checkpoint and --out DIR, or --recipe FILE.")
    gates = [_gate(text) for text in given["gate"] or ()]
    record: dict[str, Any] = {
        "source": {"path": given["checkpoint"], "tokenizer": not given["no_tokenizer"]},
        "heads": _heads(given),
        "method": _method(given),
        "gate": gates,
        "controls": {"matched_random": given["controls"], "seed": given["seed"]},
        "output": {"path": str(given["out"]), "copy": given["copy"]},
        "lm_eval": [task for task in given["lm_eval"].split(",") if task],
    }
    if given["evaluate"] or gates:
        record["evaluate"] = {"relation": given["relation"], "subjects": given["subjects"]}
    return config_of(record)


def _heads(given: Mapping[str, Any]) -> dict[str, Any]:
    """The `heads` field; exactly one of a list, a head set and random heads decides."""
    headset, text, n = given["headset"], given["heads"], given["random"]
    if (headset is not None and text) or (headset is None and not text and n is None):
        raise typer.BadParameter(
            "give either --headset FILE or --heads 12:5,14:3 (or --random 5 alone)."
        )
    record = {name: given[name] for name in ("role", "where", "top") if given[name] is not None}
    if text:
        record["list"] = [[head.layer, head.head] for head in parse_heads(text)]
    if headset is not None:
        record["from"] = str(headset)
    if n is not None:
        record["random"] = {"n": n, "seed": given["seed"]}
    return record


def _method(given: Mapping[str, Any]) -> dict[str, Any]:
    """The `method` field; a factor without a mode means scale, and 0 is plain pruning."""
    mode, factor = given["mode"], given["factor"]
    if mode is None:
        mode = "zero" if not factor else "scale"
    if mode == "zero" and factor == 0:
        factor = None
    record = {"mode": mode, "factor": factor, "projection": given["projection"]}
    return {**record, "all_shared": given["all_shared"]}


def _gate(text: str) -> dict[str, Any]:
    """`ppl_increase <= 0.05` as `{metric: ppl, max_increase: 0.05}`."""
    match = _GATE.fullmatch(text.strip())
    bound = _BOUNDS.get((match[2], match[3])) if match else None
    try:
        if match and bound:
            return {"metric": match[1], bound: float(match[4])}
    except ValueError:
        pass
    raise typer.BadParameter(
        f'--gate {text!r} cannot be read: write "ppl_increase <= 0.05", "closed_drop <= 0.05", '
        '"context_rate_increase >= 0.1" or "agree >= 0.9".'
    )


def refuse_beside_recipe(names: Sequence[str]) -> None:
    """Raise `BadParameter` for options that a recipe would contradict."""
    extra = [name for name in names if name not in BESIDE_A_RECIPE]
    if extra:
        flags = ", ".join("--" + name.replace("_", "-") for name in extra)
        raise typer.BadParameter(
            f"{flags} would contradict the recipe: write it there (--print-config prints a whole "
            "recipe), or leave --recipe out."
        )
