"""Multipart forms with one file, or of which one is used, parsed while they arrive.

Starlette's form parser limits the number of parts and not their bytes, and raises errors of its own. Here every limit
is in bytes, and every error is one of the API.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from afterwords.errors import InvalidRequestError, RecordingError
from afterwords.server.routing import MULTIPART_OVERHEAD_BYTES

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

AUDIO_TYPES: Final = ("audio/*", "video/*", "application/ogg", "application/mp4", "application/octet-stream")
"""Accepted content types of a recording; phones and browsers also record audio as video/mp4 and video/webm."""

_EVENTS: Final = (
    *("on_part_begin", "on_part_data", "on_part_end", "on_end"),
    *("on_header_field", "on_header_value", "on_header_end", "on_headers_finished"),
)
_PARTS_MAX: Final = 32
_HEADER_MAX_BYTES: Final = 8 * 1024  # of one part
_PLAIN_ENCODINGS: Final = (b"binary", b"8bit", b"7bit")


@dataclass(frozen=True, slots=True)
class Form:
    """A form. `content_type` is that of the file, if it was sent with one."""

    fields: dict[str, str] = field(repr=False)
    has_file: bool
    content_type: str | None = None


async def read_form(
    request: Request,
    file: BinaryIO,
    *,
    max_file_bytes: int,
    file_field: str,
    fields: Collection[str],
    has_more_files: bool = False,
) -> Form:
    """Read a multipart form with some text fields and one file; other text fields are ignored.

    Args:
        request: A request whose body was not read yet.
        file: An empty file, to which the content of the form's file is written.
        max_file_bytes: Limit of the file, or of all files together.
        file_field: Name of the file's field; its filename is ignored.
        fields: Names of text fields.
        has_more_files: Whether the field may have several files, of which only the first is written.

    Raises:
        InvalidRequestError: The body is not a valid form, incomplete, or too large without the file; a file is in
            another field; or its content type is not accepted.
        RecordingError: The file is too large.
        StorageFullError, StorageUnavailableError: The file can't be written.
        ClientDisconnect: The client disconnected.
    """
    kinds = request.headers.getlist("content-type")
    kind, options = parse_options_header(kinds[0]) if len(kinds) == 1 else (b"", {})
    if kind.lower() != b"multipart/form-data":
        raise InvalidRequestError.invalid_form(why="its content type is not multipart/form-data")
    if not (boundary := options.get(b"boundary")):
        raise InvalidRequestError.invalid_form(why="its content type names no boundary")
    reader = _FormReader(file, file_field, fields, max_file_bytes, has_more_files)
    try:
        parser = MultipartParser(
            boundary, cast("MultipartCallbacks", {name: getattr(reader, name) for name in _EVENTS})
        )
        async for chunk in request.stream():
            parser.write(chunk)
            reader.check_size(len(chunk))
    except FormParserError:  # its message quotes what was sent
        raise InvalidRequestError.invalid_form(why="it is malformed") from None
    if not reader.is_complete:
        raise InvalidRequestError.invalid_form(why="it ends before its last boundary")
    texts = {}
    for name, content in reader.texts.items():
        try:
            texts[name] = content.getvalue().decode()
        except UnicodeDecodeError:
            raise InvalidRequestError.invalid_form(why=f"{name} is not UTF-8") from None
    return Form(texts, reader.has_file, reader.content_type)


@dataclass(slots=True)
class _Part:
    """A part of the form; `content` is None if the part is ignored."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_bytes: int = 0
    header_name: bytes = b""
    header_value: bytes = b""
    name: str | None = None
    content: BinaryIO | None = None


class _FormReader:
    """Collects a form; the methods `on_…` are the callbacks of the parser."""

    def __init__(
        self, file: BinaryIO, file_field: str, fields: Collection[str], max_file_bytes: int, has_more_files: bool
    ) -> None:
        self.texts: dict[str, BytesIO] = {}
        self.has_file = self.is_complete = False
        self.content_type: str | None = None
        self._file = file
        self._file_field = file_field
        self._text_fields = frozenset(fields)
        self._max_file_bytes = max_file_bytes
        self._has_more_files = has_more_files
        self._part = _Part()
        self._n_parts = self._n_read = self._n_file = 0  # the latter two in bytes

    def check_size(self, n_bytes: int) -> None:
        """Count bytes and check the limits; a file slightly over its limit is read to its end to report its size."""
        self._n_read += n_bytes
        if self._n_read - self._n_file > MULTIPART_OVERHEAD_BYTES:
            raise InvalidRequestError.too_large(maximum_bytes=MULTIPART_OVERHEAD_BYTES)
        self._check_file(self._n_read - MULTIPART_OVERHEAD_BYTES)

    def _check_file(self, n_bytes: int) -> None:
        if n_bytes > self._max_file_bytes:
            raise RecordingError.too_large(
                self._file_field, size_bytes=self._n_file, maximum_bytes=self._max_file_bytes
            )

    def on_part_begin(self) -> None:
        self._part = _Part()
        self._n_parts += 1
        if self._n_parts > _PARTS_MAX:
            raise InvalidRequestError.invalid_form(why=f"it has more than {_PARTS_MAX} parts")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]
        self._count_header(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, n_bytes: int) -> None:
        self._part.header_bytes += n_bytes
        if self._part.header_bytes > _HEADER_MAX_BYTES:
            raise InvalidRequestError.invalid_form(why=f"a part has more than {_HEADER_MAX_BYTES:,} bytes of headers")

    def on_header_end(self) -> None:
        part = self._part
        name = part.header_name.lower()
        if name in part.headers:
            raise InvalidRequestError.invalid_form(why="a part has a header twice")
        part.headers[name] = part.header_value
        part.header_name = part.header_value = b""

    def on_headers_finished(self) -> None:
        """Check the headers of a part and decide where its content goes."""
        headers = self._part.headers
        kind, options = parse_options_header(headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequestError.invalid_form(why="a part has no name")
        if headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in _PLAIN_ENCODINGS:
            raise InvalidRequestError.invalid_form(why="a part has a transfer encoding")
        name = options[b"name"].decode("latin-1")
        content_type = parse_options_header(headers.get(b"content-type"))[0].decode("latin-1").lower()
        if name == self._file_field:
            if b"filename" not in options and not content_type:
                raise InvalidRequestError.invalid_form(why=f"{name} is text, not a file")
            if content_type and not any(fnmatchcase(content_type, allowed) for allowed in AUDIO_TYPES):
                raise InvalidRequestError(
                    f"The content type is not supported; supported: {', '.join(AUDIO_TYPES)}.",
                    code="bad_content_type",
                    hint=f"send {', '.join(AUDIO_TYPES)}.",
                )
            if self.has_file and self._has_more_files:
                self._part.name = name
                return
            self.content_type = content_type or None
        elif name not in self._text_fields:
            if b"filename" in options:
                raise InvalidRequestError(
                    f"The file is in an unknown field instead of {self._file_field}.",
                    code="missing_field",
                    hint=f"send the file as {self._file_field}.",
                    param=self._file_field,
                )
            return
        if name in self.texts or (name == self._file_field and self.has_file):
            raise InvalidRequestError.invalid_form(why=f"{name} is there twice")
        self._part.name = name
        if name == self._file_field:
            self.has_file, self._part.content = True, self._file
        else:
            self._part.content = self.texts[name] = BytesIO()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == self._file_field:
            self._n_file += end - start
            if self._n_file > self._max_file_bytes:
                part.content = None
        if part.content is not None:
            part.content.write(memoryview(data)[start:end])

    def on_part_end(self) -> None:
        if self._part.name == self._file_field:
            self._check_file(self._n_file)

    def on_end(self) -> None:
        self.is_complete = True
