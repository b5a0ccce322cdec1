"""ElevenLabs' WebSockets, `stream-input` and `multi-stream-input`: text in, audio in JSON out."""

from __future__ import annotations

import asyncio
import math
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from starlette.requests import ClientDisconnect

from afterwords.audio.encoding import Encoding
from afterwords.errors import AfterwordsError, InvalidOptionError, InvalidRequestError, LimitError, ServiceError
from afterwords.models import SpeechFormat, SpeechOptions
from afterwords.server.auth import Credential, requires
from afterwords.server.faces.elevenlabs import DEFAULT_FORMAT, FORMATS, answer_error, find_backend, settings_of
from afterwords.server.records import Scope
from afterwords.server.routes.audio import encode_stream
from afterwords.server.routes.live import LiveReply, LiveUnit, check_quota
from afterwords.server.routes.responses import caller_of, state_of
from afterwords.server.routes.timing import SpokenText, check_timing
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.server.services.voices import find_speaker
from afterwords.server.sockets import FRAME_MAX_BYTES, Socket, SocketRoute, close_code, run_until_first

CONTEXTS_MAX: Final = 5
INACTIVITY_S: Final = 20.0
"""Longest time without a message while nothing is spoken, unless `inactivity_timeout` says otherwise."""
INACTIVITY_MAX_S: Final = 180.0


@requires(Credential.XI_SOCKET, Scope.SYNTHESIZE, answer_error=answer_error)
async def speak_contexts(socket: Socket) -> None:
    """Speak several texts while they are being written, each with its context, as `multi-stream-input` does."""
    session = await _Session.open(socket, is_multi=True)
    await socket.accept()
    try:
        await session.receive_contexts()
    finally:
        await session.close()
    await socket.end()


@requires(Credential.XI_SOCKET, Scope.SYNTHESIZE, answer_error=answer_error)
async def speak_one(socket: Socket) -> None:
    """Speak one text while it is being written, as `stream-input` does."""
    session = await _Session.open(socket, is_multi=False)
    try:
        await session.receive_one()
    finally:
        await session.close()
    await socket.end()


class _Characters:
    """The characters of a context that have times, and were not sent yet.

    In a message, times are counted from the end of the last character before it, as Pipecat does.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[str, int, int]] = []
        self._sent_ms = 0

    @property
    def are_waiting(self) -> bool:
        return bool(self._waiting)

    async def read(self, unit: LiveUnit, *, start_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the PCM of a unit, and collect the characters that start in a chunk before it."""
        assert isinstance(unit.result, AcceptedJob), "speech with timestamps is not cached"
        spoken = SpokenText(unit.connection, unit.text, unit.result)
        n_bytes = 0

        def collect(end_s: float) -> None:
            found = spoken.take(end_s)
            start_s = start_bytes / 2 / unit.sample_rate + unit.pause_s
            for character, first_s, last_s in zip(found.characters, found.start_s, found.end_s, strict=True):
                self._waiting.append((character, round(1000 * (start_s + first_s)), round(1000 * (start_s + last_s))))

        async for chunk in unit.pcm():
            n_bytes += len(chunk)
            if unit.is_timed:  # otherwise its stream broke off, and the rest is the stored audio
                await spoken.update()
                collect(n_bytes / 2 / unit.sample_rate - unit.pause_s)
            yield chunk
        if unit.is_timed:
            await spoken.update(is_over=True)
            collect(math.inf)
        end_ms = round(1000 * (start_bytes + n_bytes) / 2 / unit.sample_rate)
        if not unit.text[-1].isspace():  # Pipecat ends words at spaces, the last one, too
            self._waiting.append((" ", end_ms, end_ms))

    def take(self) -> dict[str, list[Any]]:
        """Remove the characters, and return them as an alignment."""
        if not self._waiting:
            return {"chars": [], "charStartTimesMs": [], "charDurationsMs": []}
        waiting, self._waiting = self._waiting, []
        starts = [max(0, start_ms - self._sent_ms) for _, start_ms, _ in waiting]
        ends = [max(0, end_ms - self._sent_ms) for _, _, end_ms in waiting]
        self._sent_ms += ends[-1]
        return {
            "chars": [character for character, _, _ in waiting],
            "charStartTimesMs": starts,
            "charDurationsMs": [end - start for start, end in zip(starts, ends, strict=True)],
        }


class _Context:
    """One text and the task that sends its audio, as one encoded stream."""

    def __init__(self, session: _Session, reply: LiveReply, context_id: str | None) -> None:
        self.reply = reply
        self._characters = _Characters() if session.has_timing else None
        self.is_ended = False
        self._session = session
        self._ids = {} if context_id is None else {"contextId": context_id}
        self.task = asyncio.create_task(self._send())

    def end(self) -> None:
        """End the text: its audio is still sent. The second time, what was not sent is cancelled."""
        if self.is_ended:
            self.task.cancel()
        self.is_ended = True
        self.reply.end()

    async def _send(self) -> None:
        """Send the audio; an error of a context ends this context only, one of the only context is raised.

        Raises:
            AfterwordsError: There is only one context, and its speech failed.
        """
        socket = self._session.socket
        try:
            async with aclosing(self.reply.units()) as units:
                first = await anext(units, None)
                if first is not None:
                    async with aclosing(self._encode(first, units)) as encoded:
                        async for data in encoded:
                            for start in range(0, len(data), FRAME_MAX_BYTES):
                                await self._send_audio(data[start : start + FRAME_MAX_BYTES])
                if self._characters and self._characters.are_waiting:
                    await self._send_audio(b"")
            await socket.send_message({"audio": None, "isFinal": True, **self._ids})
        except ClientDisconnect:
            return  # the session ends
        except Exception as error:  # noqa: BLE001 - an edge, and the message may contain text
            failure = error if isinstance(error, AfterwordsError) else ServiceError()
            if failure is not error:
                socket.log_failure(error)
            if not self._ids:
                raise failure from None
            await socket.send_message({"error": failure.message, "code": failure.code, **self._ids})

    async def _send_audio(self, data: bytes) -> None:
        alignment = self._characters.take() if self._characters else None
        times = {"alignment": alignment, "normalizedAlignment": alignment}
        message = {"audio": b64encode(data).decode(), "isFinal": None, **self._ids, **times}
        await self._session.socket.send_message(message)

    def _encode(self, first: LiveUnit, rest: AsyncGenerator[LiveUnit, None]) -> AsyncGenerator[bytes, None]:
        async def pcm() -> AsyncGenerator[bytes, None]:
            n_bytes = 0

            async def read(unit: LiveUnit) -> AsyncGenerator[bytes, None]:
                nonlocal n_bytes
                characters = self._characters if unit.is_timed else None
                chunks = characters.read(unit, start_bytes=n_bytes) if characters else unit.pcm()
                async for chunk in chunks:
                    n_bytes += len(chunk)
                    yield chunk

            async for chunk in read(first):
                yield chunk
            async for unit in rest:
                async for chunk in read(unit):
                    yield chunk

        encoding = self._session.encoding
        tags = {} if encoding.format is SpeechFormat.MP3 else first.tags  # players break at ID3 within a stream
        return encode_stream(self._session.socket, pcm(), first.sample_rate, encoding, tags)


class _Session:
    def __init__(self, socket: Socket, options: SynthesisRequest, encoding: Encoding, inactivity_s: float) -> None:
        self.socket = socket
        self.encoding = encoding
        self.has_timing = options.timestamps
        self._options = options
        self._inactivity_s = inactivity_s
        self._is_immediate = socket.query_params.get("auto_mode") == "true"
        self._contexts: dict[str, _Context] = {}
        self._is_first = True

    @classmethod
    async def open(cls, socket: Socket, *, is_multi: bool) -> _Session:
        """Check path, query and quota.

        LiveKit and Pipecat expect times on `multi-stream-input` by default, and speak without: there, they are sent if
        the backend reports any.

        Raises:
            AfterwordsError: The voice or model is unknown, a parameter is invalid, or no characters are left.
        """
        state, caller, query = state_of(socket), caller_of(socket), socket.query_params
        encoding = FORMATS.get(query.get("output_format", DEFAULT_FORMAT))
        if encoding is None:
            raise InvalidRequestError.invalid_field("output_format", rule=f"it must be one of {', '.join(FORMATS)}")
        inactivity = query.get("inactivity_timeout", str(INACTIVITY_S))
        try:
            inactivity_s = float(inactivity)
        except ValueError:
            inactivity_s = math.nan
        if not math.isfinite(inactivity_s):
            raise InvalidRequestError.invalid_field("inactivity_timeout", rule="it must be a number")
        voice = await find_speaker(state.store, caller, socket.path_params["voice_id"])
        backend = find_backend(query.get("model_id"), state.dispatcher.backends)
        await check_quota(socket)
        lang, speed = query.get("language_code") or None, settings_of(voice).speed
        options = SynthesisRequest(voice.voice_id, "", lang=lang, backend=backend, speed=speed)
        wish = query.get("sync_alignment")
        if is_multi:
            has_timing = wish != "false" and state.synthesis.has_timing(voice, options)
        elif has_timing := wish == "true":
            check_timing(socket, voice, options)
        options = replace(options, timestamps=has_timing, keeps_timing=False)
        return cls(socket, options, encoding, min(max(inactivity_s, 1.0), INACTIVITY_MAX_S))

    async def close(self) -> None:
        """Cancel what was not sent."""
        tasks = [context.task for context in self._contexts.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def receive_contexts(self) -> None:
        """Receive the messages of `multi-stream-input` until the client closes the socket, or sends none in time."""
        while (message := await self._receive()) is not None and not message.get("close_socket"):
            context_id = message.get("context_id") or message.get("contextId") or "default"
            if not isinstance(context_id, str):
                raise InvalidRequestError.invalid_field("context_id", rule="it must be a string")
            context = self._contexts.get(context_id)
            if context is None and message.get("text"):
                try:
                    context = self._begin(message, context_id)
                except LimitError as error:
                    refusal = {"error": error.message, "code": error.code, "contextId": context_id}
                    await self.socket.send_message(refusal)
                    continue
            if context is None or context.task.done():  # a keep-alive, or a context that has ended
                continue
            await self._feed(context, message)
            if message.get("close_context"):
                context.end()

    async def receive_one(self) -> None:
        """Receive the messages of `stream-input`, and send all audio up to an empty text."""
        if (first := await self._receive()) is None:
            return
        context = self._begin(first, None)

        async def receive() -> None:
            message: dict[str, Any] | None = first
            while message is not None:
                await self._feed(context, message)
                if message.get("text") == "" and not context.is_ended:
                    context.end()
                message = await self._receive()
            context.reply.end()
            await asyncio.wait({context.task})

        async def wait_until_sent() -> None:
            await asyncio.wait({context.task})

        await run_until_first(receive(), wait_until_sent())
        if context.task.done():
            context.task.result()

    async def _receive(self) -> dict[str, Any] | None:
        """Return the next message; None if none came in time while nothing was spoken."""
        while True:
            message = await self.socket.receive_message(timeout_s=self._inactivity_s)
            if message is not None or all(context.reply.is_idle for context in self._contexts.values()):
                return message

    def _begin(self, message: dict[str, Any], context_id: str | None) -> _Context:
        """Begin a text.

        Raises:
            InvalidRequestError: The speed is invalid.
            LimitError: Too many texts are open, or the key or its account has used its rate.
        """
        for done in [key for key, context in self._contexts.items() if context.task.done()]:
            del self._contexts[done]
        if len(self._contexts) >= CONTEXTS_MAX:
            raise LimitError(f"{CONTEXTS_MAX} contexts are open.", code="too_many_concurrent_requests")
        if not self._is_first:  # the handshake counts for the first
            state_of(self.socket).authenticator.check_rate(caller_of(self.socket))
        self._is_first = False
        settings = message.get("voice_settings") or {}
        speed = settings.get("speed") if isinstance(settings, dict) else None
        options = self._options
        if isinstance(speed, int | float) and not isinstance(speed, bool):
            try:
                options = replace(options, speed=SpeechOptions.check(speed=speed).speed)
            except InvalidOptionError:
                raise InvalidRequestError.invalid_field("speed", rule="it must be a number from 0.25 to 4") from None
        context = _Context(self, LiveReply(self.socket, options, "clause"), context_id)
        self._contexts[context_id or ""] = context
        return context

    async def _feed(self, context: _Context, message: dict[str, Any]) -> None:
        text = message.get("text") or ""
        if not isinstance(text, str):
            raise InvalidRequestError.invalid_field("text", rule="it must be a string")
        if context.is_ended:
            return
        await context.reply.feed(text)
        if message.get("flush") or (self._is_immediate and text.strip()):
            context.reply.flush()


SOCKETS: Final = {
    "/elevenlabs/v1/text-to-speech/{voice_id}/multi-stream-input": SocketRoute(
        speak_contexts, lambda error: {"error": error.message, "code": error.code}
    ),
    "/elevenlabs/v1/text-to-speech/{voice_id}/stream-input": SocketRoute(
        speak_one,
        lambda error: {"message": error.message, "error": error.code, "code": close_code(error)},
        is_accepted_first=True,  # ElevenLabs' client understands errors only as a message
    ),
}
