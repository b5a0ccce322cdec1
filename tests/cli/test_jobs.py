"""Test `afterwords jobs` with a real server and a fake of the hosted service."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from afterwords.audio.audio import decode
from afterwords.provenance import verify
from tests.cli.program import run
from tests.e2e.served import register, submit_text, wait_for_job, wait_until
from tests.hosted.service import HostedService

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
TEXT = "Hello, this is my voice."


@pytest.fixture
def hosted(hosted: HostedService) -> HostedService:
    """Keep its jobs pending for longer than any test."""
    hosted.pending_s = 600
    return hosted


def done_job(client: httpx.Client, text: str = TEXT, **fields: str) -> str:
    """Submit a job, wait until it is final, and return its ID."""
    job_id = submit_text(client, register(client), text, **fields)
    wait_for_job(client, job_id)
    return job_id


def pending_job(service: HostedService) -> str:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers) as client:
        return submit_text(client, register(client), TEXT)


def test_list_is_newest_first_with_status(client: httpx.Client) -> None:
    empty = run("jobs", "list")
    assert (empty.code, empty.out) == (0, "")
    assert "--remote" in empty.err
    older, newer = done_job(client), done_job(client, "the canary sings")

    head, *rows = run("jobs", "list").out.splitlines()

    assert head.split()[:3] == ["id", "status", "characters"]
    assert [row.split()[:3] for row in rows] == [[newer, "ready", "16"], [older, "ready", str(len(TEXT))]]
    assert [job["job_id"] for job in json.loads(run("jobs", "list", "--limit", "1", "--json").out)] == [newer]
    assert json.loads(run("jobs", "list", "--status", "failed", "--json").out) == []
    assert "canary" not in run("jobs", "show", newer, "--json").out
    run("jobs", "list", "--status", "lost").expect_error(5, "invalid_option")


def test_download_keeps_or_converts_format(client: httpx.Client, tmp_path: Path) -> None:
    job_id = done_job(client)

    named = run("jobs", "download", job_id, cwd=tmp_path)
    assert (named.code, named.out) == (0, f"{job_id}.wav\n")
    assert (tmp_path / f"{job_id}.wav").read_bytes() == run("jobs", "download", job_id, "-o", "-").stdout
    message = json.loads(run("jobs", "download", job_id, "-o", "a.mp3", "--json", cwd=tmp_path).out)
    assert (message["job_id"], message["file"], message["duration_s"]) == (job_id, "a.mp3", pytest.approx(1.44))
    assert decode(tmp_path / "a.mp3").duration_s == pytest.approx(1.44, abs=0.1)
    assert verify(tmp_path / "a.mp3") is not None


def test_download_without_out_keeps_existing_file(client: httpx.Client, tmp_path: Path) -> None:
    job_id = done_job(client)
    (tmp_path / f"{job_id}.wav").write_bytes(b"kept")

    run("jobs", "download", job_id, cwd=tmp_path).expect_error(5, "unwritable_output")

    assert (tmp_path / f"{job_id}.wav").read_bytes() == b"kept"


def test_raw_samples_need_format_pcm(client: httpx.Client, tmp_path: Path) -> None:
    job_id = done_job(client, response_format="pcm")

    message = run("jobs", "download", job_id, cwd=tmp_path).expect_error(8, "strange_answer")

    assert "--format pcm" in message
    assert run("jobs", "download", job_id, "--format", "pcm", cwd=tmp_path).out == f"{job_id}.pcm\n"


def test_final_job_is_shown_and_not_cancelled(client: httpx.Client) -> None:
    job_id = done_job(client)

    assert f"job_id       {job_id}" in run("jobs", "show", job_id).out.splitlines()
    waited = run("jobs", "wait", job_id, "--json")
    assert json.loads(waited.out)["status"] == "ready"
    assert waited.err.endswith(f"Next: afterwords jobs download {job_id}\n")
    run("jobs", "cancel", job_id).expect_error(5, "job_final")


def test_pending_job_shows_its_step(client: httpx.Client) -> None:
    job_id = submit_text(client, register(client), "fault-slow " + 200 * "and on ")
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["step"] == "speaking", what="speaking")

    shown = json.loads(run("jobs", "show", job_id, "--json").out)
    assert (shown["step"], 0 <= shown["progress"] < 1) == ("speaking", True)
    [row] = [line for line in run("jobs", "list").out.splitlines() if job_id in line]
    assert "pending: speaking, " in row
    run("jobs", "cancel", job_id)
    assert (wait_for_job(client, job_id)["step"], wait_for_job(client, job_id)["progress"]) == (None, None)


def test_cancelled_job_is_not_waited_for(client: httpx.Client) -> None:
    job_id = submit_text(client, register(client), "this will fault-hang")

    assert json.loads(run("jobs", "cancel", job_id, "--json").out)["status"] == "cancelled"

    run("jobs", "wait", job_id).expect_error(7, "job_cancelled")
    run("jobs", "download", job_id, "-o", "-").expect_error(7, "job_cancelled")


@pytest.mark.parametrize("command", ["show", "wait", "cancel", "download"])
@pytest.mark.usefixtures("client")
def test_unknown_job_exits_4(command: str) -> None:
    assert "jobs list" in run("jobs", command, UNKNOWN_ID).expect_error(4, "job_not_found")


@pytest.mark.usefixtures("client")
def test_malformed_id_is_not_found() -> None:
    run("jobs", "show", "../usage").expect_error(4, "job_not_found")


@pytest.mark.parametrize("command", ["wait", "download"])
def test_timeout_leaves_job_running(command: str, hosted: HostedService, tmp_path: Path) -> None:
    job_id = pending_job(hosted)

    message = run("jobs", command, job_id, "--timeout", "0.1", cwd=tmp_path).expect_error(9, "job_timeout")

    assert f"afterwords jobs {command} {job_id}" in message
    assert "status       pending" in run("jobs", "show", job_id).out.splitlines()


def test_unsupported_request_exits_5(hosted: HostedService) -> None:
    run("jobs", "list").expect_error(5, "unsupported_by_server")
    run("jobs", "cancel", pending_job(hosted)).expect_error(5, "unsupported_by_server")
