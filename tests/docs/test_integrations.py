"""Run each program of docs/integrations.md against a server: it writes the sentence to hello.mp3 or hello.wav.

The clients that are slow to install run in `make soak`, in an environment of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from afterwords.audio.audio import Audio, decode
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from tests.docs.pages import ROOT, keep_file
from tests.e2e.served import Served, register, serving

PAGE = (ROOT / "docs" / "integrations.md").read_text("utf-8")
TEXT = "Hello in my own voice."
ADDRESS, KEY = "127.0.0.1:7860", "aw_..."
PROGRAMS = {
    (heading, number): (lang, code)
    for heading, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    for number, (lang, code) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.S | re.M))
}
QUICK = [("curl", 0), ("OpenAI, Python", 0), ("ElevenLabs, Python", 0)]
NODE = [("OpenAI, JavaScript", 0), ("ElevenLabs, JavaScript", 0), ("Vercel AI SDK", 0)]
NODE_PACKAGES = ["openai@7", "@elevenlabs/elevenlabs-js@2", "ai@7", "@ai-sdk/openai@4"]
PIPECAT_FILE = ("Pipecat", 0)
PYTHON = [
    ("LangChain", 0),
    ("LiveKit with OpenAI's plug-in", 0),
    ("LiveKit with ElevenLabs' plug-in", 0),
    ("Pipecat", 1),
    ("Pipecat", 2),
]
PYTHON_PACKAGES = [
    str(ROOT),
    "langchain-openai>=1.7,<2",
    "livekit-agents==1.8.9",
    "livekit-plugins-elevenlabs==1.8.9",
    "livekit-plugins-openai==1.8.9",
    "pipecat-ai==1.14.0",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server with the voice me, which has the alias alloy."""
    with serving(tmp_path_factory.mktemp("integrations") / "home") as served:
        with served.client() as client:
            register(client, name="me")
            assert client.put("/v1/aliases/alloy", json={"voice": "me"}).status_code in {200, 201}
        yield served


def is_whole(audio: Audio) -> bool:
    """Return whether audio has the length of the sentence. MP3 adds some silence; LiveKit adds a space to the text."""
    return -0.1 < audio.duration_s - SECONDS_PER_CHARACTER * len(TEXT) < 0.2


def run_program(name: tuple[str, int], folder: Path, server: Served, *, python: Path | None = None, **env: str) -> None:
    """Run a program of the page, and check that it writes all of the sentence."""
    lang, code = PROGRAMS[name]
    assert code.count(ADDRESS) == code.count(KEY) == 1
    code = code.replace(ADDRESS, server.url.removeprefix("http://")).replace(KEY, server.key)
    file = folder / "hello.mjs"
    file.write_text(code, "utf-8")
    command: dict[str, Sequence[str | Path]] = {
        "sh": ["sh", "-euc", code],
        "python": [python or sys.executable, "-c", code],
        "js": ["node", file],
    }
    done = subprocess.run(
        command[lang], cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = [path for path in folder.glob("hello.*") if path.suffix != ".mjs"]
    assert is_whole(decode(written))


def test_every_program_of_the_page_runs() -> None:
    assert PROGRAMS.keys() == {*QUICK, *NODE, *PYTHON, PIPECAT_FILE}


@pytest.mark.parametrize("name", QUICK)
def test_program_speaks(name: tuple[str, int], tmp_path: Path, server: Served) -> None:
    run_program(name, tmp_path, server)


def settings_of(program: str) -> dict[str, str]:
    """Return the settings of a table of the page, with the address and the key of the server."""
    section = PAGE.partition(f"## {program}\n")[2].partition("\n## ")[0]
    return {name: value.strip("`") for name, value in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.M)}


def test_open_webui_lists_and_speaks(server: Served) -> None:
    """Send the requests of Open WebUI 0.12.4."""
    settings = settings_of("Open WebUI")
    base = settings["API Base URL"].replace(ADDRESS, server.url.removeprefix("http://"))
    assert [httpx.get(f"{base}/audio/{name}").status_code for name in ("models", "voices")] == [401, 401]
    spoken = httpx.post(
        f"{base}/audio/speech",
        json={"model": settings["TTS Model"], "input": TEXT, "voice": settings["TTS Voice"]},
        headers={"Authorization": f"Bearer {server.key}"},
    )
    assert spoken.headers["content-type"] == "audio/mpeg"
    assert is_whole(decode(spoken.content))


def test_sillytavern_speaks(server: Served) -> None:
    """Send the request of its provider OpenAI Compatible."""
    settings = settings_of("SillyTavern")
    body = {"input": TEXT, "response_format": "mp3", "speed": 1, "model": settings["Model"]}
    spoken = httpx.post(
        settings["Provider Endpoint"].replace(ADDRESS, server.url.removeprefix("http://")),
        json={**body, "voice": settings["Available Voices"]},
        headers={"Authorization": f"Bearer {server.key}"},
    )
    assert is_whole(decode(spoken.content))


# -- JavaScript -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages of npm."""
    folder = tmp_path_factory.mktemp("node")
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), *NODE_PACKAGES]
    if subprocess.run(install, capture_output=True, timeout=600, check=False).returncode:
        pytest.skip("npm can't install the clients here")
    return folder / "node_modules"


@pytest.mark.soak
@pytest.mark.parametrize("name", NODE)
def test_javascript_program_speaks(name: tuple[str, int], tmp_path: Path, server: Served, node_modules: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)
    run_program(name, tmp_path, server)


# -- Python packages that pin the versions of others -----------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the packages."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", *PYTHON_PACKAGES]
    subprocess.run(install, check=True, timeout=1800)
    return folder / "bin" / "python"


class ChatModel(BaseHTTPRequestHandler):
    """Writes the sentence in two pieces, as OpenAI's chat completions do."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in ("Hello in ", "my own voice."):
            choice = {"index": 0, "delta": {"role": "assistant", "content": piece}}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def chatting() -> Iterator[str]:
    """Run the chat model, and yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ChatModel) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


@pytest.mark.soak
@pytest.mark.parametrize("name", PYTHON)
def test_python_program_speaks(name: tuple[str, int], tmp_path: Path, server: Served, python: Path) -> None:
    keep_file(PROGRAMS[PIPECAT_FILE][1], tmp_path)
    with chatting() as url:
        run_program(name, tmp_path, server, python=python, OPENAI_BASE_URL=url, OPENAI_API_KEY="a key")
