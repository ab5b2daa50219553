"""Last section: the trace as a page, a table or JSON, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import streamlit as st

from ..cli.tracing_report import report_of, summary_of
from ..probes.provenance_tables import span_table
from ..results.provenance import Provenance, collect_provenance
from . import exports
from .trace_scene import TraceScene

ESTIMAND = "verbatim occurrence in the index, not cause"


def show_export(scene: TraceScene) -> None:
    """Three downloads, each made when it is asked for."""
    st.header("Take it along", anchor=False)
    # The functions below do not name the scene: it holds the model, which Streamlit would keep with
    # them until the next page is there, and the next model is loaded before.
    trace, provenance = scene.trace, provenance_of(scene)
    summary = summary_of(trace, scene.found, prompt=scene.said.prompt, model=scene.label)

    def report() -> str:
        return report_of(trace, summary, provenance)

    def record() -> str:
        return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    files: tuple[tuple[str, Callable[[], str], str, str], ...] = (
        ("Report (HTML)", report, "trace.html", "text/html"),
        ("Spans (CSV)", span_table(trace).write_csv, "spans.csv", "text/csv"),
        ("All of it (JSON)", record, "trace.json", "application/json"),
    )
    for place, (label, made, name, kind) in zip(st.columns(3), files, strict=True):
        with place:
            exports.file_button(label, made, name, kind)
    st.caption("The address of this page brings the same trace back. In a terminal:")
    st.code(trace_command(scene), language="bash", wrap_lines=True)


def provenance_of(scene: TraceScene) -> Provenance:
    """The model's part in it is to have written the answer; of a typed text it has none."""
    nobody = dict.fromkeys(("weights_sha256", "bos_rule", "attention"))
    unknown = {"model_id": "none", "device": "cpu", "dtype": "ids", **nobody}
    unknown["tokenizer_sha256"] = scene.found.info.tokenizer_sha256 or None
    return collect_provenance(
        **(scene.loaded.model.identity if scene.said.ids else unknown),
        data_sha256=scene.found.sha256,
        prompt_template=scene.said.prompt or None,
        seed=scene.trace.rules.seed,
        estimand=ESTIMAND,
    )


def trace_command(scene: TraceScene) -> str:
    """The command that traces the same, quoted for a shell."""
    rules = scene.trace.rules
    options = ["--runs", str(scene.settings.runs_root)]
    options += ["--min-length", str(rules.min_length), "--max-count", str(rules.max_count or 0)]
    if scene.benign is not None:
        options += ["--benign", str(scene.benign.folder)]
    if scene.said.ids:
        place = scene.settings.models[scene.label]
        options += ["--model", place, "--prompt", scene.said.prompt]
        options += ["--new-tokens", str(scene.asked.new_tokens)]
    given = [str(scene.found.folder)] + ([] if scene.said.ids else [scene.said.text])
    return shlex.join(["mnemoscope", "trace", "text", *options, "--", *given])
