"""What a measurement of role consistency found: curves, contrasts, read-out, and where from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import polars

from ..data.facts.pairs import Way
from ..results.provenance import JSON, Provenance
from .embedding_tie import EmbeddingTie
from .role_contrast import Contrast
from .role_curves import Curve, curve_table
from .role_maps import BindingGap, Reading
from .role_prompts import Entity
from .vocabulary_readout import VocabularyReadout

_LINES = tuple(field.name for field in fields(Curve) if field.name != "stratum")[2:]


@dataclass(frozen=True)
class RoleConfig:
    """What is measured and how hard.

    `entity` is the one whose roles are compared: "b" is named by reverse prompts and asked for by
    forward ones, "a" the mirror. `known_only` keeps the pairs that the model knows, at least
    `least_pairs` of them; the first `most_pairs` are taken. `random_control` and `in_context` are
    two more sets of states each; `rows` prompts run at once.
    """

    entity: Entity = "b"
    known_only: bool = True
    least_pairs: int = 64
    most_pairs: int | None = None
    random_control: bool = True
    in_context: bool = True
    draws: int = 1000
    permutations: int = 200
    seed: int = 0
    rows: int = 32


@dataclass(frozen=True)
class Behaviour:
    """What the model says, beside what it holds: one direction, with or without the fact in the
    prompt. Log-probability (nats) of the whole right name, and the share of prompts whose likeliest
    next token starts it, each with an interval over pairs; `chance_hit` reads another pair's name
    from the same prompts."""

    way: Way
    in_context: bool
    log_prob: float
    log_prob_low: float
    log_prob_high: float
    hit: float
    hit_low: float
    hit_high: float
    chance_hit: float


@dataclass(frozen=True, eq=False)
class RoleConsistency:
    """Role consistency of one relation's entities in one model, with its controls.

    `curves` hold every quantity between two roles: "S-P" (subject, predicted object), "S-P_mean",
    "S-O" (perceived object) and "P-P" (predicted, other wordings), over all pairs and by stratum.
    The layer axis has `n_layers + 1` entries, the first the embeddings. `binding_gap` and `reading`
    are of S-P. `skipped` says which controls could not be made, and why.
    """

    relation: str
    config: RoleConfig
    n_pairs: int
    dropped: Mapping[str, int]
    told: Mapping[str, int]
    """How many pairs were told, or are known, in which directions."""
    told_by: str
    """"training" where the relation says it, else "knowledge"."""
    same_tokens: float
    """Share of the prompts that name the entity in the very tokens in which it is asked for; less
    than 1 where a wording opens with the name, and then part of a gap is spelling."""
    curves: tuple[Curve, ...]
    contrasts: tuple[Contrast, ...]
    behaviour: tuple[Behaviour, ...]
    readout: VocabularyReadout
    tie: EmbeddingTie
    binding_gap: BindingGap
    reading: Reading
    readings: tuple[Reading, ...]
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]
    """Wall time of each part; 0 for what a resumed run had done."""
    provenance: Provenance

    def curve(self, quantity: str, roles: str = "S-P", stratum: str = "all") -> Curve:
        """One curve. Raises KeyError where it was not measured."""
        for one in self.curves:
            if (one.quantity, one.roles, one.stratum) == (quantity, roles, stratum):
                return one
        raise KeyError(f"no curve of {quantity!r} for {roles!r}, {stratum!r}")

    def table(self) -> polars.DataFrame:
        """A row a curve and layer, in the columns that `results.role_figures` draws."""
        return curve_table(self.curves)

    def contrast_table(self) -> polars.DataFrame:
        """A row a contrast and layer: both means, difference with interval, family-wise p; empty
        where there is none."""
        if not self.contrasts:
            return polars.DataFrame()
        return polars.concat([_contrast_rows(one) for one in self.contrasts])

    def arrays(self) -> dict[str, np.ndarray]:
        """Every curve's lines as `quantity/roles/stratum/line` `[layer]`, and the read-out's ranks
        as `rank/way` and `null_rank/way` `[layer, wording, pair]`."""
        lines = {
            f"{one.quantity}/{one.roles}/{one.stratum}/{line}": getattr(one, line)
            for one in self.curves
            for line in _LINES
        }
        ranks = {f"rank/{way}": array for way, array in self.readout.ranks.items()}
        null = {f"null_rank/{way}": array for way, array in self.readout.null.items()}
        return {**lines, **ranks, **null}

    def summary(self) -> dict[str, JSON]:
        """The findings in a JSON object: counts, gap, reading, tie, behaviour, best contrasts."""
        return {
            "relation": self.relation,
            "n_pairs": self.n_pairs,
            "dropped": dict(self.dropped),
            "told": dict(self.told),
            "told_by": self.told_by,
            "same_tokens": self.same_tokens,
            "binding_gap": plain(self.binding_gap),
            "reading": plain(self.reading),
            "tie": {"tied": self.tie.tied, "reading": self.tie.reading},
            "peaks": {name: self._peak(name) for name in ("score", "mrr", "mapped_mrr", "cka")},
            "behaviour": [plain(one) for one in self.behaviour],
            "contrasts": [_best(one) for one in self.contrasts],
            "skipped": dict(self.skipped),
            "seconds": dict(self.seconds),
        }

    def _peak(self, quantity: str) -> dict[str, JSON]:
        one = self.curve(quantity)
        layer = int(np.nanargmax(one.value))
        return {"layer": layer, **{line: _number(getattr(one, line)[layer]) for line in _LINES}}


def plain(record: object) -> dict[str, JSON]:
    """A dataclass of words and numbers as JSON."""
    return {field.name: _number(getattr(record, field.name)) for field in fields(record)}  # type: ignore[arg-type]


def _best(one: Contrast) -> dict[str, JSON]:
    names = ("first_mean", "second_mean", "difference", "low", "high", "p")
    words = ("quantity", "roles", "first", "second", "n_first", "n_second")
    return {
        **{name: getattr(one, name) for name in words},
        "layer": one.best,
        **{name: _number(getattr(one, name)[one.best]) for name in names},
    }


def _contrast_rows(one: Contrast) -> polars.DataFrame:
    lines = [field.name for field in fields(one) if field.name not in _WORDS]
    frame = polars.DataFrame(
        {"layer": range(len(one.p)), **{name: getattr(one, name) for name in lines}}
    )
    return frame.with_columns(**{name: polars.lit(getattr(one, name)) for name in _WORDS}).select(
        *_WORDS, "layer", *lines
    )


_WORDS = ("quantity", "roles", "first", "second", "n_first", "n_second")


def _number(value: object) -> JSON:
    """A number that JSON holds: none where it is not finite."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)  # type: ignore[arg-type]
    return number if np.isfinite(number) else None
