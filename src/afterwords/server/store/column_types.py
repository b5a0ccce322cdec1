"""Column types of the schema: UTC times, enums, models as JSON, and text that leaves no trace when it is deleted."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, LargeBinary, String, TypeDecorator

PAGE_BYTES: Final = 4096
MARGIN_BYTES: Final = PAGE_BYTES - 35
"""The longest row that SQLite stores in a leaf page of a table (sqlite.org/fileformat2.html, 1.6, "U-35")."""

ID: Final = String(36)
SEQUENCE: Final = BigInteger().with_variant(Integer(), "sqlite")
"""Only INTEGER autoincrements in SQLite. It has 64 bits there."""

E = TypeVar("E", bound=StrEnum)
M = TypeVar("M", bound=BaseModel)


class UtcTime(TypeDecorator[datetime]):
    """A wall-clock time: aware, UTC, whole milliseconds."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumValue(TypeDecorator[E], Generic[E]):
    """The value of an enum member."""

    impl = String
    cache_ok = True

    def __init__(self, kind: type[E], length: int = 16) -> None:
        super().__init__(length)
        self.kind = kind

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> E | None:  # noqa: ARG002
        return None if value is None else self.kind(value)


class Document(TypeDecorator[M], Generic[M]):
    """A pydantic model as JSON."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, kind: type[M]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: M | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> M | None:  # noqa: ARG002
        return None if value is None else self.kind.model_validate(value)


class VanishingBytes(TypeDecorator[bytes]):
    """Bytes that leave no trace in the file when they are deleted.

    SQLite's secure_delete zeroes freed pages, but not the copies that remain in the unused part of a page when rows
    move to another page. Overflow pages don't move. A margin before the bytes moves all of them to overflow pages,
    which are zeroed completely when they are freed.

    Source: tests/server/store/test_deletion.py, which finds such copies without the margin. Other databases leave
    copies until they are vacuumed, and need no margin.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        return _MARGIN + value if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        if value is None:
            return None
        return value[MARGIN_BYTES:] if dialect.name == "sqlite" else bytes(value)


class VanishingText(TypeDecorator[str]):
    """Text that leaves no byte in the file when it is deleted, as `VanishingBytes`."""

    impl = VanishingBytes
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        return None if value is None else value.encode()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.decode()


_MARGIN: Final = bytes(MARGIN_BYTES)
