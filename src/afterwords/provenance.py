"""Provenance: the seal of a voice, and the mark of synthetic speech in every audio file.

`clone` seals a voice, `say` and servers mark audio, and `afterwords verify` reads the mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from pydantic import Field, ValidationError

from afterwords import __version__
from afterwords.models import Consent, Model, Provenance, UtcTime, Voice, now
from afterwords.text import printable

SYNTHETIC = "trainedAlgorithmicMedia"
"""Digital source type of synthetic speech. Source: IPTC NewsCodes (cv.iptc.org)."""


# -- the seal ------------------------------------------------------------------------------------------------


def seal(*, reference_sha256: str, original_sha256: str, window_start_s: float, consent: Consent) -> Provenance:
    """Bind a prepared reference to its original recording and to the statement of consent.

    The seal detects changed or exchanged files. It contains no secret, so it does not prove who made it.

    Args:
        reference_sha256: SHA-256 of the canonical WAV.
        original_sha256: SHA-256 of the untouched file.
        window_start_s: Start of the reference in the original, in seconds.
        consent: Statement of consent.
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
    """Return whether reference, original, consent and time are those that were sealed; False without a seal.

    This compares the fields of the voice. The SHA-256 of the recording is checked when the recording is read.
    """
    if voice.provenance is None or voice.consent is None or voice.reference is None:
        return False
    return voice.provenance.seal == _digest(voice.provenance, voice.reference.sha256, voice.consent)


def _digest(provenance: Provenance, reference_sha256: str, consent: Consent) -> str:
    """Return the SHA-256 of canonical JSON: sorted keys, no spaces, ASCII, times as stored."""
    facts = provenance.model_dump(mode="json", exclude={"seal"})
    facts |= {"reference_sha256": reference_sha256, "consent": consent.model_dump(mode="json")}
    return sha256(json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


# -- the mark ------------------------------------------------------------------------------------------------


class Mark(Model):
    """Mark of synthetic speech in an audio file. Tags can be removed, so a missing mark proves nothing."""

    is_synthetic: bool = Field(description="True if the file states that its speech is synthetic.")
    generator: str | None = Field(default=None, description="Program and version that made the audio, if stated.")
    backend: str | None = Field(default=None, description="Backend that spoke, if stated.")
    voice_name: str | None = Field(default=None, description="Name of the voice, if stated.")
    voice_id: str | None = Field(default=None, description="ID of the voice, if stated.")
    made_at: UtcTime | None = Field(default=None, description="Time of the synthesis, UTC, if stated.")


_KEYS = {
    "generator": "generator",
    "backend": "backend",
    "voice": "voice_name",
    "voice_id": "voice_id",
    "made_at": "made_at",
}
_PLAIN = re.compile(r"[A-Za-z0-9._/:+-]+")
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^;\s"]+)(?:; |$)?')


def mark_tags(*, backend: str, voice_name: str, voice_id: str, made_at: datetime) -> dict[str, str]:
    """Return the tags that mark synthetic speech: title, artist, comment, software, date.

    The comment is one line of ASCII for people and programs; values with special characters are quoted as in JSON.
    """
    facts = Mark(
        is_synthetic=True,
        generator=f"afterwords/{__version__}",
        backend=backend,
        voice_name=voice_name,
        voice_id=voice_id,
        made_at=made_at,
    ).model_dump(mode="json")
    pairs = []
    for key, field in _KEYS.items():
        is_plain = key != "voice" and _PLAIN.fullmatch(facts[field])
        pairs.append(f"{key}={facts[field] if is_plain else json.dumps(facts[field])}")
    return {
        "title": "Synthetic speech",
        "artist": printable(voice_name),
        "comment": f"Synthetic speech. digitalSourceType={SYNTHETIC}; {'; '.join(pairs)}",
        "software": f"afterwords {__version__}",
        "date": made_at.astimezone(UTC).date().isoformat(),
    }


def read_mark(tags: Mapping[str, str]) -> Mark | None:
    """Return the mark in a file's tags, or None; a truncated mark has the fields that are left."""
    comment = tags.get("comment", "")
    position = comment.find("digitalSourceType=")
    stated: dict[str, str] = {}
    # Match pair by pair from the start, so that the name of a voice can't add fields.
    while position >= 0 and (pair := _PAIR.match(comment, position)):
        value = pair[2]
        with suppress(ValueError):
            value = str(json.loads(value)) if value.startswith('"') else value
        stated.setdefault(pair[1], value)
        position = pair.end()
    if not stated:
        return None
    facts: dict[str, object] = {field: stated[key] for key, field in _KEYS.items() if key in stated}
    facts["is_synthetic"] = stated["digitalSourceType"] == SYNTHETIC
    try:
        return Mark.model_validate(facts)
    except ValidationError:  # only the time can be invalid
        return Mark.model_validate({**facts, "made_at": None})


def verify(path: Path | str) -> Mark | None:
    """Read the mark of synthetic speech from an audio file; return None if the file has no mark.

    The mark is metadata that anyone can remove, so a missing mark proves nothing.

    Raises:
        FileError: The file can't be read.
        RecordingError: The file is not audio.
    """
    from afterwords.audio.decoding import read_tags

    return read_mark(read_tags(Path(path)))
