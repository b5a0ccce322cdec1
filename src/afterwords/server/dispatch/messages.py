"""The messages that the server and a worker process exchange over a pipe: a kind, facts, and bytes.

On the wire a message is two lengths (big-endian, 32 bits), a JSON object and a body.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    import asyncio

INVALID_PROMPT: Final = "invalid_prompt"
"""The error of an utterance whose prompt the engine could not read."""
_LENGTHS: Final = struct.Struct("!II")
_HEADER_MAX_BYTES: Final = 1 << 20  # a text has at most 5,000 characters
_BODY_MAX_BYTES: Final = 1 << 28  # a second of audio is 48 kB; prompts are smaller than their recordings


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Its repr shows neither facts nor body, which may hold text and voices."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


class MalformedMessageError(Exception):
    """The bytes received are not a message."""


def pack(kind: str, body: bytes = b"", **facts: Any) -> bytes:
    """Return a message as bytes for the wire."""
    header = json.dumps({"kind": kind, **facts}, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(header), len(body)) + header + body


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """Read the next message; return None if the other side is gone, even within a message.

    Raises:
        MalformedMessageError: The bytes are not a message.
    """
    try:
        n_header, n_body = _unpack_lengths(await reader.readexactly(_LENGTHS.size))
        return _parse(await reader.readexactly(n_header), await reader.readexactly(n_body))
    except (EOFError, OSError):
        return None


def read(file: BinaryIO) -> Message | None:
    """Do what `receive` does, blocking, from an open file."""
    head = file.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    n_header, n_body = _unpack_lengths(head)
    header, body = file.read(n_header), file.read(n_body)
    return _parse(header, body) if len(body) == n_body else None


def _unpack_lengths(head: bytes) -> tuple[int, int]:
    n_header, n_body = _LENGTHS.unpack(head)
    if n_header > _HEADER_MAX_BYTES or n_body > _BODY_MAX_BYTES:
        raise MalformedMessageError
    return n_header, n_body


def _parse(header: bytes, body: bytes) -> Message:
    try:
        facts = json.loads(header)
        return Message(facts.pop("kind"), facts, body)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MalformedMessageError from None
