"""The README's lines about servers, as a new user types them.

One terminal serves and the other has curl, on `lite`; then a laptop pushes its voice, and another machine uses it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afterwords.audio import Audio, decode
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from afterwords.models import Voice
from afterwords.provenance import verify
from afterwords.transcribe import transcribe
from tests.e2e.served import READER, serving

PAGE = Path(__file__).parents[2] / "README.md"


def lines_of_curl() -> str:
    """The one block that begins with the server's address."""
    found = re.search(r"```sh\n(URL=http://127\.0\.0\.1:7860\n.*?)```", PAGE.read_text("utf-8"), re.S)
    assert found is not None
    return found[1]


def test_the_lines_of_curl_register_speak_and_fetch(tmp_path: Path, whisper: Path) -> None:
    shutil.copy(READER, tmp_path / "me.wav")
    with serving(tmp_path / "home", {"AFTERWORDS_BACKENDS": "lite", "AFTERWORDS_TESTING": "0"}) as served:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines_of_curl().replace("http://127.0.0.1:7860", served.url)],
            cwd=tmp_path,
            env={
                **os.environ,
                "AFTERWORDS_HOME": str(served.home),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, f"{done.stderr}\n{served.log.read_text()}"
    heard = tmp_path / "hello.wav"
    audio: Audio = decode(heard)
    words = re.findall(r"[a-z]+", transcribe(audio, lang="en").text.lower())
    assert 1 < audio.duration_s < 6
    assert "hello" in words
    assert "server" in words
    mark = verify(heard)
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
            typed = lines.replace("https://voices.example.com", served.url)
            machine(tmp_path, name, ["bash", "-euo", "pipefail", "-c", typed], key=served.key)
        machine(tmp_path, "elsewhere", [sys.executable, "-c", program])
    length = pytest.approx(len("Hello from anywhere.") * SECONDS_PER_CHARACTER, abs=0.1)  # an mp3 is padded
    assert decode(tmp_path / "anywhere.wav").duration_s == length
    assert decode(tmp_path / "anywhere.mp3").duration_s == length
