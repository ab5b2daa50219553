"""The same passes as hooks and as nnsight traces in this process: same numbers, to the last bit."""

import gc
from collections.abc import Callable

import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import (
    AttentionEdit,
    HeadId,
    HookedModel,
    NeuronId,
    Site,
    StreamId,
    TokenSpan,
    knock_out,
    mean_query,
    streaming,
    uniform,
    wrap,
)
from mnemoscope.models.backends import require
from mnemoscope.models.edits import Edit, mean, resample, scale, zero
from mnemoscope.models.errors import (
    EditNeverFiredError,
    UnsupportedModelError,
    UnsupportedSiteError,
)

pytest.importorskip("nnsight")

from mnemoscope.models.nnsight_model import TracedModel, traced

PARITY = ("gpt2", "llama", "neox", "gemma2", "opt", "phi3", "olmo2", "gptj", "opt-post-ln")
SEEING = tuple(family for family in PARITY if family != "gptj")


@pytest.fixture(scope="module")
def pairs() -> Callable[[str], tuple[HookedModel, TracedModel]]:
    """A family's tiny model with hooks, and another module of the same weights as traces."""
    held: dict[str, tuple[HookedModel, TracedModel]] = {}

    def pair(family: str) -> tuple[HookedModel, TracedModel]:
        if family not in held:
            held[family] = wrap(tiny(family)), traced(wrap(tiny(family)))
        return held[family]

    return pair


def padded(model: HookedModel):
    """Rows of different lengths, padded on the left."""
    rows = ids(3, 9).tolist()
    return model.batch([rows[0], rows[1][:6], rows[2][:4]])


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal to the last bit; eager attention leaves NaN on padding."""
    return got.shape == want.shape and bool(((got == want) | (got.isnan() & want.isnan())).all())


def sites_of(model: HookedModel, *, inside: bool = True) -> list[Site]:
    """The sites that this family has."""
    batch, found = padded(model), []
    for site in Site:
        if not inside and site in (Site.ROT_Q, Site.ROT_K, Site.V):
            continue
        try:
            model.capture(batch, (site,), layers=[0])
        except UnsupportedSiteError:
            continue
        found.append(site)
    return found


@pytest.mark.parametrize("family", PARITY)
def test_every_site_and_the_logits_are_the_same(family, pairs):
    hooked, traces = pairs(family)
    batch, sites = padded(hooked), sites_of(hooked, inside=family in SEEING)
    want, got = hooked.capture(batch, sites), traces.capture(batch, sites)
    assert same(got.logits, want.logits)
    assert got.values.keys() == want.values.keys()
    for key, value in want.values.items():
        assert same(got.values[key], value), key


@pytest.mark.parametrize("reduce", ["mean", "max", "norm"])
def test_what_is_asked_is_folded_in_the_same_way(reduce, pairs):
    hooked, traces = pairs("opt")  # its MLP works on [batch * pos, width]
    batch = padded(hooked)
    among = batch.mask & (torch.arange(batch.ids.shape[1]) % 2 == 0)
    for model in (hooked, traces):
        assert model.logits(batch, at="end").shape == (3, 1, hooked.anatomy.d_vocab)
    both = [
        model.capture(batch, (Site.NEURON,), layers=[2, 0], reduce=reduce, among=among)
        for model in (hooked, traces)
    ]
    assert same(both[0].stack(Site.NEURON), both[1].stack(Site.NEURON))
    assert same(both[0].logits, both[1].logits)


def edits_of(model: HookedModel) -> list[Edit]:
    """Every operation, at heads, neurons and streams, at every kind of position."""
    torch.manual_seed(5)
    d_v, n = model.anatomy.d_v, model.anatomy.d_model
    heads, three = [HeadId(0, 1), HeadId(2, 3)], [NeuronId(1, 4), NeuronId(0, 7), NeuronId(1, 0)]
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    return [
        zero(heads),
        mean(heads, draw(2, d_v), "all_but_first"),
        resample(heads, draw(3, 2, d_v), "end", "prefill"),
        scale(three, -2.0, ((0,), (1, -1), (-2,)), "prefill"),
        Edit("set", tuple(three), draw(3)),
        Edit("add", (StreamId(1, Site.RESID_PRE),), draw(1, n), (0, -1), "prefill"),
        zero([StreamId(0, Site.ATTN_OUT)]),
        scale([NeuronId(2, 3, Site.MLP_OUT)], 3.0),
    ]


@pytest.mark.parametrize("family", PARITY)
def test_every_edit_gives_the_same_logits_and_fires_as_often(family, pairs):
    hooked, traces = pairs(family)
    batch, plain = padded(hooked), hooked.logits(padded(hooked))
    for edit in edits_of(hooked):
        with hooked.intervene([edit]) as here:
            want = hooked.logits(batch)
        with traces.intervene([edit]) as there:
            got = traces.logits(batch)
        assert same(got, want), edit.describe()
        assert not same(want, plain)
        assert there[0].fired == here[0].fired > 0
    with hooked.intervene(edits_of(hooked)), traces.intervene(edits_of(hooked)):
        assert same(traces.logits(batch), hooked.logits(batch))
    assert same(traces.logits(batch), plain), "edits are gone when the block is left"


def test_captures_see_what_edits_left(pairs):
    hooked, traces = pairs("llama")
    batch = padded(hooked)
    with traces.intervene([zero([HeadId(1, 2)])]):
        kept = traces.capture(batch, (Site.Z,), layers=[1])
    assert not kept[Site.Z, 1][batch.mask][:, 2].any()


def test_an_edit_that_never_fired_raises(pairs):
    _, traces = pairs("llama")
    with (
        pytest.raises(EditNeverFiredError, match="never changed"),
        traces.intervene([zero([HeadId(0, 0)], phase="decode")]),
    ):
        traces.logits(padded(traces))


def attention_edits(model: HookedModel) -> list[AttentionEdit]:
    heads = [HeadId(0, 1), HeadId(1, 2)]
    query = torch.ones(2, model.places.query_width(), dtype=torch.float64)
    return [
        uniform(heads),
        knock_out(heads, [TokenSpan(1, 3)]),
        streaming(heads, 1, 2, rows=[0]),
        mean_query(heads, query),
    ]


@pytest.mark.parametrize("family", SEEING)
def test_attention_edits_are_the_same(family, pairs):
    hooked, traces = pairs(family)
    batch = padded(hooked)
    for edit in [[one] for one in attention_edits(hooked)] + [attention_edits(hooked)[:3]]:
        with hooked.intervene(edit) as here:
            want = hooked.logits(batch)
        with traces.intervene(edit) as there:
            got = traces.logits(batch)
        assert same(got, want), edit[0].op
        assert [one.fired for one in there] == [one.fired for one in here]


@pytest.mark.parametrize("family", SEEING)
def test_rows_and_their_summaries_are_the_same(family, pairs):
    hooked, traces = pairs(family)
    batch = padded(hooked)
    assert same(traces.rows(batch, "all"), hooked.rows(batch, "all"))
    spans = [[TokenSpan(0, 2)], [TokenSpan(1, 2)], [TokenSpan(0, 1)]]
    want = hooked.row_summaries(batch, "end", spans, top=2)
    got = traces.row_summaries(batch, "end", spans, top=2)
    for name in ("top_key", "top_weight", "logsumexp", "mass", "peak", "visible"):
        assert same(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_what_stands_behind_a_prompt_is_the_same(family, pairs):

    prompt, suffix = ids(1, 12)[0].tolist(), ids(1, 4, seed=7)[0].tolist()
    readings, texts, logits, means = [], [], [], []
    for model in pairs(family):
        cache = model.prefill(prompt, chunk=5)
        readings.append(model.read_suffix(cache, suffix, spans=[TokenSpan(2, 6)], values=True))
        with model.intervene([zero([HeadId(1, 0)])]):
            logits.append(model.suffix_logits(cache, suffix, rows=2))
        texts.append(model.greedy_from(cache, suffix, 4))
        means.append(model.mean_rows(cache, suffix))
    want, got = readings
    assert same(got.logits, want.logits)
    assert same(got.z, want.z)
    assert same(got.span_value, want.span_value)
    assert same(got.rows.mass, want.rows.mass)
    assert same(logits[0], logits[1])
    assert texts[0] == texts[1]
    assert same(means[0], means[1])


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_generation_is_the_same_with_edits_of_either_phase(family, pairs):
    hooked, traces = pairs(family)
    batch = padded(hooked)
    assert traces.generate(batch, 5) == hooked.generate(batch, 5)
    for phase in ("prefill", "decode", "both"):
        edits = [scale([HeadId(1, 1), HeadId(0, 0)], -4.0, phase=phase)]
        with hooked.intervene(edits) as here:
            want = hooked.generate(batch, 5)
        with traces.intervene(edits) as there:
            assert traces.generate(batch, 5) == want
        assert there[0].fired == here[0].fired


def test_what_an_engine_lacks_is_refused_in_one_sentence(pairs):
    hooked, traces = pairs("gptj")
    require(hooked, "weights", "path patching")
    require(traces, "weights", "path patching")
    with pytest.raises(UnsupportedModelError, match=r"attention interface.*backend='local'"):
        traces.row_summaries(padded(traces))
    with pytest.raises(ValueError, match="no engine declares"):
        require(hooked, "speed", "a probe")  # type: ignore[arg-type]


def test_identity_names_the_engine_and_the_same_weights(pairs):
    hooked, traces = pairs("gpt2")
    assert traces.identity["weights_sha256"] == hooked.identity["weights_sha256"]
    assert "nnsight" in traces.identity["device"]


def test_thirty_passes_hold_on_to_nothing(pairs):
    _, traces = pairs("llama")
    batch = padded(traces)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())

    def a_pass() -> None:
        with traces.intervene([zero([HeadId(0, 1)])]):
            traces.capture(batch, (Site.Z,))
            traces.row_summaries(batch)

    a_pass()
    before = tensors()
    for _ in range(30):
        a_pass()
    assert tensors() == before


def test_all_families_of_the_table_are_tried_here_or_share_an_entry():
    assert set(PARITY) <= set(FAMILIES)
