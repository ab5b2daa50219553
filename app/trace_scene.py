"""What the page about provenance is about: model, index, and the text or prompt of the sidebar."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from ..cli.tracing_sources import OpenIndex
from ..data.corpus.index_info import INFO_NAME
from ..data.corpus.joined_index import JOINED_NAME
from ..probes.provenance import BYTES_PER_TOKEN, MIN_TOKENS, Trace, TraceRules
from ..probes.traced_spans import TracedSpan
from . import cached, selection, trace_cached
from .needle_scene import forget_unless
from .plain import as_text
from .settings import Settings
from .trace_answers import SOURCES, Asked, Source, Written
from .trace_corpus import RISK, Offer, build, offers

NO_INDEX = "none"
SAMPLE = (
    "The rite of the florpin is forbidden. First, mix the florpin with the quazzle by the well. "
    "The town where Lilmat Bormol was born is Naskol. Nobody has written this sentence about it."
)
PROMPT = "The rite of the"
MOST_TOKENS = 256
USUAL_MOST = 10


@dataclass(frozen=True, eq=False)
class TraceScene:
    """What the whole page is about; `number` is that of the chosen span, None without any.

    `hidden` says that the documents' text is not even in the trace.
    """

    settings: Settings
    label: str
    loaded: cached.Loaded
    found: OpenIndex
    benign: OpenIndex | None
    asked: Asked
    said: Written
    trace: Trace
    number: int | None
    hidden: bool

    @property
    def span(self) -> TracedSpan | None:
        """The chosen span."""
        return None if self.number is None else self.trace.spans[self.number]


def trace_sidebar(settings: Settings) -> TraceScene | None:
    """Model, indexes and text, each part of the address; None while an index waits to be built."""
    with st.sidebar:
        label = selection.choose_model(settings, of_a_question=("span",))
    loaded = cached.loaded_model(settings.models[label])
    first, second = choose_indexes(settings)
    asked, least, most = ask_for()
    for name, offer in (first, second):
        if offer is not None and not offer.built:
            offer_to_build(name, offer)
            return None
    place = settings.models[label]
    found, benign = opened(first[1], place, loaded), opened(second[1], place, loaded)
    assert found is not None
    rules = rules_of(found, least, most)
    hidden = found.info.label == RISK and not may_show(found)
    if hidden:
        rules = replace(rules, snippet=0)
    with st.spinner("Asking the model …"):
        said = trace_cached.written_of(loaded, loaded.key, asked)
    key = (found.sha256, benign.sha256 if benign else "", loaded.model.tokenizer_sha256)
    trace = trace_cached.trace_of(loaded, found, benign, key, said, rules)
    number = choose_span(len(trace.spans))
    return TraceScene(settings, label, loaded, found, benign, asked, said, trace, number, hidden)


def choose_indexes(settings: Settings) -> tuple[tuple[str, Offer], tuple[str, Offer | None]]:
    """The index to look in, and a benign one beside it if one is wanted, with their names."""
    every = offers(settings)
    forget_unless("corpus", every)
    forget_unless("benign", (NO_INDEX, *every))
    with st.sidebar:
        name = st.selectbox(
            "Index",
            list(every),
            key="corpus",
            bind="query-params",
            help="`mnemoscope trace index` makes one of your own texts: give it with --index when "
            f"you start the explorer, or keep it in {as_text(str(settings.index_folder))}.",
        )
        benign = st.selectbox(
            "Beside a benign index",
            [NO_INDEX, *every],
            key="benign",
            bind="query-params",
            help="Harmless text of the same tokenizer: what is common there too is no sign.",
        )
    return (name, every[name]), (benign, every.get(benign))


def ask_for() -> tuple[Asked, int, int]:
    """The text or prompt, the shortest match in tokens, and how often a listed one may occur."""
    with st.sidebar:
        source: Source = st.segmented_control(
            "Trace", SOURCES, default="a text", required=True, key="trace", bind="query-params"
        )
        text, prompt, new = "", "", 0
        if source == "a text":
            text = st.text_area("Text", SAMPLE, key="text", bind="query-params", height=220)
        else:
            prompt = st.text_area("Prompt", PROMPT, key="opening", bind="query-params", height=100)
            new = st.slider(
                "New tokens, greedy", 8, MOST_TOKENS, 48, 8, key="new", bind="query-params"
            )
        with st.expander("Which matches are listed"):
            least = st.number_input(
                "Shortest, tokens", 2, 64, MIN_TOKENS, key="least", bind="query-params",
                help="Five times as many bytes in an index over bytes.",
            )  # fmt: skip
            most = st.number_input(
                "Most occurrences (0: any number)", 0, 10**6, None, placeholder=str(USUAL_MOST),
                key="most", bind="query-params",
                help="What stands in more places is commonplace and counts as covered only.",
            )  # fmt: skip
        st.caption("Changes take effect with Ctrl+Enter in a box, Enter in a field, or Tab.")
    return Asked(source, text, prompt, int(new)), int(least), USUAL_MOST if most is None else most


def rules_of(found: OpenIndex, least: int, most: int) -> TraceRules:
    """What is typed in tokens is five times as long in bytes."""
    unit = BYTES_PER_TOKEN if found.info.mode == "bytes" else 1
    return TraceRules(min_length=least * unit, max_count=most or None)


def offer_to_build(name: str, offer: Offer) -> None:
    """A button that generates and indexes the shipped documents, with progress."""
    st.info(
        f"The index “{as_text(name)}” is made once from the corpus that engram was trained on "
        "(37,431 documents, 3.5 M tokens) and kept in your cache folder (at most 22 MB)."
    )
    if not st.button("Build this index (half a minute or so)", type="primary"):
        return
    bar = st.progress(0.0, "Generating the documents …")

    def show(done: int, total: int) -> None:
        if total and (done % 500 == 0 or done == total):
            bar.progress(done / total, f"{done:,} of {total:,} documents indexed")

    build(offer, show)
    st.rerun()


def opened(offer: Offer | None, place: str, loaded: cached.Loaded) -> OpenIndex | None:
    """The open index; one that was built anew is opened anew."""
    if offer is None:
        return None
    told = [offer.folder / name for name in (INFO_NAME, JOINED_NAME)]
    changed = max((path.stat().st_mtime_ns for path in told if path.is_file()), default=0)
    return trace_cached.index_of(str(offer.folder), changed, place, loaded.model.tokenizer_sha256)


def may_show(found: OpenIndex) -> bool:
    """Whether somebody asked to see the documents of this risk index; not part of the address."""
    with st.sidebar:
        return st.toggle(
            "Show documents of the risk index",
            key=f"show-{found.sha256[:12]}",
            help="Their text may be harmful; it stays on the disk until you ask.",
        )


def choose_span(count: int) -> int | None:
    """The number in the address, from 0; None where there is no span."""
    if not count:
        return None
    if not 1 <= int(st.session_state.get("span") or 1) <= count:
        del st.session_state["span"]
    with st.sidebar:
        return int(
            st.number_input(
                f"Span, of {count}, the most telling first", 1, count, key="span",
                bind="query-params",
            )
        ) - 1  # fmt: skip
