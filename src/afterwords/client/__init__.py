"""A server's voices from any program: `Client`, and `AsyncClient` to be awaited.

    requests    how one request is made to succeed: retries, refusals; downloads: to the last byte
    operations  every call of the API, once, as generators that do no I/O
    aio · sync  the two that carry them out; `sync` is made from `aio`

The rest is what they share: transport (httpx), parsing (JSON into models), audio (bytes into samples), files (in
and out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afterwords.client._async.client import AsyncClient
    from afterwords.client._async.jobs import AsyncRemoteBytes, AsyncRemoteJob, AsyncRemoteSpeech
    from afterwords.client._sync.client import Client
    from afterwords.client._sync.jobs import RemoteBytes, RemoteJob, RemoteSpeech

_HOMES = {
    "AsyncClient": "_async.client",
    "AsyncRemoteBytes": "_async.jobs",
    "AsyncRemoteJob": "_async.jobs",
    "AsyncRemoteSpeech": "_async.jobs",
    "Client": "_sync.client",
    "RemoteBytes": "_sync.jobs",
    "RemoteJob": "_sync.jobs",
    "RemoteSpeech": "_sync.jobs",
}
__all__ = [
    "AsyncClient",
    "AsyncRemoteBytes",
    "AsyncRemoteJob",
    "AsyncRemoteSpeech",
    "Client",
    "RemoteBytes",
    "RemoteJob",
    "RemoteSpeech",
]


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name

    def __getattr__(name: str) -> object:
        """Load only the one that is asked for: a command line has no use for asyncio."""
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
