"""Run a remote worker as a process: the local dispatcher, with the jobs of a server elsewhere."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Coroutine

from afterwords.backends import registry
from afterwords.client.profiles import Access
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.http_queue import HttpJobQueue
from afterwords.server.dispatch.local import LocalDispatcher, load_worker_config
from afterwords.server.dispatch.protocol import Offer
from afterwords.server.run import log_to_stderr
from afterwords.server.settings import Settings
from afterwords.server.tracing import TRACER, Tracer


def run_worker(
    settings: Settings, access: Access, token: str, *, once: bool = False, max_jobs: int | None = None
) -> int | None:
    """Run jobs of a server until a signal arrives, and return the signal; None if there is nothing more to do.

    Args:
        settings: Those of the machine; `workers` is the number of engine processes.
        once: Stop when no job waits.
        max_jobs: Stop after this many jobs.

    Raises:
        BackendUnavailableError: No backend can run here.
        UnauthorizedError: The server refuses the token.
        ServerSetupError: The server speaks another protocol.
    """
    settings = settings.model_copy(update={"workers": max(1, settings.workers)})
    with log_to_stderr(settings):
        registry.choose(config=load_worker_config(settings))
        os.umask(0o077)
        return asyncio.run(_run(settings, access, token, once=once, max_jobs=max_jobs))


async def _run(settings: Settings, access: Access, token: str, *, once: bool, max_jobs: int | None) -> int | None:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:48]
    queue = HttpJobQueue(access, token, name=f"{host}-{os.getpid()}", once=once, max_jobs=max_jobs)
    queue.streams = AudioStreams(settings.folder)
    dispatcher = LocalDispatcher(settings, queue, queue.streams)
    versions = dispatcher.prompt_versions
    queue.offers = {
        name: Offer(
            languages=dispatcher.backends[name], prompt_version=versions[name], features=dispatcher.features[name]
        )
        for name in versions
    }
    queue.progress, queue.n_running = dispatcher.progress, lambda: dispatcher.n_running
    queue.cancel = dispatcher.cancel
    signals: list[int] = []
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(signum: int) -> None:
        signals.append(signum)
        stopped.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(signum, stop, signum)
        except NotImplementedError:  # Windows
            signal.signal(signum, lambda number, _: loop.call_soon_threadsafe(stop, number))
    tracer = Tracer("afterwords-worker") if settings.tracing else None
    TRACER.set(tracer)
    try:
        await _until(stopped, queue.check())
        if not stopped.is_set():
            await dispatcher.start()
            await _until(stopped, queue.is_over.wait())
            await _until(stopped, dispatcher.finish())
            await dispatcher.stop(grace_s=settings.drain_s)
    finally:
        await queue.close()
        if tracer is not None:
            tracer.close()
    if queue.failure:
        raise queue.failure
    return signals[0] if signals else None


async def _until(stopped: asyncio.Event, work: Coroutine[object, object, object]) -> None:
    """Await work, or cancel it when the worker is stopped."""
    tasks = {asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
