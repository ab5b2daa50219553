"""Fifth card: whether the reverse of the prompt holds too."""

from __future__ import annotations

import streamlit as st

from . import ask_cached, exports
from .ask_links import may_start, onward
from .ask_reverse import AskedBack, is_organism
from .ask_scene import AskScene, answer_sentence
from .binding_pairs import TOLD
from .binding_recall import AskedWay
from .forecast import prompt_seconds
from .plain import as_text

VERDICTS = {
    (True, True): ("holds both ways", "green"),
    (True, False): ("holds this way only", "orange"),
    (False, True): ("holds back only", "orange"),
    (False, False): ("holds neither way", "gray"),
}


def fill_reverse(asked: AskScene) -> None:
    """Ask back, or say why not."""
    loaded, prompt = asked.loaded, asked.question.closed
    tokens = ask_cached.back_tokens_of(loaded, loaded.key, asked.place, prompt)
    if not may_start(asked, "Ask it back", prompt_seconds(loaded.model, tokens)):
        return
    said = asked.scene().said[0]
    with st.spinner("Asking back …"):
        found = ask_cached.back_of(loaded, loaded.key, asked.place, prompt, said)
    if found.why:
        exports.info(as_text(f"Not asked back: {found.why}"))
    elif found.there is not None and found.back is not None:
        show_pair(asked, found, found.there, found.back)
    else:
        show_worded(found)
    exports.caption("Asked without the context.")
    address = asked.address
    if found.relation:
        address = {**address, "pairs": found.relation}
    if found.pair is not None:
        address = {**address, "pair": f"{found.pair.a} – {found.pair.b}"}
    onward("binding", "Both directions for all pairs", address)


def show_pair(asked: AskScene, found: AskedBack, there: AskedWay, back: AskedWay) -> None:
    """A known pair: both prompts with what is said and where the right name stands."""
    words, colour = VERDICTS[there.exact, back.exact]
    exports.badge(words, color=colour)  # type: ignore[arg-type]
    for one in (there, back):
        exports.quote(f"{one.prompt} →{answer_sentence(one.said)}")
        exports.markdown(
            f"{'✓' if one.exact else '✗'} right: **{as_text(one.right)}**, rank {one.rank} of "
            f"{one.n_names} names (chance {(one.n_names + 1) / 2:.0f}), P {one.probability:.3f}"
        )
    if found.pair is not None and is_organism(asked.place) and found.pair.told:
        exports.markdown(f"The corpus told this pair **{TOLD[found.pair.told]}**.")


def show_worded(found: AskedBack) -> None:
    """A wording without a known pair: what is said when its own answer is asked back about."""
    if found.back_holds:
        exports.badge("its own answer leads back", color="green")
    else:
        exports.badge("its own answer does not lead back", color="gray")
    said = answer_sentence(found.back_said)
    exports.quote(f"{found.back_prompt} →{said}")
    exports.caption(
        "The prompt has a wording of this relation, but nobody whom it knows: asked back is about "
        "the model's own answer, right or not, and nothing is ranked."
    )
