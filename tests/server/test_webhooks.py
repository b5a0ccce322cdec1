"""Webhook delivery: signature, SSRF protection, and timeouts."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
import trustme
from standardwebhooks import Webhook

from afterwords.models import JobStatus, SpeechFormat
from afterwords.server.clock import SystemClock
from afterwords.server.records import StoredJob, WebhookCall
from afterwords.server.services.signing import signing_key, signing_secret
from afterwords.server.webhooks import deliver, is_public, resolve

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 22, 12, 0, 0, 123_000, UTC)
KEY = b"k" * 32
HOST = "hook.example"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# -- a receiver ----------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """An HTTPS server on loopback that records requests."""

    port: int
    tls: ssl.SSLContext
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def take(receiver: Receiver, reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    receiver.received.append(({"": head[0], **headers}, body))


@asynccontextmanager
async def receiving(
    answer: bytes | Answer = b"204 No Content", *, names: Sequence[str] = (HOST,)
) -> AsyncIterator[Receiver]:
    """Run a receiver that sends a status line, or calls `answer` after it has read the request."""
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(server_tls)
    client_tls = ssl.create_default_context()
    authority.configure_trust(client_tls)
    receiver = Receiver(0, client_tls)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        try:
            await take(receiver, reader)
            if isinstance(answer, bytes):
                writer.write(b"HTTP/1.1 " + answer + b"\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
            else:
                await answer(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver


async def on_loopback(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def due(url: str, **changes: object) -> WebhookCall:
    job = StoredJob(
        job_id="0c6f2f0e-8a5d-4c4e-9a53-0c1d9a2b3c4d",
        account_id="a",
        voice_id="11111111-8a5d-4c4e-9a53-0c1d9a2b3c4d",
        status=JobStatus.READY,
        lang="en",
        backend="tone",
        cache_key="c",
        char_count=1,
        speed=1.0,
        seed=None,
        response_format=SpeechFormat.WAV,
        attempt=1,
        created_at=NOW,
        completed_at=NOW,
    )
    return WebhookCall(job=replace(job, **changes), url=url, tries=0, signing_key=KEY)  # type: ignore[arg-type]


async def send(receiver: Receiver, *, url: str = f"https://{HOST}:{{}}/hook?a=b", **options: object) -> bool:
    """Deliver to the receiver as if loopback were a public address."""
    chosen = {
        "resolve": on_loopback,
        "may_reach": lambda address: address == "127.0.0.1",
        "tls": receiver.tls,
        **options,
    }
    return await deliver(due(url.format(receiver.port)), clock=SystemClock(), **chosen)  # type: ignore[arg-type]


# -- message --------------------------------------------------------------------------------------------


async def test_message_verifies_with_the_secret() -> None:
    secret = signing_secret(b"d" * 32)
    async with receiving() as receiver:
        call = replace(due(f"https://{HOST}:{receiver.port}/hook?a=b"), signing_key=signing_key(b"d" * 32))
        assert await deliver(call, clock=SystemClock(), resolve=on_loopback, may_reach=lambda _: True, tls=receiver.tls)
    ((headers, body),) = receiver.received
    assert Webhook(secret).verify(body, headers) == {
        "type": "job.ready",
        "timestamp": "2026-11-22T12:00:00.123Z",
        "data": {"job_id": call.job.job_id, "voice_id": call.job.voice_id, "status": "ready", "error": None},
    }
    assert headers[""] == "POST /hook?a=b HTTP/1.1"
    assert headers["host"] == f"{HOST}:{receiver.port}"
    assert headers["webhook-id"] == f"msg_{call.job.job_id}"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(("status", "error"), [(JobStatus.FAILED, "out_of_memory"), (JobStatus.CANCELLED, None)])
async def test_message_has_status_and_error(status: JobStatus, error: str | None) -> None:
    async with receiving() as receiver:
        call = due(f"https://{HOST}:{receiver.port}/", status=status, error=error)
        await deliver(call, clock=SystemClock(), resolve=on_loopback, may_reach=lambda _: True, tls=receiver.tls)
    message = json.loads(receiver.received[0][1])
    assert message["type"] == f"job.{status}"
    assert (message["data"]["status"], message["data"]["error"]) == (status, error)


@pytest.mark.parametrize(
    ("answer", "is_taken"),
    [
        (b"200 OK", True),
        (b"204 No Content", True),
        (b"299 Fine", True),
        (b"100 Continue\r\n\r\nHTTP/1.1 202 Accepted", True),
        (b"400 Bad Request", False),
        (b"410 Gone", False),
        (b"500 Oh", False),
        (b"nonsense", False),
        (b"999999 What", False),
    ],
)
async def test_only_2xx_counts_as_success(answer: bytes, is_taken: bool) -> None:
    async with receiving(answer) as receiver:
        assert await send(receiver) is is_taken
        assert len(receiver.received) == 1


# -- destination -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(status: int) -> None:
    async with receiving() as inner:
        location = f"{status} Moved\r\nlocation: https://{HOST}:{inner.port}/".encode()
        async with receiving(location) as receiver:
            assert not await send(receiver)
            assert (len(receiver.received), inner.connections) == (1, 0)


async def test_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]]
    asked: list[object] = []
    system = socket.getaddrinfo

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers.pop(0)

    def noting(host: object, *rest: object, **options: object) -> object:
        asked.append(host)
        return system(host, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", noting)
    async with receiving() as receiver:
        assert await send(receiver, resolve=rebinding)
    assert asked.count(HOST) == 1
    assert {str(host) for host in asked} <= {HOST, "127.0.0.1"}


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
        ["fe80::1%lo"],
        [],
    ],
)
async def test_one_private_address_fails_the_call(addresses: list[str]) -> None:
    async def to_these(host: str, port: int) -> Sequence[str]:
        return addresses

    async with receiving() as receiver:
        assert not await send(receiver, resolve=to_these, may_reach=is_public)
        assert receiver.connections == 0


async def test_stored_url_is_validated_again() -> None:
    async with receiving(names=["127.0.0.1"]) as receiver:
        assert not await send(receiver, url="https://127.0.0.1:{}/", may_reach=is_public)
        assert not await send(receiver, url="http://hook.example:{}/")
        assert receiver.connections == 0


async def test_next_address_is_tried_if_one_is_dead() -> None:
    async def two(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with receiving() as receiver:
        assert await send(receiver, resolve=two, may_reach=lambda _: True)
        assert len(receiver.received) == 1


@pytest.mark.parametrize("names", [["other.example"], ["127.0.0.1"], ["*.hook.example"]])
async def test_certificate_of_another_name_is_refused(names: list[str]) -> None:
    async with receiving(names=names) as receiver:
        assert not await send(receiver)
        assert receiver.received == []


async def test_certificate_of_unknown_authority_is_refused() -> None:
    async with receiving() as receiver:
        assert not await send(receiver, tls=None)
        assert receiver.received == []


async def test_proxy_of_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with receiving() as receiver:
        assert await send(receiver)


# -- failures -------------------------------------------------------------------------------------------------


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side goes


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    gone = asyncio.ensure_future(reader.read())
    while not gone.done():
        writer.write(b"x")
        await asyncio.wait([gone], timeout=0.02)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000)
        await writer.drain()


async def go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


@pytest.mark.parametrize("answer", [hang, drip, flood, go])
async def test_misbehaving_receiver_times_out(answer: Answer) -> None:
    async with receiving(answer) as receiver, asyncio.timeout(60):
        assert not await send(receiver, timeout_s=0.3)
        assert len(receiver.received) == 1


async def test_endless_body_is_not_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    async with receiving(endless) as receiver, asyncio.timeout(60):
        assert await send(receiver)
    assert sent < 50_000_000  # what the system's buffers hold


async def test_hanging_resolver_times_out() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async with receiving() as receiver, asyncio.timeout(60):
        assert not await send(receiver, resolve=never, timeout_s=0.1)


async def test_closed_port_is_a_failure() -> None:
    async with receiving() as receiver:
        pass
    assert not await send(receiver)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), UnicodeError("label too long"), OSError()])
async def test_unresolvable_name_is_a_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:  # the tests have no name server to ask
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    async with receiving() as receiver:
        assert not await send(receiver, resolve=resolve)


async def test_resolve_localhost() -> None:
    assert set(await resolve("localhost", 443)) <= {"127.0.0.1", "::1"}
    assert await resolve("93.184.216.34", 443) == ["93.184.216.34"]


async def test_log_names_the_job_and_not_the_url(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="afterwords.server"):
        async with receiving(b"500 Oh") as receiver:
            await send(receiver, url=f"https://{HOST}:{{}}/canary")
            await send(receiver, url=f"https://{HOST}:{{}}/canary", tls=None)
    ours = [record.getMessage() for record in caplog.records if record.name == "afterwords.server"]
    assert len(ours) == 2
    assert all("0c6f2f0e" in line and "canary" not in line for line in ours)


async def test_cancellation_is_not_swallowed() -> None:
    async with receiving(hang) as receiver:
        task = asyncio.create_task(send(receiver))
        while not receiver.received:
            await asyncio.wait([task], timeout=0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
