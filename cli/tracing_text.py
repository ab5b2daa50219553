"""The work behind `trace text`: a text or a model's answer, traced once, kept as a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars

from ..data.corpus.documents import read_documents
from ..data.corpus.suffix_index import SuffixIndex
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.belief_conflict import belief_index
from ..probes.elicitation import Progress
from ..probes.policy_conflict import PolicyCheck, nli_scorer
from ..probes.provenance import Evidence, Trace, TraceRules, trace_ids, trace_text
from ..probes.provenance_tables import span_table
from ..probes.provenance_verdict import Calibration, calibrate
from ..probes.span_significance import Background, ngram_background, unigram_background
from ..results.provenance import Provenance, collect_provenance
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from .tracing_report import report_of, summary_of
from .tracing_sources import OpenIndex, one_sentence, open_for, split_of

KIND = "trace"


@dataclass(frozen=True)
class TextConfig:
    """Everything that decides what `trace text` says, and nothing else.

    Either a `text`, or a `model` that answers a `prompt`. Paths are kept as they were given.
    """

    index: str
    text: str = ""
    prompt: str = ""
    model: str = ""
    new_tokens: int = 64
    benign: str = ""
    background: str = "own"
    policy: str = ""
    nli: str = ""
    calibrate: str = ""
    false_refusal: float = 0.01
    field: str = "text"
    paragraphs: bool = False
    min_length: int | None = None
    max_count: int = 10
    documents: int = 10
    snippet: int | None = None
    alpha: float = 0.01
    tokenizer: str = ""
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for options that do not go together."""
        wrong = [sentence for sentence, holds in self._troubles() if holds]
        if wrong:
            raise MnemoscopeError(wrong[0])

    @property
    def rules(self) -> TraceRules:
        """The rules of the trace."""
        return TraceRules(
            min_length=self.min_length,
            max_count=self.max_count or None,
            docs_per_span=self.documents,
            snippet=self.snippet,
            alpha=self.alpha,
            seed=self.seed,
        )

    def _troubles(self) -> Sequence[tuple[str, bool]]:
        return (
            (
                "give either a text, or a model and its prompt (--model, --prompt).",
                bool(self.text) == bool(self.model),
            ),
            ("--model needs a --prompt to answer.", bool(self.model) and not self.prompt.strip()),
            (
                f"--background is {self.background!r}: use own or benign.",
                self.background not in ("own", "benign"),
            ),
            (
                "--background benign needs the benign index: name it with --benign.",
                self.background == "benign" and not self.benign,
            ),
            (
                "a policy is judged by a model: give both --policy (a clause a line) and --nli.",
                bool(self.policy) != bool(self.nli),
            ),
        )


@dataclass(frozen=True)
class TextResult:
    """A finished run: its table of spans and what was found."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    @property
    def flagged(self) -> bool:
        """Did the verdict flag the text?"""
        return bool(self.summary["verdict"]["flagged"])

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary}


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a model wrote behind a prompt."""

    model: HookedModel
    prompt_ids: Sequence[int]
    ids: Sequence[int]

    @property
    def text(self) -> str:
        return str(self.model.text_tokenizer.decode(list(self.ids)))


def trace_given(
    config: TextConfig, root: Path, *, force: bool, say: Callable[[str], None], tell: Progress
) -> TextResult:
    """Trace, judge, save; a run that is done already is read.

    Raises `MnemoscopeError` with the reason.
    """
    traced = open_for(config.index, config.tokenizer)
    benign = open_for(config.benign, config.tokenizer) if config.benign else None
    key = {
        **asdict(config),
        "index_sha256": traced.sha256,
        "benign_sha256": benign.sha256 if benign else None,
        **{
            f"{name}_sha256": _file_sha256(getattr(config, name))
            for name in ("calibrate", "policy")
        },
    }
    with open_run(root, KIND, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to trace again).")
        else:
            _trace(config, traced, benign, run, say, tell)
        return read_trace(run.folder)


def read_trace(folder: Path) -> TextResult:
    """A finished `trace` run. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "coverage" not in summary:
        raise MnemoscopeError(f"{folder} is not a run of `trace text`: name one of its folders.")
    return TextResult(folder, loaded.table, dict(summary))


def _trace(
    config: TextConfig,
    traced: OpenIndex,
    benign: OpenIndex | None,
    run: Run,
    say: Callable[[str], None],
    tell: Progress,
) -> None:
    say(traced.words)
    if benign is not None:
        say(f"beside {benign.words}")
    evidence = _evidence(config, traced, benign)
    if config.calibrate:
        evidence = replace(evidence, calibration=_calibration(config, traced, evidence, tell))
    answer = _written(config) if config.model else None
    trace = _traced(config, traced, evidence, answer)
    summary = summary_of(trace, traced, prompt=config.prompt, model=config.model)
    if "summary" not in run.done:
        run.append("summary", summary)
    provenance = _provenance(config, traced, answer)
    report = report_of(trace, summary, provenance)
    run.finish(span_table(trace), {}, provenance, report_html=report)


def _traced(
    config: TextConfig, traced: OpenIndex, evidence: Evidence, answer: _Answer | None
) -> Trace:
    """The trace of the text, or of the ids that a model with the index's own tokenizer wrote."""
    told: dict[str, Any] = {"rules": config.rules, "evidence": evidence}
    if answer is None:
        return trace_text(traced.index, config.text, traced.spelling, prompt=config.prompt, **told)
    if not answer.text.strip():
        raise MnemoscopeError("the model wrote nothing behind this prompt: use another one.")
    if answer.model.tokenizer_sha256 != traced.spelling.sha256:
        return trace_text(traced.index, answer.text, traced.spelling, prompt=config.prompt, **told)
    return trace_ids(
        traced.index, answer.ids, traced.spelling, prompt_ids=answer.prompt_ids, **told
    )


def _written(config: TextConfig) -> _Answer:
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    batch = model.tokens([config.prompt])
    (ids,) = model.generate(batch, config.new_tokens)
    return _Answer(model, batch.row(0).tolist(), ids)


def _evidence(config: TextConfig, traced: OpenIndex, benign: OpenIndex | None) -> Evidence:
    """What spans are held against; whatever an index has to be read for is read once."""
    harmless = None if benign is None else benign.index
    return Evidence(
        benign=harmless,
        background=_background(config, traced.index, harmless),
        policy=PolicyCheck(_clauses(config.policy), nli_scorer(config.nli))
        if config.policy
        else None,
        belief=belief_index(traced.index),
    )


def _background(config: TextConfig, traced: SuffixIndex, benign: SuffixIndex | None) -> Background:
    if benign is None or config.background == "own":
        return unigram_background(traced)
    return ngram_background(benign)


def _clauses(path: str) -> tuple[str, ...]:
    with one_sentence():
        lines = Path(path).read_text("utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _calibration(
    config: TextConfig, traced: OpenIndex, evidence: Evidence, tell: Progress
) -> Calibration:
    """Thresholds from harmless texts, traced as the text will be, without their documents."""
    rules = replace(config.rules, docs_per_span=1, snippet=0)
    with one_sentence():
        split = split_of(config.paragraphs)
        harmless = list(read_documents(config.calibrate, field=config.field, split=split))
    spans = []
    for done, document in enumerate(harmless, 1):
        if document.text.strip():
            trace = trace_text(
                traced.index, document.text, traced.spelling, rules=rules, evidence=evidence
            )
            spans.append(trace.spans)
        tell(done, len(harmless))
    return calibrate(spans, config.false_refusal)


def _provenance(config: TextConfig, traced: OpenIndex, answer: _Answer | None) -> Provenance:
    nobody = dict.fromkeys(("weights_sha256", "bos_rule", "attention"))
    unknown = {"model_id": "none", "device": "cpu", "dtype": "ids", **nobody}
    unknown["tokenizer_sha256"] = traced.info.tokenizer_sha256 or None
    return collect_provenance(
        **(unknown if answer is None else answer.model.identity),
        data_sha256=traced.sha256,
        prompt_template=config.prompt or None,
        seed=config.seed,
        estimand="verbatim occurrence in the index, not cause",
    )


def _file_sha256(path: str) -> str | None:
    """Hash of a file that decides the result, so that a changed one is another run."""
    if not path or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
