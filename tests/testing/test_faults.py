"""The proxy that fails on purpose: what it is not told to spoil passes untouched, and what it is told to fails so."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest

from afterwords.errors import LimitError, UnauthorizedError
from afterwords.testing import Fault, FaultyServer, RunningServer
from tests.e2e.served import register, until

DEADLINE_S = 30.0


def asking(url: str, key: str = "") -> httpx.Client:
    """A client that keeps its connection, and forgives nothing."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=DEADLINE_S, trust_env=False)


@pytest.fixture
def client(afterwords_faults: FaultyServer, afterwords_api_key: str) -> Iterator[httpx.Client]:
    """Asks through the proxy, with an account of its own."""
    with asking(afterwords_faults.url, afterwords_api_key) as client:
        yield client


@pytest.fixture
def direct(afterwords_server: RunningServer, afterwords_api_key: str) -> Iterator[httpx.Client]:
    """Asks the server itself, with the same account."""
    with asking(afterwords_server.url, afterwords_api_key) as client:
        yield client


@pytest.fixture
def audio(direct: httpx.Client) -> str:
    """The path of some audio."""
    ask = {"voice_id": register(direct), "text": "Some audio."}
    job_id = direct.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=30"}).headers["X-Job-Id"]
    return f"/v1/jobs/{job_id}/audio"


def raw(
    client: httpx.Client, method: str, path: str, **options: object
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers in order and body as they came, but for what differs each time."""
    with client.stream(method, path, **options) as answer:  # type: ignore[arg-type]
        headers = [pair for pair in answer.headers.raw if pair[0].lower() not in (b"date", b"x-request-id")]
        body = b"".join(answer.iter_raw())
        return answer.status_code, headers, body.replace(answer.headers["X-Request-Id"].encode(), b"")


class Upstream(BaseHTTPRequestHandler):
    """A server whose answer to GET is a stream of three chunks, which goes on at a sign, and to POST what was sent."""

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in (b"first", b"second", b"third"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            assert self.go_on.wait(DEADLINE_S)
        if self.path != "/cut":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def do_POST(self) -> None:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class UpstreamServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of those who were cut off."""


@pytest.fixture
def upstream() -> Iterator[str]:
    Upstream.go_on.clear()
    with UpstreamServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestPassing:
    @pytest.mark.parametrize(
        ("method", "path", "options"),
        [
            ("GET", "/v1/health?a=1&a=2", {}),
            ("GET", "{audio}", {}),
            ("HEAD", "{audio}", {}),
            ("GET", "{audio}", {"headers": {"Range": "bytes=100-299"}}),
            ("GET", "{audio}", {"headers": {"Range": "bytes=99999999-"}}),
            ("GET", "/nowhere", {}),
            ("POST", "/v1/synthesize", {"json": {"text": "No voice, ünd ümlauts."}}),
            ("DELETE", "/v1/jobs/00000000-0000-4000-8000-000000000000", {}),
        ],
    )
    def test_status_headers_and_body_are_those_of_the_server(
        self, client: httpx.Client, direct: httpx.Client, audio: str, method: str, path: str, options: dict[str, object]
    ) -> None:
        path = path.format(audio=audio)
        through, straight = (raw(one, method, path, **options) for one in (client, direct))
        assert through == straight

    def test_an_upload_arrives_whole_and_one_connection_serves_many_requests(
        self, client: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        voice_id = register(client)
        assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
        assert client.get("/v1/voices").json() == []
        assert [seen.fault for seen in afterwords_faults.seen] == [None] * 3

    def test_a_refusal_that_comes_before_the_body_was_read_arrives(self, afterwords_faults: FaultyServer) -> None:
        with asking(afterwords_faults.url, "wrong") as client:
            answer = client.post("/v1/voices", content=bytes(8 << 20))
        assert answer.json()["error"]["code"] == "unauthorized"

    def test_a_stream_passes_as_it_comes(self, upstream: str) -> None:
        with FaultyServer(upstream) as faults, httpx.stream("GET", faults.url, trust_env=False) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"first"
            Upstream.go_on.set()
            assert b"".join(pieces) == b"secondthird"

    def test_a_stream_that_the_server_breaks_off_is_broken_off(self, upstream: str) -> None:
        Upstream.go_on.set()
        with FaultyServer(upstream) as faults, pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{faults.url}/cut", trust_env=False)

    def test_a_body_sent_in_chunks_arrives(self, upstream: str) -> None:
        with FaultyServer(upstream) as faults:
            answer = httpx.post(faults.url, content=iter([b"one ", b"two ", b"three"]), trust_env=False)
            assert answer.content == b"one two three"
            assert faults.seen[0].body_bytes == 13

    def test_many_ask_at_once(self, afterwords_faults: FaultyServer) -> None:
        def ask(_: int) -> int:
            return httpx.get(f"{afterwords_faults.url}/v1/health", trust_env=False).status_code

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(ask, range(64))) == {200}
        assert len(afterwords_faults.seen) == 64

    def test_where_no_server_is_the_connection_ends(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with FaultyServer(f"http://127.0.0.1:{port}") as faults, pytest.raises(httpx.RemoteProtocolError):
            httpx.get(faults.url, trust_env=False)


class TestAnswers:
    @pytest.mark.parametrize(
        "error", [UnauthorizedError(), LimitError("Wait.", code="rate_limited", limit=1, retry_after_s=7)]
    )
    def test_an_injected_error_is_shaped_like_one_of_the_server(
        self,
        client: httpx.Client,
        direct: httpx.Client,
        afterwords_faults: FaultyServer,
        error: UnauthorizedError | LimitError,
    ) -> None:
        real = direct.get("/nowhere")
        if error.retry_after_s is None:
            afterwords_faults.inject(Fault.ANSWER, status=error.http_status)
        else:
            afterwords_faults.inject(Fault.ANSWER, status=error.http_status, retry_after_s=error.retry_after_s)
        answer = client.get("/v1/voices")
        body = answer.json()["error"]
        assert (answer.status_code, body["code"]) == (error.http_status, error.code)
        assert body.keys() == real.json()["error"].keys()
        assert answer.headers["X-Request-Id"] == body["request_id"]
        assert answer.headers["Content-Type"] == real.headers["Content-Type"]
        assert answer.headers.get("Retry-After") == (error.retry_after_s and str(error.retry_after_s))

    def test_the_code_of_an_error_can_be_chosen(self, client: httpx.Client, afterwords_faults: FaultyServer) -> None:
        afterwords_faults.inject(Fault.ANSWER, status=429, code="quota_exceeded")
        error = client.get("/v1/voices").json()["error"]
        assert (error["code"], error["type"]) == ("quota_exceeded", "rate_limit_error")

    def test_a_login_page_comes_with_200(self, client: httpx.Client, afterwords_faults: FaultyServer) -> None:
        afterwords_faults.inject(Fault.HTML)
        answer = client.get("/v1/voices")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "log in" in answer.text

    @pytest.mark.parametrize("status", [302, 307])
    def test_a_redirect_leads_elsewhere(
        self, client: httpx.Client, afterwords_faults: FaultyServer, status: int
    ) -> None:
        afterwords_faults.inject(Fault.REDIRECT, location="http://elsewhere.invalid/", status=status)
        answer = client.post("/v1/synthesize", json={})
        assert (answer.status_code, answer.headers["Location"]) == (status, "http://elsewhere.invalid/")

    def test_after_an_answer_of_its_own_the_connection_goes_on(
        self, client: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.HTML, method="HEAD")
        assert client.head("/v1/voices").content == b""
        assert client.get("/v1/voices").json() == []


class TestDropped:
    def test_dropped_before_nothing_was_done(
        self, client: httpx.Client, direct: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.DROP_BEFORE)
        with pytest.raises(httpx.NetworkError):
            register(client)
        assert direct.get("/v1/voices").json() == []

    def test_dropped_after_the_thing_was_done(
        self, client: httpx.Client, direct: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.DROP_AFTER)
        with pytest.raises(httpx.NetworkError):
            register(client)
        assert len(direct.get("/v1/voices").json()) == 1

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER])
    def test_the_connection_is_really_reset(self, afterwords_faults: FaultyServer, fault: Fault) -> None:
        afterwords_faults.inject(fault)
        with socket.create_connection(("127.0.0.1", urlsplit(afterwords_faults.url).port), DEADLINE_S) as connected:
            connected.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                connected.recv(1)


class TestSpoilt:
    def test_half_a_body_keeps_the_length_of_the_whole(
        self, client: httpx.Client, direct: httpx.Client, audio: str, afterwords_faults: FaultyServer
    ) -> None:
        whole = direct.get(audio)
        afterwords_faults.inject(Fault.HALF_BODY)
        got = b""
        with client.stream("GET", audio) as answer, pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            for piece in answer.iter_raw():
                got += piece
        assert answer.headers["Content-Length"] == str(len(whole.content))
        assert got == whole.content[: len(whole.content) // 2]

    def test_half_a_stream_lacks_its_last_chunk(self, upstream: str) -> None:
        Upstream.go_on.set()
        with FaultyServer(upstream) as faults:
            faults.inject(Fault.HALF_BODY)
            connection = http.client.HTTPConnection(urlsplit(faults.url).netloc, timeout=DEADLINE_S)
            connection.request("GET", "/")
            with connection.getresponse() as answer, pytest.raises(http.client.IncompleteRead) as caught:
                answer.read()
            connection.close()
        assert caught.value.partial == b"firstsec"

    def test_a_short_length_hides_half_of_the_body(
        self, client: httpx.Client, direct: httpx.Client, audio: str, afterwords_faults: FaultyServer
    ) -> None:
        whole = direct.get(audio).content
        afterwords_faults.inject(Fault.SHORT_LENGTH)
        answer = client.get(audio)
        assert answer.status_code == 200
        assert answer.content == whole[: len(whole) // 2]
        assert client.get(audio).content == whole  # what was too much does not spoil the next

    def test_one_byte_is_wrong_and_no_header(
        self, client: httpx.Client, direct: httpx.Client, audio: str, afterwords_faults: FaultyServer
    ) -> None:
        whole = raw(direct, "GET", audio)
        afterwords_faults.inject(Fault.WRONG_BYTES)
        spoilt = raw(client, "GET", audio)
        assert spoilt[:2] == whole[:2]
        assert [at for at, (a, b) in enumerate(zip(spoilt[2], whole[2], strict=True)) if a != b] == [len(whole[2]) // 2]

    def test_a_slow_answer_is_whole_and_takes_its_time(
        self, client: httpx.Client, direct: httpx.Client, audio: str, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.SLOW, delay_s=0.05)
        started = time.monotonic()
        assert client.get(audio).content == direct.get(audio).content
        assert time.monotonic() - started >= 4 * 0.05  # at least: that it is slow is what is claimed

    def test_an_answer_slower_than_the_client_waits_times_out(
        self, client: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.SLOW, delay_s=600)
        with pytest.raises(httpx.ReadTimeout):
            client.get("/v1/voices", timeout=0.05)

    def test_what_has_no_body_can_not_be_spoilt_and_that_is_told(self, afterwords_server: RunningServer) -> None:
        faults = FaultyServer(afterwords_server.url).start()
        faults.inject(Fault.WRONG_BYTES)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.head(f"{faults.url}/v1/health", trust_env=False)
        with pytest.raises(ExceptionGroup) as caught:
            faults.stop()
        assert [str(error) for error in caught.value.exceptions] == [
            "wrong-bytes: the answer to HEAD /v1/health has no body"
        ]


class TestPlan:
    def test_a_fault_befalls_only_what_it_is_meant_for(
        self, client: httpx.Client, afterwords_faults: FaultyServer
    ) -> None:
        afterwords_faults.inject(Fault.ANSWER, path="/v1/voices", method="get", times=2, status=503)
        asked = [("GET", "/v1/health"), ("POST", "/v1/voices"), *[("GET", "/v1/voices?limit=1")] * 3]
        assert [client.request(*one).status_code for one in asked] == [200, 400, 503, 503, 200]

    def test_faults_are_used_up_in_order(self, client: httpx.Client, afterwords_faults: FaultyServer) -> None:
        for status in (500, 502):
            afterwords_faults.inject(Fault.ANSWER, status=status)
        assert [client.get("/v1/voices").status_code for _ in range(3)] == [500, 502, 200]

    def test_what_was_seen_tells_whether_a_key_was_sent(
        self, client: httpx.Client, afterwords_faults: FaultyServer, afterwords_api_key: str
    ) -> None:
        httpx.post(f"{afterwords_faults.url}/v1/keys?a=1", content=b"{}", trust_env=False)
        afterwords_faults.inject(Fault.HTML)
        client.get("/v1/voices")
        stranger, user = afterwords_faults.seen
        assert (stranger.method, stranger.path, stranger.query, stranger.body_bytes) == ("POST", "/v1/keys", "a=1", 2)
        assert "authorization" not in stranger.headers
        assert user.headers["AUTHORIZATION"] == f"Bearer {afterwords_api_key}"
        assert (stranger.fault, user.fault) == (None, Fault.HTML)

    def test_cleared_it_lets_everything_pass(self, client: httpx.Client, afterwords_faults: FaultyServer) -> None:
        afterwords_faults.inject(Fault.HTML, times=100)
        client.get("/v1/voices")
        afterwords_faults.clear()
        assert afterwords_faults.seen == []
        assert client.get("/v1/voices").json() == []

    def test_no_more_than_the_last_thousand_requests_are_kept(self, afterwords_faults: FaultyServer) -> None:
        afterwords_faults.inject(Fault.ANSWER, status=404, times=1001)
        connection = http.client.HTTPConnection(urlsplit(afterwords_faults.url).netloc, timeout=DEADLINE_S)
        for n in range(1001):
            connection.request("GET", f"/{n}")
            json.load(connection.getresponse())
        connection.close()
        assert [seen.path for seen in afterwords_faults.seen] == [f"/{n}" for n in range(1, 1001)]

    @pytest.mark.parametrize(
        ("fault", "options"),
        [
            (Fault.ANSWER, {}),
            (Fault.ANSWER, {"status": 500, "delay_s": 1}),
            (Fault.REDIRECT, {"status": 302}),
            (Fault.SLOW, {}),
            (Fault.HTML, {"status": 200}),
        ],
    )
    def test_an_option_that_is_missing_or_unknown_is_refused(
        self, afterwords_faults: FaultyServer, fault: Fault, options: dict[str, int]
    ) -> None:
        with pytest.raises(TypeError, match=f"{fault} needs"):
            afterwords_faults.inject(fault, **options)  # type: ignore[arg-type]

    def test_a_fault_for_no_request_is_refused(self, afterwords_faults: FaultyServer) -> None:
        with pytest.raises(ValueError, match="times must be 1 or more, not 0"):
            afterwords_faults.inject(Fault.HTML, times=0)

    def test_only_a_server_over_plain_http_can_stand_behind(self) -> None:
        with pytest.raises(ValueError, match="http:// address"):
            FaultyServer("https://afterwords.example")


class TestStopping:
    def test_it_cuts_those_who_still_wait(self, upstream: str) -> None:
        """One waits for the server, one for a fault, one has not asked yet."""
        with ThreadPoolExecutor(2) as pool, FaultyServer(upstream) as faults:
            with socket.create_connection(("127.0.0.1", urlsplit(faults.url).port), DEADLINE_S) as idle:
                faults.inject(Fault.SLOW, path="/slow", delay_s=600)
                waiting = [pool.submit(self.ask, faults.url, path) for path in ("/stream", "/slow")]
                until(lambda: len(faults.seen) == 2, what="both requests")
                started = time.monotonic()
                faults.stop()
                assert time.monotonic() - started < DEADLINE_S / 3
                assert idle.recv(1) == b""
            Upstream.go_on.set()
            for future in waiting:
                assert isinstance(future.exception(DEADLINE_S), httpx.TransportError)

    def ask(self, url: str, path: str) -> None:
        httpx.get(f"{url}{path}", timeout=DEADLINE_S, trust_env=False)

    def test_never_started_it_can_be_stopped(self) -> None:
        FaultyServer("http://127.0.0.1:1").stop()
