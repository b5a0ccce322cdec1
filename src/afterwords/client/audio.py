"""Audio of a server as samples: a whole file, or a stream as it arrives.

A separate module, because it loads numpy, which a program that only passes bytes on does not need.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np

from afterwords.audio.audio import DURATION_MAX_S, Audio
from afterwords.audio.decoding import read_sound, read_tags
from afterwords.audio.wav import Samples, float_from_pcm16, read_wav
from afterwords.audio.wav_chunks import RIFF_HEADER_BYTES, UNKNOWN_SIZE, check_magic, chunks, parse_fmt, read_info
from afterwords.client.parsing import SpeechResponse
from afterwords.errors import ConnectionLostError, InvalidResponseError, RecordingError
from afterwords.models import Voice, now
from afterwords.provenance import mark_tags, read_mark

_HEADER_MAX_BYTES: Final = 128 * 1024


def decode_speech(speech: SpeechResponse, voice: Voice | str | None = None) -> Audio:
    """Return the audio of a whole file, marked as synthetic.

    Raises:
        InvalidResponseError: The data is not audio, or is incomplete.
    """
    try:
        if speech.data.startswith(b"RIFF"):
            samples, sample_rate = read_wav(speech.data, source="the audio")
            tags = read_info(BytesIO(speech.data), source="the audio")
        else:
            read = read_sound(speech.data, name="the audio", max_duration_s=DURATION_MAX_S)
            if read.notices:
                raise RecordingError.damaged("the audio")
            samples, sample_rate, tags = read.samples, read.sample_rate, read_tags(speech.data)
    except RecordingError as error:
        raise InvalidResponseError.for_reason(
            f"its audio can't be read ({error.code})", hint="try again; a proxy may have truncated it."
        ) from error
    return Audio(samples, sample_rate, ensure_mark(tags, speech, voice))


def ensure_mark(tags: dict[str, str], speech: SpeechResponse, voice: Voice | str | None) -> dict[str, str]:
    """Return the tags of a file if they mark it as synthetic, else a new mark."""
    if read_mark(tags) is not None:
        return tags
    voice_id = speech.voice_id or "unknown"
    name = voice.name if isinstance(voice, Voice) else voice
    return mark_tags(backend=speech.backend or "unknown", voice_name=name or voice_id, voice_id=voice_id, made_at=now())


class WavStream:
    """A parser of a 16-bit WAV file that arrives in pieces of any length.

    Attributes:
        sample_rate: In Hz; 0 until the header is complete.
        tags: The tags that precede the samples.
    """

    def __init__(self) -> None:
        self.sample_rate = 0
        self.tags: dict[str, str] = {}
        self._pending = b""
        self._n_channels = 1
        self._left: int | None = None

    def feed(self, piece: bytes) -> Samples | None:
        """Return the samples, shape (n_samples,), that a piece completes, or None.

        Raises:
            InvalidResponseError: The data is not a 16-bit WAV file.
        """
        if self._left == 0:
            return None  # chunks after the samples
        self._pending += piece
        if not self.sample_rate and not self._read_header():
            return None
        frame = 2 * self._n_channels
        n_bytes = len(self._pending) if self._left is None else min(len(self._pending), self._left)
        n_bytes -= n_bytes % frame
        if not n_bytes:
            return None
        raw, self._pending = self._pending[:n_bytes], self._pending[n_bytes:]
        if self._left is not None:
            self._left -= n_bytes
        samples = float_from_pcm16(raw)
        return samples if self._n_channels == 1 else samples.reshape(-1, self._n_channels).mean(1, dtype=np.float32)

    def end(self) -> None:
        """Check that all samples arrived.

        Raises:
            InvalidResponseError: There was no audio.
            ConnectionLostError: The data ended early.
        """
        if not self.sample_rate:
            raise InvalidResponseError.for_reason("its audio is empty")
        if self._left:
            raise ConnectionLostError.for_url("the server", why="it ended within the audio")

    def _read_header(self) -> bool:
        """Read the chunks before the samples; return whether the samples have begun."""
        head = self._pending
        if len(head) < RIFF_HEADER_BYTES:
            return False
        fmt = None
        try:
            check_magic(head[:RIFF_HEADER_BYTES], "the audio")
            for chunk in chunks(BytesIO(head), "the audio"):
                if chunk.id == b"fmt " and chunk.present_bytes >= 16:
                    fmt = parse_fmt(head[chunk.start :])
                elif chunk.id == b"data":
                    if fmt is None or fmt.encoding != 1 or fmt.bits != 16 or not fmt.channels or not fmt.sample_rate:
                        raise InvalidResponseError.for_reason("its audio is not a 16-bit WAV file")
                    self.tags = read_info(BytesIO(head[: chunk.start]), source="the audio")
                    self.sample_rate, self._n_channels = fmt.sample_rate, fmt.channels
                    self._pending = head[chunk.start :]
                    self._left = None if chunk.size_bytes in (0, UNKNOWN_SIZE) else chunk.size_bytes
                    return True
        except RecordingError as error:
            raise InvalidResponseError.for_reason("its audio is not a WAV file") from error
        if len(head) > _HEADER_MAX_BYTES:
            raise InvalidResponseError.for_reason("its audio is empty")
        return False
