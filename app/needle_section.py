"""The needle console: what was hidden and asked, what was said, which heads read it, and when."""

from __future__ import annotations

import polars
import streamlit as st

from ..models.types import HeadId
from . import exports, selection
from .answers import token_label
from .atlas_maps import borders
from .head_grid import head_grid
from .needle_charts import strip_chart, strip_table
from .needle_scene import SPAN_COLOURS, NeedleScene
from .needle_trial import NEW_TOKENS, SCORES, answer_weights
from .own_haystack import times_told
from .patterns import sharing
from .plain import as_text, told

_VERDICTS = {
    "needle": ("answered from the needle", "green"),
    "rival": ("answered with the rival's words", "orange"),
    "other": ("not answered", "gray"),
}


def show_trial(scene: NeedleScene) -> None:
    """Needle, question, the answer that the model gave, and the gate."""
    found, trial = scene.found, scene.found.trial
    left, right = st.columns(2, gap="large")
    with left:
        exports.caption(_where(scene))
        exports.quote(found.needle.statement)
        for rival in found.design.rivals(trial):
            exports.caption("Beside it stands the rival:")
            exports.quote(rival.statement)
        exports.caption("Then asked:")
        exports.quote(found.needle.questions[trial.question])
    with right:
        exports.caption(f"The model goes on by itself ({NEW_TOKENS} tokens at the most):")
        exports.quote(found.said.strip("\n") or "(nothing)")
        words, colour = _VERDICTS[found.verdict]
        exports.badge(words, color=colour)
        if found.known:
            exports.badge("also answered without the haystack: tells nothing", color="orange")
        scores = found.followed(scene.mode).scores
        exports.caption(
            f"Rows on show: those that predict {int(scores.steps[0])} tokens of the "
            f"{'gold answer' if scene.mode == 'forced' else 'model’s own answer'}; at "
            f"{float(scores.own_choice[0]):.0%} of them its first choice is the token that follows."
            " Forced rows are defined where the model fails too; free rows are what happened."
        )


def _where(scene: NeedleScene) -> str:
    """Where the needle stands, in words."""
    needle, trial = scene.found.needle, scene.found.trial
    tokens = f"at tokens {trial.needle.start} to {trial.needle.stop} of {trial.length}"
    if scene.own is None:
        return f"Hidden {tokens}, behind {trial.depth:.0%} of the filler:"
    times = times_told(scene.own, needle.answer)
    others = "" if times == 1 else f" (the first of {times} places that say it)"
    return (
        f"The needle: the sentence of your text that says “{as_text(needle.answer)}”{others}, "
        f"{tokens}:"
    )


def show_readers(scene: NeedleScene) -> str:
    """The grid of heads on the left, the chosen head's strip on the right; returns the score."""
    exports.header("Which heads read it?")
    left, right = st.columns(2, gap="large")
    with left:
        score: str = st.selectbox("Score", list(SCORES), key="reads", bind="query-params")
    frame = scene.frame(score)
    selection.start_with_best(frame)
    with right:
        head = choose_head(scene)  # before the grid, which begins with the head of the address
    with left:
        show_grid(scene, score, frame)
    with right, told():
        show_strip(scene, head)
    return score


def show_grid(scene: NeedleScene, score: str, frame: polars.DataFrame) -> None:
    """Heads light up by a score."""
    words = SCORES[score][1]
    key = selection.grid_key(scene.stamp, score)
    head_grid(
        frame,
        key=key,
        title=f"{score}: {words}",
        start=selection.start_of(key),
        on_pick=selection.on_pick,
    )
    if frame["score"].is_null().all():
        exports.info(
            "This score does not apply here: no row predicts what it asks for, or nothing of the "
            "kind is in the haystack. Choose another score, or another needle on the left."
        )
    exports.caption(
        f"{words.capitalize()}. One trial: no interval, nothing is tested. Blank: the head cannot "
        "see it. Click a cell to choose a head, shift-click for several."
    )


def show_strip(scene: NeedleScene, head: HeadId) -> None:
    """The chosen head: what each token of the answer read."""
    model, found = scene.loaded.model, scene.found
    steps = scene.steps(head)
    copied = int(steps["copied"].sum())
    exports.caption(
        f"{head} {sharing(model.anatomy, head)}. It copied at {copied} of {steps.height} steps: "
        "its highest weight lay on the answer in the needle, on the token that was then predicted."
    )
    pieces = [token_label(piece) for piece in model.pieces(found.followed(scene.mode).asked.ids)]
    weights = answer_weights(found, scene.mode, head)
    tokens = steps["token"].to_list()
    exports.chart(
        strip_chart(
            strip_table(weights, tokens, pieces, borders(found)),
            tokens,
            found.spans,
            len(pieces),
            SPAN_COLOURS,
            st.context.theme.type or "light",
        ),
        name=f"what the answer read in {head}",
        alt=f"What each token of the answer read in {head}, over the whole prompt.",
    )
    exports.table(
        steps,
        name=f"steps of {head}",
        alt=f"What each token of the answer read in {head}, with its weight.",
        columns={
            name: st.column_config.NumberColumn(name, format="%.3f")
            for name in ("weight", "needle")
        },
    )
    exports.caption(
        "Each row predicts a token of the answer; *read* is the token with its highest weight, "
        "*needle* its attention on the whole statement. Colours are logarithmic, the highest "
        "weight of each stretch of the prompt."
    )


def choose_head(scene: NeedleScene) -> HeadId:
    """Layer and head, typed or from a click."""
    anatomy = scene.loaded.model.anatomy
    sizes = (("layer", anatomy.n_layers), ("head", anatomy.n_heads))
    for name, count in sizes:
        if int(st.session_state.get(name) or 0) >= count:
            del st.session_state[name]
    selection.head_fields(anatomy)
    head = selection.chosen_head()
    exports.subheader(f"Head {as_text(str(head))}")
    return head
