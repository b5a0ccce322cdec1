"""The code of the process that connects a server to a Ray cluster, with the messages of a worker process.

Ray ends a process whose cluster loses its head, and takes its signals: so it runs in a child process of the server,
which has none of the server's secrets. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO, Final

from afterwords import __version__
from afterwords.errors import AfterwordsError
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import Message
from afterwords.server.dispatch.ray.cluster import PREFIX, connect
from afterwords.server.dispatch.worker import Work
from afterwords.server.pipes import end_with_server, take_pipes

POLL_INTERVAL_S: Final = 1.0
"""Time between looks at the replicas of the cluster, each of which is reported."""


def main() -> None:
    """Connect to the cluster whose address is the argument, and pass messages until the server is gone."""
    source, sink = take_pipes()
    gateway = Gateway(sink)
    try:
        connect(sys.argv[1] if len(sys.argv) > 1 else None)
    except AfterwordsError as error:
        gateway.send("unreachable", why=str(error), hint=error.hint)
    else:
        end_with_server()  # now, because Ray has set a handler for SIGTERM
        asyncio.run(gateway.run(source))
    os._exit(0)  # at once: Ray would wait for calls


class Gateway:
    """Pass utterances on to the replicas, and their messages back; report what the cluster can do."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._descriptions: dict[tuple[str, float], asyncio.Task[Any]] = {}  # by backend and time of its deployment

    def send(self, kind: str, body: bytes = b"", **facts: Any) -> None:
        """Send a message to the server."""
        self._sink.write(messages.pack(kind, body, **facts))
        self._sink.flush()

    async def run(self, source: BinaryIO) -> None:
        """Handle messages until there are no more."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def read() -> None:
            while (message := messages.read(source)) is not None:
                loop.call_soon_threadsafe(self._handle, message)
            loop.call_soon_threadsafe(ended.set)

        self.send("connected")
        threading.Thread(target=read, daemon=True).start()
        reports = asyncio.create_task(self._report())
        await ended.wait()
        reports.cancel()

    def _handle(self, message: Message) -> None:
        number: int = message.facts["number"]
        if message.kind == "speak":
            self._calls[number] = asyncio.create_task(self._speak(message))
            self._calls[number].add_done_callback(partial(self._forget, number))
        elif message.kind == "cancel" and number in self._calls:
            self._calls[number].cancel()

    def _forget(self, number: int, call: asyncio.Task[None]) -> None:
        del self._calls[number]
        if call.cancelled():
            self._end(number)

    def _end(self, number: int, **facts: Any) -> None:
        self.send("ended", number=number, peak=None, is_outdated=False, **facts)

    async def _speak(self, message: Message) -> None:
        """Call a replica, and pass its messages on; the last one is `ended` or `lost`."""
        work = Work.from_message(message)
        number: int = message.facts["number"]
        response: Any = None
        try:
            handle = _handle_of(work.backend).options(
                method_name="speak", stream=True, multiplexed_model_id=work.voice_id
            )
            while True:
                response = handle.remote(work, **message.facts["limits"])
                async for kind, facts, body in response:
                    if kind == "ended":
                        self._end(number, **facts)
                        return
                    if kind != "refused":
                        self.send(kind, body, number=number, **facts)
                    if kind == "lost":
                        return
                await asyncio.sleep(POLL_INTERVAL_S)  # it was refused: the replica hangs, and is about to be replaced
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except Exception:  # noqa: BLE001 - Ray has many errors, and all of them mean that the replica is gone
            self.send("lost", number=number, code="worker_lost")

    async def _report(self) -> None:
        """Report once a second what the cluster can do. Without reports, the server gives it no work."""
        from ray import serve

        while True:
            with suppress(Exception):  # the controller is gone, and Ray starts another one
                status = await asyncio.to_thread(serve.status)
                backends = {
                    name.removeprefix(PREFIX): self._summarize(name.removeprefix(PREFIX), application)
                    for name, application in status.applications.items()
                    if name.startswith(PREFIX)
                }
                self.send("pool", backends=backends)
            await asyncio.sleep(POLL_INTERVAL_S)

    def _summarize(self, backend: str, application: Any) -> dict[str, Any]:
        """Return what the replicas of a backend can do, or a problem."""
        deployment = application.deployments.get(backend)
        key = backend, application.last_deployed_time_s
        n_running = deployment.replica_states.get("RUNNING", 0) if deployment else 0
        is_up = n_running > 0 or application.status == "RUNNING"
        describing = self._descriptions.get(key)
        if is_up and (describing is None or (describing.done() and describing.exception())):
            describing = self._descriptions[key] = asyncio.create_task(_describe(backend))
        if describing is None or not describing.done():
            return {"problem": f"{backend} starts in the cluster"}
        description = describing.result()
        if description.version != __version__:
            return {"problem": f"{backend} runs with afterwords {description.version} in the cluster: deploy it again"}
        return {
            "engine": description.engine,
            "languages": description.languages,
            "prompt_version": description.prompt_version,
            "features": description.features,
            # One replica more than there is may start for the jobs that wait.
            "capacity": description.max_concurrent * min(description.max_replicas, n_running + 1) if is_up else 0,
            "problem": "" if is_up else f"no replica of {backend} runs",
        }


async def _describe(backend: str) -> Any:
    return await _handle_of(backend).describe.remote()


def _handle_of(backend: str) -> Any:
    from ray import serve

    return serve.get_deployment_handle(backend, app_name=f"{PREFIX}{backend}")


if __name__ == "__main__":
    main()
