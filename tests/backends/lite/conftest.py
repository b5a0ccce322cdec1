"""The real network, and the parts of the recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterwords.audio.audio import Audio, decode
from afterwords.backends.base import Reference
from afterwords.backends.lite.kokoro import Kokoro, model_file
from tests.conftest import READER
from tests.lite_voice import Enrolment

WINDOW_START_S = 10.17


@pytest.fixture(scope="session")
def reader() -> Audio:
    return decode(READER)


@pytest.fixture(scope="session")
def first_half(reader: Audio) -> Reference:
    return Reference(reader.samples[: len(reader.samples) // 2], reader.sample_rate)


@pytest.fixture(scope="session")
def second_half(reader: Audio) -> Reference:
    return Reference(reader.samples[len(reader.samples) // 2 :], reader.sample_rate)


@pytest.fixture(scope="session")
def enrolled(reader: Audio) -> Reference:
    """Return the window of the recording that enrollment used."""
    return Reference(reader.samples[round(WINDOW_START_S * reader.sample_rate) :], reader.sample_rate)


@pytest.fixture(scope="session")
def unused(reader: Audio) -> Reference:
    """Return what enrollment did not use."""
    return Reference(reader.samples[: round(WINDOW_START_S * reader.sample_rate)], reader.sample_rate)


@pytest.fixture(scope="session")
def model(enrolment: Enrolment) -> Path:
    return model_file(enrolment.home / "models")


@pytest.fixture(scope="session")
def kokoro(model: Path) -> Kokoro:
    return Kokoro(model)


@pytest.fixture(autouse=True)
def home(home: Path, model: Path) -> Path:
    """Return a home folder of the test with the assembled network, which takes long to assemble."""
    home.mkdir()
    (home / "models").symlink_to(model.parent)
    return home
