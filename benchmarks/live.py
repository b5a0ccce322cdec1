"""Measure the WebSockets of live text: from a text to its first audio, and from a disconnect to the end of its jobs.

The engine `tone` makes its first audio at once, as in `first_audio`. The doors alternate; their sockets stay open.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from benchmarks.first_audio import ROUNDS, SLOW, TEXT, WARM_UP, row, time_engine
from benchmarks.load import UNLIMITED
from tests.e2e.served import Served, register, serving, wait_until, wait_until_prepared

DOORS = {
    "vLLM-Omni's WebSocket": "/v1/audio/speech/stream",
    "ElevenLabs, multi-stream-input": "/elevenlabs/v1/text-to-speech/me/multi-stream-input?output_format=pcm_24000",
}
_serial = itertools.count()


def open_socket(served: Served, path: str) -> ClientConnection:
    """Return a connection, within which a text may begin."""
    url = served.url.replace("http", "ws", 1) + path
    socket = connect(url, additional_headers={"Authorization": f"Bearer {served.key}"}, proxy=None)
    socket.__enter__()
    if "elevenlabs" not in path:
        config = {"voice": "me", "response_format": "pcm", "stream_audio": True, "split_granularity": "sentence"}
        send(socket, type="session.config", **config)
    return socket


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def speak(socket: ClientConnection, path: str, text: str) -> float:
    """Send a whole text, and return the milliseconds to its first audio."""
    text, started = f"{next(_serial)} {text}", time.perf_counter()
    if "elevenlabs" in path:
        send(socket, text=text, context_id=str(next(_serial)), flush=True)
        while not json.loads(socket.recv()).get("audio"):
            pass
    else:
        send(socket, type="input.text", text=text)
        send(socket, type="input.done")
        while not isinstance(socket.recv(), bytes):
            pass
    return 1000 * (time.perf_counter() - started)


def finish(socket: ClientConnection, path: str) -> None:
    """Read the rest of the audio."""
    if "elevenlabs" in path:
        send(socket, context_id=str(next(_serial) - 1), close_context=True)
    while isinstance(data := socket.recv(), bytes) or not (
        json.loads(data).get("isFinal") or json.loads(data).get("type") == "session.done"
    ):
        pass


def time_cancel(served: Served, client: httpx.Client, path: str) -> float:
    """Return the milliseconds from the disconnect after the first audio until no job is pending."""
    socket = open_socket(served, path)
    speak(socket, path, SLOW)
    socket.socket.shutdown(SHUT_RDWR)
    closed = time.perf_counter()
    wait_until(lambda: not client.get("/v1/jobs?status=pending").json(), what="the cancellation")
    return 1000 * (time.perf_counter() - closed)


def table() -> list[str]:
    """Return the figures as Markdown."""
    first: dict[str, list[float]] = {door: [] for door in DOORS}
    ends: dict[str, list[float]] = {door: [] for door in DOORS}
    engine_ms = statistics.median(time_engine() for _ in range(ROUNDS))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        served = stack.enter_context(serving(Path(name) / "home", {**UNLIMITED, "AFTERWORDS_TESTING": "1"}))
        client = stack.enter_context(served.client())
        wait_until_prepared(client, register(client))
        sockets = {door: open_socket(served, path) for door, path in DOORS.items()}
        for _, (door, path) in itertools.product(range(ROUNDS + WARM_UP), DOORS.items()):
            first[door].append(speak(sockets[door], path, TEXT))
            finish(sockets[door], path)
        for socket in sockets.values():
            socket.close()
        for _, (door, path) in itertools.product(range(ROUNDS // 3), DOORS.items()):
            ends[door].append(time_cancel(served, client, path))
    return [
        "| text → first audio, over the engine's own | p50 | p95 | target, p50 |",
        "|---|---|---|---|",
        *(row(door, durations[WARM_UP:], engine_ms, "≤ 15 ms") for door, durations in first.items()),
        "",
        "| disconnect → jobs cancelled | p50 | p95 | target |",
        "|---|---|---|---|",
        *(row(door, durations, 0.0, "≤ 100 ms") for door, durations in ends.items()),
    ]


if __name__ == "__main__":
    print("\n".join(table()))
