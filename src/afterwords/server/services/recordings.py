"""Where the recording of a voice is read: in storage, or for a voice of the home in its library."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from afterwords.errors import CorruptVoiceError, VoiceNotFoundError
from afterwords.library.library import Library
from afterwords.models import ReferenceInfo, Voice
from afterwords.server.ports import Blobs, StoredVoice

QUALITIES: Final = ("full", "fast")
"""Of the prompts that `clone` keeps, the better first."""


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings, and the prompts that came with them.

    Attributes:
        library: None where the server offers no voices of its home.
    """

    blobs: Blobs
    library: Library | None

    async def exists(self, voice: StoredVoice) -> bool:
        """Whether the recording is there."""
        if voice.home_id is None:
            return await self.blobs.exists(voice.ref_audio_key)
        return await self.get(voice) is not None

    async def get(self, voice: StoredVoice) -> bytes | None:
        """Return the recording if it is the one that the voice states."""
        if voice.home_id is None:
            return await self.blobs.get(voice.ref_audio_key, sha256=voice.ref_sha256)
        if self.library is None:
            return None
        try:
            return await asyncio.to_thread(self.library.reference, _at_home(voice))
        except (CorruptVoiceError, VoiceNotFoundError):
            return None

    async def prompt(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        """Return the prompt that was made at home, if there is one."""
        if voice.home_id is None or self.library is None:
            return None
        for quality in QUALITIES:
            key = f"{backend}-{version}-{quality}"
            if (kept := await asyncio.to_thread(self.library.prompt, _at_home(voice), key)) is not None:
                return kept
        return None


def _at_home(row: StoredVoice) -> Voice:
    return Voice(
        voice_id=row.home_id or row.voice_id,
        name=row.name,
        backend=row.backend,
        reference=ReferenceInfo(sha256=row.ref_sha256, duration_s=row.ref_duration_s, sample_rate=row.ref_sample_rate),
    )
