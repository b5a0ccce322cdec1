"""Reads recordings: from the storage, or for a home voice from the library."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from afterwords.errors import CorruptVoiceError, VoiceNotFoundError
from afterwords.library.library import Library
from afterwords.models import ReferenceInfo, Voice
from afterwords.server.ports import Blobs
from afterwords.server.records import StoredVoice

QUALITIES: Final = ("full", "fast")
"""Prompts that `clone` stores, better first."""


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings, and the prompts in the library.

    Attributes:
        library: None: the server offers no home voices.
    """

    blobs: Blobs
    library: Library | None

    async def exists(self, voice: StoredVoice) -> bool:
        """Return whether the recording exists."""
        if voice.home_id is None:
            return await self.blobs.exists(voice.ref_audio_key)
        return await self.get(voice) is not None

    async def get(self, voice: StoredVoice) -> bytes | None:
        """Return the recording if it matches the digest of the voice."""
        if voice.home_id is None:
            return await self.blobs.get(voice.ref_audio_key, sha256=voice.ref_sha256)
        if self.library is None:
            return None
        try:
            return await asyncio.to_thread(self.library.reference, _library_voice(voice))
        except (CorruptVoiceError, VoiceNotFoundError):
            return None

    async def prompt(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        """Return the prompt of a home voice from the library."""
        if voice.home_id is None or self.library is None:
            return None
        for quality in QUALITIES:
            key = f"{backend}-{version}-{quality}"
            if (prompt := await asyncio.to_thread(self.library.prompt, _library_voice(voice), key)) is not None:
                return prompt
        return None


def _library_voice(row: StoredVoice) -> Voice:
    return Voice(
        voice_id=row.home_id or row.voice_id,
        name=row.name,
        backend=row.backend,
        reference=ReferenceInfo(sha256=row.ref_sha256, duration_s=row.ref_duration_s, sample_rate=row.ref_sample_rate),
    )
