"""Speech that was asked for lately, in memory: made or checked once, given many times.

The rows decide what may be given, so an entry that was dropped or deleted elsewhere is not found here either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_BYTES: Final = 16 << 20
MAX_ENTRY_BYTES: Final = 1 << 20
ENCODED_MAX_BYTES: Final = 32 << 20
ENCODED_MAX_ENTRY_BYTES: Final = 24 << 20


class HotAudio:
    """The last few audio files that were given, by voice and name; the oldest make way.

    Args:
        max_bytes: of all files; those that are collected may have as much again.
        max_entry_bytes: of one file.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entry_bytes: int = MAX_ENTRY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._collected: set[Collected] = set()

    def get(self, voice_id: str, name: str) -> bytes | None:
        """The file of this name (its SHA-256, for one), if it is here."""
        data = self._kept.get((voice_id, name))
        if data is not None:
            self._kept.move_to_end((voice_id, name))
        return data

    def keep(self, voice_id: str, name: str, data: bytes) -> None:
        """Keep a file."""
        if len(data) > self._max_entry_bytes or (voice_id, name) in self._kept:
            return
        self._kept[voice_id, name] = data
        self._n_bytes += len(data)
        while self._n_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._n_bytes -= len(oldest)

    @contextmanager
    def collect(self, voice_id: str, name: str) -> Iterator[Collected]:
        """Collect a file that comes in pieces; it is kept if it is finished within the block and not too large."""
        collected = Collected(self, voice_id, name)
        self._collected.add(collected)
        try:
            yield collected
        finally:
            self._collected.discard(collected)

    def has_room_for(self, n_bytes: int, *, of: Collected) -> bool:
        """Whether a file that is being collected may grow by so much."""
        n_collected = sum(each.n_bytes for each in self._collected)
        return of.n_bytes + n_bytes <= self._max_entry_bytes and n_collected + n_bytes <= self._max_bytes

    def forget(self, voice_id: str) -> None:
        """Drop all of a voice."""
        for key in [key for key in self._kept if key[0] == voice_id]:
            self._n_bytes -= len(self._kept.pop(key))
        for collected in self._collected:
            if collected.voice_id == voice_id:
                collected.drop()


class Collected:
    """A file that is not whole yet."""

    def __init__(self, kept: HotAudio, voice_id: str, name: str) -> None:
        self.voice_id = voice_id
        self.n_bytes = 0
        self._kept = kept
        self._name = name
        self._pieces: list[bytes] | None = []

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._pieces is None:
            return
        if not self._kept.has_room_for(len(piece), of=self):
            self.drop()
            return
        self._pieces.append(piece)
        self.n_bytes += len(piece)

    def drop(self) -> None:
        """Give it up."""
        self._pieces, self.n_bytes = None, 0

    def finish(self) -> None:
        """Keep it: there is no more."""
        if self._pieces is not None:
            self._kept.keep(self.voice_id, self._name, b"".join(self._pieces))
