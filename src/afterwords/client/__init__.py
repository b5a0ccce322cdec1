"""Clients of a server: `Client` blocks, `AsyncClient` is awaited.

`_async` is written by hand and `_sync` is generated from it. Both use requests, parsing and transport, which do no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afterwords.client._async.client import AsyncClient
    from afterwords.client._async.jobs import AsyncRemoteJob
    from afterwords.client._async.stream import AsyncLiveSpeech, AsyncRemoteBytes, AsyncRemoteSpeech
    from afterwords.client._sync.client import Client
    from afterwords.client._sync.jobs import Jobs, RemoteJob
    from afterwords.client._sync.keys import Keys
    from afterwords.client._sync.stream import LiveSpeech, RemoteBytes, RemoteSpeech
    from afterwords.client._sync.voices import Voices

_MODULES = {
    "AsyncClient": "_async.client",
    "AsyncLiveSpeech": "_async.stream",
    "AsyncRemoteBytes": "_async.stream",
    "AsyncRemoteJob": "_async.jobs",
    "AsyncRemoteSpeech": "_async.stream",
    "Client": "_sync.client",
    "Jobs": "_sync.jobs",
    "Keys": "_sync.keys",
    "LiveSpeech": "_sync.stream",
    "RemoteBytes": "_sync.stream",
    "RemoteJob": "_sync.jobs",
    "RemoteSpeech": "_sync.stream",
    "Voices": "_sync.voices",
}
__all__ = [
    "AsyncClient",
    "AsyncLiveSpeech",
    "AsyncRemoteBytes",
    "AsyncRemoteJob",
    "AsyncRemoteSpeech",
    "Client",
    "Jobs",
    "Keys",
    "LiveSpeech",
    "RemoteBytes",
    "RemoteJob",
    "RemoteSpeech",
    "Voices",
]


if not TYPE_CHECKING:  # else type checkers would accept every misspelled name

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, so that `Client` does not load asyncio."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
