"""Checkpoint folders that a test may spoil."""

import shutil

import pytest
from checkpoints import save


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "llama", "llama")


@pytest.fixture
def llama(saved_llama, tmp_path):
    """A sharded float32 Llama with grouped queries that the test may spoil."""
    return shutil.copytree(saved_llama, tmp_path / "llama")


@pytest.fixture
def single(tmp_path):
    """A Llama in one file."""
    return save(tmp_path / "single", "llama", shard="1GB")
