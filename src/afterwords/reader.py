"""Reading sound from whatever a person has on a disk or a phone, and never more of it than was asked for.

soundfile knows the plain formats and libav nearly all the others. `riff` is the stricter reader, for files from
strangers; `audio` makes an Audio of what is read here, and there callers find it as `decode` and `read_tags`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from afterwords.errors import (
    BadSampleRateError,
    FileTooLargeError,
    NoAudioError,
    NonFiniteAudioError,
    ReferenceTooLongError,
    UnreadableFileError,
    UnsupportedAudioError,
)
from afterwords.riff import SAMPLE_RATE_MAX, SAMPLE_RATE_MIN, Samples
from afterwords.wavchunks import INFO_IDS, read_info

if TYPE_CHECKING:
    from av import AudioFrame

_PIPE_MAX_BYTES = 512 * 1024 * 1024  # more than 30 minutes of anything that people record in
_BLOCK_VALUES = 1 << 18  # decoded at a time, over all channels
_DECLARED_MAX_S = 1e6  # what a header that doesn't know its length declares is far beyond
# Named, because libav also knows playlists and scripts, which make it open further files and addresses.
_LIBAV_OPTIONS = {"format_whitelist": "wav,flac,mp3,ogg,mov,matroska,aac,amr,aiff,caf,au,asf"}


def read_sound(
    source: Path | bytes | BinaryIO, *, name: str | None = None, max_duration_s: float
) -> tuple[Samples, int]:
    """Read samples of shape (n_samples,), float32 mono in [-1, 1], and their rate in Hz; see `audio.decode`."""
    name = name or _name_of(source)
    longest: _Recording | None = None
    with _opened(source, name) as file:
        for read in (_read_by_soundfile, _read_by_libav):
            recording = _Recording(name, max_duration_s)
            file.seek(0)
            ending = read(file, recording)
            if ending is not _Ending.UNKNOWN and (longest is None or recording.n_frames > longest.n_frames):
                longest = recording
            if ending is _Ending.WHOLE and recording.n_frames:
                break
    if longest is None:
        raise UnsupportedAudioError(name)
    return longest.finish()


def read_tags(source: Path | bytes, *, name: str | None = None) -> dict[str, str]:
    """Read the tags of a wav, mp3, flac, opus or ogg file under the names that they are written by.

    Returns:
        Those of `title`, `artist`, `comment`, `software` and `date` that it carries.

    Raises:
        UnreadableFileError: it is missing, a folder, a pipe or a device, or reading it failed.
        UnsupportedAudioError: no decoder knows it.
        NoAudioError: it is empty.
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
            raise UnsupportedAudioError(name) from error
    found = {key.lower(): text for key, text in tags.items()}
    return {key: found[key] for key in INFO_IDS if found.get(key)}


# -- opening --------------------------------------------------------------------------------------------------


class _Face:
    """An open file as the decoders see it: without a name they could guess by, and with its errors kept.

    They call it from C, where an exception would be lost.
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
def _opened(source: Path | bytes | BinaryIO, name: str) -> Iterator[_Face]:
    with _open(source, name) as file:
        try:
            size_bytes = file.seek(0, SEEK_END)
            file.seek(0)
        except OSError as error:
            raise UnreadableFileError(name, why=_reason(error)) from error
        if not size_bytes:
            raise NoAudioError(name)
        face = _Face(file)
        try:
            yield face
        finally:
            if face.error is not None:
                raise UnreadableFileError(name, why=_reason(face.error)) from face.error


def _open(source: Path | bytes | BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return BytesIO(source)
    try:
        if not isinstance(source, Path):
            return nullcontext(source if source.seekable() else _read_pipe(source, name))
        mode = source.stat().st_mode  # first, since opening a pipe would wait for somebody to write into it
        if stat.S_ISDIR(mode):
            raise UnreadableFileError(name, why="it is a folder")
        if not stat.S_ISREG(mode):
            raise UnreadableFileError(name, why="it is a pipe or a device, not a file")
        return source.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableFileError(name, why=_reason(error)) from error


def _read_pipe(pipe: BinaryIO, name: str) -> BytesIO:
    data = pipe.read(_PIPE_MAX_BYTES + 1)
    if len(data) > _PIPE_MAX_BYTES:
        raise FileTooLargeError(name, size_bytes=len(data), maximum_bytes=_PIPE_MAX_BYTES)
    return BytesIO(data)


def _name_of(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the recording"


def _reason(error: Exception) -> str:
    """Why a file can't be read, in plain words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "you are not allowed to read it"
    return (getattr(error, "strerror", None) or str(error)).lower()


# -- decoding -------------------------------------------------------------------------------------------------


class _Ending(Enum):
    """How far a decoder came."""

    UNKNOWN = "it does not know the file"
    CUT = "it stopped at an error"
    WHOLE = "it came to the end"


class _Recording:
    """What was decoded so far: one channel, checked, and no longer than is taken."""

    def __init__(self, name: str, max_duration_s: float) -> None:
        self._name = name
        self._max_duration_s = max_duration_s
        self._values = bytearray()  # grows in place, where a list of arrays would need its size twice at the end
        self.sample_rate = 0
        self.n_frames = 0

    def begin(self, sample_rate: int, *, declared_s: float) -> None:
        """Set the rate in Hz, and the length that the file says it has, for the message if it is too long."""
        if not SAMPLE_RATE_MIN <= sample_rate <= SAMPLE_RATE_MAX:
            raise BadSampleRateError(
                self._name, sample_rate=sample_rate, minimum=SAMPLE_RATE_MIN, maximum=SAMPLE_RATE_MAX
            )
        self.sample_rate = sample_rate
        self._declared_s = declared_s if declared_s < _DECLARED_MAX_S else 0.0

    def add(self, frames: NDArray[np.float32]) -> None:
        """Add frames of shape (n_frames, n_channels)."""
        if not np.isfinite(frames).all():
            raise NonFiniteAudioError(self._name)
        mono = np.clip(frames, -1.0, 1.0).mean(axis=1, dtype=np.float32)
        self._values += mono.tobytes()
        self.n_frames += len(mono)
        duration_s = self.n_frames / self.sample_rate
        if duration_s > self._max_duration_s:
            raise ReferenceTooLongError(
                self._name, duration_s=max(duration_s, self._declared_s), maximum_s=self._max_duration_s
            )

    def finish(self) -> tuple[Samples, int]:
        if not self.n_frames:
            raise NoAudioError(self._name)
        return np.frombuffer(self._values, np.float32), self.sample_rate


def _read_by_soundfile(file: _Face, recording: _Recording) -> _Ending:
    import soundfile

    try:
        sound = soundfile.SoundFile(file)
    except soundfile.SoundFileError:
        return _Ending.UNKNOWN
    with sound:
        recording.begin(sound.samplerate, declared_s=sound.frames / sound.samplerate)
        block = max(1, _BLOCK_VALUES // sound.channels)
        try:
            while len(frames := sound.read(block, dtype="float32", always_2d=True)):
                recording.add(frames)
        except soundfile.SoundFileError:
            return _Ending.CUT
    return _Ending.WHOLE


def _read_by_libav(file: _Face, recording: _Recording) -> _Ending:
    import av

    ending = _Ending.UNKNOWN
    try:
        with av.open(file, "r", options=_LIBAV_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.audio:
                return _Ending.WHOLE
            ending = _Ending.CUT
            for frame in container.decode(container.streams.audio[0]):
                if not recording.n_frames:
                    recording.begin(frame.sample_rate, declared_s=(container.duration or 0) / av.time_base)
                if frame.sample_rate != recording.sample_rate:
                    return _Ending.CUT
                recording.add(_frames_of(frame))
    except av.FFmpegError:
        return ending
    return _Ending.WHOLE


def _frames_of(frame: AudioFrame) -> NDArray[np.float32]:
    """Samples of shape (n_frames, n_channels), float32 with full scale at 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    full_scale = 2.0 ** (8 * values.dtype.itemsize - 1)
    middle = full_scale if values.dtype.kind == "u" else 0.0
    return ((values - middle) / full_scale).astype(np.float32)
