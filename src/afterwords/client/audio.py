"""Audio from a server, as samples: whole, or piece by piece while it comes.

Apart from the clients because it needs numpy, which a program that only asks for jobs shall not load.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Final

import numpy as np

from afterwords.audio.audio import DURATION_MAX_S, Audio
from afterwords.audio.decoding import read_sound, read_tags
from afterwords.audio.wav import Samples, read_wav
from afterwords.audio.wav_chunks import UNKNOWN_SIZE, read_info
from afterwords.client.parsing import Sound
from afterwords.errors import ConnectionLostError, DamagedAudioError, RecordingError, StrangeAnswerError
from afterwords.models import Voice, now
from afterwords.provenance import mark_tags, read_mark

_HEADER_MAX_BYTES: Final = 128 * 1024
_PCM: Final = 1
_FMT: Final = struct.Struct("<HHIIHH")


def decoded(sound: Sound, voice: Voice | str | None = None) -> Audio:
    """The audio of a whole file. Where it carries no mark that it is synthetic, it gets one.

    Raises:
        StrangeAnswerError: it is no audio, or was cut.
    """
    try:
        if sound.data.startswith(b"RIFF"):
            samples, sample_rate = read_wav(sound.data, source="the audio")
            tags = read_info(BytesIO(sound.data), source="the audio")
        else:
            read = read_sound(sound.data, name="the audio", max_duration_s=DURATION_MAX_S)
            if read.notices:
                raise DamagedAudioError("the audio")
            samples, sample_rate, tags = read.samples, read.sample_rate, read_tags(sound.data)
    except RecordingError as error:
        raise StrangeAnswerError(
            f"its audio can't be read ({error.code})", hint="ask again; something on the way may have cut it."
        ) from error
    return Audio(samples, sample_rate, marked(tags, sound, voice))


def joined(parts: Sequence[Samples], sample_rate: int, tags: Mapping[str, str]) -> Audio:
    """The audio of all chunks."""
    return Audio(np.concatenate(parts) if parts else np.zeros(0, np.float32), sample_rate, tags)


def marked(tags: dict[str, str], sound: Sound, voice: Voice | str | None) -> dict[str, str]:
    """The tags of speech: its own, or those that say that it is synthetic."""
    if read_mark(tags) is not None:
        return tags
    voice_id = sound.voice_id or "unknown"
    name = voice.name if isinstance(voice, Voice) else voice
    return mark_tags(backend=sound.backend or "unknown", voice_name=name or voice_id, voice_id=voice_id, made_at=now())


class WavStream:
    """A 16-bit WAV file that comes in pieces of any length.

    Attributes:
        sample_rate: in Hz; 0 until the header was there.
        tags: what the file says of itself before its sound.
    """

    def __init__(self) -> None:
        self.sample_rate = 0
        self.tags: dict[str, str] = {}
        self._pending = b""
        self._n_channels = 1
        self._left: int | None = None

    def feed(self, piece: bytes) -> Samples | None:
        """Take a piece, and give the samples, shape (n_samples,), that it completes; None while there are none.

        Raises:
            StrangeAnswerError: it is no 16-bit WAV file.
        """
        if self._left == 0:
            return None  # what comes after the sound
        self._pending += piece
        if not self.sample_rate and not self._has_begun():
            return None
        frame = 2 * self._n_channels
        n_bytes = len(self._pending) if self._left is None else min(len(self._pending), self._left)
        n_bytes -= n_bytes % frame
        if not n_bytes:
            return None
        raw, self._pending = self._pending[:n_bytes], self._pending[n_bytes:]
        if self._left is not None:
            self._left -= n_bytes
        samples = np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(32768)
        return samples if self._n_channels == 1 else samples.reshape(-1, self._n_channels).mean(1, dtype=np.float32)

    def end(self) -> None:
        """See that all came that was announced.

        Raises:
            StrangeAnswerError: there was no sound at all.
            ConnectionLostError: it ended too early.
        """
        if not self.sample_rate:
            raise StrangeAnswerError("its audio has no beginning")
        if self._left:
            raise ConnectionLostError("the server", why="it ended within the audio")

    def _has_begun(self) -> bool:
        """Look for the beginning of the sound, and read what stands before it."""
        head = self._pending
        if len(head) < 12:
            return False
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            raise StrangeAnswerError("its audio is no WAV file")
        offset = 12
        sample_rate = 0
        while len(head) >= offset + 8:
            name, size = head[offset : offset + 4], int.from_bytes(head[offset + 4 : offset + 8], "little")
            offset += 8
            if name == b"data":
                if not sample_rate:
                    raise StrangeAnswerError("its audio does not say how it is written")
                self.tags = read_info(BytesIO(head[:offset]), source="the audio")
                self.sample_rate, self._pending = sample_rate, head[offset:]
                self._left = None if size in (0, UNKNOWN_SIZE) else size
                return True
            if name == b"fmt " and len(head) >= offset + _FMT.size:
                encoding, self._n_channels, sample_rate, _, _, bits = _FMT.unpack_from(head, offset)
                if encoding != _PCM or bits != 16 or not self._n_channels or not sample_rate:
                    raise StrangeAnswerError("its audio is no 16-bit WAV file")
            offset += size + size % 2
        if len(head) > _HEADER_MAX_BYTES or offset > _HEADER_MAX_BYTES:
            raise StrangeAnswerError("its audio has no beginning")
        return False
