"""Two hundred concurrent calls, and half as many clients and streams, none of which fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from afterwords import AsyncClient, Client, Voice
from tests.client.both_clients import n_busy
from tests.e2e.served import RECORDING, Served

N = 200


@pytest.fixture(autouse=True)
def real_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.25)  # the default, which so many calls need


def text_of(n: int) -> str:
    return f"Number {n}." + "!" * (n % 10)


def test_calls_of_one_client_succeed(server: Served, key: str, voice: Voice) -> None:
    async def main() -> tuple[list[float], int]:
        async with AsyncClient(server.url, api_key=key) as client:
            audios = await asyncio.gather(*(client.say(text_of(n), voice="me") for n in range(N)))
            return [audio.duration_s for audio in audios], n_busy(client)

    durations, busy = asyncio.run(main())
    assert durations == pytest.approx([0.06 * len(text_of(n)) for n in range(N)])
    assert busy == 0


def test_calls_of_many_clients_succeed(server: Served, key: str, voice: Voice) -> None:
    async def one(n: int) -> float:
        async with AsyncClient(server.url, api_key=key) as client:
            return (await client.say(text_of(n), voice=voice)).duration_s

    async def main() -> list[float]:
        return await asyncio.gather(*map(one, range(N // 2)))

    assert asyncio.run(main()) == pytest.approx([0.06 * len(text_of(n)) for n in range(N // 2)])


def test_streams_of_one_client_succeed(server: Served, key: str, voice: Voice) -> None:
    async def main() -> list[float]:
        async with AsyncClient(server.url, api_key=key) as client:

            async def one(n: int) -> float:
                async with await client.stream(text_of(n), voice=voice) as speech:
                    return (await speech.audio()).duration_s

            return await asyncio.gather(*(one(n) for n in range(N // 2)))

    assert asyncio.run(main()) == pytest.approx([0.06 * len(text_of(n)) for n in range(N // 2)])


def test_threads_can_share_a_client(server: Served, key: str, direct: Client) -> None:
    """Threads look names up, and delete and create them, at the same time."""
    for n in range(8):
        direct.voices.create(RECORDING, name=f"voice {n}")
    with Client(server.url, api_key=key) as client, ThreadPoolExecutor(8) as pool:

        def work(n: int) -> float:
            if n % 10 == 0:
                client.voices.delete(client.voices.create(RECORDING, name=f"temporary {n}"))
            return client.say(text_of(n), voice=f"voice {n % 8}").duration_s

        durations = list(pool.map(work, range(60)))
        assert n_busy(client) == 0
    assert durations == pytest.approx([0.06 * len(text_of(n)) for n in range(60)])


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.05])
def test_cancelled_calls_release_their_connections(server: Served, key: str, voice: Voice, after_s: float) -> None:
    async def main() -> int:
        async with AsyncClient(server.url, api_key=key) as client:
            # Connect before: httpcore 1.0.9 leaks a connection whose call is cancelled right after it was made.
            await asyncio.gather(*(client.say("Connect.", voice=voice) for _ in range(20)))
            calls = [client.say(f"{text_of(n)} {after_s}", voice=voice) for n in range(10)]
            streams = [client.stream(f"fault-slow {n} {after_s}", voice=voice) for n in range(10)]
            tasks = [asyncio.ensure_future(call) for call in [*calls, *streams]]
            await asyncio.wait(tasks, timeout=after_s)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(result, BaseException) and hasattr(result, "close"):
                    await result.close()
            assert (await client.say("One more.", voice=voice)).duration_s > 0
            return n_busy(client)

    assert asyncio.run(main()) == 0


def test_call_cancelled_during_close_releases_its_connection() -> None:
    async def main() -> None:
        closing, go_on, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield b"[]"

            async def aclose(self) -> None:
                closing.set()
                await go_on.wait()
                closed.set()

        def respond(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"Content-Type": "application/json"}, stream=Body())

        async with AsyncClient("http://127.0.0.1:9", api_key="aw_x", transport=httpx.MockTransport(respond)) as client:
            call = asyncio.ensure_future(client.keys.list())
            await closing.wait()
            call.cancel()
            assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], asyncio.CancelledError)
            go_on.set()
            await asyncio.wait_for(closed.wait(), 10)

    asyncio.run(main())
