"""A voice as one portable file: packed to the byte, and judged like any stranger's file when it comes back.

Apart because a bundle outlives programs: what it looks like is a promise, written down in docs/bundle.md. It is a ZIP
in one single form (nothing compressed, no times, no room for anything else), so that every byte that differs is found,
and nothing is allocated that is larger than the file. Export and import, on a server and at home, pass through here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal
from zlib import crc32

from pydantic import Field

from afterwords.audio.wav import REFERENCE_MAX_BYTES, canonical_wav, check_reference_wav
from afterwords.disk import read_pieces
from afterwords.errors import InvalidBundleError, InvalidInputError, RecordingError
from afterwords.models import Model, Sha256, Voice, is_id
from afterwords.provenance import verify_seal
from afterwords.text import MAX_LOCAL_CHARS, check_name, check_text

FORMAT: Final = "afterwords-voice"
VERSION: Final = 2
"""The newest that is read; one without prompts is written as version 1, which every reader knows."""

_MANIFEST, _REFERENCE, _TRANSCRIPT = "manifest.json", "reference.wav", "transcript.txt"
_PROMPTS: Final = tuple(f"prompt-{number}.bin" for number in range(1, 5))
PROMPT_MAX_BYTES: Final = 1 << 20
_MEMBERS: Final = {
    _MANIFEST: 256 * 1024,
    _REFERENCE: REFERENCE_MAX_BYTES,
    _TRANSCRIPT: 512 * 1024,
    **dict.fromkeys(_PROMPTS, PROMPT_MAX_BYTES),
}
"""What there may be, in this order, and the most bytes that each may have; the first two must be there."""

BUNDLE_MAX_BYTES: Final = sum(_MEMBERS.values()) + 2048
"""No bundle has more: the rest is what a ZIP of seven members needs."""

# PKWARE, "APPNOTE.TXT - .ZIP File Format Specification", sections 4.3.7, 4.3.12 and 4.3.16
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<4sHHHHIIH")
_STORED_VERSION: Final = 10
_UNIX: Final = 3 << 8 | _STORED_VERSION
_PRIVATE_FILE: Final = 0o100600 << 16
_FIRST_DAY: Final = 0x0021  # 1 January 1980, the earliest that the format knows

_BACKEND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LANG = re.compile(r"[a-z]{2}")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STATED = {"voice_id", "name", "lang", "backend", "reference", "created_at"}
_DURATION_SLACK_S: Final = 0.001  # voices state their length in milliseconds


class _Member(Model):
    """What a manifest says of another member."""

    sha256: Sha256 = Field(description="SHA-256 of its bytes.")
    size_bytes: int = Field(ge=0, description="How many there are.")


class _StatedPrompt(Model):
    """What a manifest says of a prompt."""

    backend: str = Field(description="The backend that speaks with it.")
    version: str = Field(min_length=1, max_length=200, description="The engine's version of its prompts.")
    is_fast: bool = Field(description="Whether it was made in less time, for less likeness.")
    made_from: Sha256 = Field(description="SHA-256 of the recording's SHA-256, the language and the transcript.")


class _Manifest(Model):
    """What manifest.json says."""

    format: Literal["afterwords-voice"] = Field(description="That it is a voice.")
    version: Literal[1, 2] = Field(description="The version of the format.")
    prompts: dict[str, _StatedPrompt] = Field(default={}, description="What engines made of the voice, by member.")
    members: dict[str, _Member] = Field(description="Every other member of the file, by name.")
    voice: dict[str, Any] = Field(repr=False, description="The voice, all but sound and transcript.")


@dataclass(frozen=True, slots=True)
class BundledPrompt:
    """What an engine made of a voice, so that it need not be made again where the same engine speaks.

    Attributes:
        data: bytes that may come from anyone; the engine judges them when it reads them.
        is_fast: made in less time, for less likeness.
    """

    backend: str
    version: str
    is_fast: bool
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is in a bundle.

    Attributes:
        wav: the recording, a canonical WAV.
        n_foreign: prompts that were left out: they were made from another recording, language or transcript.
    """

    voice: Voice
    wav: bytes = field(repr=False)
    prompts: tuple[BundledPrompt, ...] = ()
    n_foreign: int = 0


# -- packing -------------------------------------------------------------------------------------------------


def pack(voice: Voice, reference_wav: bytes, prompts: Sequence[BundledPrompt] = ()) -> bytes:
    """Make the bundle of a voice: the same voice makes the same bytes, anywhere and at any time.

    Args:
        voice: whatever it states travels along.
        reference_wav: its recording, a canonical WAV.
        prompts: what engines made of it; the first four that are not too large are taken.

    Raises:
        ValueError: the recording is not the one that the voice states.
    """
    if sha256(reference_wav).hexdigest() != voice.ref_sha256:
        raise ValueError("the recording is not the one that the voice states")
    others = {_REFERENCE: reference_wav}
    if voice.ref_text:
        others[_TRANSCRIPT] = voice.ref_text.encode()
    named = dict(zip(_PROMPTS, (p for p in prompts if 0 < len(p.data) <= PROMPT_MAX_BYTES), strict=False))
    others |= {name: prompt.data for name, prompt in named.items()}
    manifest = _Manifest(
        format=FORMAT,
        version=2 if named else 1,
        prompts={
            name: _StatedPrompt(backend=p.backend, version=p.version, is_fast=p.is_fast, made_from=_made_from(voice))
            for name, p in named.items()
        },
        members={name: _Member(sha256=sha256(d).hexdigest(), size_bytes=len(d)) for name, d in others.items()},
        voice=voice.model_dump(mode="json", exclude={"ref_text"}),
    )
    facts = manifest.model_dump(exclude=None if named else {"prompts"})
    stated = json.dumps(facts, sort_keys=True, indent=2, allow_nan=False).encode() + b"\n"
    return b"".join(_archive({_MANIFEST: stated, **others}))


def _made_from(voice: Voice) -> str:
    """What prompts depend on."""
    return sha256("\0".join([voice.ref_sha256 or "", voice.lang, voice.ref_text or ""]).encode()).hexdigest()


def _archive(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """The pieces of the one ZIP file that has these members."""
    directory = b""
    offset = 0
    for name, data in members.items():
        shared = (_STORED_VERSION, 0, 0, 0, _FIRST_DAY, crc32(data), len(data), len(data), len(name), 0)
        local = _LOCAL.pack(b"PK\3\4", *shared) + name.encode()
        directory += _CENTRAL.pack(b"PK\1\2", _UNIX, *shared, 0, 0, 0, _PRIVATE_FILE, offset) + name.encode()
        offset += len(local) + len(data)
        yield local
        yield data
    yield directory
    yield _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(directory), offset, 0)


# -- unpacking -----------------------------------------------------------------------------------------------


def read_bundle(source: Path | BinaryIO) -> bytes:
    """Read a bundle up to the size that it may have, and one byte more, by which `unpack` refuses it.

    Raises:
        UnreadableFileError: the file can't be read.
    """
    if not isinstance(source, Path):
        return source.read(BUNDLE_MAX_BYTES + 1)
    data = bytearray()
    for piece in read_pieces(source):
        data += piece
        if len(data) > BUNDLE_MAX_BYTES:
            break
    return bytes(data)


def unpack(data: bytes) -> tuple[Voice, bytes]:
    """Read the voice as it was packed, and its recording, a canonical WAV; as `unpack_all`."""
    bundle = unpack_all(data)
    return bundle.voice, bundle.wav


def unpack_all(data: bytes) -> Bundle:
    """Read a bundle that may come from anyone.

    Raises:
        InvalidBundleError: it is not whole and unchanged, or the voice is not one that could have been made.
    """
    members = _members(data)
    manifest, part = _read_manifest(members.pop(_MANIFEST))
    if manifest.members.keys() != members.keys():
        raise InvalidBundleError(why="its manifest names other members than there are")
    for name, member in members.items():
        if manifest.members[name] != _Member(sha256=sha256(member).hexdigest(), size_bytes=len(member)):
            raise InvalidBundleError(why=f"its {name} is not the one that its manifest names")
    voice = _read_voice(part, members.get(_TRANSCRIPT))
    _check_recording(voice, members[_REFERENCE])
    if voice.provenance is not None and not verify_seal(voice):
        raise InvalidBundleError(why="the seal does not fit its recording and consent")
    prompts, n_foreign = _read_prompts(manifest, members, voice)
    return Bundle(voice, members[_REFERENCE], prompts, n_foreign)


def _read_prompts(
    manifest: _Manifest, members: Mapping[str, bytes], voice: Voice
) -> tuple[tuple[BundledPrompt, ...], int]:
    """The prompts that were made of this voice, and how many were made of another."""
    stated = manifest.prompts
    if stated.keys() != set(_PROMPTS) & members.keys() or bool(stated) != (manifest.version == 2):
        raise InvalidBundleError(why="its manifest names other prompts than there are")
    if not all(_BACKEND.fullmatch(prompt.backend) for prompt in stated.values()):
        raise InvalidBundleError(why="the backend of a prompt is not one")
    own = {name: prompt for name, prompt in stated.items() if prompt.made_from == _made_from(voice)}
    prompts = [BundledPrompt(p.backend, p.version, p.is_fast, members[name]) for name, p in sorted(own.items())]
    return tuple(prompts), len(stated) - len(own)


def _members(data: bytes) -> dict[str, bytes]:
    """Cut out the members, and see that putting them together again makes the same file."""
    if not data.startswith(b"PK\3\4"):
        raise InvalidBundleError(why="it is not a ZIP file")
    if len(data) > BUNDLE_MAX_BYTES:
        raise InvalidBundleError(why=f"it has {len(data):,} bytes, and at most {BUNDLE_MAX_BYTES:,} are taken")
    members: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\3\4":
        header = data[offset : offset + _LOCAL.size]
        if len(header) < _LOCAL.size:
            raise InvalidBundleError(why="it ends inside a header")
        _, _, flags, method, _, _, _, size_bytes, _, name_bytes, _ = _LOCAL.unpack(header)
        start = offset + _LOCAL.size + name_bytes
        name = _check_member(data[start - name_bytes : start], flags, method, size_bytes, known=members)
        members[name] = data[start : start + size_bytes]
        offset = start + size_bytes
    if not members.keys() >= {_MANIFEST, _REFERENCE}:
        raise InvalidBundleError(why=f"it lacks {_MANIFEST} or {_REFERENCE}")
    if b"".join(_archive(members)) != data:
        raise InvalidBundleError(why="it was cut, changed, or packed by another program")
    return members


def _check_member(name_bytes: bytes, flags: int, method: int, size_bytes: int, *, known: Mapping[str, bytes]) -> str:
    """Return the name of a member that may stand at this place."""
    name = name_bytes.decode("latin-1")
    if name not in _MEMBERS:
        raise InvalidBundleError(why=f"it holds something other than {', '.join(_MEMBERS)}")
    if name in known or list(_MEMBERS).index(name) < len(known):
        raise InvalidBundleError(why=f"its {name} is there twice or out of order")
    if flags or method:
        raise InvalidBundleError(why=f"its {name} is compressed or encrypted")
    if size_bytes > _MEMBERS[name]:
        raise InvalidBundleError(why=f"its {name} has more than {_MEMBERS[name]:,} bytes")
    return name


def _read_manifest(data: bytes) -> tuple[_Manifest, dict[str, Any]]:
    """The manifest, and the voice in it as JSON that any database takes."""
    try:
        stated = json.loads(data)
        if isinstance(stated, dict) and stated.get("format") == FORMAT and _is_newer(stated.get("version")):
            raise InvalidBundleError(why=f"its format is newer than version {VERSION}")
        manifest = _Manifest.model_validate(stated)
        plain = json.dumps(manifest.voice, ensure_ascii=False, allow_nan=False)
        plain.encode()  # a lone surrogate has no bytes
    except (ValueError, RecursionError):  # their messages quote what they were given
        raise InvalidBundleError(why=f"its {_MANIFEST} is not one") from None
    if holds_nul(plain):
        raise InvalidBundleError(why=f"its {_MANIFEST} holds a NUL")
    return manifest, manifest.voice


def holds_nul(stated: str) -> bool:
    """Whether there is a NUL in JSON, which not every database takes."""
    return _NUL.search(stated) is not None


def _is_newer(version: object) -> bool:
    return isinstance(version, int) and version > VERSION


def _read_voice(part: dict[str, Any], transcript: bytes | None) -> Voice:
    """The voice, if it is one that could have been made."""
    if "ref_text" in part or not part.keys() >= _STATED:
        raise InvalidBundleError(why="its voice has wrong or missing fields")
    try:
        text = None if transcript is None else transcript.decode()
        voice = Voice.model_validate({**part, "ref_text": text})
        voice.model_dump_json()  # what is nested too deep could not be stored
    except (ValueError, RecursionError):
        raise InvalidBundleError(why="its voice or transcript has a wrong value") from None
    try:
        has_odd_name = check_name(voice.name) != voice.name
        if voice.family:
            check_name(voice.family)
        if text is not None:
            check_text(text, max_chars=MAX_LOCAL_CHARS)
    except InvalidInputError as error:
        raise InvalidBundleError(why=f"its name, family or transcript can't be used ({error.code})") from None
    if has_odd_name:
        raise InvalidBundleError(why="its name is not composed (NFC), or has space around it")
    if not (is_id(voice.voice_id) and _BACKEND.fullmatch(voice.backend) and _LANG.fullmatch(voice.lang)):
        raise InvalidBundleError(why="its voice_id, backend or lang is not one")
    return voice


def _check_recording(voice: Voice, reference_wav: bytes) -> None:
    """See that the recording can be cloned from, has the form that is kept, and is the one that the voice states."""
    try:
        samples, sample_rate = check_reference_wav(reference_wav)
    except RecordingError as error:
        raise InvalidBundleError(why=f"its recording can't be used ({error.code})") from error
    facts = voice.reference
    if (
        facts is None
        or facts.sha256 != sha256(reference_wav).hexdigest()
        or facts.sample_rate != sample_rate
        or abs(facts.duration_s - len(samples) / sample_rate) > _DURATION_SLACK_S
    ):
        raise InvalidBundleError(why="its recording is not the one that its voice states")
    if canonical_wav(samples, sample_rate) != reference_wav:
        raise InvalidBundleError(why="its recording is not a plain mono 16-bit WAV file")
