"""How results of the `binding` commands are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from .output import print_json, say, say_where, show_table

if TYPE_CHECKING:  # torch is imported inside commands only
    from .binding_cost import Cost
    from .binding_runs import BindingResult
    from .binding_toys import ToyCost


def tell_pairs(summary: Mapping[str, Any]) -> None:
    """What was kept of the pairs, what fell away, and how the rest were told."""
    fell = ", ".join(f"{count} {why}" for why, count in summary["dropped"].items()) or "none"
    say(f"pairs    {summary['n_pairs']} of {summary['relation']}; dropped: {fell}")
    if any(summary["told"].values()):
        source = "known" if summary.get("told_by") == "knowledge" else "told"
        told = ", ".join(f"{n} {way}" for way, n in summary["told"].items() if n)
        say(f"{source:8} {told}")


def tell_end(result: BindingResult) -> None:
    """The findings in words, and where everything is."""
    for line in result.notes:
        say(line)
    say_where(result.folder)
    say(f"figures  {', '.join(page.name for page in result.figures)}")


def tell_cost(cost: Cost, json: bool) -> None:
    """An estimate, part by part."""
    if json:
        print_json("binding-cost", {**asdict(cost), "total": cost.total})
        return
    table(
        f"{cost.model}: {cost.pairs} pairs, {cost.prompts} prompts",
        {"part": "part", "seconds": "seconds"},
        [{"part": name, "seconds": seconds} for name, seconds in cost.seconds.items()],
    )
    say(
        f"about {cost.total:.0f} s on this machine as busy as it is now, statistics not counted; "
        f"{cost.states_bytes / 2**20:.0f} MB of states. Nothing was written."
    )


def tell_toys(costs: Sequence[ToyCost], json: bool) -> None:
    """What would be trained."""
    rows = [asdict(cost) for cost in costs]
    if json:
        print_json("toy-cost", {"arms": rows})
        return
    columns = {"arm": "arm", "steps": "steps", "seeds": "seeds", "seconds": "seconds of one core"}
    table("what will be trained", columns, rows)
    say("seconds: what as many steps took in our own runs; -: not recorded. Nothing was trained.")


def table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]]) -> None:
    """Some fields of the rows under short names; a dash where there is no value."""
    cells = [
        ["-" if (value := row.get(name)) is None else value for name in columns] for row in rows
    ]
    show_table(title, tuple(columns.values()), cells)


def with_interval(row: Mapping[str, Any], name: str, cell: str = "") -> dict[str, Any]:
    """The row with `name` and its ends, in whatever way they are named, in one cell of text."""
    first = name.partition(" ")[0]
    for low, high in (
        (f"{name}_low", f"{name}_high"),
        (f"{name} low", f"{name} high"),
        (f"{first} low", f"{first} high"),
        ("low", "high"),
    ):
        if low in row:
            return {**row, cell or f"{name}_cell": span(row[name], row[low], row[high])}
    return {**row, cell or f"{name}_cell": row.get(name)}


def said_cells(one: Mapping[str, Any]) -> dict[str, Any]:
    """A row of behaviour in text."""
    where = ", fact in the prompt" if one["in_context"] else ""
    cells = {
        name: span(one[name], one[f"{name}_low"], one[f"{name}_high"])
        for name in ("log_prob", "hit")
    }
    return {"asked": f"{one['way']}{where}", **cells, "chance_hit": one["chance_hit"]}


def swap_cells(one: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an arm in text."""
    return {
        **one,
        "where": ", ".join(f"{a} > {b}" for a, b in one["cells"]),
        "gain_cell": span(one["gain"], one["gain_low"], one["gain_high"]),
        "beyond_cell": span(one["beyond"], one["low"], one["high"]),
    }


def span(mean: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.41 [0.30, 0.52]`; a dash where there is none."""
    if mean is None or not isfinite(mean):
        return "-"
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
