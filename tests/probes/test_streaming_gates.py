"""Learned gates: exact at 1, found on a planted model, resumed as if never interrupted."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from families import ids, tiny
from mnemoscope.data.facts.haystacks import Span
from mnemoscope.data.facts.passkeys import NeedleSamples, PasskeySample
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.anatomy import part
from mnemoscope.models.errors import MnemoscopeError, PromptError, UnsupportedModelError
from mnemoscope.organisms.planted_retrieval import (
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes import streaming_gates
from mnemoscope.probes.streaming_gates import GateSettings, distil, train_gates
from mnemoscope.probes.streaming_heads import streaming_output
from mnemoscope.results.run_folder import open_run
from placed import both, counted_reads, saved

SMALL = GateSettings(sink=1, recent=4, steps=12, learning_rate=0.1, penalty=0.01)


@dataclass(frozen=True)
class Fixed:
    """A source that goes through given samples."""

    samples: tuple[PasskeySample, ...]
    sha256: str = "fixed"

    @property
    def longest(self) -> int:
        return max(len(sample.ids) for sample in self.samples)

    def sample(self, step: int) -> PasskeySample:
        return self.samples[step % len(self.samples)]


def random_source(seed: int = 1) -> Fixed:
    rows = ids(3, 24, seed).tolist()
    made = [PasskeySample(tuple(row), 16, (Span(3, 6),), (Span(19, 24),), (0.1,)) for row in rows]
    return Fixed(tuple(made), f"fixed {seed}")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return wrap(tiny("llama"))


def gates(model: HookedModel, value: float = 1.0) -> torch.Tensor:
    return torch.full((model.anatomy.n_layers, model.anatomy.n_kv_heads), value)


@pytest.mark.parametrize("full", ["teacher_full", "self_full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "qwen3", "olmo2", "opt"])
def test_gates_of_one_are_the_model_itself(family, full):
    model = wrap(tiny(family))
    settings = replace(SMALL, full=full)
    sample = random_source().sample(0)
    assert distil(model, sample, gates(model), settings).loss == 0.0
    assert distil(model, sample, gates(model, 0.5), settings).loss > 1e-6


def test_a_window_over_everything_costs_nothing_at_any_gate(model):
    for value in (0.0, 0.3):
        wide = replace(SMALL, recent=30)
        assert distil(model, random_source().sample(0), gates(model, value), wide).loss < 1e-20


@pytest.mark.parametrize("full", ["teacher_full", "self_full"])
def test_gradients_are_those_of_finite_differences(full):
    model = wrap(tiny("gpt2"))  # whose norms keep float64; a Llama's are float32
    settings = replace(SMALL, full=full)
    sample = random_source().sample(1)
    alpha = gates(model).double() * torch.linspace(0.3, 0.9, 12).reshape(3, 4)
    found = distil(model, sample, alpha, settings)
    step = 1e-5
    for layer, head in [(0, 0), (1, 3), (2, 1)]:
        moved = []
        for sign in (1, -1):
            other = alpha.clone()
            other[layer, head] += sign * step
            moved.append(distil(model, sample, other, settings).loss)
        slope = (moved[0] - moved[1]) / (2 * step)
        assert float(found.gradient[layer, head]) == pytest.approx(slope, rel=1e-6)


def test_a_full_head_of_a_teacher_puts_out_what_it_does_in_the_model(model):
    """Layer 0 streams, the others are full: a teacher's heads there are untouched by what layer 0
    spoilt, so the loss is that of a run in which they are set to the model's own outputs."""
    sample = random_source().sample(2)
    alpha = gates(model)
    alpha[0] = 0.0
    own: dict[int, torch.Tensor] = {}
    norm: list[torch.Tensor] = []

    def keep(call, full):
        own[call.layer] = full()
        return own[call.layer]

    def spoil(call, full):
        return streaming_output(call, 1, 4) if call.layer == 0 else own[call.layer]

    handle = model.module.model.norm.register_forward_hook(lambda m, a, out: norm.append(out[0]))
    for mix in (keep, spoil):
        with torch.no_grad(), streaming_gates.mixed_attention(model, mix):
            model.forward(model.batch([sample.ids]))
    handle.remove()
    expected = float((norm[0] - norm[1])[list(sample.labels)].square().mean())
    teacher = distil(model, sample, alpha, SMALL).loss
    assert teacher == pytest.approx(expected, rel=1e-12)
    alone = distil(model, sample, alpha, replace(SMALL, full="self_full")).loss
    assert alone != pytest.approx(teacher, rel=1e-3)


@pytest.mark.parametrize(("full", "passes"), [("teacher_full", 1), ("self_full", 3)])
def test_full_attention_is_computed_where_it_is_used_only(model, monkeypatch, full, passes):
    """A teacher gives all full attention; on its own states the student needs it on the way there
    and again on the way back."""
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def counting(q, k, v, *rest, **options):
        seen.append(q.shape[2])
        return kernel(q, k, v, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    sample = random_source().sample(0)
    distil(model, sample, gates(model, 0.5), replace(SMALL, full=full))
    assert seen == [len(sample.ids)] * passes * model.anatomy.n_layers


def test_in_memory_the_last_product_of_a_block_is_not_made_again_for_the_way_back():
    model = wrap(tiny("llama"))
    made = []
    for block in model.module.model.layers:
        block.mlp.down_proj.register_forward_hook(lambda *_: made.append("down"))
        block.mlp.up_proj.register_forward_hook(lambda *_: made.append("up"))
    distil(model, random_source().sample(0), gates(model, 0.5), SMALL)
    layers = model.anatomy.n_layers
    assert (made.count("up"), made.count("down")) == (3 * layers, 2 * layers)


def test_loss_by_definition(model):
    """All gates 0 in self_full: the model with streaming attention everywhere."""
    sample = random_source().sample(0)
    settings = replace(SMALL, full="self_full")
    batch = model.batch([sample.ids])
    norm = []
    handle = model.module.model.norm.register_forward_hook(lambda m, a, out: norm.append(out[0]))
    with torch.no_grad():
        model.forward(batch)
        with streaming_gates.mixed_attention(model, lambda c, full: streaming_output(c, 1, 4)):
            model.forward(batch)
    handle.remove()
    away = (norm[0] - norm[1])[list(sample.labels)]
    assert distil(model, sample, gates(model, 0.0), settings).loss == pytest.approx(
        float((away**2).mean()), rel=1e-12
    )
    answers = replace(settings, labels="answers")
    away = (norm[0] - norm[1])[19:24]
    assert distil(model, sample, gates(model, 0.0), answers).loss == pytest.approx(
        float((away**2).mean()), rel=1e-12
    )


def test_planted_retrieval_heads_keep_the_context_and_a_sink_head_does_not():
    planted = planted_retrieval_model(c_copy=100.0)
    model = wrap(planted.module, planted.tokenizer)
    design = planted_retrieval_design(planted, lengths=(64,), needles_per_haystack=2)
    settings = GateSettings(sink=1, recent=8, steps=12, learning_rate=0.2, penalty=0.001)
    found = train_gates(model, [NeedleSamples(design)], settings).alpha
    needed = {(h.layer, h.head) for h in (*planted.copy_heads, *planted.locate_heads)}
    assert {tuple(map(int, at)) for at in np.argwhere(found > 0.9)} == needed
    others = [found[at] for at in np.ndindex(found.shape) if at not in needed]
    assert max(others) < 0.1
    assert all(found[h.layer, h.head] == 0 for h in planted.sink_heads)


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, model):
    monkeypatch.setattr(streaming_gates, "STEPS_A_UNIT", 4)
    sources = [random_source(1), random_source(2)]
    whole = train_gates(model, sources, SMALL)

    def stop(done, total):
        assert total == 24
        if done == 18:
            raise InterruptedError

    def opened():
        return open_run(tmp_path, "gates", {"steps": 12})

    with pytest.raises(InterruptedError), opened() as run:
        train_gates(model, sources, SMALL, run=run, progress=stop)
    steps = []
    with opened() as run:
        assert len(run.done) == 4  # three states of the first source, one of the second
        again = train_gates(
            model, sources, SMALL, run=run, progress=lambda done, total: steps.append(done)
        )
    assert steps == list(range(17, 25))
    assert np.array_equal(again.by_seed, whole.by_seed)
    assert np.array_equal(again.loss, whole.loss)
    with opened() as run, pytest.raises(MnemoscopeError, match="other settings"):
        train_gates(model, sources, replace(SMALL, recent=5), run=run)


def test_several_sources_give_mean_spread_and_stability(model):
    brief = replace(SMALL, steps=3)
    found = train_gates(model, [random_source(1), random_source(2)], brief)
    assert found.by_seed.shape == (2, 3, 2)
    assert found.loss.shape == (2, 3)
    assert found.loss[0, 0] == 0.0  # gates start at 1
    assert np.array_equal(found.alpha, found.by_seed.mean(0))
    assert found.stability is not None
    assert found.stability.matrix.shape == (2, 2)
    assert found.provenance.weights_sha256 == model.weights_sha256
    assert train_gates(model, [random_source(1)], brief).stability is None


def test_gates_stay_float32_and_between_0_and_1_in_a_bfloat16_model():
    model = wrap(tiny("llama", dtype=torch.bfloat16))
    found = train_gates(model, [random_source()], replace(SMALL, learning_rate=0.5))
    assert found.alpha.dtype == np.float32
    assert found.alpha.min() >= 0
    assert found.alpha.max() <= 1
    assert distil(model, random_source().sample(0), gates(model), SMALL).loss == 0.0


def test_the_schedule_rises_over_a_fifth_and_falls_over_the_last():
    settings = GateSettings(steps=2000)
    rates = [settings.rate(step) for step in (0, 200, 400, 1000, 1599, 1799, 1999)]
    assert rates == pytest.approx([0.1, 0.55, 1, 1, 1, 0.55, 0.1])


@dataclass
class Held:
    """Bytes of weights that were read and are not gone yet, and the most there ever were."""

    now: int = 0
    peak: int = 0

    def keep(self, weight):
        size = nbytes(weight)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(weight.untyped_storage(), self.let_go, size)
        return weight

    def let_go(self, size):
        self.now -= size


def nbytes(*weights):
    return sum(weight.numel() * weight.element_size() for weight in weights)


@pytest.fixture
def held(monkeypatch):
    """What is held of weights that lie on disk; each a copy, for those of a file share memory."""
    live = Held()
    read = OffloadedWeightsLoader.__getitem__
    monkeypatch.setattr(
        OffloadedWeightsLoader, "__getitem__", lambda self, key: live.keep(read(self, key).clone())
    )
    return live


@pytest.mark.parametrize("full", ["teacher_full", "self_full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_step_on_a_model_on_disk_holds_one_block_and_reads_it_three_times(
    family, full, held, tmp_path
):
    resident, spread = both(saved(tmp_path / family, family), 0.0)
    settings, sample = replace(SMALL, full=full), random_source().sample(0)
    block = nbytes(*part(spread.module, spread.anatomy.spec.blocks)[1].parameters())
    with counted_reads() as reads:
        found = distil(spread, sample, gates(spread, 0.6), settings)
    assert 0.9 * block < held.peak < 1.05 * block
    assert held.now == 0
    assert all(weight.device.type == "meta" for weight in spread.module.parameters())
    assert {n for name, n in reads.items() if ".1." in name} == {3}
    assert max(reads.values()) == 3
    expected = distil(resident, sample, gates(resident, 0.6), settings)
    assert found.loss == expected.loss
    assert torch.equal(found.gradient, expected.gradient)


@pytest.mark.parametrize("share", [None, 0.5])
def test_weights_ask_for_gradients_as_before_also_after_an_error(share, tmp_path, monkeypatch):
    resident, spread = both(saved(tmp_path / "llama", "llama"), share or 0.5)
    model = spread if share else resident
    model.module.model.layers[1].requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.module.named_parameters()}
    assert set(before.values()) == {True, False}

    def after():
        return {name: weight.requires_grad for name, weight in model.module.named_parameters()}

    distil(model, random_source().sample(0), gates(model, 0.6), SMALL)
    assert after() == before
    monkeypatch.setattr(streaming_gates, "streaming_output", None)
    with pytest.raises(TypeError):
        distil(model, random_source().sample(0), gates(model, 0.6), SMALL)
    assert after() == before


def test_the_model_is_left_as_it_was(model):
    before = model.weights_sha256
    train_gates(model, [random_source()], replace(SMALL, steps=2))
    assert wrap(model.module).weights_sha256 == before
    assert all("forward" not in vars(block) for block in model.module.model.layers)
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert model.module.config._attn_implementation == "sdpa"


def test_what_cannot_be_trained_is_refused_before_anything_runs(model):
    with pytest.raises(MnemoscopeError, match="one source at least"):
        train_gates(model, [], SMALL)
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        train_gates(wrap(tiny("gptj")), [random_source()], SMALL)
    long = PasskeySample(tuple(ids(1, 70)[0].tolist()), 60, (), (Span(65, 70),), ())
    with pytest.raises(PromptError, match="70 tokens but"):
        train_gates(model, [Fixed((long,))], SMALL)
    none = PasskeySample((3, 4, 5), 3, (), (), ())
    with pytest.raises(PromptError, match="nothing after its context"):
        train_gates(model, [Fixed((none,))], SMALL)
    for wrong in ({"full": "half"}, {"labels": "all"}, {"steps": 0}, {"recent": 0}):
        with pytest.raises(MnemoscopeError):
            train_gates(model, [random_source()], replace(SMALL, **wrong))
