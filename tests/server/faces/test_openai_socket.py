"""vLLM-Omni's WebSocket against a real server process, with its messages as clients send them."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64decode
from socket import SHUT_RDWR
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.requests import HTTPConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from afterwords.audio.decoding import read_tags
from afterwords.audio.wav import Samples
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.errors import ServiceError
from afterwords.provenance import read_mark
from afterwords.server.faces import openai_socket
from afterwords.server.routes.live import LiveReply
from afterwords.server.services.synthesis import Synthesis, SynthesisRequest
from tests.e2e.served import Served, register, wait_until
from tests.server.faces.conftest import InProcess

SLOW = "fault-slow " + "and so on, " * 20
STEEPEST = 0.2 * 2 * np.pi * 800 / SAMPLE_RATE + 2 / 32768
"""Largest step between two samples of the highest tone."""


def open_socket(served: Served | InProcess, key: str | None = None, **headers: str) -> ClientConnection:
    url = served.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    return connect(
        url,
        additional_headers={"Authorization": f"Bearer {key or served.key}", **headers},
        proxy=None,
        max_size=65_535,
        ping_interval=None,  # on a busy machine, the answer may wait behind audio that is not read yet
    )


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def configure(socket: ClientConnection, **fields: Any) -> None:
    config = {"voice": "me", "response_format": "pcm", "stream_audio": True, "split_granularity": "sentence"}
    send(socket, "session.config", **{**config, **fields})


def receive(socket: ClientConnection, until: str) -> tuple[list[dict[str, Any]], bytes]:
    """Return the messages up to one of a kind, and the audio between them."""
    messages: list[dict[str, Any]] = []
    audio = b""
    while not messages or messages[-1]["type"] != until:
        data = socket.recv(timeout=60)
        if isinstance(data, bytes):
            audio += data
        else:
            messages.append(json.loads(data))
            assert until == "error" or messages[-1]["type"] != "error", messages[-1]
    return messages, audio


def as_samples(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)


# -- what is spoken ---------------------------------------------------------------------------------------------


def test_tokens_are_spoken_before_the_text_ends(served: Served) -> None:
    tokens = ["Once upon", " a time there", " was a king.", " He", " had"]
    with open_socket(served) as socket:
        configure(socket)
        for token in tokens:
            send(socket, "input.text", text=token)
        early, first = receive(socket, "audio.done")
        send(socket, "input.text", text=" a voice of his own.")
        send(socket, "input.done")
        late, second = receive(socket, "session.done")

    sentences = ["Once upon a time there was a king. ", "He had a voice of his own."]
    starts = [message for message in early + late if message["type"] == "audio.start"]
    assert [start["sentence_text"] for start in starts] == sentences
    assert [start["sample_rate"] for start in starts] == [SAMPLE_RATE] * 2
    assert late[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 2}
    assert early[-1]["total_bytes"] == len(first)
    samples = as_samples(first + second)
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS_PER_CHARACTER * 60 + 0.15 + 2 * 0.005, abs=0.07)
    assert np.abs(np.diff(samples, prepend=0, append=0)).max() <= STEEPEST


def test_take_speaks_its_unit_and_is_named(served: Served) -> None:
    with served.client() as client:
        register(client, name="calm", family="calm")
        take = register(client, name="calm-happy", family="calm")
        client.patch(f"/v1/voices/{take}", json={"metadata": {"emotion": "happy"}}).raise_for_status()
    with open_socket(served) as socket:
        for emotion, text, takes in (
            (None, "[happy] We won the cup.\n\nBye.\n\n", [True, False]),
            (None, "We won the whole game today, all of it. [happy]", [False]),  # the last unit is only a tag
            ("happy", "Hi.", [True]),
        ):
            configure(socket, voice="calm", **({"emotion": emotion} if emotion else {}))
            send(socket, "input.text", text=text)
            send(socket, "input.done")
            messages, _ = receive(socket, "session.done")
            starts = [message for message in messages if message["type"] == "audio.start"]
            assert [start["voice_id"] == take for start in starts] == takes
            assert [bool(start["notices"]) for start in starts] == takes
        configure(socket, voice="calm", emotion="happy", response_format="wav", stream_audio=False)
        send(socket, "input.text", text="Hi.")
        send(socket, "input.done")
        mark = read_mark(read_tags(receive(socket, "session.done")[1]))
        assert mark is not None
        assert (mark.voice_name, mark.voice_id) == ("calm-happy", take)


def test_default_is_one_wav_file_per_utterance(served: Served) -> None:
    with open_socket(served) as socket:
        send(socket, "session.config", voice="me")
        for utterance, text in enumerate(("One. Two. Three.", "And a second one.")):
            send(socket, "input.text", text=text)
            send(socket, "input.done")
            messages, wav = receive(socket, "session.done")
            assert [message["type"] for message in messages] == ["audio.start", "audio.done", "session.done"]
            assert messages[0]["utterance_index"] == utterance
            assert messages[0]["sentence_text"] == text
            samples, rate = soundfile.read(io.BytesIO(wav))
            assert len(samples) / rate == pytest.approx(SECONDS_PER_CHARACTER * len(text), abs=0.01)
            mark = read_mark(read_tags(wav))
            assert mark is not None
            assert mark.voice_name == "me"
        send(socket, "session.close")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_words_follow_the_audio_of_their_unit(served: Served) -> None:
    with open_socket(served) as socket:
        configure(socket, word_timestamps=True)
        send(socket, "input.text", text="Here is one. And another.")
        send(socket, "input.done")
        messages, binary = receive(socket, "session.done")
    assert binary == b""
    for index, text in enumerate(("Here is one. ", "And another.")):
        chunks = [each for each in messages if each["type"] == "audio.chunk" and each["sentence_index"] == index]
        *audio, last = chunks
        assert [chunk["timestamps"] for chunk in audio] == [None] * len(audio)
        assert [chunk["chunk_start_ms"] for chunk in audio[1:]] == [chunk["chunk_end_ms"] for chunk in audio[:-1]]
        assert (last["audio_b64"], last["chunk_end_ms"]) == ("", audio[-1]["chunk_end_ms"])
        assert [word["word"] for word in last["timestamps"]] == text.replace(".", "").split()
        pause_ms = last["chunk_end_ms"] - 1000 * SECONDS_PER_CHARACTER * len(text)
        for word in last["timestamps"]:
            place_ms = 1000 * SECONDS_PER_CHARACTER * text.index(word["word"])
            assert place_ms <= word["start_ms"] <= place_ms + max(10, pause_ms)


def test_repeated_sentence_has_times_of_its_own(served: Served) -> None:
    with open_socket(served) as socket:
        configure(socket, word_timestamps=True)
        send(socket, "input.text", text=2 * "fault-slow, and again. ")
        send(socket, "input.done")
        messages, _ = receive(socket, "session.done")
    ends = [message for message in messages if message["type"] == "audio.chunk" and not message["audio_b64"]]
    words = [[word["word"] for word in message["timestamps"]] for message in ends]
    assert words == 2 * [["fault-slow", "and", "again"]]


def test_messages_with_audio_are_short(served: Served) -> None:
    with open_socket(served) as socket:  # it refuses messages of more than 64 KiB
        configure(socket, word_timestamps=True)
        send(socket, "input.text", text="and so on, " * 20)
        send(socket, "input.done")
        messages, _ = receive(socket, "session.done")
    audio = b"".join(b64decode(message.get("audio_b64", "")) for message in messages)
    assert len(audio) / 2 / SAMPLE_RATE > 10


def test_utterance_without_text_is_done_at_once(served: Served) -> None:
    with open_socket(served) as socket:
        configure(socket)
        send(socket, "input.done")
        messages, audio = receive(socket, "session.done")
    assert (messages[-1]["total_sentences"], audio) == (0, b"")


def test_unit_in_the_cache_is_not_charged(served: Served) -> None:
    with served.client() as client, open_socket(served) as socket:
        configure(socket)
        audio = []
        for _ in range(2):
            send(socket, "input.text", text="This sentence is spoken twice.")
            send(socket, "input.done")
            audio.append(receive(socket, "session.done")[1])
            used = wait_until(lambda: client.get("/v1/jobs?status=ready").json())
        assert audio[0] == audio[1]
        texts = [job["char_count"] for job in used if job["char_count"] == len("This sentence is spoken twice.")]
        assert len(texts) == 1


def test_texts_that_wait_hold_back_the_messages(served: Served) -> None:
    with open_socket(served) as socket:
        configure(socket)
        for number in range(12):
            send(socket, "input.text", text=f"Number {number}: {SLOW}.")
            send(socket, "input.done")
        send(socket, "session.close")
        done = []
        for data in socket:
            if isinstance(data, str) and (message := json.loads(data))["type"] == "session.done":
                done.append(message["utterance_index"])
    assert done == list(range(len(done)))
    assert len(done) >= 12 - openai_socket.REPLIES_MAX - 1


def test_session_is_not_idle_while_it_speaks(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_socket, "IDLE_S", 0.5)
    with open_socket(in_process) as socket:
        configure(socket)
        send(socket, "input.text", text="".join(f"Number {number}: {SLOW}.\n\n" for number in range(20)))
        messages, _ = receive(socket, "error")  # the end of the last sentence is open
    assert messages[-1]["code"] == "request_timeout"
    assert messages[-2] == {**messages[-2], "type": "audio.done", "sentence_index": 18}


def test_long_text_is_split_in_slices() -> None:
    async def feed() -> int:
        reply = LiveReply(HTTPConnection({"type": "http"}), SynthesisRequest("", ""), "clause")
        feeding = asyncio.create_task(reply.feed(". " * 40_000))
        n_turns = 0
        while not feeding.done():
            await asyncio.sleep(0)
            n_turns += 1
        await feeding
        return n_turns

    assert asyncio.run(feed()) >= 40


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "headers", "status"),
    [
        ("aw_" + "x" * 40, {}, 401),
        ("", {"Origin": "https://evil.example"}, 400),
        ("", {"Origin": "http://["}, 400),
        ("", {"Host": "evil.example"}, 400),
    ],
)
def test_handshake_is_refused_with_http(served: Served, key: str, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(served, key or None, **headers)
    response = refused.value.response
    assert response.status_code == status
    assert json.loads(response.body)["error"]["request_id"] == response.headers["x-request-id"]


def test_used_up_quota_is_refused_at_the_handshake(served: Served) -> None:
    key = served.new_key(character_limit=10)
    with served.client(key) as client:
        register(client, name="me")
        assert client.post("/v1/synthesize", json={"voice_id": "me", "text": "ten chars."}).status_code == 202
    with pytest.raises(InvalidStatus) as refused:
        open_socket(served, key)
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body)["error"]["code"] == "quota_exceeded"


def test_unknown_path_is_404_at_the_handshake(served: Served) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(served.url.replace("http", "ws", 1) + "/v1/nothing", proxy=None)
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"type":"input.text","text":"Hello."}', "invalid_field"),
        ('{"type":"session.config","voice":"someone"}', "voice_not_found"),
        ('{"type":"session.config"}', "missing_field"),
        ('{"type":"session.config","voice":"me","speed":9}', "invalid_field"),
        ('{"type":"session.config","voice":"me","word_timestamps":true}', "invalid_field"),  # it needs stream_audio
        ("[]", "invalid_json"),
        ("{", "invalid_json"),
    ],
)
def test_invalid_message_is_an_error_and_closes(served: Served, message: str, code: str) -> None:
    with open_socket(served) as socket:
        socket.send(message)
        messages, _ = receive(socket, "error")
        assert messages[-1]["code"] == code
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("text", [". " * 60_000, "A word. " * 15_000])
def test_text_that_is_too_long_is_refused(served: Served, text: str) -> None:
    with open_socket(served) as socket:
        configure(socket)
        send(socket, "input.text", text=text)
        messages, _ = receive(socket, "error")
    assert messages[-1]["code"] == "text_too_long"


def test_unexpected_failure_closes_without_its_message(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(openai_socket, "find_speaker", fail)
    with open_socket(in_process) as socket:
        configure(socket)
        assert receive(socket, "error")[0][-1]["code"] == "internal_error"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert any("kind=ValueError at=test_openai_socket.py" in line for line in caplog.messages)
    assert "a secret" not in caplog.text


def test_each_text_counts_for_the_rate(limited: InProcess) -> None:
    with open_socket(limited) as socket:
        configure(socket)
        for number in range(3):  # the voice was a request, too
            send(socket, "input.text", text=f"Text {number}.")
            send(socket, "input.done")
        refusal = receive(socket, "error")[0][-1]
        assert (refusal["code"], refusal["status"]) == ("rate_limited", 429)
        assert 1 <= refusal["retry_after_s"] <= 61
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


# -- what is not sent --------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_and_refunded_on_close(served: Served) -> None:
    key = served.new_key()
    with served.client(key) as client:
        register(client, name="me")
        with open_socket(served, key) as socket:
            configure(socket)
            for number in range(6):
                send(socket, "input.text", text=f"Number {number}: {SLOW}.\n\n")
            receive(socket, "audio.start")
            socket.socket.shutdown(SHUT_RDWR)  # as a program that is killed

        def final() -> list[str] | None:
            found = [job["status"] for job in client.get("/v1/jobs").json()]
            return None if "pending" in found else found

        seen = wait_until(final, what="the cancellation")
        assert 1 <= len(seen) <= 3  # the others had no job yet
        assert set(seen) == {"cancelled"}
        assert client.get("/v1/usage").json()["characters"] == 0


def test_unit_that_cannot_be_cancelled_leaves_the_others(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit = Synthesis.submit
    n_submitted = 0

    async def count(*args: Any, **options: Any) -> Any:
        nonlocal n_submitted
        result = await submit(*args, **options)
        n_submitted += 1
        return result

    async def fail(*_: Any, is_whole: bool) -> None:
        while is_whole and n_submitted < 3:
            await asyncio.sleep(0.01)
        raise ServiceError

    monkeypatch.setattr(Synthesis, "submit", count)
    monkeypatch.setattr(Synthesis, "end_stream", fail)
    with open_socket(in_process) as socket:
        configure(socket)
        send(socket, "input.text", text="".join(f"Number {number}: {SLOW}.\n\n" for number in range(6)))
        receive(socket, "audio.done")
        wait_until(
            lambda: caplog.messages.count("a unit was not cancelled code=internal_error") >= 2, what="the other units"
        )


def test_slow_listener_holds_back_the_jobs(served: Served) -> None:
    key = served.new_key()
    with served.client(key) as client:
        register(client, name="me")
        with open_socket(served, key) as socket:
            configure(socket)
            for number in range(40):
                send(socket, "input.text", text=f"Number {number}: {'and so on, ' * 24}.\n\n")
            send(socket, "input.done")
            receive(socket, "audio.start")
            wait_until(lambda: len(client.get("/v1/jobs?status=ready").json()) >= 3, what="the look-ahead")
            for _ in range(20):
                assert len(client.get("/v1/jobs").json()) <= 8
            messages, _ = receive(socket, "session.done")
    assert messages[-1]["total_sentences"] == 40


def test_log_has_the_route_and_no_text(served: Served) -> None:
    with open_socket(served) as socket:
        configure(socket)
        send(socket, "input.text", text="A secret sentence to look for.")
        send(socket, "input.done")
        receive(socket, "session.done")
    line = wait_until(
        lambda: [line for line in served.log.read_text().splitlines() if "/v1/audio/speech/stream 101 " in line]
    )[-1]
    assert "GET " in line
    assert "account=" in line
    log = served.log.read_text()
    assert "secret sentence" not in log
    assert "without completing handshake" not in log
    assert "ERROR" not in log
    with served.admin as admin:
        assert 'route="/v1/audio/speech/stream"' in admin.get("/metrics").text
