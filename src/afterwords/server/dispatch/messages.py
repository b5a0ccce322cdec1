"""The messages that the server and a worker process exchange over a pipe: a kind, facts, and bytes.

On the wire a message is two lengths (big-endian, 32 bits), a JSON object and a body.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    import asyncio

INVALID_PROMPT: Final = "invalid_prompt"
"""The error of an utterance whose prompt the engine could not read."""
_LENGTHS: Final = struct.Struct("!II")
_HEADER_MAX_BYTES: Final = 1 << 20  # a text has at most 5,000 characters
_BODY_MAX_BYTES: Final = 1 << 28  # a second of audio is 48 kB; prompts are smaller than their recordings


_SHORT_MAX_BYTES: Final = 1 << 20


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


async def split(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Message, None]:
    """Yield the messages of a stream that is cut anywhere; each of them is short.

    Raises:
        MalformedMessageError: The bytes are not such messages.
    """
    data = bytearray()
    async for piece in pieces:
        data += piece
        while len(data) >= _LENGTHS.size:
            n_header, n_body = _unpack_lengths(data[: _LENGTHS.size])
            body_at = _LENGTHS.size + n_header
            if body_at + n_body > _SHORT_MAX_BYTES:
                raise MalformedMessageError
            if len(data) < body_at + n_body:
                break
            yield _parse(data[_LENGTHS.size : body_at], bytes(data[body_at : body_at + n_body]))
            del data[: body_at + n_body]


def _unpack_lengths(head: bytes | bytearray) -> tuple[int, int]:
    n_header, n_body = _LENGTHS.unpack(head)
    if n_header > _HEADER_MAX_BYTES or n_body > _BODY_MAX_BYTES:
        raise MalformedMessageError
    return n_header, n_body


def _parse(header: bytes | bytearray, body: bytes) -> Message:
    try:
        facts = json.loads(header)
        return Message(facts.pop("kind"), facts, body)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MalformedMessageError from None
