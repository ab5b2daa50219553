"""What a launch serves and how it is shut off from everybody else, without starting a server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.app import server
from mnemoscope.app.launch import (
    LaunchError,
    announce,
    check_place,
    launch,
    server_command,
    server_environment,
)
from mnemoscope.app.plain import as_text
from mnemoscope.app.settings import VARIABLE, settings_for, settings_from_environment
from mnemoscope.models.errors import MnemoscopeError


def test_settings_travel_through_the_environment(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for([str(checkpoint), "smollm2"], tmp_path / "runs")
    assert settings.models == {"planted": str(checkpoint), "smollm2": "smollm2"}
    assert settings.head_sets == tmp_path / "head-sets"
    monkeypatch.setenv(VARIABLE, settings.to_json())
    assert settings_from_environment() == settings


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    places = [str(tmp_path / name / "model") for name in ("a", "b")]
    assert list(settings_for([*places, places[0]], tmp_path).models) == places


@pytest.mark.parametrize("names", [[], ["no/such/folder"], ["gpt2"]])
def test_only_what_is_on_this_machine_is_offered(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(MnemoscopeError):
        settings_for(names, tmp_path)


def test_the_protective_settings_are_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    command = server_command("127.0.0.1", 8501)
    for flag in (
        "--server.address=127.0.0.1",
        "--server.allowedHosts=127.0.0.1",
        "--server.allowedHosts=localhost",
        "--server.headless=true",
        "--server.enableXsrfProtection=true",
        "--server.enableAgentApi=false",
        "--server.fileWatcherType=none",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
        "--runner.magicEnabled=false",
    ):
        assert flag in command
    assert "-P" in command


def test_streamlits_own_variables_do_not_reach_the_server(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
    environment = server_environment(settings_for([str(checkpoint)], tmp_path))
    assert not [name for name in environment if name.startswith("STREAMLIT_")]
    assert VARIABLE in environment
    assert environment["GOMP_SPINCOUNT"] == "1000"  # pages and jobs share the cores
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    own = server_environment(settings_for([str(checkpoint)], tmp_path))
    assert own["GOMP_SPINCOUNT"] == "5"


def test_a_busy_port_and_an_open_address_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port} .* --port"):
            launch([str(checkpoint)], port=port, runs_root=tmp_path)
    with pytest.raises(LaunchError, match="no login"):
        check_place("0.0.0.0", 8501)


def test_the_launch_says_where_it_is_and_what_it_serves(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    announce(settings_for([str(checkpoint)], tmp_path / "runs"), "http://127.0.0.1:8501")
    said = capfd.readouterr().err
    for part in ("http://127.0.0.1:8501", str(checkpoint), str(tmp_path / "runs"), "head-sets"):
        assert part in said


def answer(path: str, host: str) -> list[dict[str, Any]]:
    """What the guard sends for a request with this Host header, before an empty application."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"host", host.encode())]}
    with pytest.raises(StopIteration):  # nothing here ever waits: one step runs it to its end
        server.Guard(application)(scope, None, send).send(None)
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1:8501", "localhost", "LOCALHOST:8501"])
def test_the_guard_lets_loopback_through_and_adds_the_policy(host: str) -> None:
    (start,) = answer("/", host)
    assert start["status"] == 200
    policy = dict(start["headers"])[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "'unsafe-eval'" not in policy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8501", ""])
def test_the_guard_refuses_every_other_host(host: str) -> None:
    assert answer("/_stcore/health", host)[0]["status"] == 403


def test_inline_scripts_are_let_through_by_their_hash_only() -> None:
    one, two = (server.inline_hashes(f"<script>{body}</script>") for body in ("a", "b"))
    assert one != two
    assert one == "'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"  # SHA-256 of "a"


def test_text_is_shown_as_text() -> None:
    assert as_text("![x](http://a)") == r"\!\[x\]\(http\:\/\/a\)"
    assert as_text("Paris 2") == "Paris 2"
