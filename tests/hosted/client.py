"""Bare HTTP for both the hosted service's twin and our server: only what the hosted tables name is sent."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.served import READER, speak, until

NOBODY = "00000000-0000-4000-8000-000000000000"
RECORDING = READER.read_bytes()


def client_of(url: str, secret: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, trust_env=False, timeout=30)


def create(client: httpx.Client, wav: bytes = RECORDING, **fields: str) -> httpx.Response:
    data = {"name": "me", **fields}
    return client.post("/v1/voices", data=data, files={"ref_audio": ("me.wav", wav, "audio/wav")})


def ask(client: httpx.Client, voice_id: str, text: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text, **fields})


def final(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job, once it is final: looked at without asking the server to wait."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return job if job["status"] != "pending" else None

    return until(look, what="the end of the job")


def spoken(client: httpx.Client, voice_id: str, text: str) -> str:
    """The id of a job that is final."""
    job_id = speak(client, voice_id, text)
    final(client, job_id)
    return job_id


def x_headers(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("x-")}


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])
