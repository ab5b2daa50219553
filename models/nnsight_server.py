"""Requests to a server that runs nnsight: NDIF, one's own, or the rehearsal in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from .errors import MnemoscopeError, ModelNotFoundError, RemoteRunError

if TYPE_CHECKING:
    from .nnsight_pass import Pass

Remote = bool | str


def engine_on_server(name: str, tokenizer: Any, remote: Remote) -> Any:
    """nnsight's model of a checkpoint whose weights stay on a server; reads its configuration.

    Raises `RemoteRunError` without a key for NDIF or for an address that is none.
    """
    import nnsight
    from nnsight import CONFIG
    from nnsight.modeling import huggingface

    if isinstance(remote, str) and not remote.startswith(("http://", "https://")):
        raise RemoteRunError(
            f"remote={remote!r} is no address: use True for NDIF, or http://host:port."
        )
    if remote is True and not CONFIG.API.APIKEY:
        raise RemoteRunError(
            "NDIF wants a key: set NDIF_API_KEY (keys are given at https://login.ndif.us)."
        )
    if Path(name).is_dir():  # not to be looked up at the hub: the server reads the same folder
        huggingface._ID_CACHE[name] = name
    try:
        engine = nnsight.TransformersModel(name, task="text-generation", tokenizer=tokenizer)
        engine.to_model_key()
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"the configuration of {name!r} could not be read ({_first_line(error)}): give a hub "
            "id, or a folder that both this machine and the server see."
        ) from error
    return engine


def request(
    engine: Any, remote: Remote, name: str, passes: Sequence[Pass], into: Sequence[Any]
) -> dict[str, Any]:
    """Run passes as one request; what `run_passes` returns. Raises `RemoteRunError`."""
    import nnsight

    from .nnsight_pass import run_quietly

    nnsight.register(__name__.partition(".")[0])
    with _in_one_sentence(name, remote):
        # nnsight reads the source of this block: one `with` of its own, and a name to save
        with engine.session(remote=remote):
            found = nnsight.save(run_quietly(engine, passes, None, into, False))
        return found  # noqa: RET504


@contextmanager
def _in_one_sentence(name: str, remote: Remote) -> Iterator[None]:
    import httpx
    import websocket
    from nnsight.intervention.backends.remote import RemoteError

    where = "NDIF" if remote is True else remote
    try:
        yield
    except MnemoscopeError:
        raise
    except PicklingError as error:
        raise RemoteRunError(
            f"a callback cannot be sent to {where}: {_first_line(error)}. Let it hold tensors and "
            "plain values only."
        ) from error
    except (RemoteError, httpx.HTTPError, websocket.WebSocketException, OSError) as error:
        said = _first_line(error)
        raise RemoteRunError(f"{where} did not run {name}: {said}.{_advice(said)}") from error


def _advice(said: str) -> str:
    words = said.lower()
    if "401" in words or "403" in words or "key" in words or "unauthor" in words:
        return " Set NDIF_API_KEY to a key that this server knows."
    if "refused" in words or "resolve" in words or "name or service" in words:
        return " Is the address right, and the server up?"
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # the last line of a server's traceback says what went wrong
    return (lines[-1] if len(lines) > 3 else lines[0]).rstrip(".")[:300]
