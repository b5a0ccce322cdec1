"""Encode samples as they arrive: wav and pcm by hand, without delay, the other formats by libav."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from io import SEEK_END, SEEK_SET, BytesIO
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import numpy as np

from afterwords.audio.encoding import UNTAGGED, Encoding
from afterwords.audio.wav import Samples, pcm16, wav_header
from afterwords.models import SpeechFormat

if TYPE_CHECKING:
    from av import AudioStream

# container, encoder, sample format, default bits per second (0: variable or fixed)
_LIBAV = {
    SpeechFormat.MP3: ("mp3", "libmp3lame", "fltp", 128_000),
    SpeechFormat.OPUS: ("ogg", "libopus", "flt", 64_000),
    SpeechFormat.WEBM: ("webm", "libopus", "flt", 64_000),
    SpeechFormat.AAC: ("adts", "aac", "fltp", 96_000),
    SpeechFormat.FLAC: ("flac", "flac", "s16", 0),
    SpeechFormat.MULAW: ("mulaw", "pcm_mulaw", "s16", 0),
    SpeechFormat.ALAW: ("alaw", "pcm_alaw", "s16", 0),
}
# Options of a container in a pipe. A Xing header would state a length of 0; the others limit how much audio is held
# back, in µs and ms: 1 s and 5 s by default.
_STREAMED = {"mp3": {"write_xing": "0"}, "ogg": {"page_duration": "40000"}, "webm": {"cluster_time_limit": "40"}}
# LAME's default, 3, takes 40% more time at 128 kbit/s, and has no better signal-to-noise ratio, also at 32 kbit/s.
# libav's default for AAC, twoloop, takes four times as long; at 96 kbit/s, the recordings of the README have 2 to 6 dB
# less signal-to-noise ratio with it, and files are 12 to 15% smaller.
_CODEC_OPTIONS = {"libmp3lame": {"compression_level": "5"}, "aac": {"aac_coder": "fast"}}


@dataclass(frozen=True, slots=True)
class BookInfo:
    """What an audiobook has besides its audio; its AAC is in an MP4 file.

    Attributes:
        duration_s: Length of the audio in seconds.
        chapters: Titles and starts of its chapters, in seconds; WAV files have none.
        cover: A JPEG or PNG file; WAV and Ogg files have none.
    """

    duration_s: float
    chapters: tuple[tuple[str, float], ...]
    cover: bytes | None = field(default=None, repr=False)


class Encoder(Protocol):
    """Encodes samples into a file."""

    def write(self, samples: Samples) -> None:
        """Encode samples of shape (n_samples,)."""

    def finish(self) -> None:
        """Write buffered samples and complete the header."""

    def abandon(self) -> None:
        """Release everything without another write."""


def make_encoder(
    file: BinaryIO, encoding: Encoding, *, sample_rate: int, tags: Mapping[str, str], book: BookInfo | None = None
) -> Encoder:
    """Return an encoder, with the header written.

    Args:
        file: Written from its current position.
        encoding: Its format and bit rate are used.
        sample_rate: Rate of the samples in Hz; the format must have it.
        tags: Texts by the names of `wav_chunks.INFO_IDS`, left out by the formats of `encoding.UNTAGGED`.
        book: Makes the file an audiobook.

    Raises:
        OSError: A write failed, here or in any call of the encoder.
    """
    if encoding.format is SpeechFormat.PCM:
        return PcmEncoder(file)
    if encoding.format is SpeechFormat.WAV:
        return WavEncoder(file, sample_rate=sample_rate, tags=tags)
    return LibavEncoder(file, encoding, sample_rate=sample_rate, tags=tags, book=book)


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
    """Every other format."""

    def __init__(
        self, file: BinaryIO, encoding: Encoding, *, sample_rate: int, tags: Mapping[str, str], book: BookInfo | None
    ) -> None:
        import av

        container, codec, self._sample_format, bit_rate = _LIBAV[encoding.format]
        self._rate = sample_rate
        self._sink = _SeekableSink(file) if file.seekable() else _Sink(file)
        options = {"flush_packets": "1"}  # a listener at the end of a pipe gets every packet at once
        if not file.seekable():
            options |= _STREAMED.get(container, {})
        if container == "mp3" and not tags:
            options["id3v2_version"] = "0"
        if book and container == "adts":
            container, options["brand"] = "mp4", "M4B "
        with self._file_errors():
            self._container = av.open(self._sink, "w", format=container, options=options)
            stream = self._container.add_stream(
                codec,
                rate=sample_rate,
                layout="mono",
                format=self._sample_format,
                bit_rate=encoding.bit_rate or bit_rate,
                options=_CODEC_OPTIONS.get(codec, {}),
            )
            self._stream = cast("AudioStream", stream)
            if encoding.format not in UNTAGGED or book:
                self._container.metadata.update(tags)
            if book:
                self._add_book(book, container)
            else:
                self._container.start_encoding()
        self._n_frames = 0

    def _add_book(self, book: BookInfo, container: str) -> None:
        """Write the header with chapters, and the cover."""
        import av
        from av.stream import Disposition

        metadata = self._container.metadata
        metadata.update({"album": metadata["title"], "genre": "Audiobook"} if "title" in metadata else {})
        if container == "mp4":
            metadata["media_type"] = "2"  # the atom "stik", by which Apple's apps know an audiobook
        starts = [round(start_s * 1000) for _, start_s in book.chapters] + [round(book.duration_s * 1000)]
        if container in {"flac", "ogg"}:  # libav writes none into FLAC, and rounds seconds up in Ogg
            for number, ((title, _), start) in enumerate(zip(book.chapters, starts, strict=False)):
                seconds, ms = divmod(start, 1000)
                clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"
                metadata.update({f"CHAPTER{number:03}": clock, f"CHAPTER{number:03}NAME": title})
        else:
            self._container.set_chapters(
                [
                    {
                        "id": number,
                        "start": starts[number],
                        "end": starts[number + 1],
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": title},
                    }
                    for number, (title, _) in enumerate(book.chapters)
                ]
            )
        if book.cover is None or container == "ogg":
            self._container.start_encoding()
            return
        with av.open(BytesIO(book.cover), "r") as image:
            cover = self._container.add_stream_from_template(image.streams.video[0])
            cover.metadata["comment"] = "Cover (front)"  # libav derives the type of the picture from it
            cover.disposition = Disposition.attached_pic.value  # type: ignore[assignment] # PyAV 16 takes only an int
            self._container.start_encoding()
            packet = next(image.demux(video=0))
            packet.stream, packet.pts, packet.dts = cover, 0, 0
            self._container.mux(packet)

    def write(self, samples: Samples) -> None:
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

    def finish(self) -> None:
        with self._file_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abandon(self) -> None:
        import av

        self._sink.is_quiet = True
        with suppress(av.FFmpegError):  # libav reports the failed write again
            self._container.close()

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
