"""The folder of one voice: read, write and validate its files.

voice.json        the Voice
reference.wav     the prepared recording, with the SHA-256 of `reference.sha256`
original.<suffix> the original recording, if the voice was cloned on this machine
prompts/<key>.bin prompts of engines: caches, each after its SHA-256
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from afterwords import disk
from afterwords.errors import CorruptVoiceError, FileError, VoiceNotFoundError
from afterwords.models import Voice

PROFILE = "profile.json"
"""In place of voice.json: a profile of an old library whose recording could not be migrated."""

_SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Original:
    """An original recording to store.

    Attributes:
        source: The file, or its bytes.
        suffix: Extension of the file, such as ".m4a"; ignored if it is invalid.
    """

    source: Path | bytes
    suffix: str = ""

    @property
    def file_name(self) -> str:
        suffix = self.suffix.lower()
        return f"original{suffix if _SUFFIX.fullmatch(suffix) else ''}"

    def read(self, *, expected_sha256: str | None) -> Iterator[bytes]:
        """Read the recording in blocks.

        Raises:
            FileError: The file can't be read, or changed since it was sealed.
        """
        digest = sha256()
        for piece in [self.source] if isinstance(self.source, bytes) else disk.read_pieces(self.source):
            digest.update(piece)
            yield piece
        if expected_sha256 not in (None, digest.hexdigest()):
            where = "the original" if isinstance(self.source, bytes) else self.source
            raise FileError.unreadable(where, why="it changed while the voice was being cloned")


@dataclass(frozen=True, slots=True)
class VoiceFolder:
    """The folder of one voice. Writes are atomic."""

    path: Path

    def write(self, voice: Voice, *, reference_wav: bytes, original: Original | None) -> None:
        """Create the folder. The caller moves it into place when it is complete.

        Raises:
            CorruptVoiceError: The recording doesn't match the voice.
            FileError: The original can't be read.
            StorageFullError, FileError: A file can't be written.
        """
        if sha256(reference_wav).hexdigest() != voice.ref_sha256:
            raise CorruptVoiceError.for_folder(self.path, why="its recording does not match voice.json")
        disk.make_folder(self.path)
        if original is not None:
            expected = voice.provenance.original_sha256 if voice.provenance else None
            disk.write(self.path / original.file_name, original.read(expected_sha256=expected))
        disk.write(self.path / "reference.wav", [reference_wav])
        self.write_voice(voice)

    def write_voice(self, voice: Voice) -> None:
        """Write voice.json, without the status on a server."""
        facts = voice.model_dump_json(indent=2, exclude={"status"})
        disk.write(self.path / "voice.json", [facts.encode(), b"\n"])

    def read(self, voice_id: str) -> Voice:
        """Read and validate voice.json, and check that the recording exists.

        Raises:
            CorruptVoiceError: The voice is incomplete or invalid.
        """
        if (self.path / PROFILE).exists():
            raise CorruptVoiceError.for_folder(
                self.path, why="its recording was missing when an old library was migrated"
            )
        try:
            voice = Voice.model_validate_json(disk.read(self.path / "voice.json"))
        except OSError as error:
            raise CorruptVoiceError.for_folder(self.path, why=f"voice.json can't be read ({error.strerror})") from error
        except ValidationError as error:
            fields = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
            why = f"voice.json has wrong or unknown fields ({fields})" if fields else "voice.json is not JSON"
            raise CorruptVoiceError.for_folder(self.path, why=why) from error
        if voice.reference is None:
            raise CorruptVoiceError.for_folder(self.path, why="voice.json has wrong or unknown fields (reference)")
        if voice.voice_id != voice_id:
            raise CorruptVoiceError.for_folder(self.path, why="voice.json belongs to another voice")
        if not (self.path / "reference.wav").is_file():
            raise CorruptVoiceError.for_folder(self.path, why="its recording is missing")
        return voice

    def reference(self, voice: Voice) -> bytes:
        """Read the recording, a canonical WAV.

        Raises:
            VoiceNotFoundError: The voice was removed in the meantime.
            CorruptVoiceError: The recording is missing or changed.
        """
        try:
            recording = disk.read(self.path / "reference.wav")
        except OSError as error:
            if not self.path.exists():
                raise VoiceNotFoundError.for_name(voice.name) from error
            raise CorruptVoiceError.for_folder(
                self.path, why=f"its recording can't be read ({error.strerror})"
            ) from error
        if sha256(recording).hexdigest() != voice.ref_sha256:
            raise CorruptVoiceError.for_folder(self.path, why="its recording was changed")
        return recording

    def original(self) -> Path | None:
        """Return the path of the original recording, if there is one."""
        found = sorted(path for path in self.path.glob("original*") if path.suffix != ".part")
        return found[0] if found else None

    def prompt(self, key: str) -> bytes | None:
        """Read a prompt; None if it is missing or damaged."""
        try:
            stored = disk.read(self._prompt_path(key))
        except OSError:
            return None
        prompt = stored[_DIGEST_BYTES:]
        return prompt if sha256(prompt).digest() == stored[:_DIGEST_BYTES] else None

    def save_prompt(self, key: str, prompt: bytes) -> None:
        """Write a prompt."""
        path = self._prompt_path(key)
        disk.make_folder(path.parent)
        disk.write(path, [sha256(prompt).digest(), prompt])

    def _prompt_path(self, key: str) -> Path:
        name = key if _KEY.fullmatch(key) else sha256(key.encode()).hexdigest()
        return self.path / "prompts" / f"{name}.bin"
