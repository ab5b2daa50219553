"""A training of engram: what it leaves behind, how it goes on when interrupted, what it refuses.

One tiny model is trained once; the tests read its folder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mnemoscope.models.load import load_model
from mnemoscope.organisms.engram import train as engram
from mnemoscope.organisms.engram.batches import END_ID, IGNORED, LONGEST_ROW, Rows, batches
from mnemoscope.organisms.engram.corpus import build_corpus
from mnemoscope.organisms.engram.tokenizer import train_tokenizer
from mnemoscope.organisms.engram.train import KEPT_AT, Settings, main, model_config, train
from mnemoscope.organisms.engram.training_state import Training, restore, save_state
from mnemoscope.results.errors import RunFolderError
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

TINY = Settings(
    corpus_scale=0.02,
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=64,
    layers=1,
    heads=4,
    key_value_heads=2,
    copying_passes=1,
    epochs=1,
    tokens_a_step=16384,
    warmup_steps=3,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training that saved its state after every step."""
    folder = tmp_path_factory.mktemp("engram") / "training"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engram, "_SAVE_EVERY", 1)
        assert train(folder, TINY) == folder / "model"
    return folder


@pytest.fixture(scope="module")
def read() -> list[tuple[Rows, ...]]:
    """The batches of that training: a pass over the copying documents, then over all of them."""
    documents = build_corpus(0, scale=TINY.corpus_scale).documents
    tokenizer = train_tokenizer([document.text for document in documents], TINY.vocab_size)
    ids = {document.id: tokenizer(document.text)["input_ids"] for document in documents}
    copying = [ids[document.id] for document in documents if document.slice == "copying"]
    return [
        *batches(copying, order="0:0", tokens_a_batch=TINY.tokens_a_step),
        *batches(list(ids.values()), order="0:1", tokens_a_batch=TINY.tokens_a_step),
    ]


def _curve(folder: Path) -> list[dict[str, float]]:
    """The loss curve without the seconds, which nobody can repeat."""
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_loss_falls_and_has_a_line_a_step(trained: Path, read: list[tuple[Rows, ...]]) -> None:
    curve = _curve(trained)
    assert [line["step"] for line in curve] == list(range(1, len(read) + 1))
    predicted = [sum(int((r.targets[:, 1:] != IGNORED).sum()) for r in batch) for batch in read]
    assert [line["tokens"] for line in curve] == predicted
    assert curve[-1]["part"] == 1
    assert abs(curve[0]["loss"] - math.log(TINY.vocab_size)) < 0.2
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.3


def test_the_first_loss_is_the_mean_over_the_batch_of_the_fresh_model(
    trained: Path, read: list[tuple[Rows, ...]]
) -> None:
    torch.manual_seed(TINY.seed)
    model = LlamaForCausalLM(model_config(TINY)).eval()
    losses = []
    for row in (row[row != IGNORED] for rows in read[0] for row in rows.targets):
        with torch.no_grad():
            logits = model(input_ids=row[None]).logits[0, :-1]
        losses.append(cross_entropy(logits, row[1:], reduction="none"))
    assert _curve(trained)[0]["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=0.005)


def test_the_learning_rate_rises_and_falls_to_zero(trained: Path) -> None:
    curve = _curve(trained)
    for line in curve:
        expected = min(line["step"] / TINY.warmup_steps, 1 - line["part"])
        assert line["rate"] == pytest.approx(expected, abs=1e-4)
    assert curve[-1]["rate"] == 0


def test_the_settings_are_kept(trained: Path) -> None:
    kept = json.loads((trained / "settings.json").read_text())
    assert kept == asdict(TINY)
    assert kept["torch_version"] == torch.__version__


def test_checkpoints_are_kept_along_the_training(trained: Path) -> None:
    found = sorted(path.name for path in (trained / "along").iterdir())
    assert 4 <= len([*found, "model"]) <= 6
    parts = {f"step-{int(line['step']):06d}": line["part"] for line in _curve(trained)}
    for name, part in zip(found, KEPT_AT, strict=True):
        assert part <= parts[name] < part + 2 / len(parts)
    weights = [(trained / "along" / name / "model.safetensors").read_bytes() for name in found]
    assert len({*weights, (trained / "model" / "model.safetensors").read_bytes()}) == len(found) + 1


def test_the_checkpoint_is_a_plain_llama_folder_in_bfloat16(trained: Path) -> None:
    for folder in (trained / "model", *(trained / "along").iterdir()):
        weights = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    module = AutoModelForCausalLM.from_pretrained(trained / "model")
    assert type(module) is LlamaForCausalLM
    assert AutoTokenizer.from_pretrained(trained / "model")("a")["input_ids"][0] == END_ID
    state = load_file(trained / "state.safetensors")
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, state[f"model.{name}"].to(torch.bfloat16))


@pytest.mark.parametrize("settings", [TINY, Settings()], ids=["tiny", "standard"])
def test_two_or_more_query_heads_share_a_key_value_head(settings: Settings) -> None:
    config = model_config(settings)
    assert isinstance(config, LlamaConfig)
    shared, rest = divmod(config.num_attention_heads, config.num_key_value_heads)
    assert shared >= 2
    assert rest == 0
    assert config.max_position_embeddings >= LONGEST_ROW


def test_mnemoscope_loads_the_checkpoint(trained: Path) -> None:
    model = load_model(trained / "model", device="cpu")
    anatomy = model.anatomy
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads) == (1, 4, 2)
    assert model.tokens("Anna went to the market.").ids[0, 0] == END_ID
    assert model.stop_ids == {END_ID}
    assert model.continuations(["Anna went to the market."], 3)[0]


# ---- going on after an interruption


def _interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let a person press Ctrl-C when the given number of steps of this start are made."""
    made = iter(range(step))
    plain = engram._step

    def interrupted(*given: Any) -> dict[str, float]:
        if next(made, None) is None:
            raise KeyboardInterrupt
        return plain(*given)

    patch.setattr(engram, "_step", interrupted)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    trained: Path, tmp_path: Path
) -> None:
    """Ctrl-C twice: before a state was ever saved, and two steps after one was."""
    folder = tmp_path / "training"
    for step, saved in ((2, False), (6, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engram, "_SAVE_EVERY", 4)
            _interrupt_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                train(folder, TINY)
        assert len(_curve(folder)) == step
        assert (folder / "state.safetensors").is_file() == saved
        assert not (folder / "model").exists()
    train(folder, TINY)
    assert _curve(folder) == _curve(trained)
    for path in sorted(trained.rglob("*")):
        if path.is_file() and path.name not in ("loss.jsonl", "state.safetensors"):
            assert (folder / path.relative_to(trained)).read_bytes() == path.read_bytes(), path


def test_the_same_command_leaves_a_finished_training_as_it_is(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engram, "_step", lambda *_: pytest.fail("a step was made again"))
    folder = shutil.copytree(trained, tmp_path / "training")
    assert main(_command(folder)) == 0
    for name in ("loss.jsonl", "model/model.safetensors", "state.safetensors"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_other_settings_in_the_same_folder_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="other settings"):
        train(trained, replace(TINY, epochs=2))
    assert main([*_command(trained), "--epochs", "2"]) == 1
    assert "give another folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_damaged_state_is_an_error_and_not_a_fresh_start(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "training")
    state = folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match=r"state\.safetensors is damaged"):
        train(folder, TINY)
    assert main(_command(folder)) == 1
    assert "delete it to train from the start" in capsys.readouterr().err
    assert _curve(folder) == _curve(trained)


def test_the_command_reports_senseless_values_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "training"
    assert main(["--out", str(folder), "--corpus-scale", "9"]) == 1
    assert "scale must be above 0" in capsys.readouterr().err
    assert not folder.exists()
    folder.write_text("a file")
    for inside in (folder, folder / "deeper"):
        assert main(["--out", str(inside), "--corpus-scale", "0.001"]) == 1
        assert "give a folder" in capsys.readouterr().err


def _command(folder: Path) -> list[str]:
    values = {name: value for name, value in asdict(TINY).items() if name != "torch_version"}
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items()]
    return ["--out", str(folder), "--device", "cpu", *(word for pair in options for word in pair)]


# ---- the state of a training, on a model of six numbers


def _linear(seed: int) -> Training:
    torch.manual_seed(seed)
    model = torch.nn.Linear(2, 2)
    weight = torch.optim.Muon([model.weight], lr=0.1)
    return Training(model, (weight, torch.optim.AdamW([model.bias], lr=0.1)))


def _move(training: Training, times: int) -> list[float]:
    for _ in range(times):
        training.model(torch.ones(1, 2)).square().sum().backward()
        for optimizer in training.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [value for p in training.model.parameters() for value in p.flatten().tolist()]


def test_a_restored_training_goes_on_exactly_and_the_curve_ends_at_its_step(tmp_path: Path) -> None:
    first, other = _linear(0), _linear(1)
    _move(first, 3)
    save_state(tmp_path, first, 3)
    (tmp_path / "loss.jsonl").write_text("".join(f"{i}\n" for i in range(1, 6)))
    assert restore(tmp_path, other) == 3
    assert _move(other, 4) == _move(first, 4)
    assert (tmp_path / "loss.jsonl").read_text() == "1\n2\n3\n"


def test_without_a_state_nothing_is_restored_and_the_curve_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "loss.jsonl").write_text("1\n2\n")
    training = _linear(0)
    assert restore(tmp_path, training) == 0
    assert _move(training, 1) == _move(_linear(0), 1)
    assert (tmp_path / "loss.jsonl").read_text() == ""


def _without_weights(path: Path) -> None:
    tensors = {name: t for name, t in load_file(path).items() if not name.startswith("model")}
    save_file(tensors, path, metadata={"step": "3"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no safetensors": lambda path: path.write_bytes(b"loss" * 100),
    "no step": lambda path: save_file(load_file(path), path),
    "no number of steps": lambda path: save_file(load_file(path), path, metadata={"step": "x"}),
    "no weights": _without_weights,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_state_that_cannot_be_read_is_an_error(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    save_state(tmp_path, _linear(0), 3)
    damage(tmp_path / "state.safetensors")
    with pytest.raises(RunFolderError, match="delete it to train from the start"):
        restore(tmp_path, _linear(0))
