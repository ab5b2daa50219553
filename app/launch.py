"""Start the explorer: a Streamlit server on this machine only, hardened by command-line flags.

Flags outrank a user's configuration files and environment, so that neither can open the server to
the network, switch on usage statistics or let it watch and run files.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console

from ..models.errors import MnemoscopeError
from .settings import DEFAULT_MODELS, VARIABLE, Settings, settings_for

LOOPBACK = ("127.0.0.1", "localhost")
PORT = 8501
START_SECONDS = 60.0
SERVER = Path(__file__).with_name("server.py")


class LaunchError(MnemoscopeError):
    """The explorer could not be started."""


def launch(
    models: Sequence[str] = DEFAULT_MODELS,
    port: int = PORT,
    runs_root: Path | str = "runs",
    host: str = LOOPBACK[0],
    open_browser: bool = False,
    indexes: Sequence[Path | str] = (),
) -> int:
    """Serve the explorer until it is stopped (Ctrl-C); returns the server's exit status.

    `models` are packaged names, checkpoint folders or GGUF files, `indexes` folders of indexes;
    pages can load nothing else, beside what lies in `indexes` next to the runs folder.
    Prints the address and what is served to standard error. Raises `LaunchError` when the port is
    taken, the host is not this machine's loopback or the server does not come up. Call it from
    the main thread.
    """
    if find_spec("streamlit") is None:
        raise LaunchError("the explorer needs Streamlit: pip install 'mnemoscope[app]'.")
    settings = settings_for(models, runs_root, indexes)
    check_place(host, port)
    server = subprocess.Popen(server_command(host, port), env=server_environment(settings))
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        wait_until_up(server, host, port)
        announce(settings, f"http://{host}:{port}")
        if open_browser:
            webbrowser.open(f"http://{host}:{port}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)
        signal.signal(signal.SIGTERM, before)


def server_command(host: str, port: int) -> list[str]:
    """The command line of the server with every protective setting as a flag."""
    flags = {
        "server.address": host,
        # The tour fills fields that have defaults, on purpose.
        "global.disableWidgetStateDuplicationWarning": True,
        "server.port": port,
        "server.headless": True,
        "server.baseUrlPath": "",
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": 20,
        "server.maxMessageSize": 100,
        "server.maxCacheDataSize": "2gb",
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": host,
        "browser.serverPort": port,
        "client.toolbarMode": "minimal",
        "client.showErrorLinks": False,
        "runner.magicEnabled": False,
        "logger.hideWelcomeMessage": True,
        "theme.light.primaryColor": "#542788",
        "theme.dark.primaryColor": "#b2a1e6",
        # Streamlit's faded grey has too little contrast; for other small print see page.css.
        "theme.light.dataframeHeaderTextColor": "#595857",
        "theme.dark.dataframeHeaderTextColor": "#c4c2bf",
    }
    # -P: modules of the folder one happens to stand in must not shadow Streamlit's own.
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(SERVER)]
    command += [f"--{name}={_flag(value)}" for name, value in flags.items()]
    return command + [f"--server.allowedHosts={name}" for name in LOOPBACK]


def server_environment(settings: Settings) -> dict[str, str]:
    """This process's environment without Streamlit's own variables, and the settings for pages.

    On a CPU a page computes beside a job. Threads of torch that wait for each other spin, on the
    cores that the other process waits for too: two processes then take six times as long as one.
    They are told to spin a moment only, which costs one alone a tenth at most.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    return {"GOMP_SPINCOUNT": "1000", **kept, VARIABLE: settings.to_json()}


def check_place(host: str, port: int) -> None:
    """Raises `LaunchError` unless the host is the loopback and the port is free."""
    if host not in LOOPBACK:
        raise LaunchError(
            f"the explorer has no login, so it listens on {' or '.join(LOOPBACK)} only, not on "
            f"{host}: reach it from elsewhere through an SSH tunnel."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise LaunchError(
                f"port {port} on {host} cannot be used ({error}): stop what listens there or give "
                "another --port."
            ) from error


def wait_until_up(server: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Return once the server answers. Raises `LaunchError` when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise LaunchError(
                f"the server ended with status {server.returncode} before it answered: its own "
                "messages stand above."
            )
        try:
            with urlopen(f"http://{host}:{port}/_stcore/health", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise LaunchError(f"the server did not answer within {START_SECONDS:.0f} seconds: try again.")


def announce(settings: Settings, url: str) -> None:
    """Say on standard error where the explorer is and what it serves."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Mnemoscope explorer: {url} (this machine only, stop with Ctrl-C)")
    for label, place in settings.models.items():
        console.print(f"  model      {label}" + (f" ({place})" if place != label else ""))
    for label, place in settings.indexes.items():
        console.print(f"  index      {label} ({place})")
    console.print(f"  runs       {settings.runs_root}")
    console.print(f"  head sets  {settings.head_sets}")
    console.print(f"  unit sets  {settings.neuron_sets}")
    console.print(f"  texts      {settings.texts}")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ended by SIGTERM, the launcher still takes its server with it."""
    raise KeyboardInterrupt


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
