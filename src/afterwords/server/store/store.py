"""The port Store over a database: every method is one unit of work, and the time it happens at."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from afterwords.errors import InvalidOptionError
from afterwords.models import Account, ApiKey, JobStatus, Usage
from afterwords.server.ports import (
    CacheEntry,
    Caller,
    Claim,
    Clock,
    Finished,
    Idempotency,
    Limits,
    NewJob,
    NewKey,
    Outcome,
    Reaped,
    StoredJob,
    StoredVoice,
    Submitted,
    VoiceChanges,
    WebhookCall,
)
from afterwords.server.settings import without_secrets
from afterwords.server.store import garbage, jobs, keys, leases, usage, voices, webhooks
from afterwords.server.store.database import Database
from afterwords.server.store.idempotency import job_of
from afterwords.server.store.presence import Presence

SHORT_LIST: Final = 100
"""Rows that may be read while the event loop waits: well under 10 ms."""


class SqlStore:
    """Rows in SQLite.

    Args:
        url: `sqlite:///name.db`, within the folder unless the name is absolute; a path is taken as it is.
        clock: the time.
        folder: the server's own.
        storage_quota_bytes: what each account may store; None: any amount.
        shows_home: whether voices of the home are shown. If not, their rows stay, as if they were not there.

    Raises:
        InvalidOptionError: the URL is none, or not of a SQLite file.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        clock: Clock,
        folder: Path,
        storage_quota_bytes: int | None = None,
        shows_home: bool = True,
    ) -> None:
        self._clock = clock
        self._shows_home = shows_home
        self._quota_bytes = storage_quota_bytes
        self._database = Database(folder / (url if isinstance(url, Path) else _file_name(url)))
        self._presence = Presence(self._database.path)

    @property
    def path(self) -> Path:
        """The file of the database."""
        return self._database.path

    async def announce(self) -> int:
        return await asyncio.to_thread(self._presence.enter)

    async def open(self) -> bool:
        """Connect, and bring the schema up to date; True if the database was new.

        Raises:
            NewerDatabaseError: a later version has changed the schema.
        """
        return await self._database.open()

    async def close(self) -> None:
        self._presence.leave()
        await self._database.close()

    async def check(self) -> None:
        await self._database.check(partial(garbage.touch, now=self._clock.now()))

    async def secret(self) -> bytes:
        return self._database.secret

    # -- keys ------------------------------------------------------------------------------------------------

    async def add_key(self, key: NewKey, *, by: str | None = None) -> ApiKey:
        return await self._database.write(partial(keys.add, key=key, by=by, now=self._clock.now()))

    async def keys_used(self, key_ids: Sequence[str]) -> None:
        await self._database.write(partial(keys.use, key_ids=key_ids, now=self._clock.now()))

    async def accounts(self) -> list[Account]:
        now = self._clock.now()
        return await self._database.read_long(partial(keys.all_accounts, period=usage.period_of(now), now=now))

    async def home_account(self) -> str | None:
        return await self._database.read(keys.home_account, memo=("home account",))

    async def caller(self, sha256: bytes) -> Caller | None:
        return await self._database.read(partial(keys.caller, sha256=sha256, now=self._clock.now()))

    async def keys(self, *, account_id: str | None) -> list[ApiKey]:
        period = usage.period_of(self._clock.now())
        return await self._database.read_long(partial(keys.all_of, account_id=account_id, period=period))

    async def revoke_key(self, key_id: str, *, account_id: str | None, by: str | None = None) -> list[str] | None:
        now, steady = self._clock.now(), self._clock.steady()
        return await self._database.write(
            partial(keys.revoke, key_id=key_id, account_id=account_id, by=by, now=now, steady=steady)
        )

    async def rotate_key(
        self,
        key_id: str,
        *,
        account_id: str | None,
        sha256: bytes,
        overlap_s: float,
        by: str | None = None,
        prefix: str | None = None,
    ) -> ApiKey | None:
        return await self._database.write(
            partial(
                keys.rotate,
                key_id=key_id,
                account_id=account_id,
                by=by,
                sha256=sha256,
                prefix=prefix,
                overlap_s=overlap_s,
                now=self._clock.now(),
            )
        )

    async def usage(self, caller: Caller) -> Usage:
        return await self._database.read(partial(usage.spent, caller=caller, now=self._clock.now()))

    # -- voices and what is cached of them -------------------------------------------------------------------

    async def add_voice(self, voice: StoredVoice, *, idempotency: Idempotency | None = None) -> StoredVoice:
        return await self._database.write(
            partial(voices.add, voice=voice, asked=idempotency, quota_bytes=self._quota_bytes, now=self._clock.now())
        )

    async def replayed_voice(self, idempotency: Idempotency) -> StoredVoice | None:
        return await self._database.read(partial(voices.replayed, asked=idempotency))

    async def voice(self, voice_id: str, *, account_id: str) -> StoredVoice | None:
        found = await self._database.read(
            partial(voices.get, voice_id=voice_id, account_id=account_id), memo=("voice", voice_id, account_id)
        )
        return found if found is None or self._is_shown(found) else None

    async def voices_named(self, name: str, *, account_id: str) -> list[StoredVoice]:
        found = await self._database.read(partial(voices.named, name=name, account_id=account_id))
        return [voice for voice in found if self._is_shown(voice)]

    def _is_shown(self, voice: StoredVoice) -> bool:
        return self._shows_home or voice.home_id is None

    async def voices(self, *, account_id: str, limit: int | None, after: str | None) -> list[StoredVoice]:
        read = self._database.read if limit is not None and limit <= SHORT_LIST else self._database.read_long
        page = partial(voices.page, account_id=account_id, limit=limit, after=after, shows_home=self._shows_home)
        return await read(page)

    async def update_voice(self, voice_id: str, changes: VoiceChanges, *, account_id: str) -> StoredVoice | None:
        work = partial(voices.change, voice_id=voice_id, changes=changes, account_id=account_id)
        voice = await self._database.write(work)
        if changes.ref_text is not None:
            await self._database.scrub()
        return voice

    async def delete_voice(self, voice_id: str, *, account_id: str) -> list[str] | None:
        work = partial(voices.remove, voice_id=voice_id, account_id=account_id, now=self._clock.now())
        paths = await self._database.write(work, is_freeing=True)
        if paths is not None:
            await self._database.scrub()
        return paths

    async def purge_due(self) -> list[tuple[str, list[str]]]:
        return await self._database.read(voices.unpurged)

    async def purged(self, voice_id: str) -> None:
        work = partial(voices.purged, voice_id=voice_id, now=self._clock.now())
        await self._database.write(work, is_freeing=True)
        await self._database.scrub_if_due()

    async def cached(self, voice_id: str, cache_key: str) -> CacheEntry | None:
        return await self._database.read(
            partial(voices.cached, voice_id=voice_id, cache_key=cache_key), memo=("cached", voice_id, cache_key)
        )

    async def uncache(self, entry: CacheEntry) -> None:
        await self._database.write(partial(voices.uncache, entry=entry))

    # -- jobs, for those who ask -----------------------------------------------------------------------------

    async def submit(self, job: NewJob, *, limits: Limits, idempotency: Idempotency | None = None) -> Submitted:
        return await self._database.write(
            partial(
                jobs.submit,
                job=job,
                limits=limits,
                asked=idempotency,
                quota_bytes=self._quota_bytes,
                now=self._clock.now(),
            )
        )

    async def replayed_job(self, idempotency: Idempotency) -> str | None:
        return await self._database.read(partial(job_of, asked=idempotency))

    async def job(self, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
        return await self._database.read(
            partial(jobs.get, job_id=job_id, account_id=account_id), memo=("job", job_id, account_id or "")
        )

    async def jobs(
        self, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
    ) -> list[StoredJob]:
        read = self._database.read if limit is not None and limit <= SHORT_LIST else self._database.read_long
        return await read(partial(jobs.page, account_id=account_id, status=status, limit=limit, after=after))

    async def cancel(self, job_id: str, *, account_id: str) -> StoredJob | None:
        now, steady = self._clock.now(), self._clock.steady()
        return await self._database.write(
            partial(jobs.cancel, job_id=job_id, account_id=account_id, now=now, steady=steady)
        )

    async def lost(self, job_id: str) -> None:
        await self._database.write(partial(jobs.lose, job_id=job_id))

    # -- jobs, for those who speak them ----------------------------------------------------------------------

    async def claim(
        self, *, backends: Sequence[str], lease_s: float, worker: str, except_voices: Sequence[str] = ()
    ) -> Claim | None:
        if not await self._database.read(
            partial(leases.is_any_waiting, backends=backends, except_voices=except_voices)
        ):
            return None
        return await self._database.write(
            partial(
                leases.claim,
                backends=backends,
                lease_s=lease_s,
                worker=worker,
                except_voices=except_voices,
                steady=self._clock.steady(),
            )
        )

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> bool:
        steady = self._clock.steady()
        return await self._database.write(
            partial(leases.heartbeat, job_id=job_id, attempt=attempt, lease_s=lease_s, steady=steady)
        )

    async def finish(self, job_id: str, attempt: int | None, outcome: Outcome) -> Finished:
        now, steady = self._clock.now(), self._clock.steady()
        return await self._database.write(
            partial(
                leases.finish,
                job_id=job_id,
                attempt=attempt,
                outcome=outcome,
                quota_bytes=self._quota_bytes,
                now=now,
                steady=steady,
            )
        )

    async def give_back(self, job_id: str, attempt: int) -> bool:
        return await self._database.write(partial(leases.give_back, job_id=job_id, attempt=attempt))

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int) -> JobStatus | None:
        return await self._database.write(
            partial(
                leases.retry,
                job_id=job_id,
                attempt=attempt,
                error=error,
                max_attempts=max_attempts,
                now=self._clock.now(),
                steady=self._clock.steady(),
            )
        )

    async def reap(self, *, max_attempts: int) -> Reaped:
        await self._database.scrub_if_due()
        now, steady = self._clock.now(), self._clock.steady()
        if not await self._database.read(partial(leases.is_any_dead, steady=steady)):
            return Reaped()
        return await self._database.write(partial(leases.reap, max_attempts=max_attempts, now=now, steady=steady))

    # -- webhooks and sweeping -------------------------------------------------------------------------------

    async def webhooks_due(
        self, *, limit: int, per_account: int = 4, allowed: Mapping[str, int] | None = None
    ) -> list[WebhookCall]:
        steady = self._clock.steady()
        if not await self._database.read(partial(webhooks.is_any_due, steady=steady)):
            return []
        return await self._database.write(
            partial(webhooks.due, limit=limit, per_account=per_account, allowed=allowed or {}, steady=steady)
        )

    async def webhook_done(self, job_id: str, *, delivered: bool) -> None:  # noqa: ARG002 - either way it is over
        await self._database.write(partial(webhooks.settle, job_id=job_id))

    async def known_paths(self, paths: Sequence[str]) -> set[str]:
        return await self._database.read_long(partial(garbage.known_paths, paths=paths))

    async def strays(self, paths: Sequence[str], *, grace_s: float) -> set[str]:
        known = await self.known_paths(paths)
        unknown = [path for path in paths if path not in known]
        if not unknown:
            return set()
        steady = self._clock.steady()
        work = partial(garbage.note_strays, paths=unknown, grace_s=grace_s, steady=steady)
        return await self._database.write(work, is_freeing=True)

    async def add_mark(self, token: str) -> None:
        await self._database.write(partial(garbage.add_mark, token=token), is_freeing=True)

    async def has_mark(self, token: str) -> bool:
        return await self._database.read(partial(garbage.has_mark, token=token))

    async def forget_old(self) -> None:
        now, steady = self._clock.now(), self._clock.steady()
        await self._database.write(partial(garbage.forget_old, now=now, steady=steady), is_freeing=True)
        await self._database.scrub()


def _file_name(url: str) -> str:
    """The file of a SQLite URL."""
    allowed = "sqlite:/// and the name of a file"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidOptionError("AFTERWORDS_DATABASE_URL", value="no URL", allowed=allowed) from None
    is_file = parsed.database not in (None, "", ":memory:") and not (parsed.host or parsed.username or parsed.query)
    if parsed.get_backend_name() != "sqlite" or not is_file:
        raise InvalidOptionError("AFTERWORDS_DATABASE_URL", value=without_secrets(url), allowed=allowed)
    return str(parsed.database)
