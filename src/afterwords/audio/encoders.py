"""Encode samples as they arrive: wav and pcm by hand, without delay, the other formats by libav."""

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

# container, encoder, sample format, bits per second (0: variable), supported rates in Hz (none: all)
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
    """Encodes samples into a file."""

    def write(self, samples: Samples) -> None:
        """Encode samples of shape (n_samples,)."""

    def finish(self) -> None:
        """Write buffered samples and complete the header."""

    def abandon(self) -> None:
        """Release everything without another write."""


def make_encoder(file: BinaryIO, *, format: SpeechFormat, sample_rate: int, tags: Mapping[str, str]) -> Encoder:
    """Return an encoder for a format, with its header written.

    Args:
        file: Written from its current position.
        format: The format. An encoder that doesn't support the rate uses the next higher one.
        sample_rate: Rate of the samples in Hz.
        tags: Texts by the names of `wav_chunks.INFO_IDS`; pcm has no tags.

    Raises:
        OSError: A write failed, here or in any call of the encoder.
    """
    if format is SpeechFormat.PCM:
        return PcmEncoder(file)
    if format is SpeechFormat.WAV:
        return WavEncoder(file, sample_rate=sample_rate, tags=tags)
    return LibavEncoder(file, format=format, sample_rate=sample_rate, tags=tags)


class PcmEncoder:
    """Raw little-endian 16-bit PCM."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, samples: Samples) -> None:
        self._file.write(pcm16(samples))

    def finish(self) -> None:
        """Do nothing: nothing is buffered."""

    def abandon(self) -> None:
        """Do nothing: nothing is open."""


class WavEncoder(PcmEncoder):
    """PCM after a WAV header, whose sizes are corrected at the end if the file is seekable."""

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
        self._rate = sample_rate
        self._resampler: soxr.ResampleStream | None = None
        if rates and sample_rate not in rates:
            import soxr

            self._rate = min((rate for rate in rates if rate > sample_rate), default=max(rates))
            self._resampler = soxr.ResampleStream(sample_rate, self._rate, 1, dtype="float32")
        self._sink = _SeekableSink(file) if file.seekable() else _Sink(file)
        with self._file_errors():
            # a listener at the end of a pipe gets every packet at once
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
        with self._file_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abandon(self) -> None:
        import av

        self._sink.is_quiet = True
        with suppress(av.FFmpegError):  # libav reports the failed write again
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
        with self._file_errors():
            self._container.mux(self._stream.encode(frame))

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Raise the error of the file in place of libav's general one."""
        import av

        try:
            yield
        except av.FFmpegError as error:
            if self._sink.error is not None:
                raise self._sink.error from error
            raise


class _Sink:
    """An open file for libav: keeps the error that libav hides, and drops writes when it is quiet."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_quiet = False
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if not self.is_quiet:
            with self._keep_error():
                self._file.write(data)
        return len(data)

    @contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


class _SeekableSink(_Sink):
    """A seekable file, whose positions count from where the encoder began."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._start = file.tell()

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if self.is_quiet:
            return 0
        with self._keep_error():  # seeking flushes a buffered file
            return self._file.seek(offset + (self._start if whence == SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return 0 if self.is_quiet else self._file.tell() - self._start
