"""Wiring: connect the services to store, blobs, dispatcher and webhooks. The only module that knows all adapters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Final, TypeAlias

from afterwords.errors import AfterwordsError, InvalidOptionError
from afterwords.library.library import Library
from afterwords.server.auth import Authenticator
from afterwords.server.blobs import open_blobs
from afterwords.server.clock import SystemClock
from afterwords.server.concurrency import ConcurrencyLimit, FairSemaphore, in_thread
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.dispatch.remote import CombinedDispatcher, RemoteDispatcher
from afterwords.server.mail import ConsoleMailer, SmtpMailer
from afterwords.server.metrics import Metrics
from afterwords.server.ports import AttemptQueue, Blobs, Clock, Dispatcher, Mailer, Store
from afterwords.server.records import ACTOR, Actor, QueueLimits
from afterwords.server.services.audio_cache import ENCODED_MAX_BYTES, ENCODED_MAX_ENTRY_BYTES, AudioCache
from afterwords.server.services.backend_choice import BackendCatalog
from afterwords.server.services.billing import Billing
from afterwords.server.services.completion import Completion
from afterwords.server.services.decoding import DecodingPool
from afterwords.server.services.deliveries import Deliveries
from afterwords.server.services.home import HomeVoices
from afterwords.server.services.housekeeping import Housekeeping
from afterwords.server.services.job_events import JobEvents
from afterwords.server.services.job_queue import StoredJobQueue
from afterwords.server.services.keys import KeyService
from afterwords.server.services.monitoring import Monitoring
from afterwords.server.services.ownership import Ownership, database_id
from afterwords.server.services.recordings import Recordings
from afterwords.server.services.synthesis import Synthesis
from afterwords.server.services.voices import VoiceService
from afterwords.server.settings import Settings
from afterwords.server.store import SqlStore
from afterwords.server.stripe_payments import StripePayments
from afterwords.server.tracing import TRACER, Tracer
from afterwords.server.webhooks import deliver

log = logging.getLogger("afterwords.server")

DISPATCHERS: Final = "afterwords.dispatchers"
"""Group of the entry points of plug-ins: callables with the arguments of `LocalDispatcher`."""
CreateDispatcher: TypeAlias = Callable[[Settings, AttemptQueue, AudioStreams], Dispatcher]
MAX_ENCODING: Final = 2
"""Concurrent encoding steps."""
MAX_UPLOADS: Final = 4
"""Uploads validated concurrently in memory; others wait in temporary files."""
MAX_UPLOADS_PER_ACCOUNT: Final = 64
"""Concurrent uploads of one account."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """A running server: `request.state.afterwords`."""

    settings: Settings
    authenticator: Authenticator
    keys: KeyService
    voices: VoiceService
    synthesis: Synthesis
    completion: Completion
    workers: RemoteDispatcher
    store: Store
    blobs: Blobs
    dispatcher: Dispatcher
    housekeeping: Housekeeping
    metrics: Metrics
    monitoring: Monitoring
    home: HomeVoices
    ownership: Ownership
    encoded: AudioCache
    tracer: Tracer | None
    billing: Billing | None
    """None: this server sells no plans."""
    encoding: FairSemaphore = field(default_factory=lambda: FairSemaphore(MAX_ENCODING), init=False)
    uploading: FairSemaphore = field(default_factory=lambda: FairSemaphore(MAX_UPLOADS), init=False)
    receiving: ConcurrencyLimit = field(
        default_factory=lambda: ConcurrencyLimit(MAX_UPLOADS_PER_ACCOUNT, doing="uploads under way"), init=False
    )
    _stopping: list[asyncio.Task[None]] = field(default_factory=list, init=False, repr=False)

    def begin_stop(self) -> asyncio.Task[None]:
        """Wake long polls, claim no more jobs, and finish running work within `drain_s`; the task ends with it."""
        if not self._stopping:
            self.synthesis.events.close()
            stopping = self.dispatcher.stop(grace_s=self.settings.drain_s)
            self._stopping.append(asyncio.create_task(stopping))
        return self._stopping[0]


def open_store(settings: Settings, clock: Clock | None = None) -> SqlStore:
    """Return the store of a server; not connected yet."""
    return SqlStore(
        settings.database_url or settings.folder / "afterwords.db",
        clock=clock or SystemClock(),
        folder=settings.folder,
        storage_quota_bytes=settings.storage_per_account_mb * 10**6 or None,
        plans=settings.all_plans,
        account_url=settings.account_url,
        shows_home=settings.offers_library,
        has_meter=settings.stripe_meter_event is not None,
    )


def open_billing(
    settings: Settings,
    store: Store,
    clock: Clock,
    secret: bytes,
    *,
    metrics: Metrics | None = None,
    on_cancelled: Callable[[Sequence[str]], None] = lambda _: None,
) -> Billing | None:
    """Return the billing of a server; None: it has no key of Stripe.

    Raises:
        MissingExtraError: The package of Stripe is not installed.
        ServerSetupError: A setting is missing: without its prices, every subscription would look like one of others.
    """
    if settings.stripe_secret_key is None:
        return None
    settings.check_billing()
    payments = StripePayments(
        settings.stripe_secret_key,
        settings.stripe_webhook_secret,
        api_url=settings.stripe_api_url,
        meter_event=settings.stripe_meter_event,
    )
    mailer: Mailer | None = None
    if settings.smtp_url is not None:
        mailer = SmtpMailer(settings.smtp_url, sender=settings.mail_from or "")
    elif settings.is_loopback and not settings.public_names:
        mailer = ConsoleMailer()
    return Billing(settings, store, payments, mailer, clock, secret, metrics=metrics, on_cancelled=on_cancelled)


def open_storage(settings: Settings) -> Blobs:
    """Return the blobs of a server."""
    return open_blobs(settings.storage_url or str(settings.folder / "blobs"))


@asynccontextmanager
async def open_server(settings: Settings) -> AsyncIterator[ServerState]:
    """Start a server: migrate the database, load models in the background, start housekeeping.

    On exit, running work is finished within `drain_s`, and the rest released.
    """
    ACTOR.set(Actor("server"))  # of what the tasks below do
    async with contextlib.AsyncExitStack() as stack:
        tracer = Tracer("afterwords") if settings.tracing else None
        if tracer is not None:
            stack.push_async_callback(in_thread, tracer.close)
        TRACER.set(tracer)  # of the tasks below, too
        clock = SystemClock()
        store = open_store(settings, clock)
        await store.open()
        stack.push_async_callback(store.close)
        try:
            n_servers = await store.announce()
        except AfterwordsError as error:  # a full disk, for example: stored audio can still be served
            log.warning("it is not known how many servers share this database code=%s", error.code)
        else:
            if n_servers > 1:
                log.info("%d servers share this database", n_servers)
        for name, n_accounts in (await store.count_plans()).items():
            if name not in settings.all_plans:
                log.warning("accounts have a plan that is not in the settings plan=%r accounts=%d", name, n_accounts)
        state = _build_state(settings, store, clock, await store.secret())
        stack.callback(state.voices.decoding.close)
        if state.billing is not None:
            stack.push_async_callback(state.billing.payments.close)
        await state.home.refresh()
        await state.dispatcher.start()
        stack.push_async_callback(state.begin_stop)
        stack.push_async_callback(state.housekeeping.leave)
        for work in (state.housekeeping.run(), state.authenticator.requests.watch()):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        yield state


def _build_state(settings: Settings, store: Store, clock: Clock, secret: bytes) -> ServerState:
    blobs, decoding, metrics = open_storage(settings), DecodingPool(), Metrics()
    ownership = Ownership(store, blobs, database_id(secret))
    events, audio_cache = JobEvents(), AudioCache()
    encoded = AudioCache(ENCODED_MAX_BYTES, ENCODED_MAX_ENTRY_BYTES)
    recordings = Recordings(blobs, Library(settings.home) if settings.offers_library else None)
    queue = StoredJobQueue(
        store, blobs, clock, events, recordings, secret, settings.lease_s, settings.max_attempts, metrics=metrics
    )
    streams = AudioStreams(settings.folder, metrics)
    remote = RemoteDispatcher(settings, queue, streams)
    found = [create(theirs, queue, streams) for create, theirs in find_dispatchers(settings)]
    dispatcher: Dispatcher = CombinedDispatcher(found, remote, streams)
    catalog = BackendCatalog(dispatcher)

    def on_final(job_id: str) -> None:
        dispatcher.cancel(job_id)
        events.publish(job_id)

    def on_cancelled(job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            on_final(job_id)
            metrics.end_job("", "cancelled")

    store.subscribe(on_waiting=dispatcher.wake, on_final=on_final)
    keys = KeyService(store, on_cancelled=on_cancelled)
    voices = VoiceService(store, blobs, recordings, clock, catalog, decoding, (audio_cache, encoded), ownership)
    home = HomeVoices(recordings.library, store, voices, catalog)
    billing = open_billing(settings, store, clock, secret, metrics=metrics, on_cancelled=on_cancelled)
    limits = QueueLimits(settings.max_pending_jobs, settings.max_pending_jobs_per_account)
    return ServerState(
        settings=settings,
        authenticator=Authenticator(settings, keys, secret),
        keys=keys,
        voices=voices,
        synthesis=Synthesis(
            store,
            blobs,
            recordings,
            clock,
            catalog,
            limits,
            dispatcher,
            events,
            audio_cache,
            metrics,
            billing.renew if billing else None,
        ),
        completion=queue,
        workers=remote,
        store=store,
        blobs=blobs,
        dispatcher=dispatcher,
        housekeeping=Housekeeping(
            store=store,
            blobs=blobs,
            clock=clock,
            voices=voices,
            keys=keys,
            home=home,
            ownership=ownership,
            dispatcher=dispatcher,
            events=events,
            deliveries=Deliveries(store, clock, lambda call: deliver(call, clock=clock), metrics=metrics),
            settings=settings,
            metrics=metrics,
            billing=billing,
        ),
        metrics=metrics,
        monitoring=Monitoring(store, clock, dispatcher, metrics, ownership, settings, lambda: len(remote.workers)),
        home=home,
        ownership=ownership,
        encoded=encoded,
        tracer=TRACER.get(),
        billing=billing,
    )


def find_dispatchers(settings: Settings) -> list[tuple[CreateDispatcher, Settings]]:
    """Return the dispatchers that the settings name, our own or plug-ins, each with the settings for its backends.

    Raises:
        InvalidOptionError: No installed dispatcher has this name.
    """
    if not settings.dispatchers:
        return [(_load_dispatcher(settings.dispatcher, "AFTERWORDS_DISPATCHER"), settings)]
    backends: dict[str, list[str]] = {}
    for backend, name in settings.dispatchers.items():
        backends.setdefault(name, []).append(backend)
    return [
        (_load_dispatcher(name, "AFTERWORDS_DISPATCHERS"), settings.model_copy(update={"backends": tuple(theirs)}))
        for name, theirs in backends.items()
    ]


def _load_dispatcher(name: str, option: str) -> CreateDispatcher:
    if name == "local":
        return LocalDispatcher
    installed = entry_points(group=DISPATCHERS)
    if name not in installed.names:
        allowed = ", ".join(["local", *sorted(installed.names)])
        raise InvalidOptionError.for_option(option, value=name, allowed=allowed)
    found: CreateDispatcher = installed[name].load()
    return found


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
