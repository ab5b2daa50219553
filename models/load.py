"""`load_model`: a packaged name, a folder, a GGUF file or a hub id becomes a `HookedModel`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from .anatomy import known_architecture
from .checkpoint_files import check_folder
from .errors import (
    DamagedCheckpointError,
    MnemoscopeError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from .gguf import converted
from .hooked import HookedModel, wrap
from .packaged import PACKAGED

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Backend = Literal["local"]


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend = "local",
) -> HookedModel:
    """Load a decoder checkpoint and prove its anatomy, for example `load_model("engram")`.

    A folder or file is never resolved against the network, pickled weights are never opened and a
    checkpoint's own code is never run. `device="auto"` takes CUDA where there is one;
    `dtype="auto"` keeps the checkpoint's type on an accelerator and uses float32 on a CPU.

    Raises `ModelNotFoundError`, `DamagedCheckpointError`, `UnsupportedModelError`.
    """
    if backend != "local":
        raise MnemoscopeError(f"back end {backend!r} is not available; use backend='local'.")
    if not sys.stderr.isatty():
        disable_progress_bar()  # a log file full of carriage returns helps nobody
    name = str(name_or_path)
    where = "cuda" if device == "auto" and torch.cuda.is_available() else device
    where = "cpu" if where == "auto" else where
    if name in PACKAGED:
        return _from_folder(PACKAGED[name](), name, where, dtype)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, path.resolve().name, where, dtype)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(
                f"{path} is a file but no .gguf: give the checkpoint's folder."
            )
        return _from_folder(converted(path), path.stem, where, dtype)
    return _from_hub(name, where, dtype)


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that `load_model` takes, without its weights.

    Raises `ModelNotFoundError` or `DamagedCheckpointError`.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in PACKAGED or path.exists():
        return _tokenizer(checkpoint_folder(name_or_path), name, local=True)
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFoundError(
            f"{name!r} is no folder, no GGUF file and no hub id (owner/name), so it has no "
            f"tokenizer. Without a network: {', '.join(PACKAGED)}."
        )
    return _tokenizer(name, name, local=False)


def checkpoint_folder(name_or_path: str | Path) -> Path:
    """The local safetensors folder behind a packaged name, a folder or a GGUF file, checked whole.

    Raises `ModelNotFoundError` for anything else; a hub model has to be downloaded first.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in PACKAGED:
        path = PACKAGED[name]()
    elif path.is_file() and path.suffix == ".gguf":
        path = converted(path)
    if not path.is_dir():
        raise ModelNotFoundError(
            f"{name!r} is no local checkpoint. Download a hub model into a folder first "
            "(`hf download OWNER/NAME --local-dir FOLDER`) and give that folder."
        )
    check_folder(path)
    return path


def _from_folder(folder: Path, name: str, device: str, dtype: str) -> HookedModel:
    check_folder(folder)
    note = folder / "source.json"
    source = str(json.loads(note.read_text())) if note.is_file() else str(folder)
    return _wrapped(folder, name, source, device, dtype, local=True)


def _from_hub(name: str, device: str, dtype: str) -> HookedModel:
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFoundError(
            f"{name!r} is no folder, no GGUF file and no hub id (owner/name). "
            f"Models that need no network: {', '.join(PACKAGED)}."
        )
    return _wrapped(name, name, f"hub:{name}", device, dtype, local=False)


def _wrapped(
    place: Path | str, name: str, source: str, device: str, dtype: str, *, local: bool
) -> HookedModel:
    config = _config(place, name, local)
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=_dtype(dtype, device),
            local_files_only=local,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise ModelNotFoundError(_unreachable(name, local, error)) from error
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise DamagedCheckpointError(
            f"{name} could not be loaded, its weights are damaged or do not fit its config.json: "
            f"{_first_line(error)}"
        ) from error
    _check_fit(name, info, config.get_text_config())
    tokenizer = _tokenizer(place, name, local)
    return wrap(module.to(device), tokenizer, name=name, source=source)


def _config(place: Path | str, name: str, local: bool) -> Any:
    """The configuration; an architecture that cannot be wrapped is refused before its weights."""
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except OSError as error:
        if not local:
            raise ModelNotFoundError(_unreachable(name, local, error)) from error
        raise DamagedCheckpointError(_unreachable(name, local, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"the config.json of {name} names no known model: {_first_line(error)}"
        ) from error
    known_architecture(config.get_text_config().model_type)
    return config


def _check_fit(name: str, info: dict[str, Any], config: Any) -> None:
    """Refuse what transformers only warns of: random weights, and layers left out."""
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    if missing:
        raise DamagedCheckpointError(
            f"{name} lacks {len(missing)} weights its configuration calls for (first: "
            f"{min(missing)}): fetch the checkpoint again."
        )
    blocks = known_architecture(config.model_type).blocks.rpartition(".")[2]
    layer_of = re.compile(rf"(?:^|\.){blocks}\.(\d+)\.")
    layers = [int(match[1]) for key in unexpected if (match := layer_of.search(key))]
    if max(layers, default=-1) >= config.num_hidden_layers:
        raise DamagedCheckpointError(
            f"{name} holds weights of layer {max(layers)}, but its config.json promises "
            f"{config.num_hidden_layers} layers: the two do not belong together."
        )


def _tokenizer(place: Path | str, name: str, local: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(
            f"the tokenizer of {name} could not be loaded ({_first_line(error)}): copy "
            "tokenizer.json and tokenizer_config.json into the checkpoint's folder."
        ) from error


def _dtype(dtype: str, device: str) -> Any:
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise MnemoscopeError(f"dtype {dtype!r} is unknown: use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _unreachable(name: str, local: bool, error: OSError) -> str:
    if local:
        return f"{name} could not be read: {_first_line(error)}"
    return (
        f"{name!r} is neither a local folder nor a model the hub gave us ({_first_line(error)}). "
        f"Check the spelling, or use a local folder; without a network: {', '.join(PACKAGED)}."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
