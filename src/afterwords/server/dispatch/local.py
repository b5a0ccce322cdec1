"""The dispatcher of a server that speaks for itself: it claims jobs and has its own processes speak them.

The server's process stays light: engines are asked what they offer, and load elsewhere. A crash, a hang or a lack of
memory there costs an attempt, never the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from afterwords.backends import registry
from afterwords.backends.base import Engine, Unavailable, unspoken
from afterwords.backends.memory import memory_bytes
from afterwords.config import Config, load_config
from afterwords.errors import BackendUnavailableError, InvalidOptionError
from afterwords.server import failpoints
from afterwords.server.dispatch.attempt import Attempt
from afterwords.server.dispatch.audio_stream import Sound, SoundListener
from afterwords.server.dispatch.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, wait_at_most
from afterwords.server.dispatch.worker_process import Limits
from afterwords.server.dispatch.worker_slot import Offer, Station
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress, StoredJob
from afterwords.server.settings import Settings

_log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""How long a job that nobody woke us for waits at most: other servers submit to the same database."""
ATTEMPTS_MAX: Final = 32
"""Attempts at once and process, those included whose audio is on its way to the desk and waits in memory."""
PREPARED_MAX: Final = 10_000
"""Voices that are known to have their prompts; to ask for one again costs a look into the storage."""
CLAIM_MAX_S: Final = 10.0
"""How long the last claim may take when the server stops; the desk answers within 2 s."""
_KEPT_FROM_ENGINES: Final = ("AFTERWORDS_API_KEY", "AFTERWORDS_STRIPE_", "AWS_")
"""Beginnings of names. The settings of the server are kept from engines as well, whatever they are."""
"""Beginnings of what an engine, or a plug-in beside it, has no business to know."""


class InProcessDispatcher:
    """Speaks on this machine, in `settings.workers` processes; implements the port Dispatcher."""

    def __init__(self, settings: Settings, desk: JobQueue, *, config: Config | None = None) -> None:
        config = config or _config_of(settings)
        self._settings = settings
        self._desk = desk
        self._offers, self._engines, self._lack = _offers(config, n_workers=settings.workers)
        self._environment = environment_for(config, os.environ)
        self._stations: list[Station] = []
        self._attempts: dict[Attempt, asyncio.Task[None]] = {}
        self._sounds: dict[str, Sound] = {}
        self._prepared: set[tuple[str, str]] = set()  # voice and backend: their prompts are kept, or were
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._claiming: asyncio.Task[None] | None = None
        self._keeping: list[asyncio.Task[None]] = []

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        return {offer.backend: offer.languages for offer in self._offers.values()}

    def unspoken(self, backend: str, text: str) -> list[str]:
        engine = self._engines.get(backend)
        return [] if engine is None else unspoken(engine, text)

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: self._offers[name].prompt_version for name in self._engines}

    @property
    def is_ready(self) -> bool:
        if not self._settings.workers:
            return True
        return not self._stopping.is_set() and any(station.is_ready for station in self._stations)

    @property
    def state(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if not self._offers:
            return f"no backend can run here: {self._lack}"
        if not self._settings.workers:
            return "only accepts jobs"
        return next((station.state for station in self._stations if not station.is_ready), "ready")

    async def start(self) -> None:
        if not self._offers or not self._settings.workers:
            return
        first = next(iter(self._offers.values()))
        memory_mb = self._settings.worker_memory_mb
        limits = Limits(
            start_allowance_s=self._settings.start_allowance_s,
            stall_s=self._settings.stall_s,
            memory_bytes=memory_bytes(default=8 << 30) // 2 if memory_mb is None else memory_mb << 20,
            recycle_after=self._settings.recycle_after,
        )
        for _ in range(self._settings.workers):
            station = Station(first, limits=limits, environment=self._environment, on_change=self.wake)
            self._stations.append(station)
            self._keeping.append(asyncio.create_task(station.keep()))
        self._claiming = asyncio.create_task(self._claim_jobs())

    def wake(self) -> None:
        self._woken.set()

    def listen(self, job_id: str) -> SoundListener | None:
        if not self._settings.workers or not self._offers:
            return None
        sound = self._sounds.setdefault(job_id, Sound(self._settings.folder))
        return SoundListener(sound, on_close=partial(self._forget_unheard, job_id, sound))

    def progress(self, job: StoredJob) -> JobProgress:
        for attempt in self._attempts:
            if attempt.claim.job.job_id == job.job_id and not attempt.is_dropped:
                return attempt.progress
        for attempt in self._attempts:  # which prepares the voice for it as well
            is_for_it = (attempt.claim.voice.voice_id, attempt.offer.backend) == (job.voice_id, job.backend)
            if is_for_it and attempt.progress.step == "preparing":
                return attempt.progress
        is_loading = bool(self._stations) and not self.is_ready
        return JobProgress("loading" if is_loading else "waiting")

    def cancel(self, job_id: str) -> None:
        for attempt in self._attempts_at(job_id):
            attempt.drop()
        if sound := self._sounds.pop(job_id, None):
            sound.break_off()

    async def stop(self, *, grace_s: float) -> None:
        self._stopping.set()
        self.wake()
        if self._claiming:  # a claim that is under way is not cut off: its job would wait for its lease to end
            await asyncio.wait([self._claiming], timeout=CLAIM_MAX_S)
            self._claiming.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts.values(), timeout=grace_s)
        unfinished = list(self._attempts)
        await asyncio.gather(*(attempt.abandon() for attempt in unfinished))
        for station in self._stations:
            station.close()
        await asyncio.gather(*self._keeping)
        await asyncio.gather(*(attempt.give_back() for attempt in unfinished))
        for sound in self._sounds.values():
            sound.break_off()
        self._sounds.clear()

    # -- claiming

    async def _claim_jobs(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._woken.clear()  # before looking, so that what comes meanwhile is not lost
            try:
                claim = await self._claim()
                if claim:
                    await self._begin(claim)
                pause_s = FIRST_PAUSE_S
            except Exception as error:  # noqa: BLE001 - whatever ails the desk, the next claim may go well
                _log.warning("no job could be claimed: %s; trying again in %.2g s", type(error).__name__, pause_s)
                await wait_at_most(pause_s, self._stopping)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            if claim is None:
                await wait_at_most(IDLE_S, self._woken)

    async def _claim(self) -> Claim | None:
        """The next job that can be begun now, if any."""
        if any(attempt.is_held_up for attempt in self._attempts):
            return None  # what is spoken now could not be stored either
        if len(self._attempts) >= ATTEMPTS_MAX * self._settings.workers:
            return None
        open_to = [name for name, offer in self._offers.items() if self._station_for(offer)]
        if not open_to:
            return None
        unprepared = {attempt.claim.voice.voice_id for attempt in self._attempts if not attempt.has_prompt}
        return await self._desk.claim(
            backends=open_to, worker=f"inprocess-{os.getpid()}", skip_voices=sorted(unprepared)
        )

    def _station_for(self, offer: Offer) -> Station | None:
        """Where one more might begin now: where the fewest are."""
        return min(
            (station for station in self._stations if station.has_room(offer)),
            key=lambda station: station.n_guests,
            default=None,
        )

    async def _begin(self, claim: Claim) -> None:
        failpoints.reach("job-claimed")
        job = claim.job
        offer = self._offers[job.backend]
        # Where room is gone since the claim, the attempt waits for it.
        station = self._station_for(offer) or min(self._stations, key=lambda station: station.n_guests)
        for older in self._attempts_at(job.job_id):
            older.drop()  # its lease is over, or the job would not have come again
        sound = self._sounds.get(job.job_id)
        if sound is None or sound.is_begun or self._attempts_at(job.job_id):
            sound = self._sounds[job.job_id] = Sound(self._settings.folder)
        voice = (claim.voice.voice_id, offer.backend)
        attempt = Attempt(
            claim,
            offer,
            desk=self._desk,
            station=station,
            sound=sound,
            settings=self._settings,
            has_prompt=voice in self._prepared,
            on_prompt=partial(self._note_prepared, voice),
        )
        if self._stopping.is_set():
            await attempt.give_back()
            return
        self._attempts[attempt] = attempt.begin()
        self._attempts[attempt].add_done_callback(lambda _: self._take_end(attempt))

    def _note_prepared(self, voice: tuple[str, str]) -> None:
        """Remember that jobs of a voice need not wait for one another, and look for those that did."""
        if len(self._prepared) >= PREPARED_MAX:
            self._prepared.clear()
        self._prepared.add(voice)
        self.wake()

    def _take_end(self, attempt: Attempt) -> None:
        job_id, sound = attempt.claim.job.job_id, attempt.sound
        attempt.leave()
        del self._attempts[attempt]
        may_still_begin = attempt.waits_for_another and not sound.is_begun and sound.n_listeners
        if not may_still_begin:
            sound.break_off()
            if self._sounds.get(job_id) is sound:
                del self._sounds[job_id]
            sound.drop()
        self.wake()

    def _forget_unheard(self, job_id: str, sound: Sound) -> None:
        if not sound.n_listeners and not self._attempts_at(job_id) and self._sounds.get(job_id) is sound:
            del self._sounds[job_id]

    def _attempts_at(self, job_id: str) -> list[Attempt]:
        return [attempt for attempt in self._attempts if attempt.claim.job.job_id == job_id]


def environment_for(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a speaking process: the server's, without its secrets, and with the settings engines read."""
    of_server = {f"AFTERWORDS_{name.upper()}" for name in Settings.model_fields}
    kept = {
        name: value
        for name, value in environ.items()
        if name.upper() not in of_server and not name.upper().startswith(_KEPT_FROM_ENGINES)
    }
    kept["AFTERWORDS_HOME"] = str(config.home)
    if config.backends is not None:
        kept["AFTERWORDS_BACKENDS"] = ",".join(config.backends)
    if config.kokoro_onnx is not None:
        kept["AFTERWORDS_KOKORO_ONNX"] = str(config.kokoro_onnx)
    if config.models is not None:
        kept["AFTERWORDS_MODELS"] = str(config.models)
    if config.mlx_weights is not None:
        kept["AFTERWORDS_MLX_WEIGHTS"] = config.mlx_weights
    kept["AFTERWORDS_IDLE_UNLOAD_S"] = str(config.idle_unload_s)
    kept["AFTERWORDS_PRECISION"] = config.precision
    if config.is_offline:
        kept["AFTERWORDS_OFFLINE"] = "1"
    if config.is_testing:
        kept["AFTERWORDS_TESTING"] = "1"
    return kept


def check_backends(settings: Settings) -> None:
    """Refuse to start where nothing would ever be spoken.

    Raises:
        BackendUnavailableError: this server has workers, and no engine can run here.
        InvalidOptionError: it only accepts jobs, and what others speak is not set, or not known here.
    """
    config = _config_of(settings)
    if settings.workers:
        try:
            registry.choose(config=config)
        except BackendUnavailableError as error:
            error.hint = f"{error.hint}; or set AFTERWORDS_WORKERS=0 if other machines speak for this server"
            raise
        return
    listed = registry.backends(config if settings.backends else replace(config, backends=None))
    names = [backend.name for backend in listed if backend.engine is not None]
    unknown = [name for name in settings.backends or () if name not in names]
    if unknown:
        known = [backend.name for backend in registry.backends(replace(config, backends=None))]
        raise InvalidOptionError(
            "AFTERWORDS_BACKENDS", value=unknown[0], allowed=f"of installed engines ({', '.join(known)})"
        )
    if not settings.backends and not any(backend.is_available for backend in listed):
        raise InvalidOptionError(
            "AFTERWORDS_BACKENDS",
            value="not set",
            allowed=f"what other machines speak for this server ({', '.join(names)}), since no engine can run here",
        )


def _config_of(settings: Settings) -> Config:
    return replace(load_config(), home=settings.home, backends=settings.backends)


def _offers(config: Config, *, n_workers: int) -> tuple[dict[str, Offer], dict[str, Engine], str]:
    """What can be asked for, best first, and the engines that can run here; and where that is nothing, why.

    A server without workers offers what is named, since others speak it: languages are known without what an engine
    needs to run.
    """
    found = registry.backends(config)
    engines = {each.name: each.engine for each in found if each.is_available and each.engine is not None}
    is_for_others = not n_workers and config.backends is not None
    offers = {
        each.name: Offer(each.name, each.engine.backends[0], each.engine.prompt_version, each.languages)
        for each in found
        if each.engine is not None and (each.is_available or is_for_others)
    }
    reasons = [f"{backend.name}: {backend.state.reason}" for backend in found if isinstance(backend.state, Unavailable)]
    return offers, engines, "; ".join(reasons) or "none is installed"
