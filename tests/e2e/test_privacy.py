"""Tests that texts, recordings and secrets are not in logs or errors, and not in any file after deletion."""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
import pytest

from afterwords.audio.wav import canonical_wav
from tests.e2e.served import ADMIN_SECRET, READER, Served, register, serving, submit_text, wait_for_job, wait_until
from tests.e2e.wire import ask
from tests.watched import Watched, has_strace

CALLBACK_SECRET: Final = "a-callback-secret-that-workers-share"
STORAGE_SECRET: Final = "a-storage-secret-of-the-operator"
SERVICE_SECRETS: Final = {
    "AFTERWORDS_METRICS_TOKEN": "a-metrics-token-of-the-operator-0",
    "AFTERWORDS_MODAL_PROXY_TOKEN": "wk-proxy-key:ws-proxy-secret",
    "MODAL_TOKEN_SECRET": "as-a-secret-of-modal",
    "RUNPOD_API_KEY": "rpa_a-key-of-runpod",
}
NOISE: Final = np.random.default_rng(1).uniform(-0.5, 0.5, 48_000).astype(np.float32)
WAV: Final = canonical_wav(NOISE, 8_000)
CANARY: Final = "canary7f3a"
GONE_WITHIN_S: Final = 5


@pytest.fixture(scope="module")
def temp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temp")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, temp: Path) -> Iterator[Served]:
    """Return a server that was started with umask 0."""
    settings = {
        "AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET,
        "AWS_SECRET_ACCESS_KEY": STORAGE_SECRET,
        **SERVICE_SECRETS,
        "TMPDIR": str(temp),
        "AFTERWORDS_MAX_ATTEMPTS": "1",
        "AFTERWORDS_BODY_TIMEOUT_S": "1",
    }
    before = os.umask(0)
    try:
        with serving(tmp_path_factory.mktemp("privacy") / "home", settings) as running:
            os.umask(before)
            yield running
    finally:
        os.umask(before)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def read_files(served: Served, temp: Path) -> dict[Path, bytes]:
    """Return the content of all files that the server has written."""
    files = [served.log, *(path for folder in (served.home, temp) for path in folder.rglob("*"))]
    found = {}
    for path in files:
        try:
            found[path] = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # removed in the meantime
            continue
    return found


def find_files(parts: list[bytes], served: Served, temp: Path) -> set[str]:
    """Return the names of files that contain one of these."""
    return {path.name for path, data in read_files(served, temp).items() if any(part in data for part in parts)}


def test_deleting_a_voice_leaves_no_text_or_audio(served: Served, client: httpx.Client, temp: Path) -> None:
    said = [
        f"{CANARY} {word}".encode() for word in ("transcript", "text", "timed", "slow", "name", "family", "metadata")
    ]
    windows = [WAV[start : start + 64] for start in range(44, len(WAV) - 64, 1_000)]
    voice = register(
        client, wav=WAV, name=f"{CANARY} name", ref_text=f"{CANARY} transcript.", family=f"{CANARY} family"
    )
    client.patch(f"/v1/voices/{voice}", json={"metadata": {"note": f"{CANARY} metadata"}})
    wait_for_job(client, submit_text(client, voice, f"{CANARY} text"))
    client.post("/v1/synthesize", json={"voice_id": voice, "text": f"{CANARY} text"})
    timed = submit_text(client, voice, f"{CANARY} timed", timestamps=True)
    wait_for_job(client, timed)
    assert "".join(client.get(f"/v1/jobs/{timed}/timestamps").json()["characters"]) == f"{CANARY} timed"
    pending = submit_text(client, voice, f"{CANARY} slow, fault-slow" + "." * 2_000)
    client.get(f"/v1/voices/{voice}/export")
    assert {"afterwords.db", "ref.wav"} <= {
        name.removesuffix("-wal") for name in find_files(said + windows, served, temp)
    }

    assert client.delete(f"/v1/voices/{voice}").status_code == 204

    assert client.get(f"/v1/jobs/{pending}").status_code == 404
    wait_until(
        lambda: not find_files(said + windows, served, temp), deadline_s=GONE_WITHIN_S, what="removal of all traces"
    )
    assert not list((served.home / "server" / "blobs").rglob(f"*{pending}*"))


def test_row_of_a_final_job_has_no_text(served: Served, client: httpx.Client) -> None:
    voice = register(client, wav=WAV)
    for fault in ("", "fault-fail ", "fault-error "):
        wait_for_job(client, submit_text(client, voice, f"{fault}{CANARY} passing by", timestamps=bool(fault)))
    client.delete(f"/v1/jobs/{submit_text(client, voice, f'fault-slow {CANARY} passing by' + '.' * 2_000)}")
    with contextlib.closing(sqlite3.connect(served.home / "server" / "afterwords.db")) as rows:
        texts = rows.execute("SELECT text, timing FROM jobs WHERE voice_id = ?", [voice]).fetchall()
    assert texts == [(None, None)] * 4


def test_errors_and_logs_contain_no_text_or_secret(served: Served, client: httpx.Client) -> None:
    answers = list(send_invalid_requests(served, client))
    assert {answer.status_code for answer in answers} >= {400, 401, 404, 409, 413, 416, 422, 500, 503}
    secrets = [CANARY, served.key, ADMIN_SECRET, CALLBACK_SECRET, STORAGE_SECRET, *SERVICE_SECRETS.values()]
    for answer in answers:
        assert set(answer.json()["error"]) == {"code", "message", "type", "param", "request_id"}
        shown = f"{answer.headers} {answer.text}"
        assert not [secret for secret in secrets if secret in shown], shown
    wait_until(lambda: "GET /v1/voices/{voice_id} 404 " in served.log.read_text(), what="the line")  # after its answer
    log = served.log.read_text()
    assert "fault" not in log
    assert "Traceback" not in log
    assert not [secret for secret in secrets if secret in log]


def send_invalid_requests(served: Served, client: httpx.Client) -> Iterator[httpx.Response]:
    """Yield the responses to all kinds of invalid requests with a canary."""
    json = {"Content-Type": "application/json"}
    voice = register(client, wav=WAV, name=f"me {CANARY}", ref_text=f"{CANARY}.")
    files = {"ref_audio": (f"{CANARY}.wav", WAV, "audio/wav")}
    for fields in ({"lang": CANARY}, {"backend": CANARY}, {"consent": CANARY}, {"name": f"\u202e{CANARY}"},
                   {"ref_text": f"\0{CANARY}"}):  # fmt: skip
        yield client.post("/v1/voices", data={"name": CANARY, **fields}, files=files)
    yield client.post("/v1/voices", data={"name": CANARY}, files={CANARY: WAV})
    yield client.post("/v1/voices", data={"name": CANARY}, files={"ref_audio": (CANARY, CANARY.encode(), "audio/wav")})
    yield client.post("/v1/voices", data={"name": CANARY}, files={"ref_audio": (CANARY, WAV, CANARY)})
    yield client.post("/v1/voices", content=CANARY, headers={"Content-Type": f"multipart/form-data; boundary={CANARY}"})
    yield client.post("/v1/voices/import", content=client.get(f"/v1/voices/{voice}/export").content[:-1])
    for fields in ({"lang": CANARY}, {"backend": CANARY}, {"response_format": CANARY}, {"speed": CANARY},
                   {"webhook_url": f"https://{CANARY}@x.example/"}, {"text": f"\x1b{CANARY}"},
                   {"text": CANARY * 1_000}, {"voice_id": CANARY}):  # fmt: skip
        yield client.post("/v1/synthesize", json={"voice_id": voice, "text": CANARY, **fields})
        yield client.post("/v1/estimate", json={"voice_id": voice, "text": CANARY, **fields})
    for body in (f"{CANARY}", f'{{"{CANARY}": ', f'{{"text": "\\ud800{CANARY}"}}', f'["{CANARY}"]', CANARY * 20_000):
        yield client.post("/v1/synthesize", content=body, headers=json)
        yield client.patch(f"/v1/voices/{voice}", content=body, headers=json)
    yield client.get(f"/v1/voices/{CANARY}")
    yield client.get(f"/v1/{CANARY}/{served.key}")
    yield client.put(f"/v1/voices/{CANARY}")
    yield client.get("/v1/jobs", params={"status": CANARY})
    yield client.get("/v1/voices", params={"limit": CANARY})
    yield client.post(
        "/v1/synthesize", json={"voice_id": voice, "text": "x"}, headers={b"Idempotency-Key": f"{CANARY}é".encode()}
    )
    for text in ("one", "two"):
        repeated = client.post(
            "/v1/synthesize", json={"voice_id": voice, "text": f"{CANARY} {text}"}, headers={"Idempotency-Key": CANARY}
        )
    yield repeated
    for secret in (CANARY, served.key + CANARY, f"{ADMIN_SECRET}x", f"{CALLBACK_SECRET}x", *SERVICE_SECRETS.values()):
        with served.client(secret) as other_client:
            yield other_client.get("/v1/voices")
            yield other_client.post("/v1/keys", json={"label": CANARY})
    yield client.get("/v1/health", headers={"Host": CANARY})
    with served.client(CALLBACK_SECRET) as worker:
        results: list[dict[str, Any]] = [
            {"wav_b64": f"{CANARY}é"},
            {"wav_b64": 5, "error": CANARY},
            {"job_id": CANARY},
            {"wav_b64": base64.b64encode(CANARY.encode()).decode()},
        ]
        for number, result in enumerate(results):
            job = submit_text(client, voice, f"{CANARY}, fault-slow {number}" + "." * 1_000)
            yield worker.post(f"/v1/jobs/{job}/complete", json={"job_id": job, **result})
            client.delete(f"/v1/jobs/{job}")
        job = submit_text(client, voice, f"{CANARY}, fault-slow" + "." * 1_000)
        yield worker.put(f"/v1/jobs/{job}/audio", content=CANARY, headers={"X-Content-SHA256": CANARY})
        client.delete(f"/v1/jobs/{job}")
    for fault in ("fault-fail", "fault-error", "fault-memory", "fault-crash"):
        assert wait_for_job(client, submit_text(client, voice, f"{fault} {CANARY}"))["status"] == "failed"
    spoken = submit_text(client, voice, f"{CANARY} spoken")
    wait_for_job(client, spoken)
    yield client.get(f"/v1/jobs/{spoken}/audio", headers={"Range": "bytes=99999999-", "If-Match": CANARY})
    ask(served, "GET", f"/{CANARY}", [("X-Bad", f"\x00{CANARY}")])
    blobs = served.home / "server" / "blobs"
    aside = blobs.with_name("aside")
    blobs.rename(aside)
    blobs.write_text(CANARY)
    yield client.get(f"/v1/jobs/{spoken}/audio")
    yield client.post("/v1/voices", data={"name": CANARY}, files=files)
    blobs.unlink()
    aside.rename(blobs)
    (blobs / "jobs" / f"{spoken}.wav").write_text(CANARY)
    yield client.get(f"/v1/jobs/{spoken}/audio")
    (blobs / "voices" / voice / "ref.wav").write_text(CANARY)
    yield client.get(f"/v1/voices/{voice}/export")


def test_files_of_the_server_are_private(served: Served, client: httpx.Client) -> None:
    wait_for_job(client, submit_text(client, register(client, wav=WAV), "Written with care."))
    open_to_others = {
        str(path.relative_to(served.home)): oct(path.stat().st_mode)
        for path in [served.home, *served.home.rglob("*")]
        if not path.is_symlink() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    }
    assert open_to_others == {}
    assert len([path for path in served.home.rglob("*.wav") if stat.S_IMODE(path.stat().st_mode) == 0o600]) > 2


def test_worker_process_has_no_secrets(served: Served) -> None:
    assert served.process is not None
    children = psutil.Process(served.process.pid).children(recursive=True)
    environments = [child.environ() for child in children]
    assert any(environment.get("AFTERWORDS_HOME") for environment in environments)
    for environment in environments:
        secrets = {ADMIN_SECRET, CALLBACK_SECRET, STORAGE_SECRET, *SERVICE_SECRETS.values()}
        assert not secrets & set(environment.values())
    assert all(ADMIN_SECRET not in " ".join(child.cmdline()) for child in children)


def test_stopped_server_leaves_no_key_and_no_text(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as served:
        with served.client() as client:
            wait_for_job(client, submit_text(client, register(client, wav=WAV, name="me"), f"{CANARY} passing by"))
        assert served.stop() == 0
    assert not find_files([CANARY.encode(), served.key.encode()], served, tmp_path)


def test_workers_and_transcription_open_no_connections(
    tmp_path: Path, whisper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_strace():
        pytest.skip("strace is missing, or may not trace")
    watched = Watched(tmp_path, monkeypatch)
    program = "import sys, pathlib, afterwords.reference.transcription as t, afterwords.audio.audio as a\n"
    program += "print(t.transcribe(a.decode(pathlib.Path(sys.argv[1]))))"
    subprocess.run([*watched.before, sys.executable, "-c", program, READER], check=True, capture_output=True)
    served = Served(tmp_path / "home", {"AFTERWORDS_BACKENDS": "lite"}, before=[*watched.before, "-D"])
    try:
        served.start().ready()
    finally:
        served.stop()
    process = served.process
    assert process is not None
    wait_until(lambda: watched.saw_the_end_of(process.pid), what="the end of the trace")
    assert (watched.files, watched.addresses) == ([], set())
