"""`Audio`, sound in memory: decode it from a file, record it, save it, play it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np

from afterwords.audio.decoding import read_sound
from afterwords.audio.devices import capture, play
from afterwords.audio.wav import Samples
from afterwords.audio.writer import AudioWriter
from afterwords.errors import RecordingError
from afterwords.models import Alignment, FormatName, SpeechFormat, Verification

DURATION_MAX_S = 1800.0
RECORDING_RATE = 48_000  # Hz; what microphones do natively


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """Sound in memory.

    Attributes:
        samples: Shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: In Hz.
        tags: `title`, `artist`, `comment`, `software` and `date` of every file written from it.
        notices: Problems found in the source file, one or two sentences each: lost parts, further tracks.
        alignment: When each character of the text is spoken, for speech that was made with timestamps.
        verification: How the speech compares with the text, for speech that was verified.
    """

    samples: Samples
    sample_rate: int
    tags: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    alignment: Alignment | None = None
    verification: Verification | None = None

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(
                f"samples must be float32 of one axis, not {self.samples.dtype} of shape {self.samples.shape}"
            )
        if self.sample_rate <= 0:
            raise ValueError(f"the sample rate must be positive, not {self.sample_rate} Hz")

    def __repr__(self) -> str:
        return f"Audio({self.duration_s:.2f} s, {self.sample_rate} Hz)"

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write a file atomically and return its path.

        Args:
            path: An existing file is replaced and keeps its permissions; on failure it stays as it was.
            format: None: by the extension of the path.

        Raises:
            InvalidInputError, FileError, StorageFullError: As for `AudioWriter`.
        """
        path = Path(path)
        with AudioWriter(path, format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            writer.write(self.samples)
        return path

    def to_bytes(self, format: SpeechFormat | FormatName = SpeechFormat.WAV) -> bytes:
        """Return the bytes of a file in a format.

        Raises:
            InvalidInputError: The format is unknown.
        """
        file = BytesIO()
        with AudioWriter(file, format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            writer.write(self.samples)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Return an HTML player with the sound inside, for notebooks."""
        from base64 import b64encode

        sound = b64encode(self.to_bytes(SpeechFormat.FLAC)).decode()
        return f'<audio controls src="data:audio/flac;base64,{sound}"></audio>'

    def play(self) -> None:
        """Play the sound and return at its end.

        Raises:
            MissingExtraError, UnavailableError: As for `afterwords.audio.devices.play`.
        """
        play([self.samples], self.sample_rate)


def decode(
    source: Path | bytes | BinaryIO, *, name: str | None = None, max_duration_s: float = DURATION_MAX_S
) -> Audio:
    """Decode a recording: wav, flac, mp3, ogg, opus, m4a, aac, webm and similar formats.

    Args:
        source: Path or bytes of a file, or an open file, which is read from its beginning. A pipe is read to its end,
            up to 512 MiB.
        name: Name of the recording in error messages.
        max_duration_s: Decoding stops at this length.

    Returns:
        Samples of shape (n_samples,), float32 in [-1, 1], channels averaged, at the file's own rate in Hz. Parts of a
        damaged file that can't be decoded are skipped, and `notices` say how much. Of several tracks, the first with
        sound is decoded. Concatenated files are read to the end.

    Work is bounded by `max_duration_s` and the size of the file. Memory is not: a malicious MP4 of 20 KB can make its
    demuxer allocate gigabytes. The server therefore decodes uploads in a process with a memory limit.

    Raises:
        FileError: The file is missing, a folder, a pipe or a device, or reading failed.
        RecordingError: The format or codec is unknown, nothing can be decoded, there is no audio, the recording is
            longer than `max_duration_s`, a pipe has more than 512 MiB, or samples are NaN or infinite.
        MalformedWavError: The rate is below 8 kHz or above 192 kHz.
    """
    sound = read_sound(source, name=name, max_duration_s=max_duration_s)
    return Audio(sound.samples, sound.sample_rate, notices=sound.notices)


def record(
    *,
    sample_rate: int = RECORDING_RATE,
    stop: Event,
    max_duration_s: float = DURATION_MAX_S,
    on_level: Callable[[float, float], None] | None = None,
) -> Audio:
    """Record from the default microphone until `stop` is set or `max_duration_s` is reached.

    Args:
        sample_rate: Requested rate in Hz; a device that doesn't support it uses its own.
        stop: Checked twenty times a second.
        max_duration_s: Limit in seconds.
        on_level: Called with the seconds recorded and the peak of the last block, in [0, 1].

    Raises:
        MissingExtraError: The extra `play` is not installed.
        UnavailableError: No device can record, or its system library is missing.
        RecordingError: Recording stopped before the first sample.
    """
    samples, rate = capture(sample_rate=sample_rate, stop=stop, max_duration_s=max_duration_s, on_level=on_level)
    if not len(samples):
        raise RecordingError.no_audio("The recording")
    return Audio(samples, rate)
