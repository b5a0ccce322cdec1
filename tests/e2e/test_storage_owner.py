"""Tests that a server never removes blobs of another database."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.program import run
from tests.e2e.served import Served, register, submit_text, wait_for_job, wait_until

OFTEN = {"AFTERWORDS_SWEEP_INTERVAL_S": "0.2"}
NO_GRACE = {"AFTERWORDS_SWEEP_GRACE_S": "0"}
"""Unknown audio is removed at once, even if its row is about to be written."""
OFF = re.compile(r"WARNING sweep off: (.+)")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """Return a stopped server with a voice and audio in the storage."""
    served = Served(tmp_path / "first", {**OFTEN, "AFTERWORDS_STORAGE_URL": str(tmp_path / "storage")})
    try:
        served.start().ready()
        with served.client() as client:
            wait_for_job(client, submit_text(client, register(client), "Spoken first."))
        served.stop()
        yield served
    finally:
        if served.is_running:
            with suppress(Exception):
                served.kill()


def audio_in(storage: Path) -> dict[str, bytes]:
    """Return all audio files by path. A sweep may remove files and folders in the meantime."""
    found = {}
    for folder, _, names in os.walk(storage):
        for path in (Path(folder, name) for name in names if name.endswith(".wav")):
            with suppress(FileNotFoundError):
                found[path.relative_to(storage).as_posix()] = path.read_bytes()
    return found


def sweep_state(served: Served) -> str:
    answer = httpx.get(f"{served.url}/readyz")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["sweep"])


def test_new_database_does_not_sweep_storage_of_another(server: Served, tmp_path: Path) -> None:
    storage = Path(server.settings["AFTERWORDS_STORAGE_URL"])
    kept = audio_in(storage)
    assert len(kept) == 3
    second = Served(tmp_path / "second", {**server.settings, **NO_GRACE})
    try:
        second.start().ready()
        [why] = wait_until(lambda: OFF.findall(second.log.read_text()), what="the reason")
        assert "another database" in why
        assert "afterwords storage adopt" in why
        assert sweep_state(second).startswith("off: ")
        with second.client() as client:
            voice_id = register(client)
            assert wait_for_job(client, submit_text(client, voice_id, "Spoken second."))["status"] == "ready"
            assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
            assert client.get(f"/v1/voices/{voice_id}").status_code == 404
        assert kept.items() <= audio_in(storage).items()
        assert len(OFF.findall(second.log.read_text())) == 1

        env = {**os.environ, **second.settings, "AFTERWORDS_HOME": str(second.home), "AFTERWORDS_BACKENDS": "tone"}
        done = run("storage", "adopt", "--yes", env=env)

        assert done.code == 0, done.err
        wait_until(lambda: not audio_in(storage), what="the sweep of unknown blobs")
        assert sweep_state(second) == "ok"
    finally:
        if second.is_running:
            second.kill()


def test_older_copy_of_the_database_stops_both_sweeps(server: Served) -> None:
    storage = Path(server.settings["AFTERWORDS_STORAGE_URL"])
    copy = Served(server.home.with_name("copy"), {**server.settings, **NO_GRACE})
    shutil.copytree(server.home, copy.home)
    server.start().ready()
    with server.client() as client:
        wait_for_job(client, submit_text(client, register(client), "Spoken since."))
    kept = audio_in(storage)
    assert len(kept) == 6
    try:
        copy.start().ready()
        for served in (copy, server):
            [why] = wait_until(lambda served=served: OFF.findall(served.log.read_text()), what="the reason")  # type: ignore[misc]
            assert "copy" in why
        with copy.client(server.key) as client:
            [voice] = client.get("/v1/voices").json()
            assert client.delete(f"/v1/voices/{voice['voice_id']}").status_code == 204
            assert client.get("/v1/voices").json() == []
        wait_until(lambda: "deletion waits" in copy.log.read_text(), what="the line")
        assert audio_in(storage) == kept, "the original database still has the voice"
    finally:
        if copy.is_running:
            copy.kill()
