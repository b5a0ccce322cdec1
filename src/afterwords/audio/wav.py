"""WAV files: validate an untrusted file, and write the one form that is stored.

Libraries that play WAV files are no validators: they accept other formats and trust declared sizes. Here every size is
checked against the bytes that are present, the header is validated before a sample is decoded, and nothing larger than
the file is allocated. Uploads, pushed voices and job audio pass through this module.

Source: Microsoft, "Multiple channel audio data and WAVE files"; EBU Tech 3285 for the chunk layout.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import SEEK_END, BytesIO

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav_chunks import (
    CHUNK_HEADER_BYTES,
    INFO_IDS,
    RIFF_HEADER_BYTES,
    UNKNOWN_SIZE,
    Readable,
    WavChunk,
    check_magic,
    chunks,
    parse_fmt,
)
from afterwords.errors import MalformedWavError, RecordingError

Samples = NDArray[np.float32]
"""Shape (n_samples,), float32 mono in [-1, 1]."""

SAMPLE_RATE_MIN, SAMPLE_RATE_MAX = 8_000, 192_000  # Hz
REFERENCE_MIN_S, REFERENCE_MAX_S = 5, 60
REFERENCE_MAX_BYTES = 20 * 1024 * 1024
SILENCE_PEAK_DB = -60.0  # dBFS; the lowest 32 steps of a 16-bit recording
_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_EXTENSIBLE_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # ends the GUID of every classic encoding
_ENCODINGS = {0x0002: "ADPCM", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "IMA ADPCM", 0x0050: "MPEG", 0x0055: "MP3"}
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32,)}
_PCM16_SCALE = 32768.0
BLOCK_FRAMES = 65_536
FMT_MAX_BYTES = 64  # a fmt chunk has at most 40


@dataclass(frozen=True, slots=True)
class _Format:
    """A validated fmt chunk."""

    encoding: int
    channels: int
    sample_rate: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.bits // 8


# -- reading --------------------------------------------------------------------------------------------------


def read_wav(data: bytes, *, source: str = "the file") -> tuple[Samples, int]:
    """Read a WAV file of 8, 16, 24 or 32-bit PCM or 32-bit float, mono or stereo, 8 to 192 kHz.

    Args:
        data: The whole file. It must hold at least as much as it declares; a data size of 0xFFFFFFFF, as streaming
            programs write it, means the rest of the file.
        source: Name of the file in error messages.

    Returns:
        Samples of shape (n_samples,), float32 in [-1, 1], channels averaged, floats beyond full scale clipped; and
        the sample rate in Hz.

    Raises:
        MalformedWavError: The file is invalid; the `code` says in which way.
        RecordingError: Float samples are NaN or infinite.
    """
    layout, sound = _find_sound(BytesIO(data), source)
    return _decode(data, layout, sound, source), layout.sample_rate


def check_reference_wav(data: bytes, *, source: str = "the recording") -> tuple[Samples, int]:
    """Read a WAV file to clone a voice from: 5 to 60 s, at most 20 MiB, not silent.

    Size and length are checked before a sample is decoded, the length by the frames that are present.

    Returns:
        As for `read_wav`.

    Raises:
        RecordingError: A limit is exceeded, or the file holds only silence or a constant offset.
        MalformedWavError, RecordingError: As for `read_wav`.
    """
    if len(data) > REFERENCE_MAX_BYTES:
        raise RecordingError.too_large(source, size_bytes=len(data), maximum_bytes=REFERENCE_MAX_BYTES)
    layout, sound = _find_sound(BytesIO(data), source)
    n_frames = sound.present_bytes // layout.frame_bytes
    duration_s = n_frames / layout.sample_rate
    if n_frames < REFERENCE_MIN_S * layout.sample_rate:
        raise RecordingError.too_short(source, duration_s=duration_s, minimum_s=REFERENCE_MIN_S)
    if n_frames > REFERENCE_MAX_S * layout.sample_rate:
        raise RecordingError.too_long(source, duration_s=duration_s, maximum_s=REFERENCE_MAX_S)
    samples = _decode(data, layout, sound, source)
    check_not_silent(samples, source)
    return samples, layout.sample_rate


@dataclass(frozen=True, slots=True)
class WavBlocks:
    """The samples of an open WAV file in blocks, read again on each iteration.

    Attributes:
        sample_rate: In Hz.
        n_frames: At least 1.
    """

    sample_rate: int
    n_frames: int
    _file: Readable
    _layout: _Format
    _start: int
    _source: str

    @property
    def is_pcm16_mono(self) -> bool:
        """Whether the samples are stored as mono 16-bit PCM."""
        return self._layout.bits == 16 and self._layout.channels == 1

    def __iter__(self) -> Iterator[Samples]:
        """Yield samples of shape (n_samples,), as `read_wav` returns them.

        Raises:
            RecordingError: Float samples are NaN or infinite.
        """
        step = BLOCK_FRAMES * self._layout.frame_bytes
        end = self._start + self.n_frames * self._layout.frame_bytes
        for place in range(self._start, end, step):
            self._file.seek(place)
            yield _samples(memoryview(self._file.read(min(step, end - place))), self._layout, self._source)


def wav_blocks(file: Readable, *, source: str = "the file") -> WavBlocks:
    """Validate an open WAV file as `read_wav` does; samples are read later, block by block.

    Raises:
        MalformedWavError: As for `read_wav`.
    """
    layout, sound = _find_sound(file, source)
    n_frames = sound.present_bytes // layout.frame_bytes
    return WavBlocks(layout.sample_rate, n_frames, file, layout, sound.start, source)


def _find_sound(file: Readable, source: str) -> tuple[_Format, WavChunk]:
    """Return the validated format and the data chunk, which holds at least one frame."""
    length = file.seek(0, SEEK_END)
    file.seek(0)
    check_magic(file.read(RIFF_HEADER_BYTES), source)
    if RIFF_HEADER_BYTES < length < RIFF_HEADER_BYTES + CHUNK_HEADER_BYTES:
        raise MalformedWavError.for_source(source, "it ends inside its first chunk")
    fmt = sound = None
    for chunk in chunks(file, source):
        if chunk.id == b"fmt ":
            if fmt is not None:
                raise MalformedWavError.for_source(source, "it has two fmt chunks")
            if chunk.present_bytes < chunk.size_bytes:
                raise MalformedWavError.for_source(source, "it ends inside its fmt chunk")
            fmt = chunk
        elif chunk.id == b"data":
            if sound is not None:
                raise MalformedWavError.for_source(source, "it has two data chunks")
            sound = chunk
            if chunk.size_bytes == 0:  # samples may follow, which are no chunks
                break
    if fmt is None:
        raise MalformedWavError.for_source(source, "it has no fmt chunk", code="no_fmt")
    if sound is not None and sound.start < fmt.start:
        raise MalformedWavError.for_source(source, "its data comes before its fmt chunk")
    file.seek(fmt.start)
    layout = _parse_format(file.read(min(fmt.size_bytes, FMT_MAX_BYTES)), source)
    if sound is None:
        raise MalformedWavError.for_source(source, "it ends before its audio data", code="truncated")
    if sound.size_bytes == 0:
        raise MalformedWavError.for_source(source, "its data chunk is empty", code="empty_data")
    is_cut = sound.present_bytes < sound.size_bytes and sound.size_bytes != UNKNOWN_SIZE
    if is_cut or sound.present_bytes == 0:
        raise MalformedWavError.for_source(
            source,
            f"it declares {sound.size_bytes:,} bytes of audio but contains {sound.present_bytes:,}",
            code="truncated",
        )
    if sound.present_bytes < layout.frame_bytes:
        raise MalformedWavError.for_source(source, "its data chunk is empty", code="empty_data")
    return layout, sound


def _parse_format(fmt: bytes, source: str) -> _Format:
    if len(fmt) < 16:
        raise MalformedWavError.for_source(source, f"its fmt chunk has {len(fmt)} bytes, but needs 16")
    encoding, channels, sample_rate, _, block_align, bits = parse_fmt(fmt)
    if encoding == _EXTENSIBLE:
        if len(fmt) < 40:
            raise MalformedWavError.for_source(source, f"its extensible fmt chunk has {len(fmt)} bytes, but needs 40")
        if fmt[26:40] == _EXTENSIBLE_TAIL:
            encoding = int.from_bytes(fmt[24:26], "little")
    if encoding not in _BITS:
        raise MalformedWavError.for_source(
            source,
            f"its encoding is {_ENCODINGS.get(encoding, f'format 0x{encoding:04X}')}; "
            "PCM and 32-bit float are supported",
            code="unsupported_encoding",
        )
    if channels not in (1, 2):
        raise MalformedWavError.for_source(
            source, f"it has {channels:,} channels; 1 or 2 are supported", code="bad_channels"
        )
    check_sample_rate(sample_rate, source)
    if encoding == _FLOAT and bits in (16, 24, 64):
        raise MalformedWavError.for_source(
            source,
            f"its encoding is {bits}-bit float; PCM and 32-bit float are supported",
            code="unsupported_encoding",
        )
    if bits not in _BITS[encoding]:
        raise MalformedWavError.for_source(
            source, f"it has {bits} bits per sample; 8, 16, 24 and 32 are supported", code="bad_bits"
        )
    layout = _Format(encoding, channels, sample_rate, bits)
    if block_align != layout.frame_bytes:
        raise MalformedWavError.for_source(
            source,
            f"it has {block_align} bytes per frame, but its format needs {layout.frame_bytes}",
            code="bad_block_align",
        )
    return layout


def check_sample_rate(sample_rate: int, source: str) -> None:
    """Raise MalformedWavError for a rate in Hz that is not supported."""
    if not SAMPLE_RATE_MIN <= sample_rate <= SAMPLE_RATE_MAX:
        raise MalformedWavError(
            f"{source} has a sample rate of {sample_rate:,} Hz; {SAMPLE_RATE_MIN:,} to {SAMPLE_RATE_MAX:,} Hz are "
            "supported.",
            code="bad_sample_rate",
        )


def _decode(data: bytes, layout: _Format, sound: WavChunk, source: str) -> Samples:
    n_bytes = sound.present_bytes // layout.frame_bytes * layout.frame_bytes
    return _samples(memoryview(data)[sound.start : sound.start + n_bytes], layout, source)


def _samples(raw: memoryview, layout: _Format, source: str) -> Samples:
    if layout.encoding == _FLOAT:
        samples = np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise RecordingError.non_finite(source)
        samples = np.clip(samples, np.float32(-1), np.float32(1))
    elif layout.bits == 8:
        samples = (np.frombuffer(raw, "u1").astype(np.float32) - 128) / np.float32(128)
    elif layout.bits == 16:
        samples = float_from_pcm16(raw)
    elif layout.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), "u1")
        wide[:, 1:] = np.frombuffer(raw, "u1").reshape(-1, 3)  # the upper three of four bytes
        samples = wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    else:
        samples = np.frombuffer(raw, "<i4").astype(np.float32) / np.float32(2**31)
    if layout.channels == 2:
        samples = (samples[0::2] + samples[1::2]) * np.float32(0.5)
    return samples


def peak_db(samples: Samples) -> float:
    """Return the peak of samples in dBFS without their constant offset; at least -120."""
    offset = float(samples.mean(dtype=np.float64))
    peak = max(float(samples.max()) - offset, offset - float(samples.min()))
    return 20 * math.log10(max(peak, 1e-6))


def check_not_silent(samples: Samples, source: str) -> None:
    """Raise RecordingError if samples hold only silence or a constant offset."""
    if (peak := peak_db(samples)) < SILENCE_PEAK_DB:
        raise RecordingError(
            f"{source} is silent: its peak is {peak:.0f} dBFS without any constant offset.",
            code="silent_audio",
        )


# -- writing --------------------------------------------------------------------------------------------------


def canonical_wav(samples: Samples, sample_rate: int) -> bytes:
    """Encode the form in which recordings are stored and sent: mono, 16-bit PCM, a header of 44 bytes, no tags.

    Reading such a file with `read_wav` and encoding it again gives the same bytes.

    Raises:
        RecordingError: Samples are NaN or infinite.
    """
    return wav_header(sample_rate, n_frames=len(samples)) + pcm16(samples)


def wav_header(sample_rate: int, *, n_frames: int | None, tags: Mapping[str, str] | None = None) -> bytes:
    """Encode the header of a mono 16-bit WAV file. Its length depends on the tags only.

    Args:
        sample_rate: In Hz.
        n_frames: Number of frames that follow; None if unknown, as in streaming.
        tags: Texts of a LIST/INFO chunk by the names of `INFO_IDS`.
    """
    entries = b""
    for name, text in (tags or {}).items():
        value = text.encode() + b"\0"
        entries += struct.pack("<4sI", INFO_IDS[name], len(value)) + value + b"\0" * (len(value) % 2)
    info = struct.pack("<4sI4s", b"LIST", 4 + len(entries), b"INFO") + entries if entries else b""
    data_bytes = UNKNOWN_SIZE if n_frames is None else 2 * n_frames
    riff_bytes = 4 + 24 + len(info) + CHUNK_HEADER_BYTES + data_bytes
    if riff_bytes > UNKNOWN_SIZE:  # also above 4 GiB, which the format can't declare
        data_bytes = riff_bytes = UNKNOWN_SIZE
    head = struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE")
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, _PCM, 1, sample_rate, 2 * sample_rate, 2, 16)
    return head + fmt + info + struct.pack("<4sI", b"data", data_bytes)


def float_from_pcm16(data: bytes | memoryview) -> Samples:
    """Return 16-bit little-endian PCM as samples in [-1, 1), shape (n_samples,)."""
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_PCM16_SCALE)


def pcm16(samples: Samples) -> bytes:
    """Encode samples in [-1, 1] as little-endian 16-bit PCM, rounded and clipped at full scale.

    Raises:
        RecordingError: Samples are NaN or infinite.
    """
    if not np.isfinite(samples).all():
        raise RecordingError.non_finite("the audio")
    steps = np.rint(np.clip(samples, -1.0, 1.0) * _PCM16_SCALE)
    pcm: NDArray[np.int16] = np.minimum(steps, _PCM16_SCALE - 1).astype("<i2")
    return pcm.tobytes()
