"""The sound of one job as it comes, kept by whoever speaks it, and heard by any number of listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

from afterwords.audio.wav import wav_header
from afterwords.errors import SynthesisError
from afterwords.server.dispatch.changes import Changes
from afterwords.server.spool import Spool

_HEADER_BYTES = len(wav_header(8000, n_frames=0))
_HEARD_BYTES = 64 * 1024  # at once, by a listener


class Sound:
    """A WAV file (mono, 16 bits) that grows. All of it is kept: it is the job's audio in the end.

    Attributes:
        file: in memory while it is short, else on the disk; its header is right once it is finished.
        sample_rate: in Hz; None before the first piece.
        n_listeners: who still hears it.
    """

    def __init__(self, folder: Path) -> None:
        self.changes = Changes()
        self.file = Spool(folder)
        self.sample_rate: int | None = None
        self.backend = ""
        self.is_over = False
        self.is_broken = False
        self.n_listeners = 0
        self._is_kept = True

    @property
    def is_begun(self) -> bool:
        return self.sample_rate is not None

    @property
    def duration_s(self) -> float:
        """Length so far, in seconds."""
        return (self.file.size_bytes - _HEADER_BYTES) / 2 / self.sample_rate if self.sample_rate else 0.0

    def add(self, pcm: bytes, *, sample_rate: int, backend: str) -> None:
        """Take the next piece.

        Raises:
            StorageFullError, StorageUnavailableError: there is no room for it; it may be tried again.
        """
        if not pcm:
            return
        if not self.file.size_bytes:
            self.file.write(wav_header(sample_rate, n_frames=0))
        self.file.write(pcm)
        self.sample_rate, self.backend = sample_rate, backend
        self.changes.tell()

    def finish(self) -> None:
        """Nothing more will come: that was all."""
        if self.sample_rate is not None and not self.file.closed:
            n_frames = (self.file.size_bytes - _HEADER_BYTES) // 2
            self.file.replace_head(wav_header(self.sample_rate, n_frames=n_frames))
        self.is_over = True
        self.changes.tell()

    def break_off(self) -> None:
        """Nothing more will come, and what came is not whole. What is over already stays as it is."""
        if not self.is_over:
            self.is_broken = True
            self.finish()

    def drop(self) -> None:
        """Keep it no longer than it is heard."""
        self._is_kept = False
        self.close_unheard()

    def close_unheard(self) -> None:
        """Remove the file if it is neither kept nor heard."""
        if not self._is_kept and not self.n_listeners:
            self.file.close()


class SoundListener:
    """One listener; implements the port Listener."""

    def __init__(self, sound: Sound, on_close: Callable[[], None]) -> None:
        self._sound = sound
        self._on_close = on_close
        self._is_closed = False
        sound.n_listeners += 1

    async def begun(self) -> int | None:
        sound = self._sound
        await sound.changes.until(lambda: sound.is_begun or sound.is_over or self._is_closed)
        return None if self._is_closed else sound.sample_rate

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sound, place = self._sound, _HEADER_BYTES
        while not self._is_closed:
            if pcm := sound.file.read_at(place, _HEARD_BYTES):
                place += len(pcm)
                yield pcm
            elif not sound.is_over:
                await sound.changes.next()
            elif sound.is_broken:
                raise SynthesisError(sound.backend, why="it broke off")
            else:
                return

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._sound.n_listeners -= 1
            self._sound.changes.tell()
            self._on_close()
            self._sound.close_unheard()
