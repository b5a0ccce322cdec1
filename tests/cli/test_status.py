"""Tests of `afterwords status` against real servers: ready, not ready, not allowed and not there."""

from __future__ import annotations

import json
from pathlib import Path

from afterwords import __version__
from tests.cli.program import run
from tests.e2e.served import ADMIN_SECRET, Served, register, serving, submit_text, wait_for_job, wait_until


def test_status_shows_a_ready_server(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as served, served.client() as client:
        voice_id = register(client)
        wait_for_job(client, submit_text(client, voice_id, "hello"))
        assert client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "hello"}).status_code == 200
        done = run("status", "--url", served.url, "--json")
        shown = run("status", "--url", served.url)

    found = json.loads(done.out)
    assert (done.code, found["status"], found["version"], found["sweep"]) == (0, "ready", __version__, "ok")
    assert (found["backends"], found["workers"]) == (["tone"], {"local": 1, "remote": 0})
    assert (found["waiting_jobs"], found["running_jobs"], found["oldest_job_s"]) == (0, 0, None)
    assert (found["cache_hit_rate"], found["servers"]) == (0.5, 1)
    assert found["disk_free_bytes"] > 0
    assert found["uptime_s"] >= 0
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines() if "  " in line)
    assert (shown.code, lines["status"], lines["version"]) == (0, "ready", __version__)


def test_status_exits_with_8_if_the_server_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path / "home", {"AFTERWORDS_WORKERS": "0"}) as served, served.client() as client:
        submit_text(client, register(client), "hello")
        second = Served(served.home, served.settings).start()
        blobs = served.home / "server" / "blobs"
        blobs.rename(blobs.with_name("gone"))
        blobs.write_bytes(b"")
        done = wait_until(
            lambda: done if (done := run("status", "--url", served.url, "--json")).code else None, what="unreadiness"
        )
        blobs.unlink()
        blobs.with_name("gone").rename(blobs)
        assert second.stop() == 0

    found = json.loads(done.out)
    assert (done.code, found["status"], found["storage"]) == (8, "not ready", "storage_unavailable")
    assert (found["waiting_jobs"], found["servers"]) == (1, 2)
    assert found["oldest_job_s"] >= 0


def test_status_of_a_public_server_needs_the_admin_secret(tmp_path: Path) -> None:
    settings = {"AFTERWORDS_WORKERS": "0", "AFTERWORDS_PUBLIC_URL": "https://voice.example"}
    with serving(tmp_path / "home", settings) as served:
        url = ("status", "--url", served.url, "--json")
        run(*url).expect_error(3, "unauthorized")
        assert run(*url, env={"AFTERWORDS_ADMIN_SECRET": ADMIN_SECRET}).code == 0
    run(*url).expect_error(8, "unreachable")
