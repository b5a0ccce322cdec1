"""Bundles: pack a voice into one portable file, and validate and unpack an untrusted one.

docs/bundle.md specifies the format. It is a ZIP in one canonical form (stored, no times, no extra bytes), so that any
changed byte is detected and nothing larger than the file is allocated.
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
"""The newest supported version. A bundle without prompts is written as version 1, for older readers."""

_MANIFEST, _REFERENCE, _TRANSCRIPT = "manifest.json", "reference.wav", "transcript.txt"
_PROMPTS: Final = tuple(f"prompt-{number}.bin" for number in range(1, 5))
PROMPT_MAX_BYTES: Final = 1 << 20
_MEMBERS: Final = {
    _MANIFEST: 256 * 1024,
    _REFERENCE: REFERENCE_MAX_BYTES,
    _TRANSCRIPT: 512 * 1024,
    **dict.fromkeys(_PROMPTS, PROMPT_MAX_BYTES),
}
"""The allowed members in order, with their size limits in bytes; the first two are required."""

BUNDLE_MAX_BYTES: Final = sum(_MEMBERS.values()) + 2048
"""The limit of a bundle; the rest is the overhead of a ZIP of seven members."""

# PKWARE, "APPNOTE.TXT - .ZIP File Format Specification", sections 4.3.7, 4.3.12 and 4.3.16
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<4sHHHHIIH")
_STORED_VERSION: Final = 10
_UNIX: Final = 3 << 8 | _STORED_VERSION
_PRIVATE_FILE: Final = 0o100600 << 16
_FIRST_DAY: Final = 0x0021  # 1 January 1980, the earliest date of the format

_BACKEND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LANG = re.compile(r"[a-z]{2}")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_REQUIRED = {"voice_id", "name", "lang", "backend", "reference", "created_at"}
_DURATION_SLACK_S: Final = 0.001  # durations are stored in milliseconds


class _Member(Model):
    """The manifest entry of a member."""

    sha256: Sha256 = Field(description="SHA-256 of the bytes.")
    size_bytes: int = Field(ge=0, description="Size in bytes.")


class _PromptEntry(Model):
    """The manifest entry of a prompt."""

    backend: str = Field(description="Backend that uses the prompt.")
    version: str = Field(min_length=1, max_length=200, description="Prompt version of the engine.")
    is_fast: bool = Field(description="Whether it was prepared in fast mode, with less similarity.")
    made_from: Sha256 = Field(description="SHA-256 over the SHA-256 of the recording, the language and the transcript.")


class _Manifest(Model):
    """The contents of manifest.json."""

    format: Literal["afterwords-voice"] = Field(description="Name of the format.")
    version: Literal[1, 2] = Field(description="Version of the format.")
    prompts: dict[str, _PromptEntry] = Field(default={}, description="Prompts of the voice, by member.")
    members: dict[str, _Member] = Field(description="All other members of the file, by name.")
    voice: dict[str, Any] = Field(repr=False, description="The voice, without recording and transcript.")


@dataclass(frozen=True, slots=True)
class BundledPrompt:
    """A prompt that an engine prepared from a voice, for reuse by the same engine elsewhere.

    Attributes:
        data: Untrusted bytes; the engine validates them when it reads them.
        is_fast: Prepared in fast mode, with less similarity.
    """

    backend: str
    version: str
    is_fast: bool
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The contents of a bundle.

    Attributes:
        wav: The recording, a canonical WAV.
        n_mismatched: Dropped prompts, made from another recording, language or transcript.
    """

    voice: Voice
    wav: bytes = field(repr=False)
    prompts: tuple[BundledPrompt, ...] = ()
    n_mismatched: int = 0


# -- packing -------------------------------------------------------------------------------------------------


def pack(voice: Voice, reference_wav: bytes, prompts: Sequence[BundledPrompt] = ()) -> bytes:
    """Pack a voice into a bundle. Equal voices give equal bytes.

    Args:
        voice: All of its fields are included, except for the status on a server.
        reference_wav: Its recording, a canonical WAV.
        prompts: Its prompts; the first four within the size limit are included.

    Raises:
        ValueError: The recording doesn't match the voice.
    """
    if sha256(reference_wav).hexdigest() != voice.ref_sha256:
        raise ValueError("the recording does not match the voice")
    others = {_REFERENCE: reference_wav}
    if voice.ref_text:
        others[_TRANSCRIPT] = voice.ref_text.encode()
    named = dict(zip(_PROMPTS, (p for p in prompts if 0 < len(p.data) <= PROMPT_MAX_BYTES), strict=False))
    others |= {name: prompt.data for name, prompt in named.items()}
    manifest = _Manifest(
        format=FORMAT,
        version=2 if named else 1,
        prompts={
            name: _PromptEntry(backend=p.backend, version=p.version, is_fast=p.is_fast, made_from=_made_from(voice))
            for name, p in named.items()
        },
        members={name: _Member(sha256=sha256(d).hexdigest(), size_bytes=len(d)) for name, d in others.items()},
        voice=voice.model_dump(mode="json", exclude={"ref_text", "status"}),
    )
    facts = manifest.model_dump(exclude=None if named else {"prompts"})
    stated = json.dumps(facts, sort_keys=True, indent=2, allow_nan=False).encode() + b"\n"
    return b"".join(_archive({_MANIFEST: stated, **others}))


def _made_from(voice: Voice) -> str:
    """Return the digest of everything that a prompt depends on."""
    return sha256("\0".join([voice.ref_sha256 or "", voice.lang, voice.ref_text or ""]).encode()).hexdigest()


def _archive(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the pieces of the canonical ZIP file with these members."""
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
    """Read a bundle, up to one byte over the size limit, which `unpack` then refuses.

    Raises:
        FileError: The file can't be read.
    """
    if not isinstance(source, Path):
        return source.read(BUNDLE_MAX_BYTES + 1)
    data = bytearray()
    for piece in read_pieces(source):
        data += piece
        if len(data) > BUNDLE_MAX_BYTES:
            break
    return bytes(data)


def unpack(data: bytes) -> Bundle:
    """Validate and unpack an untrusted bundle.

    Raises:
        InvalidBundleError: The bundle is incomplete or changed, or its voice is invalid.
    """
    members = _members(data)
    try:
        stated = json.loads(members.pop(_MANIFEST))
        version = stated.get("version") if isinstance(stated, dict) and stated.get("format") == FORMAT else None
        if isinstance(version, int) and version > VERSION:
            raise InvalidBundleError.for_reason(why=f"its format is newer than version {VERSION}")
        manifest = _Manifest.model_validate(stated)
        plain = json.dumps(manifest.voice, ensure_ascii=False, allow_nan=False)
        plain.encode()  # fails on a lone surrogate
    except (ValueError, RecursionError):  # their messages quote the input
        raise InvalidBundleError.for_reason(why=f"its {_MANIFEST} is invalid") from None
    if holds_nul(plain):  # some databases can't store it
        raise InvalidBundleError.for_reason(why=f"its {_MANIFEST} contains a NUL character")
    if manifest.members.keys() != members.keys():
        raise InvalidBundleError.for_reason(why="its manifest lists other members than it has")
    for name, member in members.items():
        if manifest.members[name] != _Member(sha256=sha256(member).hexdigest(), size_bytes=len(member)):
            raise InvalidBundleError.for_reason(why=f"its {name} does not match its manifest")
    voice = _read_voice(manifest.voice, members.get(_TRANSCRIPT))
    wav = members[_REFERENCE]
    try:
        samples, sample_rate = check_reference_wav(wav)
    except RecordingError as error:
        raise InvalidBundleError.for_reason(why=f"its recording is invalid ({error.code})") from error
    facts = voice.reference
    if (
        facts is None
        or facts.sha256 != manifest.members[_REFERENCE].sha256
        or facts.sample_rate != sample_rate
        or abs(facts.duration_s - len(samples) / sample_rate) > _DURATION_SLACK_S
    ):
        raise InvalidBundleError.for_reason(why="its recording does not match its voice")
    if canonical_wav(samples, sample_rate) != wav:
        raise InvalidBundleError.for_reason(why="its recording is not a plain mono 16-bit WAV file")
    if voice.provenance is not None and not verify_seal(voice):
        raise InvalidBundleError.for_reason(why="its seal does not match its recording and consent")
    bundled = manifest.prompts
    if bundled.keys() != set(_PROMPTS) & members.keys() or bool(bundled) != (manifest.version == 2):
        raise InvalidBundleError.for_reason(why="its manifest lists other prompts than it has")
    if not all(_BACKEND.fullmatch(prompt.backend) for prompt in bundled.values()):
        raise InvalidBundleError.for_reason(why="the backend of a prompt is not a valid name")
    own = {name: prompt for name, prompt in bundled.items() if prompt.made_from == _made_from(voice)}
    prompts = [BundledPrompt(p.backend, p.version, p.is_fast, members[name]) for name, p in sorted(own.items())]
    return Bundle(voice, wav, tuple(prompts), n_mismatched=len(bundled) - len(own))


def _members(data: bytes) -> dict[str, bytes]:
    """Return the members, after checking that packing them again gives the same bytes."""
    if not data.startswith(b"PK\3\4"):
        raise InvalidBundleError.for_reason(why="it is not a ZIP file")
    if len(data) > BUNDLE_MAX_BYTES:
        raise InvalidBundleError.for_reason(
            why=f"it has {len(data):,} bytes, more than the limit of {BUNDLE_MAX_BYTES:,}"
        )
    members: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\3\4":
        header = data[offset : offset + _LOCAL.size]
        if len(header) < _LOCAL.size:
            raise InvalidBundleError.for_reason(why="it ends inside a header")
        _, _, flags, method, _, _, _, size_bytes, _, name_bytes, _ = _LOCAL.unpack(header)
        start = offset + _LOCAL.size + name_bytes
        name = data[start - name_bytes : start].decode("latin-1")
        if name not in _MEMBERS:
            raise InvalidBundleError.for_reason(why=f"it has members other than {', '.join(_MEMBERS)}")
        if name in members or list(_MEMBERS).index(name) < len(members):
            raise InvalidBundleError.for_reason(why=f"its {name} is there twice or out of order")
        if flags or method:
            raise InvalidBundleError.for_reason(why=f"its {name} is compressed or encrypted")
        if size_bytes > _MEMBERS[name]:
            raise InvalidBundleError.for_reason(why=f"its {name} has more than {_MEMBERS[name]:,} bytes")
        members[name] = data[start : start + size_bytes]
        offset = start + size_bytes
    if not members.keys() >= {_MANIFEST, _REFERENCE}:
        raise InvalidBundleError.for_reason(why=f"it lacks {_MANIFEST} or {_REFERENCE}")
    if b"".join(_archive(members)) != data:
        raise InvalidBundleError.for_reason(why="it was truncated, changed, or packed by another program")
    return members


def holds_nul(stated: str) -> bool:
    """Return whether JSON contains an escaped NUL, which some databases can't store."""
    return _NUL.search(stated) is not None


def _read_voice(part: dict[str, Any], transcript: bytes | None) -> Voice:
    """Return the validated voice."""
    if "ref_text" in part or not part.keys() >= _REQUIRED:
        raise InvalidBundleError.for_reason(why="its voice has wrong or missing fields")
    try:
        text = None if transcript is None else transcript.decode()
        voice = Voice.model_validate({**part, "ref_text": text})
        voice.model_dump_json()  # fails on nesting that is too deep to store
    except (ValueError, RecursionError):
        raise InvalidBundleError.for_reason(why="its voice or transcript has a wrong value") from None
    try:
        has_odd_name = check_name(voice.name) != voice.name
        if voice.family:
            check_name(voice.family)
        if text is not None:
            check_text(text, max_chars=MAX_LOCAL_CHARS)
    except InvalidInputError as error:
        raise InvalidBundleError.for_reason(why=f"its name, family or transcript is invalid ({error.code})") from None
    if has_odd_name:
        raise InvalidBundleError.for_reason(why="its name is not in NFC, or has spaces around it")
    if not (is_id(voice.voice_id) and _BACKEND.fullmatch(voice.backend) and _LANG.fullmatch(voice.lang)):
        raise InvalidBundleError.for_reason(why="its voice_id, backend or lang is invalid")
    return voice
