"""Where a voice and a piece of speech come from: the seal on a voice, the mark in every audio file.

Apart because both are promises to people outside: a reference and its consent belong together, and speech says that
it is synthetic. The studio seals when it clones, and marks when it speaks; `afterwords verify` reads the mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from afterwords import __version__
from afterwords.models import Consent, Model, Provenance, UtcTime, Voice, now
from afterwords.text import printable

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio

SYNTHETIC = "trainedAlgorithmicMedia"
"""What synthetic speech is called. Source: IPTC NewsCodes, digital source type (cv.iptc.org)."""


# -- the seal ------------------------------------------------------------------------------------------------


def seal(*, reference_sha256: str, original_sha256: str, window_start_s: float, consent: Consent) -> Provenance:
    """Bind a prepared reference to the recording it came from and to the consent that was stated.

    The seal finds a change, by accident or by exchange of a file; it holds no secret, so it proves nothing of who
    made it.

    Args:
        reference_sha256: of the canonical WAV.
        original_sha256: of the untouched file.
        window_start_s: where in the original the reference begins, in seconds.
        consent: by what right the voice is cloned.
    """
    facts = {
        "original_sha256": original_sha256,
        "window_start_s": float(window_start_s),
        "software": f"afterwords {__version__}",
        "sealed_at": now(),
    }
    unsealed = Provenance.model_validate({**facts, "seal": "0" * 64})
    return Provenance.model_validate({**facts, "seal": _digest(unsealed, reference_sha256, consent)})


def verify_seal(voice: Voice) -> bool:
    """Whether reference, original, consent and time are still those that were sealed; without a seal they are not.

    Compares what the voice states. That the recording has the stated SHA-256 is checked where it is read.
    """
    if voice.provenance is None or voice.consent is None or voice.reference is None:
        return False
    return voice.provenance.seal == _digest(voice.provenance, voice.reference.sha256, voice.consent)


def _digest(provenance: Provenance, reference_sha256: str, consent: Consent) -> str:
    """SHA-256 over canonical JSON: keys sorted, no spaces, ASCII, times as they are stored."""
    facts = provenance.model_dump(mode="json", exclude={"seal"})
    facts |= {"reference_sha256": reference_sha256, "consent": consent.model_dump(mode="json")}
    return sha256(json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


# -- the mark ------------------------------------------------------------------------------------------------


class Mark(Model):
    """What a piece of audio says of itself. A tag can be removed, so the absence of a mark proves nothing."""

    is_synthetic: bool = Field(description="Whether it says that a machine spoke it.")
    generator: str | None = Field(default=None, description="Program and version that made it, if stated.")
    backend: str | None = Field(default=None, description="The backend that spoke, if stated.")
    voice_name: str | None = Field(default=None, description="Name of the voice, if stated.")
    voice_id: str | None = Field(default=None, description="Identifier of the voice, if stated.")
    made_at: UtcTime | None = Field(default=None, description="When it was made, UTC, if stated.")


_KEYS = {
    "generator": "generator",
    "backend": "backend",
    "voice": "voice_name",
    "voice_id": "voice_id",
    "made_at": "made_at",
}
_PLAIN = re.compile(r"[A-Za-z0-9._/:+-]+")
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^;\s"]+)(?:; |$)?')


def mark(audio: Audio, *, backend: str, voice: Voice, made_at: datetime) -> Audio:
    """Return the audio with the mark among its tags, which every format that is written carries."""
    tags = mark_tags(backend=backend, voice_name=voice.name, voice_id=voice.voice_id, made_at=made_at)
    return replace(audio, tags={**audio.tags, **tags})


def mark_tags(*, backend: str, voice_name: str, voice_id: str, made_at: datetime) -> dict[str, str]:
    """Make the tags of synthetic speech under generic keys: title, artist, comment, software, date.

    The comment is one line of ASCII for people and programs alike; what might end a value early is quoted as in JSON.
    """
    facts = Mark(
        is_synthetic=True,
        generator=f"afterwords/{__version__}",
        backend=backend,
        voice_name=voice_name,
        voice_id=voice_id,
        made_at=made_at,
    ).model_dump(mode="json")
    stated = "; ".join(f"{key}={_quoted(facts[field], always=key == 'voice')}" for key, field in _KEYS.items())
    return {
        "title": "Synthetic speech",
        "artist": printable(voice_name),
        "comment": f"Synthetic speech. digitalSourceType={SYNTHETIC}; {stated}",
        "software": f"afterwords {__version__}",
        "date": made_at.astimezone(UTC).date().isoformat(),
    }


def read_mark(tags: Mapping[str, str]) -> Mark | None:
    """Find the mark among a file's tags; None where there is none. A mark that was cut short says what is left."""
    comment = tags.get("comment", "")
    position = comment.find("digitalSourceType=")
    stated: dict[str, str] = {}
    # Pair by pair from the start, so that a voice's name can't state anything.
    while position >= 0 and (pair := _PAIR.match(comment, position)):
        stated.setdefault(pair[1], _unquoted(pair[2]))
        position = pair.end()
    return _mark_from(stated) if stated else None


def verify(path: Path | str) -> Mark | None:
    """Read the mark of synthetic speech from an audio file; None if the file has no mark.

    The mark is metadata that anybody can remove, so a file without one proves nothing.

    Raises:
        FileError: the file can't be read.
        RecordingError: it is not audio.
    """
    from afterwords.audio.decoding import read_tags

    return read_mark(read_tags(Path(path)))


def _mark_from(stated: dict[str, str]) -> Mark:
    facts: dict[str, object] = {field: stated[key] for key, field in _KEYS.items() if key in stated}
    facts["is_synthetic"] = stated["digitalSourceType"] == SYNTHETIC
    try:
        return Mark.model_validate(facts)
    except ValidationError:  # only the time can be wrong
        return Mark.model_validate({**facts, "made_at": None})


def _quoted(value: str, *, always: bool) -> str:
    return value if not always and _PLAIN.fullmatch(value) else json.dumps(value)


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
