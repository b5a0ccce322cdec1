"""Both clients as one: `AsyncClient`, used as if it were the blocking one, so that each test says a thing once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

from afterwords import Client
from afterwords.client._async.client import AsyncClient
from afterwords.client._async.jobs import AsyncJobs, AsyncRemoteJob
from afterwords.client._async.keys import AsyncKeys
from afterwords.client._async.stream import AsyncRemoteStream
from afterwords.client._async.voices import AsyncVoices

AWAITED = (AsyncClient, AsyncVoices, AsyncKeys, AsyncJobs, AsyncRemoteJob, AsyncRemoteStream)


class Front:
    """Something that is awaited, as its blocking twin is used."""

    def __init__(self, runner: asyncio.Runner, thing: Any) -> None:
        self._runner, self._thing = runner, thing

    def __getattr__(self, name: str) -> Any:
        return _front(self._runner, getattr(self._thing, name))

    def __iter__(self) -> Iterator[Any]:
        return _items(self._runner, aiter(self._thing))

    def __enter__(self) -> Front:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._thing.__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._thing)


def _front(runner: asyncio.Runner, thing: Any) -> Any:
    if inspect.ismethod(thing):
        return lambda *args, **options: _front(runner, thing(*args, **options))
    if inspect.iscoroutine(thing):
        return _front(runner, runner.run(thing))
    if inspect.isasyncgen(thing):
        return _items(runner, thing)
    return Front(runner, thing) if isinstance(thing, AWAITED) else thing


def _items(runner: asyncio.Runner, items: Any) -> Iterator[Any]:
    async def following() -> Any:
        return await anext(items)

    try:
        while True:
            try:
                item = runner.run(following())
            except StopAsyncIteration:
                return
            yield _front(runner, item)
    finally:
        runner.run(items.aclose())


class Either:
    """Makes clients of one kind, and closes them in the end."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self._runner = stack.enter_context(asyncio.Runner())

    def __call__(self, url: str, key: str | None = None, **options: Any) -> Client:
        if self.kind == "blocking":
            return self._stack.enter_context(Client(url, api_key=key, **options))
        client = AsyncClient(url, api_key=key, **options)
        self._stack.callback(lambda: self._runner.run(client.close()))
        return cast("Client", Front(self._runner, client))


def n_busy(client: Client | AsyncClient) -> int:
    """How many connections are held by answers that nobody has closed."""
    http: Any = (client._thing if isinstance(client, Front) else client)._session._http
    return sum(not connection.is_idle() for connection in http._transport._pool.connections)
