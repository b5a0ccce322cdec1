"""Speech that was asked for lately, in memory: read from storage once, checked once, given many times.

The rows decide what may be given, so an entry that was dropped or deleted elsewhere is not found here either.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_BYTES: Final = 16 << 20
MAX_ENTRY_BYTES: Final = 1 << 20


class HotAudio:
    """The last few audio files that were given, by voice and digest; the oldest make way."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def get(self, voice_id: str, sha256: str) -> bytes | None:
        """The file with this digest, if it is here."""
        wav = self._kept.get((voice_id, sha256))
        if wav is not None:
            self._kept.move_to_end((voice_id, sha256))
        return wav

    def keep(self, voice_id: str, sha256: str, wav: bytes) -> None:
        """Keep a file that has this digest."""
        if len(wav) > MAX_ENTRY_BYTES or (voice_id, sha256) in self._kept:
            return
        self._kept[voice_id, sha256] = wav
        self._n_bytes += len(wav)
        while self._n_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._n_bytes -= len(oldest)

    def forget(self, voice_id: str) -> None:
        """Drop all of a voice."""
        for key in [key for key in self._kept if key[0] == voice_id]:
            self._n_bytes -= len(self._kept.pop(key))
