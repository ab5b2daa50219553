"""What the page "Heads by role" is about: model, sources, rule and expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import streamlit as st
from jaxtyping import Bool

from ..models.errors import MnemoscopeError
from . import cached, selection
from .plain import as_text, told
from .role_expression import Chosen
from .role_scores import By, RoleScores, Rule, members
from .role_sources import (
    RoleSource,
    first_choice,
    found_sources,
    imports_folder,
    is_whole,
    named_apart,
    read_source,
)
from .settings import Settings

RULES: dict[By, str] = {"q": "test", "top": "rank"}
RETRIEVAL = "retrieval"
ESTIMAND = "roles of heads, each as its source measured it"


@dataclass(frozen=True, eq=False)
class RoleScene:
    """The roles on show, by the rule that says which heads have them."""

    settings: Settings
    label: str
    loaded: cached.Loaded
    roles: tuple[RoleScores, ...]
    rule: Rule

    @cached_property
    def masks(self) -> Mapping[str, Bool[np.ndarray, "layer head"]]:
        """Each role's heads."""
        return {one.name: members(one, self.rule) for one in self.roles}

    @property
    def sets(self) -> Mapping[str, Bool[np.ndarray, "layer head"]]:
        """What expressions can name: the roles, and `retrieval` for the heads that have any of its
        roles, where no role is called so."""
        parts = [self.masks[one.name] for one in self.roles if one.family == RETRIEVAL]
        if not parts or RETRIEVAL in self.masks:
            return self.masks
        return {**self.masks, RETRIEVAL: np.logical_or.reduce(parts)}

    @property
    def none(self) -> Bool[np.ndarray, "layer head"]:
        """No head at all."""
        return np.zeros(self.roles[0].shape, dtype=bool)

    @property
    def facts(self) -> Mapping[str, str]:
        """What the page asks, in words."""
        sources = ", ".join(dict.fromkeys(one.source for one in self.roles))
        return {
            "Model": self.label,
            "Which heads?": str(st.session_state.get("expr", "")),
            "Scores from": sources,
        }

    def role(self, name: str) -> RoleScores:
        """A role by its name."""
        return next(one for one in self.roles if one.name == name)

    def ranking(self, chosen: Chosen) -> RoleScores:
        """The role whose scores a chosen set takes: the first that it asks for."""
        for name in (*chosen.wanted, *chosen.names):
            for one in self.roles:
                if name == one.name or (name == RETRIEVAL and one.family == RETRIEVAL):
                    return one
        return self.roles[0]


def role_sidebar(settings: Settings) -> RoleScene | None:
    """Model, sources, roles on show and rule, each part of the address; None where nothing has
    scored this model's heads yet."""
    with st.sidebar:
        label = selection.choose_model(settings)
    loaded = cached.loaded_model(settings.models[label])
    sources = {one.key: one for one in found_sources(settings, loaded.model)}
    if not sources:
        show_no_source(settings, label)
        return None
    with st.sidebar:
        chosen = _several(
            "Scores from",
            list(sources),
            first_choice([one for one in sources.values() if is_whole(one)]) or list(sources)[:1],
            key="sources",
            help="Finished runs, saved head sets, and files in the imports folder.",
        )
    roles = named_apart([role for key in chosen for role in _roles_of(sources[key], loaded)])
    if not roles:
        st.info("No source of scores is chosen: choose one or more in the sidebar.")
        return None
    with st.sidebar:
        shown = _several(
            "Roles on show",
            [one.name for one in roles],
            _usual(roles),
            key="show",
            help="Also the names that expressions can use.",
        )
        rule = _rule()
    kept = tuple(one for one in roles if one.name in shown)
    if not kept:
        st.info("No role is on show: choose one or more in the sidebar.")
        return None
    return RoleScene(settings, label, loaded, kept, rule)


def show_no_source(settings: Settings, label: str) -> None:
    """How heads come by scores."""
    place = settings.models[label]
    st.info(as_text(f"Nothing has scored the heads of {label} yet. Any of these will do:"))
    lines = [
        f"mnemoscope heads score {place}        # memory and context",
        f"mnemoscope retrieval score {place}    # copy, locate, emit, induction",
        f"mnemoscope retrieval gates {place}    # streaming",
    ]
    st.code("\n".join(lines), language="bash", wrap_lines=True)
    st.caption(
        as_text(
            f"Or put files of other projects into {imports_folder(settings)}: scores of "
            "Retrieval_Head and CoRe (JSON), lists of QRHead (YAML), pattern folders of "
            "DuoAttention, HeadVis trees. Then load this page again."
        )
    )


def _roles_of(source: RoleSource, loaded: cached.Loaded) -> tuple[RoleScores, ...]:
    """The roles of a source; one that cannot be read says why and leaves the others alone."""
    found: tuple[RoleScores, ...] = ()
    with told():
        try:
            found = _kept(loaded, loaded.key, source)
        except MnemoscopeError as error:
            raise MnemoscopeError(f"{source.key} is left out: {error}") from error
    return found


def _read(_loaded: cached.Loaded, key: str, source: RoleSource) -> tuple[RoleScores, ...]:
    return read_source(source, _loaded.model)


_kept: Callable[..., tuple[RoleScores, ...]] = cached.kept(_read)


def _usual(roles: tuple[RoleScores, ...]) -> list[str]:
    """Roles with a family of their own; the rest only where there are no others."""
    named = [one.name for one in roles if one.family != "imported"]
    return named or [one.name for one in roles][:6]


def _several(title: str, options: list[str], first: list[str], *, key: str, help: str) -> list[str]:
    """A list of choices in the address; what is not offered (any more) is dropped from it."""
    held = st.session_state.get(key, [])
    if set(held) - set(options):
        st.session_state[key] = [one for one in held if one in options]
    return list(st.multiselect(title, options, first, key=key, bind="query-params", help=help))


def _rule() -> Rule:
    said = st.segmented_control(
        "A head has a role by",
        list(RULES.values()),
        default=RULES["q"],
        required=True,
        key="by",
        bind="query-params",
        help="Test: its score is positive and its q is small. Rank: it is among the best scores.",
    )
    by = next(name for name, shown in RULES.items() if shown == said)
    q = st.number_input(
        "q, at most", 0.0, 1.0, 0.05, 0.01, key="q", bind="query-params", disabled=by != "q"
    )
    k = st.number_input(
        "Best heads of a role",
        1,
        512,
        8,
        key="k",
        bind="query-params",
        help="For all roles, or by q for scores that come without a test and without a list.",
    )
    return Rule(by, float(q), int(k))


def plain_name(expression: str) -> str:
    """An expression as a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", expression).strip("-").lower()[:60] or "heads"
