"""Does what predicts B answer the question that names B? Role swaps over layers, with controls.

"A's mother is" ends in a state that predicts B; written over B's name in "B's child is", does it
bring out A? Gains are changes of log-probability in nats, against the prompt as it is (reversal
method page, section 3.7; Patchscopes, Ghandeharioun et al. 2024, for the grid of layers). A gain
counts beyond that of another entity's vector of the same kind (`Arm.control`); with a vector that
cannot carry A, a gain says that the fact is stored and cannot be reached from the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interventions.role_swap import AskedRows, swap_edit, swapped_scores
from ..models.attention_edits import AttentionEdit
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.kept_units import kept_arrays
from ..results.run import Run
from .elicitation import Progress, silent
from .name_scores import score_names
from .role_states import RoleStates
from .swap_results import RoleSwaps
from .swap_vectors import Arm, Form, SwapVectors, arm_values, swap_arms, swap_vectors
from .vocabulary_readout import middle_ranks


@dataclass(frozen=True)
class SwapConfig:
    """Layers `()` are six evenly strided ones. A target layer is a block, whose input is written
    over; a source layer may also be the number of layers, the output of the last block."""

    source_layers: tuple[int, ...] = ()
    target_layers: tuple[int, ...] = ()
    forms: tuple[Form, ...] = ("raw", "mapped")
    ranks: tuple[int | None, ...] = (1, 4, 16, None)
    slot_wording: int = 0
    source_wording: int = 0
    seed: int = 0

    def vectors(self, states: RoleStates, elsewhere: RoleStates | None = None) -> SwapVectors:
        """The vectors of these wordings; raises as `swap_vectors`."""
        return swap_vectors(
            states,
            slot_wording=self.slot_wording,
            source_wording=self.source_wording,
            elsewhere=elsewhere,
            seed=self.seed,
        )


def measure_role_swaps(
    model: HookedModel,
    states: RoleStates,
    config: SwapConfig | None = None,
    *,
    elsewhere: RoleStates | None = None,
    arms: Sequence[Arm] | None = None,
    rows: int = 64,
    run: Run | None = None,
    progress: Progress = silent,
) -> RoleSwaps:
    """Swap on the whole grid of layers, every arm (by default all that `swap_arms` names).

    Cost: one row of prompt and name for each pair, arm, source and target layer, in batches of
    `rows`; no loop over pairs. With a `run` a target layer is a unit. `elsewhere` are states of
    another relation that asks for the same B without naming A. Raises `MnemoscopeError` for states
    of in-context prompts and as `swap_vectors`, `UnitOutOfRangeError` for a layer that the model
    does not have.
    """
    config = config or SwapConfig()
    vectors = config.vectors(states, elsewhere)
    asked = asked_rows(states, config.slot_wording)
    chosen = tuple(arms) if arms else swap_arms(vectors, config.forms, config.ranks)
    sources, targets = _grid(model, config)
    total, told = len(targets) * len(_tasks(chosen, sources)) * len(asked), 0

    def done(n: int) -> None:
        nonlocal told
        told += n
        progress(told, total)

    clean = _ranked(model, asked, None, 0, rows, lambda n: None)[:, 0]
    units = [
        kept_arrays(
            run,
            f"target-{target:03d}",
            partial(_at_target, model, asked, vectors, chosen, sources, target, rows, done),
        )
        for target in targets
    ]
    scores = np.stack([unit["scores"] for unit in units], axis=3)
    return RoleSwaps(
        relation=states.prompts.relation.name,
        pairs=states.prompts.relation.pairs,
        arms=chosen,
        source_layers=sources,
        target_layers=targets,
        log_prob=scores[0],
        first=scores[1],
        rank=scores[2],
        clean_log_prob=clean[0],
        clean_first=clean[1],
        clean_rank=clean[2],
        half=vectors.half.numpy(),
        seed=config.seed,
    )


def whole_name_ranks(
    model: HookedModel,
    states: RoleStates,
    arms: Sequence[Arm],
    source: int,
    target: int,
    config: SwapConfig | None = None,
    *,
    elsewhere: RoleStates | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "arm_plus_1 pair"]:
    """Rank of A among the whole names of all pairs: unedited first, then under each arm at one cell
    of the grid. Ties count half; NaN where an arm has nothing to write.

    Cost: each prompt once, and every name behind it (`score_names`).
    """
    config = config or SwapConfig()
    vectors = config.vectors(states, elsewhere)
    values = arm_values(vectors, arms, source, target)
    clean = vectors.slot[target][None]
    told = edited_name_scores(
        model,
        states,
        target,
        torch.cat([clean, values]),
        wording=config.slot_wording,
        progress=progress,
    )
    return name_ranks(told)


def edited_name_scores(
    model: HookedModel,
    states: RoleStates,
    layer: int,
    values: Float[Tensor, "task pair d_model"],
    *,
    op: Literal["set", "add"] = "set",
    wording: int = 0,
    progress: Progress = silent,
) -> Float[np.ndarray, "task pair name"]:
    """Log-probability (nats) of every pair's whole A behind each reverse prompt, with `values` in
    the slot at `layer`; NaN where the values are.

    Cost: each edited prompt once, and every name behind it. Raises as `score_names` does.
    """
    asked, relation = asked_rows(states, wording), states.prompts.relation
    n, flat = len(asked), values.flatten(0, 1)
    rows = torch.isfinite(flat).all(1).nonzero().flatten().tolist()
    prompts = [relation.prompt(pair, "reverse", wording) for pair in relation.pairs]

    def edits(indices: Sequence[int]) -> list[Edit | AttentionEdit]:
        places = [rows[i] for i in indices]
        return [swap_edit(layer, flat[places], [asked.slots[i % n] for i in places], op)]

    scores = np.full((len(flat), n), np.nan)
    scores[rows] = score_names(
        model,
        [prompts[i % n] for i in rows],
        [pair.a for pair in relation.pairs],
        edits=edits,
        progress=progress,
    )
    return scores.reshape(-1, n, n)


def name_ranks(scores: Float[np.ndarray, "task pair name"]) -> Float[np.ndarray, "task pair"]:
    """Rank of each pair's own A among all, ties counted half; NaN where there are no scores."""
    n = scores.shape[1]
    flat = torch.from_numpy(scores).flatten(0, 1)
    ranks = _own_ranks(flat, torch.arange(len(flat)) % n)
    return np.where(np.isfinite(scores).all(2), ranks.reshape(-1, n), np.nan)


def asked_rows(states: RoleStates, wording: int) -> AskedRows:
    """The reverse prompts of a wording with the slot of B's name and the answer A.

    Raises `MnemoscopeError` for prompts that state the fact in front: they do not ask the weights.
    """
    if states.prompts.in_context:
        raise MnemoscopeError("swaps ask what the weights hold: give states without in_context.")
    rows = states.prompts.rows("reverse")[wording]
    return AskedRows(
        tuple(row.prompt for row in rows),
        tuple(row.offsets("S")[0] for row in rows),
        tuple(row.answer for row in rows),
    )


def strided_layers(n: int, count: int = 6) -> tuple[int, ...]:
    """At most `count` of the layers 0 to n - 1, first and last among them, evenly spread."""
    return tuple(sorted({round(float(at)) for at in np.linspace(0, n - 1, min(count, n))}))


def _at_target(
    model: HookedModel,
    asked: AskedRows,
    vectors: SwapVectors,
    arms: Sequence[Arm],
    sources: Sequence[int],
    target: int,
    rows: int,
    done: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Scores of all arms and sources at one target layer, in one set of batches."""
    tasks = _tasks(arms, sources)
    by_source = [arm_values(vectors, arms, source, target) for source in sources]
    values = torch.stack([by_source[j][i] for i, j in tasks])
    told = _ranked(model, asked, values, target, rows, done)
    scores = np.empty((3, len(arms), len(sources), len(asked)))
    for task, (i, j) in enumerate(tasks):
        scores[:, i, _sources_told(arms[i], j)] = told[:, task, None]
    return {"scores": scores}


def _tasks(arms: Sequence[Arm], sources: Sequence[int]) -> list[tuple[int, int]]:
    """Arm and source layer of what has to run; the same role is read at the target layer."""
    return [
        (i, j)
        for i, arm in enumerate(arms)
        for j in range(1 if arm.origin == "same_role" else len(sources))
    ]


def _sources_told(arm: Arm, j: int) -> slice:
    return slice(None) if arm.origin == "same_role" else slice(j, j + 1)


def _ranked(
    model: HookedModel,
    asked: AskedRows,
    values: Float[Tensor, "task pair d_model"] | None,
    target: int,
    rows: int,
    done: Callable[[int], None],
) -> Float[np.ndarray, "3 task pair"]:
    """Log-probability, that of the first token, and its rank; without values of one clean task."""
    n = len(asked)
    flat = None if values is None else values.flatten(0, 1)
    n_rows = n if flat is None else len(flat)
    run = torch.arange(n) if flat is None else torch.isfinite(flat).all(1).nonzero().flatten()
    told = swapped_scores(
        model,
        asked.take([int(i) % n for i in run]),
        target,
        None if flat is None else flat[run],
        candidates=torch.tensor([answer[0] for answer in asked.answers]),
        rows=rows,
        done=done,
    )
    done(n_rows - len(run))
    found = np.full((3, n_rows), np.nan)
    ranks = _own_ranks(told.candidates, run % n)
    found[:, run.numpy()] = np.stack([told.whole.numpy(), told.first.numpy(), ranks])
    return found.reshape(3, -1, n)


def _own_ranks(scores: Float[Tensor, "row candidate"], own: Int[Tensor, " row"]) -> np.ndarray:
    return middle_ranks(scores, own[:, None])[:, 0].numpy()


def _grid(model: HookedModel, config: SwapConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    n = model.anatomy.n_layers
    sources = config.source_layers or strided_layers(n + 1)
    targets = config.target_layers or strided_layers(n)
    for layer in (*(layer for layer in sources if layer != n), *targets):
        model.anatomy.check_layer(layer)
    return sources, targets
