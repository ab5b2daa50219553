"""A model split over two processes on the CPU: every process sees whole heads and neurons, and
edits give what they give in one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.path_patching import build_chain, direct_effects, end_states
from mnemoscope.models import (
    HeadId,
    HookedModel,
    NeuronId,
    Site,
    TokenSpan,
    knock_out,
    uniform,
    wrap,
)
from mnemoscope.models.edits import resample, scale, zero
from mnemoscope.models.errors import UnsupportedModelError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("nnsight")

ROUNDING = 1e-12  # halves are summed in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four heads, two key/value heads, 48 hidden units: two processes get equal parts."""
    place = tmp_path_factory.mktemp("split") / "tiny"
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny("llama").save_pretrained(place)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, torch.Tensor]]:
    """What the two processes saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script, out = Path(__file__).with_name("nnsight_ranks.py"), folder.parent / "seen"
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, script, folder, out],
            env={**os.environ, **together, **quiet, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]
    try:
        for one in started:
            _, errors = one.communicate(timeout=240)
            assert one.returncode == 0, errors.decode()[-2000:]
    finally:
        for one in started:
            one.kill()
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> HookedModel:
    return wrap(tiny("llama"))


def prompts(model: HookedModel):
    rows = torch.arange(3, 21).view(2, 9).tolist()
    return model.batch([rows[0], rows[1][:6]])


def close(got: torch.Tensor, want: torch.Tensor, gap: float = ROUNDING) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() < gap)


def test_the_weights_are_really_split(ranks):
    assert all(rank["shard"].tolist() == [32, 24] for rank in ranks)


def test_captures_are_whole_on_every_process(ranks, alone):
    sites = (Site.Z, Site.NEURON, Site.GATE_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST)
    want = alone.capture(prompts(alone), sites)
    for rank in ranks:
        for (site, layer), value in want.values.items():
            assert close(rank[f"{site}.{layer}"], value), (site, layer)
        assert close(rank["logits"], want.logits)


def test_edits_hold_on_every_process(ranks, alone):
    values = torch.ones(2, 1, alone.anatomy.d_v, dtype=torch.float64)
    edits = [
        zero([HeadId(0, 1), HeadId(1, 3)]),
        scale([NeuronId(1, 3), NeuronId(0, 40)], -3.0, "end", "prefill"),
        resample([HeadId(2, 2)], values),
    ]
    with alone.intervene(edits) as installed:
        want = alone.logits(prompts(alone))
    for rank in ranks:
        assert close(rank["edited"], want)
        assert rank["fired"].tolist() == [one.fired for one in installed]
    assert not close(want, alone.logits(prompts(alone)))


def test_both_say_the_same(ranks, alone):
    want = alone.generate(alone.batch([list(range(3, 12))]), 4)
    assert all(rank["generated"].tolist() == want for rank in ranks)


def test_rows_and_attention_edits_are_of_all_heads(ranks, alone):
    batch = prompts(alone)
    hidden = [knock_out([HeadId(0, 0), HeadId(1, 3)], [TokenSpan(1, 3)]), uniform([HeadId(2, 2)])]
    with alone.intervene(hidden):
        want = alone.logits(batch)
    for rank in ranks:
        assert close(rank["rows"], alone.rows(batch), gap=1e-6)  # rows are float32
        assert close(rank["hidden"], want)
    assert not close(want, alone.logits(batch))


def test_path_patching_by_whole_passes_gives_the_effects_of_one_process(ranks, alone):
    batch, ids = prompts(alone), torch.tensor([[5, 9], [4, 30]])
    rows = torch.arange(3, 21).view(2, 9).tolist()
    replacement = end_states(alone, alone.batch([rows[1], rows[0][:7]])).z
    direct = direct_effects(build_chain(alone), end_states(alone, batch), replacement, ids)
    total = end_total_effects(alone, batch, replacement, ids)
    assert direct.change.abs().max() > 1e-3
    assert not close(direct.change, total.change)
    for rank in ranks:
        assert close(rank["direct"], direct.change)
        assert close(rank["total_end"], total.change)


def test_what_needs_whole_weights_is_refused(ranks):
    for rank in ranks:
        said = bytes(rank["refused"].tolist()).decode()
        assert "path patching by single blocks needs the weights" in said


def test_a_split_that_does_not_fit_is_refused_before_the_weights_are_read(folder):
    from mnemoscope.models.nnsight_model import tensor_parallel

    with pytest.raises(UnsupportedModelError, match="cannot be split 3 ways"):
        tensor_parallel(str(folder), 3)
