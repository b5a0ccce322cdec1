"""Read what the hosted service exports: a dump of its D1 database, and the keys of its KV namespace.

The formats are those of `wrangler d1 export`, `wrangler kv key list` and `wrangler kv bulk get`. Tables and columns are
recognized by name, and what is not known is listed, never guessed.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from afterwords.errors import AfterwordsError, FileError, InvalidInputError
from afterwords.models import parse_id
from afterwords.text import check_name, check_text, normalize_lang

VOICE_COLUMNS: Final = ("voice_id", "name", "backend", "ref_text", "lang", "family", "ref_audio_key", "created_at",
                        "metadata")  # fmt: skip
JOB_COLUMNS: Final = ("job_id", "voice_id", "status", "audio_key", "error", "created_at", "completed_at", "char_count")
REQUIRED: Final = {
    "voices": ("voice_id", "name", "backend", "ref_audio_key", "created_at"),
    "jobs": ("job_id", "voice_id", "status", "created_at"),
}
CUSTOMER_COLUMN: Final = "stripe_customer_id"
DUMP_HINT: Final = "make it again: wrangler d1 export NAME --remote --output dump.sql"
KEYS_HINT: Final = "make it again: wrangler kv key list --remote --binding NAME > keys.json"
STATEMENT_MAX_CHARS: Final = 8 << 20
"""A row of D1 has at most 2 MB, and an escaped character of it at most three in the dump."""
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_ALLOWED: Final = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_REINDEX, sqlite3.SQLITE_TRANSACTION,
}  # fmt: skip
_FUNCTIONS: Final = ("replace", "char", "length", "lower", "upper", "typeof", "json_valid", "glob", "like")
_ALLOWED_CALLS: Final = {
    (sqlite3.SQLITE_PRAGMA, "defer_foreign_keys", "TRUE"),
    *((sqlite3.SQLITE_FUNCTION, None, name) for name in _FUNCTIONS),
}
_IGNORED: Final = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+)?(INDEX|TRIGGER|VIEW)\s", re.IGNORECASE)
"""Statements that add nothing to the rows."""


@dataclass(slots=True)
class Findings:
    """What was not imported, or changed on the way: the names of things by what is wrong with them."""

    by_problem: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, problem: str, name: str) -> None:
        """Note a problem of one thing."""
        self.by_problem[problem].append(name)


@dataclass(frozen=True, slots=True)
class HostedKey:
    """An API key, of which only the SHA-256 is known."""

    sha256: bytes
    label: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HostedVoice:
    """A row of `voices`, with the key that it belongs to as 64 hex digits."""

    voice_id: str
    key_hash: str
    name: str
    backend: str
    lang: str
    ref_audio_key: str
    created_at: datetime
    ref_text: str | None = field(repr=False)
    family: str | None
    metadata: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class HostedJob:
    """A row of `jobs`."""

    job_id: str
    voice_id: str
    status: str
    audio_key: str | None
    error: str | None
    created_at: datetime
    completed_at: datetime | None
    char_count: int


class Dump:
    """A dump of D1, executed in a database of its own in which statements can only fill tables.

    Args:
        file: The dump.
        scratch: File of that database, which must not exist.
        owner_column: Column of `voices` that holds the hash of the owner's key. None: the only one with such values.

    Raises:
        FileError: The file can't be read.
        InvalidInputError: It is not a complete dump, or a table or column is missing.
    """

    def __init__(self, file: Path, scratch: Path, *, findings: Findings, owner_column: str | None = None) -> None:
        self._file = file
        self._findings = findings
        self._rows = sqlite3.connect(scratch, isolation_level=None, check_same_thread=False)
        try:
            self._execute(file)
            self._columns = self._check_tables()
            self._owner = self._find_owner(owner_column)
            self._report_unknown()
        except BaseException:
            self._rows.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._rows.close()

    def voices(self) -> Iterator[HostedVoice]:
        """Yield the voices, oldest first, except those that can't be imported."""
        for row in self._select("voices", (*VOICE_COLUMNS, self._owner)):
            voice_id = parse_id(str(row["voice_id"]))
            key_hash = str(row[self._owner]).lower()
            created_at = _parse_time(row["created_at"])
            if voice_id is None or created_at is None or not _DIGEST.fullmatch(key_hash):
                self._findings.add("voices whose ID, owner or time is malformed", str(row["voice_id"]))
                continue
            yield HostedVoice(
                voice_id=voice_id,
                key_hash=key_hash,
                name=self._name(row["name"], voice_id),
                backend=str(row["backend"]),
                lang=self._lang(row["lang"], voice_id),
                ref_audio_key=str(row["ref_audio_key"]),
                created_at=created_at,
                ref_text=self._transcript(row["ref_text"], voice_id),
                family=self._name(row["family"], voice_id) if row["family"] else None,
                metadata=self._metadata(row["metadata"], voice_id),
            )

    def jobs(self) -> Iterator[HostedJob]:
        """Yield the jobs, oldest first, except those that can't be imported."""
        for row in self._select("jobs", JOB_COLUMNS):
            job_id, voice_id = parse_id(str(row["job_id"])), parse_id(str(row["voice_id"]))
            created_at = _parse_time(row["created_at"])
            if job_id is None or voice_id is None or created_at is None:
                self._findings.add("jobs whose ID, voice or time is malformed", str(row["job_id"]))
                continue
            yield HostedJob(
                job_id=job_id,
                voice_id=voice_id,
                status=str(row["status"]),
                audio_key=row["audio_key"] and str(row["audio_key"]),
                error=row["error"] and str(row["error"]),
                created_at=created_at,
                completed_at=_parse_time(row["completed_at"]),
                char_count=row["char_count"] if isinstance(row["char_count"], int) else 0,
            )

    def customers(self) -> dict[str, str]:
        """Return the Stripe customer of each key hash, of every table that has both."""
        found: dict[str, str] = {}
        for table, columns in self._columns.items():
            if CUSTOMER_COLUMN not in columns:
                continue
            for row in self._select(table, columns):
                hashes = {value for name, value in row.items() if _is_digest(value) and name != CUSTOMER_COLUMN}
                customer = row[CUSTOMER_COLUMN]
                if len(hashes) == 1 and isinstance(customer, str):
                    found.setdefault(hashes.pop(), customer)
                else:
                    self._findings.add(f"rows of {table} without one key and one customer", str(customer))
        return found

    def _execute(self, file: Path) -> None:
        statement, n_lines = "", 0
        try:
            with file.open(encoding="utf-8", newline="\n") as lines:
                self._rows.execute("PRAGMA journal_mode = OFF")
                self._rows.execute("PRAGMA synchronous = OFF")
                self._rows.execute("BEGIN")
                self._rows.set_authorizer(_authorize)
                for line in lines:
                    n_lines += 1
                    statement += line
                    if len(statement) > STATEMENT_MAX_CHARS:
                        raise self._invalid(f"a statement before line {n_lines} is too long")
                    if line.rstrip().endswith(";") and sqlite3.complete_statement(statement):
                        if not _IGNORED.match(statement):
                            self._rows.execute(statement)
                        statement = ""
        except OSError as error:
            raise FileError.unreadable(file, why=str(error.strerror)) from error
        except UnicodeDecodeError as error:
            raise self._invalid("it is not UTF-8 text") from error
        except sqlite3.Error as error:  # without the statement, which may contain a transcript
            why = "it has rows but not their tables" if "no such table" in str(error) else "SQLite refuses a statement"
            raise self._invalid(f"{why} at line {n_lines}") from None
        finally:
            self._rows.set_authorizer(None)
        if statement.strip():
            raise self._invalid(f"it ends inside a statement, at line {n_lines}")
        self._rows.execute("COMMIT")

    def _check_tables(self) -> dict[str, tuple[str, ...]]:
        names = self._rows.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        columns = {name: self._columns_of(name) for (name,) in names.fetchall()}
        for table, required in REQUIRED.items():
            if table not in columns:
                raise self._invalid(f"it has no table {table}")
            if missing := [name for name in required if name not in columns[table]]:
                raise self._invalid(f"its table {table} has no column {', '.join(missing)}")
        return columns

    def _columns_of(self, table: str) -> tuple[str, ...]:
        return tuple(row[1] for row in self._rows.execute(f"PRAGMA table_info({_quote(table)})"))

    def _find_owner(self, owner_column: str | None) -> str:
        others = [name for name in self._columns["voices"] if name not in VOICE_COLUMNS]
        if owner_column is not None:
            if owner_column not in others:
                raise self._invalid(f"its table voices has no column {owner_column} for the owner")
            return owner_column
        rows = list(self._select("voices", others, limit=1000))
        candidates = [name for name in others if all(_is_digest(row[name]) for row in rows)]
        if len(candidates) != 1:
            found = ", ".join(candidates or others) or "none"
            raise self._invalid(
                f"the column of voices with the hash of the owner's key is not evident (found: {found})",
                hint="name it with --owner-column.",
            )
        return candidates[0]

    def _report_unknown(self) -> None:
        known = {"voices": {*VOICE_COLUMNS, self._owner}, "jobs": {*JOB_COLUMNS, *self._columns["voices"]}}
        for table, columns in self._columns.items():
            if table in known:
                for name in columns:
                    if name not in known[table]:
                        self._findings.add("columns that are not known", f"{table}.{name}")
            elif CUSTOMER_COLUMN not in columns:
                self._findings.add("tables that are not known", table)

    def _select(self, table: str, columns: Iterable[str], *, limit: int = -1) -> Iterator[dict[str, Any]]:
        """Yield rows in the order of insertion; a column that the table lacks is NULL."""
        present = [name if name in self._columns[table] else None for name in columns]
        named = ", ".join(_quote(name) if name else "NULL" for name in present) or "NULL"
        query = self._rows.execute(f"SELECT {named} FROM {_quote(table)} ORDER BY rowid LIMIT {limit}")
        for row in query:
            yield dict(zip(columns, row, strict=False))

    def _name(self, value: object, voice_id: str) -> str:
        try:
            return check_name(str(value))
        except AfterwordsError:
            self._findings.add("voices renamed, since their name or family is not valid here", voice_id)
            return f"voice {voice_id[:8]}"

    def _lang(self, value: object, voice_id: str) -> str:
        try:
            return normalize_lang(str(value)) if value else "en"
        except AfterwordsError:
            self._findings.add("voices set to English, since their language is not spoken here", voice_id)
            return "en"

    def _transcript(self, value: object, voice_id: str) -> str | None:
        if not value:
            return None
        try:
            return check_text(str(value))
        except AfterwordsError:
            self._findings.add("voices without their transcript, which is not valid here", voice_id)
            return None

    def _metadata(self, value: object, voice_id: str) -> Mapping[str, Any]:
        try:
            metadata = json.loads(str(value or "{}"))
            json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()  # as responses contain it
        except (ValueError, RecursionError):
            metadata = None
        if isinstance(metadata, dict):
            return metadata
        self._findings.add("voices without their metadata, which is not a JSON object", voice_id)
        return {}

    def _invalid(self, why: str, *, hint: str = DUMP_HINT) -> InvalidInputError:
        return InvalidInputError(f"{str(self._file)!a} can't be imported: {why}.", hint=hint)


def read_keys(file: Path, *, findings: Findings) -> list[HostedKey]:
    """Read the keys of the KV namespace: a list of names, or names with values.

    Raises:
        FileError: The file can't be read.
        InvalidInputError: It is not JSON of that form.
    """
    try:
        text = file.read_text("utf-8")
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())  # wrangler prints a line after it
    except OSError as error:
        raise FileError.unreadable(file, why=str(error.strerror)) from error
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        entries: Sequence[Any] = [{"name": name, **_mapping(entry)} for name, entry in value.items()]
    else:
        entries = value if isinstance(value, list) else [None]
    names = [_mapping(entry).get("name", _mapping(entry).get("key")) for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{str(file)!a} can't be imported: it is not a list of keys.", hint=KEYS_HINT)
    keys: dict[str, HostedKey] = {}
    for name, entry in zip(names, entries, strict=True):
        if not _DIGEST.fullmatch(name.lower()):
            findings.add("names in KV that are not the hash of a key", name)
            continue
        facts = {**_mapping(entry.get("value")), **_mapping(entry.get("metadata"))}
        if any(fact.startswith(("revoked", "expire", "disabled")) and value for fact, value in facts.items()):
            findings.add("keys whose value mentions an end, imported as valid: check them", name[:8])
        label, expiration = facts.get("label"), _mapping(entry).get("expiration")
        keys[name.lower()] = HostedKey(
            bytes.fromhex(name),
            label=label[:200] if isinstance(label, str) and label.isprintable() else None,
            created_at=_parse_time(facts.get("created_at")),
            expires_at=datetime.fromtimestamp(expiration, UTC) if isinstance(expiration, int) else None,
        )
    return list(keys.values())


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping that was parsed, or is JSON in a string; of anything else, an empty one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _authorize(action: int, first: str | None, second: str | None, *_rest: str | None) -> int:
    is_allowed = action in _ALLOWED or (action, first, second) in _ALLOWED_CALLS
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value.lower()) is not None


def _parse_time(value: object) -> datetime | None:
    """Return a time as ISO 8601 or SQLite's datetime() write it, UTC if it has no zone."""
    try:
        moment = datetime.fromisoformat(str(value).strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
