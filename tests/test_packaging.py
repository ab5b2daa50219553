"""The repository is the package, its package list is complete, and its floors hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "data", "results", "organisms", "interventions", "probes", "cli", "app")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {"mnemoscope"} | {
        "mnemoscope." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert found == listed


def test_every_package_has_an_init_that_says_what_it_holds() -> None:
    for folder in PROJECT["tool"]["setuptools"]["packages"]:
        init = ROOT.joinpath(*folder.split(".")[1:], "__init__.py")
        assert init.read_text("utf-8").startswith('"""'), init
        assert len(init.read_text("utf-8").split('"""')[1]) > 10, init


def test_data_files_of_the_package_are_declared() -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    assert (ROOT / "data" / "neutral.txt").is_file()
    assert "neutral.txt" in declared["mnemoscope.data"]
    assert "relations/*.json" in declared["mnemoscope.data.facts"]


def test_everything_that_ships_stays_under_25_megabytes() -> None:
    """Uncompressed, so the wheel is smaller still; the organism and its corpus are in it."""
    shipped = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        place = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            found = [path for path in place.glob(pattern) if path.is_file()]
            assert found, (package, pattern)
            shipped |= set(found)
    assert ROOT / "models" / "engram" / "model.safetensors" in shipped
    assert sum(path.name.endswith("txt") for path in shipped) > 40
    assert sum(path.stat().st_size for path in shipped) < 25e6


def test_library_files_import_relatively() -> None:
    """Outside tests and scripts that are run by path, nobody writes `from mnemoscope`."""
    entries = (ROOT / "app" / "main.py", ROOT / "app" / "server.py")
    by_path = {*entries, *(ROOT / "app" / "views").glob("*.py")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text("utf-8").splitlines()
            absolute = [x for x in lines if x.startswith(("from mnemoscope", "import mnemoscope"))]
            assert not absolute or path in by_path, path


def _imports_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_command_line_starts_without_torch() -> None:
    assert "torch" not in _imports_after("import mnemoscope.cli.main")
    assert "torch" not in _imports_after("from mnemoscope.models import HeadId")


def test_the_import_contract_fails_on_an_upward_import(tmp_path: Path) -> None:
    """A copy of the house with one upward import is refused; the house itself is not."""
    pytest.importorskip("importlinter")
    house = tmp_path / "mnemoscope"
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        source = ROOT.joinpath(*package.split(".")[1:])
        target = house.joinpath(*package.split(".")[1:])
        target.mkdir(parents=True)
        for path in source.glob("*.py"):
            (target / path.name).write_text(path.read_text("utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text("utf-8"))
    assert _lint(tmp_path) == 0
    upward = house / "models" / "types.py"
    upward.write_text(upward.read_text("utf-8") + "\nfrom ..probes import conflict_heads\n")
    assert _lint(tmp_path) == 1


def _lint(folder: Path) -> int:
    code = (
        "import sys; sys.path.insert(0, '.'); sys.meta_path = "
        "[f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
        "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.returncode
