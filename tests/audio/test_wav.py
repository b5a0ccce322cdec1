"""WAV files that must be refused, with their codes, and files that must be read, with their samples."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from afterwords.audio.wav import (
    REFERENCE_MAX_BYTES,
    Samples,
    canonical_wav,
    check_reference_wav,
    pcm16,
    read_wav,
    wav_header,
)
from afterwords.audio.wav_chunks import read_info
from afterwords.errors import AfterwordsError, RecordingError
from tests.error_codes import has_code

RATE = 8_000  # Hz; the lowest supported rate keeps the files small
EXTENSIBLE_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def tone(duration_s: float, rate: int = RATE) -> Samples:
    """Return a sine of 220 Hz at half of full scale, exact in 16 bits."""
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(duration_s * rate)) / rate)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


SIX_SECONDS = tone(6)
PCM = pcm16(SIX_SECONDS)
GOOD = canonical_wav(SIX_SECONDS, RATE)


def chunk(name: bytes, body: bytes, *, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, magic: bytes = b"RIFF", form: bytes = b"WAVE", size: int | None = None) -> bytes:
    body = form + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def fmt(tag: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, align: int | None = None) -> bytes:
    block = channels * bits // 8 % 65536 if align is None else align
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block % 2**32, block, bits))


def extensible(tag: int, bits: int, *, tail: bytes = EXTENSIBLE_TAIL) -> bytes:
    head = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, RATE * bits // 8, bits // 8, bits)
    return chunk(b"fmt ", head + struct.pack("<HHIH", 22, bits, 4, tag) + tail)


def floats(values: Samples) -> bytes:
    return riff(fmt(3, bits=32), chunk(b"data", values.astype("<f4").tobytes()))


def encoded(format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SIX_SECONDS, RATE, format=format, subtype=subtype)
    return file.getvalue()


def with_sample(value: float) -> Samples:
    samples = SIX_SECONDS.copy()
    samples[1000] = value
    return samples


DATA = chunk(b"data", PCM)

BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty file": ("not_wav", lambda: b""),
    "RIFF only": ("malformed_wav", lambda: b"RIFF"),
    "half a magic": ("not_wav", lambda: b"RI"),
    "no chunks": ("no_fmt", riff),
    "data alone": ("no_fmt", lambda: riff(DATA)),
    "cut in the first chunk's header": ("malformed_wav", lambda: GOOD[:15]),
    "cut inside fmt": ("malformed_wav", lambda: GOOD[:30]),
    "fmt of 4 bytes": ("malformed_wav", lambda: riff(chunk(b"fmt ", b"\1\0\1\0"), DATA)),
    "fmt size lies": ("malformed_wav", lambda: riff(chunk(b"fmt ", fmt()[8:], size=2**31), DATA)),
    "header without data": ("truncated", lambda: GOOD[:44]),
    "header without a data chunk": ("truncated", lambda: GOOD[:36]),
    "streaming header without data": ("truncated", lambda: riff(fmt(), chunk(b"data", b"", size=2**32 - 1))),
    "cut at half": ("truncated", lambda: GOOD[: len(GOOD) // 2]),
    "data=0 with 6 s": ("empty_data", lambda: riff(fmt(), chunk(b"data", PCM, size=0))),
    "data=0 with 6 s of zeros": ("empty_data", lambda: riff(fmt(), chunk(b"data", bytes(96_000), size=0))),
    "less than a frame": ("empty_data", lambda: riff(fmt(), chunk(b"data", b"\1"))),
    "data before fmt": ("malformed_wav", lambda: riff(DATA, fmt())),
    "two fmt": ("malformed_wav", lambda: riff(fmt(), fmt(), DATA)),
    "two data": ("malformed_wav", lambda: riff(fmt(), DATA, DATA)),
    "100,000 junk chunks": ("too_many_chunks", lambda: riff(chunk(b"JUNK", b"") * 100_000, fmt(), DATA)),
    "100,000 junk chunks after": ("too_many_chunks", lambda: riff(fmt(), DATA, chunk(b"JUNK", b"") * 100_000)),
    "RIFX": ("not_wav", lambda: riff(fmt(), DATA, magic=b"RIFX")),
    "RF64": ("not_wav", lambda: riff(fmt(), DATA, magic=b"RF64")),
    "W64": ("not_wav", lambda: encoded("W64", "PCM_16")),
    "AVI": ("not_wav", lambda: riff(fmt(), DATA, form=b"AVI ")),
    "ID3 before WAV": ("not_wav", lambda: b"ID3\4\0\0\0\0\0\0" + GOOD),
    "channels 0": ("bad_channels", lambda: riff(fmt(channels=0), DATA)),
    "channels 3": ("bad_channels", lambda: riff(fmt(channels=3), DATA)),
    "channels 255": ("bad_channels", lambda: riff(fmt(channels=255), DATA)),
    "channels 65,535": ("bad_channels", lambda: riff(fmt(channels=65_535), DATA)),
    "rate 0": ("bad_sample_rate", lambda: riff(fmt(rate=0), DATA)),
    "rate 1": ("bad_sample_rate", lambda: riff(fmt(rate=1), DATA)),
    "rate 7,999": ("bad_sample_rate", lambda: riff(fmt(rate=7_999), DATA)),
    "rate 768,000": ("bad_sample_rate", lambda: riff(fmt(rate=768_000), DATA)),
    "rate 2**31-1": ("bad_sample_rate", lambda: riff(fmt(rate=2**31 - 1), DATA)),
    "bits 0": ("bad_bits", lambda: riff(fmt(bits=0), DATA)),
    "bits 12": ("bad_bits", lambda: riff(fmt(bits=12), DATA)),
    "bits 64": ("bad_bits", lambda: riff(fmt(bits=64), DATA)),
    "float of 12 bits": ("bad_bits", lambda: riff(fmt(3, bits=12), DATA)),
    "blockAlign 0": ("bad_block_align", lambda: riff(fmt(align=0), DATA)),
    "blockAlign of stereo": ("bad_block_align", lambda: riff(fmt(align=4), DATA)),
    "A-law": ("unsupported_encoding", lambda: encoded("WAV", "ALAW")),
    "mu-law": ("unsupported_encoding", lambda: encoded("WAV", "ULAW")),
    "ADPCM": ("unsupported_encoding", lambda: encoded("WAV", "MS_ADPCM")),
    "MP3 in WAV": ("unsupported_encoding", lambda: riff(fmt(0x55, bits=0), DATA)),
    "double": ("unsupported_encoding", lambda: encoded("WAV", "DOUBLE")),
    "extensible A-law": ("unsupported_encoding", lambda: riff(extensible(6, 8), DATA)),
    "extensible unknown": ("unsupported_encoding", lambda: riff(extensible(1, 16, tail=bytes(14)), DATA)),
    "extensible without its GUID": ("malformed_wav", lambda: riff(fmt(0xFFFE), DATA)),
    "float NaN": ("non_finite_audio", lambda: floats(with_sample(np.nan))),
    "float Inf": ("non_finite_audio", lambda: floats(with_sample(-np.inf))),
    "all zeros": ("silent_audio", lambda: canonical_wav(np.zeros(48_000, np.float32), RATE)),
    "full-scale DC": ("silent_audio", lambda: canonical_wav(np.ones(48_000, np.float32), RATE)),
    "FLAC": ("not_wav", lambda: encoded("FLAC")),
    "OGG": ("not_wav", lambda: encoded("OGG")),
    "MP3": ("not_wav", lambda: encoded("MP3")),
    "PNG": ("not_wav", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "text": ("not_wav", lambda: b"It was a bright cold day in April."),
    "gzip": ("not_wav", lambda: gzip.compress(GOOD)),
    "4.99 s": ("too_short", lambda: canonical_wav(tone(4.99), RATE)),
    "5 s less a frame": ("too_short", lambda: canonical_wav(tone(5)[1:], RATE)),
    "60 s and a frame": ("too_long", lambda: canonical_wav(np.append(tone(60), np.float32(0)), RATE)),
    "20 MiB + 1": ("file_too_large", lambda: bytes(REFERENCE_MAX_BYTES + 1)),
}

GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "canonical": lambda: GOOD,
    "data=0xFFFFFFFF": lambda: riff(fmt(), chunk(b"data", PCM, size=2**32 - 1), size=2**32 - 1),
    "RIFF size lies": lambda: riff(fmt(), DATA, size=7),
    "chunks around": lambda: riff(chunk(b"JUNK", b"odd"), fmt(), chunk(b"LIST", b"INFO"), DATA, chunk(b"id3 ", b"x")),
    "padded with zeros": lambda: riff(fmt(), DATA) + bytes(4096),
    "a cut chunk at the end": lambda: riff(fmt(), DATA, chunk(b"LIST", b"INFO", size=9999)),
    "stereo": lambda: riff(fmt(channels=2), chunk(b"data", np.repeat(np.frombuffer(PCM, "<i2"), 2).tobytes())),
    "24-bit": lambda: encoded("WAV", "PCM_24"),
    "32-bit": lambda: encoded("WAV", "PCM_32"),
    "float32": lambda: encoded("WAV", "FLOAT"),
    "extensible PCM": lambda: riff(extensible(1, 16), DATA),
    "extensible float": lambda: riff(extensible(3, 32), chunk(b"data", SIX_SECONDS.astype("<f4").tobytes())),
    "WAVEX": lambda: encoded("WAVEX", "PCM_24"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_reference_is_refused_with_its_code(name: str) -> None:
    code, make = BAD[name]

    with pytest.raises(RecordingError) as caught:
        check_reference_wav(make(), source="me.wav")

    assert caught.value.code == code
    assert caught.value.message.startswith("me.wav ")


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_reference_is_read_with_equal_samples(name: str) -> None:
    samples, rate = check_reference_wav(GOOD_FILES[name]())

    assert rate == RATE
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, SIX_SECONDS, atol=1e-6)


def test_eight_bit_samples_are_read_to_their_precision() -> None:
    samples, _ = check_reference_wav(encoded("WAV", "PCM_U8"))

    np.testing.assert_allclose(samples, SIX_SECONDS, atol=1 / 128)


@pytest.mark.parametrize("duration_s", [5, 60])
def test_duration_limits_are_inclusive(duration_s: int) -> None:
    samples, rate = check_reference_wav(canonical_wav(tone(duration_s), RATE))

    assert len(samples) == duration_s * rate


def test_file_of_exactly_20_mib_is_accepted() -> None:
    data = riff(fmt(), chunk(b"JUNK", bytes(REFERENCE_MAX_BYTES - len(GOOD) - 8)), DATA)

    samples, _ = check_reference_wav(data)

    assert len(data) == REFERENCE_MAX_BYTES
    assert len(samples) == 6 * RATE


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_rates_from_8_to_192_khz_are_accepted(rate: int) -> None:
    samples, found = read_wav(canonical_wav(tone(0.1, rate), rate))

    assert found == rate
    np.testing.assert_array_equal(samples, tone(0.1, rate))


def test_stereo_channels_are_averaged() -> None:
    frames = np.array([[16384, 0], [0, -32768]], "<i2")

    samples, _ = read_wav(riff(fmt(channels=2), chunk(b"data", frames.tobytes())))

    assert samples.tolist() == [0.25, -0.5]


def test_floats_above_full_scale_are_clipped() -> None:
    samples, _ = read_wav(floats(np.array([2.0, -3e38, 0.5], np.float32)))

    assert samples.tolist() == [1.0, -1.0, 0.5]


def test_voice_with_constant_offset_is_not_silent() -> None:
    samples, _ = check_reference_wav(canonical_wav(0.4 + 0.5 * SIX_SECONDS, RATE))

    assert len(samples) == len(SIX_SECONDS)


@given(st.binary(min_size=2, max_size=400).map(lambda raw: raw[: len(raw) // 2 * 2]))
def test_canonical_file_round_trips_byte_for_byte(pcm: bytes) -> None:
    data = wav_header(24_000, n_frames=len(pcm) // 2) + pcm

    assert canonical_wav(*read_wav(data)) == data


def test_canonical_file_has_a_header_of_44_bytes() -> None:
    assert len(GOOD) == 44 + 2 * len(SIX_SECONDS)
    assert soundfile.info(io.BytesIO(GOOD)).subtype == "PCM_16"


def test_full_scale_is_clipped_and_not_wrapped() -> None:
    assert np.frombuffer(pcm16(np.array([1.0, -1.0, 3e38], np.float32)), "<i2").tolist() == [32767, -32768, 32767]


def test_non_finite_samples_are_never_written() -> None:
    with pytest.raises(RecordingError, check=has_code("non_finite_audio")):
        canonical_wav(with_sample(np.nan), RATE)


def test_header_of_4_gib_declares_unknown_size() -> None:
    assert wav_header(RATE, n_frames=2**31) == wav_header(RATE, n_frames=None)


@pytest.mark.parametrize(
    "data",
    [
        riff(fmt(), chunk(b"data", bytes(2), size=2**32 - 2)),
        riff(fmt(), chunk(b"data", bytes(2), size=2**32 - 1)),
        riff(chunk(b"JUNK", b"", size=2**32 - 1)),
        riff(chunk(b"fmt ", b"", size=2**32 - 1)),
        riff(chunk(b"JUNK", b"") * 100_000),
        riff(fmt(channels=65_535, rate=2**32 - 1), DATA),
        canonical_wav(np.zeros(60 * RATE + 1, np.float32), RATE),
    ],
    ids=["data lies", "data streams", "junk lies", "fmt lies", "junk", "wide", "too long"],
)
def test_validation_allocates_little_before_decoding(data: bytes) -> None:
    tracemalloc.start()

    with pytest.raises(RecordingError):
        check_reference_wav(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 256 * 1024


SHORT = riff(fmt(3, channels=2, bits=32), chunk(b"LIST", b"INFO"), chunk(b"data", bytes(64)), chunk(b"JUNK", b"ab"))


@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVE" + fmt()]))
def test_random_bytes_raise_only_our_errors(noise: bytes, head: bytes) -> None:
    judge(head + noise)


@given(st.data())
def test_mutated_files_raise_only_our_errors(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(st.sampled_from([SHORT, GOOD[:44] + bytes(80_000)])))
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, min(len(data), 120) - 1))] = draw.draw(st.integers(0, 255))

    judge(bytes(data[: draw.draw(st.integers(0, len(data)))]))


def judge(data: bytes) -> None:
    """Read a file in every way: each gives finite samples or one of our errors."""
    for way in (read_wav, check_reference_wav):
        try:
            samples, _ = way(data)
        except AfterwordsError:
            continue
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1
    try:
        read_info(io.BytesIO(data))
    except AfterwordsError:
        return
