"""Passes that a server runs give the numbers of this process: nnsight's rehearsal of a remote run,
and a server in a process of its own that has none of this package and speaks NDIF's protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import ids, tiny
from mnemoscope.models import HeadId, HookedModel, NeuronId, Site, TokenSpan, load_model
from mnemoscope.models.attention_edits import knock_out, mean_query, uniform
from mnemoscope.models.backends import require
from mnemoscope.models.edits import resample, scale, zero
from mnemoscope.models.errors import (
    EditNeverFiredError,
    MnemoscopeError,
    RemoteRunError,
    UnsupportedModelError,
)
from served_model import KEY, serving
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("nnsight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer of words."""
    place = tmp_path_factory.mktemp("served") / "tiny"
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny("llama", dtype=torch.float32).save_pretrained(place)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    """The address of the server."""
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="module")
def here(folder) -> HookedModel:
    """The model in this process, by hooks."""
    return load_model(folder, dtype="auto", backend="local")


@pytest.fixture(scope="module", params=["local", "server"])
def there(request, folder):
    """The same model behind a rehearsed, or a real, remote run."""
    if request.param == "local":
        yield load_model(folder, remote="local")
        return
    from nnsight import CONFIG

    before = CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING
    CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = KEY, False
    yield load_model(folder, remote=request.getfixturevalue("url"))
    CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = before


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got.to(want.dtype), want, rtol=0, atol=1e-6, equal_nan=True)


def prompts(model: HookedModel):
    rows = ids(2, 9).tolist()
    return model.batch([rows[0], rows[1][:5]])


def test_captures_and_logits(here, there):
    sites = (Site.Z, Site.NEURON, Site.RESID_POST, Site.ROT_Q, Site.V)
    want, got = (model.capture(prompts(model), sites, at="end") for model in (here, there))
    assert got.values.keys() == want.values.keys()
    assert all(same(got.values[key], want.values[key]) for key in want.values)
    assert same(got.logits, want.logits)
    want, got = (model.capture(prompts(model), sites[1:2], reduce="max") for model in (here, there))
    assert same(got.stack(Site.NEURON), want.stack(Site.NEURON))


def test_edits_and_their_firing_counts(here, there):
    edits = [
        zero([HeadId(0, 1)]),
        scale([NeuronId(1, 3)], -3.0, "end", "prefill"),
        resample([HeadId(2, 2)], torch.ones(2, 1, here.anatomy.d_v), phase="prefill"),
        knock_out([HeadId(1, 0)], [TokenSpan(1, 2)]),
        uniform([HeadId(2, 0)], rows=[1]),
        mean_query([HeadId(0, 3)], torch.ones(1, 8)),
    ]
    results = []
    for model in (here, there):
        with model.intervene(edits) as installed:
            results.append((model.logits(prompts(model)), [one.fired for one in installed]))
    assert same(results[1][0], results[0][0])
    assert results[1][1] == results[0][1]
    assert not same(results[0][0], here.logits(prompts(here)))


def test_an_edit_that_never_fires_is_told(there):
    silent = [zero([HeadId(0, 0)], phase="decode")]
    with pytest.raises(EditNeverFiredError), there.intervene(silent):
        there.logits(prompts(there))


def test_rows(here, there):
    spans = [[TokenSpan(0, 2)], [TokenSpan(1, 3)]]
    want, got = (
        model.row_summaries(prompts(model), "end", spans, top=2) for model in (here, there)
    )
    assert torch.equal(got.top_key, want.top_key)
    assert same(got.mass, want.mass)
    assert same(there.rows(prompts(there)), here.rows(prompts(here)))


def test_a_prompt_is_run_again_for_what_stands_behind_it(here, there):
    prompt, suffix = ids(1, 12)[0].tolist(), ids(1, 4, seed=7)[0].tolist()
    results = []
    for model in (here, there):
        with model.intervene([zero([HeadId(1, 1)])]):
            cache = model.prefill(prompt, chunk=5)
        reading = model.read_suffix(cache, suffix, spans=[TokenSpan(2, 6)], values=True)
        with model.intervene([scale([HeadId(0, 2)], 2.0)]):
            edited = model.suffix_logits(cache, suffix, rows=2)
        results.append((reading, edited, model.greedy_from(cache, suffix, 3)))
    (want, want_edited, said), (got, got_edited, also) = results
    assert same(got.logits, want.logits)
    assert same(got.rows.mass, want.rows.mass)
    assert same(got.z, want.z)
    assert same(got.span_value, want.span_value)
    assert same(got_edited, want_edited)
    assert also == said
    assert not same(want_edited[0], want.logits)


def test_generation_and_text(here, there):
    assert there.generate(prompts(there), 3) == here.generate(prompts(here), 3)
    assert there.continuations(["w5 w6"], 2) == here.continuations(["w5 w6"], 2)


def test_what_stays_behind_is_said(there, here):
    assert "nnsight" in there.identity["device"]
    if there.remote == "local":
        assert there.identity["weights_sha256"] == here.weights_sha256
        return
    assert there.identity["weights_sha256"].startswith("not read: http")
    with pytest.raises(UnsupportedModelError, match=r"path patching needs the weights.*local"):
        require(there, "weights", "path patching")
    with pytest.raises(UnsupportedModelError, match="they are at http"):
        there.module.get_output_embeddings()


def test_refusals_of_a_server_are_one_sentence(folder, url, monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "another")
    with pytest.raises(RemoteRunError, match=r"did not run .*Invalid API key.*NDIF_API_KEY"):
        load_model(folder, remote=url)
    with pytest.raises(RemoteRunError, match=r"did not run .*server up"):
        load_model(folder, remote="http://127.0.0.1:9")
    with pytest.raises(RemoteRunError, match="is no address"):
        load_model(folder, remote="ftp://example.org")
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(RemoteRunError, match="NDIF wants a key: set NDIF_API_KEY"):
        load_model(folder, remote="ndif")
    with pytest.raises(MnemoscopeError, match="leave backend='local' out"):
        load_model(folder, backend="local", remote=url)
    with pytest.raises(MnemoscopeError, match="use local or nnsight"):
        load_model(folder, backend="vllm")  # type: ignore[arg-type]
