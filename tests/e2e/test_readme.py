"""The README's lines about the server, as a new user types them: one terminal serves, the other has curl, on `lite`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from afterwords.audio import Audio, decode
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
