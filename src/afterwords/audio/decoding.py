"""Decode recordings of any format, with a bound on the work; `audio.decode` calls it.

libav reads nearly everything and goes on after damage; soundfile reads the few formats that libav doesn't know. `wav`
is the stricter reader, of WAV files only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import SILENCE_PEAK_DB, Samples, check_sample_rate, peak_db
from afterwords.audio.wav_chunks import INFO_IDS, chunks, read_info
from afterwords.errors import FileError, MalformedWavError, RecordingError

if TYPE_CHECKING:
    from av import AudioStream
    from av.container import InputContainer

_PIPE_MAX_BYTES = 512 * 1024 * 1024  # more than 30 minutes in any usual format
_BLOCK_VALUES = 1 << 18  # decoded at a time, of all channels
_DECLARED_MAX_S = 1e6  # a header that doesn't know its length declares far more
_STREAMED_MIN_BYTES = 0x7FFF0000  # a program that doesn't know the length of a WAV file declares at least this
_TRACKS_MAX = 8
_RATES_MAX = 100  # parts of one file at different rates
_PACKETS_PER_S_MAX = 800  # the shortest packets, of Opus, last 2.5 ms
_STOPS_MAX = 20  # errors of a container before decoding gives up
_GAP_MIN_S = 0.1  # between two packets; some containers round times to milliseconds
_SHORT_MIN_S, _SHORT_MIN_SHARE = 0.3, 0.02  # tolerated: encoders pad, and headers round
# An explicit list, because libav also reads playlists and scripts, which open other files and URLs.
_LIBAV_OPTIONS = {"format_whitelist": "wav,w64,flac,mp3,ogg,mov,matroska,aac,amr,aiff,caf,au,asf"}
_UNDECLARED = ("aac", "amr", "ogg")  # containers without a duration: libav guesses
_MP3_HEAD_BYTES = 2048  # after the tags; a frame has at most 1,441 bytes
_MAGIC = (
    (0, b"OggS"), (0, b"fLaC"), (0, b"\x1a\x45\xdf\xa3"), (0, b"caff"), (0, b"#!AMR"), (4, b"ftyp"),
    (8, b"WAVE"), (8, b"AIFF"), (8, b"AIFC"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """The decoded samples of a file.

    Attributes:
        samples: Shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: In Hz.
        notices: Problems of the file, one or two sentences each: lost parts, further tracks.
    """

    samples: Samples
    sample_rate: int
    notices: tuple[str, ...] = ()


def read_sound(source: Path | bytes | BinaryIO, *, name: str | None = None, max_duration_s: float) -> DecodedAudio:
    """Decode a recording, as `audio.decode` describes."""
    name = name or _name_of(source)
    with _opened(source, name) as file:
        recording = _read_by_libav(file, name, max_duration_s)
        if recording is None or (recording.is_damaged and not recording.duration_s):
            recording = _read_by_soundfile(file, name, max_duration_s) or recording
        if recording is None:
            file.seek(0)
            head = file.read(16)
            is_known = any(head[start : start + len(magic)] == magic for start, magic in _MAGIC)
            raise RecordingError.damaged(name) if is_known else RecordingError.unsupported(name)
        return recording.finish()


def read_tags(source: Path | bytes, *, name: str | None = None) -> dict[str, str]:
    """Return the tags of a wav, mp3, flac, opus or ogg file.

    Returns:
        Those of `title`, `artist`, `comment`, `software` and `date` that the file has.

    Raises:
        FileError: The file is missing, a folder, a pipe or a device, or reading failed.
        RecordingError: The format is unknown, or the file is empty.
    """
    import av

    name = name or _name_of(source)
    with _opened(source, name) as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return read_info(file, source=name)
        try:
            with av.open(file, "r", options=_LIBAV_OPTIONS, metadata_errors="replace") as container:
                tags = dict(container.metadata)
                for stream in container.streams.audio:  # Ogg keeps them there
                    tags |= stream.metadata
        except av.FFmpegError as error:
            raise RecordingError.unsupported(name) from error
    found = {key.lower(): text for key, text in tags.items()}
    return {key: found[key] for key in INFO_IDS if found.get(key)}


# -- opening --------------------------------------------------------------------------------------------------


class _NamelessFile:
    """An open file for the decoders: without a name to guess the format from, and with its last error kept.

    The decoders read it from C, where an exception would be lost.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _opened(source: Path | bytes | BinaryIO, name: str) -> Iterator[_NamelessFile]:
    with _open(source, name) as file:
        try:
            size_bytes = file.seek(0, SEEK_END)
            file.seek(0)
        except OSError as error:
            raise FileError.unreadable(name, why=_reason(error)) from error
        if not size_bytes:
            raise RecordingError.no_audio(name)
        nameless = _NamelessFile(file)
        try:
            yield nameless
        finally:
            if nameless.error is not None:
                raise FileError.unreadable(name, why=_reason(nameless.error)) from nameless.error


def _open(source: Path | bytes | BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return BytesIO(source)
    try:
        if not isinstance(source, Path):
            if source.seekable():
                return nullcontext(source)
            data = source.read(_PIPE_MAX_BYTES + 1)
            if len(data) > _PIPE_MAX_BYTES:
                raise RecordingError.too_large(name, size_bytes=len(data), maximum_bytes=_PIPE_MAX_BYTES)
            return BytesIO(data)
        mode = source.stat().st_mode  # first: opening a pipe would block until it has a writer
        if stat.S_ISDIR(mode):
            raise FileError.unreadable(name, why="it is a folder")
        if not stat.S_ISREG(mode):
            raise FileError.unreadable(name, why="it is a pipe or a device, not a file")
        return source.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError.unreadable(name, why=_reason(error)) from error


def _name_of(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the recording"


def _reason(error: Exception) -> str:
    """Return why a file can't be read, in plain words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "you are not allowed to read it"
    return (getattr(error, "strerror", None) or str(error)).lower()


# -- decoding -------------------------------------------------------------------------------------------------


class _Recording:
    """The decoded samples of one track, checked and limited in length, and a record of what was lost."""

    def __init__(self, name: str, max_duration_s: float) -> None:
        self.name = name
        self.max_duration_s = max_duration_s
        # Pairs of a rate in Hz and float32 values. A bytearray grows in place; joining a list of arrays would need
        # twice the memory. A new part begins where the rate changes, as in concatenated files.
        self._parts: list[tuple[int, bytearray]] = []
        self.duration_s = self.lost_s = self._declared_s = 0.0
        self.n_failed = 0
        self.is_cut = self.is_full = False
        self.codec: str | None = None
        self.is_codec_lacking = False
        self.tracks_notice = ""

    @property
    def is_damaged(self) -> bool:
        return self.is_cut or self.is_codec_lacking or self.n_failed > 0

    def declare(self, duration_s: float) -> None:
        """Set the duration that the file declares."""
        self._declared_s = duration_s if 0 < duration_s < _DECLARED_MAX_S else 0.0

    def add(self, frames: NDArray[np.float32], sample_rate: int) -> None:
        """Add frames of shape (n_frames, n_channels) at a rate in Hz."""
        check_sample_rate(sample_rate, self.name)
        if not np.isfinite(frames).all():
            raise RecordingError.non_finite(self.name)
        if not self._parts or self._parts[-1][0] != sample_rate:
            self._parts.append((sample_rate, bytearray()))
        mono = np.clip(frames, -1.0, 1.0).mean(axis=1, dtype=np.float32)
        self._parts[-1][1].extend(mono.tobytes())
        self.duration_s += len(mono) / sample_rate
        if self.duration_s > self.max_duration_s:
            raise RecordingError.too_long(
                self.name, duration_s=max(self.duration_s, self._declared_s), maximum_s=self.max_duration_s
            )
        self.is_full = len(self._parts) > _RATES_MAX

    def is_silent(self) -> bool:
        return all(peak_db(np.frombuffer(values, np.float32)) < SILENCE_PEAK_DB for _, values in self._parts)

    def finish(self) -> DecodedAudio:
        """Return all decoded samples at the rate of the longest part."""
        if not self.duration_s:
            if self.is_codec_lacking:
                raise RecordingError(
                    f"{self.name} contains audio in {self.codec or 'an unknown codec'}, which is not supported.",
                    code="unsupported_audio",
                    hint="convert it to WAV, FLAC, MP3 or M4A, and use that file.",
                )
            raise RecordingError.damaged(self.name) if self.is_damaged else RecordingError.no_audio(self.name)
        parts = [(rate, np.frombuffer(values, np.float32)) for rate, values in self._parts]
        sample_rate, samples = max(parts, key=lambda part: len(part[1]) / part[0])
        if len(parts) > 1:
            import soxr

            resampled = [soxr.resample(values, rate, sample_rate) for rate, values in parts]
            samples = np.clip(np.concatenate(resampled), np.float32(-1), np.float32(1))
        lost_s, short_s = self.lost_s, self._declared_s - self.duration_s
        is_short = short_s > max(_SHORT_MIN_S, _SHORT_MIN_SHARE * self._declared_s)
        if is_short or (lost_s and short_s > 0):  # the header is more exact than the sum of the gaps
            lost_s = short_s
        total_s = self.duration_s + lost_s
        seconds = f"at least {lost_s:.1f} s" if lost_s >= 0.1 else "less than 0.1 s"
        share = f"{100 * lost_s / total_s:.0f} %" if lost_s >= 0.01 * total_s else "less than 1 %"
        loss = ""
        if self.is_codec_lacking:
            loss = (
                f"{self.name}: {seconds} of {total_s:.1f} s ({share}) could not be decoded and were skipped. Either "
                f"the file is damaged, or it uses a feature of the codec {self.codec} that is not supported."
            )
        elif lost_s or self.n_failed:
            loss = (
                f"{self.name} is damaged or incomplete: {seconds} of {total_s:.1f} s ({share}) could not be read "
                "and were skipped. Copy or download it again if you can."
            )
        elif self.is_cut:
            loss = (
                f"{self.name} is damaged or incomplete: nothing could be read after {total_s:.1f} s. "
                "Copy or download it again if you can."
            )
        return DecodedAudio(samples, sample_rate, tuple(filter(None, (loss, self.tracks_notice))))


def _read_by_soundfile(file: _NamelessFile, name: str, max_duration_s: float) -> _Recording | None:
    """Decode a file with soundfile; None if it doesn't know the format."""
    import soundfile

    recording = _Recording(name, max_duration_s)
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.SoundFileError:
        return None
    with sound:
        recording.declare(sound.frames / max(sound.samplerate, 1))
        block = max(1, _BLOCK_VALUES // sound.channels)
        try:
            while len(frames := sound.read(block, dtype="float32", always_2d=True)):
                recording.add(frames, sound.samplerate)
        except soundfile.SoundFileError:
            recording.is_cut = True
    return recording


def _read_by_libav(file: _NamelessFile, name: str, max_duration_s: float) -> _Recording | None:
    """Decode the first track with sound, or else the first; None if libav doesn't know the format."""
    import av

    first: _Recording | None = None
    n_tracks = 1
    for track in range(_TRACKS_MAX):
        recording = _Recording(name, max_duration_s)
        file.seek(0)
        try:
            with av.open(file, "r", options=_LIBAV_OPTIONS, metadata_errors="replace") as container:
                n_tracks = len(container.streams.audio)
                if track < n_tracks:
                    _decode_track(container, container.streams.audio[track], file, recording)
        except av.FFmpegError:
            return first
        if n_tracks > 1 and not recording.is_silent():
            recording.tracks_notice = (
                f"{name} has {n_tracks} audio tracks; track {track + 1} is used, the first with sound."
            )
        if not recording.is_silent():
            return recording
        first = first or recording
        if track + 1 >= n_tracks:
            break
    return first


def _decode_track(container: InputContainer, stream: AudioStream, file: _NamelessFile, recording: _Recording) -> None:
    """Decode a track to its end; packets that can't be decoded are skipped and counted, as players do."""
    import av

    if stream.codec_context is None:
        recording.is_codec_lacking = True
        return
    recording.codec = stream.codec_context.name
    recording.declare(_declared_s(container, stream, file))
    n_packets = n_stops = 0
    end_s: float | None = None
    last_failed_s: float | None = None
    while n_stops < _STOPS_MAX:
        try:
            for packet in container.demux(stream):
                n_packets += 1
                if recording.is_full or n_packets > _PACKETS_PER_S_MAX * recording.max_duration_s:
                    recording.is_cut = True
                    return
                duration_s = float((packet.duration or 0) * (packet.time_base or 0))
                if packet.pts is not None and packet.time_base:
                    start_s = float(packet.pts * packet.time_base)
                    if end_s is not None and start_s - end_s > _GAP_MIN_S:
                        recording.lost_s += start_s - end_s
                    end_s = start_s + duration_s
                recording.is_cut |= (
                    packet.is_corrupt and container.format.name != "wav"
                )  # streamed WAV files are flagged too
                try:
                    for frame in packet.decode():
                        values = frame.to_ndarray()
                        values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
                        if values.dtype.kind != "f":
                            full_scale = 2.0 ** (8 * values.dtype.itemsize - 1)
                            values = (values - (full_scale if values.dtype.kind == "u" else 0.0)) / full_scale
                        recording.add(values.astype(np.float32), frame.sample_rate)
                    last_failed_s = None if packet.size else last_failed_s
                except av.FFmpegError as error:
                    recording.n_failed += 1
                    recording.lost_s += duration_s
                    recording.is_codec_lacking |= isinstance(error, av.PatchWelcomeError)
                    last_failed_s = duration_s
            break
        except av.FFmpegError:
            n_stops += 1
    recording.is_cut |= n_stops == _STOPS_MAX
    if recording.n_failed == 1 and last_failed_s is not None and recording.duration_s:
        recording.n_failed, recording.lost_s = 0, recording.lost_s - last_failed_s  # junk after the last frame


def _declared_s(container: InputContainer, stream: AudioStream, file: _NamelessFile) -> float:
    """Return the duration of a track by the header of its file; 0 if unknown."""
    import av

    if container.format.name == "wav" and (declared_s := _declared_by_wav(file)) is not None:
        return declared_s
    if container.format.name == "mp3":
        return _declared_by_mp3(file, stream)
    if container.format.name in _UNDECLARED:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _declared_by_wav(file: _NamelessFile) -> float | None:
    """Return the duration that a RIFF file declares, 0 if unknown; libav caps it at the size of the file."""
    position = file.tell()
    file.seek(0)
    if file.read(4) != b"RIFF":
        file.seek(position)
        return None
    rate = size_bytes = 0
    try:
        for chunk in chunks(file, ""):
            if chunk.id == b"fmt ":
                file.seek(chunk.start + 8)
                rate = int.from_bytes(file.read(4), "little")  # bytes a second
            elif chunk.id == b"data":
                size_bytes = chunk.size_bytes
                break
    except MalformedWavError:
        pass
    file.seek(position)
    return size_bytes / rate if rate and size_bytes < _STREAMED_MIN_BYTES else 0.0


def _declared_by_mp3(file: _NamelessFile, stream: AudioStream) -> float:
    """Return the duration that the first frame of an MP3 declares, 0 if unknown; libav guesses by the file size.

    Source: the headers "Xing" and "Info" as LAME writes them: flags, then the number of frames, where flag 1 is set.
    """
    position = file.tell()
    file.seek(0)
    head = file.read(10)
    tag_bytes = 0
    if head[:3] == b"ID3":  # the size has 7 bits per byte
        tag_bytes = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(tag_bytes)
    frame = file.read(_MP3_HEAD_BYTES)
    file.seek(position)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or not int.from_bytes(frame[place + 4 : place + 8]) & 1:
        return 0.0
    return int.from_bytes(frame[place + 8 : place + 12]) * stream.codec_context.frame_size / max(stream.rate, 1)
