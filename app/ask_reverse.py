"""Can this prompt be asked back? Known pairs and their wordings, matched with a prompt: no page.

"The mayor of Tastos is" names A and asks for B; asked back, a sentence names B and asks for A. A
prompt that has the wording of a relation, but names nobody that it knows, is asked back about what
the model says by itself; then there is no right answer to rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ..cli.binding_pairs import ENGRAM, PairsConfig, relation_named
from ..data.facts.answers import confusable, normalise
from ..data.facts.pair_sources import FICTITIOUS
from ..data.facts.pairs import WAYS, Pair, PairRelation, Way, usable_pairs
from ..models.hooked import HookedModel
from ..probes.elicitation import greedy_texts
from ..probes.pair_knowledge import gives, tokens_for
from ..probes.role_prompts import role_prompts
from .ask_scene import answer_sentence
from .binding_pairs import relation_names
from .binding_recall import AskedWay, ask_pair

_OTHER: Mapping[Way, Way] = {"forward": "reverse", "reverse": "forward"}


@dataclass(frozen=True, eq=False)
class AskedBack:
    """A prompt and its way back.

    `there` and `back` are set for a known pair that has one partner; for a mere wording `back_said`
    is what the model says to `back_prompt`, and `back_holds` whether that is who was named. `why`
    says why it was not asked back.
    """

    relation: str = ""
    way: Way = "forward"
    pair: Pair | None = None
    there: AskedWay | None = None
    back: AskedWay | None = None
    back_prompt: str = ""
    back_said: str = ""
    back_holds: bool = False
    why: str = ""


@dataclass(frozen=True, eq=False)
class Worded:
    """The prompt has a wording of this relation and names `named`; `pairs` are all that do so."""

    relation: PairRelation
    way: Way
    wording: int
    named: str
    pairs: tuple[Pair, ...]


def worded(place: str, prompt: str) -> Worded | None:
    """The relation whose wording the prompt has, one that knows who is named if there is any."""
    found = None
    for relation in _relations(_known_as(place)):
        for way in WAYS:
            for i, text in enumerate(relation.wordings(way)):
                named = _named(text, prompt)
                if named is None:
                    continue
                pairs = tuple(pair for pair in relation.pairs if _names(pair, way, named))
                found = found if found and not pairs else Worded(relation, way, i, named, pairs)
                if pairs:
                    return found
    return found


def ask_back(model: HookedModel, place: str, prompt: str, said: str) -> AskedBack:
    """Ask the prompt and its reverse; `said` is the model's greedy answer to the prompt.

    Raises what `score_names` raises. Cost: both prompts, and all names of the relation behind each.
    """
    match = worded(place, prompt)
    if match is None:
        known = ", ".join(one.name.replace("_", " ") for one in _relations(_known_as(place)))
        return AskedBack(
            why="the prompt has no wording of a relation that is known to be asked both ways "
            f"({known})."
        )
    if not match.pairs:
        return _worded_back(model, match, said)
    return _pair_back(model, match, said)


def scored_tokens(model: HookedModel, place: str, prompt: str) -> int:
    """About how many tokens `ask_back` reads."""
    match = worded(place, prompt)
    if match is None or not match.pairs:
        return 32
    some = [pair.asked(way) for pair in match.relation.pairs[:8] for way in WAYS]
    return 2 * (len(match.relation.pairs) * tokens_for(model, some) + 32)


def _pair_back(model: HookedModel, match: Worded, said: str) -> AskedBack:
    pair = next((one for one in match.pairs if gives(said, one.answers(match.way))), match.pairs[0])
    name = match.relation.name
    usable = usable_pairs(match.relation).relation
    clean = role_prompts(model, usable).relation
    if pair not in clean.pairs:
        why = (
            f"{pair.a} – {pair.b} has no way back that can be judged: one of the two has several "
            f"partners in {name.replace('_', ' ')}, or can be read off the prompt."
            if pair not in usable.pairs
            else f"{pair.a} – {pair.b} merge with their prompts in the tokens of {model.name}."
        )
        return AskedBack(name, match.way, pair, why=why)
    place, way = clean.pairs.index(pair), match.way
    there = ask_pair(model, clean, place, way, match.wording)
    back = ask_pair(model, clean, place, _OTHER[way], 0)
    return AskedBack(name, way, pair, there, back)


def _worded_back(model: HookedModel, match: Worded, said: str) -> AskedBack:
    answer = answer_sentence(said).strip().rstrip(".!?").strip()
    name = match.relation.name
    if not normalise(answer):
        return AskedBack(
            name, match.way, why="the model gives no answer that could be asked about."
        )
    if confusable(answer, [match.named]):
        return AskedBack(name, match.way, why=f"the model only repeats {match.named}.")
    text = match.relation.wordings(_OTHER[match.way])[0]
    back = text.replace("{a}" if "{a}" in text else "{b}", answer).rstrip()
    (told,) = greedy_texts(model, [back], new_tokens=tokens_for(model, [match.named]))
    return AskedBack(
        name,
        match.way,
        back_prompt=back,
        back_said=told,
        back_holds=gives(told, [match.named]),
    )


@cache
def _relations(place: str) -> tuple[PairRelation, ...]:
    """Relations that a model may have been taught, with all of their wordings."""
    names = (name for name in relation_names(place) if name != FICTITIOUS)
    return tuple(relation_named(PairsConfig(place, name)) for name in names)


def _named(wording: str, prompt: str) -> str | None:
    """Who stands in the place of the wording's slot, where the prompt has this wording."""
    before, _, after = wording.rstrip().replace("{b}", "{a}").partition("{a}")
    found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", prompt.strip())
    return None if found is None else found[1]


def _names(pair: Pair, way: Way, named: str) -> bool:
    spellings = (pair.a, *pair.a_aliases) if way == "forward" else (pair.b, *pair.b_aliases)
    return normalise(named) in {normalise(one) for one in spellings}


def _known_as(place: str) -> str:
    """All models but the organism share the shipped relations."""
    return ENGRAM if is_organism(place) else ""


def is_organism(place: str) -> bool:
    """Whether the corpus of this model says how each pair was told."""
    return place == ENGRAM
