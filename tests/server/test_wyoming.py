"""Test `afterwords wyoming` as a process, with the client of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from afterwords import local
from afterwords.audio.wav import pcm16
from afterwords.errors import pip_install
from afterwords.library.library import Library
from afterwords.models import Voice, new_id
from afterwords.server.wyoming import CONNECTIONS_MAX, EVENT_MAX_BYTES, _choose, _Request
from afterwords.text import LANGS
from tests.cli.program import run
from tests.e2e.served import DEADLINE_S
from tests.forked import start_afterwords

ENDLESS = "fault-slow " + "It goes on and on. " * 5_000
"""A text that takes 20 minutes to generate."""
ME = SynthesizeVoice(name="me")
LONG_CHUNK = json.dumps({"type": "synthesize-chunk", "data": {"text": "x" * 10_000}}).encode() + b"\n"

pytestmark = pytest.mark.anyio


class Speaker:
    """A process, with a library of its own."""

    def __init__(self, folder: Path) -> None:
        self.library = Library(folder / "home")
        self.log = folder / "log"
        self.process = start_afterwords(["wyoming", "--uri", "tcp://127.0.0.1:0"], os.environ, self.log)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.uri = self.output.readline().strip()
        assert self.uri.startswith("tcp://127.0.0.1:"), self.log.read_text()
        self.port = int(self.uri.rpartition(":")[2])

    def client(self) -> AsyncTcpClient:
        return AsyncTcpClient("127.0.0.1", self.port, connect_timeout=DEADLINE_S, read_timeout=DEADLINE_S)

    async def ask(self, event: Eventable, *, until: str = "audio-stop") -> list[Event]:
        """Send an event on a new connection, and return the answer."""
        async with self.client() as client:
            await client.write_event(event.event())
            return await read(client, until)


async def read(client: AsyncTcpClient, until: str) -> list[Event]:
    """Return the events up to one of this type, or until the server closes the connection."""
    events: list[Event] = []
    while event := await client.read_event():
        events.append(event)
        if event.type == until:
            break
    return events


def audio_of(events: list[Event]) -> bytes:
    return b"".join(AudioChunk.from_event(event).audio for event in events if AudioChunk.is_type(event.type))


def kinds(events: list[Event]) -> list[str]:
    """Return the types of events, with each run of audio chunks as one."""
    return [event.type for i, event in enumerate(events) if not i or event.type != events[i - 1].type]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory, _library_with_me: Path) -> Iterator[Speaker]:
    """Run it with the voice me; it is still speaking when it gets SIGTERM."""
    folder = tmp_path_factory.mktemp("wyoming")
    shutil.copytree(_library_with_me, folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HOME", str(folder / "home")), ("BACKENDS", "tone"), ("TESTING", "1")):
            patch.setenv(f"AFTERWORDS_{name}", value)
        speaker = Speaker(folder)
    yield speaker

    async def stop_while_it_speaks() -> None:
        async with speaker.client() as client:
            await client.write_event(Synthesize(ENDLESS, ME).event())
            await read(client, "audio-chunk")
            speaker.process.send_signal(signal.SIGTERM)
            while await client.read_event():
                pass

    with suppress(ConnectionResetError):
        asyncio.run(stop_while_it_speaks())
    assert speaker.process.wait(60) == 0
    speaker.output.close()
    assert speaker.log.read_text() == "1 voice. Ctrl-C stops it.\n"


async def test_info_lists_voices_by_name_and_language(speaker: Speaker) -> None:
    async def voices() -> dict[str, list[str]]:
        (event,) = await speaker.ask(Describe(), until="info")
        (program,) = Info.from_event(event).tts
        assert program.installed
        assert program.supports_synthesize_streaming
        return {voice.name: voice.languages for voice in program.voices}

    assert await voices() == {"me": ["en"], **{f"me ({lang})": [lang] for lang in LANGS if lang != "en"}}
    speaker.library.rename("me", "new")
    assert next(iter(await voices())) == "new"
    speaker.library.rename("new", "me")


async def test_audio_is_that_of_say(speaker: Speaker, me: Voice) -> None:
    events = await speaker.ask(Synthesize("Hello from the kitchen.", ME))
    assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
    start = AudioStart.from_event(events[0])
    assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
    assert audio_of(events) == pcm16(local.say("Hello from the kitchen.", voice=me).samples)
    german = await speaker.ask(Synthesize("Hello from the kitchen.", SynthesizeVoice(name="me (de)")))
    assert audio_of(german) == audio_of(events)  # a tone is the same in each language


async def test_live_text_is_spoken_before_it_ends(speaker: Speaker, me: Voice) -> None:
    pieces = [
        "This is the first sentence, and it is not sh",
        "ort. Here is",
        " the second sentence, which is the last.",
    ]
    async with speaker.client() as client:
        await client.write_event(SynthesizeStart(ME).event())
        for piece in pieces[:2]:
            await client.write_event(SynthesizeChunk(piece).event())
        events = await read(client, "audio-chunk")
        assert kinds(events) == ["audio-start", "audio-chunk"]
        # Home Assistant also sends the whole text, for servers that can't read pieces.
        for rest in (SynthesizeChunk(pieces[2]), Synthesize("".join(pieces), ME), SynthesizeStop(), Ping("?")):
            await client.write_event(rest.event())
        events += await read(client, "synthesize-stopped")
    answers = [event for event in events if event.type != "pong"]
    assert kinds(answers) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
    assert len(answers) == len(events) - 1
    assert audio_of(answers) == pcm16(local.say(iter(pieces), voice=me).samples)


async def test_requests_of_a_connection_are_answered_in_order(speaker: Speaker, me: Voice) -> None:
    texts = [f"This is request number {number}." for number in range(12)]
    async with speaker.client() as client:
        for text in texts:
            await client.write_event(Synthesize(text, ME).event())
        answers = [await read(client, "audio-stop") for _ in texts]
    assert [audio_of(events) for events in answers] == [pcm16(local.say(text, voice=me).samples) for text in texts]


async def test_clients_get_their_own_audio(speaker: Speaker, me: Voice) -> None:
    texts = [f"This is client number {number}." for number in range(12)]
    answers = await asyncio.gather(*(speaker.ask(Synthesize(text, ME)) for text in texts))
    assert [audio_of(events) for events in answers] == [pcm16(local.say(text, voice=me).samples) for text in texts]


async def test_clients_that_leave_free_their_threads(speaker: Speaker) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(speaker.client()) for _ in range(CONNECTIONS_MAX)]
        for number, client in enumerate(clients):
            await client.write_event((SynthesizeStart(ME) if number % 2 else Synthesize(ENDLESS, ME)).event())
        for client in clients[::2]:
            await read(client, "audio-chunk")
        (refused,) = await speaker.ask(Describe())
        assert Error.from_event(refused).code == "too_many_concurrent_requests"

    async def spoken(text: str) -> str:
        while "error" in kinds(events := await speaker.ask(Synthesize(text, ME))):
            pass  # connections are ending
        return events[-1].type

    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(spoken(f"This is client number {number}.") for number in range(8)))
    assert answers == ["audio-stop"] * 8


@pytest.mark.parametrize(
    ("text", "voice", "code", "message"),
    [
        ("Hello.", SynthesizeVoice(name="mee"), "voice_not_found", "did you mean 'me'?"),
        ("Hello.", SynthesizeVoice(language="xx"), "unsupported_lang", "xx"),
        ("…", ME, "empty_text", "nothing that can be spoken"),
        ("It will fault-fail after the first chunk.", ME, "synthesis_failed", "tone"),
    ],
)
async def test_error_closes_the_connection(
    speaker: Speaker, text: str, voice: SynthesizeVoice, code: str, message: str
) -> None:
    *before, last = await speaker.ask(Synthesize(text, voice))
    error = Error.from_event(last)
    assert error.code == code
    assert message in error.text
    assert kinds(before) == (["audio-start", "audio-chunk"] if "fault-fail" in text else [])


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"[1]\n", "bad_request"),
        (b"{}\n", "bad_request"),
        (b'{"type": "synthesize"}\n', "bad_request"),
        (b'{"type": "synthesize", "data": {"text": "Hello.", "voice": "me"}}\n', "bad_request"),
        (b'{"type": "synthesize-chunk", "data": {"text": "Hello."}}\n', "bad_request"),
        (b'{"type": "synthesize", "data": {"text": 1}}\n', "bad_request"),
        (b'{"type": "synthesize", "data": {"text": "Hello.", "voice": {"name": []}}}\n', "bad_request"),
        (b'{"type": "synthesize", "data": {"text": "Hello.", "voice": {"language": 1}}}\n', "bad_request"),
        (b'{"type": "synthesize", "data": ' + b"[" * 10_000 + b"\n", "bad_request"),
        (b'{"type": "ping", "data": {"text": "\\ud800"}}\n', "bad_request"),
        (b'{"type": "describe", "data_length": %d}\n' % (EVENT_MAX_BYTES + 1), "request_too_large"),
        (b'{"type": "synthesize-start"}\n' + LONG_CHUNK * 11, "text_too_long"),
        (b"GET / HTTP/1.1\r\n\r\n", None),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
async def test_malformed_event_is_refused(speaker: Speaker, sent: bytes, code: str | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", speaker.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(DEADLINE_S):
            event = await async_read_event(reader)
            if event and AudioStart.is_type(event.type):  # the live text was begun
                event = await async_read_event(reader)
            assert await reader.read() == b""
    finally:
        writer.close()
    assert (event and Error.from_event(event).code) == code


def test_language_chooses_a_voice_that_speaks_it(me: Voice) -> None:
    library = local.library()
    for name in ("anna", "hans"):
        copy = me.model_copy(update={"voice_id": new_id(), "name": name, "lang": "de"})
        library.save(copy, reference_wav=library.reference(me))
    spoken = {"tone": frozenset(("en", "de", "fr"))}
    ids = {voice.name: voice.voice_id for voice in local.voices()}

    def choose(voice: str | None = None, lang: str | None = None) -> tuple[str | None, str | None]:
        return _choose(_Request("", voice, lang), spoken)

    assert choose(lang="de-DE") == (ids["anna"], "de")
    local.default_voice("hans")
    assert choose(lang="de") == (ids["hans"], "de")
    assert choose(lang="en") == (ids["me"], "en")
    assert choose(lang="fr") == (ids["hans"], "fr")
    assert choose("anna (fr)") == (ids["anna"], "fr")
    assert choose("anna", "en") == (ids["anna"], "en")
    assert choose() == (None, None)  # the default voice, in its language
    assert choose("bert") == ("bert", None)  # which `stream` refuses


def test_refusals(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    run("wyoming", "--uri", speaker.uri).expect_error(8, "address_in_use")
    for uri in ("unix:///tmp/s", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "10200"):
        run("wyoming", "--uri", uri).expect_error(5, "invalid_option")
    warning, *_ = run("wyoming", "--uri", f"tcp://0.0.0.0:{speaker.port}").err.splitlines()
    assert warning.startswith("Warning: the protocol has no keys: anyone who can reach this address")
    monkeypatch.setattr("afterwords.cli.wyoming.find_spec", lambda _: None)
    assert pip_install("wyoming") in run("wyoming").expect_error(1, "missing_extra")
