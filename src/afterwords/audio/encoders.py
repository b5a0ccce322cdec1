"""The formats that speech is written in: each turns samples into bytes as they arrive, with its tags inside.

wav and pcm are written by hand, so that a pipe gets its first sound at once; mp3, opus and flac by the encoders of
libav. `writer` decides where the bytes go and what becomes of them after an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import SEEK_END, SEEK_SET
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import numpy as np

from afterwords.audio.wav import Samples, pcm16, wav_header
from afterwords.models import SpeechFormat

if TYPE_CHECKING:
    import soxr
    from av import AudioStream

# container, encoder, sample format, bits a second (0: as many as it takes), and the rates in Hz that the encoder
# takes (none named: all)
_LIBAV = {
    SpeechFormat.MP3: (
        "mp3",
        "libmp3lame",
        "fltp",
        128_000,
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    ),
    SpeechFormat.OPUS: ("ogg", "libopus", "flt", 64_000, (8_000, 12_000, 16_000, 24_000, 48_000)),
    SpeechFormat.FLAC: ("flac", "flac", "s16", 0, ()),
}


class Encoder(Protocol):
    """Turns samples into the bytes of a format, in a file."""

    def write(self, samples: Samples) -> None:
        """Encode samples of shape (n_samples,)."""

    def finish(self) -> None:
        """Write what was kept back, and set right what stands at the beginning."""

    def abandon(self) -> None:
        """Let go of everything without writing any more."""


def make_encoder(file: BinaryIO, *, format: SpeechFormat, sample_rate: int, tags: Mapping[str, str]) -> Encoder:
    """Begin a file: what stands before the sound is written now.

    Args:
        file: where the bytes go; from where it stands, if it can go back.
        format: one that is spoken here; an encoder that does not take the rate gets the next higher one.
        sample_rate: of the samples to come, in Hz.
        tags: texts under the names of `wavchunks.INFO_IDS`; pcm carries none.

    Raises:
        OSError: the file's own, here and from every call of the encoder.
    """
    if format is SpeechFormat.PCM:
        return PcmEncoder(file)
    if format is SpeechFormat.WAV:
        return WavEncoder(file, sample_rate=sample_rate, tags=tags)
    return LibavEncoder(file, format=format, sample_rate=sample_rate, tags=tags)


class PcmEncoder:
    """Raw little-endian 16-bit samples."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, samples: Samples) -> None:
        self._file.write(pcm16(samples))

    def finish(self) -> None:
        """Nothing was kept back."""

    def abandon(self) -> None:
        """Nothing is held."""


class WavEncoder(PcmEncoder):
    """The same behind a header, whose sizes are set right at the end where the file can go back."""

    def __init__(self, file: BinaryIO, *, sample_rate: int, tags: Mapping[str, str]) -> None:
        super().__init__(file)
        self._sample_rate = sample_rate
        self._tags = tags
        self._start = file.tell() if file.seekable() else None
        self._n_frames = 0
        file.write(wav_header(sample_rate, n_frames=None, tags=tags))

    def write(self, samples: Samples) -> None:
        super().write(samples)
        self._n_frames += len(samples)

    def finish(self) -> None:
        if self._start is not None:
            self._file.seek(self._start)
            self._file.write(wav_header(self._sample_rate, n_frames=self._n_frames, tags=self._tags))
            self._file.seek(0, SEEK_END)


class LibavEncoder:
    """mp3, Ogg Opus and flac."""

    def __init__(self, file: BinaryIO, *, format: SpeechFormat, sample_rate: int, tags: Mapping[str, str]) -> None:
        import av

        container, codec, self._sample_format, bit_rate, rates = _LIBAV[format]
        self._rate = _encodable_rate(sample_rate, rates)
        self._resampler = _make_resampler(sample_rate, self._rate)
        self._sink = _SeekableSink(file) if file.seekable() else _Sink(file)
        with self._true_errors():
            # every packet leaves at once: behind a pipe somebody may be listening
            self._container = av.open(self._sink, "w", format=container, options={"flush_packets": "1"})
            stream = self._container.add_stream(
                codec, rate=self._rate, layout="mono", format=self._sample_format, bit_rate=bit_rate
            )
            self._stream = cast("AudioStream", stream)
            self._container.metadata.update(tags)
            self._container.start_encoding()
        self._n_frames = 0

    def write(self, samples: Samples) -> None:
        self._encode(samples if self._resampler is None else self._resampler.resample_chunk(samples))

    def finish(self) -> None:
        if self._resampler is not None:
            self._encode(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        with self._true_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abandon(self) -> None:
        import av

        self._sink.is_quiet = True
        with suppress(av.FFmpegError):  # it complains once more of the write that failed
            self._container.close()

    def _encode(self, samples: Samples) -> None:
        import av

        if not len(samples):
            return
        if self._sample_format == "s16":
            frames = np.frombuffer(pcm16(samples), "<i2").reshape(1, -1)
        else:
            frames = np.clip(samples, -1.0, 1.0).astype(np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(frames, format=self._sample_format, layout="mono")
        frame.sample_rate = self._rate
        frame.pts = self._n_frames
        self._n_frames += len(samples)
        with self._true_errors():
            self._container.mux(self._stream.encode(frame))

    @contextmanager
    def _true_errors(self) -> Iterator[None]:
        """Give back the error of the file where the library has only one of its own."""
        import av

        try:
            yield
        except av.FFmpegError as error:
            if self._sink.error is not None:
                raise self._sink.error from error
            raise


class _Sink:
    """A file as libav sees it: it remembers the error that libav hides, and can be told to swallow the rest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_quiet = False
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if not self.is_quiet:
            with self._remembered():
                self._file.write(data)
        return len(data)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


class _SeekableSink(_Sink):
    """The same for a file that can go back; it begins where the file stood."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._start = file.tell()

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if self.is_quiet:
            return 0
        with self._remembered():  # to go back, a buffered file writes first
            return self._file.seek(offset + (self._start if whence == SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return 0 if self.is_quiet else self._file.tell() - self._start


def _encodable_rate(sample_rate: int, rates: tuple[int, ...]) -> int:
    if not rates or sample_rate in rates:
        return sample_rate
    return min((rate for rate in rates if rate > sample_rate), default=max(rates))


def _make_resampler(from_rate: int, to_rate: int) -> soxr.ResampleStream | None:
    if from_rate == to_rate:
        return None
    import soxr

    return soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
