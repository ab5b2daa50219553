"""The work behind `binding chain`: sums that lead to a hidden number, in context or in weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars

from ..models.errors import MnemoscopeError
from ..models.load import load_model
from ..organisms.chaining_models import CHAINING_ARMS
from ..organisms.chaining_training import ASKED, ChainingResult, ChainingTraining, train_chaining
from ..organisms.forward_chaining import ChainingSettings, chaining_settings
from ..probes.elicitation import Progress
from ..probes.forward_chaining import NEW_TOKENS, ForwardChaining, forward_chaining
from ..results.figures import dose_figure
from ..results.provenance import provenance_beyond_a_model, sha256_of_json
from ..results.run import Run
from .binding_runs import BindingResult, Findings, Phases, binding_run

CONTEXT_KIND, TOY_KIND = "chaining-context", "chaining-toy"
_IN_CONTEXT = (
    "All facts of a problem stand in the prompt. Beside the model stand exact solvers: one of "
    "everything that is told, others of what so many look-ups by name retrieve."
)
_IN_WEIGHTS = (
    "The same facts are told to the weights. Numbers of hidden entities were never told and follow "
    "from the relations; relations that were held out follow from the attributes."
)


@dataclass(frozen=True)
class ChainConfig:
    """Everything that decides the numbers of `binding chain MODEL`, and nothing else."""

    model: str
    preset: str = "context"
    problems: int = 20
    branching: int = 0
    reason: bool = False
    new_tokens: int = NEW_TOKENS
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    @property
    def settings(self) -> ChainingSettings:
        """The world. Raises `MnemoscopeError` for a name or sizes that do not fit."""
        named = chaining_settings(self.preset)
        branching = self.branching or named.branching
        return replace(named, problems=self.problems, branching=branching, seed=self.seed)


@dataclass(frozen=True)
class ChainToyConfig:
    """Everything that decides the numbers of `binding chain --toy`, and nothing else."""

    arms: tuple[str, ...] = ("surface", "tied")
    preset: str = "small"
    seed: int = 0
    steps: int = ChainingTraining.steps
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for an arm that this task has not."""
        wrong = [arm for arm in self.arms if arm not in CHAINING_ARMS]
        if wrong or not self.arms:
            raise MnemoscopeError(
                f"--arms is {','.join(self.arms)!r}: use {', '.join(CHAINING_ARMS)}."
            )


def chain_in_context(
    config: ChainConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Ask a model for every hidden number, and save."""
    settings = config.settings
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    key = {**asdict(config), "weights_sha256": model.weights_sha256}

    def measure(run: Run, phase: Phases) -> Findings:
        say(f"{settings.problems} problems of branching {settings.branching}")
        found = forward_chaining(
            *(model, settings),
            reason=config.reason,
            new_tokens=config.new_tokens,
            seed=config.seed,
            progress=phase("questions"),
        )
        return _in_context(model.name, found)

    return binding_run(CONTEXT_KIND, key, root, measure, force=force, say=say, tell=tell)


def chain_in_weights(
    config: ChainToyConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Train every arm on the task, and save; an interrupted run goes on."""
    settings = replace(chaining_settings(config.preset), seed=config.seed)

    def measure(run: Run, phase: Phases) -> Findings:
        results = []
        for done, arm in enumerate(config.arms):
            run.check_cancelled()
            results.append(
                train_chaining(
                    run.folder / "toys" / arm,
                    arm,
                    settings,
                    ChainingTraining(steps=config.steps),
                    device=config.device,
                    progress=phase(f"{arm} ({done + 1} of {len(config.arms)})"),
                )
            )
        return _in_weights(config, settings, results)

    return binding_run(TOY_KIND, asdict(config), root, measure, force=force, say=say, tell=tell)


def _in_context(name: str, found: ForwardChaining) -> Findings:
    table = found.table()
    rows = table.to_dicts()
    answers = [
        {
            "problem": question.problem,
            "asked": question.name,
            "level": question.level,
            "hop": question.hop,
            "right": question.answer,
            "said": said.number,
            "text": text,
        }
        for question, said, text in zip(
            found.questions, found.said["model"], found.texts, strict=True
        )
    ]
    return Findings(
        title=f"Forward chaining in context by {name}",
        claim=_IN_CONTEXT,
        summary={
            "model": name,
            "questions": len(found.questions),
            "tokens": found.tokens,
            "arms": [arm for arm in found.said if arm != "model"],
            "strata": _strata(rows),
        },
        table=table,
        provenance=found.provenance,
        tables={"Right numbers by arm": table, "Answers": polars.DataFrame(answers)},
        figures={"right": _bars(table.rename({"arm": "series", "stratum": "dose"}), "right")},
        notes=[
            _verdict(row) for row in rows if (row["arm"], row["stratum"]) == ("model", "hidden")
        ],
    )


def _strata(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The model's rows, each with what the other arms get right of the same questions."""
    return [
        row | {one["arm"]: one["right"] for one in rows if one["stratum"] == row["stratum"]}
        for row in rows
        if row["arm"] == "model"
    ]


def _in_weights(
    config: ChainToyConfig, settings: ChainingSettings, results: Sequence[ChainingResult]
) -> Findings:
    rows: list[dict[str, Any]] = [
        {
            "arm": result.arm,
            "kind": kind,
            **asdict(result.final.recall[kind]),
            "chance": result.chance,
        }
        for result in results
        for kind in ASKED
    ]
    table = polars.DataFrame(rows)
    named = {"arm": "series", "kind": "dose", "mrr_low": "low", "mrr_high": "high"}
    return Findings(
        title=f"Forward chaining told to toys, preset {config.preset}",
        claim=_IN_WEIGHTS,
        summary={"preset": config.preset, "seed": config.seed, "rows": table.to_dicts()},
        table=table,
        provenance=provenance_beyond_a_model(
            model_id=f"chaining toys: {', '.join(config.arms)}",
            data_sha256=sha256_of_json(asdict(settings)),
            seed=config.seed,
            estimand="rank of the right number among all, by kind of question",
            device=config.device,
            dtype="float32",
        ),
        tables={"Arms by kind of question": table},
        figures={"mrr": _bars(table.rename(named), "mrr")},
        notes=[],
    )


def _bars(table: polars.DataFrame, value: str) -> go.Figure:
    return dose_figure(
        table.rename({value: "value"}),
        title="Forward chaining by kind of question",
        dose_label="kind of question",
        axis_label="share right" if value == "right" else "mean reciprocal rank",
    )


def _verdict(row: dict[str, Any]) -> str:
    other = max(row["chance"], row["permuted"])
    word = "above" if row["low"] > other else "not above"
    return (
        f"Of hidden numbers {row['right']:.2f} are right ({row['low']:.2f} to {row['high']:.2f}), "
        f"{word} what its answers give when dealt out at random ({row['permuted']:.2f}) or a "
        f"number of the prompt does ({row['chance']:.2f})."
    )
