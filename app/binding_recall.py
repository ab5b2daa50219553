"""What a model says of a pair in both directions: one pair in full, and all pairs as a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars

from ..data.facts.pairs import WAYS, PairRelation, Way
from ..models.hooked import HookedModel
from ..probes.elicitation import greedy_texts
from ..probes.name_scores import ranks_of, rivals, score_names
from ..probes.pair_knowledge import gives, tokens_for
from ..probes.reversal_recall import ReversalRecall
from .binding_pairs import TOLD

SHOWN = 8
"""Names in the list of the likeliest ones."""


@dataclass(frozen=True, eq=False)
class AskedWay:
    """One pair asked in one direction and wording.

    `rank` is the right name's among `n_names` that compete with it; `names` are the likeliest ones
    and the right one: columns `rank`, `name`, `log P`, `right`.
    """

    prompt: str
    said: str
    right: str
    exact: bool
    log_prob: float
    rank: int
    n_names: int
    names: polars.DataFrame

    @property
    def probability(self) -> float:
        """Of the whole right name."""
        return float(np.exp(self.log_prob))


def ask_pair(
    model: HookedModel, relation: PairRelation, place: int, way: Way, wording: int
) -> AskedWay:
    """Ask one pair, and score every pair's name behind its prompt."""
    pair = relation.pairs[place]
    prompt = relation.prompt(pair, way, wording)
    names = [other.asked(way) for other in relation.pairs]
    (scores,) = score_names(model, [prompt], names)
    among = rivals(names)[place]
    rank = int(ranks_of(scores[None], [place], among[None])[0])
    (said,) = greedy_texts(model, [prompt], new_tokens=tokens_for(model, names))
    return AskedWay(
        prompt,
        said,
        pair.asked(way),
        gives(said, pair.answers(way)),
        float(scores[place]),
        rank,
        int(among.sum()) + 1,
        likeliest(scores, names, place),
    )


def likeliest(scores: np.ndarray, names: list[str], place: int) -> polars.DataFrame:
    """The likeliest names, and the right one below them where it is none of them."""
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(1, len(order) + 1)
    shown = list(order[:SHOWN])
    if place not in shown:
        shown.append(place)
    return polars.DataFrame(
        {
            "rank": rank[shown],
            "name": [names[i] for i in shown],
            "log P": scores[shown],
            "right": [bool(i == place) for i in shown],
        }
    )


def recall_frame(found: ReversalRecall) -> polars.DataFrame:
    """A row a pair, both directions side by side; means over the wordings that were asked.

    Columns `a`, `b`, `told` (in words), `group`, and for each direction `<way> said` (greedy
    decoding gives the whole name), `<way> rank`, `<way> log P`, `<way> chance`.
    """
    pairs = found.relation.pairs
    frame = polars.DataFrame(
        {
            "a": [pair.a for pair in pairs],
            "b": [pair.b for pair in pairs],
            "told": [TOLD[pair.told] for pair in pairs],
            "group": [pair.group for pair in pairs],
        }
    )
    for way in WAYS:
        read = found.ways[way]
        frame = frame.with_columns(
            polars.Series(f"{way} said", read.exact.mean(axis=0) > 0.5),
            polars.Series(f"{way} rank", read.rank.mean(axis=0)),
            polars.Series(f"{way} log P", read.log_prob.mean(axis=0)),
        )
    return frame


def recall_lines(found: ReversalRecall) -> polars.DataFrame:
    """A row a stratum by told: share said and MRR with intervals in both directions, and chance.

    Columns `pairs told`, `n`, `way`, `exact`, `exact_low`, `exact_high`, `mrr`, `mrr_low`,
    `mrr_high`, `chance`.
    """
    table = found.table()
    told = {f"told {name}": words for name, words in TOLD.items() if name}
    shown = {"all": "all", **told}
    whole = table.filter(
        polars.col("way").is_in(WAYS),
        polars.col("stratum").is_in(list(shown)),
        polars.col("wording") == table["wording"].unique(maintain_order=True)[-1],
        polars.col("measure").is_in(["exact", "mrr"]),
    )
    parts = []
    for (stratum, way), rows in whole.group_by("stratum", "way", maintain_order=True):
        one = {row["measure"]: row for row in rows.iter_rows(named=True)}
        parts.append(
            {
                "pairs told": shown[str(stratum)],
                "n": one["mrr"]["n"],
                "way": way,
                **{
                    f"{measure}{end}": one[measure]["value" if not end else end[1:]]
                    for measure in ("exact", "mrr")
                    for end in ("", "_low", "_high")
                },
                "chance": one["mrr"]["chance"],
            }
        )
    return polars.DataFrame(parts)
