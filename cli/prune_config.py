"""What a pruning is asked to be: one strict model, whether it was typed as options or as a recipe.

Paths are relative to the working directory. Every field is checked before anything is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..data.facts.conflicts import Condition
from ..models.errors import MnemoscopeError
from ..models.types import HeadId, parse_heads, unique_heads

RECIPE_SCHEMA = "prune-heads/1"

Mode = Literal["zero", "mean", "scale", "slice"]
MODES: tuple[Mode, ...] = get_args(Mode)
KINDS = ("memory", "context", "other")
CONFLICTS: tuple[Condition, ...] = ("substitution", "coherent", "qa")
METRICS = (
    "ppl",
    "closed",
    "agree",
    *(f"{kind}_rate" for kind in KINDS),
    *(f"{kind}_rate.{form}" for kind in KINDS for form in CONFLICTS),
)
"""What a gate can ask for. `memory_rate` is `memory_rate.substitution`."""

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_Index = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """A frozen record that takes no unknown field and converts no type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class Source(Strict):
    """The checkpoint. `sha256` is that of its weights (`weights_digest`), or `auto`: not asked.

    `tokenizer: false` accepts a folder without one.
    """

    path: str = Field(min_length=1)
    sha256: str = Field(default="auto", pattern=r"^(auto|[0-9a-f]{64})$")
    tokenizer: bool = True

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("sha256", mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            raise ValueError("YAML reads this as a number: put the digits in quotes.")
        return given

    @property
    def name(self) -> str:
        """The last part of the path, as units of a batch are named."""
        return Path(self.path).name.removesuffix(".gguf")


class RandomHeads(Strict):
    """`n` heads at random: matched by layer to the chosen ones, or any where none are chosen."""

    n: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class Heads(Strict):
    """Which heads: a list by hand, or a head-set file narrowed by role, `where` and `top`."""

    list_: tuple[tuple[_Index, _Index], ...] | None = Field(default=None, alias="list")
    from_: str | None = Field(default=None, alias="from")
    role: str | None = None
    where: str | None = None
    top: int | str | None = None
    random: RandomHeads | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"list": given} if isinstance(given, list | str) else given

    @field_validator("list_", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        try:
            if isinstance(given, str):
                return tuple((head.layer, head.head) for head in parse_heads(given))
            return tuple(_pair(entry) for entry in given) if isinstance(given, list) else given
        except MnemoscopeError as error:
            raise ValueError(str(error)) from error

    @field_validator("list_")
    @classmethod
    def _each_once(cls, pairs: tuple[tuple[int, int], ...] | None) -> Any:
        if pairs is not None and not pairs:
            raise ValueError("no heads given: write for example [[12, 5], [14, 3]].")
        try:
            unique_heads(HeadId(*pair) for pair in pairs or ())
        except MnemoscopeError as error:
            raise ValueError(str(error)) from error
        return pairs

    @field_validator("top", mode="before")
    @classmethod
    def _count_or_share(cls, given: Any) -> Any:
        text = str(given)
        if given is None or (type(given) in (int, str) and text.isdecimal() and int(text) > 0):
            return given if given is None else int(text)
        share = _PERCENT.fullmatch(given) if isinstance(given, str) else None
        if share is None or not 0 < float(share[1]) <= 100:
            raise ValueError(f"{given!r} is neither a number of heads, as in 15, nor a share: 5%.")
        return given

    @model_validator(mode="after")
    def _one_origin(self) -> Heads:
        if self.list_ is not None and self.from_ is not None:
            raise ValueError("give either a list of heads or a head-set file, not both.")
        if self.list_ is None and self.from_ is None and self.random is None:
            raise ValueError("name heads: a list, a head-set file (from) or random ones.")
        narrowed = [name for name in ("role", "where", "top") if getattr(self, name) is not None]
        if narrowed and self.from_ is None:
            raise ValueError(
                f"{', '.join(narrowed)} choose from a head-set file: give one (from, --headset)."
            )
        return self

    def count_of(self, n_all: int) -> int | None:
        """`top` as a number of heads of a model that has `n_all`."""
        if self.top is None or isinstance(self.top, int):
            return self.top
        return max(1, round(float(self.top.removesuffix("%")) / 100 * n_all))


class NamedHeads(Heads):
    """One head set of a batch; its name becomes the folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")


class Method(Strict):
    """How the heads leave: set to zero, replaced by their mean, multiplied, or cut out.

    `projection` names the output projection where the architecture's table is ambiguous;
    `all_shared` edits a matrix that several layers use.
    """

    mode: Mode = "zero"
    factor: float | None = None
    projection: str | None = None
    all_shared: bool = False

    @model_validator(mode="after")
    def _factor_fits(self) -> Method:
        if (self.factor is not None) != (self.mode == "scale"):
            raise ValueError("mode scale takes a factor, as in 0.5, 2 or -1, and no other does.")
        if self.factor in (0, 1):
            raise ValueError("factor 0 is mode zero and factor 1 changes nothing: choose another.")
        if self.mode == "slice" and (self.projection or self.all_shared):
            raise ValueError("mode slice knows no projection and no all_shared.")
        return self


class Gate(Strict):
    """A condition that must hold before anything is written.

    Increases and drops are after minus before: shares of answers in points (0.05 is 5 of 100),
    `ppl` as a share of what it was. `min` is the value afterwards.
    """

    metric: str
    max_increase: float | None = None
    min_increase: float | None = None
    max_drop: float | None = None
    min: float | None = None

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"{name!r} is no metric: use one of {', '.join(METRICS)}.")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        bounds = ("max_increase", "min_increase", "max_drop", "min")
        if sum(getattr(self, name) is not None for name in bounds) != 1:
            raise ValueError(f"a gate has exactly one of {', '.join(bounds)}.")
        return self


class Controls(Strict):
    """Draws of random heads of the same layers, to compare with."""

    matched_random: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)


class Evaluate(Strict):
    """Ask before and after: a relation, and how many facts of its test part."""

    relation: str = "capital"
    subjects: int = Field(default=60, ge=2)


class Output(Strict):
    """Where the checkpoint goes. Shard layout is kept, a card section and a delta always written.

    `copy` forbids links to shards that do not change.
    """

    path: str = Field(min_length=1)
    copy_untouched: bool = Field(default=False, alias="copy")
    shard_size: Literal["keep"] = "keep"
    card: Literal[True] = True
    delta: Literal[True] = True


class Shared(Strict):
    """The fields that one pruning and a batch have in common."""

    schema_: Literal["prune-heads/1"] = Field(alias="schema")
    method: Method = Method()
    gate: tuple[Gate, ...] = Field(default=(), strict=False)
    controls: Controls = Controls()
    evaluate: Evaluate | None = None
    lm_eval: tuple[str, ...] = Field(default=(), strict=False)
    output: Output

    @model_validator(mode="before")
    @classmethod
    def _gates_need_answers(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("gate") and given.get("evaluate") is None:
            return {**given, "evaluate": {}}
        return given

    def document(self) -> dict[str, Any]:
        """The whole configuration as plain values, in the order in which a recipe is read."""
        record = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        first = ("schema", "source", "checkpoints", "heads", "head_sets")
        return {name: record[name] for name in (*first, *record) if name in record}


class PruneConfig(Shared):
    """One checkpoint, one choice of heads, one folder to write."""

    source: Source
    heads: Heads


class PruneBatch(Shared):
    """Every checkpoint with every head set; `output.path` holds a folder for each."""

    checkpoints: tuple[Source, ...] = Field(min_length=1, strict=False)
    head_sets: tuple[NamedHeads, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _names_differ(self) -> PruneBatch:
        for what, entries in (("checkpoints", self.checkpoints), ("head_sets", self.head_sets)):
            names = [entry.name for entry in entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} named {', '.join(twice)} twice: their folders collide.")
            if {"", ".."} & set(names):
                raise ValueError(
                    f"{what}: the last part of each path names a folder, so no . or .."
                )
        return self

    def units(self) -> dict[str, PruneConfig]:
        """`checkpoint/head set` to the pruning of that unit, all of one checkpoint together."""
        shared = self.document()
        del shared["checkpoints"], shared["head_sets"]
        units = {}
        for source in self.checkpoints:
            for heads in self.head_sets:
                name = f"{source.name}/{heads.name}"
                chosen = heads.model_dump(
                    mode="json", by_alias=True, exclude_none=True, exclude={"name"}
                )
                output = {**shared["output"], "path": str(Path(self.output.path) / name)}
                record = {**shared, "source": source.model_dump(mode="json"), "heads": chosen}
                units[name] = PruneConfig.model_validate({**record, "output": output})
        return units


def _pair(entry: Any) -> Any:
    """`[12, 5]` or "12:5"; YAML reads a bare 12:5 as a number of base 60, which is refused."""
    if isinstance(entry, str):
        head = HeadId.parse(entry)
        return (head.layer, head.head)
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError(f'{entry!r} is no head: write [12, 5], or "12:5" in quotes.')
    return tuple(entry)
