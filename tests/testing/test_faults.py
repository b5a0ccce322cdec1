"""FaultyTransport: requests pass unchanged, and each fault looks as it would on a real network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from afterwords import AsyncClient, Client
from afterwords.errors import ConnectionLostError, LimitError, UnauthorizedError
from afterwords.testing import Fault, FaultyTransport, RunningServer
from tests.e2e.served import RECORDING, register


@dataclass
class Caller:
    """Sends one request with a blocking or an async httpx client."""

    url: str
    key: str
    is_async: bool
    faults: FaultyTransport = field(default_factory=FaultyTransport)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        settings = {"base_url": self.url, "headers": {"Authorization": f"Bearer {self.key}"}}
        if not self.is_async:
            with httpx.Client(transport=self.faults, **settings) as client:  # type: ignore[arg-type]
                return client.request(method, path, **options)

        async def request() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.faults, **settings) as client:  # type: ignore[arg-type]
                return await client.request(method, path, **options)

        return asyncio.run(request())


@pytest.fixture(params=["blocking", "async"])
def call(request: pytest.FixtureRequest, afterwords_server: RunningServer, afterwords_api_key: str) -> Caller:
    return Caller(afterwords_server.url, afterwords_api_key, request.param == "async")


@pytest.fixture
def direct(afterwords_server: RunningServer, afterwords_api_key: str) -> Iterator[httpx.Client]:
    """Yield a client of the same account without faults."""
    headers = {"Authorization": f"Bearer {afterwords_api_key}"}
    with httpx.Client(base_url=afterwords_server.url, headers=headers, trust_env=False) as client:
        yield client


@pytest.fixture
def audio(direct: httpx.Client) -> str:
    """Return the path of some audio."""
    body = {"voice_id": register(direct), "text": "Some audio."}
    response = direct.post("/v1/synthesize", json=body, headers={"Prefer": "wait=30"})
    return f"/v1/jobs/{response.headers['X-Job-Id']}/audio"


def test_requests_pass_and_are_recorded(call: Caller, direct: httpx.Client, audio: str) -> None:
    response = call("GET", f"{audio}?a=1", headers={"Range": "bytes=100-299"})
    assert response.content == direct.get(audio).content[100:300]
    assert call("GET", "/nowhere").status_code == 404
    requests = call.faults.requests
    assert [(request.method, request.url.path, fault) for request, fault in requests] == [
        ("GET", audio, None),
        ("GET", "/nowhere", None),
    ]
    assert requests[0][0].headers["Authorization"] == f"Bearer {call.key}"


@pytest.mark.parametrize(
    "error", [UnauthorizedError(), LimitError("Wait.", code="rate_limited", limit=1, retry_after_s=7)]
)
def test_answer_has_the_shape_of_a_server_error(call: Caller, direct: httpx.Client, error: LimitError) -> None:
    real = direct.get("/nowhere")
    options = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
    call.faults.inject(Fault.ANSWER, status=error.http_status, **options)  # type: ignore[arg-type]
    response = call("GET", "/v1/voices")
    body = response.json()["error"]
    assert (response.status_code, body["code"]) == (error.http_status, error.code)
    assert body.keys() == real.json()["error"].keys()
    assert response.headers["X-Request-Id"] == body["request_id"]
    assert response.headers["Content-Type"] == real.headers["Content-Type"]
    assert response.headers.get("Retry-After") == (error.retry_after_s and str(error.retry_after_s))


def test_answer_takes_a_code(call: Caller) -> None:
    call.faults.inject(Fault.ANSWER, status=429, code="quota_exceeded")
    error = call("GET", "/v1/voices").json()["error"]
    assert (error["code"], error["type"]) == ("quota_exceeded", "rate_limit_error")


def test_html_is_a_login_page_with_200(call: Caller) -> None:
    call.faults.inject(Fault.HTML)
    response = call("GET", "/v1/voices")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "log in" in response.text


def test_redirect_has_location_and_status(call: Caller) -> None:
    call.faults.inject(Fault.REDIRECT, location="http://elsewhere.invalid/")
    call.faults.inject(Fault.REDIRECT, location="http://elsewhere.invalid/", status=307)
    responses = [call("POST", "/v1/synthesize", json={}) for _ in range(2)]
    assert [response.status_code for response in responses] == [302, 307]
    assert {response.headers["Location"] for response in responses} == {"http://elsewhere.invalid/"}


@pytest.mark.parametrize(("fault", "n_voices"), [(Fault.DROP_BEFORE, 0), (Fault.DROP_AFTER, 1)])
def test_drop_comes_before_or_after_the_server(
    call: Caller, direct: httpx.Client, fault: Fault, n_voices: int, reader_upload: dict[str, Any]
) -> None:
    call.faults.inject(fault)
    with pytest.raises(httpx.NetworkError):
        call("POST", "/v1/voices", **reader_upload)
    assert len(direct.get("/v1/voices").json()) == n_voices


@pytest.fixture
def reader_upload() -> dict[str, Any]:

    return {"data": {"name": "me"}, "files": {"ref_audio": ("me.wav", RECORDING, "audio/wav")}}


def test_half_body_keeps_the_length_of_the_whole(call: Caller, direct: httpx.Client, audio: str) -> None:
    whole = direct.get(audio).content
    call.faults.inject(Fault.HALF_BODY)
    with pytest.raises(httpx.RemoteProtocolError):
        call("GET", audio)
    call.faults.inject(Fault.HALF_BODY)
    response = call.faults.handle_request(direct.build_request("GET", audio))
    chunks = iter(response.iter_raw())
    assert response.headers["Content-Length"] == str(len(whole))
    assert next(chunks) == whole[: len(whole) // 2]
    with pytest.raises(httpx.RemoteProtocolError):
        next(chunks)
    call.faults.close()


def test_short_length_hides_half_of_the_body(call: Caller, direct: httpx.Client, audio: str) -> None:
    whole = direct.get(audio).content
    call.faults.inject(Fault.SHORT_LENGTH)
    response = call("GET", audio)
    assert response.content == whole[: len(whole) // 2]
    assert response.headers["Content-Length"] == str(len(whole) // 2)


def test_wrong_bytes_change_one_byte_and_no_header(call: Caller, direct: httpx.Client, audio: str) -> None:
    whole = direct.get(audio)
    call.faults.inject(Fault.WRONG_BYTES)
    response = call("GET", audio)
    pairs = enumerate(zip(response.content, whole.content, strict=True))
    assert [index for index, (ours, theirs) in pairs if ours != theirs] == [len(whole.content) // 2]
    changing = {"date", "x-request-id"}
    assert {name: value for name, value in response.headers.items() if name not in changing} == {
        name: value for name, value in whole.headers.items() if name not in changing
    }


def test_slow_body_is_complete_or_times_out(call: Caller, direct: httpx.Client, audio: str) -> None:
    call.faults.inject(Fault.SLOW, delay_s=0.01)
    assert call("GET", audio).content == direct.get(audio).content
    call.faults.inject(Fault.SLOW, delay_s=600)
    with pytest.raises(httpx.ReadTimeout):
        call("GET", audio, timeout=httpx.Timeout(60, read=0.05))


def test_body_that_is_empty_cannot_be_spoilt(call: Caller) -> None:
    call.faults.inject(Fault.WRONG_BYTES)
    with pytest.raises(ValueError, match="wrong-bytes: the response to HEAD /v1/health has no body"):
        call("HEAD", "/v1/health")


def test_faults_are_used_in_order_by_matching_requests(call: Caller) -> None:
    call.faults.inject(Fault.ANSWER, path="/v1/voices", method="get", times=2, status=503)
    call.faults.inject(Fault.ANSWER, path="/v1/voices", status=500)
    requests = [("GET", "/v1/health"), ("POST", "/v1/voices"), *[("GET", "/v1/voices?limit=1")] * 3]
    assert [call(*request).status_code for request in requests] == [200, 500, 503, 503, 200]


def test_clear_removes_faults_and_requests(call: Caller) -> None:
    call.faults.inject(Fault.HTML, times=100)
    call("GET", "/v1/voices")
    call.faults.clear()
    assert call.faults.requests == []
    assert call("GET", "/v1/voices").json() == []


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
def test_missing_or_unknown_option_is_refused(fault: Fault, options: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=f"{fault} requires"):
        FaultyTransport().inject(fault, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="times must be 1 or more, not 0"):
        FaultyTransport().inject(Fault.HTML, times=0)


@pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.HALF_BODY])
def test_both_clients_accept_the_transport(
    afterwords_server: RunningServer, afterwords_api_key: str, fault: Fault
) -> None:
    url, key = afterwords_server.url, afterwords_api_key

    def usage(faults: FaultyTransport) -> None:
        with Client(url, api_key=key, transport=faults) as client:
            client.usage()

    def async_usage(faults: FaultyTransport) -> None:
        async def run() -> None:
            async with AsyncClient(url, api_key=key, transport=faults) as client:
                await client.usage()

        asyncio.run(run())

    calls: list[Callable[[FaultyTransport], None]] = [usage, async_usage]
    for call in calls:
        faults = FaultyTransport()
        faults.inject(fault)
        call(faults)  # the client retries
        faults.inject(fault, times=9)
        with pytest.raises(ConnectionLostError):
            call(faults)
