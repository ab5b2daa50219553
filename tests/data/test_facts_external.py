"""Published sets are read from files of their own form, and refused with a reason otherwise."""

import builtins
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.data.facts import build_conflicts, load_external

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1"},
        "target_true": {"str": "French", "id": "Q2"},
        "subject": "Jane Roe",
    },
    "paraphrase_prompts": ["Jane Roe grew up speaking"],
}
PARACONFLICT = {
    "Category": "World Capital",
    "Subject": "Freedonia",
    "Answer": ["Fredville", "Fredtown"],
    "Distracted Token": " Sylvania",
    "Clean Prompt": "The capital of Freedonia is ",
    "Substitution Conflict": "The capital of Freedonia is Sylvania. The capital of Freedonia is ",
    "Coherent Conflict": "They moved. Question: Which? Answer: The capital of Freedonia is ",
}
CONFLICTQA = {
    "question": "Who wrote it?",
    "popularity": 3,
    "ground_truth": ["Ann", "A."],
    "memory_answer": "Ann",
    "parametric_memory": "Ann wrote it.",
    "counter_answer": "Bob",
    "counter_memory": "Bob wrote it.",
    "parametric_memory_aligned_evidence": "",
    "counter_memory_aligned_evidence": "Bob, it is known, wrote it.",
}


def write(path: Path, rows: Any, *, lines: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


def lre(name: str, samples: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "name": name,
        "prompt_templates": ["{} has the colour", "The colour of {} is"],
        "prompt_templates_zs": ["The colour of {} is", "What colour is {}? It is"],
        "properties": {"relation_type": "commonsense", "range_name": "colour"},
        "samples": [{"subject": s, "object": o} for s, o in samples],
    }


def test_lre_relations_are_read_from_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "commonsense" / "a.json", lre("fruit colour", [("lemon", "yellow")]))
    write(tmp_path / "b.json", lre("owner", [("x", "Ann"), ("x", "Bob"), ("y", "Bob")]))
    write(tmp_path / "other.json", {"no": "relation"})
    external = load_external("lre", tmp_path)
    assert external.license == "MIT"
    by_name = {relation.name: relation for relation in external.relations}
    assert set(by_name) == {"fruit colour", "owner"}
    fruit = by_name["fruit colour"]
    assert fruit.templates == (
        "{s} has the colour",
        "The colour of {s} is",
        "What colour is {s}? It is",
    )
    assert fruit.object_type == "colour"
    assert fruit.one_to_one
    assert fruit.facts[0].license == "MIT"
    assert not by_name["owner"].exclusive
    assert not by_name["owner"].one_to_one


def test_conflicts_can_be_built_on_a_loaded_relation(tmp_path: Path) -> None:
    pairs = [("lemon", "yellow"), ("lime", "green"), ("cherry", "red"), ("plum", "purple")]
    path = write(tmp_path / "a.json", lre("fruit colour", pairs))
    (relation,) = load_external("lre", path).relations
    built = build_conflicts(relation, relation.facts, template_id=1, seed=0)
    assert len(built.items) == 4
    assert built.items[0].prompt_qa.startswith("Context: The colour of ")


def test_pararel_keeps_only_patterns_that_end_with_the_object(tmp_path: Path) -> None:
    pairs = [{"sub_label": "France", "obj_label": "Paris", "uuid": "1"}]
    patterns = [
        {"pattern": "The capital of [X] is [Y] .", "lemma": "be"},
        {"pattern": "[Y] is the capital of [X] .", "lemma": "be"},
        {"pattern": "[X], whose capital is [Y].", "lemma": "be"},
        {"pattern": "The [Y] of it", "lemma": "be"},
    ]
    write(tmp_path / "trex" / "P36.jsonl", pairs, lines=True)
    write(tmp_path / "patterns" / "P36.jsonl", patterns, lines=True)
    write(tmp_path / "patterns" / "P37.jsonl", patterns, lines=True)
    (relation,) = load_external("pararel", tmp_path).relations
    assert relation.name == "P36"
    assert relation.templates == ("The capital of {s} is", "{s}, whose capital is")
    assert [(fact.subject, fact.object) for fact in relation.facts] == [("France", "Paris")]


def test_counterfact(tmp_path: Path) -> None:
    external = load_external("counterfact", write(tmp_path / "cf.json", [COUNTERFACT]))
    (record,) = external.conflicts
    assert record.id == "counterfact:7"
    assert record.prompt_closed == "The mother tongue of Jane Roe is"
    assert record.prompt_substitution == (
        "The mother tongue of Jane Roe is English. The mother tongue of Jane Roe is"
    )
    assert (record.mem_answers, record.ctx_answer) == (("French",), "English")
    assert record.paraphrases == ("Jane Roe grew up speaking",)
    assert external.license == record.license == "none stated"


def test_paraconflict(tmp_path: Path) -> None:
    path = write(tmp_path / "pc.jsonl", [PARACONFLICT], lines=True)
    (record,) = load_external("paraconflict", path).conflicts
    assert record.mem_answers == ("Fredville", "Fredtown")
    assert record.ctx_answer == "Sylvania"
    assert record.prompt_closed == "The capital of Freedonia is"
    assert record.prompt_coherent.endswith("Answer: The capital of Freedonia is")
    assert record.license == "none stated"
    assert record.source == str(path)


@pytest.mark.parametrize("lines", [True, False])
def test_conflictqa_is_read_in_either_layout(tmp_path: Path, lines: bool) -> None:
    path = write(tmp_path / "cqa.json", [CONFLICTQA, CONFLICTQA], lines=lines)
    first, second = load_external("conflictqa", path).conflicts
    assert first.id != second.id
    assert first.mem_answers == ("Ann",)
    assert first.true_answers == ("Ann", "A.")
    assert first.memory_evidence == "Ann wrote it."
    assert first.context_evidence == "Bob, it is known, wrote it."
    assert first.license == "Apache-2.0"


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    row = {**CONFLICTQA, "counter_memory_aligned_evidence": "one\u2028two"}
    path = tmp_path / "cqa.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (record,) = load_external("conflictqa", path).conflicts
    assert record.context_evidence == "one\u2028two"


def test_a_hub_name_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None) -> dict[str, list[dict[str, Any]]]:
        asked.append((name, config))
        return {"test": [CONFLICTQA]}

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    external = load_external("conflictqa", "owner/Set:Config-a")
    assert asked == [("owner/Set", "Config-a")]
    assert external.conflicts[0].source == "owner/Set:Config-a"


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"mnemoscope\[data\]"):
        load_external("paraconflict", "owner/Set")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'lama': use one of lre, counterfact"):
        load_external("lama", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["no/such.json", "./gone", "/no/where/at/all"])
def test_a_missing_path_is_not_taken_for_a_hub_name(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_external("counterfact", source)


def test_relations_are_not_read_from_the_hub() -> None:
    with pytest.raises(FileNotFoundError, match="give its folder"):
        load_external("lre", "owner/relations")


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [CONFLICTQA])
    with pytest.raises(ValueError, match=r"row 0 of .*x\.json is no counterfact row"):
        load_external("counterfact", path)
    with pytest.raises(ValueError, match="holds no lre relation"):
        load_external("lre", path)
    broken = lre("r", [])
    broken["samples"] = [{"subject": "a"}]
    with pytest.raises(ValueError, match=r"a row of y\.json has no 'subject' and 'object'"):
        load_external("lre", write(tmp_path / "y.json", broken))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(CONFLICTQA) + "\n{oops\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2"):
        load_external("conflictqa", path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no conflictqa rows"):
        load_external("conflictqa", path)
