"""The real network, and one fast enrollment of the reader, shared by all tests and their processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from afterwords.audio.audio import Audio, decode
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.kokoro import Kokoro, model_file
from tests.conftest import READER


@dataclass(frozen=True)
class Enrolment:
    """Return the prompt of the first half of the reader, and the reported progress."""

    prompt: bytes
    fractions: list[float]


@pytest.fixture(scope="session")
def reader() -> Audio:
    return decode(READER)


@pytest.fixture(scope="session")
def first_half(reader: Audio) -> Reference:
    return Reference(reader.samples[: len(reader.samples) // 2], reader.sample_rate)


@pytest.fixture(scope="session")
def second_half(reader: Audio) -> Reference:
    """Return a text that enrollment did not use."""
    return Reference(reader.samples[len(reader.samples) // 2 :], reader.sample_rate)


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home folder for the session, shared by parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lite"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model(shared_home: Path) -> Path:
    return model_file(shared_home / "models")


@pytest.fixture(scope="session")
def kokoro(model: Path) -> Kokoro:
    return Kokoro(model)


@pytest.fixture(scope="session")
def enrolment(shared_home: Path, model: Path, first_half: Reference) -> Enrolment:
    prompt, progress = shared_home / "prompt.bin", shared_home / "progress.json"
    with FileLock(shared_home / "enrolment.lock"), pytest.MonkeyPatch.context() as patch:
        if not progress.exists():
            patch.setenv("AFTERWORDS_HOME", str(shared_home))
            fractions: list[float] = []
            prompt.write_bytes(LiteEngine().prepare(first_half, lambda done, _: fractions.append(done), fast=True))
            progress.write_text(json.dumps(fractions))
        return Enrolment(prompt.read_bytes(), json.loads(progress.read_text()))


@pytest.fixture(autouse=True)
def home(home: Path, model: Path) -> Path:
    """Return a home folder of the test with the assembled network, which takes long to assemble."""
    home.mkdir()
    (home / "models").symlink_to(model.parent)
    return home
