"""Import what the hosted service exported into the database and storage of a server, which must be stopped.

IDs of accounts and keys are derived from the hash of the key, rows that exist are left alone, and audio is copied
before the rows that name it are inserted, in one transaction. So an import that was interrupted can be repeated, and a
second one changes nothing. Called by `afterwords import-cloudflare`.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid5

from sqlalchemy import Column, Table, insert, select, update

from afterwords.audio.wav import canonical_wav, check_reference_wav, read_wav, wav_blocks
from afterwords.errors import FileError, RecordingError, ServerSetupError
from afterwords.models import JobStatus, ReferenceInfo, SpeechFormat
from afterwords.server.app_state import open_storage, open_store
from afterwords.server.blobs import open_blobs
from afterwords.server.blobs.paths import is_path
from afterwords.server.cache_key import cache_path, job_path, reference_path
from afterwords.server.cloudflare.export import Dump, Findings, HostedJob, HostedKey, HostedVoice, read_keys
from afterwords.server.databases import announce_alone
from afterwords.server.ports import Blobs
from afterwords.server.records import AuditAction
from afterwords.server.services.decoding import RATE_MAX, DecodingPool
from afterwords.server.services.ownership import MARK_PATH, Ownership, OwnershipStatus, database_id
from afterwords.server.settings import Settings
from afterwords.server.store import usage as usage_rows
from afterwords.server.store.database import Database
from afterwords.server.store.migrate import check_version, find_version
from afterwords.server.store.schema import accounts, audit, cache, customers, jobs, keys, tombstones, voices
from afterwords.server.store.store import SqlStore

T = TypeVar("T")

NAMESPACE: Final = UUID("6f0f7c3e-51a8-4d0a-9c0b-6c3a1d1f3f52")
CONCURRENCY: Final = 16
"""Files that are copied at once."""
BATCH: Final = 500
PENDING: Final = "The job was pending when the server was moved. Submit the text again."
AUDIO_MISSING: Final = "The audio was missing when the server was moved."
UNKNOWN_FILES: Final = "files that no row names: the server removes nothing until `afterwords storage adopt`"
UNKNOWN_CACHE_KEY: Final = ""
"""The hosted service does not keep the cache key of a job."""
IDENTITY: Final[dict[Table, tuple[Column[Any], ...]]] = {
    voices: (voices.c.voice_id,),
    jobs: (jobs.c.job_id,),
    cache: (cache.c.voice_id, cache.c.cache_key),
    customers: (customers.c.account_id,),
    tombstones: (tombstones.c.voice_id,),
}
"""The columns that identify the rows of a table."""
ORDER: Final = (accounts, keys, customers, voices, cache, jobs)
_CACHED: Final = re.compile("voices/([0-9a-f-]{36})/cache/([0-9a-f]{64})\\.wav")

OnProgress = Callable[[float, str], None]
"""Called with the fraction of the files that were read, and the current step."""


@dataclass(slots=True)
class ImportResult:
    """What an import found, and did unless it was a dry run.

    Attributes:
        new: Number of new rows by table.
        n_present: Number of rows that were there before.
        copied_files: Files written to the storage.
        copied_bytes: Their size.
        findings: What was not imported, or changed.
    """

    new: Counter[str] = field(default_factory=Counter)
    n_present: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    findings: Findings = field(default_factory=Findings)


async def import_cloudflare(
    settings: Settings,
    *,
    d1: Path,
    kv: Path,
    r2: str,
    owner_column: str | None = None,
    is_dry_run: bool = False,
    on_progress: OnProgress = lambda _fraction, _step: None,
) -> ImportResult:
    """Import accounts, keys, voices, jobs, cached speech and Stripe customers of the hosted service.

    Args:
        settings: Settings of the server, which must not be running.
        d1: Dump of the D1 database.
        kv: Keys of the KV namespace.
        r2: Storage with the objects of the bucket, as in AFTERWORDS_STORAGE_URL. If it is the storage of the server,
            nothing is copied, and the server owns it afterwards.
        owner_column: Column of `voices` with the hash of the owner's key. None: the only one with such values.
        is_dry_run: Whether to read everything, and write nothing.

    Raises:
        FileError, InvalidInputError: A file can't be read, or is not such an export.
        InvalidOptionError: The storage URL is malformed.
        ServerSetupError: A server is running, or the storage belongs to another database.
        DatabaseUnavailableError, StorageUnavailableError, StorageFullError: Nothing was inserted.
    """
    result = ImportResult()
    hosted_keys = await asyncio.to_thread(read_keys, kv, findings=result.findings)
    source, target = _open_source(r2), open_storage(settings)
    is_in_place = _locate(r2) == _locate(settings.storage_url or str(settings.folder / "blobs"))
    with tempfile.TemporaryDirectory(prefix="afterwords-import-") as scratch:
        dump = await asyncio.to_thread(
            Dump, d1, Path(scratch, "d1.db"), findings=result.findings, owner_column=owner_column
        )
        work = _Import(dump, hosted_keys, source, target, is_in_place=is_in_place, is_dry_run=is_dry_run, result=result)
        try:
            if is_dry_run:
                await work.dry_run(open_store(settings).database, on_progress)
            else:
                await work.run(open_store(settings), on_progress)
        finally:
            dump.close()
    return result


@dataclass(slots=True)
class _Import:
    """One import, and the rows that it will insert."""

    dump: Dump
    hosted_keys: list[HostedKey]
    source: Blobs
    target: Blobs
    is_in_place: bool
    is_dry_run: bool
    result: ImportResult
    rows: dict[Table, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)  # account and key of each hash
    present: dict[Table, set[Any]] = field(default_factory=lambda: defaultdict(set))
    known_paths: set[str] = field(default_factory=set)
    customer_ids: set[str] = field(default_factory=set)
    decoding: DecodingPool = field(default_factory=DecodingPool)

    async def dry_run(self, database: Database, on_progress: OnProgress) -> None:
        if database.path is None or database.path.is_file():
            await asyncio.to_thread(self._read_present, database, may_be_empty=True)
        await self._read_export(on_progress)

    async def run(self, store: SqlStore, on_progress: OnProgress) -> None:
        try:
            await store.open()
            await announce_alone(store.database, message="A running server uses the database.")
            ownership = Ownership(store, self.target, database_id(await store.secret()))
            if (status := await ownership.read()) not in (OwnershipStatus.OWN, OwnershipStatus.UNMARKED):
                raise ServerSetupError(f"Nothing was imported: {status}.", code="storage_refused")
            await asyncio.to_thread(self._read_present, store.database)
            if self.is_in_place:
                async for batch in self.source.listing():
                    self.known_paths |= await store.find_known_paths([blob.path for blob in batch])
            await self._read_export(on_progress)
            await asyncio.to_thread(self._insert, store.database)
            for path in (unknown := await ownership.list_unknown()):
                self.result.findings.add(UNKNOWN_FILES, path)
            if not unknown:  # a server removes from its own storage what no row names
                await ownership.adopt()
        finally:
            await store.close()

    def _read_present(self, database: Database, *, may_be_empty: bool = False) -> None:
        """Read which rows an earlier import, or the server, has inserted or deleted."""
        with database.session() as connection:
            version = find_version(connection)
            if version is None and may_be_empty:
                return
            check_version(version)
            for table, columns in IDENTITY.items():
                found = connection.execute(select(*columns))
                self.present[table] = {row[0] if len(columns) == 1 else tuple(row) for row in found}
            deleted = select(audit.c.target_id).where(audit.c.action == AuditAction.VOICE_DELETED)
            self.present[tombstones] |= set(connection.execute(deleted).scalars())
            self.customer_ids |= set(connection.execute(select(customers.c.customer_id)).scalars())
            for row in connection.execute(select(keys.c.sha256, keys.c.account_id, keys.c.key_id)):
                self.owners[row.sha256.hex()] = (row.account_id, row.key_id)

    async def _read_export(self, on_progress: OnProgress) -> None:
        """Read all rows and their audio, copy the audio, and collect the rows to insert."""
        try:
            objects = {blob.path async for batch in self.source.listing() for blob in batch}
            hosted_voices = list(self.dump.voices())
            self._add_owners(hosted_voices)
            progress = _Progress(on_progress, total=max(1, len(objects)))
            mine = await _run_all(self._add_voice(voice, progress) for voice in hosted_voices)
            by_id = {voice.voice_id: voice for voice, is_there in zip(hosted_voices, mine, strict=True) if is_there}
            cached = [(match[1], match[2]) for path in objects if (match := _CACHED.fullmatch(path))]
            await _run_all(self._add_cached(by_id.get(voice_id), voice_id, key, progress) for voice_id, key in cached)
            hosted_jobs = list(self.dump.jobs())
            await _run_all(self._add_job(by_id.get(job.voice_id), job, progress) for job in hosted_jobs)
        finally:
            self.decoding.close()
        named = {voice.ref_audio_key for voice in hosted_voices} | {job.audio_key for job in hosted_jobs}
        named |= {cache_path(*name) for name in cached} | {MARK_PATH}
        for path in sorted(objects - named - self.known_paths):
            self.result.findings.add("objects that no row names, not imported", path)
        self.result.new.update({table.name: len(rows) for table, rows in self.rows.items()})

    def _add_owners(self, hosted_voices: Iterable[HostedVoice]) -> None:
        """Collect accounts and keys; a key that owns voices but is not in KV was revoked."""
        first_seen: dict[str, datetime] = {}
        for voice in hosted_voices:
            first_seen[voice.key_hash] = min(voice.created_at, first_seen.get(voice.key_hash, voice.created_at))
        valid = {key.sha256.hex(): key for key in self.hosted_keys}
        now = datetime.now(UTC)
        for key_hash in valid.keys() | first_seen.keys():
            if key_hash in self.owners:
                self.result.n_present += 1
                continue
            key = valid.get(key_hash)
            created_at = (key and key.created_at) or first_seen.get(key_hash, now)
            account_id, key_id = (str(uuid5(NAMESPACE, f"{kind} {key_hash}")) for kind in ("account", "key"))
            self.owners[key_hash] = account_id, key_id
            self.rows[accounts].append({"account_id": account_id, "created_at": created_at})
            self.rows[keys].append(
                {
                    "key_id": key_id,
                    "account_id": account_id,
                    "sha256": bytes.fromhex(key_hash),
                    "label": key and key.label,
                    "scopes": "",
                    "spending_id": key_id,
                    "created_at": created_at,
                    "expires_at": key and key.expires_at,
                    "revoked_at": None if key else now,
                }
            )
            if key is None:
                self.result.findings.add("keys that own voices but are not in KV, imported as revoked", key_hash[:8])
        for key_hash, customer_id in self.dump.customers().items():
            account_id, _ = self.owners.get(key_hash, ("", ""))
            if not account_id:
                self.result.findings.add("Stripe customers of a key that does not exist", customer_id)
            elif account_id in self.present[customers]:
                self.result.n_present += 1
            elif customer_id in self.customer_ids:
                self.result.findings.add("Stripe customers of several keys, of which the first has it", customer_id)
            else:
                self.customer_ids.add(customer_id)
                self.rows[customers].append({"customer_id": customer_id, "account_id": account_id})

    async def _add_voice(self, voice: HostedVoice, progress: _Progress) -> bool:
        """Copy a recording and collect its row. Return whether the server has the voice then."""
        if voice.voice_id in self.present[voices]:
            self.result.n_present += 1
            return True
        if voice.voice_id in self.present[tombstones]:
            self.result.findings.add("voices that were deleted here, not imported again", voice.voice_id)
            return False
        data = await self._get(voice.ref_audio_key)
        progress.add()
        if data is None:
            self.result.findings.add("voices without their recording, not imported", voice.voice_id)
            return False
        try:
            wav, reference = await self._canonical(data)
        except RecordingError as error:
            self.result.findings.add(f"voices whose recording is refused ({error.code}), not imported", voice.voice_id)
            return False
        path = await self._put(reference_path(voice.voice_id), wav)
        account_id, _ = self.owners[voice.key_hash]
        self.rows[voices].append(
            {
                "voice_id": voice.voice_id,
                "account_id": account_id,
                "name": voice.name,
                "backend": voice.backend,
                "lang": voice.lang,
                "family": voice.family,
                "ref_audio_key": path,
                "ref_sha256": reference.sha256,
                "ref_duration_s": reference.duration_s,
                "ref_sample_rate": reference.sample_rate,
                "created_at": voice.created_at,
                "metadata": dict(voice.metadata),
                "ref_text": voice.ref_text,
            }
        )
        return True

    async def _add_cached(self, voice: HostedVoice | None, voice_id: str, key: str, progress: _Progress) -> None:
        path = cache_path(voice_id, key)
        if voice is None:
            self.result.findings.add("cached audio of voices that are not imported", path)
        elif voice_id in self.present[voices]:  # a change of the voice may have removed cached speech since
            if (voice_id, key) in self.present[cache]:
                self.result.n_present += 1
            else:
                self.result.findings.add("cached audio of voices that were here before, not imported", path)
        elif (facts := await self._copy_audio(path, path)) is not None:
            stored_path, digest, size_bytes = facts
            if stored_path != path:  # its row has no path of its own
                self.result.findings.add("cached audio whose file differs in the storage, not imported", path)
                return
            self.rows[cache].append(
                {
                    "voice_id": voice_id,
                    "cache_key": key,
                    "sha256": digest,
                    "size_bytes": size_bytes,
                    "synth_ms": 0,
                    "created_at": voice.created_at,
                }
            )
        progress.add()

    async def _add_job(self, voice: HostedVoice | None, job: HostedJob, progress: _Progress) -> None:
        if job.job_id in self.present[jobs]:
            self.result.n_present += 1
            return
        if voice is None:
            self.result.findings.add("jobs of voices that are not imported", job.job_id)
            return
        facts, error = None, job.error
        if job.status == JobStatus.READY:
            path = job.audio_key or job_path(job.job_id, 1)
            facts = await self._copy_audio(path, job_path(job.job_id, 1))
            error = AUDIO_MISSING
            progress.add()
        elif job.status != JobStatus.FAILED:
            error = PENDING
            self.result.findings.add(f"{job.status} jobs, imported as failed", job.job_id)
        account_id, key_id = self.owners[voice.key_hash]
        self.rows[jobs].append(
            {
                "job_id": job.job_id,
                "account_id": account_id,
                "voice_id": job.voice_id,
                "key_id": key_id,
                "status": JobStatus.READY if facts else JobStatus.FAILED,
                "lang": voice.lang,
                "backend": voice.backend,
                "cache_key": UNKNOWN_CACHE_KEY,
                "speed": 1.0,
                "response_format": SpeechFormat.WAV,
                "char_count": job.char_count,
                "spending_id": key_id,
                "period": f"{job.created_at:%Y-%m}",
                "attempt": 1,
                "audio_key": facts and facts[0],
                "audio_sha256": facts and facts[1],
                "audio_bytes": facts and facts[2],
                "synth_ms": 0 if facts else None,
                "error": None if facts else error or "The hosted service gave no reason.",
                "created_at": job.created_at,
                "completed_at": job.completed_at or job.created_at,
            }
        )

    async def _copy_audio(self, path: str, new_path: str) -> tuple[str, str, int] | None:
        """Copy an audio file, and return its path, SHA-256 and size. None: it is missing or not a WAV file."""
        data = await self._get(path)
        if data is None:
            self.result.findings.add("audio that is missing", path)
            return None
        try:
            blocks = wav_blocks(BytesIO(data))
            if not blocks.is_pcm16_mono:  # the form that responses are made from
                data = canonical_wav(*read_wav(data))
        except RecordingError as error:
            self.result.findings.add(f"audio that is not a WAV file ({error.code})", path)
            return None
        return await self._put(new_path, data), sha256(data).hexdigest(), len(data)

    async def _get(self, path: str) -> bytes | None:
        return await self.source.get(path) if is_path(path) else None

    async def _put(self, path: str, data: bytes) -> str:
        """Write a file unless it is there, and return its path: another one if a different file has that path."""
        if await self.target.get(path, sha256=sha256(data).hexdigest()) is not None:
            return path
        if await self.target.exists(path):
            path = path.removesuffix(".wav") + "-imported.wav"
        if not self.is_dry_run:
            await self.target.put(path, data)
        self.result.copied_files += 1
        self.result.copied_bytes += len(data)
        return path

    async def _canonical(self, data: bytes) -> tuple[bytes, ReferenceInfo]:
        """Return a recording as servers store it. Other forms than that are decoded in a process of their own."""
        if data[:4] == b"RIFF":
            samples, sample_rate = check_reference_wav(data)
            if sample_rate <= RATE_MAX and canonical_wav(samples, sample_rate) == data:
                digest = sha256(data).hexdigest()
                return data, ReferenceInfo(
                    sha256=digest, duration_s=len(samples) / sample_rate, sample_rate=sample_rate
                )
        return await self.decoding.prepare(data)

    def _insert(self, database: Database) -> None:
        """Insert all rows in one transaction."""
        with database.session(is_writing=True) as connection:
            for table in ORDER:
                batch = self.rows[table]
                for start in range(0, len(batch), BATCH):
                    connection.execute(insert(table), batch[start : start + BATCH])
            spent, stored = Counter[tuple[str, str, str, str]](), Counter[str]()
            for row in self.rows[jobs]:
                if row["status"] is JobStatus.READY:
                    day = usage_rows.day_of(row["created_at"])
                    spent[row["spending_id"], row["account_id"], row["period"], day] += row["char_count"]
                    stored[row["account_id"]] += row["audio_bytes"]
            for (spending_id, account_id, period, day), characters in spent.items():
                usage_rows.charge(
                    connection,
                    spending_id=spending_id,
                    account_id=account_id,
                    period=period,
                    day=day,
                    characters=characters,
                )
            for account_id, n_bytes in stored.items():  # triggers count voices and cached speech, but not new jobs
                more = accounts.c.stored_bytes + n_bytes
                connection.execute(
                    update(accounts).where(accounts.c.account_id == account_id).values(stored_bytes=more)
                )


@dataclass(slots=True)
class _Progress:
    """The number of files that were read."""

    on_progress: OnProgress
    total: int
    done: int = 0

    def add(self) -> None:
        self.done += 1
        self.on_progress(min(self.done / self.total, 1.0), "reading audio")


async def _run_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines, a few at a time, and return their results in order."""
    results: dict[int, T] = {}
    waiting = enumerate(calls)

    async def work() -> None:
        for number, call in waiting:
            results[number] = await call

    tasks = [asyncio.create_task(work()) for _ in range(CONCURRENCY)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [results[number] for number in range(len(results))]


def _open_source(url: str) -> Blobs:
    """Open the storage to read. A missing folder is not created, unlike that of a server.

    Raises:
        FileError: There is no such folder.
        InvalidOptionError: The URL is malformed.
    """
    folder = _folder_of(url)
    if folder is not None and not folder.is_dir():
        raise FileError.unreadable(folder, why="there is no such folder")
    return open_blobs(url)


def _folder_of(url: str) -> Path | None:
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _locate(url: str) -> str:
    """Return the same string for two URLs of one storage."""
    folder = _folder_of(url)
    if folder is not None:
        return str(folder.resolve())
    parts = urlsplit(url)
    endpoint = parse_qs(parts.query).get("endpoint", [""])[-1]
    return f"{parts.netloc}/{parts.path.strip('/')} {endpoint.rstrip('/')}"
