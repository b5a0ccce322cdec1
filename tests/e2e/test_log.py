"""Tests of the log: one line per event, with the key of the request, and none for repeated polls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.served import Served, register, serving, submit_text, wait_for_job


def lines_of(served: Served) -> list[dict[str, Any]]:
    """Return the lines of the log. Each must be a JSON object."""
    return [json.loads(line) for line in served.log.read_text().splitlines()]


def test_json_log_has_keys_and_a_second_server(tmp_path: Path) -> None:
    settings = {"AFTERWORDS_LOG": "JSON"}
    with serving(tmp_path / "home", settings) as served:
        second = Served(served.home, {**settings, "AFTERWORDS_LOG_LEVEL": "debug", "AFTERWORDS_WORKERS": "0"})
        second.log = tmp_path / "second.log"
        second.start()
        with served.client() as client:
            voice_id = register(client)
            job_id = submit_text(client, voice_id, "fault-slow, so that a poll comes before its end. " * 8)
            pending = client.get(f"/v1/jobs/{job_id}").json()
            assert wait_for_job(client, job_id)["status"] == "ready"
            [key] = client.get("/v1/keys").json()
            assert httpx.get(f"{served.url}/healthz").status_code == 200
            assert httpx.get(f"{second.url}/healthz").status_code == 200
        assert second.stop() == 0
        assert served.stop() == 0

    lines, others = lines_of(served), lines_of(second)
    (registered,) = [line for line in lines if line.get("method") == "POST" and line["route"] == "/v1/voices"]
    assert (registered["account"], registered["key"], registered["status"]) == (key["account_id"], key["key_id"], 201)
    assert (registered["level"], registered["logger"]) == ("info", "afterwords.server")
    assert f"account={key['account_id']} key={key['key_id']}" in registered["message"]
    polls = [line for line in lines if line.get("route") == "/v1/jobs/{job_id}"]
    assert pending["status"] == "pending"
    assert len(polls) == 1, "only the poll that found the final job"
    probes = [line["status"] for line in lines if line.get("route") in ("/healthz", "/readyz")]
    assert set(probes) <= {503}, "only failed probes"
    assert [line["level"] for line in others if line.get("route") == "/healthz"] == ["debug"]
    assert "2 servers share this database" in {line["message"] for line in others}
    messages = [line["message"] for line in lines]
    assert messages[-1] == "stopped"
    assert [message for message in messages if message.endswith(" stopped")]
    assert not [message for message in messages if "status -9" in message]
    (submitted,) = [line for line in lines if line.get("route") == "/v1/synthesize"]
    assert submitted["job_id"] == polls[0]["job_id"] == job_id
    assert submitted["message"].endswith(f"request_id={submitted['request_id']} job_id={job_id}")
    assert served.key not in served.log.read_text()


def test_json_line_of_a_failed_attempt_names_its_job(tmp_path: Path) -> None:
    with serving(tmp_path / "home", {"AFTERWORDS_LOG": "json"}) as served, served.client() as client:
        job_id = submit_text(client, register(client), "one fault-fail two")
        wait_for_job(client, job_id)

    (failed,) = [line for line in lines_of(served) if "the engine failed" in line["message"]]
    assert (failed["level"], failed["job_id"]) == ("warning", job_id)
