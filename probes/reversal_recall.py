"""Does a model that says "A's mother is B" also say "B's child is A"? Recall in both directions.

Behaviour, to be laid beside every probe of the reversal curse: whole-answer exact match, whole-name
log-probability against another pair's name (Berglund et al. 2023, experiments 1 and 2), and the
rank of the right entity among all of them. A mean over tokens would hide failure: the second half
of a name is easy once the first is given (reversal_binding.md, section 1.9), so names are scored
whole and chance is H_N / N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from scipy import stats

from ..data.facts.pairs import WAYS, PairRelation, Way, pairs_sha256, usable_pairs
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.provenance import Provenance, collect_provenance
from ..results.statistics import bootstrap_mean, paired_difference, sign_flip_p, wilson
from .elicitation import Progress, greedy_texts, silent
from .name_overlap import name_overlap
from .name_scores import name_lengths, ranks_of, rivals, score_names
from .pair_knowledge import gives, part_of, tokens_for

RATES = ("exact", "hit@1")
"""Measures that are right or wrong in each trial."""
MEASURES = (*RATES, "mrr", "log_prob", "log_prob a token", "gain", "gain a token")
"""What `WayRecall.measures` holds, in this order; "gain" is over another pair's name."""
_FLIPS = 2000


@dataclass(frozen=True, eq=False)
class WayRecall:
    """What a model gave in one direction.

    `exact`: greedy decoding gives the whole answer. `rank` is the right name's among `candidates`
    (1 is best; names that hold it or are held by it do not compete). `log_prob` is the right whole
    name's, `other` that of another pair's name after the same prompt, nats; `tokens` and
    `other_tokens` are their lengths.
    """

    exact: Bool[np.ndarray, "wording pair"]
    rank: Int[np.ndarray, "wording pair"]
    candidates: Int[np.ndarray, " pair"]
    log_prob: Float[np.ndarray, "wording pair"]
    other: Float[np.ndarray, "wording pair"]
    tokens: Int[np.ndarray, "wording pair"]
    other_tokens: Int[np.ndarray, "wording pair"]

    @property
    def measures(self) -> Float[np.ndarray, "measure wording pair"]:
        """All of `MEASURES`."""
        a_token, other = self.log_prob / self.tokens, self.other / self.other_tokens
        ranked = [self.exact, self.rank == 1, 1 / self.rank]
        said = [self.log_prob, a_token, self.log_prob - self.other, a_token - other]
        return np.stack([np.asarray(values, dtype=np.float64) for values in (*ranked, *said)])

    @property
    def chance(self) -> Mapping[str, Float[np.ndarray, " pair"]]:
        """What a random order of the candidates gives: H_n / n, and one in n."""
        harmonic = np.cumsum(1 / np.arange(1, self.candidates.max() + 1))
        mrr = harmonic[self.candidates - 1] / self.candidates
        return {"mrr": mrr, "hit@1": 1 / self.candidates}


@dataclass(frozen=True, eq=False)
class ReversalRecall:
    """Forward and reverse recall of the usable pairs of a relation.

    `sharing`: the two names of a pair share their first token or surname, which makes the second
    easier to say. `dropped` counts pairs that could not be asked, by reason.
    """

    relation: PairRelation
    wordings: tuple[int, ...]
    ways: Mapping[Way, WayRecall]
    sharing: Bool[np.ndarray, " pair"]
    dropped: Mapping[str, int]
    draws: int
    seed: int
    provenance: Provenance

    @property
    def strata(self) -> dict[str, Bool[np.ndarray, " pair"]]:
        """Which pairs are in each stratum; strata of fewer than two pairs are left out."""
        told = np.array([pair.told for pair in self.relation.pairs])
        group = np.array([pair.group for pair in self.relation.pairs])
        made = {"all": np.ones(len(told), dtype=bool)}
        made |= {f"told {one}": told == one for one in sorted(set(told) - {""})}
        made |= {f"group {one}": group == one for one in sorted(set(group) - {""})}
        made |= {
            f"told {one}, group {other}": (told == one) & (group == other)
            for one in sorted(set(told) - {""})
            for other in sorted(set(group) - {""})
        }
        made |= {"names share": self.sharing, "names apart": ~self.sharing}
        return {name: mask for name, mask in made.items() if mask.sum() >= 2}

    def table(self) -> pl.DataFrame:
        """One row a direction, stratum, wording ("all": their mean) and measure.

        `value` with a 95 % interval over pairs: Wilson's for a rate in one wording, otherwise the
        bootstrap's. `chance` where there is one. `p`: sign flips against a gain of zero, or two
        samples (Kolmogorov-Smirnov, measure "ks": right against other names). Direction "forward -
        reverse" is the paired difference.
        """
        return self._table

    @cached_property
    def _table(self) -> pl.DataFrame:
        schema = dict.fromkeys(("way", "stratum", "wording", "measure"), pl.String())
        rows = [row for way in self.ways for row in self._way_rows(way)] + list(self._gap_rows())
        numbers = dict.fromkeys(("value", "low", "high", "chance", "p"), pl.Float64())
        return pl.DataFrame(rows, schema={**schema, **numbers, "n": pl.Int64()}, orient="row")

    def _way_rows(self, way: Way) -> Iterator[tuple[object, ...]]:
        measures, chance = self.ways[way].measures, self.ways[way].chance
        for stratum, mask in self.strata.items():
            for wording, chosen in self._readings():
                values = measures[:, chosen][..., mask].mean(axis=1)
                expected = {name: float(one[mask].mean()) for name, one in chance.items()}
                name = (str(way), stratum, wording)
                yield from self._rows(name, values, expected, len(chosen) == 1)
                yield (*name, "ks", *self._ks(way, chosen, mask), int(mask.sum()))

    def _rows(
        self,
        name: tuple[str, ...],
        values: Float[np.ndarray, "measure pair"],
        chance: Mapping[str, float],
        single: bool,
    ) -> Iterator[tuple[object, ...]]:
        n = values.shape[1]
        line = bootstrap_mean(values.T, range(n), draws=self.draws, seed=self.seed)
        gains = [MEASURES.index(one) for one in ("gain", "gain a token")]
        flips = sign_flip_p(values[gains].T, range(n), draws=_FLIPS, seed=self.seed)
        p = dict(zip(("gain", "gain a token"), flips.tolist(), strict=True))
        for i, measure in enumerate(MEASURES):
            low, high = float(line.low[i]), float(line.high[i])
            if single and measure in RATES:
                share = wilson(int(values[i].sum()), n)
                low, high = share.low, share.high
            yield (
                *(*name, measure, float(line.mean[i]), low, high),
                *(chance.get(measure), p.get(measure), n),
            )

    def _gap_rows(self) -> Iterator[tuple[object, ...]]:
        """Forward minus reverse on the same pairs, for the measures that both share."""
        if set(self.ways) != set(WAYS):
            return
        shared = ("exact", "hit@1", "mrr")
        at = [MEASURES.index(measure) for measure in shared]
        both = [self.ways[way].measures[at] for way in WAYS]
        for stratum, mask in self.strata.items():
            for wording, chosen in self._readings():
                a, b = (values[:, chosen][..., mask].mean(axis=1).T for values in both)
                units = range(len(a))
                gap = paired_difference(a, b, units, draws=self.draws, seed=self.seed)
                line = gap.interval
                for i, measure in enumerate(shared):
                    ends = (float(line.mean[i]), float(line.low[i]), float(line.high[i]))
                    name = ("forward - reverse", stratum, wording, measure)
                    yield (*name, *ends, 0.0, float(gap.p[i]), len(a))

    def _readings(self) -> list[tuple[str, list[int]]]:
        """Each wording's place, and all of them together where there are several."""
        single = [(str(wording), [i]) for i, wording in enumerate(self.wordings)]
        return single if len(single) == 1 else [*single, ("all", list(range(len(single))))]

    def _ks(
        self, way: Way, chosen: Sequence[int], mask: Bool[np.ndarray, " pair"]
    ) -> tuple[float | None, ...]:
        read = self.ways[way]
        right, other = (x[chosen][:, mask].mean(axis=0) for x in (read.log_prob, read.other))
        found = stats.ks_2samp(right, other, method="asymp")
        return float(found.statistic), None, None, None, float(found.pvalue)


def reversal_recall(
    model: HookedModel,
    relation: PairRelation,
    *,
    ways: Sequence[Way] = WAYS,
    wordings: Sequence[int] = (0,),
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> ReversalRecall:
    """Ask every usable pair in these directions and wordings (their places in the relation).

    `seed` draws the other pair's name and the bootstrap. Cost: every prompt once, ten new tokens
    greedily, and behind it the names that can still win. Raises `MnemoscopeError` for a wording
    that is not there or names that cannot be told apart, `PromptError` for names that merge with a
    prompt.
    """
    usable = usable_pairs(relation)
    asked = usable.relation
    for way in ways:
        wrong = [i for i in wordings if not 0 <= i < len(asked.wordings(way))]
        if wrong or not wordings:
            raise MnemoscopeError(
                f"{asked.name!r} has {way} wordings 0 to {len(asked.wordings(way)) - 1}: choose "
                f"among these instead of {list(wordings)}."
            )
    step, parts = 2 * len(asked.pairs), len(ways) * len(wordings)
    read: dict[Way, WayRecall] = {}
    for way in ways:
        before = len(read) * len(wordings)
        tell = [part_of(progress, (before + i) * step, parts * step) for i in range(len(wordings))]
        trials = [
            _asked(model, asked, way, i, seed, t) for i, t in zip(wordings, tell, strict=True)
        ]
        read[way] = _joined(trials)
    return ReversalRecall(
        asked,
        tuple(wordings),
        read,
        _sharing(model, asked),
        usable.dropped,
        draws,
        seed,
        _provenance(model, asked, [asked.wordings(way)[i] for way in ways for i in wordings], seed),
    )


def other_names(among: Bool[np.ndarray, "name name"], seed: int) -> Int[np.ndarray, " name"]:
    """For each name another one that it can be told apart from, drawn by seed.

    The next one in a random order of all: a permutation where every name is every other's rival.
    Raises `MnemoscopeError` when a name has no rival.
    """
    n = len(among)
    if not among.any(axis=1).all():
        raise MnemoscopeError(
            "some names have no other name that they can be told apart from: give more pairs."
        )
    order = np.random.default_rng(seed).permutation(n)
    place = np.argsort(order)
    following = order[(place[:, None] + np.arange(1, n)) % n]
    first = np.take_along_axis(among, following, axis=1).argmax(axis=1)
    return np.asarray(following[np.arange(n), first])


def _asked(
    model: HookedModel,
    relation: PairRelation,
    way: Way,
    wording: int,
    seed: int,
    progress: Progress,
) -> WayRecall:
    """One wording; its arrays have a wording axis of one."""
    prompts = [relation.prompt(pair, way, wording) for pair in relation.pairs]
    names = [pair.asked(way) for pair in relation.pairs]
    own, among = range(len(names)), rivals(names)
    other = other_names(among, seed)
    whole = list(zip(own, other.tolist(), strict=True))
    scores = score_names(model, prompts, names, whole=whole, progress=progress)
    later = part_of(progress, len(names), 2 * len(names))
    room = tokens_for(model, names)
    texts = greedy_texts(model, prompts, new_tokens=room, progress=later)
    exact = [
        gives(text, pair.answers(way)) for text, pair in zip(texts, relation.pairs, strict=True)
    ]
    lengths = name_lengths(model, prompts, names)
    return WayRecall(
        np.array([exact]),
        ranks_of(scores, own, among)[None],
        among.sum(axis=1) + 1,
        scores[own, own][None],
        scores[own, other][None],
        lengths[None],
        lengths[other][None],
    )


def _joined(trials: Sequence[WayRecall]) -> WayRecall:
    def cat(name: str) -> np.ndarray:
        return np.concatenate([getattr(trial, name) for trial in trials])

    return WayRecall(
        cat("exact"),
        cat("rank"),
        trials[0].candidates,
        cat("log_prob"),
        cat("other"),
        cat("tokens"),
        cat("other_tokens"),
    )


def _sharing(model: HookedModel, relation: PairRelation) -> Bool[np.ndarray, " pair"]:
    n = len(relation.pairs)
    names = [*(pair.a for pair in relation.pairs), *(pair.b for pair in relation.pairs)]
    overlap = name_overlap(model, names)
    same = overlap.same_first_token | overlap.same_surname
    return np.asarray(same[np.arange(n), np.arange(n) + n])


def _provenance(
    model: HookedModel, relation: PairRelation, wordings: Sequence[str], seed: int
) -> Provenance:
    return collect_provenance(
        **model.identity,
        data_sha256=pairs_sha256(relation),
        prompt_template=" | ".join(wordings),
        seed=seed,
        estimand="recall of whole names in both directions of a pair",
    )
