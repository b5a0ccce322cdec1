"""ElevenLabs' WebSockets against a real server process, with the messages that LiveKit, Pipecat and ElevenLabs send."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from afterwords.audio.wav import Samples
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from afterwords.server.dispatch.audio_stream import AudioListener
from afterwords.server.dispatch.slots import SlotDispatcher
from afterwords.server.faces import elevenlabs_socket
from tests.e2e.served import Served, register, wait_for_job, wait_until
from tests.server.faces.conftest import InProcess

SLOW = "fault-slow " + "and so on, " * 20
RATE = 24_000
STEEPEST = 0.2 * 2 * np.pi * 800 / RATE + 2 / 32768
"""Largest step between two samples of the highest tone."""


WRONG_KEY = "aw_" + "x" * 40


def open_socket(
    served: Served | InProcess, path: str, *, key: str | None = None, voice: str = "me", **query: str
) -> Any:
    parameters = {"model_id": "eleven_flash_v2_5", "output_format": "pcm_24000", **query}
    url = f"{served.url.replace('http', 'ws', 1)}/elevenlabs/v1/text-to-speech/{voice}/{path}"
    url += "?" + "&".join(f"{name}={value}" for name, value in parameters.items())
    return connect(
        url, additional_headers={"xi-api-key": served.key if key is None else key}, proxy=None, max_size=65_535
    )


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def receive(socket: ClientConnection, context_id: str | None) -> Samples:
    """Return the audio of a context up to its last message."""
    audio = b""
    while True:
        message = json.loads(socket.recv(timeout=60))
        assert message.get("contextId") == context_id, message
        assert "error" not in message, message
        if message["isFinal"]:
            return np.frombuffer(audio, "<i2").astype(np.float32) / np.float32(32768)
        audio += b64decode(message["audio"])


def check_tone(samples: Samples, n_characters: int) -> None:
    """Check the length, up to the pauses, and that no join clicks."""
    assert len(samples) / RATE == pytest.approx(SECONDS_PER_CHARACTER * n_characters, abs=0.5)
    assert np.abs(np.diff(samples, prepend=0, append=0)).max() <= STEEPEST


# -- multi-stream-input -----------------------------------------------------------------------------------------


def test_livekit_speaks_sentence_by_sentence(served: Served) -> None:
    with open_socket(served, "multi-stream-input", auto_mode="true", sync_alignment="true") as socket:
        for turn in ("a", "b"):
            send(socket, text=" ", voice_settings={}, context_id=turn)
            send(socket, text="Here is a sentence. ", context_id=turn, flush=True)
            first = json.loads(socket.recv(timeout=60))  # before the text ends
            assert (first["contextId"], first["isFinal"]) == (turn, None)
            send(socket, text="And here is the next. ", context_id=turn, flush=True)
            send(socket, text="", context_id=turn, flush=True)
            send(socket, context_id=turn, close_context=True)
            rest = receive(socket, turn)
            start = np.frombuffer(b64decode(first["audio"]), "<i2").astype(np.float32) / np.float32(32768)
            check_tone(np.concatenate([start, rest]), 42)


def test_times_of_messages_add_up_to_those_of_the_words(served: Served) -> None:
    sentences = ["Here is a sentence.", "And here is the next."]
    chars, starts, clock_ms, audio = "", [], 0, b""
    with open_socket(served, "multi-stream-input", sync_alignment="true") as socket:
        for sentence in sentences:
            send(socket, text=f"{sentence} ", context_id="c", flush=True)
        send(socket, context_id="c", close_context=True)
        while not (message := json.loads(socket.recv(timeout=60)))["isFinal"]:
            audio += b64decode(message["audio"])
            found = message["alignment"]
            assert found == message["normalizedAlignment"]
            chars += "".join(found["chars"])
            starts += [clock_ms + start_ms for start_ms in found["charStartTimesMs"]]
            if found["chars"]:
                clock_ms += found["charStartTimesMs"][-1] + found["charDurationsMs"][-1]
    assert chars == "Here is a sentence. And here is the next. "
    with served.client() as client:
        job_id = client.get("/v1/jobs?limit=1").json()[0]["job_id"]
        assert wait_for_job(client, job_id)["status"] == "ready"
        assert client.get(f"/v1/jobs/{job_id}/timestamps").status_code == 422  # they are not kept
    assert len(starts) == len(chars)
    assert starts == sorted(starts)
    length_ms = 1000 * len(audio) / 2 / RATE
    assert clock_ms == pytest.approx(length_ms, abs=10)  # the fade at the end
    assert starts[chars.index("sentence")] == pytest.approx(600, abs=10)
    second_ms = length_ms - 1000 * SECONDS_PER_CHARACTER * len("And here is the next. ")
    assert starts[chars.index("next")] == pytest.approx(second_ms + 1000 * SECONDS_PER_CHARACTER * 16, abs=20)


def test_engine_without_times_speaks_or_refuses(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotDispatcher, "features", {})
    with open_socket(in_process, "multi-stream-input", sync_alignment="true") as socket:
        send(socket, text="A sentence.", context_id="c", flush=True)
        assert json.loads(socket.recv(timeout=60))["alignment"] is None
    with open_socket(in_process, "stream-input", sync_alignment="true") as socket:
        assert json.loads(socket.recv(timeout=60))["error"] == "timestamps_unavailable"


def test_audio_goes_on_without_times_if_its_stream_breaks_off(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = vars(AudioListener)["words"].fget
    n_reads = 0

    def break_off(listener: AudioListener) -> Any:
        nonlocal n_reads
        n_reads += 1
        return words(listener) if n_reads == 1 else None

    monkeypatch.setattr(AudioListener, "words", property(break_off))
    audio = b""
    with open_socket(in_process, "multi-stream-input", sync_alignment="true") as socket:
        send(socket, text="A sentence that is long enough. ", context_id="c", flush=True)
        send(socket, context_id="c", close_context=True)
        while not (message := json.loads(socket.recv(timeout=60))).get("isFinal"):
            audio += b64decode(message["audio"])
    assert len(audio) / 2 / RATE > 1


def test_pipecat_speaks_without_flush_and_keeps_alive(served: Served) -> None:
    with open_socket(served, "multi-stream-input", auto_mode="true") as socket:
        send(socket, text=" ", context_id="c")
        send(socket, text="")
        send(socket, text="", context_id="c")
        send(socket, text="A sentence.", context_id="c")
        first = json.loads(socket.recv(timeout=60))
        assert first["contextId"] == "c"
        assert first["audio"]
        send(socket, context_id="c", flush=True)
        send(socket, context_id="c", close_context=True)
        receive(socket, "c")
        send(socket, close_socket=True)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_closing_a_context_twice_cancels_it(served: Served) -> None:
    key = served.new_key()
    with served.client(key) as client:
        register(client, name="me")
        with open_socket(served, "multi-stream-input", key=key) as socket:
            send(socket, text=f"{SLOW}.", context_id="c", flush=True)
            socket.recv(timeout=60)
            send(socket, context_id="c", close_context=True)
            send(socket, context_id="c", close_context=True)

            def final() -> list[str] | None:
                found = [job["status"] for job in client.get("/v1/jobs").json()]
                return None if "pending" in found else found

            assert "cancelled" in wait_until(final, what="the cancellation")


def test_error_names_its_context(served: Served) -> None:
    with open_socket(served, "multi-stream-input") as socket:
        send(socket, text="Wrong\u0007.", context_id="bad", flush=True)
        message = json.loads(socket.recv(timeout=60))
        assert (message["contextId"], message["code"]) == ("bad", "control_character")
        assert isinstance(message["error"], str)
        send(socket, text="Another one.", context_id="good", flush=True)
        send(socket, context_id="good", close_context=True)
        check_tone(receive(socket, "good"), 12)


@pytest.mark.parametrize("speed", [9, 10**400], ids=["too fast", "huge"])
def test_speed_out_of_range_is_invalid(served: Served, speed: int) -> None:
    with open_socket(served, "multi-stream-input") as socket:
        send(socket, text=" ", voice_settings={"speed": speed}, context_id="c")
        assert json.loads(socket.recv(timeout=60))["code"] == "invalid_field"


@pytest.mark.parametrize(("path", "ids"), [("multi-stream-input", {"contextId": "c"}), ("stream-input", {})])
def test_unexpected_failure_is_an_error_without_its_message(
    in_process: InProcess,
    path: str,
    ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: Any) -> AsyncGenerator[bytes, None]:
        yield b""
        raise ValueError("a secret")

    monkeypatch.setattr(elevenlabs_socket, "encode_stream", fail)
    with open_socket(in_process, path) as socket:
        send(socket, text="A sentence.", context_id="c", flush=True)
        message = json.loads(socket.recv(timeout=60))
    assert message["code" if ids else "error"] == "internal_error"
    assert message.get("contextId") == ids.get("contextId")
    assert any("kind=ValueError at=test_elevenlabs_socket.py" in line for line in caplog.messages)
    assert "a secret" not in caplog.text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"key": WRONG_KEY}, 401),
        ({"voice": "someone"}, 404),
        ({"output_format": "mp3"}, 422),
        ({"model_id": "eleven_v4"}, 404),
        ({"inactivity_timeout": "nan"}, 422),
        ({"inactivity_timeout": "-inf"}, 422),
    ],
)
def test_handshake_is_refused_in_their_shape(served: Served, change: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(served, "multi-stream-input", **change):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["code"] == status


def test_context_over_the_rate_leaves_the_others(limited: InProcess) -> None:
    with open_socket(limited, "multi-stream-input") as socket:
        for context_id in "abc":  # the voice was a request, too
            send(socket, text="A sentence. ", context_id=context_id)
        refusal = json.loads(socket.recv(timeout=60))
        assert (refusal["code"], refusal["contextId"]) == ("rate_limited", "c")
        for context_id in "ab":
            send(socket, context_id=context_id, close_context=True)
            receive(socket, context_id)


# -- stream-input -----------------------------------------------------------------------------------------------


def test_stream_input_speaks_and_closes(served: Served) -> None:
    with open_socket(served, "stream-input") as socket:
        send(socket, text=" ", try_trigger_generation=True, voice_settings=None)
        for words in ("Once upon a time, ", "there was a king. ", "He had a voice."):
            send(socket, text=words, try_trigger_generation=True)
        first = json.loads(socket.recv(timeout=60))  # before the text ends
        send(socket, text="")
        rest = receive(socket, None)
        start = np.frombuffer(b64decode(first["audio"]), "<i2").astype(np.float32) / np.float32(32768)
        check_tone(np.concatenate([start, rest]), 51)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_stream_input_refuses_by_a_message(served: Served) -> None:
    with open_socket(served, "stream-input", voice="someone") as socket:
        message = json.loads(socket.recv(timeout=60))
        assert (message["error"], message["code"]) == ("voice_not_found", 1008)
        assert "no such voice" in message["message"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


# -- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["multi-stream-input", "stream-input"])
@pytest.mark.parametrize("name", ["xi_api_key", "authorization"])
def test_key_can_be_in_the_first_message(served: Served, path: str, name: str) -> None:
    key = served.key if name == "xi_api_key" else f"Bearer {served.key}"
    is_multi = path == "multi-stream-input"
    ids = {"context_id": "c"} if is_multi else {}
    with open_socket(served, path, key="") as socket:
        send(socket, text=" ", **{name: key}, **ids)
        send(socket, text="A sentence with a key. ", **ids)
        send(socket, **({"close_context": True, **ids} if is_multi else {"text": ""}))
        check_tone(receive(socket, "c" if is_multi else None), 22)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("multi-stream-input", {"text": " ", "xi_api_key": WRONG_KEY}),
        ("multi-stream-input", {"text": "Hello. ", "context_id": "c"}),
        ("stream-input", {"text": " ", "xi_api_key": WRONG_KEY}),
        ("stream-input", {"text": " ", "xi_api_key": 7}),
        ("stream-input", None),
    ],
)
def test_wrong_key_is_a_message_and_closes(served: Served, path: str, message: dict[str, Any] | None) -> None:
    with open_socket(served, path, key="" if message else WRONG_KEY) as socket:
        if message:
            send(socket, **message)
        answer = json.loads(socket.recv(timeout=60))
        assert "API key" in answer.get("message", answer["error"])
        assert (answer["error"], answer["code"])[path == "multi-stream-input"] == "unauthorized"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert WRONG_KEY not in served.log.read_text()
