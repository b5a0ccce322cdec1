"""The README, as a new user types its commands.

First a voice is cloned with `lite`, one terminal serves it, and another one uses curl; then a laptop pushes its voice,
and another machine uses it.
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
from tests.docs.pages import environment, run_blocks
from tests.e2e.served import READER, serving
from tests.lite_voice import Enrolment
from tests.watched import Watched

PAGE = Path(__file__).parents[2] / "README.md"
SERVER_PAGE = PAGE.with_name("docs") / "server.md"


def curl_commands() -> str:
    """Return the block that begins with the server's URL, and the one in docs/server.md that continues it."""
    found = re.search(r"```sh\n(URL=http://127\.0\.0\.1:7860\n.*?)```", PAGE.read_text("utf-8"), re.S)
    more = re.search(r"```sh\n(curl -fsS \$URL/v1/voices .*?)```", SERVER_PAGE.read_text("utf-8"), re.S)
    assert found is not None
    assert more is not None
    return found[1] + more[1]


def run_shell(folder: Path, home: Path, lines: str) -> str:
    """Run shell commands in a folder; return their output."""
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


def test_blocks_run_and_the_voice_is_served_to_curl(
    enrolment: Enrolment, tmp_path: Path, whisper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the prompt of the shared enrollment, which had a process of its own."""
    home = tmp_path / "home"
    shutil.copytree(enrolment.home, home, ignore=shutil.ignore_patterns("models"))
    (home / "models").symlink_to(enrolment.home / "models")
    assert (enrolment.files, enrolment.addresses) == ([], [])
    watched = Watched(tmp_path, monkeypatch)
    run_blocks(PAGE, tmp_path, environment(tmp_path, {}), before=watched.before)
    assert (watched.files, watched.addresses) == ([], set())
    shutil.copy(READER, tmp_path / "friend.m4a")  # the file name does not matter
    with serving(home, {"AFTERWORDS_BACKENDS": "lite", "AFTERWORDS_TESTING": "0"}) as served:
        shown = run_shell(tmp_path, home, curl_commands().replace("http://127.0.0.1:7860", served.url))
        prompts = list((home / "server").rglob("prompts"))
    assert '"name":"friend"' in shown
    assert not prompts, "the prompt of the library was not used"
    hello = tmp_path / "hello.mp3"
    audio: Audio = decode(hello)
    words = re.findall(r"[a-z]+", transcribe(audio, lang="en").text.lower())
    assert 1 < audio.duration_s < 6
    assert "hello" in words
    assert "server" in words
    mark = verify(hello)
    assert mark is not None
    assert mark.is_synthetic


def run_on_machine(folder: Path, name: str, command: list[str], *, key: str = "") -> None:
    """Run a command with its own home folder; type the key when the command asks for it."""
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


def test_pushed_voice_is_used_on_another_machine(me: Voice, tmp_path: Path) -> None:
    section = PAGE.read_text("utf-8").split("## Use it anywhere\n")[1].split("\n## ")[0]
    laptop, other, program = (code for _, code in re.findall(r"```(sh|python)\n(.*?)```", section, re.S))
    with serving(tmp_path / "server") as served:
        for name, lines in (("home", laptop), ("other", other)):
            here = lines.replace("https://voices.example.com", served.url)
            run_on_machine(tmp_path, name, ["bash", "-euo", "pipefail", "-c", here], key=served.key)
        run_on_machine(tmp_path, "other", [sys.executable, "-c", program])
    length = pytest.approx(len("Hello from anywhere.") * SECONDS_PER_CHARACTER, abs=0.1)  # mp3 adds padding
    assert decode(tmp_path / "anywhere.wav").duration_s == length
    assert decode(tmp_path / "anywhere.mp3").duration_s == length
