"""Write every format with its tags, atomically to files, and to pipes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
import soundfile

from afterwords.audio.audio import Audio, decode
from afterwords.audio.decoding import read_tags
from afterwords.audio.encoding import SAMPLE_RATES, UNTAGGED, Encoding
from afterwords.audio.output import format_of
from afterwords.audio.wav import Samples, canonical_wav, float_from_pcm16, pcm16, read_wav
from afterwords.audio.writer import AudioWriter
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError, RecordingError, StorageFullError
from afterwords.models import SpeechFormat
from tests.error_codes import has_code

RATE = 24_000
RAW = {SpeechFormat.PCM: "s16le", SpeechFormat.MULAW: "mulaw", SpeechFormat.ALAW: "alaw"}
CONTAINERS = [format for format in SpeechFormat if format not in RAW]
WRITERS = [SpeechFormat.WAV, SpeechFormat.PCM, SpeechFormat.FLAC, SpeechFormat.MP3, SpeechFormat.WEBM]
"""One format of each kind: by hand, and by a container of libav that seeks back or doesn't."""
TAGGED = [format for format in SpeechFormat if format not in UNTAGGED]
DELAY = {SpeechFormat.MP3: 2 * 1152, SpeechFormat.AAC: 2 * 1024}
"""Samples that an encoder without a length in its header adds at most."""
TAGS = {
    "title": "Synthetic speech",
    "artist": "Zoë; the \U0001f399",
    "comment": 'Synthetic speech. digitalSourceType=http://x/trained; voice="a=b; c"',
    "software": "afterwords 0.1.0",
    "date": "2026-01-31",
}

on_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
on_linux = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this platform")


def sine(duration_s: float, rate: int = RATE) -> Samples:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def chunks(samples: Samples, size: int = 3_700) -> Iterator[Samples]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def written(format: SpeechFormat, rate: int = RATE, *, duration_s: float = 2) -> bytes:
    return Audio(sine(duration_s, rate), rate, TAGS).to_bytes(format)


def as_wav(data: bytes, format: SpeechFormat) -> Audio:
    """Decode written bytes; libav must know what raw ones are."""
    if (raw := RAW.get(format)) is None:
        return decode(data)
    rate = RATE if format is SpeechFormat.PCM else 8_000
    with av.open(io.BytesIO(data), "r", format=raw, options={"sample_rate": str(rate)}) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return Audio(float_from_pcm16(np.concatenate(frames).tobytes()), rate)


# -- formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", SpeechFormat)
def test_each_format_round_trips_length_and_sound(format: SpeechFormat) -> None:
    audio = as_wav(written(format), format)

    spectrum = np.abs(np.fft.rfft(audio.samples))
    assert audio.sample_rate == {"opus": 48_000, "webm": 48_000, "mulaw": 8_000, "alaw": 8_000}.get(format, RATE)
    assert audio.duration_s == pytest.approx(2, abs=0.01 if format != "aac" else DELAY[format] / RATE)
    assert spectrum.argmax() / audio.duration_s == pytest.approx(440, rel=0.01)
    assert np.abs(audio.samples[2400:-4800]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("format", ["wav", "flac", "pcm"])
def test_lossless_formats_keep_every_16_bit_step(format: str) -> None:
    audio = as_wav(written(SpeechFormat(format)), SpeechFormat(format))

    assert pcm16(audio.samples) == pcm16(sine(2))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("format", CONTAINERS)
def test_every_usual_rate_can_be_written(format: SpeechFormat, rate: int) -> None:
    audio = decode(written(format, rate))

    assert audio.duration_s == pytest.approx(2, abs=0.01 if format != "aac" else DELAY[format] / min(rate, 48_000))


ENCODINGS = [
    *(Encoding(SpeechFormat(format), rate) for format in ("wav", "pcm", "flac", "mp3", "aac") for rate in SAMPLE_RATES),
    *(Encoding(SpeechFormat.MP3, 44_100, bit_rate) for bit_rate in (32_000, 64_000, 192_000)),
    *(
        Encoding(SpeechFormat(format), 48_000, bit_rate)
        for format in ("opus", "webm")
        for bit_rate in (32_000, 192_000)
    ),
    Encoding(SpeechFormat.MULAW),
    Encoding(SpeechFormat.ALAW),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_sine_in_chunks_has_no_gap_in_any_encoding(encoding: Encoding) -> None:
    pipe = Pipe()

    with AudioWriter(pipe, format=encoding, sample_rate=RATE, tags=TAGS) as writer:
        for chunk in chunks(sine(1), 1_200):
            writer.write(chunk)

    samples, rate = decoded(pipe.getvalue(), encoding)
    assert rate == encoding.sample_rate or encoding.format in ("mulaw", "alaw")
    assert len(samples) == pytest.approx(rate, abs=DELAY.get(encoding.format, 1))
    middle = samples[int(0.4 * rate) : int(0.9 * rate)].astype(float)
    basis = np.exp(2j * np.pi * 440 * np.arange(len(middle)) / rate)
    level = 2 * np.abs(np.mean(middle * basis))
    rest = middle - np.real(2 * np.mean(middle * basis) * np.conj(basis))
    assert level == pytest.approx(0.5, abs=0.03)
    assert np.abs(rest).max() < 0.05  # a gap or a click of one sample would be 0.5


def decoded(data: bytes, encoding: Encoding) -> tuple[Samples, int]:
    """Decode with libav, without the corrections of `afterwords.decode`."""
    raw = RAW.get(encoding.format)
    rate = {"sample_rate": str(encoding.sample_rate or 8_000)} if raw else {}
    with av.open(io.BytesIO(data), "r", format=raw, options=rate) as container:
        frames = list(container.decode(audio=0))
    parts = [frame.to_ndarray().reshape(-1).astype(np.float32) for frame in frames]
    scale = 1 / 2**15 if frames[0].format.name.startswith("s16") else 1
    return np.concatenate(parts) * np.float32(scale), frames[0].sample_rate


@pytest.mark.parametrize("format", ["mp3", "opus", "webm", "aac"])
def test_pipe_receives_sound_after_a_tenth_of_a_second(format: str) -> None:
    pipe = Pipe()

    with AudioWriter(pipe, format=format, sample_rate=RATE) as writer:
        header = len(pipe.getvalue())
        writer.write(sine(0.1))
        assert len(pipe.getvalue()) > header + 200


def test_streamed_mp3_without_tags_is_frames_only() -> None:
    pipe = Pipe()

    with AudioWriter(pipe, format="mp3", sample_rate=RATE) as writer:
        writer.write(sine(1))

    data = pipe.getvalue()
    assert data[:2] == b"\xff\xf3"  # the first frame of MPEG-2 layer III
    assert b"Xing" not in data
    assert b"Info" not in data


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (("opus", 44_100), "8,000, 16,000, 24,000, 48,000 Hz for opus"),
        (("mulaw", 16_000), "one of 8,000 Hz for mulaw"),
        (("wav", 11_025), "8,000, 16,000, 22,050, 24,000, 32,000, 44,100, 48,000 Hz for wav"),
        (("mp3", 44_100, 320_000), "32,000 to 192,000 bit/s for mp3"),
        (("mp3", 24_000, 192_000), "32,000 to 160,000 bit/s for mp3"),
        (("flac", None, 64_000), "omitted for flac"),
    ],
)
def test_rate_that_a_format_lacks_is_refused(options: tuple[Any, ...], allowed: str) -> None:
    with pytest.raises(InvalidOptionError, match=allowed):
        Encoding(SpeechFormat(options[0]), *options[1:])


def test_wav_without_tags_equals_canonical_wav() -> None:
    assert Audio(sine(1), RATE).to_bytes() == canonical_wav(sine(1), RATE)


@pytest.mark.parametrize("format", SpeechFormat)
def test_chunked_and_whole_writes_give_equal_files(format: SpeechFormat) -> None:
    file = io.BytesIO()

    with AudioWriter(file, format=format, sample_rate=RATE, tags=TAGS) as writer:
        for chunk in chunks(sine(2)):
            writer.write(chunk)

    assert writer.duration_s == 2
    np.testing.assert_array_equal(as_wav(file.getvalue(), format).samples, as_wav(written(format), format).samples)


@pytest.mark.parametrize("format", SpeechFormat)
def test_no_samples_write_a_file_without_sound(format: SpeechFormat) -> None:
    data = Audio(np.zeros(0, np.float32), RATE).to_bytes(format)

    assert len(data) < 10_000


@pytest.mark.parametrize("format", SpeechFormat)
def test_samples_above_full_scale_are_clipped(format: SpeechFormat) -> None:
    loud = Audio(4 * sine(1), RATE).to_bytes(format)

    assert np.sqrt(np.mean(as_wav(loud, format).samples ** 2)) > 0.8  # wrapped samples would give noise near 0.58


def test_non_finite_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, check=has_code("non_finite_audio")):
        Audio(np.array([0, np.nan], np.float32), RATE).save(tmp_path / "a.mp3")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.WAV", "wav"),
        ("a.mp3", "mp3"),
        ("a.ogg", "opus"),
        ("a.b.opus", "opus"),
        ("a.raw", "pcm"),
        ("a.ulaw", "mulaw"),
    ],
)
def test_format_follows_the_extension(name: str, format: str) -> None:
    assert format_of(Path(name)) == format


@pytest.mark.parametrize("name", ["hello.aif", "hello", ".wav"])
def test_unknown_extension_is_refused_before_writing(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="supported: wav, mp3, opus, flac, pcm", check=has_code("invalid_format")
    ):
        Audio(sine(1), RATE).save(tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_format_argument_wins_over_the_extension(tmp_path: Path) -> None:
    path = Audio(sine(1), RATE).save(str(tmp_path / "hello.bin"), format="FLAC")  # type: ignore[arg-type]

    assert soundfile.info(path).format == "FLAC"


def test_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="aiff", check=has_code("invalid_format")):
        Audio(sine(1), RATE).to_bytes("aiff")  # type: ignore[arg-type]


# -- tags -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", TAGGED)
def test_tags_round_trip_in_each_container(format: SpeechFormat, tmp_path: Path) -> None:
    path = Audio(sine(1), RATE, TAGS).save(tmp_path / f"hello.{format}")

    assert read_tags(path) == TAGS
    assert read_tags(path.read_bytes()) == TAGS


@pytest.mark.parametrize("format", CONTAINERS)
def test_file_without_tags_has_none(format: SpeechFormat) -> None:
    assert read_tags(Audio(sine(1), RATE).to_bytes(format)) == {}


@pytest.mark.parametrize(("format", "magic"), [("mp3", b"ID3"), ("flac", b"fLaC"), ("opus", b"OggS"), ("wav", b"RIFF")])
def test_tags_are_in_the_places_that_players_read(format: str, magic: bytes) -> None:
    data = written(SpeechFormat(format))

    assert data.startswith(magic)
    assert TAGS["software"].encode() in data[:2000]


@pytest.mark.parametrize("format", TAGGED)
def test_unencodable_characters_are_dropped_from_tags(format: SpeechFormat) -> None:
    tags = {"title": "a\0b\ud800c", "artist": "", "comment": "\0"}

    assert read_tags(Audio(sine(1), RATE, tags).to_bytes(format)) == {"title": "ab?c"}


def test_unknown_tag_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="mood"):
        Audio(sine(1), RATE, {"mood": "sad"}).to_bytes()


# -- files ----------------------------------------------------------------------------------------------------


@on_posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_new_file_has_the_permissions_of_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        path = Audio(sine(1), RATE).save(tmp_path / "hello.wav")
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


@on_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_replaced_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "hello.wav"
    path.touch()
    path.chmod(mode)

    Audio(sine(1), RATE).save(path)

    assert stat.S_IMODE(path.stat().st_mode) == mode


@on_posix
def test_part_file_is_private_regardless_of_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with AudioWriter(tmp_path / "hello.wav", sample_rate=RATE) as writer:
            writer.write(sine(1))
            (part,) = tmp_path.iterdir()
            assert stat.S_IMODE(part.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "hello.wav"

    with AudioWriter(path, sample_rate=RATE) as writer:
        writer.write(sine(1))
        assert not path.exists()
        assert [found.suffix for found in tmp_path.iterdir()] == [".part"]

    with wave.open(str(path)) as file:
        assert file.getnframes() == RATE


@pytest.mark.parametrize("format", SpeechFormat)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failure_keeps_the_existing_file(format: SpeechFormat, failure: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / f"hello.{format}"
    path.write_bytes(b"before")

    with pytest.raises(failure), AudioWriter(path, sample_rate=RATE) as writer:  # noqa: PT012 - the whole block is under test
        writer.write(sine(1))
        raise failure

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@on_posix
def test_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"before")
    (tmp_path / "link.wav").symlink_to("real.wav")

    Audio(sine(1), RATE).save(tmp_path / "link.wav")

    assert (tmp_path / "link.wav").is_symlink()
    assert decode(tmp_path / "real.wav").duration_s == 1


def test_long_name_leaves_room_for_the_part(tmp_path: Path) -> None:
    path = Audio(sine(1), RATE).save(tmp_path / ("ü" * 120 + ".wav"))

    assert decode(path).duration_s == 1


def test_missing_folder_is_reported_on_entering(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match="there is no folder", check=has_code("unwritable_output")),
        AudioWriter(tmp_path / "none" / "hello.wav", sample_rate=RATE),
    ):
        pytest.fail("the block must not begin")


@pytest.mark.parametrize("name", ["hello.wav", "file.txt/hello.wav", "nul\0.wav", "x" * 300 + ".wav"])
def test_invalid_output_path_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "hello.wav").mkdir()
    (tmp_path / "file.txt").touch()

    with pytest.raises(FileError, check=has_code("unwritable_output")):
        Audio(sine(1), RATE).save(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_and_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.wav").write_bytes(b"before")
    (tmp_path / "kept.wav").chmod(0o400)
    (tmp_path / "closed").mkdir(mode=0o500)

    with pytest.raises(FileError, match="it is read-only", check=has_code("unwritable_output")):
        Audio(sine(1), RATE).save(tmp_path / "kept.wav")
    with pytest.raises(FileError, match="you are not allowed to write there", check=has_code("unwritable_output")):
        Audio(sine(1), RATE).save(tmp_path / "closed" / "hello.wav")


@pytest.mark.parametrize("rate", [0, -1, 2**31])
def test_invalid_sample_rate_is_refused(rate: int) -> None:
    with pytest.raises(InvalidOptionError):
        AudioWriter(io.BytesIO(), format="wav", sample_rate=rate)


# -- full disks -----------------------------------------------------------------------------------------------

FILL = """
import resource, sys
from pathlib import Path
import numpy as np
from afterwords.audio.audio import Audio
from afterwords.errors import StorageFullError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
noise = np.random.default_rng(1).uniform(-0.5, 0.5, 480_000).astype(np.float32)
try:
    Audio(noise, 24_000).save(Path(sys.argv[1]))
except StorageFullError as error:
    print(error.code)
"""


@on_posix
@pytest.mark.parametrize("limit_bytes", [1, 40_000], ids=["at the start", "on the way"])
@pytest.mark.parametrize("format", WRITERS)
def test_full_disk_error_keeps_the_existing_file(format: SpeechFormat, limit_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / f"hello.{format}"
    path.write_bytes(b"before")

    done = subprocess.run(
        [sys.executable, "-c", FILL, path, str(limit_bytes)], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout, done.stderr, done.returncode) == ("storage_full\n", "", 0)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@on_linux
@pytest.mark.parametrize("format", SpeechFormat)
def test_full_device_is_reported_and_not_replaced(format: SpeechFormat) -> None:
    with pytest.raises(StorageFullError, match="/dev/full"):
        Audio(sine(0.01), RATE).save(Path("/dev/full"), format=format)

    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("format", SpeechFormat)
@pytest.mark.parametrize("code", [28, 5], ids=["ENOSPC", "EIO"])
def test_stream_error_keeps_its_cause(format: SpeechFormat, code: int) -> None:
    class Failing(io.BytesIO):
        def write(self, *_: object) -> int:
            raise OSError(code, "it failed")

    expected = StorageFullError if code == 28 else FileError
    with pytest.raises(expected) as caught, AudioWriter(Failing(), format=format, sample_rate=RATE) as writer:
        writer.write(sine(1))

    assert isinstance(caught.value.__cause__, OSError)


# -- pipes ----------------------------------------------------------------------------------------------------


def read_all(descriptor: int, into: list[bytes]) -> None:
    with os.fdopen(descriptor, "rb") as pipe:
        into.append(pipe.read())


@pytest.mark.parametrize("format", SpeechFormat)
def test_pipe_receives_a_readable_file(format: SpeechFormat) -> None:
    read_end, write_end = os.pipe()
    got: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(read_end, got))
    reader.start()

    with (
        os.fdopen(write_end, "wb") as pipe,
        AudioWriter(pipe, format=format, sample_rate=RATE, tags=TAGS) as writer,
    ):
        for chunk in chunks(sine(2)):
            writer.write(chunk)
    reader.join()

    assert as_wav(got[0], format).duration_s == pytest.approx(2, abs=0.1)
    if format in TAGGED:
        assert read_tags(got[0]) == TAGS


@pytest.mark.parametrize("format", ["wav", "pcm"])
def test_pipe_receives_each_chunk_at_once(format: str) -> None:
    read_end, write_end = os.pipe()

    with (
        os.fdopen(read_end, "rb", buffering=0) as reader,
        os.fdopen(write_end, "wb") as pipe,
        AudioWriter(pipe, format=format, sample_rate=RATE) as writer,
    ):
        writer.write(sine(0.1))
        first = reader.read(65_536)

    assert first.endswith(pcm16(sine(0.1)))
    if format == "wav":
        assert read_wav(first)[1] == RATE


@on_posix
def test_fifo_path_is_written_like_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()

    Audio(sine(1), RATE).save(fifo)
    reader.join()

    assert decode(got[0]).duration_s == 1
    assert fifo.is_fifo()


@on_posix
@pytest.mark.parametrize("format", SpeechFormat)
def test_closed_reader_raises_broken_pipe(format: SpeechFormat) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    with (
        os.fdopen(write_end, "wb", buffering=0) as pipe,
        pytest.raises(BrokenPipeError),
        AudioWriter(cast("BinaryIO", pipe), format=format, sample_rate=RATE) as writer,
    ):
        writer.write(sine(1))


@pytest.mark.parametrize("format", CONTAINERS)
def test_open_file_is_written_from_its_position(format: SpeechFormat) -> None:
    file = io.BytesIO(b"before")
    file.seek(0, io.SEEK_END)

    with AudioWriter(file, format=format, sample_rate=RATE, tags=TAGS) as writer:
        writer.write(sine(2))
    file.write(b"after")

    data = file.getvalue()
    assert data.startswith(b"before")
    assert data.endswith(b"after")
    assert decode(data[6:-5]).duration_s == pytest.approx(2, abs=0.01 if format != "aac" else DELAY[format] / RATE)


@pytest.mark.parametrize("format", WRITERS)
def test_memory_does_not_grow_with_duration(format: SpeechFormat) -> None:
    second = sine(1)
    with AudioWriter(io.BufferedWriter(Nowhere()), format=format, sample_rate=RATE) as writer:
        writer.write(second)
        tracemalloc.start()
        for _ in range(120):
            writer.write(second)
        left_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert left_bytes < 256 * 1024


class Pipe(io.BytesIO):
    """A pipe whose content can be read."""

    def seekable(self) -> bool:
        return False


class Nowhere(io.RawIOBase):
    """A pipe that discards everything."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes
