"""Speech of a text that is still being written, from a real server and from one that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, cast

import numpy as np
import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from afterwords import AsyncClient, Client, Voice
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from afterwords.client import sockets
from afterwords.errors import (
    AfterwordsError,
    ConnectionLostError,
    InvalidRequestError,
    InvalidResponseError,
    LimitError,
    NotFoundError,
    ServiceUnavailableError,
    StreamConsumedError,
    TextError,
    TextWarning,
    UnauthorizedError,
    UnreachableError,
    UnsupportedByServerError,
    VoiceNotFoundError,
)
from afterwords.provenance import read_mark
from tests.client.both_clients import ClientFactory
from tests.e2e.served import Served, wait_until
from tests.hosted.service import HostedService

TOKENS = ["Once upon", " a time there", " was a king.", " He", " had a voice of", " his own."]
SLOW = f"fault-slow {'and so on, ' * 20}."


def write_until(is_read: Event, *, kind: str) -> Any:
    """Return a text whose last word comes once the event is set."""

    def write() -> Iterator[str]:
        yield "Good morning to you. It is l"
        assert is_read.wait(60)
        yield "ate."

    async def write_async() -> AsyncIterator[str]:
        yield "Good morning to you. It is l"
        while not is_read.is_set():
            await asyncio.sleep(0.01)
        yield "ate."

    return write() if kind == "blocking" else write_async()


# -- a real server ----------------------------------------------------------------------------------------------


def test_audio_arrives_before_the_text_ends(make_client: ClientFactory, server: Served, key: str, voice: Voice) -> None:
    is_read = Event()
    client = make_client(server.url, key)
    with client.speak(write_until(is_read, kind=make_client.kind), voice="me") as speech:
        chunks = iter(speech)
        first = next(chunks).samples
        is_read.set()
        rest = [chunk.samples for chunk in chunks]
    duration_s = len(np.concatenate([first, *rest])) / speech.sample_rate
    assert duration_s == pytest.approx(32 * SECONDS_PER_CHARACTER + 0.15 + 2 * 0.005, abs=0.05)
    assert (speech.voice_id, speech.backend, speech.left_out) == (voice.voice_id, "tone", ())
    mark = read_mark(speech.tags)
    assert mark is not None
    assert (mark.voice_name, mark.voice_id) == ("me", voice.voice_id)
    with pytest.raises(StreamConsumedError):
        speech.audio()


@pytest.mark.usefixtures("voice")
def test_speech_is_that_of_the_options(client: Client, voice: Voice) -> None:
    normal = client.speak(TOKENS, voice=voice, lang="en", backend="tone").audio()
    fast = client.speak("".join(TOKENS), voice="me", speed=2.0, seed=7).audio()
    assert normal.duration_s == pytest.approx(len("".join(TOKENS)) * SECONDS_PER_CHARACTER + 0.16, abs=0.1)
    assert fast.duration_s == pytest.approx(normal.duration_s / 2, abs=0.1)


@pytest.mark.usefixtures("voice")
def test_left_out_words_are_reported(client: Client) -> None:
    with pytest.warns(TextWarning):
        speech = client.speak(["Hello fault-unspoken-Иван, so."], voice="me")
    assert speech.left_out == ("fault-unspoken-Иван,",)
    speech.close()


def test_closing_early_cancels_and_refunds(client: Client, direct: Client, voice: Voice) -> None:
    with client.speak([f"Number {number}: {SLOW}\n\n" for number in range(6)], voice=voice) as speech:
        next(iter(speech))

    def final() -> set[str] | None:
        found = {str(job.status) for job in direct.jobs.list()}
        return None if "pending" in found else found

    assert wait_until(final, what="the cancellation") == {"cancelled"}
    assert direct.usage().characters == 0


@pytest.mark.usefixtures("voice")
def test_error_of_the_text_is_raised(client: Client) -> None:
    def write() -> Iterator[str]:
        yield "Good morning to you. It is l"
        raise LookupError("the model is gone")

    with pytest.raises(LookupError, match="the model is gone"):
        client.speak(write(), voice="me").audio()


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize(
    ("text", "options", "kind"),
    [
        ("Hello.", {"voice": "someone"}, VoiceNotFoundError),
        ("Hello.", {"speed": 9.0}, InvalidRequestError),
        ("Hello.", {"backend": "nothing"}, NotFoundError),
        ("Wrong\u0007.", {}, TextError),
        ("", {}, TextError),
        ([" ", "..."], {}, TextError),
    ],
)
def test_refusals_are_typed(client: Client, text: Any, options: dict[str, Any], kind: type[AfterwordsError]) -> None:
    with pytest.raises(kind) as refused:
        client.speak(text, **{"voice": "me", **options})
    assert refused.value.message


def test_wrong_key_is_unauthorized(make_client: ClientFactory, server: Served) -> None:
    with pytest.raises(UnauthorizedError) as refused:
        make_client(server.url, "aw_" + "x" * 40).speak(TOKENS, voice="me")
    assert refused.value.request_id
    with pytest.raises(UnauthorizedError, match="key"):
        make_client(server.url).speak(TOKENS, voice="me")


def test_hosted_service_needs_the_whole_text(make_client: ClientFactory) -> None:
    with HostedService() as hosted, pytest.raises(UnsupportedByServerError):
        make_client(hosted.url, hosted.api_key).speak(TOKENS, voice="me")


# -- a server that misbehaves -----------------------------------------------------------------------------------


class Scripted:
    """A WebSocket server that does what the test says, after its answers to the first handshakes."""

    def __init__(self, speak: Callable[[ServerConnection], None], *answers: Response) -> None:
        self.speak, self.answers = speak, list(answers)
        self.requests: list[Request] = []
        self.url = ""

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/v1/health":
            body = {"status": "ok", "version": "1", "backends": []}
            response = connection.respond(200, json.dumps(body))
            response.headers["Content-Type"] = "application/json"
            return response
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else None


@contextmanager
def scripted(speak: Callable[[ServerConnection], None], *answers: Response) -> Iterator[Scripted]:
    script = Scripted(speak, *answers)
    silent = logging.Logger("scripted")
    with serve(script.speak, "127.0.0.1", 0, process_request=script.answer, logger=silent) as server:
        script.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


def tell(socket: ServerConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def speak_once(socket: ServerConnection) -> None:
    """Speak 4 samples, cut within one, once the text ends."""
    while json.loads(socket.recv())["type"] != "input.done":
        pass
    tell(socket, "audio.start", sample_rate=8000, backend="tone", voice_id="v")
    socket.send(b"\0\0\0")
    socket.send(b"\1\0\2\0\3")
    tell(socket, "session.done")


def refuse(status: int, **headers: str) -> Response:
    return Response(
        status, "", Headers(headers), b'{"error": {"code": "%s", "message": "no"}}' % CODES.get(status, b"")
    )


CODES = {429: b"rate_limited", 503: b"service_unavailable"}


@pytest.mark.parametrize("status", [429, 503])
def test_refused_handshake_is_retried(make_client: ClientFactory, status: int) -> None:
    with scripted(speak_once, refuse(status), refuse(status)) as server:
        audio = make_client(server.url, "aw_secret").speak(TOKENS, voice="me").audio()
    assert (audio.samples * 32768).tolist() == [0, 256, 512, 768]
    assert len(server.requests) == 3
    assert server.requests[-1].headers["Authorization"] == "Bearer aw_secret"
    assert server.requests[-1].path == "/v1/audio/speech/stream"


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([refuse(503)] * 5, ServiceUnavailableError),
        ([refuse(429, **{"Retry-After": "3600"})], LimitError),
        ([refuse(307, Location="/v1/elsewhere")], InvalidResponseError),
    ],
)
def test_handshake_that_stays_refused_is_an_error(
    make_client: ClientFactory, answers: list[Response], kind: type[AfterwordsError]
) -> None:
    with scripted(speak_once, *answers) as server, pytest.raises(kind):
        make_client(server.url, "aw_x").speak(TOKENS, voice="me")
    assert len(server.requests) == len(answers)


def test_unreachable_server_is_an_error(make_client: ClientFactory) -> None:
    with scripted(speak_once) as server:
        client = make_client(server.url, "aw_x")
        client.speak(TOKENS, voice="me").close()
    with pytest.raises(UnreachableError):
        client.speak(TOKENS, voice="me")


def cut(socket: ServerConnection) -> None:
    tell(socket, "audio.start", sample_rate=8000)
    socket.send(b"\0\0")
    socket.socket.close()


def stop(socket: ServerConnection) -> None:
    tell(socket, "audio.start", sample_rate=8000)
    socket.send(b"\0\0")
    socket.close(1012, "The server stops.")


def report(socket: ServerConnection) -> None:
    tell(socket, "audio.start", sample_rate=8000)
    socket.send(b"\0\0")
    tell(socket, "error", code="rate_limited", message="Too much.", status=429, retry_after_s=7)


@pytest.mark.parametrize(
    ("speak", "kind", "words"),
    [
        (cut, ConnectionLostError, "closed"),
        (stop, ConnectionLostError, "The server stops"),
        (report, LimitError, "Too much"),
        (lambda socket: socket.send("[]"), InvalidResponseError, "JSON"),
        (lambda socket: tell(socket, "audio.start", sample_rate="x"), InvalidResponseError, "audio.start"),
    ],
    ids=["cut", "stopped", "error", "no object", "no rate"],
)
def test_failure_within_speech_is_raised(
    make_client: ClientFactory, speak: Callable[[ServerConnection], None], kind: type[AfterwordsError], words: str
) -> None:
    with scripted(speak) as server, pytest.raises(kind, match=words) as failed:
        make_client(server.url, "aw_x").speak(TOKENS, voice="me").audio()
    assert failed.value.retry_after_s == (7 if speak is report else None)
    assert len(server.requests) == 1


def test_session_is_kept_alive(make_client: ClientFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "KEEP_ALIVE_S", 0.05)
    is_kept = Event()

    def speak(socket: ServerConnection) -> None:
        while json.loads(socket.recv()) != {"type": "input.text", "text": ""}:
            pass
        is_kept.set()
        speak_once(socket)

    with scripted(speak) as server:
        client = make_client(server.url, "aw_x")
        assert len(client.speak(write_until(is_kept, kind=make_client.kind), voice="me").audio().samples) == 4


def test_logs_have_neither_key_nor_text(client: Client, voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client.speak(["A secret sentence."], voice=voice).audio()
    access = cast("Any", client)._session.access
    assert access.api_key not in caplog.text
    assert "secret sentence" not in caplog.text


def test_cancelled_task_closes_the_connection(server: Served, key: str, direct: Client, voice: Voice) -> None:
    async def begin() -> None:
        async with AsyncClient(server.url, api_key=key) as client:
            speech = await client.speak([SLOW] * 3, voice=voice)
            reading = asyncio.create_task(speech.audio())
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(begin())
    wait_until(lambda: not list(direct.jobs.list(status="pending")), what="the cancellation")
