"""`load_model`: local folders stay local, and damaged checkpoints are refused in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.models import HookedModel, MnemoscopeError, load_model
from mnemoscope.models.checkpoint_files import read_header
from mnemoscope.models.errors import (
    CheckpointError,
    DamagedCheckpointError,
    ModelNotFoundError,
    PromptError,
    UnsupportedModelError,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Break = Callable[[Path], Any]


pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a word tokenizer, in two shards, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("saved") / "small-llama"
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tiny("llama", dtype=torch.float32).save_pretrained(folder, max_shard_size="60KB")
    fast.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) == 2
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "small-llama"))


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a safetensors header, bytes of the tensors untouched."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    new = change(header)
    text = json.dumps(header if new is None else new).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def with_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -- what works ------------------------------------------------------------------------------------


def test_a_local_folder_never_touches_the_network(saved: Path, calls: list[str]) -> None:
    model = load_model(saved)
    assert calls == []
    assert isinstance(model, HookedModel)
    assert model.name == "small-llama"
    assert model.source == str(saved)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    with torch.no_grad():
        want = tiny("llama", dtype=torch.float32)(torch.tensor([[3, 4]])).logits
    torch.testing.assert_close(model.logits(model.tokens("w0 w1")), want)
    assert model.continuations(["w0 w1"], 2)[0]


def test_weights_are_told_apart_by_their_hash(saved: Path, folder: Path) -> None:
    one, same = load_model(saved), load_model(folder)
    assert one.weights_sha256 == same.weights_sha256
    assert one.tokenizer_sha256 == same.tokenizer_sha256
    with torch.no_grad():
        same.module.model.norm.weight[0] += 1e-3
    changed = HookedModel(same.module, same.tokenizer, same.anatomy, "changed")
    assert one.weights_sha256 != changed.weights_sha256


@pytest.mark.parametrize(("word", "dtype"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_the_type_asked_for_is_the_type_loaded(saved: Path, word: str, dtype: torch.dtype) -> None:
    assert load_model(saved, dtype=word).dtype == dtype


def test_unknown_options_are_refused(saved: Path) -> None:
    with pytest.raises(MnemoscopeError, match="use auto, float32, bfloat16, float16"):
        load_model(saved, dtype="int3")
    with pytest.raises(MnemoscopeError, match="use local or nnsight"):
        load_model(saved, backend="cloud")  # type: ignore[arg-type]


# -- what is no checkpoint -------------------------------------------------------------------------


def test_an_unknown_name_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long
    with pytest.raises(ModelNotFoundError, match=r"'nobody/nothing'.*smollm2"):
        load_model("nobody/nothing")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "what is this?", ""])
def test_what_cannot_be_a_hub_id_is_not_asked_for(name: str, calls: list[str]) -> None:
    with pytest.raises(MnemoscopeError):
        load_model(name)
    assert calls == []


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    text = folder / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ModelNotFoundError, match="give the checkpoint's folder"):
        load_model(text)


def test_a_folder_without_configuration_is_refused(folder: Path, calls: list[str]) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_model(folder)
    assert calls == []


# -- damaged checkpoints ---------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-100])


def _lengthen(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes() + b"x")


def _cut_header(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:40])


def _huge_header(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _garbage_header(folder: Path) -> None:
    path = shard(folder)
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"#" * 50 + data[58:])


def _drop_tensor(folder: Path) -> None:
    """A whole, well-formed checkpoint with one tensor less, index and all."""
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        tensors.pop("model.layers.1.mlp.up_proj.weight", None)
        save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    index.write_text(json.dumps(content))


def _pickles_only(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")


def _no_weights(folder: Path) -> None:
    _pickles_only(folder)
    (folder / "pytorch_model.bin").unlink()


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _wrong_shape(header: dict[str, Any]) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [7, 7]


def _unknown_dtype(header: dict[str, Any]) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["dtype"] = "Z9"


def _index(text: str) -> Break:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


DAMAGE: dict[str, tuple[Break, str]] = {
    "missing shard": (lambda f: shard(f).unlink(), "is missing: download"),
    "truncated": (_truncate, "is truncated"),
    "too long": (_lengthen, "bytes after its last tensor"),
    "empty": (lambda f: shard(f).write_bytes(b""), "header longer than the file"),
    "cut header": (_cut_header, "header longer than the file"),
    "huge header": (_huge_header, "header longer than the file"),
    "garbage header": (_garbage_header, "unreadable header"),
    "list header": (lambda f: with_header(shard(f), lambda _: []), "unreadable header"),
    "odd header": (lambda f: with_header(shard(f), lambda _: {"a": 1}), "unreadable header"),
    "wrong shape": (lambda f: with_header(shard(f), _wrong_shape), "another size than its shape"),
    "unknown dtype": (lambda f: with_header(shard(f), _unknown_dtype), "could not be loaded"),
    "index is text": (_index("hello"), "is unreadable"),
    "index is a list": (_index("[]"), "is unreadable"),
    "index maps a list": (_index('{"weight_map": []}'), "is unreadable"),
    "missing tensor": (_drop_tensor, r"lacks 1 weights.*layers\.1\.mlp\.up_proj"),
    "more layers promised": (lambda f: with_config(f, num_hidden_layers=4), "lacks 9 weights"),
    "fewer layers promised": (lambda f: with_config(f, num_hidden_layers=2), "promises 2 layers"),
    "other width": (lambda f: with_config(f, hidden_size=64), "do not fit its config"),
    "other heads": (lambda f: with_config(f, num_attention_heads=8), "do not fit its config"),
    "pickles only": (_pickles_only, "only pytorch_model.bin, which can run code"),
    "no weights": (_no_weights, "holds no safetensors weights"),
    "no tokenizer": (_no_tokenizer, r"copy tokenizer\.json"),
    "tokenizer is text": (
        lambda f: (f / "tokenizer.json").write_text("hello"),
        r"tokenizer of small-llama",
    ),
    "config is text": (lambda f: (f / "config.json").write_text("hello"), "not a valid JSON"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(folder: Path, damage: str, calls: list[str]) -> None:
    breaks, says = DAMAGE[damage]
    breaks(folder)
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)
    assert calls == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "t5"}, "'t5' is not in the table.*gpt2.*qwen3"),
        ({"model_type": "bert"}, "'bert' is not in the table"),
        ({"model_type": "unheard-of"}, "names no known model.*unheard-of"),
        ({"model_type": None}, "names no known model"),
    ],
)
def test_an_unsupported_architecture_is_refused_before_its_weights_are_read(
    folder: Path, values: dict[str, Any], says: str, calls: list[str]
) -> None:
    with_config(folder, **values)
    with pytest.raises(UnsupportedModelError, match=says):
        load_model(folder)
    assert calls == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_a_broken_header_is_damage_and_nothing_else(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = shard(saved).read_bytes()
    head = bytearray(content[:400])
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "broken.safetensors"
    path.write_bytes(bytes(head) + content[400:])
    with suppress(DamagedCheckpointError):  # a lucky change is none; any other error fails here
        assert read_header(path).size == len(content)


# -- GGUF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "not a GGUF file"),
        (b"", "not a GGUF file"),
        (b"GGUF", "could not be read as a model"),
        (b"GGUF\x03\x00\x00\x00", "could not be read as a model"),
        (b"GGUF" + bytes(range(200)), "could not be read as a model"),
        (b"GGUF\x03" + b"\x00" * 40, "could not be read as a model"),
    ],
)
def test_a_file_that_is_no_whole_gguf_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str
) -> None:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=says):
        load_model(path)
    assert not list((tmp_path / "cache").glob("gguf-*/"))  # nothing half converted is kept


# -- prompts ---------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_run_are_refused(saved: Path) -> None:
    model = load_model(saved)
    with pytest.raises(PromptError, match="empty"):
        model.tokens("")
    with pytest.raises(PromptError, match="65 tokens but small-llama reads at most 64"):
        model.tokens(" ".join(["w1"] * 65))


# -- what is imported ------------------------------------------------------------------------------


def test_the_floor_imports_no_other_back_end_and_no_pictures() -> None:
    code = (
        "import sys, mnemoscope.models as m\n"
        "[getattr(m, name) for name in m.__all__]\n"
        "print([n for n in ('transformer_lens', 'nnsight', 'plotly', 'streamlit')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
