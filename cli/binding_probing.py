"""The work behind `binding probe`: role consistency with its controls, in one resumable run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..probes.elicitation import Progress
from ..probes.role_consistency import role_consistency
from ..probes.role_prompts import Entity
from ..probes.role_report import RoleConfig, RoleConsistency
from ..results.run import Run
from .binding_pairs import Asked, PairsConfig, asked_pairs
from .binding_probe_report import CLAIM, captions_of, figures_of, layer_rows, notes_of, tables_of
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "binding-roles"


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that decides the numbers of a `binding probe` run, and nothing else.

    `entity` b is named by reverse questions and asked for by forward ones, a the mirror.
    """

    pairs: PairsConfig
    entity: str = "b"
    random_control: bool = True
    in_context: bool = True
    draws: int = 1000
    permutations: int = 200

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word that is not offered."""
        if self.entity not in get_args(Entity):
            raise MnemoscopeError(f"--entity is {self.entity!r}: use a or b.")

    @property
    def roles(self) -> RoleConfig:
        """The same for the probe."""
        entity: Entity = "a" if self.entity == "a" else "b"
        return RoleConfig(
            entity=entity,
            known_only=self.pairs.known,
            least_pairs=self.pairs.needed,
            most_pairs=self.pairs.n or None,
            random_control=self.random_control,
            in_context=self.in_context,
            draws=self.draws,
            permutations=self.permutations,
            seed=self.pairs.seed,
        )


def probe_binding(
    config: ProbeConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Filter, read the states, compare the roles, save; goes on with an interrupted run."""
    asked = asked_pairs(config.pairs)
    key = run_key(config, asked)

    def measure(run: Run, phase: Phases) -> Findings:
        relation = asked.relation
        say(
            f"{len(relation.pairs)} pairs of {relation.name}, {len(relation.forward)} forward and "
            f"{len(relation.reverse)} reverse wordings; first, which of them the model knows"
        )
        found = role_consistency(
            asked.model, relation, config.roles, run=run, progress=phase("thousandths of a part")
        )
        return findings_of(asked, found)

    return binding_run(KIND, key, root, measure, force=force, say=say, tell=tell)


def run_key(config: ProbeConfig, asked: Asked) -> dict[str, Any]:
    """What names the run of a configuration."""
    return {**asdict(config), **asked.identity}


def findings_of(asked: Asked, found: RoleConsistency) -> Findings:
    """The probe's result as the run keeps it."""
    return Findings(
        title=f"Binding of {found.relation} in {asked.model.name}",
        claim=CLAIM,
        summary=summary_of(asked.model, asked, found),
        table=found.table(),
        provenance=found.provenance,
        tables=tables_of(found),
        figures=figures_of(found),
        arrays=found.arrays(),
        notes=notes_of(found),
        captions=captions_of(found),
    )


def summary_of(model: HookedModel, asked: Asked, found: RoleConsistency) -> dict[str, Any]:
    """The probe's summary, with all that fell away and the lines of the table by layer."""
    dropped = {**asked.dropped, **found.dropped}
    return {
        "model": model.name,
        **found.summary(),
        "asked": len(asked.relation.pairs) + sum(asked.dropped.values()),
        "dropped": dropped,
        "layers": layer_rows(found),
    }
