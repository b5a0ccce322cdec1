"""The WebSocket of vLLM-Omni, `/v1/audio/speech/stream`: text in, audio out while the text is still being written."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from contextlib import aclosing
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from afterwords.audio.encoding import Encoding
from afterwords.errors import AfterwordsError, InvalidRequestError
from afterwords.models import Seed, SpeechFormat, Speed
from afterwords.server.auth import Credential, requires
from afterwords.server.faces.openai import LANGUAGES, find_backend
from afterwords.server.records import Scope, StoredVoice
from afterwords.server.routes.audio import encode_stream
from afterwords.server.routes.live import LiveReply, LiveUnit, check_quota
from afterwords.server.routes.responses import caller_of, state_of
from afterwords.server.routes.schemas import EMOTION, RequestBody
from afterwords.server.routes.timing import SpokenText, check_timing, word_times
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.server.services.voices import find_speaker
from afterwords.server.sockets import FRAME_MAX_BYTES, Socket, SocketRoute, run_until_first

CONFIG_S: Final = 10.0
"""Time for the first message, `session.config`."""
IDLE_S: Final = 30.0
"""Longest time without a message while nothing is spoken."""
REPLIES_MAX: Final = 8
"""Texts that wait to be spoken; while there are as many, no further messages are received."""


class SessionConfig(RequestBody):
    """Parameters of the speech that follows, as vLLM-Omni defines them. Other fields are ignored."""

    voice: str | None = Field(default=None, description="Name, ID or alias of a voice of the account.")
    speaker: str | None = Field(default=None, description="The same, if `voice` is absent.")
    model: str | None = Field(default=None, description="A backend, or a model of OpenAI.")
    response_format: SpeechFormat = Field(default=SpeechFormat.WAV, strict=False, description="Format of the audio.")
    stream_audio: bool = Field(default=False, description="Send the audio of a unit while it is generated.")
    split_granularity: Literal["none", "sentence", "clause"] = Field(
        default="none", description="Units of the text; none: all of it, once `input.done` has come."
    )
    speed: Speed = Field(default=1.0, description="Speaking rate, 1 is the voice's own.")
    language: str | None = Field(default=None, description="Code or English name of the language, or Auto.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result reproducible.")
    emotion: str | None = EMOTION
    word_timestamps: bool = Field(
        default=False, description="Send audio in JSON, and after each unit the times of its words."
    )


@requires(Credential.USER, Scope.SYNTHESIZE)
async def speak_live(socket: Socket) -> None:
    """Speak texts while they are being written, as vLLM-Omni's WebSocket does."""
    await check_quota(socket)
    await socket.accept()
    session = _Session(socket)
    await run_until_first(session.receive(), session.speak())
    await socket.end()


def _describe_error(error: AfterwordsError) -> dict[str, Any]:
    wait = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
    return {"type": "error", "message": error.message, "code": error.code, "status": error.http_status, **wait}


class _Session:
    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._config: SessionConfig | None = None
        self._voice: StoredVoice | None = None
        self._reply: LiveReply | None = None  # whose text is being written
        self._replies: asyncio.Queue[tuple[LiveReply, SessionConfig]] = asyncio.Queue(REPLIES_MAX)
        self._unspoken: deque[LiveReply] = deque()
        self._is_first = True

    async def receive(self) -> None:
        """Receive until the client closes the session.

        Raises:
            AfterwordsError: A message is invalid, or none came in time.
        """
        while True:
            timeout_s = CONFIG_S if self._config is None else IDLE_S
            message = await self._socket.receive_message(timeout_s=timeout_s)
            if message is None:
                if not all(reply.is_idle for reply in self._unspoken):
                    continue
                why = f"No message came for {timeout_s:g} s."
                raise InvalidRequestError(
                    why, code="request_timeout", hint="send input.text, or open a new connection."
                )
            kind = message.get("type")
            if kind == "session.close":
                return
            if kind == "session.config" and self._reply is None:
                await self._configure(message)
            elif self._config is None or kind not in ("input.text", "input.done"):
                place = "within an utterance" if self._reply else "here"
                raise InvalidRequestError.invalid_field("type", rule=f"this message is not expected {place}")
            else:
                reply = self._reply = self._reply or await self._begin()
                if kind == "input.done":
                    reply.end()
                    self._reply = None
                elif isinstance(text := message.get("text"), str):
                    await reply.feed(text)
                else:
                    raise InvalidRequestError.missing_field("text")

    async def _configure(self, message: dict[str, Any]) -> None:
        try:
            config = SessionConfig.model_validate({name: value for name, value in message.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = ".".join(str(name) for name in first["loc"])
            raise InvalidRequestError.invalid_field(param, rule=first["msg"].lower()) from None
        if config.word_timestamps and not (config.stream_audio and config.response_format is SpeechFormat.PCM):
            rule = "it needs stream_audio and the response_format pcm"
            raise InvalidRequestError.invalid_field("word_timestamps", rule=rule)
        name = config.voice or config.speaker
        if name is None:
            raise InvalidRequestError.missing_field("voice")
        voice = await find_speaker(state_of(self._socket).store, caller_of(self._socket), name)
        if config.word_timestamps:
            check_timing(self._socket, voice, self._options(config, voice))
        self._config, self._voice = config, voice

    def _options(self, config: SessionConfig, voice: StoredVoice) -> SynthesisRequest:
        language = (config.language or "auto").lower()
        return SynthesisRequest(
            voice_id=voice.voice_id,
            text="",
            lang=None if language == "auto" else LANGUAGES.get(language, language),
            backend=find_backend(config.model, state_of(self._socket).dispatcher.backends),
            speed=config.speed,
            seed=config.seed,
            emotion=config.emotion,
            timestamps=config.word_timestamps,
            keeps_timing=False,
        )

    async def _begin(self) -> LiveReply:
        config, voice = self._config, self._voice
        assert config is not None
        assert voice is not None
        if not self._is_first:  # the handshake counts for the first
            state_of(self._socket).authenticator.check_rate(caller_of(self._socket))
        self._is_first = False
        by = None if config.split_granularity == "none" else config.split_granularity
        reply = LiveReply(self._socket, self._options(config, voice), by)
        self._unspoken.append(reply)
        await self._replies.put((reply, config))
        return reply

    async def speak(self) -> None:
        """Send the audio of all utterances in order."""
        utterance = 0
        while True:
            reply, config = await self._replies.get()
            n_units = 0
            async with aclosing(reply.units()) as units:
                async for unit in units:
                    place = {"utterance_index": utterance, "sentence_index": n_units}
                    await self._send_unit(unit, place, config)
                    n_units += 1
            await self._socket.send_message(
                {"type": "session.done", "utterance_index": utterance, "total_sentences": n_units}
            )
            self._unspoken.popleft()
            utterance += 1

    async def _send_unit(self, unit: LiveUnit, place: dict[str, int], config: SessionConfig) -> None:
        encoding = Encoding(config.response_format)
        begin = {"type": "audio.start", **place, "sentence_text": unit.text, "format": config.response_format}
        source = {"voice_id": unit.voice_id, "backend": unit.backend, "left_out": [*unit.result.left_out]}
        source["notices"] = [*unit.result.notices]
        rate = {"sample_rate": encoding.rate_for(unit.sample_rate)} if config.stream_audio else {}
        if config.word_timestamps:
            rate["word_timestamps"] = True
        await self._socket.send_message({**begin, **source, **rate})
        n_bytes, whole = 0, bytearray()
        if config.stream_audio:
            self._socket.error_details = {"partial_audio": True, "action": "discard"}
        async with aclosing(encode_stream(self._socket, unit.pcm(), unit.sample_rate, encoding, unit.tags)) as encoded:
            async for data in encoded:
                for start in range(0, len(data), FRAME_MAX_BYTES):
                    part = data[start : start + FRAME_MAX_BYTES]
                    n_bytes += len(part)
                    if config.word_timestamps:
                        await self._send_chunk(part, place, n_bytes, rate["sample_rate"], None)
                    elif config.stream_audio:
                        await self._socket.send_audio(part)
                    else:
                        whole += part
        if config.word_timestamps:
            times = None  # null means failed to vLLM-Omni
            if unit.is_timed and isinstance(unit.result, AcceptedJob):
                spoken = SpokenText(self._socket, unit.text, unit.result)
                await spoken.update(is_over=True)
                times = word_times(spoken.take_words(), start_s=unit.pause_s)
            await self._send_chunk(b"", place, n_bytes, rate["sample_rate"], times)
        else:
            await self._socket.send_audio(bytes(whole))
        self._socket.error_details = {}
        await self._socket.send_message({"type": "audio.done", **place, "total_bytes": n_bytes, "error": False})

    async def _send_chunk(
        self, pcm: bytes, place: dict[str, int], end_bytes: int, sample_rate: int, times: list[dict[str, Any]] | None
    ) -> None:
        """Send audio, or at the end of a unit all of its words, in the form of vLLM-Omni."""
        end_ms, duration_ms = (round(500 * n_bytes / sample_rate) for n_bytes in (end_bytes, len(pcm)))
        message = {"type": "audio.chunk", **place, "sample_rate": sample_rate, "timestamps": times}
        position = {"chunk_start_ms": end_ms - duration_ms if pcm else 0, "chunk_end_ms": end_ms}
        await self._socket.send_message({**message, **position, "audio_b64": b64encode(pcm).decode()})


SOCKETS: Final = {"/v1/audio/speech/stream": SocketRoute(speak_live, _describe_error)}
