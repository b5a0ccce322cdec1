"""Network settings that can't be used are named without their values, and telemetry is off."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from afterwords import AsyncClient, Client
from afterwords.errors import HubError, RemoteError, UnreachableError
from afterwords.network import TELEMETRY_SWITCHES, turn_off_telemetry
from afterwords.weights.download import pull
from tests.cli.program import run
from tests.error_codes import has_code

ELSEWHERE = "https://voices.invalid"
REMOTE_ENV = {"AFTERWORDS_BASE_URL": ELSEWHERE, "AFTERWORDS_API_KEY": "aw_x"}
CLIENTS = {
    "blocking": lambda: Client(ELSEWHERE, api_key="aw_x"),
    "awaited": lambda: AsyncClient(ELSEWHERE, api_key="aw_x"),
    "hub": lambda: pull("qwen3-1.7b"),
}
UNUSABLE = [
    ("ALL_PROXY", "socks5://user:secret@127.0.0.1:9", "socksio"),
    ("https_proxy", "socks5h://127.0.0.1:9", "socksio"),
    ("ALL_PROXY", "socks://127.0.0.1:9", "not the URL of a proxy"),
    ("HTTPS_PROXY", "http://user:secret@127.0.0.1:notaport", "not the URL of a proxy"),
    ("NO_PROXY", "[::1", "list of host names"),
    ("SSL_CERT_FILE", "/nonexistent/ca.pem", "no such file"),
    ("SSL_CERT_FILE", __file__, "no valid certificate"),
    ("SSLKEYLOGFILE", "/nonexistent/keys", "no such file"),
]


@pytest.fixture
def untrusted_server() -> Iterator[str]:
    """Serve with an untrusted certificate on an address of this machine that is not loopback."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://0.0.0.0:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _reset_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let huggingface_hub read the environment of each test."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it was read on import
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", ELSEWHERE)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _clear_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("SSL")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize(("variable", "value", "why"), UNUSABLE)
def test_invalid_setting_is_named_without_its_value(
    make: Callable[[], object], variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RemoteError, match=why, check=has_code("network_setting")) as caught:
        make()
    shown = f"{caught.value} {caught.value.hint}"
    assert variable in caught.value.message
    assert variable in caught.value.hint
    assert "secret" not in shown


def test_lower_case_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "ftp://127.0.0.1:9")
    with pytest.raises(RemoteError, match="setting of https_proxy", check=has_code("network_setting")):
        Client(ELSEWHERE, api_key="aw_x")


def test_loopback_server_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/ca.pem")
    Client("http://127.0.0.1:9", api_key="aw_x").close()


def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # no service has port 1
    with Client(ELSEWHERE, api_key="aw_x", timeout_s=0) as client, pytest.raises(UnreachableError) as caught:
        client.health()
    assert "the proxy in HTTPS_PROXY" in caught.value.hint


def test_hub_behind_an_unreachable_proxy_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with pytest.raises(HubError, check=has_code("hub_unreachable")) as caught:
        pull("qwen3-1.7b")
    assert "the proxy in ALL_PROXY" in caught.value.hint


def test_untrusted_certificate_names_ssl_cert_file(untrusted_server: str) -> None:
    with Client(untrusted_server, api_key="aw_x", timeout_s=0) as client, pytest.raises(UnreachableError) as caught:
        client.health()
    assert "certificate is not trusted" in caught.value.message
    assert "SSL_CERT_FILE" in caught.value.hint


def test_cli_names_the_variable() -> None:
    done = run("whoami", env=REMOTE_ENV | {"ALL_PROXY": "socks5://127.0.0.1:9"})
    assert "unset ALL_PROXY" in done.expect_error(8, "network_setting")


def test_transcription_without_a_model_names_the_variable(tmp_path: Path) -> None:
    program = """
import numpy as np
from afterwords.audio.audio import Audio
from afterwords.errors import UnavailableError
from afterwords.reference.transcription import transcribe
try:
    transcribe(Audio(np.zeros(16_000, np.float32), 16_000), model="small")
except UnavailableError as error:
    print(error.message)
"""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= {"HF_HOME": str(tmp_path), "ALL_PROXY": "socks5://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert "ALL_PROXY" in done.stdout


def test_telemetry_is_turned_off_where_it_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    turn_off_telemetry()
    assert {name: os.environ[name] for name in TELEMETRY_SWITCHES} == TELEMETRY_SWITCHES


def test_telemetry_set_by_the_user_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    turn_off_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"


def test_onnxruntime_is_imported_in_one_place() -> None:
    root = Path(__file__).parents[1]
    programs = [
        path for folder in ("src", "benchmarks", "examples", "scripts") for path in (root / folder).rglob("*.py")
    ]
    importing = [path.name for path in programs if re.search(r"(import|from) onnxruntime", path.read_text("utf-8"))]
    assert importing == ["network.py"]


def test_network_module_does_not_import_httpx() -> None:
    program = "import sys, afterwords.network; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
