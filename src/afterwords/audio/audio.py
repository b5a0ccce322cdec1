"""Sound, and the one door to it: from a file or a microphone, to a file, a pipe or a loudspeaker.

`reader`, `writer` (with `destination`) and `soundcard` do the work; what others need of them is named here again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np

from afterwords.audio.decoding import read_sound, read_tags
from afterwords.audio.devices import capture, play
from afterwords.audio.output import check_output, format_of, parse_format
from afterwords.audio.wav import Samples
from afterwords.audio.writer import AudioWriter
from afterwords.errors import InvalidOptionError, NoAudioError
from afterwords.models import SPEED_MAX, SPEED_MIN, FormatName, SpeechFormat

__all__ = [
    "DURATION_MAX_S",
    "Audio",
    "AudioWriter",
    "Samples",
    "change_speed",
    "check_output",
    "decode",
    "format_of",
    "parse_format",
    "play",
    "read_tags",
    "record",
    "resample",
]

DURATION_MAX_S = 1800.0
RECORDING_RATE = 48_000  # Hz; what microphones do natively
_TAIL_S = 0.25  # more than the stretching of two filters keeps back


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """Sound in memory.

    Attributes:
        samples: shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: in Hz.
        tags: texts that every file written from it carries, under `title`, `artist`, `comment`, `software`, `date`.
        notices: what the reader of a file found wrong with it, each a sentence or two: lost parts, further tracks.
    """

    samples: Samples
    sample_rate: int
    tags: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(f"samples are {self.samples.dtype} of shape {self.samples.shape}, not float32 of one axis")
        if self.sample_rate <= 0:
            raise ValueError(f"a sample rate of {self.sample_rate} Hz is none")

    def __repr__(self) -> str:
        return f"Audio({self.duration_s:.2f} s, {self.sample_rate} Hz)"

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write a file, whole or not at all, and return where it is.

        Args:
            path: an existing file is replaced and its permissions stay; if anything fails, it is kept.
            format: None takes it from the ending of the path.

        Raises:
            UnmarkableFormatError, UnwritableOutputError, StorageFullError: as `AudioWriter`.
        """
        path = Path(path)
        with AudioWriter(path, format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            writer.write(self.samples)
        return path

    def to_bytes(self, format: SpeechFormat | FormatName = SpeechFormat.WAV) -> bytes:
        """Make the bytes of a file in that format.

        Raises:
            UnmarkableFormatError: the format is not known.
        """
        file = BytesIO()
        with AudioWriter(file, format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            writer.write(self.samples)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Return a player with the sound inside, which notebooks show for the value of a cell."""
        from base64 import b64encode

        sound = b64encode(self.to_bytes(SpeechFormat.FLAC)).decode()
        return f'<audio controls src="data:audio/flac;base64,{sound}"></audio>'

    def play(self) -> None:
        """Play it, and return when it was heard.

        Raises:
            MissingExtraError, AudioDeviceError: as `play`.
        """
        play([self.samples], self.sample_rate)


def decode(
    source: Path | bytes | BinaryIO, *, name: str | None = None, max_duration_s: float = DURATION_MAX_S
) -> Audio:
    """Read any recording: wav, flac, mp3, ogg, opus, m4a, aac, webm and their like.

    Args:
        source: a file by its path or its bytes, or an open one, which is read from its beginning; a pipe is read to its
            end, up to 512 MiB.
        name: what messages call it.
        max_duration_s: the longest that is taken; decoding stops there.

    Returns:
        Audio of shape (n_samples,), float32 in [-1, 1], channels averaged, at the file's own rate in Hz. What can't be
        decoded of a damaged file is left out, and `notices` say how much that is. Of several tracks it is the first
        with sound; files that were joined are read to the end.

    The work is bounded by `max_duration_s` and the size of the file. Memory is not, where a stranger made the file: an
    MP4 of 20 KB can make its demuxer take gigabytes. The server decodes such files in a process with a limit.

    Raises:
        UnreadableFileError: it is missing, a folder, a pipe or a device, or reading it failed.
        UnsupportedAudioError: no decoder knows it, or the codec of its sound.
        DamagedAudioError: it is known, but nothing of it can be read.
        NoAudioError: it is empty, or known but without sound.
        ReferenceTooLongError: it lasts longer than `max_duration_s`.
        FileTooLargeError: a pipe that does not end.
        BadSampleRateError: a rate below 8 kHz or above 192 kHz.
        NonFiniteAudioError: samples that are NaN or infinite.
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
    """Record from the default microphone until `stop` is set or the time is over.

    Args:
        sample_rate: the rate to ask for, in Hz; a device that can't record it gives its own.
        stop: looked at twenty times a second.
        max_duration_s: the longest that is recorded.
        on_level: told the seconds recorded and the peak of the last block, in [0, 1].

    Raises:
        MissingExtraError: the extra `play` is not installed.
        AudioDeviceError: no device records, or the system library for it is missing.
        NoAudioError: it was stopped before it began.
    """
    samples, rate = capture(sample_rate=sample_rate, stop=stop, max_duration_s=max_duration_s, on_level=on_level)
    if not len(samples):
        raise NoAudioError("The recording")
    return Audio(samples, rate)


def resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    """Change the sample rate (Hz) of samples of shape (n_samples,); what rings beyond full scale is clipped."""
    if from_rate == to_rate or not len(samples):
        return samples
    import soxr

    changed: Samples = soxr.resample(samples, from_rate, to_rate)
    return np.clip(changed, np.float32(-1), np.float32(1))


def change_speed(chunks: Iterable[Samples], sample_rate: int, speed: float) -> Iterator[Samples]:
    """Make speech faster or slower at the same pitch, as it comes.

    Args:
        chunks: samples of shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: in Hz.
        speed: 0.25 to 4; at 1 the chunks pass untouched.

    Returns:
        Chunks of other lengths, which together last 1/speed of the time, to the sample.

    Raises:
        InvalidOptionError: the speed is out of range.

    Source: libav's filter `atempo` (WSOLA), https://ffmpeg.org/ffmpeg-filters.html#atempo.
    """
    if not SPEED_MIN <= speed <= SPEED_MAX:
        raise InvalidOptionError("speed", value=speed, allowed=f"{SPEED_MIN:g} to {SPEED_MAX:g}")
    return iter(chunks) if speed == 1 else _stretch(chunks, sample_rate, speed)


def _stretch(chunks: Iterable[Samples], sample_rate: int, speed: float) -> Iterator[Samples]:
    stretcher = _Stretcher(sample_rate, speed)
    n_in = n_out = 0
    for chunk in chunks:
        n_in += len(chunk)
        for stretched in stretcher.push(chunk):
            n_out += len(stretched)
            yield stretched
    # The filter would lose the end of what it keeps back: silence pushes it out, and what is too much is cut.
    n_missing = round(n_in / speed) - n_out
    tail = [*stretcher.push(np.zeros(round(_TAIL_S * sample_rate), np.float32)), *stretcher.push(None)]
    if n_missing > 0:
        yield np.concatenate([*tail, np.zeros(n_missing, np.float32)])[:n_missing]


class _Stretcher:
    """A chain of tempo filters: samples in, stretched samples out when there are enough."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        import av

        # one filter goes down to half the speed, and beyond double it drops sound instead of blending it
        n_filters = 2 if not 0.5 <= speed <= 2 else 1
        self._sample_rate = sample_rate
        self._n_frames = 0
        self._graph = av.filter.Graph()
        last = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout="mono", time_base=Fraction(1, sample_rate)
        )
        for _ in range(n_filters):
            tempo = self._graph.add("atempo", f"{math.pow(speed, 1 / n_filters):.9f}")
            last.link_to(tempo)
            last = tempo
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, samples: Samples | None) -> Iterator[Samples]:
        """Give it samples, or None for the end, and take what is ready."""
        import av

        if samples is None:
            self._graph.push(None)
        elif len(samples):
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = self._n_frames
            self._n_frames += len(samples)
            self._graph.push(frame)
        while True:
            try:
                ready = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield ready.to_ndarray().reshape(-1).astype(np.float32, copy=False)
