"""Measure the WebSockets of live text: from a text to its first audio, and from a disconnect to the end of its jobs.

The engine `tone` makes its first audio at once, as in `first_audio`. The doors alternate; their sockets stay open.

Then `client.speak` speaks a text that arrives like that of a language model, TOKENS_PER_S tokens a second, and a player
that starts with the first audio and plays at its rate counts how long it has nothing to play.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from afterwords import Client
from benchmarks.first_audio import ROUNDS, SLOW, TEXT, WARM_UP, row, time_engine
from benchmarks.load import UNLIMITED
from tests.e2e.served import Served, register, serving, wait_until, wait_until_prepared

DOORS = {
    "vLLM-Omni's WebSocket": "/v1/audio/speech/stream",
    "ElevenLabs, multi-stream-input": "/elevenlabs/v1/text-to-speech/me/multi-stream-input?output_format=pcm_24000",
}
TOKENS_PER_S = 50
REPLAYS = 5
STORY = """The harbour was quiet when they arrived, and the boats were gone. Only the gulls above the water seemed to \
notice them. A light burned in the last house, where an old man was tying a net. She knocked twice, and waited. \
Nothing moved. Then the door opened, and he looked at them as if he had expected them for years. He asked them \
in, and put water on the stove. On the table lay a map, drawn by hand, with names that none of them had ever read. \
They drank their tea, and listened to the wind. Before it was light, all three of them were at sea."""
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


@dataclass(frozen=True)
class Replay:
    """The speech of a text that arrived in tokens, in seconds from the first token on.

    Attributes:
        first_s: When the first audio came.
        text_s: When the last token was sent.
        audio_s: Duration of the audio.
        gaps_s: How long the player had nothing to play, though the speech had not ended.
    """

    first_s: float
    text_s: float
    audio_s: float
    gaps_s: float


def replay(client: Client, text: str) -> Replay:
    """Speak a text that arrives in tokens of four letters at most."""
    tokens = re.findall(r"\s*\S{1,4}", text)
    began = text_s = 0.0

    def write() -> Iterator[str]:
        nonlocal began, text_s
        began = time.perf_counter()
        for number, token in enumerate(tokens):
            time.sleep(max(0.0, began + number / TOKENS_PER_S - time.perf_counter()))
            yield token
        text_s = time.perf_counter() - began

    audio_s = gaps_s = empty_at = first_s = 0.0
    with client.speak(write(), voice="me") as speech:
        for chunk in speech:
            came = time.perf_counter() - began
            first_s = first_s or came
            gaps_s += max(0.0, came - (empty_at or came))
            duration_s = len(chunk.samples) / speech.sample_rate
            empty_at = max(came, empty_at) + duration_s
            audio_s += duration_s
    return Replay(first_s, text_s, audio_s, gaps_s)


def replay_row(backend: str) -> str:
    """Return the medians of several replays with an engine, and all of their gaps."""
    settings = {**UNLIMITED, "AFTERWORDS_BACKENDS": backend, "AFTERWORDS_PREPARE": "fast"}
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "home", settings) as served:
        with served.client() as http:
            wait_until_prepared(http, register(http))
        with Client(served.url, api_key=served.key) as client:
            replay(client, "A first text, for which the engine loads.")
            found = [replay(client, f"This is story number {number}. {STORY}") for number in range(REPLAYS)]
    first_s, text_s, audio_s = (
        statistics.median(getattr(each, name) for each in found) for name in ("first_s", "text_s", "audio_s")
    )
    worst_s = max(each.gaps_s for each in found)
    return f"| `{backend}` | {first_s:.2f} s | {text_s:.1f} s | {audio_s:.1f} s | {worst_s:.2f} s |"


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
        "",
        f"| {TOKENS_PER_S} tokens a second, engine | first audio | last token | audio | gaps, worst of {REPLAYS} |",
        "|---|---|---|---|---|",
        replay_row("tone"),
        replay_row("lite"),
    ]


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("\n".join(table()))
