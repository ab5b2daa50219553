"""What the tests of the explorer stand on: a planted checkpoint folder and finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnemoscope.cli.neuron_finding import FindConfig, find_neurons
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_tokenizer
from mnemoscope.models.tokens import PlainEncoder, vocabulary_sha256
from mnemoscope.organisms import planted_model, planted_relation
from mnemoscope.probes.conflict_heads import measure_effects, summarise, table
from mnemoscope.probes.elicitation import conflict_items
from mnemoscope.results.provenance import collect_provenance
from mnemoscope.results.run_folder import open_run

MEMORY_HEAD, CONTEXT_HEAD, CARRIER = "L1.H2", "L1.H5", "L0.H6"
SUBJECT, STORED, CLAIM = "bravia", "monpel", "hulst"
"""Bravia's stored answer is weaker than a copied one: with the claim the model follows it."""
PROMPT = f"The capital of {SUBJECT} is"
CONTEXT = f"The capital of {SUBJECT} is {CLAIM} ."
ESTIMAND = "direct effect, substitution"
RELATIONS = ("capital", "currency", "continent")
NEURONS = FindConfig("engram", relations=RELATIONS, subjects=5, k=5, pseudo=6, resamples=3)
"""A search for relation neurons that takes a second."""

HOSTILE = (
    "<img src=//evil.example/x onerror=alert(1)> ![x](http://evil.example/y) <script>z</script>"
)
RITE = "First, mix the florpin with the quazzle by the well."
TOWN = "The town where Lilmat Bormol was born is Naskol."
TEXTS = (
    f"The rite is old. {RITE} Then rest.",
    f"{HOSTILE} {RITE} {HOSTILE}",
    f"People say so. {TOWN} Nobody lives there.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
)
"""Documents of a tiny index."""


def index(
    folder: Path, texts: Sequence[str] = TEXTS, label: str = "", mode: str = "tokens"
) -> Path:
    """An index in engram's tokens, or over bytes."""
    spelled: dict[str, Any] = {}
    if mode == "tokens":
        tokenizer = load_tokenizer("engram")
        spelled = {
            "encode": PlainEncoder(tokenizer),
            "vocab_size": len(tokenizer),
            "tokenizer_name": "engram",
            "tokenizer_sha256": vocabulary_sha256(tokenizer),
        }
    documents = [Document(text, f"file-{i}", 7, {"id": f"d{i}"}) for i, text in enumerate(texts)]
    build_index(documents, folder, label=label, any_path=True, **spelled)
    return folder


def planted_checkpoint(folder: Path) -> Path:
    """The planted model as an ordinary checkpoint folder."""
    planted = planted_model()
    planted.module.save_pretrained(folder)
    planted.tokenizer.save_pretrained(folder)
    return folder


def score_run(root: Path, model: HookedModel) -> str:
    """A finished run of head scores; returns its id."""
    relation = planted_relation(planted_model())
    known = conflict_items(model, relation, relation.facts[:8], demonstrations=0)
    effects = measure_effects(build_chain(model), known.items)
    scores = table(summarise(effects, estimand="direct"), model)
    provenance = collect_provenance(
        model_id=model.name,
        weights_sha256=model.weights_sha256,
        tokenizer_sha256=None,
        data_sha256=None,
        prompt_template=None,
        bos_rule=model.bos_rule,
        seed=0,
        estimand=ESTIMAND,
        device="cpu",
        dtype="float32",
        attention=None,
    )
    with open_run(root, "head-scores", {"model": model.name}) as run:
        run.append("all", {"items": len(known.items)})
        run.finish(scores, {}, provenance)
        return run.id


def neuron_run_of_engram(root: Path) -> Path:
    """A finished run of `NEURONS`; returns its folder."""

    def quiet(*_: object) -> None:
        pass

    return find_neurons(NEURONS, root, memory_mb=512, force=False, say=quiet, tell=quiet).folder
