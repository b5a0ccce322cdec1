"""Decode every kind of file or refuse it; resample; change the speed."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterwords.audio.audio import Audio, decode
from afterwords.audio.decoding import read_tags
from afterwords.audio.effects import change_speed, resample
from afterwords.audio.wav import Samples, canonical_wav
from afterwords.errors import AfterwordsError, FileError, InvalidOptionError, MalformedWavError, RecordingError
from tests.error_codes import has_code

RATE = 24_000


def sine(duration_s: float, *, rate: int = RATE, hz: float = 440) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def pitch(samples: Samples, rate: int) -> float:
    """Return the strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate / len(samples)


def by_soundfile(format: str, subtype: str | None = None, *, samples: Samples | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sine(2, rate=rate) if samples is None else samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def by_libav(
    container: str, codec: str, *, rate: int = 48_000, duration_s: float = 2, tracks: Sequence[Samples] = ()
) -> bytes:
    """Return a stereo file as a phone or a browser records it: a sine, or the given tracks."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        sounds = tracks or [sine(duration_s, rate=rate)]
        streams = [cast("av.AudioStream", output.add_stream(codec, rate=rate, layout="stereo")) for _ in sounds]
        for stream, samples in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(np.tile(samples, (2, 1)), format="fltp", layout="stereo")
            frame.sample_rate = rate
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return file.getvalue()


def silent_video() -> bytes:
    """Return a video without audio."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(stream.encode(None))
    return file.getvalue()


def header(*, channels: int, rate: int, data: bytes) -> bytes:
    """Return a 16-bit WAV file with any header fields."""
    block = 2 * channels
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block % 2**32, block, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", len(data)) + data
    )


FILES = {
    "wav": lambda: by_soundfile("WAV"),
    "wav of doubles": lambda: by_soundfile("WAV", "DOUBLE"),
    "aiff": lambda: by_soundfile("AIFF"),
    "flac": lambda: by_soundfile("FLAC"),
    "mp3": lambda: by_soundfile("MP3"),
    "ogg": lambda: by_soundfile("OGG", "VORBIS"),
    "opus": lambda: by_soundfile("OGG", "OPUS"),
    "m4a": lambda: by_libav("ipod", "aac"),
    "aac": lambda: by_libav("adts", "aac"),
    "webm": lambda: by_libav("webm", "libopus"),
    "mkv of 16 bits": lambda: by_libav("matroska", "pcm_s16le"),
    "mkv of 32 bits": lambda: by_libav("matroska", "pcm_s32le"),
    "mkv of 8 bits": lambda: by_libav("matroska", "pcm_u8"),
}


@pytest.mark.parametrize("kind", FILES)
def test_each_format_is_decoded_at_its_own_rate(kind: str) -> None:
    audio = decode(FILES[kind]())

    assert audio.samples.dtype == np.float32
    assert audio.notices == ()
    # Opus is always decoded at 48 kHz
    assert audio.sample_rate == (48_000 if kind in {"m4a", "aac", "webm", "opus"} or "mkv" in kind else RATE)
    assert audio.duration_s == pytest.approx(2, abs=0.06)  # a codec may add a frame at either end
    assert pitch(audio.samples, audio.sample_rate) == pytest.approx(440, rel=0.01)
    assert np.abs(audio.samples[4800:-4800]).max() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("kind", ["wav", "m4a"])
def test_path_open_file_and_pipe_give_equal_audio(kind: str, tmp_path: Path) -> None:
    data = FILES[kind]()
    path = tmp_path / "memo.raw"  # a misleading extension
    path.write_bytes(data)
    read_end, write_end = os.pipe()
    feeder = threading.Thread(target=feed, args=(write_end, data))
    feeder.start()

    with path.open("rb") as file, os.fdopen(read_end, "rb") as pipe:
        ways = [decode(path), decode(data), decode(file), decode(pipe)]
    feeder.join()

    for audio in ways:
        np.testing.assert_array_equal(audio.samples, ways[0].samples)


def feed(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


def test_channels_are_averaged_and_full_scale_kept() -> None:
    stereo = np.array([[1.5, 1.0], [0.5, 0.0], [-0.5, -0.25]] * 100, np.float32)

    audio = decode(by_soundfile("WAV", "FLOAT", samples=stereo))

    assert audio.samples[:3].tolist() == [1.0, 0.25, -0.375]


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "aac", "webm"])
def test_truncated_file_is_decoded_to_its_end(kind: str) -> None:
    # an Ogg page is the smallest unit, and a sine fills one in more than 2 s
    data = by_soundfile("OGG", "VORBIS", samples=sine(20)) if kind == "ogg" else FILES[kind]()

    audio = decode(data[: len(data) * 6 // 10])

    assert 0.3 < audio.duration_s < 0.9 * decode(data).duration_s
    assert pitch(audio.samples, audio.sample_rate) == pytest.approx(440, rel=0.02)
    if kind not in {"ogg", "aac"}:  # these declare no duration
        assert re.search(r"incomplete: at least 0\.\d s of 2\.\d s \([34]\d %\)", audio.notices[0])


def test_m4a_without_its_index_is_damaged() -> None:
    data = FILES["m4a"]()

    with pytest.raises(RecordingError, match=r"me\.m4a is damaged or incomplete", check=has_code("damaged_audio")):
        decode(data[: len(data) * 6 // 10], name="me.m4a")


@pytest.mark.parametrize("kind", ["m4a", "aac", "mp3", "flac", "opus"])
def test_damaged_part_is_skipped_and_the_rest_decoded(kind: str) -> None:
    data = damaged(LONG[kind]())

    audio = decode(data, name="me")

    assert 7.5 < audio.duration_s < 10.2  # a page of Opus lasts a second
    assert re.match(r"me is damaged or incomplete: .* s of \d+\.\d s \(.*%\)", audio.notices[0])


LONG = {
    "m4a": lambda: by_libav("ipod", "aac", duration_s=10),
    "aac": lambda: by_libav("adts", "aac", duration_s=10),
    "mp3": lambda: by_soundfile("MP3", samples=sine(10)),
    "flac": lambda: by_soundfile("FLAC", samples=sine(10)),
    "opus": lambda: by_soundfile("OGG", "OPUS", samples=sine(10)),
}


def damaged(data: bytes) -> bytes:
    """Overwrite a twentieth of a file in its middle."""
    spoiled = bytearray(data)
    start, size = len(data) // 2, len(data) // 20
    spoiled[start : start + size] = np.random.default_rng(1).bytes(size)
    return bytes(spoiled)


@pytest.mark.parametrize(
    "more",
    [b"TAG" + bytes(125), bytes(5000), b"LYRICSBEGIN" + b"x" * 100 + b"LYRICS200"],
    ids=["id3", "zeros", "lyrics"],
)
@pytest.mark.parametrize("kind", ["mp3", "aac"])
def test_trailing_junk_is_not_reported_as_damage(kind: str, more: bytes) -> None:
    assert decode(FILES[kind]() + more).notices == ()


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_streamed_wav_is_decoded_completely(size: int) -> None:
    data = bytearray(by_soundfile("WAV"))
    struct.pack_into("<I", data, data.index(b"data") + 4, size)

    audio = decode(bytes(data))

    assert (audio.duration_s, audio.notices) == (2.0, ())


def test_undecodable_amr_pauses_are_skipped_and_reported() -> None:
    speech = b"\x3c" + np.random.default_rng(1).bytes(31)
    pause = b"\x44" + bytes(5) + 7 * b"\x7c"  # 8 frames of 20 ms: one noise description, then no data

    audio = decode(b"#!AMR\n" + 3 * (50 * speech + pause), name="me.amr")

    assert audio.duration_s == pytest.approx(3)
    assert "of the codec amrnb that is not supported" in audio.notices[0]
    assert "at least 0.5 s of 3.5 s (14 %)" in audio.notices[0]


def test_unsupported_codec_is_named() -> None:
    data = FILES["webm"]().replace(b"A_OPUS", b"A_XPUS")

    with pytest.raises(
        RecordingError, match=r"me\.webm contains audio in an unknown codec", check=has_code("unsupported_audio")
    ):
        decode(data, name="me.webm")


def test_first_track_with_sound_is_used_and_reported() -> None:
    quiet, loud = np.zeros(96_000, np.float32), sine(2, rate=48_000)

    audio = decode(by_libav("mp4", "aac", tracks=(quiet, loud)), name="me.mp4")
    silent = decode(by_libav("mp4", "aac", tracks=(quiet, quiet)), name="me.mp4")

    assert pitch(audio.samples, audio.sample_rate) == pytest.approx(440, rel=0.01)
    assert audio.notices == ("me.mp4 has 2 audio tracks; track 2 is used, the first with sound.",)
    assert (np.abs(silent.samples).max(), silent.notices) == (0, ())


@pytest.mark.parametrize("kind", ["opus", "ogg", "aac", "mp3", "flac"])
def test_concatenated_files_are_decoded_to_the_end(kind: str) -> None:
    audio = decode(FILES[kind]() * 2)

    assert audio.duration_s == pytest.approx(4, abs=0.12)
    assert audio.notices == ()


def test_concatenated_files_of_two_rates_are_resampled() -> None:
    audio = decode(by_libav("adts", "aac", rate=22_050) + by_libav("adts", "aac", rate=48_000, duration_s=3))

    assert audio.sample_rate == 48_000
    assert audio.duration_s == pytest.approx(5, abs=0.15)
    assert pitch(audio.samples, audio.sample_rate) == pytest.approx(440, rel=0.01)


def test_low_sample_rate_error_has_a_hint() -> None:
    with pytest.raises(
        MalformedWavError, match=r"me\.aac has a sample rate of 7,350 Hz", check=has_code("bad_sample_rate")
    ) as refused:
        decode(by_libav("adts", "aac", rate=7350), name="me.aac")

    assert "WAV file" not in refused.value.message
    assert "48,000 Hz" in refused.value.hint


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "m4a", "webm"])
def test_decoding_stops_at_max_duration(kind: str) -> None:
    with pytest.raises(RecordingError, match="lasts", check=has_code("too_long")) as caught:
        decode(FILES[kind](), name="me", max_duration_s=1.0)

    assert caught.value.code == "too_long"
    assert decode(FILES[kind](), max_duration_s=2.1).duration_s > 1.9


def test_hour_of_silence_is_refused_before_decoding() -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", samplerate=48_000, channels=1, format="FLAC") as flac:
        for _ in range(60):
            flac.write(np.zeros(48_000 * 60, np.int16))
    tracemalloc.start()

    with pytest.raises(RecordingError, match=r"3600\.00 s", check=has_code("too_long")):
        decode(file.getvalue(), max_duration_s=60)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 64 * 1024 * 1024


@pytest.mark.parametrize("channels", [64, 65, 255, 1024])
def test_many_channels_are_averaged_without_much_memory(channels: int) -> None:
    data = header(channels=channels, rate=RATE, data=b"\0\x40" * channels * 2400)
    tracemalloc.start()

    audio = decode(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(audio.samples) == 2400
    np.testing.assert_allclose(audio.samples, 0.5)
    assert peak_bytes < len(data) + 16 * 1024 * 1024


@pytest.mark.parametrize("rate", [1, 7_999, 192_001, 2**31 - 1])
def test_absurd_sample_rate_is_refused(rate: int) -> None:
    with pytest.raises(MalformedWavError, check=has_code("bad_sample_rate")):
        decode(header(channels=1, rate=rate, data=bytes(20_000)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_samples_are_refused(value: float) -> None:
    samples = sine(2)
    samples[100] = value

    with pytest.raises(RecordingError, check=has_code("non_finite_audio")):
        decode(by_soundfile("WAV", "FLOAT", samples=samples))


@pytest.mark.parametrize(
    "data",
    [b"", canonical_wav(np.zeros(0, np.float32), RATE), silent_video()],
    ids=["empty file", "no samples", "no audio track"],
)
def test_file_without_audio_raises_no_audio_error(data: bytes) -> None:
    with pytest.raises(RecordingError, match=r"me\.wav contains no audio", check=has_code("empty_data")):
        decode(data, name="me.wav")


@pytest.mark.parametrize(
    "data",
    [
        b"It was a bright cold day in April.\n" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        bytes(100_000),
        b"RIFF",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    ],
    ids=["text", "png", "zeros", "riff", "script", "playlist"],
)
def test_other_data_is_unsupported(data: bytes) -> None:
    with pytest.raises(RecordingError, check=has_code("unsupported_audio")):
        decode(data)
    with pytest.raises(AfterwordsError):
        read_tags(data)


def test_missing_file_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing\.wav can't be read: there is no such file"):
        decode(tmp_path / "missing.wav")


@pytest.mark.parametrize("read", [decode, read_tags])
def test_folder_is_refused(read: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it is a folder"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this platform")
@pytest.mark.parametrize("read", [decode, read_tags])
def test_fifo_is_refused_without_blocking(read: Any, tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)

    with pytest.raises(FileError, match="it is a pipe or a device"):
        read(fifo)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero on this platform")
def test_device_is_refused() -> None:
    with pytest.raises(FileError, match="it is a pipe or a device"):
        decode(Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "private.wav"
    path.write_bytes(by_soundfile("WAV"))
    path.chmod(0)

    with pytest.raises(FileError, match="you are not allowed to read it"):
        decode(path)


@pytest.mark.parametrize("name", ["nul\0.wav", "x" * 300])
def test_invalid_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        decode(tmp_path / name)


def test_read_error_of_the_disk_is_reported() -> None:
    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(FileError, match="input/output error"):
        decode(Failing(by_soundfile("WAV")))


def test_endless_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # the real limit would take half a gigabyte of memory
    monkeypatch.setattr("afterwords.audio.decoding._PIPE_MAX_BYTES", 1000)

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return len(buffer)

    with pytest.raises(RecordingError, check=has_code("file_too_large")):
        decode(cast("BinaryIO", io.BufferedReader(Endless())))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_raise_only_our_errors(draw: st.DataObject) -> None:
    data = bytearray(DAMAGED[draw.draw(st.sampled_from(sorted(DAMAGED)))])
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, min(len(data), 4000) - 1))] = draw.draw(st.integers(0, 255))

    for read in (decode, read_tags):
        try:
            read(bytes(data))
        except AfterwordsError:
            continue


DAMAGED = {kind: FILES[kind]() for kind in ("wav", "flac", "ogg", "opus", "m4a", "webm")}


# -- effects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_rate", [16_000, 22_050, 48_000])
def test_resampling_keeps_length_and_pitch(to_rate: int) -> None:
    samples = resample(sine(2), RATE, to_rate)

    assert samples.dtype == np.float32
    assert len(samples) == 2 * to_rate
    assert pitch(samples, to_rate) == pytest.approx(440, rel=0.001)


def test_resampling_stays_within_full_scale() -> None:
    square = np.sign(sine(1)).astype(np.float32)

    assert np.abs(resample(square, RATE, 44_100)).max() <= 1


def test_equal_rates_return_the_same_samples() -> None:
    samples = sine(1)

    assert resample(samples, RATE, RATE) is samples


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 0.9, 1.25, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("chunk", [700, 24_000])
def test_speed_changes_duration_and_keeps_pitch(speed: float, chunk: int) -> None:
    samples = sine(3)

    changed = np.concatenate(list(change_speed(in_chunks(samples, chunk), RATE, speed)))

    assert changed.dtype == np.float32
    assert len(changed) == round(len(samples) / speed)
    assert pitch(changed, RATE) == pytest.approx(440, rel=0.01)
    level = np.sqrt(np.mean(changed.reshape(-1, len(changed) // 10)[[1, -1]] ** 2, axis=1))
    np.testing.assert_allclose(level, 0.5 / np.sqrt(2), rtol=0.2)  # neither end is lost


@pytest.mark.parametrize("n_samples", [1, 100, 5_000])
@pytest.mark.parametrize("speed", [0.25, 0.9, 4.0])
def test_speed_of_a_few_samples_keeps_exact_length(n_samples: int, speed: float) -> None:
    changed = list(change_speed([np.full(n_samples, 0.5, np.float32)], RATE, speed))

    assert sum(map(len, changed)) == round(n_samples / speed)


def test_speed_streams_before_the_input_ends() -> None:
    made = []

    def chunks() -> Iterator[Samples]:
        for number in range(10):
            made.append(number)
            yield sine(0.5)

    next(change_speed(chunks(), RATE, 1.5))

    assert len(made) < 3


def test_speed_one_passes_chunks_unchanged() -> None:
    chunks = [sine(0.1), sine(0.2)]

    assert all(out is chunk for out, chunk in zip(change_speed(chunks, RATE, 1.0), chunks, strict=True))


def test_speed_of_no_chunks_yields_no_chunks() -> None:
    assert list(change_speed([], RATE, 2.0)) == []
    assert list(change_speed([np.zeros(0, np.float32)], RATE, 2.0)) == []


@pytest.mark.parametrize("speed", [0.0, -1.0, 0.2499, 4.001, float("nan"), float("inf")])
def test_speed_out_of_range_is_refused_at_once(speed: float) -> None:
    with pytest.raises(InvalidOptionError, match=r"0\.25 to 4"):
        change_speed([], RATE, speed)


def in_chunks(samples: Samples, size: int) -> Iterator[Samples]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


# -- Audio ----------------------------------------------------------------------------------------------------


def test_repr_shows_duration_and_no_samples() -> None:
    assert repr(Audio(sine(1.5), RATE, {"artist": "me"})) == "Audio(1.50 s, 24000 Hz)"


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(np.zeros((2, 2), np.float32), RATE), (np.zeros(2, np.float64), RATE), (np.zeros(2, np.float32), 0)],
    ids=["stereo", "double", "no rate"],
)
def test_invalid_samples_or_rate_raise_value_error(samples: Any, rate: int) -> None:
    with pytest.raises(ValueError, match=r"float32|Hz"):
        Audio(samples, rate)


def test_notebook_shows_a_player_with_all_samples() -> None:
    html = Audio(sine(0.5), RATE, {"title": "<Jane>"})._repr_html_()

    found = re.fullmatch(r'<audio controls src="data:audio/flac;base64,([\w+/=]+)"></audio>', html)
    assert found is not None
    assert decode(base64.b64decode(found[1])).duration_s == pytest.approx(0.5)
