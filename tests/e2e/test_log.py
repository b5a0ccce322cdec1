"""What a server writes down: one line an event, whose key it was, and nothing that repeats without news."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.served import Served, final, register, serving, speak


def lines_of(served: Served) -> list[dict[str, Any]]:
    """Every line that the server wrote to stderr, which must be one JSON object."""
    return [json.loads(line) for line in served.log.read_text().splitlines()]


def test_json_log_has_keys_and_a_second_server(tmp_path: Path) -> None:
    settings = {"AFTERWORDS_LOG": "JSON"}
    with serving(tmp_path / "home", settings) as served:
        second = Served(served.home, {**settings, "AFTERWORDS_LOG_LEVEL": "debug", "AFTERWORDS_WORKERS": "0"})
        second.log = tmp_path / "second.log"
        second.start()
        with served.client() as client:
            voice_id = register(client)
            job_id = speak(client, voice_id, "fault-slow, so that a look comes before its end. " * 8)
            pending = client.get(f"/v1/jobs/{job_id}").json()
            assert final(client, job_id)["status"] == "ready"
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
    looks = [line for line in lines if line.get("route") == "/v1/jobs/{job_id}"]
    assert pending["status"] == "pending"
    assert len(looks) == 1, "only the one that found the end"
    probes = [line["status"] for line in lines if line.get("route") in ("/healthz", "/readyz")]
    assert set(probes) <= {503}, "only those that were not good"
    assert [line["level"] for line in others if line.get("route") == "/healthz"] == ["debug"]
    assert "2 servers share this database" in {line["message"] for line in others}
    told = [line["message"] for line in lines]
    assert told[-1] == "stopped"
    assert [message for message in told if message.endswith(" stopped")]
    assert not [message for message in told if "status -9" in message]
    assert served.key not in served.log.read_text()
