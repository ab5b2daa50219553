"""A provenance and a configuration for run folders."""

import pytest
from mnemoscope.results.provenance import Provenance, collect_provenance


@pytest.fixture
def provenance() -> Provenance:
    return collect_provenance(
        model_id="engram",
        weights_sha256="ab" * 32,
        tokenizer_sha256=None,
        data_sha256=None,
        prompt_template="The capital of {subject} is",
        bos_rule="added once",
        seed=7,
        estimand="END total effect",
        device="cpu",
        dtype="float64",
        attention="eager",
    )
