"""Malformed HTTP: credentials, lengths, hosts, ranges, and slow clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from tests.e2e.served import Served, register, serving, submit_text, wait_for_job
from tests.e2e.wire import Answer, ask, connected, head, read

RANGED = "In parts."
JSON = ("Content-Type", "application/json")
CHUNKED = ("Transfer-Encoding", "chunked")
BODY_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"AFTERWORDS_BODY_TIMEOUT_S": f"{BODY_TIMEOUT_S:g}", "AFTERWORDS_ALLOWED_HOSTS": "voice.example, other"}
    with serving(tmp_path_factory.mktemp("http") / "home", settings) as running:
        yield running


@pytest.fixture(scope="module")
def key(served: Served) -> tuple[str, str]:
    return "Authorization", f"Bearer {served.key}"


class TestAuthorization:
    @pytest.mark.parametrize(
        "values",
        [
            [],
            [b""],
            [b"Bearer"],
            [b"Bearer "],
            [b"Basic dXNlcjpwYXNz"],
            [b"%s"],
            [b"Token %s"],
            [b"Bearer %s", b"Bearer %s"],
            [b"Bearer %s", b""],
            [b"Bearer %s, Bearer %s"],
            [b"Bearer %s x"],
            [b"Bearer %s\xff"],
            ["Bearer aw_ключ".encode()],
            [b"Bearer aw_\xfc"],
            [b"Bearer " + b"a" * 8_192],
            [b"Bearer aw_" + b"a" * 43],
            [b"Bearer " + b"a" * 60_000],
        ],
        ids=lambda values: repr(values)[:30],
    )
    def test_invalid_credential_returns_401(self, served: Served, values: list[bytes]) -> None:
        given = [("Authorization", value.replace(b"%s", served.key.encode())) for value in values]
        answer = ask(served, "GET", "/v1/voices", given)
        assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")

    @pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "Bearer   {}"])
    def test_bearer_scheme_is_case_insensitive(self, served: Served, value: str) -> None:
        assert ask(served, "GET", "/v1/voices", [("Authorization", value.format(served.key))]).status == 200

    @pytest.mark.parametrize("length", ["99999999999", "200000000"])
    def test_401_comes_before_413(self, served: Served, length: str) -> None:
        answer = ask(served, "POST", "/v1/synthesize", [JSON, ("Content-Length", length)])
        assert (answer.status, answer.code, answer.headers["connection"]) == (401, "unauthorized", "close")

    def test_no_100_continue_without_credential(self, served: Served) -> None:
        asking = [("Expect", "100-continue"), ("Content-Length", "1000")]
        assert ask(served, "POST", "/v1/voices", asking).status == 401


class TestLengths:
    @pytest.mark.parametrize(
        "lengths", [["2", "3"], ["2", "2"], ["-1"], ["+2"], ["abc"], ["1e3"], ["0x2"], ["2, 2"], ["9" * 30], ["2 2"]]
    )
    def test_invalid_content_length_returns_400(self, served: Served, key: tuple[str, str], lengths: list[str]) -> None:
        given = [("Content-Length", length) for length in lengths]
        answer = ask(served, "POST", "/v1/synthesize", [key, JSON, *given], b"{}")
        assert (answer.status, answer.code) == (400, "bad_request")

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ([CHUNKED, ("Content-Length", "2")], b"2\r\n{}\r\n0\r\n\r\n"),
            ([("Transfer-Encoding", "gzip")], b"2\r\n{}\r\n0\r\n\r\n"),
            ([("Transfer-Encoding", "chunked, gzip")], b"2\r\n{}\r\n0\r\n\r\n"),
            ([CHUNKED], b"zz\r\n{}\r\n0\r\n\r\n"),
            ([CHUNKED], b"-2\r\n{}\r\n0\r\n\r\n"),
            ([CHUNKED], b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
            ([CHUNKED], b"2\r\n{}zz\r\n0\r\n\r\n"),
        ],
    )
    def test_ambiguous_body_length_returns_400(
        self, served: Served, key: tuple[str, str], headers: list[tuple[str, str]], body: bytes
    ) -> None:
        answer = ask(served, "POST", "/v1/synthesize", [key, JSON, *headers], body)
        assert (answer.status, answer.code) == (400, "bad_request")

    @pytest.mark.parametrize(
        "line", [b"BREW /v1/health HTTP/1.1", b"GET /v1/health HTTP/9.9", b"GET  HTTP/1.1", b"\x16\x03\x01\x02",
                 b"GET /v1/voices/\xff HTTP/1.1", b"GET /" + b"a" * 70_000 + b" HTTP/1.1"],
        ids=lambda line: repr(line)[:30],
    )  # fmt: skip
    def test_malformed_request_returns_400_in_the_error_shape(self, served: Served, line: bytes) -> None:
        with connected(served) as wire:
            wire.sendall(line + b"\r\nHost: 127.0.0.1\r\n\r\n")
            answer = read(wire)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert answer.error["request_id"] == answer.headers["x-request-id"]


class TestHosts:
    WRONG = ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil", "[::1].evil", "8.8.8.8", "127.0.0.2", "*")

    @pytest.mark.parametrize("host", WRONG)
    @pytest.mark.parametrize("path", ["/v1/health", "/healthz", "/readyz", "/openapi.json", "/docs", "/v1/voices"])
    def test_foreign_host_returns_400_on_every_route(
        self, served: Served, key: tuple[str, str], path: str, host: str
    ) -> None:
        answer = ask(served, "GET", path, [("Host", host), key])
        assert (answer.status, answer.code) == (400, "invalid_host")
        assert host not in answer.error["message"] or not host.isalpha()

    @pytest.mark.parametrize("hosts", [["127.0.0.1", "evil.example"], ["evil.example", "127.0.0.1"]])
    def test_two_host_headers_return_400(self, served: Served, hosts: list[str]) -> None:
        answer = ask(served, "GET", "/v1/health", [("Host", host) for host in hosts])
        assert (answer.status, answer.code) == (400, "invalid_host")

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "LOCALHOST:1234", "[::1]:80", "[::1]", "voice.example", "other:443"]
    )
    def test_hosts_of_the_server_are_accepted(self, served: Served, host: str) -> None:
        assert ask(served, "GET", "/v1/health", [("Host", host)]).status == 200


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/v1/voices", "GET, HEAD, POST"),
            ("OPTIONS", "/v1/synthesize", "POST"),
            ("HEAD", "/v1/synthesize", "POST"),
            ("TRACE", "/v1/jobs/x/audio", "GET, HEAD, PUT"),
            ("POST", "/v1/voices/x", "DELETE, GET, HEAD, PATCH"),
        ],
    )
    def test_wrong_method_returns_405_with_all_methods(
        self, served: Served, method: str, path: str, allowed: str
    ) -> None:
        answer = ask(served, method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)

    def test_trailing_slash_returns_404(self, served: Served, key: tuple[str, str]) -> None:
        answer = ask(served, "GET", "/v1/voices/", [key])
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    "ranges",
    ["bytes=" + ",".join(["0-1"] * 200), "bytes=99999999-", "bytes=-0", "bytes=" + "9" * 30 + "-", "BYTES=99999999-"],
    ids=lambda value: repr(value)[:20],
)
def test_range_beyond_the_audio_returns_416(
    audio_url: str, served: Served, key: tuple[str, str], ranges: str | bytes
) -> None:
    answer = ask(served, "GET", audio_url, [key, ("Range", ranges)])
    assert (answer.status, answer.code) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"].startswith("bytes */")


@pytest.mark.parametrize(
    "ranges",
    ["bytes=0-0,1-1", "bytes=5-2", "bytes=-", "lines=1-2", "bytes=a-b", b"bytes=\xb2-\xb3", "bytes 0-1", "bytes="],
)
def test_malformed_range_is_ignored(audio_url: str, served: Served, key: tuple[str, str], ranges: str | bytes) -> None:
    answer = ask(served, "GET", audio_url, [key, ("Range", ranges)])
    assert (answer.status, answer.body[:4]) == (200, b"RIFF")
    assert "content-range" not in answer.headers


def test_range_is_ignored_on_post(served: Served, audio_url: str, key: tuple[str, str]) -> None:
    with served.client() as client:
        whole = client.get(audio_url).content
        job = client.get("/v1/jobs").json()[0]
        body = json.dumps({"voice_id": job["voice_id"], "text": RANGED}).encode()
    headers = [key, JSON, ("Content-Length", str(len(body))), ("Range", "bytes=0-1")]
    answer = ask(served, "POST", "/v1/synthesize", headers, body)
    assert (answer.status, answer.body) == (200, whole)


@pytest.fixture(scope="module")
def audio_url(served: Served) -> str:
    with served.client() as client:
        job_id = submit_text(client, register(client), RANGED)
        wait_for_job(client, job_id)
    return f"/v1/jobs/{job_id}/audio"


@contextmanager
def dripping(drop: Callable[[], object], *, every_s: float) -> Iterator[None]:
    """Repeat an action in the background until it fails or the block ends."""
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not ended.wait(every_s):
                drop()

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class TestSlowClients:
    @pytest.mark.parametrize(
        ("headers", "start", "drip"),
        [
            ([("Content-Length", "50000")], b"", b""),
            ([("Content-Length", "50000")], b"{", b" "),
            ([CHUNKED], b"2\r\n{}\r\n", b""),
            ([CHUNKED], b"2\r\n{}\r\n", b"1\r\n \r\n"),
            ([CHUNKED], b"2\r\n{}\r\n0\r\n", b"a: b\r\n"),
        ],
        ids=["nothing", "drop by drop", "chunks without end", "chunk by chunk", "trailers"],
    )
    def test_stalled_body_returns_408(
        self, served: Served, key: tuple[str, str], headers: list[tuple[str, str]], start: bytes, drip: bytes
    ) -> None:
        with connected(served) as wire:
            wire.sendall(head("POST", "/v1/synthesize", [key, JSON, *headers]) + start)
            with dripping(lambda: wire.sendall(drip), every_s=BODY_TIMEOUT_S / 4):
                answer = read(wire)
        assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_timeout", "close")

    def test_held_connections_are_closed_and_block_nothing(self, served: Served) -> None:
        bodies = ("Content-Length", "60000")
        holds: dict[str, tuple[bytes, bytes]] = {
            "nothing": (b"", b""),
            "half a line": (b"GET /v1/he", b""),
            "headers": (b"GET /v1/health HTTP/1.1\r\n", b"X-A: b\r\n"),
            "a body that is not read": (head("POST", "/v1/voices", [bodies]), b"a"),
            "a body of GET": (head("GET", "/v1/health", [bodies]), b"a"),
            "a second request": (head("GET", "/v1/health") + b"GET /v1/health HTTP/1.1\r\n", b"X-A: b\r\n"),
        }
        with ExitStack() as stack:
            wires = {}
            for name, (start, drip) in holds.items():
                wires[name] = wire = stack.enter_context(connected(served))
                wire.sendall(start)
                stack.enter_context(dripping(lambda wire=wire, drip=drip: wire.sendall(drip), every_s=0.25))  # type: ignore[misc]
            with served.client() as client:
                assert all(client.get("/v1/voices").status_code == 200 for _ in range(20))
            for wire in wires.values():
                wire.settimeout(60)
                with suppress(ConnectionError):
                    while wire.recv(65_536):
                        pass

    def test_slow_but_steady_body_is_accepted(self, served: Served, key: tuple[str, str]) -> None:
        body = b" " * 100_000 + b'{"voice_id": "x", "text": "hi"}'
        with connected(served) as wire:
            wire.sendall(head("POST", "/v1/synthesize", [key, JSON, ("Content-Length", str(len(body)))]))
            ended = threading.Event()
            for start in range(0, len(body), 10_000):
                ended.wait(BODY_TIMEOUT_S / 6)
                wire.sendall(body[start : start + 10_000])
            answer = read(wire)
        assert (answer.status, answer.code) == (404, "voice_not_found")


def test_unknown_path_returns_404_in_the_error_shape(served: Served) -> None:
    answer: Answer = ask(served, "GET", "//v1//voices")
    assert (answer.status, answer.code) == (404, "not_found")
    assert httpx.get(f"{served.url}/v1/nothing").headers["x-request-id"]
