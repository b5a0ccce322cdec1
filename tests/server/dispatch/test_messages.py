"""Messages between the server and a worker process: round trips, truncation and malformed bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from io import BytesIO

import pytest

from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import MalformedMessageError, Message

pytestmark = pytest.mark.anyio

SENT = messages.pack("speak", b"\0body\xff", text="zwölf \ud83d 你好\n", number=7)


async def read_all(data: bytes) -> list[Message]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return [message async for message in _each(reader)]


async def _each(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    while (message := await messages.receive(reader)) is not None:
        yield message


async def test_both_readers_return_what_pack_wrote() -> None:
    expected = Message("speak", {"text": "zwölf \ud83d 你好\n", "number": 7}, b"\0body\xff")
    assert await read_all(2 * SENT) == [expected, expected]
    file = BytesIO(2 * SENT)
    assert [messages.read(file), messages.read(file), messages.read(file)] == [expected, expected, None]


async def test_truncated_message_is_the_end() -> None:
    for n_bytes in range(len(SENT)):
        assert await read_all(SENT[:n_bytes]) == [], n_bytes
        assert messages.read(BytesIO(SENT[:n_bytes])) is None, n_bytes


@pytest.mark.parametrize(
    "data",
    [
        b"Loading weights: 100%|####|",
        struct.pack("!II", 2**31, 0),
        struct.pack("!II", 2, 2**31),
        struct.pack("!II", 2, 0) + b"{}",
        struct.pack("!II", 2, 0) + b"[]",
        struct.pack("!II", 2, 0) + b"\xff\xff",
    ],
)
async def test_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        await read_all(data)
    with pytest.raises(MalformedMessageError):
        messages.read(BytesIO(data))


def test_repr_of_a_message_shows_no_content() -> None:
    assert "secret" not in repr(Message("speak", {"text": "secret"}, b"secret"))


async def test_stream_is_split_wherever_it_is_cut() -> None:
    async def pieces(n_bytes: int) -> AsyncIterator[bytes]:
        for start in range(0, 2 * len(SENT), n_bytes):
            yield (2 * SENT)[start : start + n_bytes]

    expected = Message("speak", {"text": "zwölf \ud83d 你好\n", "number": 7}, b"\0body\xff")
    for n_bytes in (1, 7, len(SENT), 2 * len(SENT)):
        assert [message async for message in messages.split(pieces(n_bytes))] == [expected, expected]


async def test_split_refuses_a_long_message_at_its_head() -> None:
    async def head() -> AsyncIterator[bytes]:
        yield struct.pack("!II", 10, 1 << 20)

    with pytest.raises(MalformedMessageError):
        [message async for message in messages.split(head())]
