"""Download of a Whisper model with the real hub client from a loopback hub with whisper-tiny."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import READER

COMMIT = "c" * 40
REPOSITORY = "Systran/faster-whisper-small"
PROGRAM = f"""
import json
from pathlib import Path
from afterwords.audio.audio import decode
from afterwords.reference.transcription import transcribe
steps = []
recognized = transcribe(decode(Path({str(READER)!r})), lang="en", progress=lambda *step: steps.append(step))
print(json.dumps([recognized.text, steps]))
"""


class Hub(ThreadingHTTPServer):
    """A hub with one repository. With `breaks_after`, the first download of the weights breaks off there."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {path.name: path for path in folder.iterdir() if path.is_file()}
        self.breaks_after: int | None = None
        self.ranges: list[str] = []
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def parse_request(self) -> bool:
        is_sound = super().parse_request()
        self.server.asked.append((self.path, self.headers.get("User-Agent", "")))
        return is_sound

    def do_HEAD(self) -> None:
        self._file(is_head=True)

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        elif self.path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            sizes = {name: path.stat().st_size for name, path in self.server.files.items()}
            self._json([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()])
        else:
            self._file(is_head=False)

    def log_message(self, *_args: object) -> None:
        """Log nothing."""

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, *, is_head: bool) -> None:
        path = self.server.files.get(self.path.rsplit("/", 1)[-1])
        if path is None:
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if is_head:
            return
        if path.name == "model.bin":
            self.server.ranges.append(asked or "")
            if self.server.breaks_after is not None:
                content, self.server.breaks_after = content[: self.server.breaks_after], None
        self.wfile.write(content[start:])


@pytest.fixture
def hub(whisper: Path) -> Iterator[Hub]:
    server = Hub(whisper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def transcribed(hub: Hub, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in {"HF_HUB_OFFLINE", "AFTERWORDS_WHISPER"}}
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        **settings,
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=600, check=False
    )


def test_missing_model_is_downloaded_once_with_progress(hub: Hub, tmp_path: Path) -> None:
    done = transcribed(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    text, steps = json.loads(done.stdout)
    assert "amiable" in text.lower()
    downloading = [fraction for fraction, step in steps if step == "downloading"]
    assert downloading == sorted(downloading)
    assert downloading[-1] > 0.5
    transcribing = [fraction for fraction, step in steps if step == "transcribing"]
    assert transcribing[0] == 0.0
    assert steps[-1] == [transcribing[-1], "transcribing"]
    assert "%" not in done.stderr
    assert {path.split("/")[1] for path, _ in hub.asked} <= {"api", "Systran"}
    assert not [path for path, _ in hub.asked if path.startswith("/api/") and not path.startswith("/api/models/")]
    assert not [agent for _, agent in hub.asked if "torch" in agent or "agent/" in agent]

    hub.ranges.clear()
    again = transcribed(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert hub.ranges == []
    assert not [step for _, step in json.loads(again.stdout)[1] if step == "downloading"]


def test_interrupted_download_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.breaks_after = 30_000_000
    first = transcribed(hub, tmp_path)
    done = first if first.returncode == 0 else transcribed(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(asked.startswith("bytes=") and asked != "bytes=0-" for asked in hub.ranges), hub.ranges


def test_offline_setting_prevents_downloads(hub: Hub, tmp_path: Path) -> None:
    done = transcribed(hub, tmp_path, AFTERWORDS_OFFLINE="1")
    assert "UnavailableError" in done.stderr
    assert hub.ranges == []
