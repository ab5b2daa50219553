"""Where a number came from: model, data, prompt, seed, versions and command, in one record."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

from .errors import RunFolderError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_PACKAGES = ("mnemoscope", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Everything that is needed to get the same number again.

    A field that does not apply is `None` (a probe without a data file, a model without a
    tokenizer). `estimand` names what was measured (`direct effect`, `END total effect`, ...),
    `bos_rule` how a text was opened, `created` is UTC in ISO 8601.
    """

    model_id: str
    weights_sha256: str | None
    tokenizer_sha256: str | None
    data_sha256: str | None
    prompt_template: str | None
    bos_rule: str | None
    seed: int | None
    estimand: str
    versions: Mapping[str, str]
    device: str
    dtype: str
    attention: str | None
    command: tuple[str, ...]
    created: str
    machine: str

    def to_json(self) -> str:
        """The record as an indented JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read `to_json` back. Raises `RunFolderError` when fields are missing or unknown."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise RunFolderError(f"the provenance is not JSON ({error}).") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or set(record) != names:
            wrong = sorted(names ^ set(record)) if isinstance(record, dict) else "everything"
            raise RunFolderError(f"the provenance has missing or unknown fields: {wrong}.")
        return cls(**{**record, "command": tuple(record["command"])})


def collect_provenance(
    *,
    model_id: str,
    weights_sha256: str | None,
    tokenizer_sha256: str | None,
    data_sha256: str | None,
    prompt_template: str | None,
    bos_rule: str | None,
    seed: int | None,
    estimand: str,
    device: str,
    dtype: str,
    attention: str | None,
) -> Provenance:
    """A `Provenance` with versions, command line, time and machine filled in.

    Versions are read from the installed packages' metadata: nothing heavy is imported.
    """
    return Provenance(
        model_id=model_id,
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer_sha256,
        data_sha256=data_sha256,
        prompt_template=prompt_template,
        bos_rule=bos_rule,
        seed=seed,
        estimand=estimand,
        versions={**{name: _version(name) for name in _PACKAGES}, "python": sys.version.split()[0]},
        device=device,
        dtype=dtype,
        attention=attention,
        command=tuple(sys.argv),
        created=utc_now(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    )


def provenance_beyond_a_model(
    *,
    model_id: str,
    estimand: str,
    device: str,
    dtype: str,
    seed: int | None = None,
    weights_sha256: str | None = None,
    data_sha256: str | None = None,
) -> Provenance:
    """The `Provenance` of what no loaded model made, or many did: nothing was tokenised."""
    return collect_provenance(
        model_id=model_id,
        weights_sha256=weights_sha256,
        tokenizer_sha256=None,
        data_sha256=data_sha256,
        prompt_template=None,
        bos_rule=None,
        seed=seed,
        estimand=estimand,
        device=device,
        dtype=dtype,
        attention=None,
    )


def canonical_json(value: JSON) -> str:
    """The one JSON text of a value: keys sorted, no spaces. Raises `ValueError` or `TypeError` for
    what JSON cannot hold, NaN included."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of_json(value: JSON) -> str:
    """SHA-256 (hexadecimal) of `canonical_json`, so that key order and tuples do not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
