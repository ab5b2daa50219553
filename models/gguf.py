"""GGUF files: converted once into a cached safetensors folder.

A GGUF load dequantises for tens of seconds and the result refuses `save_pretrained`; the cached
folder holds the same float32 weights as a plain checkpoint and loads in about a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path

from .checkpoint_files import file_sha256
from .errors import DamagedCheckpointError


def cache_folder() -> Path:
    """Where converted and fetched models live; `MNEMOSCOPE_CACHE` moves it."""
    return Path(os.environ.get("MNEMOSCOPE_CACHE") or user_cache_path("mnemoscope"))


def converted(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use (twice the float32 size in memory).

    The folder is named by the file's SHA-256, appears by one rename, and holds `source.json`.
    Raises `DamagedCheckpointError` when the file is not GGUF or cannot be read.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DamagedCheckpointError(f"{gguf} is not a GGUF file: its first bytes differ.")
    digest = _remembered_sha256(gguf)
    target = cache_folder() / f"gguf-{digest[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _convert(gguf, digest, target)
    return target


def _remembered_sha256(gguf: Path) -> str:
    """The file's hash, remembered by path, size and time so that a big file is read once."""
    stat = gguf.stat()
    key = f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    note = cache_folder() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    if note.is_file():
        return note.read_text()
    digest = file_sha256(gguf)
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as part:
        part.write(digest)
    os.replace(part.name, note)
    return digest


def _convert(gguf: Path, digest: str, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    except (ValueError, LookupError, RuntimeError, OSError, struct.error) as error:
        raise DamagedCheckpointError(f"{gguf} could not be read as a model: {error}") from error
    del loaded.config.quantization_config  # the weights are dequantised already
    plain = AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        source = {"gguf": gguf.name, "sha256": digest, "dtype": "float32, dequantised"}
        (work / "source.json").write_text(json.dumps(source, indent=1))
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
