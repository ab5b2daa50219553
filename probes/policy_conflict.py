"""Does a sentence contradict a policy? An optional scorer, the part the paper only claims to have.

The paper promises semantic inconsistency with aligned policies and computes a token sum. What is
asked for here is the probability that a sentence contradicts a clause; whoever has a model for it
gives a `ConflictScorer`. One minus a cosine is none (`sentence_embeddings`): a refusal is as near
to the policy as a compliant answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..models.errors import MnemoscopeError
from ..results.logistic import fit_logistic, logistic_probability
from ..results.storage import write_new
from .sentence_embeddings import Embed

_ROWS = 32
_MAX_TOKENS = 512
_SENTENCE_ENDS = (".", "!", "?", "\n")


class ConflictScorer(Protocol):
    """Scores how probable it is that each text contradicts each policy."""

    @property
    def name(self) -> str:
        """What scored, for the record."""

    def score(
        self, policies: Sequence[str], texts: Sequence[str]
    ) -> Float[np.ndarray, "policy text"]:
        """Probabilities of contradiction, 0 to 1."""


@dataclass(frozen=True)
class PolicyCheck:
    """The clauses of a policy and what scores texts against them.

    Raises `MnemoscopeError` for no clause, or an empty one.
    """

    policies: tuple[str, ...]
    scorer: ConflictScorer

    def __post_init__(self) -> None:
        if not self.policies or not all(policy.strip() for policy in self.policies):
            raise MnemoscopeError("a policy needs at least one clause, and none may be empty.")


@dataclass(frozen=True)
class PolicyReading:
    """The clause a sentence contradicts most, and how probably."""

    conflict: float
    policy: str
    sentence: str


@dataclass(frozen=True)
class ConstantConflict:
    """The same score for everything: for tests, and to see what the other parts do alone."""

    value: float
    name: str = "constant"

    def score(
        self, policies: Sequence[str], texts: Sequence[str]
    ) -> Float[np.ndarray, "policy text"]:
        """`value` everywhere."""
        return np.full((len(policies), len(texts)), self.value)


@dataclass(frozen=True, eq=False)
class ProbeConflict:
    """A logistic head on sentence embeddings, trained on pairs of one's own (`train_probe`).

    `weights` are those of `[u, v, |u - v|, u * v]`, `u` the policy and `v` the text, then the bias.
    """

    embed: Embed
    weights: Float[np.ndarray, " features"]
    name: str = "linear probe on sentence embeddings"

    def score(
        self, policies: Sequence[str], texts: Sequence[str]
    ) -> Float[np.ndarray, "policy text"]:
        """Probabilities by the head. Raises `MnemoscopeError` for embeddings of another width."""
        left, right = self.embed(policies), self.embed(texts)
        if 4 * left.shape[1] + 1 != len(self.weights):
            raise MnemoscopeError(
                f"the probe has {len(self.weights)} weights and the embeddings {left.shape[1]} "
                "coordinates: train it on the embedding model that it is used with."
            )
        rows = [
            logistic_probability(_design(np.tile(u, (len(right), 1)), right), self.weights)
            for u in left
        ]
        return np.array(rows).reshape(len(policies), len(texts))


@dataclass(frozen=True, eq=False)
class NliConflict:
    """A natural-language-inference cross-encoder: the policy is premise, the text hypothesis."""

    model: Any
    tokenizer: Any
    contradiction: int
    name: str

    @torch.no_grad()
    def score(
        self, policies: Sequence[str], texts: Sequence[str]
    ) -> Float[np.ndarray, "policy text"]:
        """The model's probability of its label "contradiction"."""
        pairs = [(policy, text) for policy in policies for text in texts]
        found: list[float] = []
        for at in range(0, len(pairs), _ROWS):
            premises, hypotheses = zip(*pairs[at : at + _ROWS], strict=True)
            batch = self.tokenizer(
                list(premises),
                list(hypotheses),
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            found += self.model(**batch).logits.softmax(-1)[:, self.contradiction].tolist()
        return np.array(found).reshape(len(policies), len(texts))


def nli_scorer(folder: str | Path) -> NliConflict:
    """A scorer from a local folder with an NLI model and its tokenizer; nothing is downloaded.

    Raises `MnemoscopeError` where there is no model, or none with a label "contradiction".
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise MnemoscopeError(f"{place} holds no NLI model: give the folder of its config.json.")
    model = AutoModelForSequenceClassification.from_pretrained(place, local_files_only=True).eval()
    labels = {str(label).lower(): int(i) for i, label in model.config.id2label.items()}
    if "contradiction" not in labels:
        raise MnemoscopeError(
            f"the model in {place} has the labels {sorted(labels)} and none is 'contradiction': "
            "give a model of natural language inference."
        )
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    return NliConflict(model, tokenizer, labels["contradiction"], f"NLI model {place.name}")


def train_probe(
    embed: Embed,
    policies: Sequence[str],
    texts: Sequence[str],
    contradicts: Sequence[bool],
    *,
    ridge: float = 1.0,
) -> ProbeConflict:
    """A logistic head on one's own pairs: does `texts[i]` contradict `policies[i]`?

    `ridge` weighs half the squared weights (not the bias) against the sum of log losses. Hold
    pairs back and look at how it does on them: a head on few pairs knows little. Raises
    `MnemoscopeError` unless there are pairs of both kinds.
    """
    labels = np.asarray(contradicts, dtype=np.float64)
    if not len(policies) == len(texts) == len(labels) or len({*labels.tolist()}) < 2:
        raise MnemoscopeError(
            "a probe is trained on pairs: one policy, text and label each, of both labels."
        )
    left, right = embed(policies), embed(texts)
    return ProbeConflict(embed, fit_logistic(_design(left, right), labels > 0, ridge=ridge))


def save_probe(probe: ProbeConflict, path: str | Path, *, force: bool = False) -> None:
    """Write the head's weights as JSON. Raises `RunFolderError` for a file that is there
    without `force`."""
    content = json.dumps({"name": probe.name, "weights": probe.weights.tolist()})
    write_new(Path(path), content, force=force)


def load_probe(path: str | Path, embed: Embed) -> ProbeConflict:
    """Read `save_probe` back. Raises `MnemoscopeError` for another kind of file."""
    try:
        raw = json.loads(Path(path).read_text("utf-8"))
        return ProbeConflict(embed, np.array(raw["weights"], dtype=np.float64), str(raw["name"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MnemoscopeError(f"{path} is no probe ({error}): train and save it again.") from error


def policy_readings(check: PolicyCheck, sentences: Sequence[str]) -> tuple[PolicyReading, ...]:
    """For each sentence the clause it contradicts most; a sentence is scored once.

    Raises `MnemoscopeError` for a scorer whose scores are no probabilities.
    """
    texts = list(dict.fromkeys(sentences))
    if not texts:
        return ()
    scores = np.asarray(check.scorer.score(check.policies, texts), dtype=np.float64)
    inside = scores.shape == (len(check.policies), len(texts)) and ((scores >= 0) & (scores <= 1))
    if not np.all(inside):
        raise MnemoscopeError(
            f"{check.scorer.name} gave no probabilities of {len(check.policies)} policies by "
            f"{len(texts)} texts: a ConflictScorer answers with numbers from 0 to 1."
        )
    worst = scores.argmax(axis=0)
    return tuple(
        PolicyReading(float(scores[worst[i], i]), check.policies[worst[i]], sentence)
        for sentence in sentences
        for i in [texts.index(sentence)]
    )


def sentence_around(text: str, start: int, stop: int) -> str:
    """The sentence or sentences that hold these characters, ends of lines being ends too."""
    opening = max(text.rfind(mark, 0, start) for mark in _SENTENCE_ENDS) + 1
    inner = max(start, stop - 1)
    places = [at for mark in _SENTENCE_ENDS if (at := text.find(mark, inner)) >= 0]
    return text[opening : min(places, default=len(text) - 1) + 1].strip()


def _design(
    left: Float[np.ndarray, "n d"], right: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n f"]:
    return np.concatenate([left, right, np.abs(left - right), left * right], axis=1)
