"""How far does the right answer lead? Candidate margins of facts, with and without an edit.

For a fact with the right answer o and up to 20 wrong answers d of the same type, under a condition
c (relation_neurons.md, section 6.4):

    margin_c = mean_t log p_c(o_t) - log mean_d exp( mean_t log p_c(d_t) )

in nats, teacher-forced over whole answers, so that it needs neither a form of answering nor answers
that differ in their first token. What the model says by itself is in `neuron_outcomes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.batching import adaptive, length_buckets
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..results.run import Run
from .asked_facts import Asked, answer_tokens, asked_facts, fingerprint_of
from .elicitation import Progress, silent

__all__ = [
    "ROWS",
    "Asked",
    "EditsFor",
    "MarginRows",
    "Margins",
    "asked_facts",
    "kept_margins",
    "losses_of",
    "margin_rows",
    "measure_doses",
    "measure_margins",
]

ROWS = 128

EditsFor = Callable[[int], Sequence[Edit]]
"""The edits of a batch that holds every dose `rows` times: rows 0 to rows - 1 are the first dose,
the next `rows` the second, and so on (`interventions.neuron_ablation.nested_edits`)."""


@dataclass(frozen=True, eq=False)
class Margins:
    """One condition's scores of the asked facts, in their order; all in nats.

    `gold` is the mean token log-probability of the right answer, `distractors` the log-mean-exp of
    the candidates'. `first`: the right answer beats every candidate. `in_type` is the log of the
    probability that the right answer or a candidate is said at all (whole answers): it falls when
    the type or the form is lost, not when one answer of the type takes the place of another.
    """

    relations: tuple[str, ...]
    subjects: tuple[str, ...]
    gold: Float[np.ndarray, " fact"]
    distractors: Float[np.ndarray, " fact"]
    first: Bool[np.ndarray, " fact"]
    in_type: Float[np.ndarray, " fact"]

    @property
    def margin(self) -> Float[np.ndarray, " fact"]:
        """The candidate margin of the module docstring."""
        return self.gold - self.distractors

    def __len__(self) -> int:
        return len(self.subjects)


@dataclass(frozen=True, eq=False)
class MarginRows:
    """The asked facts as token rows, written once for many conditions; see `margin_rows`.

    Row i holds a prompt and the start of an answer; its last `width[i]` tokens predict. A cell is
    one token of one answer: its row, the column that predicts it, the token, and its answer.
    `slots` `[fact, answer]` names the answers of each fact, the right one first, -1 for none.
    """

    asked: tuple[Asked, ...]
    rows: tuple[tuple[int, ...], ...]
    width: Int[np.ndarray, " row"]
    cells: Int[np.ndarray, "cell four"]
    slots: Int[np.ndarray, "fact answer"]
    fingerprint: str


def measure_margins(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    edits: Sequence[Edit] = (),
    *,
    rows: int = ROWS,
    progress: Progress = silent,
) -> Margins:
    """Margins of all facts with the same edits in place; none for the model as it is.

    `rows` bounds the token rows that run at once; memory grows with rows x answer length x
    vocabulary. Raises `MnemoscopeError` without facts or for edits at positions that a
    teacher-forced answer would move ("end", offsets from END, one phase only), and
    `EditNeverFiredError` when an edit changed nothing.
    """
    return measure_doses(model, asked, 1, lambda _: edits, rows=rows, progress=progress)[0]


def measure_doses(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    n_doses: int,
    edits_for: EditsFor,
    *,
    rows: int = ROWS,
    progress: Progress = silent,
) -> tuple[Margins, ...]:
    """Margins under several doses that share each batch (section 5.4: the nested-k trick).

    `edits_for(n)` gives the edits of a batch of `n_doses * n` rows. Raises as `measure_margins`.
    """
    if n_doses < 1:
        raise MnemoscopeError("measuring needs at least one dose.")
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    at_once = max(1, rows // n_doses)
    log_probs = np.zeros((n_doses, len(plan.cells)))
    cells_of = _cells_by_row(plan)
    done = 0

    def score(batch: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        cells = np.concatenate([cells_of[i] for i in batch])
        edits = tuple(edits_for(len(batch)))
        _check_forced(edits)
        return cells, _told(model, plan, batch, cells, n_doses, edits)

    for batch, (cells, values) in adaptive(
        length_buckets([len(row) for row in plan.rows], at_once), score
    ):
        log_probs[:, cells] = values
        done += len(batch)
        progress(done, len(plan.rows))
    return tuple(_margins(plan, one) for one in log_probs)


def margin_rows(model: HookedModel, asked: Sequence[Asked]) -> MarginRows:
    """Tokenise once what many conditions will score.

    An answer's last token is predicted, never read, so a row is needed only for each start of an
    answer that no other row of the same fact contains: all one-token answers share the prompt.
    Raises `MnemoscopeError` without facts or candidates, `PromptError` where an answer merges with
    its prompt.
    """
    if not asked:
        raise MnemoscopeError("no facts to ask: give at least one.")
    rows: list[tuple[int, ...]] = []
    width: list[int] = []
    cells: list[tuple[int, int, int, int]] = []
    slots = np.full((len(asked), 1 + max(len(one.candidates) for one in asked)), -1)
    n_answers = 0
    for i, one in enumerate(asked):
        if not one.candidates:
            raise MnemoscopeError(f"{one.subject!r} has no candidates to compare its answer with.")
        prompt = encode(model.text_tokenizer, one.prompt)
        answers = [
            answer_tokens(model, one.prompt, text) for text in (one.answers[0], *one.candidates)
        ]
        starts = _longest_starts([answer[:-1] for answer in answers])
        home = {start: len(rows) + j for j, start in enumerate(starts)}
        for j, answer in enumerate(answers):
            slots[i, j] = n_answers + j
            row = next(r for start, r in home.items() if start[: len(answer) - 1] == answer[:-1])
            for t, token in enumerate(answer):
                cells.append((row, len(prompt) - 1 + t, token, n_answers + j))
        rows += [(*prompt, *start) for start in starts]
        width += [len(start) + 1 for start in starts]
        n_answers += len(answers)
    table = np.array(cells, dtype=np.int64)
    return MarginRows(
        tuple(asked), tuple(rows), np.array(width), table, slots, fingerprint_of(asked)
    )


def kept_margins(
    run: Run | None,
    key: str,
    plan: MarginRows,
    measure: Callable[[], tuple[Margins, ...]],
) -> tuple[Margins, ...]:
    """What `measure` gives, as one unit of a run: measured once, kept, and read back after that.

    Raises `MnemoscopeError` when the run kept other facts under this key.
    """
    if run is None:
        return measure()
    if key not in run.done:
        run.check_cancelled()
        found = measure()
        run.save_unit_arrays(key, {name: _stacked(found, name) for name in _SCORES})
        run.append(key, {"facts": len(plan.asked), "asked": plan.fingerprint})
        return found
    if run.done[key]["asked"] != plan.fingerprint:
        raise MnemoscopeError(f"run {run.id} kept other facts under {key!r}: start another run.")
    saved = run.load_unit_arrays(key)
    names = _names(plan)
    return tuple(
        Margins(*names, *(saved[name][i] for name in _SCORES)) for i in range(len(saved["gold"]))
    )


def losses_of(clean: Margins, after: Sequence[Margins]) -> Float[np.ndarray, "condition fact"]:
    """Clean margin minus margin under each condition, nats. Raises `MnemoscopeError` when the
    facts differ."""
    for one in after:
        if (one.relations, one.subjects) != (clean.relations, clean.subjects):
            raise MnemoscopeError("margins of different facts cannot be compared.")
    return clean.margin - np.stack([one.margin for one in after])


_SCORES = ("gold", "distractors", "first", "in_type")


def _stacked(found: Sequence[Margins], name: str) -> np.ndarray:
    return np.stack([getattr(one, name) for one in found])


def _names(plan: MarginRows) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(one.relation for one in plan.asked), tuple(one.subject for one in plan.asked)


# -- running ------------------------------------------------------------------------------------


def _told(
    model: HookedModel,
    plan: MarginRows,
    batch: Sequence[int],
    cells: Int[np.ndarray, " cell"],
    n_doses: int,
    edits: Sequence[Edit],
) -> Float[np.ndarray, "dose cell"]:
    """Log-probability of the cells' tokens under each dose."""
    tokens = model.batch([plan.rows[i] for i in batch] * n_doses, side="right")
    lengths = np.array([len(plan.rows[i]) for i in batch])
    k = int(plan.width[list(batch)].max())
    columns = torch.as_tensor(np.maximum(lengths[:, None] - k + np.arange(k), 0))
    with model.intervene(edits):
        logits = model.logits(tokens, at=columns.repeat(n_doses, 1).to(model.device))
    place = {row: j for j, row in enumerate(batch)}
    at_row, at_column, token, _ = plan.cells[cells].T
    row = np.array([place[i] for i in at_row])
    column = at_column - (lengths[row] - k)
    told = logits.unflatten(0, (n_doses, len(batch)))
    wide = told.float() if told.dtype.itemsize < 4 else told
    row_, column_, token_ = (torch.as_tensor(x, device=told.device) for x in (row, column, token))
    chosen = wide[:, row_, column_, token_] - wide.logsumexp(-1)[:, row_, column_]
    return np.asarray(chosen.double().cpu().numpy())


def _margins(plan: MarginRows, log_probs: Float[np.ndarray, " cell"]) -> Margins:
    answer = plan.cells[:, 3]
    total = np.bincount(answer, weights=log_probs)
    mean = total / np.bincount(answer)
    absent = plan.slots < 0
    scores = torch.as_tensor(np.where(absent, -np.inf, mean[plan.slots]))
    whole = torch.as_tensor(np.where(absent, -np.inf, total[plan.slots]))
    n_candidates = (~absent[:, 1:]).sum(1)
    return Margins(
        *_names(plan),
        gold=scores[:, 0].numpy(),
        distractors=_log_sum(scores[:, 1:]) - np.log(n_candidates),
        first=(scores[:, 0] > scores[:, 1:].amax(1)).numpy(),
        in_type=_log_sum(whole),
    )


def _log_sum(x: Tensor) -> Float[np.ndarray, " fact"]:
    return np.asarray(x.logsumexp(1).numpy())


def _cells_by_row(plan: MarginRows) -> list[Int[np.ndarray, " cell"]]:
    order = np.argsort(plan.cells[:, 0], kind="stable")
    cuts = np.cumsum(np.bincount(plan.cells[:, 0], minlength=len(plan.rows)))[:-1]
    return np.split(order, cuts)


def _check_forced(edits: Sequence[Edit]) -> None:
    for edit in edits:
        offsets = edit.positions if isinstance(edit.positions, tuple) else ()
        moves = edit.positions == "end" or any(isinstance(o, tuple) or o < 0 for o in offsets)
        if moves or (not offsets and edit.phase != "both"):
            raise MnemoscopeError(
                "margins read whole answers after the prompt, so an edit must not depend on where "
                "the prompt ends: use positions 'all', 'all_but_first' or offsets from the start, "
                "and phase='both'."
            )


def _longest_starts(starts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The starts that no other one continues: in sorted order a continuation comes next."""
    ordered = sorted(set(starts))
    following = [*ordered[1:], None]
    return [
        start
        for start, after in zip(ordered, following, strict=True)
        if after is None or after[: len(start)] != start
    ]
