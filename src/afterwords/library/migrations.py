"""Migrate an old library: one function per schema. The library calls `migrate` under its lock.

All data of the old version is kept, even if a migration is interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from itertools import chain, count
from pathlib import Path

from pydantic import ValidationError

from afterwords import disk
from afterwords.errors import AfterwordsError, CorruptVoiceError
from afterwords.library.folder import PROFILE, Original, VoiceFolder
from afterwords.models import ReferenceInfo, Voice, new_id, now
from afterwords.text import check_name, normalize_lang, printable

SCHEMA = 2
"""The schema that this version writes."""

_OLD = ".voices-schema1"  # the old folder while the new one is moved into place
_NEW = ".new-voices"


def unmarked_schema(home: Path) -> int:
    """Return the schema of a library without library.json: schema 1 had flat profiles only."""
    is_old = (home / _OLD).exists() or next((home / "voices").glob("*.json"), None) is not None
    return 1 if is_old else SCHEMA


def migrate(home: Path, schema: int) -> None:
    """Migrate a library to the current schema. Safe to repeat after a crash."""
    while schema < SCHEMA:
        _STEPS[schema](home)
        schema += 1


def _from_profiles(home: Path) -> None:
    """Migrate schema 1 of afterwords 1.x: flat `voices/*.json` profiles with their recordings.

    The old folder is copied to `voices-schema1-<date>` first. A profile without a usable recording gets a folder that
    is reported as damaged.
    """
    voices, old, new = home / "voices", home / _OLD, home / _NEW
    if old.exists() and not voices.exists():  # a crash between the two moves below: start over
        disk.move(old, voices)
    if not old.exists():
        # Copied under a hidden name first, so that the final name is always complete.
        unfinished = home / ".new-copy"
        shutil.rmtree(unfinished, ignore_errors=True)
        disk.copy_folder(voices, unfinished)
        first = home / f"voices-schema1-{now().date().isoformat()}"
        paths = chain([first], (first.with_name(f"{first.name}-{number}") for number in count(2)))
        disk.move(unfinished, next(path for path in paths if not path.exists()))
        shutil.rmtree(new, ignore_errors=True)
        disk.make_folder(new)
        taken: set[str] = set()
        for profile in sorted(voices.glob("*.json")):
            voice_id = new_id()
            try:
                voice, reference_wav, recording = _read_profile(profile, home, voice_id)
            except (AfterwordsError, ValidationError):
                disk.make_folder(new / voice_id)
                disk.write(new / voice_id / PROFILE, disk.read_pieces(profile))
                continue
            names = chain([voice.name], (f"{voice.name[:190]} {number}" for number in count(2)))
            voice = voice.model_copy(update={"name": next(name for name in names if name not in taken)})
            taken.add(voice.name)
            original = Original(recording, recording.suffix)
            VoiceFolder(new / voice_id).write(voice, reference_wav=reference_wav, original=original)
        disk.move(voices, old)
        disk.move(new, voices)
    disk.remove_folder(old)


_STEPS: dict[int, Callable[[Path], None]] = {1: _from_profiles}


def _read_profile(profile: Path, home: Path, voice_id: str) -> tuple[Voice, bytes, Path]:
    """Return the voice of a profile, its canonical WAV, and its recording.

    Raises:
        AfterwordsError, ValidationError: The profile or the recording is unusable.
    """
    from afterwords.audio.audio import decode
    from afterwords.audio.wav import canonical_wav

    try:
        fields = json.loads(disk.read(profile))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptVoiceError.for_folder(profile, why="its profile is not JSON") from error
    if not isinstance(fields, dict):
        raise CorruptVoiceError.for_folder(profile, why="its profile is not an object")
    path = fields.get("reference_audio")
    found: list[Path] = []
    if isinstance(path, str) and path and "\0" not in path:
        found = [base / path for base in (profile.parent, home) if (base / path).is_file()]
    if not found:
        raise CorruptVoiceError.for_folder(profile, why="its recording is missing")
    recording = found[0]
    audio = decode(recording)
    reference_wav = canonical_wav(audio.samples, audio.sample_rate)
    text, lang = fields.get("reference_text"), fields.get("lang")
    voice = Voice(
        voice_id=voice_id,
        name=check_name(str(fields.get("name") or profile.stem)),
        backend="lite",
        lang=normalize_lang(lang) if isinstance(lang, str) else "en",  # 1.x spoke English only
        ref_text=text if isinstance(text, str) and text.strip() else None,
        reference=ReferenceInfo(
            sha256=sha256(reference_wav).hexdigest(),
            duration_s=len(audio.samples) / audio.sample_rate,
            sample_rate=audio.sample_rate,
        ),
        created_at=disk.modified_at(profile.stat()),
        metadata={key: printable(str(fields[key])) for key in ("source_url", "segment_start_s") if fields.get(key)},
    )
    return voice, reference_wav, recording
