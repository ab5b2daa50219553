"""A model spread over memory and disk gives the numbers of one in memory, a layer read once a pass.

Comparisons are exact: the same kernels see the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ids, tiny
from mnemoscope.models import (
    HeadId,
    HookedModel,
    MnemoscopeError,
    NeuronId,
    Site,
    TokenSpan,
    load_model,
    scale,
    zero,
)
from mnemoscope.models.errors import PlacementError
from mnemoscope.models.load import _quantised, _refuse_placement
from mnemoscope.models.memory_limits import MAX_MEMORY, parse_memory
from mnemoscope.models.placement import (
    Placement,
    devices,
    execution_device,
    is_offloaded,
    materialised,
    named_weights,
    placement,
)
from placed import both, counted_reads, saved
from transformers import AutoModelForCausalLM
from transformers.integrations.accelerate import _get_device_map

OF_ALL_KINDS = ("gpt2", "gptj", "neox", "opt", "llama", "gemma2", "mixtral")
GIB = 2**30
ROWS = ids(2, 9).tolist()
ROWS[1] = ROWS[1][:5]


@pytest.fixture(scope="module", params=OF_ALL_KINDS)
def pair(request: Any, tmp_path_factory: Any) -> tuple[HookedModel, HookedModel]:
    folder = tmp_path_factory.mktemp("placed")
    return both(saved(folder / request.param, request.param), offload_folder=folder / "offloaded")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> Path:
    return saved(tmp_path_factory.mktemp("one") / "llama", "llama")


def test_half_of_it_stays_on_disk(pair: Any) -> None:
    resident, spread = pair
    assert devices(resident.module) == ("cpu",)
    assert devices(spread.module) == ("cpu", "disk")
    assert spread.identity["device"] == "cpu, disk"
    assert is_offloaded(spread.module)
    assert not is_offloaded(resident.module)
    assert spread.device == torch.device("cpu")


def test_every_site_is_captured_alike(pair: Any) -> None:
    fused = pair[0].anatomy.d_mlp is None
    sites = [Site.RESID_PRE, Site.RESID_POST, Site.Z, Site.ATTN_OUT, Site.MLP_OUT]
    sites += [] if fused else [Site.NEURON]
    want, got = (m.capture(m.batch(ROWS), sites) for m in pair)
    assert torch.equal(got.logits, want.logits)
    for site in sites:
        assert torch.equal(got.stack(site), want.stack(site)), site


def test_edits_change_the_same_and_fire_as_often(pair: Any) -> None:
    last = pair[0].anatomy.n_layers - 1
    edits = [zero([HeadId(0, 1), HeadId(last, 2)])]
    if pair[0].anatomy.d_mlp is not None:
        edits.append(scale([NeuronId(last, 3)], 2.5, "end"))
    told = []
    for model in pair:
        with model.intervene(edits) as installed:
            told.append(model.logits(model.batch(ROWS)))
        told.append(torch.tensor([one.fired for one in installed]))
    assert torch.equal(told[2], told[0])
    assert torch.equal(told[3], told[1])


def test_rows_and_what_they_read_are_alike(pair: Any) -> None:
    spans = [[TokenSpan(1, 3)], [TokenSpan(0, 2)]]
    want, got = (m.row_summaries(m.batch(ROWS), "end", spans) for m in pair)
    assert torch.equal(got.mass.nan_to_num(-1), want.mass.nan_to_num(-1))
    assert torch.equal(got.top_key, want.top_key)
    rows = [m.rows(m.batch(ROWS), "end") for m in pair]
    assert torch.equal(rows[0], rows[1])


def test_a_cached_prompt_and_its_continuation_are_alike(pair: Any) -> None:
    told = []
    for model in pair:
        prompt = model.prefill(ROWS[0], chunk=4)
        reading = model.read_suffix(prompt, [5, 9, 7], values=True)
        told.append((model.suffix_logits(prompt, [5, 9]), reading.z, reading.rows.top_weight))
        told.append((model.greedy_from(prompt, [5], 3), model.generate(model.batch(ROWS), 3)))
    for want, got in zip(told[0], told[2], strict=True):
        assert torch.equal(got, want)
    assert told[1] == told[3]


def test_the_hash_of_the_weights_does_not_depend_on_where_they_are(pair: Any) -> None:
    resident, spread = pair
    assert spread.weights_sha256 == resident.weights_sha256
    with counted_reads() as reads:
        assert sum(weight.numel() for _, weight in named_weights(spread.module)) > 1000
    assert reads
    assert set(reads.values()) == {1}


def test_a_pass_reads_each_offloaded_weight_once(pair: Any) -> None:
    spread = pair[1]
    batch = spread.batch(ROWS)
    with counted_reads() as reads:
        spread.capture(batch, (Site.Z,))
    assert reads
    assert set(reads.values()) == {1}
    offloaded = {name for name, p in spread.module.named_parameters() if p.device.type == "meta"}
    assert offloaded
    assert offloaded <= set(reads)


def test_weights_held_in_memory_are_read_once_and_let_go(llama: Path) -> None:
    model = both(llama, 0.0)[1]
    assert devices(model.module) == ("disk",)
    block = model.module.model.layers[1]
    batch = model.batch(ROWS)
    with counted_reads() as reads, materialised(block.modules()):
        assert not is_offloaded(block)
        held = block.mlp.down_proj.weight
        assert torch.equal(
            held, tiny("llama", dtype=torch.float32).model.layers[1].mlp.down_proj.weight
        )
        with materialised(block.modules()):
            model.logits(batch)
        model.logits(batch)
        assert block.mlp.down_proj.weight is held
    inside = {name: n for name, n in reads.items() if "layers.1." in name}
    assert set(inside.values()) == {1}
    assert all(n == 2 for name, n in reads.items() if "layers.2." in name)
    assert block.mlp.down_proj.weight.device.type == "meta"
    assert execution_device(block) == torch.device("cpu")


def test_weights_are_let_go_when_the_block_fails(llama: Path) -> None:
    model = both(llama, 0.0)[1]
    block = model.module.model.layers[0]
    with pytest.raises(RuntimeError, match="on purpose"), materialised(block.modules()):
        raise RuntimeError("on purpose")
    assert all(p.device.type == "meta" for p in block.parameters())
    model.logits(model.batch(ROWS))


def test_the_tables_of_a_tied_model_count_twice_in_its_state(tmp_path: Path) -> None:
    resident, spread = both(saved(tmp_path / "gpt2", "gpt2"), 0.0)
    names = [[name for name, _ in named_weights(m.module)] for m in (resident, spread)]
    assert names[0] == names[1]
    assert {"lm_head.weight", "transformer.wte.weight"} <= set(names[0])


def test_what_fits_is_loaded_whole(llama: Path) -> None:
    model = load_model(llama, max_memory={"cpu": "1GiB"})
    assert devices(model.module) == ("cpu",)
    assert not any(hasattr(module, "_hf_hook") for module in model.module.modules())


def test_limits_can_come_from_the_environment(llama: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(MAX_MEMORY, "cpu=40KB")
    assert "disk" in devices(load_model(llama).module)


def test_a_checkpoint_that_must_be_rewritten_asks_for_a_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mixtral", "mixtral")
    with pytest.raises(PlacementError, match="give an offload_folder"):
        both(folder)


def test_a_full_disk_is_told_as_such() -> None:
    where = placement("auto", {"cpu": 1}, "/somewhere")
    full = OSError(28, "No space left on device")
    with pytest.raises(PlacementError, match="disk of the offload folder /somewhere is full"):
        _refuse_placement("big", where, full)
    with pytest.raises(PlacementError, match="more room"):
        _refuse_placement("big", where, RuntimeError("I/O error: No space left on device"))
    _refuse_placement("big", where, RuntimeError("something else"))


def test_quantised_weights_are_not_spread(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "quantised"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlacementError, match="quantised"):
        load_model(folder, max_memory={"cpu": "10KB"})
    assert "no max_memory" in _quantised("x")


Wish = Callable[[], Any]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (lambda: placement("cpu", {"cpu": 1}), "device='auto' with it"),
        (lambda: placement("gpu9"), "'gpu9' is no device"),
        (lambda: placement("cuda:77"), "'cuda:77' is not there"),
        (lambda: placement("auto", {77: "1GiB"}), "names the device 77"),
        (lambda: placement("auto", {"disk": "1GiB"}), "names the device 'disk'"),
        (lambda: placement("auto", {"cpu": "much"}), "'much' is no size"),
        (lambda: parse_memory("cpu"), "write 0=20GiB,cpu=30GiB"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(wish: Wish, message: str) -> None:
    with pytest.raises(PlacementError, match=message) as caught:
        wish()
    assert isinstance(caught.value, MnemoscopeError)


def test_limits_are_read_as_people_write_them() -> None:
    assert parse_memory("0=20GiB, cpu=30GiB") == {0: "20GiB", "cpu": "30GiB"}
    assert parse_memory(" ") is None
    asked = placement("auto", {"cpu": "2KB"}, "~/offloaded")
    assert (asked.max_memory, asked.on_cpu, asked.limited) == ({"cpu": 2000}, True, True)
    assert asked.offload_folder == str(Path("~/offloaded").expanduser())


# -- several CUDA devices, as far as they can be thought of on a CPU ------------------------------


@pytest.fixture
def cuda(monkeypatch: Any) -> Callable[[dict[int | str, int]], None]:
    """Takes the free bytes of the CUDA devices and the host that a machine is to have."""

    def has(free: dict[int | str, int]) -> None:
        count = sum(isinstance(key, int) for key in free)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr("mnemoscope.models.placement.get_max_memory", lambda: dict(free))

    return has


def mapped(module: Any, where: Placement) -> dict[str, int | str]:
    """The device of every weight, as transformers works it out when it loads."""
    parts = _get_device_map(module, where.device_map, where.max_memory, None)

    def at(name: str) -> int | str:
        above = [part for part in parts if not part or f"{name}.".startswith(f"{part}.")]
        return parts[max(above, key=len)]

    return {name: at(name) for name, _ in module.named_parameters()}


def sizes(module: Any) -> tuple[int, int]:
    """Bytes of all weights, and of those of the first block."""
    weights = {name: p.numel() * p.element_size() for name, p in module.named_parameters()}
    return sum(weights.values()), sum(n for name, n in weights.items() if block_of(name) == 0)


def block_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


@pytest.mark.parametrize("family", OF_ALL_KINDS)
def test_a_model_that_fits_the_first_of_eight_devices_goes_there_alone(
    family: str, cuda: Any
) -> None:
    cuda({**dict.fromkeys(range(8), 80 * GIB), "cpu": 500 * GIB})
    where = placement("auto")
    assert set(mapped(tiny(family), where).values()) == {0}
    assert (where.on_cpu, where.limited) == (False, False)


def test_nine_tenths_of_what_is_free_are_for_weights(cuda: Any, monkeypatch: Any) -> None:
    cuda({0: 50 * GIB, 1: 80 * GIB, "cpu": 500 * GIB})
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (40 - 30 * device) * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * GIB)
    limits = placement("auto").max_memory
    assert limits == {0: 72 * GIB, 1: 72 * GIB, "cpu": 450 * GIB}  # 0: 30 GiB held, but unused


def test_host_memory_that_is_the_devices_own_is_not_counted_twice(cuda: Any) -> None:
    cuda({0: 100 * GIB})
    assert placement("auto").max_memory == {0: 90 * GIB}


@pytest.mark.parametrize("family", OF_ALL_KINDS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_larger_model_fills_the_devices_in_their_order_by_whole_blocks(
    family: str, asked: bool, cuda: Any
) -> None:
    module = tiny(family)
    size, block = sizes(module)
    # The first device keeps room for one layer more: one block there, two behind, one device over.
    room = {0: size - block // 2, 1: 3 * size, 2: GIB, "cpu": GIB}
    cuda(room if asked else {at: int(free / 0.9) + 1 for at, free in room.items()})
    found = mapped(module, placement("auto", room if asked else None))
    blocks = [{at for name, at in found.items() if block_of(name) == i} for i in range(3)]
    assert blocks == [{0}, {1}, {1}]
    assert set(found.values()) == {0, 1}


def test_what_no_device_has_room_for_goes_to_host_memory_then_to_disk(cuda: Any) -> None:
    module = tiny("llama")
    size, block = sizes(module)
    cuda({0: GIB, 1: GIB, "cpu": GIB})
    found = mapped(module, placement("auto", {0: size - block // 2, "cpu": 2 * block}))
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0, "cpu", "disk"]


def test_the_loader_is_told_of_the_order_and_the_limits(
    llama: Path, cuda: Any, monkeypatch: Any
) -> None:
    told: dict[str, Any] = {}

    def load(place: Path, **how: Any) -> Any:
        told.update(how)
        raise ValueError("told")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    cuda({0: GIB, 1: GIB, "cpu": GIB})
    with pytest.raises(MnemoscopeError, match="told"):
        load_model(llama, max_memory={1: "20KB", "cpu": "1MB"})
    assert (told["device_map"], told["max_memory"]) == ("sequential", {1: 20_000, "cpu": 10**6})
    assert told["dtype"] == "auto"  # as on an accelerator
    with pytest.raises(MnemoscopeError, match="told"):
        load_model(llama, device="cuda:1")
    assert (told["device_map"], told["max_memory"]) == ({"": "cuda:1"}, None)


# -- nnsight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_nnsight_pass_reads_each_offloaded_weight_once(family: str, tmp_path: Path) -> None:
    pytest.importorskip("nnsight")
    from mnemoscope.models.nnsight_model import traced

    resident, spread = both(saved(tmp_path / family, family))
    model = traced(spread)
    offloaded = {name for name, p in spread.module.named_parameters() if p.device.type == "meta"}
    sites = (Site.RESID_PRE, Site.Z, Site.NEURON, Site.RESID_POST)
    with resident.intervene([zero([HeadId(0, 1)])]), model.intervene([zero([HeadId(0, 1)])]):
        want = resident.capture(resident.batch(ROWS), sites)
        with counted_reads() as reads:
            got = model.capture(model.batch(ROWS), sites)
    assert torch.equal(got.logits, want.logits)
    assert all(torch.equal(got.stack(site), want.stack(site)) for site in sites)
    assert offloaded
    assert offloaded <= set(reads)
    assert set(reads.values()) == {1}
    assert torch.equal(
        model.rows(model.batch(ROWS), "end"), resident.rows(resident.batch(ROWS), "end")
    )
    assert all(
        p.device.type == "meta" for n, p in spread.module.named_parameters() if n in offloaded
    )


def test_nnsight_refuses_a_model_whose_embeddings_are_on_disk(tmp_path: Path) -> None:
    pytest.importorskip("nnsight")
    from mnemoscope.models.nnsight_model import traced

    where = saved(tmp_path / "llama", "llama")
    model = load_model(where, device="auto", max_memory={"cpu": 1})
    with pytest.raises(PlacementError, match="room for the embeddings"):
        traced(model)
