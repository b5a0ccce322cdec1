"""The README's lines about servers, as a new user types them.

A voice is cloned, one terminal serves it and the other has curl, on `lite`; then a laptop pushes its voice, and another
machine uses it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afterwords.audio.audio import Audio, decode
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from afterwords.models import Voice
from afterwords.provenance import verify
from afterwords.reference.transcription import transcribe
from tests.e2e.served import READER, serving

PAGE = Path(__file__).parents[2] / "README.md"
SERVER_PAGE = PAGE.with_name("docs") / "server.md"


def lines_of_curl() -> str:
    """The block that begins with the server's address, and the one of the server's page that goes on from there."""
    found = re.search(r"```sh\n(URL=http://127\.0\.0\.1:7860\n.*?)```", PAGE.read_text("utf-8"), re.S)
    more = re.search(r"```sh\n(curl -fsS \$URL/v1/voices .*?)```", SERVER_PAGE.read_text("utf-8"), re.S)
    assert found is not None
    assert more is not None
    return found[1] + more[1]


def typed(folder: Path, home: Path, lines: str) -> str:
    """Run lines of a shell in a folder; returns what they print."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=folder,
        env={
            **os.environ,
            "AFTERWORDS_HOME": str(home),
            "AFTERWORDS_BACKENDS": "lite",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_voice_that_was_cloned_here_is_served_to_curl(tmp_path: Path, whisper: Path) -> None:
    shutil.copy(READER, tmp_path / "me.wav")
    shutil.copy(READER, tmp_path / "guest.m4a")  # what a file is called does not matter
    home = tmp_path / "home"
    clone = re.search(r"^afterwords clone me\.wav [^#\n]*", PAGE.read_text("utf-8"), re.M)
    assert clone is not None
    typed(tmp_path, home, f"{clone[0]} --fast")
    with serving(home, {"AFTERWORDS_BACKENDS": "lite", "AFTERWORDS_TESTING": "0"}) as served:
        shown = typed(tmp_path, home, lines_of_curl().replace("http://127.0.0.1:7860", served.url))
        prompts = list((home / "server").rglob("prompts"))
    assert '"name":"guest"' in shown
    assert not prompts, "it was prepared at home"
    spoken = tmp_path / "hello.mp3"
    audio: Audio = decode(spoken)
    words = re.findall(r"[a-z]+", transcribe(audio, lang="en").text.lower())
    assert 1 < audio.duration_s < 6
    assert "hello" in words
    assert "server" in words
    mark = verify(spoken)
    assert mark is not None
    assert mark.is_synthetic


def machine(folder: Path, name: str, command: list[str], *, key: str = "") -> None:
    """Run a command with a home folder of its own; a key is typed in where it is asked for."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "AFTERWORDS_HOME": str(folder / name),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        input=f"{key}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stderr}"


def test_a_voice_of_the_laptop_is_used_on_another_machine(me: Voice, tmp_path: Path) -> None:
    section = PAGE.read_text("utf-8").split("## Use it anywhere\n")[1].split("\n## ")[0]
    laptop, elsewhere, program = (code for _, code in re.findall(r"```(sh|python)\n(.*?)```", section, re.S))
    with serving(tmp_path / "server") as served:
        for name, lines in (("home", laptop), ("elsewhere", elsewhere)):
            here = lines.replace("https://voices.example.com", served.url)
            machine(tmp_path, name, ["bash", "-euo", "pipefail", "-c", here], key=served.key)
        machine(tmp_path, "elsewhere", [sys.executable, "-c", program])
    length = pytest.approx(len("Hello from anywhere.") * SECONDS_PER_CHARACTER, abs=0.1)  # an mp3 is padded
    assert decode(tmp_path / "anywhere.wav").duration_s == length
    assert decode(tmp_path / "anywhere.mp3").duration_s == length
