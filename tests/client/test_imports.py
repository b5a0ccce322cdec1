"""Importing and using a client loads only what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from afterwords import Client, Voice
from tests.e2e.served import Served

HEAVY = ("fastapi", "starlette", "torch", "numpy", "asyncio", "av", "soundfile", "soxr", "sqlalchemy", "uvicorn")


def loaded_modules(code: str, served: Served, key: str) -> set[str]:
    """Run a program, and return the heavy modules that it loaded."""
    report = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import afterwords\n{code}\n{report}"],
        env={**os.environ, "AFTERWORDS_BASE_URL": served.url, "AFTERWORDS_API_KEY": key},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(done.stdout))


@pytest.mark.usefixtures("voice")
def test_requests_load_no_heavy_module(server: Served, key: str) -> None:
    code = """
with afterwords.Client() as client:
    assert client.health().status == "ok"
    assert [voice.name for voice in client.voices.list()] == ["me"]
    job = client.synthesize("A job and its bytes.", voice="me").wait()
    assert job.data()[:4] == b"RIFF"
"""
    assert loaded_modules(code, server, key) == set()


def test_uploading_a_wav_loads_no_heavy_module(server: Served, key: str) -> None:
    code = """
from importlib.resources import files
recording = files("afterwords") / "data" / "reader.wav"
with afterwords.Client() as client:
    client.voices.create(recording.read_bytes(), name="me")
"""
    assert loaded_modules(code, server, key) == set()


@pytest.mark.usefixtures("voice")
def test_decoding_loads_numpy_but_no_server(server: Served, key: str) -> None:
    code = 'afterwords.Client().say("Hello.", voice="me")'
    loaded = loaded_modules(code, server, key)
    assert "numpy" in loaded
    assert not loaded & {"fastapi", "starlette", "torch", "sqlalchemy", "uvicorn"}


def test_async_client_loads_only_asyncio(server: Served, key: str) -> None:
    code = """
import asyncio
async def main():
    async with afterwords.AsyncClient() as client:
        assert [voice async for voice in client.voices.list()] == []
asyncio.run(main())
"""
    assert loaded_modules(code, server, key) == {"asyncio"}


def test_clients_are_public_names() -> None:
    import afterwords

    assert {"Client", "AsyncClient", "Job", "Voice"} <= set(dir(afterwords))
    assert (Client.__module__, Voice.__module__) == ("afterwords.client._sync.client", "afterwords.models")
