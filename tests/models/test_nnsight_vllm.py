"""What a CPU can prove of the vLLM back end: its visits on vLLM's layout, and its refusals.

The live test wants a GPU and vLLM; nobody has run it here.
"""

import importlib.util
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mnemoscope.models import HeadId, NeuronId, Site, TokenBatch, wrap
from mnemoscope.models.edits import scale, zero
from mnemoscope.models.errors import (
    MnemoscopeError,
    UnsupportedModelError,
    UnsupportedSiteError,
)
from torch import nn

pytest.importorskip("nnsight")

import nnsight
from families import tiny
from mnemoscope.models import nnsight_vllm
from mnemoscope.models.nnsight_model import AbsentModule
from mnemoscope.models.nnsight_pass import Pass, run_request
from mnemoscope.models.nnsight_vllm import ServedModel, first_block, vllm_model


class Paired(nn.Module):
    """A projection as vLLM has them: `[token, width]`, and its bias returned beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.linear(x), None


class Attention(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.o_proj = own, Paired(own.o_proj)


class Mlp(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.down_proj = own, Paired(own.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.own.gate_proj(x)) * self.own.up_proj(x))[0]


class Layer(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.self_attn, self.mlp = own, Attention(own.self_attn), Mlp(own.mlp)


class Decoder(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, own.layers))


class Flat(nn.Module):
    """A tiny Llama that runs one prompt as `[token, width]`; logits of its last token."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.model = own, Decoder(own.model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.own.model.embed_tokens(ids)
        turn = self.own.model.rotary_emb(x[None], torch.arange(len(ids))[None])
        for layer in self.model.layers:
            x = x + self.attended(layer, layer.own.input_layernorm(x), turn)
            x = x + self.thought(layer, layer.own.post_attention_layernorm(x))
        return self.own.lm_head(self.own.model.norm(x[-1:]))

    def attended(self, layer: nn.Module, x: torch.Tensor, turn: object) -> torch.Tensor:
        return layer.self_attn.o_proj(head_outputs(layer.own.self_attn, x, turn))[0]

    def thought(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer.mlp(x)


class OtherHeads(Flat):
    """The same logits, but the projection reads the heads in another order."""

    def attended(self, layer: nn.Module, x: torch.Tensor, turn: object) -> torch.Tensor:
        z = head_outputs(layer.own.self_attn, x, turn)
        width = z.shape[1] // 4
        linear = deepcopy(layer.own.self_attn.o_proj)
        linear.weight.data = linear.weight.data.roll(width, 1)
        layer.self_attn.o_proj.linear = linear
        return layer.self_attn.o_proj(z.roll(width, 1))[0]


class HeadsInParts(Flat):
    """The same logits, but each of two projections reads half of the heads."""

    def attended(self, layer: nn.Module, x: torch.Tensor, turn: object) -> torch.Tensor:
        z = head_outputs(layer.own.self_attn, x, turn)
        first, second = z.chunk(2, 1)
        weight = layer.own.self_attn.o_proj.weight
        half = nn.Linear(first.shape[1], len(weight), bias=False, dtype=z.dtype)
        half.weight.data = weight.data[:, : first.shape[1]]
        layer.self_attn.o_proj.linear = half
        return layer.self_attn.o_proj(first)[0] + second @ weight.data[:, first.shape[1] :].T


class LaterScale(Flat):
    """The same logits, but what the MLP gives out is scaled only after it."""

    def thought(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        linear = deepcopy(layer.own.mlp.down_proj)
        linear.weight.data /= 3
        layer.mlp.down_proj.linear = linear
        return 3 * layer.mlp(x)


class Aside(Flat):
    """The same logits and modules, but what the modules give out is not what is used."""

    def attended(self, layer: nn.Module, x: torch.Tensor, turn: object) -> torch.Tensor:
        z = head_outputs(layer.own.self_attn, x, turn)
        layer.self_attn.o_proj(z)
        return layer.own.self_attn.o_proj(z)


def head_outputs(attn: nn.Module, x: torch.Tensor, turn: object) -> torch.Tensor:
    """What the attention hands to its projection, `[token, width]`."""
    seen: list[torch.Tensor] = []
    handle = attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    attn(x[None], turn, attention_mask=None)
    handle.remove()
    return seen[0]


def engine_of(kind: type[Flat], monkeypatch: pytest.MonkeyPatch) -> object:
    """A stand-in for the engine; from now on requests go to it."""
    flat = nnsight.NNsight(kind(tiny("llama")))

    class Engine:
        """`trace` and the envoys of an engine; its logits are the stand-in's output."""

        get = flat.get

        @property
        def logits(self) -> torch.Tensor:
            return flat.output

    def request(_: object, body: object, here: Pass, into: list[object]) -> object:
        assert body is run_request
        ids, engine = here.arguments["input_ids"][0], Engine()
        with torch.no_grad():
            with flat.trace(ids):
                found = nnsight.save(run_request(engine, here, into))
            return found  # noqa: RET504

    monkeypatch.setattr(nnsight_vllm, "request_of", request)
    return Engine()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    """The adapter over a stand-in for the engine."""
    engine = engine_of(Flat, monkeypatch)
    anatomy = wrap(tiny("llama")).anatomy
    absent = AbsentModule("tiny", "a vLLM engine")
    return ServedModel(
        absent, None, anatomy, "tiny", engine=engine, structure=tiny("llama"), remote="vllm"
    )


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServedModel]:
    """`vllm_model` for a checkpoint that engines of the given kind serve."""
    tiny("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(nnsight_vllm, "find_spec", lambda _: True)

    def start(kind: type[Flat], **options: bool) -> ServedModel:
        engine = engine_of(kind, monkeypatch)
        served = SimpleNamespace(VLLM=lambda *_, **__: engine)
        monkeypatch.setitem(sys.modules, "nnsight.modeling.vllm", served)
        return vllm_model(str(tmp_path), None, **options)  # type: ignore[arg-type]

    return start


def prompt() -> TokenBatch:
    ids = torch.tensor([[5, 9, 30, 12, 7]])
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def test_captures_and_edits_are_those_of_the_module(served: ServedModel) -> None:
    hooked, sites = wrap(tiny("llama")), nnsight_vllm.SITES
    want, got = (model.capture(prompt(), sites, at="end") for model in (hooked, served))
    assert want.values.keys() == got.values.keys()
    for key, value in want.values.items():
        assert torch.allclose(got.values[key], value, rtol=0, atol=1e-12), key
    edits = [
        zero([HeadId(1, 2)]),
        scale([NeuronId(0, 5)], -2.0, "end", "prefill"),
        scale([NeuronId(2, 1, Site.MLP_OUT)], 3.0),
    ]
    with hooked.intervene(edits) as here:
        want_logits = hooked.logits(prompt(), at="end")
    with served.intervene(edits) as there:
        got_logits = served.logits(prompt(), at="end")
    assert torch.allclose(got_logits, want_logits, rtol=0, atol=1e-12)
    assert not torch.allclose(want_logits, want.logits)
    assert [one.fired for one in there] == [one.fired for one in here]


def test_an_engine_is_compared_with_the_checkpoint_before_it_is_given_out(
    started: Callable[..., ServedModel],
) -> None:
    model = started(Flat)
    assert model.identity["dtype"] == "torch.float64", "the engine's, not bfloat16 of the files"
    assert model.logits(prompt(), at="end").shape == (1, 1, 61)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OtherHeads, "z of layer 0 has other values"),
        (HeadsInParts, r"z of layer 0 is \[4, 4\], not \[4, 8\]"),
        (LaterScale, "mlp_out of layer 0 has other values"),
        (Aside, "edit of z of layer 0 does not reach the logits"),
    ],
)
def test_a_module_that_means_something_else_is_refused(
    kind: type[Flat], said: str, started: Callable[..., ServedModel], served: ServedModel
) -> None:
    same = served.logits(prompt(), at="end")
    untested = started(kind, self_test=False)
    assert torch.allclose(untested.logits(prompt(), at="end"), same, rtol=0, atol=1e-12)
    with pytest.raises(UnsupportedModelError, match=said):
        started(kind)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt-post-ln", "mixtral"])
def test_the_first_block_is_the_checkpoints(family: str, tmp_path: Path) -> None:
    module = tiny(family, dtype=torch.float32)
    module.save_pretrained(tmp_path)
    whole, first = wrap(module), first_block(str(tmp_path))
    sites = [site for site in nnsight_vllm.SITES if site is not Site.NEURON or whole.anatomy.d_mlp]
    want = whole.capture(prompt(), sites, layers=[0], at="end")
    got = first.capture(prompt(), sites, at="end")
    assert got.values.keys() == want.values.keys()
    assert all(torch.equal(got.values[key], want.values[key]) for key in want.values)


def test_what_vllm_does_not_show_is_refused(served: ServedModel) -> None:
    with pytest.raises(UnsupportedSiteError, match="does not show resid_post"):
        served.capture(prompt(), (Site.RESID_POST,), at="end")
    with pytest.raises(UnsupportedModelError, match="out of sight"):
        served.rows(prompt())
    with pytest.raises(MnemoscopeError, match="END alone"):
        served.logits(prompt())
    with pytest.raises(MnemoscopeError, match="one whole prompt"):
        served.logits(served.batch([[3, 4], [5, 6]]), at="end")
    with pytest.raises(MnemoscopeError, match="one whole prompt"):
        served.generate(prompt(), 2)


def test_without_vllm_the_way_to_get_it_is_told() -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(MnemoscopeError, match=r"pip install 'nnsight\[vllm\]'"):
        vllm_model("a-folder", None)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not torch.cuda.is_available(),
    reason="needs vLLM and a GPU",
)
def test_a_live_engine_gives_the_captures_of_this_process() -> None:
    from mnemoscope.models import load_model
    from mnemoscope.models.load import checkpoint_folder

    hooked = load_model("smollm2", device="cuda")
    engine = vllm_model(str(checkpoint_folder("smollm2")), hooked.text_tokenizer)
    batch = hooked.tokens("The capital of France is")
    want, got = (model.capture(batch, nnsight_vllm.SITES, at="end") for model in (hooked, engine))
    for key, value in want.values.items():
        gap = (got.values[key] - value.cpu()).abs().max()
        assert gap < 2e-2 * value.abs().max(), key
