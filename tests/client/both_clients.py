"""Both clients behind one interface: `AsyncClient` used as if it blocked, so that each test is written once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

from afterwords import AsyncClient, Client
from afterwords.client._async.jobs import AsyncJobs, AsyncRemoteJob
from afterwords.client._async.keys import AsyncKeys
from afterwords.client._async.stream import AsyncRemoteStream
from afterwords.client._async.voices import AsyncVoices

ASYNC_CLASSES = (AsyncClient, AsyncVoices, AsyncKeys, AsyncJobs, AsyncRemoteJob, AsyncRemoteStream)


class Blocking:
    """An asynchronous object, used like its blocking counterpart."""

    def __init__(self, runner: asyncio.Runner, wrapped: Any) -> None:
        self._runner, self._wrapped = runner, wrapped

    def __getattr__(self, name: str) -> Any:
        return _block(self._runner, getattr(self._wrapped, name))

    def __iter__(self) -> Iterator[Any]:
        return _iterate(self._runner, aiter(self._wrapped))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._wrapped.__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._wrapped)


def _block(runner: asyncio.Runner, value: Any) -> Any:
    if inspect.ismethod(value):
        return lambda *args, **options: _block(runner, value(*args, **options))
    if inspect.iscoroutine(value):
        return _block(runner, runner.run(value))
    if inspect.isasyncgen(value):
        return _iterate(runner, value)
    return Blocking(runner, value) if isinstance(value, ASYNC_CLASSES) else value


def _iterate(runner: asyncio.Runner, items: Any) -> Iterator[Any]:
    async def get_next() -> Any:
        return await anext(items)

    try:
        while True:
            try:
                item = runner.run(get_next())
            except StopAsyncIteration:
                return
            yield _block(runner, item)
    finally:
        runner.run(items.aclose())


class ClientFactory:
    """Creates clients of one kind, and closes them at the end."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self._runner = stack.enter_context(asyncio.Runner())

    def __call__(self, url: str, key: str | None = None, **options: Any) -> Client:
        if self.kind == "blocking":
            return self._stack.enter_context(Client(url, api_key=key, **options))
        client = AsyncClient(url, api_key=key, **options)
        self._stack.callback(lambda: self._runner.run(client.close()))
        return cast("Client", Blocking(self._runner, client))


def n_busy(client: Client | AsyncClient) -> int:
    """Return the number of connections that open responses hold."""
    http: Any = (client._wrapped if isinstance(client, Blocking) else client)._session._http
    return sum(not connection.is_idle() for connection in http._transport._pool.connections)
