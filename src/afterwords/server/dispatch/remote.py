"""The dispatcher of remote workers: hands jobs to the workers that ask for them, and passes their audio on.

Everything that counts is in the database: a worker may finish its attempt at another server, or after a restart of
this one. What is kept here, streams and progress, is lost with the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final

from cachetools import TTLCache

from afterwords.errors import InvalidRequestError, StaleAttemptError
from afterwords.models import WordTiming
from afterwords.server.concurrency import ConcurrencyLimit
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.audio_stream import AudioListener, AudioStream, AudioStreams
from afterwords.server.dispatch.claiming import OUTAGE, ClaimLoop
from afterwords.server.dispatch.protocol import ClaimBody, EndBody, HeartbeatBody, Offer
from afterwords.server.ports import AttemptQueue, Dispatcher, Listener
from afterwords.server.records import Claim, JobProgress, StoredJob
from afterwords.server.settings import Settings
from afterwords.text import max_speech_s

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 0.5
"""Time between looks for jobs while workers wait: other servers submit to the same database."""
WORKER_GONE_S: Final = 60.0
"""Time without a request after which a worker counts as gone, and its backends are not offered any more."""
LOOK_MAX_S: Final = 5.0
"""Longest wait of a worker that does not wait for a job: one look at the queue."""
WAITS_MAX: Final = 4
"""Requests of one attempt that wait or stream at the same time; some may be left from lost connections."""
GIVEN_MAX: Final = 1024
GIVEN_S: Final = 60.0
"""How many claims are remembered for how long, for workers that did not get the answer and ask again."""


@dataclass(slots=True, eq=False)
class RemoteWorker:
    """A connected worker, with what it offered last, and the backends for which it once had room for a preparation."""

    name: str
    version: str
    token_id: str
    offers: Mapping[str, Offer]
    prepares: Set[str]
    seen: float


@dataclass(slots=True, eq=False)
class _Poll:
    """A worker that waits for a job."""

    worker: str
    body: ClaimBody
    given: asyncio.Future[Claim | None]

    def end(self) -> None:
        """End the wait without a job, unless one was given."""
        if not self.given.done():
            self.given.set_result(None)

    @property
    def wish(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        return tuple(self.body.backends), tuple(self.body.skip_voices), tuple(self.body.prepare)


@dataclass(slots=True, eq=False)
class _RemoteAttempt:
    """An attempt that a worker of this server runs."""

    claim: Claim
    stream: AudioStream
    worker: str
    expires: float
    progress: JobProgress = field(default=JobProgress("waiting"))


class RemoteDispatcher:
    """Run jobs on remote workers; implements the port Dispatcher.

    Attributes:
        queue: The queue of the jobs.
        claiming, delivering, waiting: Limits of concurrent requests: claims and results of a worker token, and requests
            of an attempt that take long.
    """

    def __init__(self, settings: Settings, queue: AttemptQueue, streams: AudioStreams) -> None:
        self._lease_s = settings.lease_s
        self.queue = queue
        maximum = settings.max_requests_per_key
        self.claiming = ConcurrencyLimit(maximum, doing="claims under way", owner="worker token")
        self.delivering = ConcurrencyLimit(maximum, doing="results under way", owner="worker token")
        self.waiting = ConcurrencyLimit(WAITS_MAX, doing="requests under way", owner="attempt")
        self._streams = streams
        self._workers: dict[str, RemoteWorker] = {}
        self._polls: dict[str, _Poll] = {}  # by claim ID, longest waiting first
        self._given: TTLCache[str, Claim] = TTLCache(GIVEN_MAX, ttl=GIVEN_S)
        self._numbers: TTLCache[str, int] = TTLCache(GIVEN_MAX, ttl=GIVEN_S)  # of the last requests, by claim ID
        self._attempts: dict[str, _RemoteAttempt] = {}  # by job
        self._claims = ClaimLoop(self._give_jobs, interval_s=lambda: LOOK_INTERVAL_S if self._polls else None)
        self._ending: asyncio.Task[None] | None = None

    # -- the port Dispatcher

    @property
    def workers(self) -> list[RemoteWorker]:
        """The connected workers."""
        now = time.monotonic()
        for worker_id, worker in [*self._workers.items()]:
            if now - worker.seen > WORKER_GONE_S:
                del self._workers[worker_id]
        return list(self._workers.values())

    def count_running(self, worker: RemoteWorker) -> int:
        """Return the number of attempts that a worker runs for this server."""
        return sum(self._workers.get(attempt.worker) is worker for attempt in self._attempts.values())

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        return {name: offer.languages for worker in self.workers for name, offer in worker.offers.items()}

    def unspoken(self, backend: str, text: str) -> list[str]:  # noqa: ARG002 - only the worker knows
        return []

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: offer.prompt_version for worker in self.workers for name, offer in worker.offers.items()}

    @property
    def features(self) -> Mapping[str, frozenset[str]]:
        return _common({name: offer.features for name, offer in worker.offers.items()} for worker in self.workers)

    @property
    def prepares(self) -> Set[str]:
        return frozenset().union(*(worker.prepares for worker in self.workers))

    @property
    def is_ready(self) -> bool:
        return bool(self.workers) and not self._claims.is_closed

    @property
    def state(self) -> str:
        n_workers = len(self.workers)
        return f"{n_workers} remote worker{'' if n_workers == 1 else 's'}" if n_workers else "no remote workers"

    async def start(self) -> None:
        self._claims.start()
        self._ending = asyncio.create_task(self._end_lost_attempts())

    def wake(self) -> None:
        self._claims.wake()

    def listen(self, job_id: str) -> AudioListener:
        return self._streams.listen(job_id)

    def progress(self, job: StoredJob) -> JobProgress:
        if attempt := self._attempts.get(job.job_id):
            return attempt.progress
        for attempt in self._attempts.values():  # one that prepares the voice prepares it for this job, too
            claim = attempt.claim
            is_for_it = (claim.voice.voice_id, claim.job.backend) == (job.voice_id, job.backend)
            if is_for_it and attempt.progress.step == "preparing":
                return attempt.progress
        return JobProgress("waiting")

    def cancel(self, job_id: str) -> None:
        """End the stream of a job. Its worker waits for the end of the job, and stops."""
        if attempt := self._attempts.pop(job_id, None):
            self._end(attempt, will_be_retried=False)
        self._streams.cancel(job_id)

    async def stop(self, *, grace_s: float) -> None:
        """Give no more jobs, and finish open streams. Workers keep their attempts, and deliver to the next server."""
        self._claims.close()
        for poll in self._polls.values():
            poll.end()
        await self._claims.wait_closed()
        if self._ending:
            self._ending.cancel()
            await asyncio.wait([self._ending])
        streams = [attempt.stream for attempt in self._attempts.values() if attempt.stream.n_listeners]
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                for stream in streams:
                    await stream.changed.wait_for(partial(getattr, stream, "is_finished"))
        for attempt in self._attempts.values():
            self._end(attempt, will_be_retried=False)
        self._attempts.clear()

    # -- claims

    async def claim(self, body: ClaimBody, *, token_id: str) -> Claim | None:
        """Return a job for a worker once there is one, or None after `body.wait_s` seconds.

        If it is cancelled, because the worker disconnects, its job goes back to the queue.
        """
        worker = f"{token_id[:8]}:{body.worker}"
        known = self._workers.get(worker)
        prepares = body.offers.keys() & {*body.prepare, *(known.prepares if known else ())}
        self._workers[worker] = RemoteWorker(
            body.worker, body.version, token_id, body.offers, prepares, time.monotonic()
        )
        claim_id = f"{token_id}:{body.claim_id}"
        is_late = body.number < self._numbers.get(claim_id, 0)
        if not is_late:
            self._numbers[claim_id] = body.number
            if older := self._polls.pop(claim_id, None):
                older.end()
        if body.is_repeated and not is_late and claim_id not in self._given:
            await self._find_given(body, worker, claim_id)
        if (claim := self._given.get(claim_id)) or is_late or self._claims.is_closed or not body.backends:
            return claim
        poll = self._polls[claim_id] = _Poll(worker, body, asyncio.get_running_loop().create_future())
        self.wake()
        try:
            await asyncio.wait({poll.given}, timeout=body.wait_s or LOOK_MAX_S)
            poll.end()
            return poll.given.result()
        except asyncio.CancelledError:
            poll.end()
            if (claim := poll.given.result()) and self._polls.get(claim_id) is poll:
                await self.take_back(body, claim, token_id=token_id)
            raise
        finally:
            if self._polls.get(claim_id) is poll:
                del self._polls[claim_id]

    async def _find_given(self, body: ClaimBody, worker: str, claim_id: str) -> None:
        """Continue a claim of another server, or of this one before a restart, whose answer was lost."""
        claim = await self.queue.find_claimed(_claimed_by(worker, body))
        if claim and await self.queue.heartbeat(claim.job.job_id, claim.job.attempt):
            self._begin(claim, worker)
            self._given[claim_id] = claim

    async def take_back(self, body: ClaimBody, claim: Claim, *, token_id: str) -> None:
        """Put a job back into the queue, because its worker was gone before the answer."""
        self._given.pop(f"{token_id}:{body.claim_id}", None)
        await self.end(claim.job.job_id, claim.job.attempt, EndBody(outcome="released"))
        self.wake()

    def is_streamed(self, job_id: str) -> bool:
        """Return whether a client listens to the audio of a job."""
        attempt = self._attempts.get(job_id)
        return attempt is not None and attempt.stream.n_listeners > 0

    async def _give_jobs(self) -> bool:
        """Claim jobs for the workers that wait, with one look at the queue for all that want the same."""
        unfulfilled = set()
        for claim_id, poll in [*self._polls.items()]:
            if poll.given.done():
                continue
            claim = None
            if poll.wish not in unfulfilled:
                backends, skip_voices, prepare = poll.wish
                claim = await self.queue.claim(
                    backends=backends,
                    worker=_claimed_by(poll.worker, poll.body),
                    skip_voices=skip_voices,
                    prepare=prepare,
                )
            if claim is None:
                unfulfilled.add(poll.wish)
                if not poll.body.wait_s:
                    poll.end()
            elif poll.given.done():  # it left meanwhile
                await self.queue.release(claim.job.job_id, claim.job.attempt)
                self.wake()
            else:
                self._begin(claim, poll.worker)
                self._given[claim_id] = claim
                poll.given.set_result(claim)
        return False

    def _begin(self, claim: Claim, worker: str) -> None:
        job_id = claim.job.job_id
        if older := self._attempts.pop(job_id, None):  # its lease expired, or the job would not have been claimed
            self._end(older, will_be_retried=True)
        expires = time.monotonic() + self._lease_s
        self._attempts[job_id] = _RemoteAttempt(claim, self._streams.begin(claim.job), worker, expires)

    def _end(self, attempt: _RemoteAttempt, *, will_be_retried: bool) -> None:
        self._streams.end(attempt.claim.job.job_id, attempt.stream, will_be_retried=will_be_retried)

    # -- attempts

    async def begin(self, job_id: str, number: int) -> Claim:
        """Return the claim of an attempt that was handed to a service, whose container renews the lease from now on.

        Raises:
            StaleAttemptError: The attempt is not wanted any more.
        """
        claim = await self.queue.find_claim(job_id, number)
        if not await self.queue.heartbeat(job_id, number):
            raise StaleAttemptError
        if self._find(job_id, number) is None:
            self._begin(claim, claim.job.worker or "")
        return claim

    async def heartbeat(self, job_id: str, number: int, body: HeartbeatBody) -> bool:
        """Renew the lease of an attempt; return whether its result is still wanted."""
        is_wanted = await self.queue.heartbeat(job_id, number)
        if attempt := self._find(job_id, number):
            if not is_wanted:
                self._forget(job_id, number)
            attempt.expires = time.monotonic() + self._lease_s
            attempt.progress = JobProgress(body.step, body.fraction)
            if worker := self._workers.get(attempt.worker):
                worker.seen = time.monotonic()
        return is_wanted

    async def receive(
        self, job_id: str, number: int, content: AsyncIterator[bytes], *, sample_rate: int, has_words: bool = False
    ) -> None:
        """Pass the audio of an attempt on to its listeners while it arrives: mono 16-bit little-endian PCM.

        If the connection is lost, listeners get the rest once the job is ready.

        Args:
            has_words: The content is messages `audio`, with words.

        Raises:
            StaleAttemptError: The attempt is not one of this server, or its audio has been received before.
            InvalidRequestError: The audio or the words are more than speech of the text can be, or malformed.
        """
        attempt = self._find(job_id, number)
        if attempt is None or attempt.stream.has_started:
            raise StaleAttemptError
        job, stream, odd = attempt.claim.job, attempt.stream, b""
        longest_s = max_speech_s(job.text or "", speed=job.speed)
        async for piece, words in _parse_audio(content, has_words=has_words):
            data = odd + piece
            odd = data[len(data) & ~1 :]
            if stream.is_finished:
                raise StaleAttemptError
            stream.write(data[: len(data) & ~1], sample_rate=sample_rate, backend=job.backend, words=words)
            if stream.duration_s > longest_s:
                raise InvalidRequestError.too_large(maximum_bytes=round(2 * sample_rate * longest_s))
            if len(stream.words or ()) > len(job.text or ""):
                raise InvalidRequestError.invalid_field("words", rule="they must be the words of the text")
        stream.finish()

    async def complete(self, job_id: str, number: int | None, wav: BinaryIO, *, synth_ms: int | None) -> None:
        """Complete an attempt with its audio; raises like `JobQueue.complete`."""
        try:
            await self.queue.complete(job_id, number, wav, synth_ms=synth_ms)
        except OUTAGE:  # the worker delivers it again
            raise
        except BaseException:
            self._forget(job_id, number)
            raise
        self._forget(job_id, number)

    async def end(self, job_id: str, number: int, body: EndBody) -> None:
        """End an attempt without audio."""
        if body.outcome == "failed":
            await self.queue.fail(job_id, number, error=body.error)
        elif body.outcome == "retry":
            await self.queue.retry(job_id, number, error=body.error, max_attempts=body.max_attempts)
        elif body.outcome == "prepared":
            await self.queue.end_preparation(job_id, number)
        else:
            await self.queue.release(job_id, number)
        self._forget(job_id, number, will_be_retried=body.outcome in ("retry", "released"))
        self.wake()

    def _forget(self, job_id: str, number: int | None, *, will_be_retried: bool = False) -> None:
        if number is not None and (attempt := self._find(job_id, number)):
            del self._attempts[job_id]
            self._end(attempt, will_be_retried=will_be_retried)

    def _find(self, job_id: str, number: int) -> _RemoteAttempt | None:
        attempt = self._attempts.get(job_id)
        return attempt if attempt and attempt.claim.job.attempt == number else None

    async def _end_lost_attempts(self) -> None:
        """End the streams of attempts whose leases have expired, unless another server receives their heartbeats."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for job_id, attempt in [*self._attempts.items()]:
                if time.monotonic() < attempt.expires + LOOK_INTERVAL_S:
                    continue
                try:
                    await self.queue.find_claim(job_id, attempt.claim.job.attempt)
                    attempt.expires = time.monotonic() + self._lease_s
                except StaleAttemptError:
                    self._forget(job_id, attempt.claim.job.attempt, will_be_retried=True)
                except Exception as error:  # noqa: BLE001 - the database may answer next time
                    _log.warning("job %s: its lease could not be checked: %s", job_id, type(error).__name__)


async def _parse_audio(
    content: AsyncIterator[bytes], *, has_words: bool
) -> AsyncGenerator[tuple[bytes, list[WordTiming] | None], None]:
    """Yield PCM, and the words in it if there are any."""
    if not has_words:
        async for pcm in content:
            yield pcm, None
        return
    try:
        async for message in messages.split(content):
            yield message.body, [WordTiming.model_validate(word) for word in message.facts["words"]]
    except (messages.MalformedMessageError, LookupError, TypeError, ValueError):
        raise InvalidRequestError.invalid_field("words", rule="the audio must be messages with words") from None


def _common(offered: Iterable[Mapping[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Return the features that each backend has wherever it is offered: a job may run at any of these places."""
    found: dict[str, frozenset[str]] = {}
    for each in offered:
        found |= {name: found.get(name, features) & features for name, features in each.items()}
    return found


def _claimed_by(worker: str, body: ClaimBody) -> str:
    """Return what is stored with a claim: the worker, and by what it asks for the claim again."""
    return f"{worker}:{body.claim_id}"


class CombinedDispatcher:
    """The dispatchers of a server together with its remote workers; implements the port Dispatcher.

    All claim jobs from the same queue and write the same streams.
    """

    def __init__(self, own: Sequence[Dispatcher], remote: RemoteDispatcher, streams: AudioStreams) -> None:
        self._own = own
        self._remote = remote
        self._streams = streams
        self._all: Sequence[Dispatcher] = [*own, remote]

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        backends: dict[str, frozenset[str]] = {}
        for each in self._all:
            backends |= {name: langs for name, langs in each.backends.items() if name not in backends}
        return backends

    def unspoken(self, backend: str, text: str) -> list[str]:
        return next((each.unspoken(backend, text) for each in self._own if backend in each.backends), [])

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: version for each in reversed(self._all) for name, version in each.prompt_versions.items()}

    @property
    def features(self) -> Mapping[str, frozenset[str]]:
        return _common(each.features for each in self._all)

    @property
    def prepares(self) -> Set[str]:
        return frozenset().union(*(each.prepares for each in self._all))

    @property
    def is_ready(self) -> bool:
        return any(each.is_ready for each in self._all)

    @property
    def state(self) -> str:
        return "; ".join(each.state for each in (self._all if self._remote.workers else self._own))

    async def start(self) -> None:
        for each in self._all:
            await each.start()

    def wake(self) -> None:
        for each in self._all:
            each.wake()

    def listen(self, job_id: str) -> Listener | None:
        return next((listener for each in self._all if (listener := each.listen(job_id))), None)

    def progress(self, job: StoredJob) -> JobProgress:
        for each in (self._remote, *self._own):
            if (progress := each.progress(job)).step != "waiting":
                return progress
        return JobProgress("waiting")

    def cancel(self, job_id: str) -> None:
        for each in self._all:
            each.cancel(job_id)

    async def stop(self, *, grace_s: float) -> None:
        await asyncio.gather(*(each.stop(grace_s=grace_s) for each in self._all))
        self._streams.close()
