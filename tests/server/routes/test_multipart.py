"""Multipart forms with a file: accepted forms, errors, limits and memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from afterwords.errors import InvalidRequestError, RecordingError
from afterwords.server.routes.multipart import read_form
from afterwords.server.spool import open_spool
from tests.error_codes import has_code

CAP = 100_000
BOUNDARY = b"----form-7MA4YWxkTrZu0gW"
TYPE = b"multipart/form-data; boundary=" + BOUNDARY
FILE = b'form-data; name="ref_audio"; filename="me.wav"'


@dataclass
class Form:
    """A form and the content of its file."""

    fields: dict[str, str]
    file: bytes | None
    content_type: str | None


def part(disposition: bytes, content: bytes, *headers: bytes) -> bytes:
    lines = [b"--" + BOUNDARY, b"Content-Disposition: " + disposition, *headers, b"", content]
    return b"\r\n".join(lines) + b"\r\n"


def text(name: bytes, content: bytes, *headers: bytes) -> bytes:
    return part(b'form-data; name="' + name + b'"', content, *headers)


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def read_from(
    chunks: Iterator[bytes],
    *,
    content_types: Sequence[bytes] = (TYPE,),
    is_cut: bool = False,
    cap: int = CAP,
    folder: Path | None = None,
    is_kept: bool = True,
    has_more_files: bool = False,
) -> Form:
    """Read a form whose body arrives in these chunks, or breaks off after them."""

    async def receive() -> dict[str, object]:
        chunk = next(chunks, None)
        if chunk is None and is_cut:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    headers = [(b"content-type", value) for value in content_types]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with open_spool(folder) as file:
        form = asyncio.run(
            read_form(
                request,
                file,
                max_file_bytes=cap,
                file_field="ref_audio",
                fields=("name", "ref_text"),
                has_more_files=has_more_files,
            )
        )
        assert file.seek(0, 2) == 0 or form.has_file
        file.seek(0)
        return Form(form.fields, file.read() if form.has_file and is_kept else None, form.content_type)


def read(*chunks: bytes, content_types: Sequence[bytes] = (TYPE,), is_cut: bool = False) -> Form:
    return read_from(iter(chunks), content_types=content_types, is_cut=is_cut)


def refused(*chunks: bytes, content_types: Sequence[bytes] = (TYPE,)) -> str:
    with pytest.raises(InvalidRequestError, check=has_code("invalid_multipart")) as error:
        read(*chunks, content_types=content_types)
    assert "canary" not in error.value.message
    return error.value.message


# -- what is taken -------------------------------------------------------------------------------------------


def test_fields_and_file_are_read() -> None:
    sent = body(text(b"name", "Zoë 声".encode()), part(FILE, b"RIFF\0\xff\r\n", b"Content-Type: audio/wav"))
    assert read(sent) == Form({"name": "Zoë 声"}, b"RIFF\0\xff\r\n", "audio/wav")


def test_form_of_httpx_is_read() -> None:
    request = httpx.Request(
        "POST", "https://a", data={"name": "me"}, files={"ref_audio": ("a.wav", b"RIFF", "audio/x-wav")}
    )
    sent = request.read()
    assert read(sent, content_types=[request.headers["content-type"].encode()]) == Form(
        {"name": "me"}, b"RIFF", "audio/x-wav"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_chunk_size_does_not_matter(size: int) -> None:
    content = b"\r\n--" + BOUNDARY[:-1] + b"\r\n\r\r\n-" + bytes(50)
    sent = body(text(b"name", b"me"), part(FILE, content, b"Content-Type: audio/wav"), text(b"ref_text", b""))
    chunks = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert read(*chunks) == Form({"name": "me", "ref_text": ""}, content, "audio/wav")


@pytest.mark.parametrize("sent", [b"--" + BOUNDARY + b"--", body()])
def test_form_without_parts_is_empty(sent: bytes) -> None:
    assert read(sent) == Form({}, None, None)


def test_file_may_be_missing() -> None:
    assert read(body(text(b"name", b"me"))) == Form({"name": "me"}, None, None)


def test_other_text_fields_are_ignored() -> None:
    assert read(body(text(b"x", b"\xff"), text(b"x", b"2"), text(b"name", b"me"))).fields == {"name": "me"}


@pytest.mark.parametrize("name", [b"../../x.wav", b"", b"C:\\x.wav", b"\xff\xfe", b"a;b=c", b'a\\"b', b"x" * 4_000])
def test_filename_is_ignored(name: bytes) -> None:
    disposition = b'form-data; name="ref_audio"; filename="' + name + b'"'
    assert read(body(part(disposition, b"RIFF"))) == Form({}, b"RIFF", None)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        *[(kind, kind) for kind in ("audio/wav", "audio/mp4", "audio/mpeg", "video/webm", "application/ogg")],
        ("application/octet-stream", "application/octet-stream"),
        ("Audio/WAV; codecs=1", "audio/wav"),
        ("", None),
    ],
)
def test_content_types_of_recordings_are_accepted(header: str, known: str | None) -> None:
    assert read(body(part(FILE, b"x", b"Content-Type: " + header.encode()))).content_type == known


def test_file_without_filename_needs_a_content_type() -> None:
    sent = body(part(b'form-data; name="ref_audio"', b"x", b"Content-Type: audio/wav"))
    assert read(sent).file == b"x"


def test_text_field_may_have_a_content_type() -> None:
    sent = body(text(b"name", b"me", b"Content-Type: text/plain; charset=utf-8", b"Content-Transfer-Encoding: 8bit"))
    assert read(sent).fields == {"name": "me"}


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_types",
    [
        [],
        [b""],
        [b"application/json"],
        [b"application/x-www-form-urlencoded"],
        [b"multipart/mixed; boundary=x"],
        [b"multipart/form-data"],
        [b"multipart/form-data; boundary="],
        [b'multipart/form-data; boundary=""'],
        [b"multipart/form-data; boundary=" + b"x" * 5_000],
        [b"\xff\xfe"],
        [TYPE, TYPE],
    ],
)
def test_other_content_type_is_refused(content_types: list[bytes]) -> None:
    refused(body(text(b"name", b"canary")), content_types=content_types)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"canary",
        b"name=canary",
        b"--other\r\n\r\n--other--",
        b"--" + BOUNDARY,
        b"--" + BOUNDARY + b"\r\n",
        text(b"name", b"canary"),
        part(FILE, b"canary") + b"--" + BOUNDARY,
        part(FILE, b"canary") + b"--" + BOUNDARY + b"-",
        body(text(b"name", b"x"))[: -len(BOUNDARY)],
    ],
)
def test_truncated_form_is_refused(sent: bytes) -> None:
    refused(sent)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (body(part(FILE, b"1"), part(FILE, b"2")), "ref_audio is there twice"),
        (body(text(b"ref_audio", b"canary")), "ref_audio is text"),
        (body(text(b"name", b"1"), text(b"name", b"2")), "name is there twice"),
        (body(text(b"name", b"canary\xff")), "name is not UTF-8"),
        (body(text(b"name", b"\xed\xa0\x80")), "name is not UTF-8"),
        (body(*[text(b"x", b"")] * 33), "more than 32 parts"),
        (
            body(part(FILE, b"", *[b"X-%d: " % n + b"y" * 900 for n in range(7)], b"X-Z: " + b"z" * 2_000)),
            "malformed|8,192",
        ),
        (body(part(FILE, b"", *[b"X-%d: y" % n for n in range(3_000)])), "malformed|8,192"),
        (body(part(FILE, b"", b"X: " + b"y" * 60_000)), "malformed|8,192"),
        (body(part(b"form-data", b"x")), "no name"),
        (body(part(b'attachment; name="name"', b"x")), "no name"),
        (body(part(b"", b"x")), "no name"),
        (body(b"--" + BOUNDARY + b"\r\n\r\nx\r\n"), "no name"),
        (body(text(b"name", b"x", b"Content-Disposition: form-data; name=ref_text")), "a header twice"),
        (body(text(b"name", b"eA==", b"Content-Transfer-Encoding: base64")), "transfer encoding"),
        (body(text(b"name", b"x", b"canary header")), "malformed"),
    ],
)
def test_malformed_form_is_refused_with_the_reason(sent: bytes, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why, check=has_code("invalid_multipart")) as error:
        read(sent)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("kind", [b"text/plain", b"image/png", b"audio", b"xaudio/wav", b"canary"])
def test_file_of_another_type_is_refused(kind: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"audio/\*", check=has_code("bad_content_type")) as error:
        read(body(part(FILE, b"x", b"Content-Type: " + kind)))
    assert (error.value.http_status, "canary" in str(error.value)) == (422, False)


@pytest.mark.parametrize("size", [6, 70_000, 3 * CAP])
@pytest.mark.parametrize("name", ["audio", "s\xf6und", "canary"])
def test_file_in_an_unknown_field_is_refused(name: str, size: int) -> None:
    other = part(f'form-data; name="{name}"; filename="a.wav"'.encode("latin-1"), b"canary" * (size // 6))
    for sent in (body(text(b"name", b"me"), other), body(part(FILE, b"RIFF"), other)):
        with pytest.raises(InvalidRequestError, match="ref_audio", check=has_code("missing_field")) as error:
            read(*in_chunks(sent))
        assert (error.value.http_status, error.value.param) == (400, "ref_audio")
        assert "canary" not in str(error.value)


def test_disconnect_is_not_a_form_error() -> None:
    with pytest.raises(ClientDisconnect):
        read(body(part(FILE, b"x"))[:-30], is_cut=True)


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_random_bytes_raise_only_api_errors(noise: bytes, kind: bytes) -> None:
    whole = body(text(b"name", b"me"), part(FILE, b"x"))
    for sent in (noise, b"--" + BOUNDARY + b"\r\n" + noise, whole[:100] + noise + whole[100:], part(noise, noise)):
        for content_type in (TYPE, kind, b"multipart/form-data; boundary=" + kind):
            with suppress(InvalidRequestError):
                assert read(sent, content_types=[content_type]).fields.keys() <= {"name", "ref_text"}


# -- how much ------------------------------------------------------------------------------------------------


def in_chunks(sent: bytes, size: int = 8_192) -> list[bytes]:
    return [sent[start : start + size] for start in range(0, len(sent), size)]


@pytest.mark.parametrize("chunk_size", [8_192, 10**9])
def test_file_size_limit_is_exact(chunk_size: int) -> None:
    overhead = text(b"ref_text", b"t" * 60_000)
    assert len(read(*in_chunks(body(overhead, part(FILE, bytes(CAP))), chunk_size)).file or b"") == CAP
    with pytest.raises(
        RecordingError, match="ref_audio has 100,001 bytes; the limit is 100,000", check=has_code("file_too_large")
    ):
        read(*in_chunks(body(overhead, part(FILE, bytes(CAP + 1))), chunk_size))


def test_body_is_read_64_kib_beyond_the_limit_at_most() -> None:
    n_read = 0

    def endless() -> Iterator[bytes]:
        nonlocal n_read
        yield part(FILE, b"")[:-2]
        while True:
            n_read += 4_096
            yield bytes(4_096)

    with pytest.raises(RecordingError, match="limit is 100,000", check=has_code("file_too_large")) as error:
        read_from(endless())
    assert error.value.http_status == 422
    assert n_read <= CAP + 64 * 1024 + 4_096


@pytest.mark.parametrize(
    "sent",
    [
        body(text(b"ref_text", bytes(70_000))),
        body(text(b"other", bytes(70_000))),
        body(part(FILE, b"x"), text(b"name", bytes(70_000))),
        body(part(FILE, b"x")) + bytes(70_000),
        b"\r\n" * 40_000,
    ],
)
@pytest.mark.parametrize("chunk_size", [1_000, 10**9])
def test_form_overhead_is_limited_to_64_kib(sent: bytes, chunk_size: int) -> None:
    with pytest.raises(InvalidRequestError, match="65,536", check=has_code("request_too_large")) as error:
        read(*in_chunks(sent, chunk_size))
    assert error.value.http_status == 413


def test_memory_is_independent_of_file_size(tmp_path: Path) -> None:
    size, chunk = 8_000_000, bytes(50_000)

    def pieces() -> Iterator[bytes]:
        yield part(FILE, b"")[:-2]
        for _ in range(size // len(chunk)):
            yield chunk
        yield b"\r\n" + body()

    tracemalloc.start()
    read_from(pieces(), cap=size, folder=tmp_path, is_kept=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert read_from(pieces(), cap=size, folder=tmp_path).file == bytes(size)
    assert not list(tmp_path.iterdir())


def test_first_of_several_files_is_kept_and_all_are_limited() -> None:
    more = body(part(FILE, b"1" * 60_000), part(FILE, b"2" * 30_000), text(b"name", b"me"))
    form = read_from(iter([more]), has_more_files=True)
    assert (form.file, form.fields) == (b"1" * 60_000, {"name": "me"})
    with pytest.raises(RecordingError, check=has_code("file_too_large")):
        read_from(iter([body(part(FILE, b"1" * 60_000), part(FILE, b"2" * 60_000))]), has_more_files=True)
