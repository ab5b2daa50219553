"""A planted checkpoint folder, a finished run of head scores, and the app pointed at them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

try:
    import streamlit as _  # noqa: F401
except ModuleNotFoundError:
    collect_ignore_glob = ["test_*.py"]  # without the extra `app` there is nothing to test
sys.path.insert(0, str(Path(__file__).parent))

from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from planted_ground import planted_checkpoint, score_run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_checkpoint(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> HookedModel:
    return load_model(checkpoint)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, model: HookedModel) -> Path:
    """A runs root that holds one finished run of head scores."""
    root = tmp_path_factory.mktemp("scored") / "runs"
    score_run(root, model)
    return root


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The pages serve the planted checkpoint; the runs root is not there yet."""
    settings = settings_for([str(checkpoint)], tmp_path / "runs")
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return settings
