"""What ablating relation-specific neurons does, exactly as Liu et al. 2025 measure it.

A set's coordinates are forced to zero at every position, the first token and generated ones too;
the answer is the greedy continuation of two tokens, right if it is a beginning of the gold object
(paper, sections 3 and 4). Two-token accuracy counts a change of form as lost knowledge:
`lost_answers` says how much of a drop is that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars
from jaxtyping import Bool, Float, Int

from ..interventions.neuron_ablation import neuron_edits
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.run import Run
from .elicitation import Progress, greedy_texts, silent
from .paper_relation_neurons import PaperNeurons
from .paper_relations import PaperPrompt, is_right

Kind = Literal["held_out", "reworded"]
FORMS = ("repeats the prompt", "starts 'The'", "starts 'A.'", "other")


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model said to each prompt, and whether that was right."""

    texts: tuple[str, ...]
    right: Bool[np.ndarray, " prompt"]


@dataclass(frozen=True, eq=False)
class PaperEffects:
    """Answers to the same prompts: unedited, under each relation's set, under random sets.

    Accuracies and drops are of each asked relation; NaN where nothing was asked of it, and a drop
    is NaN where the unedited model was never right.
    """

    relations: tuple[str, ...]
    k: int
    prompts: tuple[PaperPrompt, ...]
    original: Answers
    ablated: tuple[Answers, ...]
    """One for each relation's set, in the order of `relations`."""
    random: tuple[Answers, ...]
    """One for each uniform draw of k units."""

    def accuracy(self, answers: Answers) -> Float[np.ndarray, " asked"]:
        """Share of right answers to each relation's prompts."""
        asked = np.array([prompt.relation for prompt in self.prompts])
        chosen = [answers.right[asked == name] for name in self.relations]
        return np.array([right.mean() if len(right) else np.nan for right in chosen])

    @property
    def drop(self) -> Float[np.ndarray, "asked ablated"]:
        """Relative drop in per cent: (original - ablated) / original; negative is better."""
        return self._drop(self.ablated)

    @property
    def random_drop(self) -> Float[np.ndarray, "asked draw"]:
        """The relative drop in per cent under each random set."""
        return self._drop(self.random)

    def table(self) -> polars.DataFrame:
        """One row for each asked relation and ablated set; the random mean is over all draws."""
        original, drop = self.accuracy(self.original), self.drop
        random = np.stack([self.accuracy(answers) for answers in self.random]).mean(0)
        ablated = np.stack([self.accuracy(answers) for answers in self.ablated], axis=1)
        n = [sum(p.relation == name for p in self.prompts) for name in self.relations]
        rows = [
            {
                "asked": asked,
                "ablated": relation,
                "n": n[i],
                "original": original[i],
                "accuracy": ablated[i, j],
                "random": random[i],
                "drop": drop[i, j],
            }
            for i, asked in enumerate(self.relations)
            for j, relation in enumerate(self.relations)
        ]
        return polars.DataFrame(rows)

    def lost_answers(self) -> polars.DataFrame:
        """Prompts that each relation's own set turned from right to wrong, by what was said.

        Columns relation, lost, and a count for each of `FORMS` (paper, table 4).
        """
        rows = []
        for relation, answers in zip(self.relations, self.ablated, strict=True):
            lost = self.original.right & ~answers.right
            forms = [
                _form(prompt.text, said)
                for prompt, said, gone in zip(self.prompts, answers.texts, lost, strict=True)
                if gone and prompt.relation == relation
            ]
            counts = {form: forms.count(form) for form in FORMS}
            rows.append({"relation": relation, "lost": len(forms), **counts})
        return polars.DataFrame(rows)

    def _drop(self, under: Sequence[Answers]) -> Float[np.ndarray, "asked set"]:
        before = self.accuracy(self.original)[:, None]
        after = np.stack([self.accuracy(answers) for answers in under], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > 0, 100 * (before - after) / before, np.nan)


@dataclass(frozen=True, eq=False)
class Cumulativity:
    """Do larger budgets break answers only together with smaller ones? (paper, table 3)

    Of consecutive budgets a < b, `total` counts held-out prompts right with the top a ablated and
    wrong with the top b ablated, `affected` those among them that are wrong with ranks a + 1 to b
    alone ablated. `accuracy` is that of each relation's prompts at each budget of its own set.
    """

    relations: tuple[str, ...]
    sizes: tuple[int, ...]
    accuracy: Float[np.ndarray, "relation size"]
    total: Int[np.ndarray, "relation pair"]
    affected: Int[np.ndarray, "relation pair"]

    @property
    def by_relation(self) -> Float[np.ndarray, "relation pair"]:
        """1 - affected / total; NaN where no answer was lost."""
        return _one_minus(self.affected, self.total)

    @property
    def micro(self) -> Float[np.ndarray, " pair"]:
        """Over all relations' prompts together."""
        return _one_minus(self.affected.sum(0), self.total.sum(0))

    @property
    def macro(self) -> Float[np.ndarray, " pair"]:
        """Mean over the relations that lost an answer; NaN where none did."""
        given = ~np.isnan(self.by_relation)
        sums = np.where(given, self.by_relation, 0).sum(0)
        return np.divide(sums, given.sum(0), out=np.full(sums.shape, np.nan), where=given.any(0))


def answer(
    model: HookedModel,
    prompts: Sequence[PaperPrompt],
    neurons: Sequence[NeuronId],
    *,
    new_tokens: int = 2,
    rows: int = 32,
) -> Answers:
    """Answers with the neurons at zero at every position, prompt and generation alike.

    No neurons: the unedited model.
    """
    edits = neuron_edits(neurons, "zero", positions="all", phase="both") if neurons else ()
    with model.intervene(edits):
        texts = greedy_texts(model, [p.text for p in prompts], rows=rows, new_tokens=new_tokens)
    return _judged(prompts, texts)


def measure_paper_effects(
    model: HookedModel,
    found: PaperNeurons,
    prompts: Kind = "held_out",
    *,
    k: int | None = None,
    rows: int = 32,
    run: Run | None = None,
    progress: Progress = silent,
) -> PaperEffects:
    """Ask all relations' prompts under every relation's top k and under the random draws.

    `prompts`: the held-out facts in the wording of detection, or in the new one. `k` is the
    preset's unless given. With a `run` the answers are kept there, one row a set, and read back
    instead of asked again; open it for this model, these relations and this preset. `progress`
    counts sets.

    Raises `MnemoscopeError` when there are no such prompts.
    """
    asked: tuple[PaperPrompt, ...] = getattr(found, prompts)
    if not asked:
        raise MnemoscopeError(f"there are no {prompts} prompts: the relations have one wording.")
    k = found.k if k is None else k
    sets: dict[str, tuple[NeuronId, ...]] = {"original": ()}
    sets |= {f"top {k} of {name}": found.neurons(name, k) for name in found.relations}
    sets |= {f"random {k}, draw {i}": drawn for i, drawn in enumerate(found.random_sets(k))}
    given = []
    for label, neurons in sets.items():
        given.append(_kept(run, f"{prompts}: {label}", model, asked, neurons, found, rows))
        progress(len(given), len(sets))
    n = 1 + len(found.relations)
    return PaperEffects(found.relations, k, asked, given[0], tuple(given[1:n]), tuple(given[n:]))


def detection_table(
    model: HookedModel,
    found: PaperNeurons,
    *,
    rows: int = 32,
    run: Run | None = None,
    progress: Progress = silent,
) -> polars.DataFrame:
    """Accuracy on the detection prompts, which were all right: under a relation's own set, and the
    mean under the random draws. Columns relation, n, original (1), accuracy, random.

    `run` and `progress` as in `measure_paper_effects`.
    """
    random = {f"random {found.k}, draw {i}": drawn for i, drawn in enumerate(found.random_sets())}
    lines, done = [], 0
    for name in found.relations:
        asked = tuple(p for p in found.detection if p.relation == name)
        sets = {f"top {found.k}": found.neurons(name)} | random
        shares = []
        for label, chosen in sets.items():
            answers = _kept(run, f"detection: {label} on {name}", model, asked, chosen, found, rows)
            shares.append(float(answers.right.mean()))
            done += 1
            progress(done, len(found.relations) * len(sets))
        accuracies = {"accuracy": shares[0], "random": float(np.mean(shares[1:]))}
        lines.append({"relation": name, "n": len(asked), "original": 1.0, **accuracies})
    return polars.DataFrame(lines)


def measure_cumulativity(
    model: HookedModel,
    found: PaperNeurons,
    *,
    rows: int = 32,
    run: Run | None = None,
    progress: Progress = silent,
) -> Cumulativity:
    """Ask each relation's held-out prompts under every budget of its own set, and every gap.

    `run` and `progress` as in `measure_paper_effects`; the budgets are the preset's.
    """
    sizes = found.preset.budgets(len(found.pool))
    pairs = list(pairwise(sizes))
    spans = [(0, size) for size in sizes] + pairs
    right: dict[tuple[str, int, int], Bool[np.ndarray, " prompt"]] = {}
    for name in found.relations:
        asked = tuple(p for p in found.held_out if p.relation == name)
        for a, b in spans:
            label, chosen = f"ranks {a + 1} to {b} of {name}", found.neurons(name, b, after=a)
            answers = _kept(run, f"own: {label}", model, asked, chosen, found, rows)
            right[name, a, b] = answers.right
            progress(len(right), len(found.relations) * len(spans))
    lost = {(n, a, b): right[n, 0, a] & ~right[n, 0, b] for n in found.relations for a, b in pairs}
    return Cumulativity(
        relations=found.relations,
        sizes=sizes,
        accuracy=np.array([[right[n, 0, s].mean() for s in sizes] for n in found.relations]),
        total=np.array([[lost[n, a, b].sum() for a, b in pairs] for n in found.relations]),
        affected=np.array(
            [[(lost[n, a, b] & ~right[n, a, b]).sum() for a, b in pairs] for n in found.relations]
        ),
    )


def _kept(
    run: Run | None,
    label: str,
    model: HookedModel,
    prompts: tuple[PaperPrompt, ...],
    neurons: Sequence[NeuronId],
    found: PaperNeurons,
    rows: int,
) -> Answers:
    """`answer`, or what the run has of it."""
    if run is None:
        return answer(model, prompts, neurons, new_tokens=found.preset.new_tokens, rows=rows)
    if label not in run.done:
        run.check_cancelled()
        given = answer(model, prompts, neurons, new_tokens=found.preset.new_tokens, rows=rows)
        run.append(label, {"texts": list(given.texts)})
    return _judged(prompts, [str(text) for text in run.done[label]["texts"]])


def _judged(prompts: Sequence[PaperPrompt], texts: Sequence[str]) -> Answers:
    right = [is_right(said, p.gold) for p, said in zip(prompts, texts, strict=True)]
    return Answers(tuple(texts), np.array(right, dtype=bool))


def _form(prompt: str, said: str) -> str:
    text = said.strip()
    bare = text.casefold() in ("", "the")  # too little to be a repetition
    if not bare and prompt.casefold().startswith(text.casefold()):
        return FORMS[0]
    if text.split()[:1] == ["The"]:
        return FORMS[1]
    return FORMS[2] if text.startswith("A.") else FORMS[3]


def _one_minus(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return 1 - shares
