"""One voice as a folder: what its files are called, how they are written, and what tells a whole one from a damaged.

    voice.json        the Voice
    reference.wav     the prepared recording, byte for byte what `reference.sha256` states
    original.<suffix> the untouched original, where it was made on this machine
    prompts/<key>.bin what engines made of the reference: caches, each behind its own SHA-256

The library finds folders and locks them; the migrations write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from afterwords import disk
from afterwords.errors import CorruptVoiceError, UnreadableFileError, VoiceNotFoundError
from afterwords.models import Voice

PROFILE = "profile.json"
"""In place of voice.json: the profile of an older library whose recording could not be brought along."""

_SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Original:
    """The untouched recording on its way into a folder.

    Attributes:
        source: the file, or its bytes.
        suffix: how its name ends, for example ".m4a"; anything odd is left away.
    """

    source: Path | bytes
    suffix: str = ""

    @property
    def file_name(self) -> str:
        suffix = self.suffix.lower()
        return f"original{suffix if _SUFFIX.fullmatch(suffix) else ''}"

    def pieces(self, *, expected_sha256: str | None) -> Iterator[bytes]:
        """Read it block by block.

        Raises:
            UnreadableFileError: it can't be read, or is no longer the file that was sealed.
        """
        digest = sha256()
        for piece in [self.source] if isinstance(self.source, bytes) else disk.read_pieces(self.source):
            digest.update(piece)
            yield piece
        if expected_sha256 not in (None, digest.hexdigest()):
            where = "the original" if isinstance(self.source, bytes) else self.source
            raise UnreadableFileError(where, why="it changed while the voice was being made")


@dataclass(frozen=True, slots=True)
class VoiceFolder:
    """The folder of one voice. Nothing is read until asked; every write is whole or not at all."""

    path: Path

    def write(self, voice: Voice, *, reference_wav: bytes, original: Original | None) -> None:
        """Make the folder. It must not be where voices are looked for until it is complete.

        Raises:
            CorruptVoiceError: the recording is not the one that the voice states.
            UnreadableFileError: the original can't be read.
            StorageFullError, UnwritableOutputError: it can't be stored.
        """
        if sha256(reference_wav).hexdigest() != voice.ref_sha256:
            raise CorruptVoiceError(self.path, why="its recording is not the one that it states")
        disk.make_folder(self.path)
        if original is not None:
            expected = voice.provenance.original_sha256 if voice.provenance else None
            disk.write(self.path / original.file_name, original.pieces(expected_sha256=expected))
        disk.write(self.path / "reference.wav", [reference_wav])
        self.describe(voice)

    def describe(self, voice: Voice) -> None:
        """Write voice.json."""
        disk.write(self.path / "voice.json", [voice.model_dump_json(indent=2).encode(), b"\n"])

    def read(self, voice_id: str) -> Voice:
        """Read voice.json, and see that it is that of this voice and that the recording is there.

        Raises:
            CorruptVoiceError: the folder is not that of a whole voice.
        """
        if (self.path / PROFILE).exists():
            raise CorruptVoiceError(self.path, why="its recording was missing when an older library was brought here")
        try:
            voice = Voice.model_validate_json(disk.read(self.path / "voice.json"))
        except OSError as error:
            raise CorruptVoiceError(self.path, why=f"voice.json can't be read ({error.strerror})") from error
        except ValidationError as error:
            fields = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
            why = f"voice.json has wrong or unknown fields ({fields})" if fields else "voice.json is not JSON"
            raise CorruptVoiceError(self.path, why=why) from error
        if voice.reference is None:
            raise CorruptVoiceError(self.path, why="voice.json has wrong or unknown fields (reference)")
        if voice.voice_id != voice_id:
            raise CorruptVoiceError(self.path, why="voice.json is that of another voice")
        if not (self.path / "reference.wav").is_file():
            raise CorruptVoiceError(self.path, why="its recording is missing")
        return voice

    def reference(self, voice: Voice) -> bytes:
        """Read the canonical WAV.

        Raises:
            VoiceNotFoundError: the voice was removed meanwhile.
            CorruptVoiceError: it is not the recording that the voice states.
        """
        try:
            recording = disk.read(self.path / "reference.wav")
        except OSError as error:
            if not self.path.exists():
                raise VoiceNotFoundError(voice.name) from error
            raise CorruptVoiceError(self.path, why=f"its recording can't be read ({error.strerror})") from error
        if sha256(recording).hexdigest() != voice.ref_sha256:
            raise CorruptVoiceError(self.path, why="its recording was changed")
        return recording

    def original(self) -> Path | None:
        """Where the untouched original is, if it was kept."""
        found = sorted(path for path in self.path.glob("original*") if path.suffix != ".part")
        return found[0] if found else None

    def prompt(self, key: str) -> bytes | None:
        """Read a prompt; None where there is none or it was damaged, so that it is made again."""
        try:
            stored = disk.read(self._prompt_path(key))
        except OSError:
            return None
        prompt = stored[_DIGEST_BYTES:]
        return prompt if sha256(prompt).digest() == stored[:_DIGEST_BYTES] else None

    def save_prompt(self, key: str, prompt: bytes) -> None:
        """Keep a prompt for the next time."""
        path = self._prompt_path(key)
        disk.make_folder(path.parent)
        disk.write(path, [sha256(prompt).digest(), prompt])

    def _prompt_path(self, key: str) -> Path:
        name = key if _KEY.fullmatch(key) else sha256(key.encode()).hexdigest()
        return self.path / "prompts" / f"{name}.bin"
