"""One fast enrollment with `lite`, which takes 12 s: shared by all tests and their processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs.pages import ROOT, environment
from tests.watched import Watched

READER = ROOT / "src" / "afterwords" / "data" / "reader.wav"
PROGRAM = """
import json, sys
from pathlib import Path
import afterwords as aw
from afterwords.backends.lite import PROMPT_VERSION
from afterwords.local import library

steps = []
aw.clone(
    sys.argv[1], name="reader", consent="self", backend="lite", fast=True, progress=lambda *step: steps.append(step)
)
prompt = library().prompt(library().get("reader"), f"lite-{PROMPT_VERSION}-fast")
Path("prompt.bin").write_bytes(prompt)
print(json.dumps([done for done, step in steps[[step for _, step in steps].index("measuring the voice") :]]))
"""


@dataclass(frozen=True)
class Enrolment:
    """The reader's voice in a library, and what the process that cloned it did.

    Attributes:
        home: The home folder with the library and the assembled network.
        fractions: The progress that the engine reported.
        files: What the process left in the home folder of the user.
        addresses: The other machines that it connected to.
    """

    home: Path
    prompt: bytes
    fractions: list[float]
    files: list[str]
    addresses: list[str]


def enroll_once(folder: Path) -> Enrolment:
    """Return the enrollment in a folder; the first call makes it."""
    done = folder / "enrolment.json"
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                watched = Watched(folder, patch)
                made = subprocess.run(
                    [
                        *watched.before,
                        sys.executable,
                        "-c",
                        PROGRAM,
                        ROOT / "src" / "afterwords" / "data" / "reader.wav",
                    ],
                    cwd=folder,
                    env=environment(folder, {}),
                    capture_output=True,
                    text=True,
                    timeout=600,
                    check=False,
                )
            assert made.returncode == 0, made.stderr
            facts = {"fractions": json.loads(made.stdout), "files": watched.files, "addresses": [*watched.addresses]}
            done.write_text(json.dumps(facts), "utf-8")
    return Enrolment(folder / "home", (folder / "prompt.bin").read_bytes(), **json.loads(done.read_text("utf-8")))
