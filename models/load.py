"""`load_model`: a packaged name, a folder, a GGUF file or a hub id becomes a `HookedModel`."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from errno import ENOSPC
from pathlib import Path
from typing import Any, Literal, get_args

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
    PlacementError,
    UnsupportedModelError,
)
from .gguf import converted
from .hooked import HookedModel, wrap
from .memory_limits import Memory
from .packaged import PACKAGED
from .placement import Placement, devices, is_offloaded, placement

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Backend = Literal["local", "nnsight"]


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend | None = None,
    remote: bool | str | None = None,
    max_memory: Memory | None = None,
    offload_folder: str | Path | None = None,
) -> HookedModel:
    """Load a decoder checkpoint and prove its anatomy, for example `load_model("engram")`.

    A folder or file is never resolved against the network, pickled weights are never opened and a
    checkpoint's own code is never run. `device="auto"` fills the CUDA devices in their order, so a
    model that fits takes the first alone, then host memory, and leaves what is over on disk, to be
    read a layer at a time. `max_memory` bounds each of these (`{0: "20GiB", "cpu": "30GiB"}`);
    without it nine tenths of what is free are filled.
    `offload_folder` is needed only by families whose checkpoints are rewritten on loading (fused
    experts); all others are read where they lie. Both default to the environment variables
    `MNEMOSCOPE_MAX_MEMORY` (`0=20GiB,cpu=30GiB`) and `MNEMOSCOPE_OFFLOAD_FOLDER`. `dtype="auto"`
    keeps the checkpoint's type on an accelerator and uses float32 on a CPU.

    `backend="nnsight"` runs every pass as an nnsight trace. With `remote` a server does, and no
    weights are loaded here: True or "ndif" for NDIF, the address of one's own server, or "local" to
    rehearse that in this process. Both default to `MNEMOSCOPE_BACKEND` and `MNEMOSCOPE_REMOTE`,
    then to hooks in this process. A server has loaded its model already: beside one, `device`,
    `dtype`, `max_memory` and `offload_folder` are refused, and the variables of the last two, which
    say what this machine has, play no part.

    Raises `MnemoscopeError` for such a choice and for an unknown back end, `ModelNotFoundError`,
    `DamagedCheckpointError`, `UnsupportedModelError`, `PlacementError`, `RemoteRunError`.
    """
    engine, server = _engine(backend, remote)
    if server and server != "local":
        _refuse_choices(device, dtype, max_memory, offload_folder)
        return _from_server(name_or_path, server)
    if not sys.stderr.isatty():
        disable_progress_bar()  # a log file full of carriage returns helps nobody
    where = placement(device, max_memory, offload_folder)
    model = _loaded(str(name_or_path), where, dtype)
    if engine == "local":
        return model
    from .nnsight_model import traced

    return traced(model, rehearse=server == "local")


def _engine(backend: str | None, remote: bool | str | None) -> tuple[str, bool | str]:
    """The back end and the server, the environment asked for what was left open."""
    if remote is None:
        remote = "" if backend == "local" else os.environ.get("MNEMOSCOPE_REMOTE", "")
    if backend is None:
        backend = "nnsight" if remote else os.environ.get("MNEMOSCOPE_BACKEND", "local")
    if backend not in get_args(Backend):
        raise MnemoscopeError(
            f"back end {backend!r} is not available: use {' or '.join(get_args(Backend))}."
        )
    if remote and backend == "local":
        raise MnemoscopeError("a server runs nnsight: leave backend='local' out, or remote.")
    return backend, True if remote == "ndif" else remote


def _refuse_choices(device: str, dtype: str, max_memory: object, offload_folder: object) -> None:
    """Raises `MnemoscopeError` where somebody chose what a server has decided already."""
    chosen = {
        "device": device != "auto",
        "dtype": dtype != "auto",
        "max_memory": max_memory is not None,
        "offload_folder": offload_folder is not None,
    }
    names = " and ".join(name for name, is_chosen in chosen.items() if is_chosen)
    if names:
        raise MnemoscopeError(
            f"{names} cannot be chosen for a model that a server runs, for the server has loaded "
            f"it already: leave {names} out, or leave remote out and load the model here."
        )


def _from_server(name_or_path: str | Path, server: bool | str) -> HookedModel:
    from .nnsight_model import on_server

    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in PACKAGED or path.exists():
        name = str(checkpoint_folder(name_or_path))
    model = on_server(name, load_tokenizer(name_or_path), server)
    _log.warning(
        "the weights of %s lie at a server and cannot be hashed: when the checkpoint there has "
        "changed, start runs over (--force), or old numbers are taken for new ones.",
        name,
    )
    return model


def _loaded(name: str, where: Placement, dtype: str) -> HookedModel:
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


def _from_folder(folder: Path, name: str, where: Placement, dtype: str) -> HookedModel:
    check_folder(folder)
    note = folder / "source.json"
    source = str(json.loads(note.read_text())) if note.is_file() else str(folder)
    return _wrapped(folder, name, source, where, dtype, local=True)


def _from_hub(name: str, where: Placement, dtype: str) -> HookedModel:
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFoundError(
            f"{name!r} is no folder, no GGUF file and no hub id (owner/name). "
            f"Models that need no network: {', '.join(PACKAGED)}."
        )
    return _wrapped(name, name, f"hub:{name}", where, dtype, local=False)


def _wrapped(
    place: Path | str, name: str, source: str, where: Placement, dtype: str, *, local: bool
) -> HookedModel:
    config = _config(place, name, local)
    quantised = getattr(config, "quantization_config", None) is not None
    if quantised and where.limited:
        raise PlacementError(_quantised(name))
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=_dtype(dtype, where),
            local_files_only=local,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            device_map=where.device_map,
            max_memory=where.max_memory,
            offload_folder=where.offload_folder,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        _refuse_placement(name, where, error)
        if isinstance(error, OSError):
            raise ModelNotFoundError(_unreachable(name, local, error)) from error
        raise DamagedCheckpointError(
            f"{name} could not be loaded, its weights are damaged or do not fit its config.json: "
            f"{_first_line(error)}"
        ) from error
    _check_fit(name, info, config.get_text_config())
    tokenizer = _tokenizer(place, name, local)
    if is_offloaded(module):
        if quantised:
            raise PlacementError(_quantised(name))
        _log.warning(
            "%s lies in %s: offloaded layers are read again in every pass.",
            name,
            ", ".join(devices(module)),
        )
    return wrap(module, tokenizer, name=name, source=source)


def _quantised(name: str) -> str:
    return (
        f"{name} is quantised, and the scales of quantised weights do not come back with an "
        "offloaded part: load it whole on one device (device='cuda', no max_memory) or take the "
        "unquantised checkpoint."
    )


def _refuse_placement(name: str, where: Placement, error: Exception) -> None:
    """Raises `PlacementError` where the weights were fine but had nowhere to go."""
    if "offload_folder" in str(error):
        raise PlacementError(
            f"{name} does not fit into memory, and its weights have to be rewritten to be read "
            "layer by layer: give an offload_folder on a disk with room for them."
        ) from error
    full = isinstance(error, OSError) and error.errno == ENOSPC
    if where.offload_folder and (full or "No space left on device" in str(error)):
        raise PlacementError(
            f"the disk of the offload folder {where.offload_folder} is full: {name} does not fit "
            "there; give an offload_folder with more room."
        ) from error


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


def _dtype(dtype: str, where: Placement) -> Any:
    if dtype == "auto":
        return torch.float32 if where.on_cpu else "auto"
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
