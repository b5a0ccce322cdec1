"""A model hub on loopback that answers like the public one: large files on a second host, small ones one hop away."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from afterwords.weights.catalog import CHECKPOINTS

REPOSITORY = "Qwen/Qwen3-TTS-12Hz-1.7B-Base"
COMMIT, NEXT_COMMIT = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"


def safetensors(n_bytes: int, fill: bytes = b"w") -> bytes:
    """Return a safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill * n_bytes


def qwen3_files() -> dict[str, bytes]:
    """Return the files of the public repository in small, with two that must not be downloaded."""
    return {
        "README.md": b"# Qwen3",
        "pytorch_model.bin": b"pickle",
        "config.json": b'{"model_type": "qwen3_tts"}',
        "generation_config.json": b"{}",
        "vocab.json": b'{"a": 0}',
        "merges.txt": b"#version: 0.2\n",
        WEIGHTS: safetensors(400_000),
        "speech_tokenizer/config.json": b"{}",
        "speech_tokenizer/model.safetensors": safetensors(50_000, b"c"),
    }


WANTED = sorted(name for name in qwen3_files() if name not in ("README.md", "pytorch_model.bin"))


@dataclass(frozen=True)
class HubRequest:
    path: str
    range: str | None
    token: str | None


class HubHost(ThreadingHTTPServer):
    """One of the two hosts."""

    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub
        self.requests: list[HubRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_args: object) -> None:
        """Ignore clients that disconnect, as some tests make them do."""


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit. A gated one gives its files to requests with the token `hf_accepted` only."""

    commit: str
    files: dict[str, bytes]
    is_gated: bool = False


class LoopbackHub:
    """Both hosts, their files, and the faults to inject.

    Attributes:
        files, commit: Of the first repository, REPOSITORY.
        others: Further repositories by name.
        refusals: Answers to the next requests to the front host: status and headers.
        cuts: Numbers of bytes after which the next downloads of the weights are cut off.
        spoils: How many downloads of the weights are altered.
        ignores_ranges: Whether every download starts at the first byte.
        refuses_ranges: Whether a download that is resumed gets status 503.
        stall_after: Number of bytes after which a download of the weights waits for `go`; it sets `stalled`.
    """

    def __init__(self) -> None:
        self.files = qwen3_files()
        self.commit = COMMIT
        self.others: dict[str, HubRepository] = {}
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.cuts: list[int] = []
        self.spoils = 0
        self.ignores_ranges = False
        self.refuses_ranges = False
        self.stall_after: int | None = None
        self.stalled, self.go = threading.Event(), threading.Event()
        self.siblings: list[Any] | None = None
        self.front, self.cdn = HubHost(self), HubHost(self)

    @property
    def url(self) -> str:
        return self.front.url

    def ranges(self) -> list[str | None]:
        """Return the Range headers of all requests for the weights."""
        return [seen.range for seen in self.cdn.requests if "/".join(seen.path.split("/")[3:]) == WEIGHTS]

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin"))

    def metadata(self) -> dict[str, Any]:
        siblings = self.siblings or [self._sibling(name, content) for name, content in self.files.items()]
        return {"id": REPOSITORY, "sha": self.commit, "siblings": siblings}

    def metadata_of(self, name: str, revision: str) -> dict[str, Any] | None:
        """Return what the hub says about a revision of a repository; None if there is none."""
        if (name, revision) == (REPOSITORY, "main"):
            return self.metadata()
        if (other := self.others.get(name)) is None or revision not in ("main", other.commit):
            return None
        siblings = [self._sibling(path, content) for path, content in other.files.items()]
        return {"id": name, "sha": other.commit, "siblings": siblings}

    def find(self, path: str) -> tuple[str, HubRepository, str]:
        """Return the repository that a path names, as its name and content, and the file's name."""
        for name, other in self.others.items():  # each has a commit of its own
            if f"/{other.commit}/" in path:
                return name, other, path.partition(f"/{other.commit}/")[2]
        return REPOSITORY, HubRepository(self.commit, self.files), path.partition(f"/{self.commit}/")[2]

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        blob = sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if self.is_large(name):
            lfs = {"sha256": sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            sibling |= {"blobId": "0" * 40, "lfs": lfs}
        return sibling


def add_pocket(hub: LoopbackHub, files: dict[str, bytes], tokenizer: bytes) -> None:
    """Add the two repositories of `pocket`; the first one, with the weights, is gated."""
    weights, other = CHECKPOINTS["pocket"].sources
    folder = weights.required[0].rpartition("/")[0]
    in_folder = {f"{folder}/{name}": content for name, content in files.items()}
    hub.others[weights.repository] = HubRepository(weights.revision, in_folder, is_gated=True)
    hub.others[other.repository] = HubRepository(other.revision, {other.required[0]: tokenizer})


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    with ExitStack() as stack:
        for host in (hub.front, hub.cdn):
            thread = threading.Thread(target=host.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(host.server_close)
            stack.callback(thread.join)
            stack.callback(host.shutdown)
        stack.callback(hub.go.set)
        yield hub


class HubHandler(BaseHTTPRequestHandler):
    server: HubHost

    def log_message(self, *_args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        host, hub = self.server, self.server.hub
        path, _, query = self.path.partition("?")
        token = self.headers.get("Authorization")
        host.requests.append(HubRequest(self.path, self.headers.get("Range"), token))
        repository, found, name = hub.find(path)
        resolve = f"/{repository}/resolve/{found.commit}/"
        info = re.fullmatch(r"/api/models/(.+)/revision/(\w+)", path)
        metadata = hub.metadata_of(info[1], info[2]) if info and query.lower() == "blobs=true" else None
        if host is hub.front and hub.refusals:
            status, headers = hub.refusals.pop(0)
            self._send(status, b"<html>", headers)
        elif host is hub.front and metadata is not None:
            self._send(200, json.dumps(metadata).encode(), {"Content-Type": "application/json"})
        elif name not in found.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif host is hub.cdn and hub.refuses_ranges and self.headers.get("Range"):
            self._send(503, b"", {})
        elif host is hub.cdn:
            self._send_file(name, found.files[name])
        elif path.startswith(resolve) and found.is_gated and token != "Bearer hf_accepted":
            self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(resolve) and hub.is_large(name):
            linked = {"X-Linked-Etag": f'"{sha256(found.files[name]).hexdigest()}"', "X-Repo-Commit": found.commit}
            self._send(302, b"", {"Location": f"{hub.cdn.url}/blobs/{found.commit}/{name}", **linked})
        elif path.startswith(resolve):
            self._send(307, b"", {"Location": f"/api/resolve-cache/{found.commit}/{name}"})
        else:
            self._send_file(name, found.files[name])

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, name: str, content: bytes) -> None:
        hub = self.server.hub
        wanted = None if hub.ignores_ranges else self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = len(content)
        if name == WEIGHTS:
            if hub.spoils:
                hub.spoils -= 1
                content = content[:-1] + b"?"
            if hub.cuts:
                end = hub.cuts.pop(0)
            if hub.stall_after is not None:
                self.wfile.write(content[start : hub.stall_after])
                start = max(start, hub.stall_after)
                hub.stalled.set()
                hub.go.wait(30)
        self.wfile.write(content[start:end])
