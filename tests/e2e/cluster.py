"""Two API servers on one Postgres and one bucket, and two remote workers: processes that a run may kill.

The first server has a worker process of its own, and reaches Postgres through a pooler, so that it polls. The second
one only accepts jobs, and listens. Each has a remote worker.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.cli.program import run
from tests.e2e.invariants import worker_processes
from tests.e2e.served import Served
from tests.e2e.workers import WorkerProgram
from tests.postgres import Pooler, running_postgres
from tests.s3 import running_s3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-bucket"}


class Cluster:
    """Use it as a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, has_local_worker: bool = True) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._settings = {**settings, **KEYS}
        self._has_local_worker = has_local_worker
        self._token = ""
        self.servers: list[Served] = []
        self.workers: list[WorkerProgram] = []
        self._killed: set[Served] = set()
        self.seen: set[psutil.Process] = set()
        """All worker processes, of servers and remote workers."""

    def __enter__(self) -> Cluster:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.postgres = stack.enter_context(running_postgres(is_durable=True))
            bucket = stack.enter_context(running_s3()).new_bucket()
            self.pooler = Pooler(self.postgres)
            stack.callback(self.pooler.close)
            database = self.postgres.create_database()
            urls = self.pooler.url(database), self.postgres.url(database)
            for number, url in enumerate(urls):
                has_worker = self._has_local_worker and number == 0
                settings = {
                    **self._settings,
                    "AFTERWORDS_DATABASE_URL": url,
                    "AFTERWORDS_STORAGE_URL": bucket,
                    "AFTERWORDS_WORKERS": str(int(has_worker)),
                }
                port = stack.enter_context(_reserved_port())
                self.servers.append(Served(self._folder / f"server-{number}", settings, port=port))
            stack.callback(self._kill_all)
            for served in self.servers:
                served.start()
            self.servers[1].key = self.servers[0].key
            made = run(
                "workers", "token", "create", env={**self.servers[1].settings, "AFTERWORDS_HOME": str(self._folder)}
            )
            assert made.code == 0, made.err
            self._token = made.out.strip()
            self.workers = [self._new_worker(number) for number in range(2)]
            for served in self.servers:
                served.ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def direct(self) -> Served:
        """The server with the direct connection to Postgres, for queries."""
        return self.servers[1]

    def restart(self, environment: Callable[[], dict[str, str]] = dict) -> int:
        """Start what was killed. Postgres comes first, since a server does not start without it.

        Args:
            environment: Returns more variables for a server.

        Returns:
            How many servers had killed themselves, at a failpoint.
        """
        self.pooler.cut_answer_to(None)
        if self.postgres.is_running:
            self.postgres.wait()
        else:
            self.postgres.start()
        n_died = 0
        for served in self.servers:
            if served.is_running:
                continue
            n_died += served not in self._killed
            self._killed.discard(served)
            assert served.died() == -signal.SIGKILL, served.log.read_text()
            try:
                served.start(**environment())
            except AssertionError:
                if served.died() != -signal.SIGKILL:  # it reached its failpoint at once
                    raise
        for number, worker in enumerate(self.workers):
            if worker.ended():
                assert worker.process.poll() == -signal.SIGKILL, worker.log.read_text()
                self.workers[number] = self._new_worker(number)
        return n_died

    def kill_server(self, number: int) -> bool:
        """Kill a server. Return False if it was dead."""
        served = self.servers[number]
        if not served.is_running:
            return False
        self.engines()
        served.kill()
        self._killed.add(served)
        return True

    def kill_worker(self, number: int) -> bool:
        """Kill a remote worker. Return False if it was dead."""
        if self.workers[number].ended():
            return False
        self.engines()
        self.workers[number].stop(signal.SIGKILL)
        return True

    def engines(self) -> list[psutil.Process]:
        """Return the worker processes of servers and remote workers, and remember them."""
        found = [process for served in self.servers if served.is_running for process in worker_processes(served)]
        for worker in self.workers:
            with suppress(psutil.NoSuchProcess):
                found += worker.engines()
        self.seen.update(found)
        return found

    def stop_workers(self) -> None:
        """Stop the remote workers in an orderly way."""
        codes = [worker.stop() for worker in self.workers]
        assert codes == [0, 0], codes

    def _new_worker(self, number: int) -> WorkerProgram:
        folder = self._folder / f"worker-{number}"
        folder.mkdir(exist_ok=True)
        url = f"http://127.0.0.1:{self.servers[number].port}"
        return WorkerProgram(folder, token=self._token, url=url, AFTERWORDS_LOG_LEVEL="info")

    def _kill_all(self) -> None:
        for served in self.servers:
            if served.is_running:
                served.kill()
        for worker in self.workers:
            if not worker.ended():
                worker.stop(signal.SIGKILL)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Reserve a port: the system gives it to no connection, but a server that reuses addresses may listen on it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
