"""The sound of one job as it comes, kept by whoever speaks it, and heard by any number of listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from afterwords.errors import SynthesisError
from afterwords.server.dispatch.changes import Changes


class Sound:
    """16-bit little-endian mono PCM, piece by piece. All of it is kept: it is the job's audio in the end.

    Attributes:
        sample_rate: in Hz; None before the first piece.
        n_listeners: who still hears it.
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self.pieces: list[bytes] = []
        self.sample_rate: int | None = None
        self.backend = ""
        self.is_over = False
        self.is_broken = False
        self.n_listeners = 0
        self._size_bytes = 0

    @property
    def is_begun(self) -> bool:
        return bool(self.pieces)

    @property
    def duration_s(self) -> float:
        """Length so far, in seconds."""
        return self._size_bytes / 2 / self.sample_rate if self.sample_rate else 0.0

    def add(self, pcm: bytes, *, sample_rate: int, backend: str) -> None:
        """Take the next piece."""
        if pcm:
            self.sample_rate, self.backend = sample_rate, backend
            self.pieces.append(pcm)
            self._size_bytes += len(pcm)
            self.changes.tell()

    def finish(self) -> None:
        """Nothing more will come: that was all."""
        self.is_over = True
        self.changes.tell()

    def break_off(self) -> None:
        """Nothing more will come, and what came is not whole. What is over already stays as it is."""
        if not self.is_over:
            self.is_broken = True
            self.finish()


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
        sound, n_heard = self._sound, 0
        while not self._is_closed:
            if len(sound.pieces) > n_heard:
                n_heard += 1
                yield sound.pieces[n_heard - 1]
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
