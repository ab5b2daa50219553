"""Second section: the grid of heads on the left, the chosen head's pattern on the right."""

from __future__ import annotations

import streamlit as st

from ..probes.conflict_heads import ROLES, Role
from . import cached, exports, selection
from .charts import end_row_chart, pattern_chart
from .edge_section import show_edges
from .forecast import LONGEST_WAIT, sweep_seconds
from .head_grid import head_grid
from .patterns import MOST_TOKENS, end_row_table, pattern_table, sharing
from .plain import as_text, told
from .prompt_scores import METHOD, quantity
from .run_scores import RunScores, grid_frame, runs_with_scores
from .scene import Grid, Scene, shown_text

THIS_PROMPT = "this prompt"


def show_heads(scene: Scene) -> Grid | None:
    """The grid on the left, the chosen head on the right."""
    exports.header("Which heads speak for which answer?")
    left, right = st.columns(2, gap="large")
    grid, scored = None, True
    with left, told():
        grid, scored = choose_scores(scene)
    with right:
        selection.head_fields(scene.loaded.model.anatomy)  # the grid begins with the head of these
    if grid is not None:
        with left, told():
            draw_grid(scene, grid)
            if not scored:
                exports.caption(
                    f"No finished run has scored {as_text(scene.label)} yet. Scores over many "
                    "subjects, with intervals and tests: `mnemoscope heads score`."
                )
    with right, told():
        show_pattern(scene)
    show_strongest(scene)
    return grid


def choose_scores(scene: Scene) -> tuple[Grid | None, bool]:
    """Source and role, and the scores that they name; whether a run has scored this model."""
    model = scene.loaded.model
    found = runs_with_scores(scene.settings.runs_root, model.name)
    # A run of another model of the same name would not fit the grid.
    runs = {run.id: run for run in found if run.table.height == len(model.anatomy.all_heads())}
    source = st.selectbox("Scores from", [THIS_PROMPT, *runs], key="source", bind="query-params")
    role: Role = st.segmented_control(
        "Score",
        ROLES,
        default="memory",
        required=True,
        key="role",
        bind="query-params",
    )
    grid = run_grid(runs[source], role) if source in runs else prompt_grid(scene, role)
    if grid is not None:
        selection.start_with_best(grid.frame)
    return grid, bool(runs)


def draw_grid(scene: Scene, grid: Grid) -> None:
    """The grid and what its colours are."""
    asked = scene.loaded.key, scene.question, scene.answers, grid.run_id, grid.role
    key = selection.grid_key(*asked)
    head_grid(
        grid.frame,
        key=key,
        title=f"{grid.role} score, positive: speaks for the {grid.role} answer",
        start=selection.start_of(key),
        on_pick=selection.on_pick,
    )
    exports.caption(grid_caption(grid))


def run_grid(run: RunScores, role: Role) -> Grid:
    """The scores of a finished run."""
    method = f"conflict heads, {run.estimand}"
    return Grid(grid_frame(run.table, role), role, method, run.id)


def prompt_grid(scene: Scene, role: Role) -> Grid | None:
    """The scores of this prompt; a long sweep waits for a click."""
    loaded, answers = scene.loaded, scene.answers
    text = scene.question.given or scene.question.closed
    seconds = sweep_seconds(loaded.model)
    asked = (loaded.key, text, answers.both)
    if seconds > LONGEST_WAIT and st.session_state.get("swept") != asked:
        if not st.button(f"Score all heads (about {seconds:.0f} s)", type="primary"):
            return None
        st.session_state["swept"] = asked
    with st.spinner("Scoring all heads …"):
        table = cached.scores_of_prompt(loaded, loaded.key, text, answers.memory, answers.context)
    if role not in table.columns:
        exports.info(f"There is no {role} answer to score heads on: type one on the left.")
        return None
    words = quantity(scene.ids(text), role)
    return Grid(grid_frame(table, role), role, f"{METHOD}; {words}", None)


def grid_caption(grid: Grid) -> str:
    """What the colours are and how to use the grid."""
    tested = "" if grid.run_id else " One prompt: no interval, nothing is tested."
    return (
        f"Quantity: {as_text(grid.method)}.{tested} Purple speaks for the {grid.role} answer, "
        "orange against it. Click a cell to choose a head, shift-click for several; or type its "
        "layer and head."
    )


def show_pattern(scene: Scene) -> None:
    """The chosen head: whom it shares keys with, where END looks, the whole pattern."""
    anatomy = scene.loaded.model.anatomy
    names = [name for name, _ in scene.named]
    st.segmented_control(
        "Pattern", names, default=names[-1], required=True, key="pattern", bind="query-params"
    )
    sink = st.toggle("With the sink (first token)", key="with_sink", bind="query-params")
    head = selection.chosen_head()
    which, text = shown_text(scene)
    exports.subheader(f"Head {head}")
    found = cached.pattern_of_head(scene.loaded, scene.loaded.key, text, head.layer, head.head)
    tokens = len(found.labels)
    exports.caption(
        f"{head} {sharing(anatomy, head)}. {found.sink:.0%} of END's attention rests on the first "
        f"token (the sink){'' if sink else ', which is left out'}. Even attention would give each "
        f"of the {tokens} tokens {1 / tokens:.1%}."
    )
    exports.chart(
        end_row_chart(end_row_table(found, sink=sink)),
        name=f"attention of END in {head}",
        alt=f"Tokens that END attends to most in {head}.",
    )
    exports.caption("The ten tokens that END, the last position, attends to most.")
    if found.weights is None:
        exports.caption(
            f"The whole pattern is drawn for texts of up to {MOST_TOKENS} tokens; the strongest "
            "edges stand below."
        )
        return
    theme = st.context.theme.type or "light"
    exports.chart(
        pattern_chart(pattern_table(found, sink=sink), theme),
        name=f"attention pattern of {head} {which}",
        alt=f"Attention pattern of {head} {which}.",
    )
    exports.caption(
        f"Attention of {head} {which}: each row is a token that looks, each column one that is "
        "looked at. The colour scale is a square root, so that small weights show. Even attention "
        "gives the first row's only token 1, each of two in the second row 1/2, and so on down to "
        f"{1 / tokens:.3f} in the last."
    )


def show_strongest(scene: Scene) -> None:
    """The strongest edges of the chosen head over the whole text, with their own errors."""
    head, (which, text) = selection.chosen_head(), shown_text(scene)
    exports.subheader(f"Strongest edges of {head}, {which}")
    with told():
        with st.spinner("Reading the head's edges …"):
            found, tokens = cached.edges_of_text(
                scene.loaded,
                scene.loaded.key,
                text,
                head,
                not st.session_state.get("with_sink", False),
            )
        show_edges(found, tokens, head, key="edges")
