"""Tables, figures and sentences of a `binding probe` run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..probes.role_contrast import Contrast
from ..probes.role_report import RoleConsistency, plain
from ..probes.role_swaps import strided_layers
from ..results.figures import dose_figure
from ..results.role_figures import role_curves_alt, role_curves_figure

CLAIM = (
    "Where an entity that is read (S) and the same entity about to be said (P) are one code, a "
    "fact learned one way can be found the other way too. Curves stand between a ceiling (same "
    "role, other wordings) and a floor (entities permuted). Likeness is no cause: `mnemoscope "
    "binding swap` tests whether the model uses it."
)
WORDS: Mapping[str, str] = {
    "consistent": "most of what can be found is found in the raw states",
    "rotated": "it takes a linear map to find the entity",
    "absent": "neither the raw states nor a linear map of them find the entity",
}
_FIGURES = {
    "mrr": "mean reciprocal rank of the entity among all",
    "mapped_mrr": "the same through a linear map of other entities",
    "score": "centred cosine of the same entity beyond others, in deviations",
    "cka": "de-biased linear CKA",
    "role_accuracy": "accuracy of telling the roles apart",
}


def layer_rows(found: RoleConsistency) -> list[dict[str, Any]]:
    """A few layers, the best raw and mapped ones among them."""
    mrr, mapped, cka = (found.curve(name) for name in ("mrr", "mapped_mrr", "cka"))
    best = {int(np.nanargmax(one.value)) for one in (mrr, mapped)}
    layers = sorted({*strided_layers(len(mrr.value)), *best, found.reading.layer})
    ranks = {way: np.median(values, axis=(1, 2)) for way, values in found.readout.ranks.items()}
    return [
        {
            "layer": layer,
            **{name: float(getattr(mrr, line)[layer]) for name, line in _LINES.items()},
            "mapped": float(mapped.value[layer]),
            "mapped_floor": float(mapped.floor[layer]),
            "cka": float(cka.value[layer]),
            **{f"{way}_rank": round(float(values[layer])) for way, values in ranks.items()},
        }
        for layer in layers
    ]


_LINES = {
    "mrr": "value",
    "mrr_low": "low",
    "mrr_high": "high",
    **{name: name for name in ("ceiling", "floor", "null")},
}


def notes_of(found: RoleConsistency) -> list[str]:
    """The findings in sentences."""
    gap, reading = found.binding_gap, found.reading
    said = [
        f"Binding gap {gap.gap:+.2f} ({gap.low:+.2f} to {gap.high:+.2f}) at layer {gap.layer}: "
        f"what a linear map finds beyond the raw states (p = {gap.p:.3g} of its MRR against "
        "shuffled pairs).",
        f"Reading at layer {reading.layer}: {reading.word}; {WORDS[reading.word]} (MRR "
        f"{reading.mrr:.2f}, {reading.mrr_low:.2f} to {reading.mrr_high:.2f}; p = {reading.p:.3g} "
        "over all layers).",
        found.tie.reading,
    ]
    if found.same_tokens < 1:
        said.append(
            f"{found.same_tokens:.0%} of the prompts name the entity in the very tokens in which "
            "it is asked for; in the others part of a gap is spelling."
        )
    said += [_contrast(one) for one in found.contrasts]
    said += [f"Not made: {what} ({why})" for what, why in found.skipped.items()]
    return said


def captions_of(found: RoleConsistency) -> list[str]:
    """The curves in words."""
    return [role_curves_alt(main_curves(found), name) for name in _FIGURES]


def main_curves(found: RoleConsistency) -> polars.DataFrame:
    """The rows of S against P, all entities."""
    return found.table().filter((polars.col("roles") == "S-P") & (polars.col("stratum") == "all"))


def tables_of(found: RoleConsistency) -> dict[str, polars.DataFrame]:
    """The tables of the report, by caption."""
    tables = {
        "By layer: subject role against predicted role": polars.DataFrame(layer_rows(found)),
        "What the model says": polars.DataFrame([plain(one) for one in found.behaviour]),
        "Rank of the answer's first token by layer": found.readout.table(),
        "Pairs dropped": polars.DataFrame(
            {"reason": list(found.dropped), "pairs": list(found.dropped.values())}
        ),
    }
    if found.contrasts:
        tables["Pairs told or known both ways against one way"] = found.contrast_table()
    return {**tables, "Every curve": found.table()}


def figures_of(found: RoleConsistency) -> dict[str, go.Figure]:
    """Curves of S against P, retrieval of groups of pairs, and where the answers can be read."""
    main, table = main_curves(found), found.table()
    figures = {
        name: role_curves_figure(main, name, title=f"{name}: S against P", axis_label=label)
        for name, label in _FIGURES.items()
    }
    groups = table.filter(
        (polars.col("roles") == "S-P") & polars.col("stratum").str.contains(r"^(told|known) ")
    )
    if not groups.is_empty():
        figures["told"] = role_curves_figure(
            groups, "mrr", title="S against P, by how pairs were told", axis_label=_FIGURES["mrr"]
        )
    return {**figures, "readout": _readout(found)}


def _readout(found: RoleConsistency) -> go.Figure:
    rows = found.readout.table().select("way", "layer", "log10_rank", "low", "high", "null")
    other = rows.select(
        polars.col("way") + ", another pair's", "layer", log10_rank="null", low="null", high="null"
    )
    return dose_figure(
        polars.concat([rows.drop("null"), other]).rename(
            {"way": "series", "layer": "dose", "log10_rank": "value"}
        ),
        title="Rank of the answer's first token along the layers",
        dose_label="layer",
        axis_label="log10 of the rank (0: the likeliest token)",
    )


def _contrast(one: Contrast) -> str:
    at = one.best
    return (
        f"{one.quantity} of {one.roles}, {one.first} ({one.n_first}) against {one.second} "
        f"({one.n_second}), layer {at}: {one.first_mean[at]:.2f} and {one.second_mean[at]:.2f}, "
        f"difference {one.difference[at]:+.2f} ({one.low[at]:+.2f} to {one.high[at]:+.2f}), p = "
        f"{one.p[at]:.3g} over all layers."
    )
