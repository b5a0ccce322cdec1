"""Helpers of store tests: a clock that tests set, and rows with default values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, cast

from sqlalchemy import insert, update

from afterwords.models import Consent, ConsentKind, new_id
from afterwords.server.ports import Store
from afterwords.server.records import (
    AttemptResult,
    Caller,
    Claim,
    Idempotency,
    NewJob,
    NewKey,
    QueueLimits,
    StoredJob,
    StoredVoice,
)
from afterwords.server.settings import Plan
from afterwords.server.store import SqlStore
from afterwords.server.store.schema import accounts, customers

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
MANY = QueueLimits(pending=10_000, pending_per_account=10_000)
PLANS = {"small": Plan(characters=100, max_pending_jobs=3), "free": Plan(characters=100)}
"""The plans of the stores under test."""
TEXT = "A text that is not public."


@dataclass
class ManualClock:
    """A clock that only tests move."""

    wall: datetime = START
    monotonic_s: float = START.timestamp()

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.monotonic_s

    def synchronize(self, monotonic: float) -> None:
        """Do nothing: the time is that of the test."""

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall += timedelta(seconds=seconds)
        self.monotonic_s += seconds


def digest(word: str) -> bytes:
    return sha256(word.encode()).digest()


def audio(path: str = "jobs/one.wav", *, content: str = "audio") -> AttemptResult:
    """Return the result of an attempt with audio."""
    return AttemptResult(audio_key=path, audio_sha256=digest(content).hex(), audio_bytes=4800, synth_ms=120)


@dataclass
class World:
    """A store and its clock, with methods that add rows."""

    store: Store
    clock: ManualClock

    async def caller(self, name: str = "ann", **facts: Any) -> Caller:
        """Return the caller with this name, created with a new account on first use."""
        found = await self.store.find_caller(digest(name))
        if found is None:
            await self.store.add_key(NewKey(digest(name), **facts))
            found = await self.store.find_caller(digest(name))
        assert found is not None
        return found

    async def set_account(self, caller: Caller, **values: Any) -> None:
        """Set columns of the account, as a change of its subscription does."""
        statement = update(accounts).where(accounts.c.account_id == caller.account_id).values(**values)
        await cast("SqlStore", self.store).database.write(lambda connection: connection.execute(statement))

    async def add_customer(self, caller: Caller, **values: Any) -> None:
        """Add the customer of an account, with the ID cus_1."""
        statement = insert(customers).values(customer_id="cus_1", account_id=caller.account_id, **values)
        await cast("SqlStore", self.store).database.write(lambda connection: connection.execute(statement))

    async def set_customer(self, caller: Caller, **values: Any) -> None:
        """Set columns of the customer of an account."""
        statement = update(customers).where(customers.c.account_id == caller.account_id).values(**values)
        await cast("SqlStore", self.store).database.write(lambda connection: connection.execute(statement))

    def new_voice(self, caller: Caller, **facts: Any) -> StoredVoice:
        """Return a voice that is not stored yet."""
        voice_id = new_id()
        plain = StoredVoice(
            voice_id=voice_id,
            account_id=caller.account_id,
            name="me",
            backend="tone",
            lang="en",
            ref_audio_key=f"voices/{voice_id}/ref.wav",
            ref_sha256=digest("reference").hex(),
            ref_duration_s=12.5,
            ref_sample_rate=24000,
            created_at=self.clock.now(),
            ref_text="a quiet morning by the sea",
            consent=Consent(kind=ConsentKind.SELF, stated_at=self.clock.now()),
            metadata={"mood": "calm", "takes": [1, 2]},
        )
        return replace(plain, **facts)

    async def add_voice(self, caller: Caller | None = None, **facts: Any) -> StoredVoice:
        return await self.store.add_voice(self.new_voice(caller or await self.caller(), **facts))

    def new_job(self, caller: Caller, voice: StoredVoice, **facts: Any) -> NewJob:
        """Return a new job that is not submitted yet."""
        job_id = new_id()
        key = digest(job_id).hex()
        plain = NewJob(
            job_id=job_id,
            account_id=caller.account_id,
            voice_id=voice.voice_id,
            key_id=caller.key_id,
            spending_id=caller.spending_id,
            text=TEXT,
            lang="en",
            backend="tone",
            cache_key=key,
            flight_key=key,
            char_count=len(TEXT),
            character_limit=caller.character_limit,
        )
        return replace(plain, **facts)

    async def add_job(self, caller: Caller | None = None, voice: StoredVoice | None = None, **facts: Any) -> StoredJob:
        """Submit a job."""
        caller = caller or await self.caller()
        voice = voice or await self.add_voice(caller)
        submitted = await self.store.submit(self.new_job(caller, voice, **facts), limits=MANY)
        return submitted.job

    async def claim(self, *, lease_s: float = 15) -> Claim | None:
        return await self.store.claim(backends=["tone"], lease_s=lease_s, worker="w1")

    async def add_claimed_job(self, **facts: Any) -> StoredJob:
        """Submit and claim a job."""
        await self.add_job(**facts)
        claim = await self.claim()
        assert claim is not None
        return claim.job

    async def reload(self, job: StoredJob) -> StoredJob:
        """Return the current row of a job."""
        found = await self.store.get_job(job.job_id)
        assert found is not None
        return found

    async def characters_used(self, name: str = "ann") -> int:
        """Return the characters charged to the account of a caller in this period."""
        return (await self.store.get_usage(await self.caller(name))).characters


def request(caller: Caller, *, key: str = "once", body: str = "same", route: str = "synthesize") -> Idempotency:
    """Return the idempotency key of a request."""
    return Idempotency(caller.account_id, route, key, digest(body).hex())
