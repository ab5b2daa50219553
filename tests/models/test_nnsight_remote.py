"""Passes that a server runs give the numbers of this process: nnsight's rehearsal of a remote run,
and a server in a process of its own that has none of this package and speaks NDIF's protocol."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from families import ids, tiny
from mnemoscope.data.facts.haystacks import Span
from mnemoscope.data.facts.passkeys import PasskeySample
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
from mnemoscope.probes.asked_facts import Asked
from mnemoscope.probes.gradient_crosstalk import gradient_crosstalk
from mnemoscope.probes.interference import interference
from mnemoscope.probes.neuron_attribution import attribute
from mnemoscope.probes.streaming_gates import GateSettings, train_gates
from role_rows import prompts_of, some_facts
from served_model import KEY, serving
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("nnsight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer of words. Its config.json says bfloat16; its weights, and the
    server, are float32."""
    place = tmp_path_factory.mktemp("served") / "tiny"
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny("llama", dtype=torch.float32).save_pretrained(place)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return place


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    """The address of the server."""
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="module")
def here(folder) -> HookedModel:
    """The model in this process, by hooks."""
    return load_model(folder, dtype="float32", backend="local")


@pytest.fixture(scope="module", params=["local", "server"])
def there(request, folder):
    """The same model behind a rehearsed, or a real, remote run."""
    if request.param == "local":
        yield load_model(folder, dtype="float32", remote="local")
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


def test_the_way_to_ndif_gives_the_same(here, folder, url, monkeypatch, caplog):
    """`remote="ndif"` goes to nnsight's configured host, which is the test's server here."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setenv("MNEMOSCOPE_REMOTE", "ndif")  # as the command's --remote leaves it
    monkeypatch.setenv("MNEMOSCOPE_MAX_MEMORY", "cpu=1GiB")  # of this machine: no matter there
    there = load_model(folder)
    assert there.remote is True
    assert there.identity["device"] == "nnsight (NDIF)"
    assert there.identity["weights_sha256"].startswith("not read: NDIF: ")
    assert "changed, start runs over (--force)" in caplog.text
    results = []
    for model in (here, there):
        seen = model.capture(prompts(model), (Site.Z, Site.NEURON, Site.ROT_Q), at="end")
        with model.intervene([zero([HeadId(0, 1)]), uniform([HeadId(2, 0)])]) as installed:
            edited = model.logits(prompts(model), at="end")
        rows = model.rows(prompts(model))
        fired = [one.fired for one in installed]
        results.append((seen, edited, rows, fired, model.generate(prompts(model), 2)))
    (want, want_edited, want_rows, *rest), (got, got_edited, got_rows, *others) = results
    assert all(same(got.values[key], want.values[key]) for key in want.values)
    assert same(got.logits, want.logits)
    assert same(got_edited, want_edited)
    assert same(got_rows, want_rows)
    assert others == rest


def test_the_data_type_is_the_one_that_computes(there):
    assert there.dtype == torch.float32
    assert there.identity["dtype"] == "torch.float32"
    if there.remote != "local":
        embeddings = there.structure.get_input_embeddings()
        assert embeddings.weight.dtype == torch.bfloat16, "what config.json says"
        assert there.identity["attention"] == "not read"


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"dtype": "float32"}, "dtype"),
        ({"device": "cpu", "dtype": "bfloat16"}, "device and dtype"),
        ({"max_memory": {"cpu": "1GiB"}, "offload_folder": "."}, "max_memory and offload_folder"),
    ],
)
def test_what_a_server_has_decided_cannot_be_chosen(choice, named):
    refused = f"^{named} cannot be chosen .* leave {named} out"
    with pytest.raises(MnemoscopeError, match=refused):  # before the model is looked for
        load_model("no/such-model", remote="http://127.0.0.1:9", **choice)


class OneSample:
    """A source of gate samples, always the same one."""

    longest, sha256 = 24, "one"

    def sample(self, _: int) -> PasskeySample:
        return PasskeySample(
            tuple(ids(1, 24)[0].tolist()), 16, (Span(3, 6),), (Span(19, 24),), (0.1,)
        )


def attributed(model: HookedModel) -> object:
    asked = [Asked(f"w5 w{i} w7", ("w8",), ("w9", "w10"), f"s{i}", "r") for i in (11, 12)]
    return attribute(model, asked, torch.zeros(3, 48))


def trained(model: HookedModel) -> object:
    return train_gates(model, [OneSample()], GateSettings(sink=1, recent=4, steps=1))


@pytest.mark.parametrize(
    ("probe", "purpose"),
    [
        (attributed, "gradient attribution"),
        (lambda model: gradient_crosstalk(model, prompts_of(some_facts())), "cross-talk"),
        (lambda model: interference(model, prompts_of(some_facts()), sources=1), "interference"),
        (trained, "training of gates"),
    ],
    ids=["attribution", "crosstalk", "interference", "gates"],
)
def test_a_probe_that_needs_gradients_says_so(
    probe: Callable[[HookedModel], object], purpose: str, here, there
):
    assert probe(here) is not None
    with pytest.raises(UnsupportedModelError, match=rf"^{purpose}.* needs gradients, .*'local'\.$"):
        probe(there)


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
