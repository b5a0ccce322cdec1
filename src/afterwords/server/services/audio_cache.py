"""An in-memory cache of recent audio. Rows decide what may be returned: entries of deleted rows are never read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cachetools import LRUCache

MAX_BYTES: Final = 16 << 20
MAX_ENTRY_BYTES: Final = 1 << 20
ENCODED_MAX_BYTES: Final = 32 << 20
ENCODED_MAX_ENTRY_BYTES: Final = 24 << 20


class AudioCache:
    """The audio files used last, by voice and name.

    Args:
        max_bytes: Size of all files. Files that are still being collected may have as much again.
        max_entry_bytes: Size of one file.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entry_bytes: int = MAX_ENTRY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._files: LRUCache[tuple[str, str], bytes] = LRUCache(max_bytes, getsizeof=len)
        self._collecting: set[PartialAudio] = set()

    def get(self, voice_id: str, name: str) -> bytes | None:
        """Return the file with this name, such as its SHA-256."""
        return self._files.get((voice_id, name))

    def put(self, voice_id: str, name: str, data: bytes) -> None:
        """Cache a file unless it is too large."""
        if len(data) <= min(self._max_entry_bytes, self._max_bytes):
            self._files[voice_id, name] = data

    @contextmanager
    def collect(self, voice_id: str, name: str) -> Iterator[PartialAudio]:
        """Collect a file chunk by chunk. It is cached if it is finished within the block and not too large."""
        audio = PartialAudio(self, voice_id, name)
        self._collecting.add(audio)
        try:
            yield audio
        finally:
            self._collecting.discard(audio)

    def has_space(self, n_bytes: int, *, audio: PartialAudio) -> bool:
        """Return whether a file that is being collected may grow by `n_bytes`."""
        n_collected = sum(each.n_bytes for each in self._collecting)
        return audio.n_bytes + n_bytes <= self._max_entry_bytes and n_collected + n_bytes <= self._max_bytes

    def discard_voice(self, voice_id: str) -> None:
        """Remove all files of a voice."""
        for key in [key for key in self._files if key[0] == voice_id]:
            del self._files[key]
        for audio in self._collecting:
            if audio.voice_id == voice_id:
                audio.drop()


class PartialAudio:
    """A file that is being collected for an `AudioCache`."""

    def __init__(self, cache: AudioCache, voice_id: str, name: str) -> None:
        self.voice_id = voice_id
        self.n_bytes = 0
        self._cache = cache
        self._name = name
        self._chunks: list[bytes] | None = []

    def add(self, chunk: bytes) -> None:
        """Append a chunk, or drop the file if it is too large."""
        if self._chunks is None:
            return
        if not self._cache.has_space(len(chunk), audio=self):
            self.drop()
            return
        self._chunks.append(chunk)
        self.n_bytes += len(chunk)

    def drop(self) -> None:
        """Discard the file."""
        self._chunks, self.n_bytes = None, 0

    def finish(self) -> None:
        """Cache the complete file."""
        if self._chunks is not None:
            self._cache.put(self.voice_id, self._name, b"".join(self._chunks))
