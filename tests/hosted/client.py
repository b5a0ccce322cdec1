"""Plain HTTP requests, as docs/api.md lists them, to the fake hosted service and to our server."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.served import RECORDING, submit_text, wait_until

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def http_client(url: str, secret: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120, verify=False)


def create_voice(client: httpx.Client, wav: bytes = RECORDING, **fields: str) -> httpx.Response:
    data = {"name": "me", **fields}
    return client.post("/v1/voices", data=data, files={"ref_audio": ("me.wav", wav, "audio/wav")})


def synthesize(client: httpx.Client, voice_id: str, text: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text, **fields})


def wait_for_job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Poll a job until it has ended, and return it."""

    def get_final() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return job if job["status"] != "pending" else None

    return wait_until(get_final, what="the end of the job")


def speak_and_wait(client: httpx.Client, voice_id: str, text: str) -> str:
    """Submit a text, wait for the job, and return its ID."""
    job_id = submit_text(client, voice_id, text)
    wait_for_job(client, job_id)
    return job_id


def x_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("x-")}


def error_code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])
