"""The tables. A test compares them with the result of the migrations.

`seq` orders rows and is never reused. `created_at` can't order two rows of the same millisecond.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    exists,
    false,
    literal_column,
    text,
    true,
)

from afterwords.models import Consent, JobStatus, Provenance, SpeechFormat
from afterwords.server.records import AuditAction
from afterwords.server.store.column_types import (
    ID,
    SEQUENCE,
    Document,
    EnumValue,
    UtcTime,
    VanishingBytes,
    VanishingText,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

server: Final = Table(
    "server",
    metadata,
    Column("server_id", Integer, primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("checked_at", UtcTime),
    Column("reconciled_at", UtcTime),  # when a process last began to compare all subscriptions with Stripe's
    Column("home_account_id", ID),  # sees the voices of the home folder; NULL: no key was created for it
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("account_id", ID, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False, server_default="0"),  # updated by triggers, see below
    Column("plan", Text),  # NULL: unlimited
    Column("period_start", UtcTime),  # of the subscription; NULL: calendar months, UTC
    Column("period_end", UtcTime),
    Column("suspended_at", UtcTime),  # NULL: the keys are valid
    Column("closed_at", UtcTime),
)

customers: Final = Table(  # of Stripe, with what it last said about their subscriptions
    "customers",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("account_id", ForeignKey("accounts.account_id"), unique=True),  # NULL: the customer has not paid yet
    Column("email", Text, unique=True),  # in lower case; NULL: unknown, or forgotten
    Column("checkout_id", ID),  # the last one; only its session is open
    Column("subscription_id", Text),
    Column("status", Text),
    Column("price_id", Text),
    Column("is_ending", Boolean, nullable=False, server_default=false()),  # cancelled at the end of its period
    Column("version", Integer, nullable=False, server_default="0"),  # increases with every write of what Stripe said
    Column("synced_at", UtcTime),
)

checkouts: Final = Table(
    "checkouts",
    metadata,
    Column("checkout_id", ID, primary_key=True),
    Column("email", Text, nullable=False, index=True),
    Column("plan", Text, nullable=False),
    Column("browser_sha256", LargeBinary, nullable=False),  # of the cookie of the browser that began it
    Column("tries", Integer, nullable=False, server_default="0"),  # part of the idempotency keys sent to Stripe
    Column("customer_id", Text, index=True),
    Column("session_id", Text, unique=True),
    Column("account_id", ForeignKey("accounts.account_id")),  # may get a key; NULL: not paid, or not proven
    Column("begun_by_key_id", ForeignKey("keys.key_id")),  # must still be valid; NULL: not signed in
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("paid_at", UtcTime),
    Column("shown_at", UtcTime),  # when its key was created and shown
    Column("key_id", ForeignKey("keys.key_id")),
)

stripe_events: Final = Table(  # whose effects are stored
    "stripe_events",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("received_at", UtcTime, nullable=False, index=True),
)

meter_batches: Final = Table(  # characters to report to Stripe; the id makes sending a batch again harmless
    "meter_batches",
    metadata,
    Column("batch_id", ID, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("hour", UtcTime, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("first_sent_at", UtcTime),  # NULL: characters may be added
)
open_batches: Final = Index(
    "ix_meter_batches_open",
    meter_batches.c.customer_id,
    meter_batches.c.hour,
    unique=True,
    sqlite_where=text("first_sent_at IS NULL"),
    postgresql_where=text("first_sent_at IS NULL"),
)

turns: Final = Table(  # not a column of `accounts`: a claim must not wait for other writes of the account
    "turns",
    metadata,
    Column("account_id", ForeignKey("accounts.account_id"), primary_key=True),
    Column("turn", BigInteger, nullable=False, index=True),  # increases with every claim of a job
)

servers: Final = Table(  # those that share a database without a file; presence.py
    "servers",
    metadata,
    Column("server_id", ID, primary_key=True),
    Column("seen_at", Float, nullable=False),  # monotonic time
)

keys: Final = Table(
    "keys",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("key_id", ID, nullable=False, unique=True),
    Column("account_id", ForeignKey("accounts.account_id"), nullable=False, index=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("label", Text),
    Column("scopes", Text, nullable=False),  # separated by spaces
    Column("character_limit", BigInteger),
    Column("spending_id", ID, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    Column("prefix", String(16)),
    Column("used_at", UtcTime),
    sqlite_autoincrement=True,
)

worker_tokens: Final = Table(
    "worker_tokens",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("token_id", ID, nullable=False, unique=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("label", Text),
    Column("prefix", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    sqlite_autoincrement=True,
)

audit: Final = Table(
    "audit",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("at", UtcTime, nullable=False, index=True),
    Column("action", EnumValue(AuditAction, length=32), nullable=False),
    Column("target_id", ID, nullable=False),  # without foreign keys: entries outlive what they name
    Column("account_id", ID),
    Column("actor", ID, nullable=False),
    Column("request_id", ID),
    sqlite_autoincrement=True,
)

voices: Final = Table(
    "voices",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("voice_id", ID, nullable=False, unique=True),
    Column("account_id", ForeignKey("accounts.account_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("lang", Text, nullable=False),
    Column("family", Text),
    Column("ref_audio_key", Text, nullable=False),
    Column("ref_sha256", String(64), nullable=False),
    Column("ref_duration_s", Float, nullable=False),
    Column("ref_sample_rate", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("consent", Document(Consent)),
    Column("provenance", Document(Provenance)),
    Column("metadata", JSON, nullable=False),
    Column("ref_text", VanishingText),
    Column("home_id", ID, index=True, unique=True),  # NULL: the recording is in storage
    Column("ref_grade", String(1)),  # NULL: registered before grades were stored
    Index(None, "account_id", "seq"),
    Index(None, "account_id", "name"),
    sqlite_autoincrement=True,
)

aliases: Final = Table(  # further names of voices, for programs that send names of their own
    "aliases",
    metadata,
    Column("account_id", ForeignKey("accounts.account_id"), primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("voice_id", ForeignKey("voices.voice_id", ondelete="CASCADE"), nullable=False, index=True),
)

consents: Final = Table(  # recordings in which speakers consent to be cloned
    "consents",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("consent_id", ID, nullable=False, unique=True),
    Column("account_id", ForeignKey("accounts.account_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("lang", String(35), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("recording", VanishingBytes, nullable=False),
    Index(None, "account_id", "seq"),
    sqlite_autoincrement=True,
)

jobs: Final = Table(
    "jobs",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("job_id", ID, nullable=False, unique=True),
    Column("account_id", ForeignKey("accounts.account_id"), nullable=False),
    Column("voice_id", ForeignKey("voices.voice_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("key_id", ForeignKey("keys.key_id"), nullable=False),
    Column("status", EnumValue(JobStatus), nullable=False),
    Column("lang", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("cache_key", String(64), nullable=False),
    Column("flight_key", String(64)),  # NULL: the voice was changed, so the audio is not shared
    Column("speed", Float, nullable=False),
    Column("seed", BigInteger),
    Column("response_format", EnumValue(SpeechFormat), nullable=False),
    Column("webhook_url", Text),
    Column("char_count", Integer, nullable=False),
    Column("spending_id", ID, nullable=False),
    Column("period", String(20).with_variant(String(7), "sqlite"), nullable=False),  # that it was charged to
    Column("attempt", Integer, nullable=False, server_default="0"),  # number of claims; never decreases
    Column("returned", Integer, nullable=False, server_default="0"),  # released attempts, which don't count
    Column("worker", Text),
    Column("lease_s", Float),
    Column("lease_expires", Float),  # monotonic time; NULL: the job waits
    Column("audio_key", Text),
    Column("audio_sha256", String(64)),
    Column("audio_bytes", BigInteger),
    Column("synth_ms", BigInteger),
    Column("error", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("completed_at", UtcTime),
    Column("text", VanishingText),
    Column("traceparent", String(55)),
    Column("timestamps", Boolean, nullable=False, server_default=false()),  # requested, so `timing` is stored
    Column("timing", VanishingText),  # with the text; NULL unless the job is ready, or about to be
    Column("sample_rate", Integer),  # in Hz, of the audio as clients get it; NULL: that of the backend
    Column("keeps_timing", Boolean, nullable=False, server_default=true()),  # or `timing` is removed with the text
    Column("verify", Boolean, nullable=False, server_default=false()),  # requested, so `verification` is stored
    Column("verification", VanishingText),  # as `timing`
    Column("reading", VanishingText),  # of a pending job, a `Reading`; NULL: the text has no such words and tags
    Index(None, "account_id", "seq"),
    Index(None, "account_id", "status", "seq"),
    sqlite_autoincrement=True,
)

# A literal, since SQLite uses a partial index only if the statement contains the same text.
IS_PENDING: Final = jobs.c.status == literal_column("'pending'")
_PENDING = text("status = 'pending'")

pending_jobs: Final = Index(
    "ix_jobs_pending",
    jobs.c.lease_expires,
    jobs.c.account_id,
    jobs.c.backend,
    jobs.c.status,  # otherwise SQLite reads it from the table, row by row
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)
flights: Final = Index(
    "ix_jobs_flight",
    jobs.c.voice_id,
    jobs.c.flight_key,
    unique=True,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)

preparations: Final = Table(  # voices that are to be prepared for their backends, or are being prepared
    "preparations",
    metadata,
    Column("voice_id", ForeignKey("voices.voice_id", ondelete="CASCADE"), primary_key=True),
    Column("job_id", ID, nullable=False, unique=True),  # not one of `jobs`: no client sees it
    Column("backend", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("returned", Integer, nullable=False, server_default="0"),
    Column("worker", Text),
    Column("lease_s", Float),
    Column("lease_expires", Float),  # monotonic time
)

cache: Final = Table(
    "cache",
    metadata,
    Column("voice_id", ForeignKey("voices.voice_id", ondelete="CASCADE"), primary_key=True),
    Column("cache_key", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("synth_ms", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

usage: Final = Table(
    "usage",
    metadata,
    Column("spending_id", ID, primary_key=True),
    Column("period", String(20), primary_key=True),  # a calendar month, or when a subscription's period began
    Column("day", String(10), primary_key=True),  # UTC: 2026-01-31
    Column("account_id", ForeignKey("accounts.account_id"), nullable=False),
    Column("characters", BigInteger, nullable=False),
    Index(None, "account_id", "period"),
)

idempotency: Final = Table(
    "idempotency",
    metadata,
    Column("account_id", ForeignKey("accounts.account_id"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("voice_id", ForeignKey("voices.voice_id", ondelete="CASCADE"), index=True),
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True),
    Column("created_at", UtcTime, nullable=False, index=True),
)

webhooks: Final = Table(
    "webhooks",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_at", Float, nullable=False, index=True),  # monotonic time
)

storage_marks: Final = Table(  # tokens that this database has written into the storage
    "storage_marks",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("token", String(32), nullable=False),
    sqlite_autoincrement=True,
)

strays: Final = Table(  # blobs that no row refers to, and when this database saw them
    "strays",
    metadata,
    Column("path", Text, primary_key=True),
    Column("first_seen", Float, nullable=False),  # monotonic time
    Column("last_seen", Float, nullable=False),
)

tombstones: Final = Table(  # of a deleted voice; one for each transaction that deletes rows of it
    "tombstones",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("voice_id", ID, nullable=False, index=True),
    Column("deleted_at", UtcTime, nullable=False),
    Column("purged_at", UtcTime, index=True),  # NULL: blobs may remain
    Column("audio_paths", JSON(none_as_null=True)),
    sqlite_autoincrement=True,
)
IS_KEPT: Final = ~exists().where(tombstones.c.voice_id == voices.c.voice_id)
"""The voice was not deleted. Rows of a deleted voice may remain for a while."""

# -- bytes stored per account, see migration 0006 -------------------------------------------------------------

_REFERENCE: Final = "2 * CAST(round({0}.ref_duration_s * {0}.ref_sample_rate) AS INTEGER)"
_OWNER: Final = "(SELECT account_id FROM voices WHERE voice_id = {0}.voice_id)"
_OLD, _NEW = _REFERENCE.format("OLD"), _REFERENCE.format("NEW")
_CHANGES: Final = (
    ("AFTER INSERT ON voices", _NEW, "NEW.account_id"),
    ("AFTER UPDATE OF ref_duration_s, ref_sample_rate ON voices", f"{_NEW} - {_OLD}", "NEW.account_id"),
    (
        "BEFORE DELETE ON voices",
        f"-{_OLD} - coalesce((SELECT sum(size_bytes) FROM cache WHERE voice_id = OLD.voice_id), 0)",
        "OLD.account_id",
    ),
    (
        "AFTER UPDATE OF audio_bytes ON jobs",
        "coalesce(NEW.audio_bytes, 0) - coalesce(OLD.audio_bytes, 0)",
        "NEW.account_id",
    ),
    ("AFTER DELETE ON jobs", "-coalesce(OLD.audio_bytes, 0)", "OLD.account_id"),
    ("AFTER INSERT ON cache", "NEW.size_bytes", _OWNER.format("NEW")),
    ("AFTER UPDATE OF size_bytes ON cache", "NEW.size_bytes - OLD.size_bytes", _OWNER.format("NEW")),
    ("AFTER DELETE ON cache", "-OLD.size_bytes", _OWNER.format("OLD")),
)
for _number, (_when, _bytes, _whose) in enumerate(_CHANGES, start=1):
    _trigger = (
        f"CREATE TRIGGER stored_bytes_{_number} {_when} BEGIN UPDATE accounts "
        f"SET stored_bytes = stored_bytes + ({_bytes}) WHERE account_id = {_whose}; END"
    )
    event.listen(metadata, "after_create", DDL(_trigger).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]
