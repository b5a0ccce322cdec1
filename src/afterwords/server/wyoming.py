"""Serve the voices of this machine over the Wyoming protocol, for Home Assistant: what `afterwords wyoming` runs.

A connection is read all the time, so that it ends when its client leaves. Its requests are spoken one after the other,
each in a thread, by `local.stream`. After an error, the connection is closed: clients wait for audio, not for errors.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from afterwords import __version__, local
from afterwords.audio.wav import pcm16
from afterwords.backends import registry
from afterwords.errors import (
    AfterwordsError,
    InvalidOptionError,
    InvalidRequestError,
    LimitError,
    ServerSetupError,
    TextError,
)
from afterwords.text import MAX_LOCAL_CHARS, normalize_lang

CONNECTIONS_MAX: Final = 64
QUEUED_MAX: Final = 8
"""Requests of a connection that wait; with more, its next events are not read."""
EVENT_MAX_BYTES: Final = 2 * 2**20
CHUNK_S: Final = 0.1
"""Audio in one event; some players have a small buffer."""
WRITE_TIMEOUT_S: Final = 60.0
LINGER_S: Final = 2.0
"""How long to read on after an error: closing with unread data would discard the error."""

log = logging.getLogger(__name__)


def serve(uri: str, *, on_listening: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT arrives, and return the signal.

    Args:
        uri: Where to listen: tcp://HOST:PORT; with port 0, on a free one.
        on_listening: Called with the actual URI once the server answers.

    Raises:
        InvalidOptionError: The URI is of another kind.
        ServerSetupError: The address can't be used.
    """
    return asyncio.run(_serve(uri, on_listening))


async def _serve(uri: str, on_listening: Callable[[str], None]) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Queue[int] = asyncio.Queue()
    for signum in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(signum, stopped.put_nowait, signum)
        except NotImplementedError:  # Windows
            signal.signal(signum, lambda number, _: loop.call_soon_threadsafe(stopped.put_nowait, number))
    languages = {backend.name: backend.languages for backend in registry.backends() if backend.is_available}
    connections: dict[asyncio.Task[None], Connection] = {}

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, pool, languages)
        task = asyncio.create_task(connection.run(is_refused=len(connections) >= CONNECTIONS_MAX))
        connections[task] = connection
        task.add_done_callback(connections.pop)

    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        server = await _listen(uri, accept)
        host, port = server.sockets[0].getsockname()[:2]
        on_listening(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        received = await stopped.get()
        server.close()
        for connection in connections.values():
            connection.abort()
        await asyncio.gather(*connections)
    return received


async def _listen(
    uri: str, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
) -> asyncio.base_events.Server:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:  # the port, or an IPv6 address
        host, port = None, None
    if parts.scheme != "tcp" or host is None or port is None:
        raise InvalidOptionError.for_option("--uri", value=uri, allowed="tcp://HOST:PORT")
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            lambda: asyncio.StreamReaderProtocol(_BoundedReader(limit=EVENT_MAX_BYTES, loop=loop), accept, loop),
            host,
            port,
        )
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ServerSetupError(
            f"Can't listen on {uri}: {why}.", code="address_in_use", hint="choose another address with --uri."
        ) from None


class _BoundedReader(asyncio.StreamReader):
    async def readexactly(self, n: int) -> bytes:
        if n > EVENT_MAX_BYTES:
            raise InvalidRequestError("The event is too large.", code="request_too_large")
        return await super().readexactly(n)


class _LiveText:
    """The text of a client that is still writing it: the thread that speaks iterates over its pieces."""

    def __init__(self) -> None:
        self._pieces: SimpleQueue[str | None] = SimpleQueue()
        self._n_characters = 0

    def add(self, piece: str) -> None:
        self._n_characters += len(piece)
        if self._n_characters > MAX_LOCAL_CHARS:
            raise TextError(f"The text has more than {MAX_LOCAL_CHARS:,} characters.", code="text_too_long")
        self._pieces.put(piece)

    def end(self) -> None:
        self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces.get, None)


@dataclass(frozen=True, slots=True)
class _Request:
    text: str | _LiveText = field(repr=False)
    voice: str | None
    lang: str | None

    @classmethod
    def of(cls, event: Event, text: str | _LiveText) -> _Request:
        if not isinstance(text, str | _LiveText):
            raise TypeError
        voice = event.data.get("voice") or {}  # wyoming's own class drops the language of a voice with a name
        name, lang = voice.get("name"), voice.get("language")
        if not (isinstance(name, str | None) and isinstance(lang, str | None)):
            raise TypeError
        return cls(text, name, lang)


class _ClosedError(Exception):
    """The client has left; the thread that speaks to it stops."""


class Connection:
    """A client that asks for the voices, and has texts spoken.

    Args:
        reader, writer: Its connection.
        pool: Threads that speak.
        languages: Languages of each backend that can run here.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pool: ThreadPoolExecutor,
        languages: dict[str, frozenset[str]],
    ) -> None:
        self._reader, self._writer, self._pool, self._languages = reader, writer, pool, languages
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(QUEUED_MAX)
        self._live: _LiveText | None = None
        self._speaking: asyncio.Future[None] | None = None
        self._is_closed = threading.Event()

    def abort(self) -> None:
        """End the connection at once; `run` returns soon."""
        self._writer.transport.abort()

    async def run(self, *, is_refused: bool) -> None:
        """Serve the client until it leaves, or until an error, which it gets."""
        work = [self._refuse()] if is_refused else [self._read(), self._speak_all()]
        tasks = [asyncio.create_task(each) for each in work]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self._is_closed.set()
        self._end_live()
        for task in tasks:
            task.cancel()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        if error := next((error for error in errors if isinstance(error, Exception)), None):  # both may have failed
            await self._report(error)
        self._writer.close()
        if self._speaking:
            await asyncio.gather(self._speaking, return_exceptions=True)

    async def _refuse(self) -> None:
        why = f"There are {CONNECTIONS_MAX} connections, which is the limit."
        raise LimitError(why, code="too_many_concurrent_requests")

    async def _report(self, error: Exception) -> None:
        if isinstance(error, OSError | EOFError | _ClosedError):  # the client has left
            return
        if not isinstance(error, AfterwordsError):
            log.error("A request failed with %s.", type(error).__name__)
            error = AfterwordsError(f"Unexpected exception ({type(error).__name__}).", code="unexpected_error")
        text = f"{error.message} Fix: {error.hint}" if error.hint else error.message
        try:
            await self._write(Error(text, error.code))
            self._writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self._reader.read(EVENT_MAX_BYTES):
                    pass
        except OSError:  # the client has left, or reads nothing
            pass

    async def _read(self) -> None:
        try:
            while event := await async_read_event(self._reader):
                await self._handle(event)
        except (LookupError, TypeError, AttributeError, RecursionError, UnicodeError):
            raise InvalidRequestError("The event is malformed.", hint="send events of the Wyoming protocol.") from None

    async def _handle(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._write(await asyncio.to_thread(_describe, self._languages))
        elif Ping.is_type(event.type):
            await self._write(Pong(Ping.from_event(event).text))
        elif SynthesizeStart.is_type(event.type):
            self._end_live()
            self._live = _LiveText()
            await self._requests.put(_Request.of(event, self._live))
        elif SynthesizeChunk.is_type(event.type):
            if self._live is None:
                raise InvalidRequestError("No text has been started.", hint="send synthesize-start first.")
            self._live.add(SynthesizeChunk.from_event(event).text)
        elif SynthesizeStop.is_type(event.type):
            self._end_live()
        elif Synthesize.is_type(event.type) and self._live is None:  # between start and stop, it repeats the chunks
            await self._requests.put(_Request.of(event, Synthesize.from_event(event).text))

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.end()
            self._live = None

    async def _speak_all(self) -> None:
        loop = asyncio.get_running_loop()

        def send(event: Eventable) -> None:
            if self._is_closed.is_set():
                raise _ClosedError
            asyncio.run_coroutine_threadsafe(self._write(event), loop).result()

        while True:
            request = await self._requests.get()
            self._speaking = loop.run_in_executor(self._pool, partial(_speak, request, self._languages, send))
            await asyncio.shield(self._speaking)

    async def _write(self, event: Eventable) -> None:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await async_write_event(event.event(), self._writer)


def _speak(request: _Request, languages: dict[str, frozenset[str]], send: Callable[[Eventable], None]) -> None:
    """Speak a text, and send its audio while it is generated."""
    voice, lang = _choose(request, languages)
    speech = local.stream(request.text, voice=voice, lang=lang)
    form: dict[str, Any] = {"rate": speech.sample_rate, "width": 2, "channels": 1}
    size = 2 * round(CHUNK_S * speech.sample_rate)
    send(AudioStart(**form))
    for chunk in speech:
        audio = pcm16(chunk.samples)
        for start in range(0, len(audio), size):
            send(AudioChunk(**form, audio=audio[start : start + size]))
    send(AudioStop())
    if isinstance(request.text, _LiveText):
        send(SynthesizeStopped())


# -- voices ---------------------------------------------------------------------------------------------------


def _offers(languages: dict[str, frozenset[str]]) -> dict[str, tuple[str, str]]:
    """Return the ID and the language of each voice that is offered, the default voice first, by its name here.

    Home Assistant sends the name of a voice and no language, so a voice has a further name for each other language.
    """
    library = local.library()
    default = library.default()
    voices = sorted(library.list(), key=lambda voice: default is None or voice.voice_id != default.voice_id)
    every = frozenset[str]().union(*languages.values())
    spoken = {voice.voice_id: languages.get(voice.backend, every) for voice in voices}
    offers = {voice.name: (voice.voice_id, voice.lang) for voice in voices if voice.lang in spoken[voice.voice_id]}
    for voice in voices:
        for lang in sorted(spoken[voice.voice_id] - {voice.lang}):
            offers.setdefault(f"{voice.name} ({lang})", (voice.voice_id, lang))
    return offers


def _choose(request: _Request, languages: dict[str, frozenset[str]]) -> tuple[str | None, str | None]:
    """Return the voice and the language of a request; a name that is not offered may be an ID, or unknown."""
    lang = normalize_lang(request.lang) if request.lang else None
    offers = _offers(languages)
    if request.voice is None and lang is not None:
        speakers = [voice_id for voice_id, spoken in offers.values() if spoken == lang]
        return (speakers[0] if speakers else None), lang
    voice, spoken = offers.get(request.voice or "", (request.voice, None))
    return voice, lang or spoken


def _describe(languages: dict[str, frozenset[str]]) -> Info:
    made: dict[str, Any] = {"attribution": Attribution("afterwords", ""), "installed": True, "version": __version__}
    voices = [
        TtsVoice(name=name, description=name, languages=[lang], **made)
        for name, (_, lang) in _offers(languages).items()
    ]
    program = TtsProgram(
        name="afterwords",
        description="The voices of this machine",
        voices=voices,
        supports_synthesize_streaming=True,
        **made,
    )
    return Info(tts=[program])
