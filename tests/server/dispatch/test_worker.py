"""A machine that speaks: work in, PCM out, and what is worth keeping of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afterwords.audio.wav import pcm16
from afterwords.backends.base import ignore_progress
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER, ToneEngine
from afterwords.errors import InvalidBackendError, NotWavError, SynthesisError
from afterwords.models import SpeechTask
from afterwords.server.dispatch.worker import Work, Worker, is_out_of_memory
from afterwords.speech import speak
from tests.conftest import READER

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
        ref_text="what is said",
    )


@pytest.mark.parametrize("speed", [1.0, 1.5, 0.5])
def test_work_becomes_the_sound_that_the_engine_makes_of_it(speed: float) -> None:
    task = SpeechTask(text=TEXT, lang="en", backend="tone", voice_id="me", prompt=b"known")
    expected = b"".join(pcm16(chunk.samples) for chunk in speak(ToneEngine(), task, speed, ignore_progress))
    utterance = Worker().begin(work(speed=speed))
    assert b"".join(utterance) == expected
    assert utterance.sample_rate == SAMPLE_RATE
    assert utterance.new_prompt is None


def test_what_came_of_it_is_known_when_all_was_read() -> None:
    utterance = Worker().begin(work())
    assert utterance.result is None
    list(utterance)
    assert utterance.result is not None
    assert utterance.result.duration_s == pytest.approx(len(TEXT) * SECONDS_PER_CHARACTER)
    assert utterance.result.first_audio_ms is not None
    assert utterance.result.first_audio_ms <= utterance.result.synth_ms


def test_a_prompt_that_is_not_known_is_made_before_the_first_sound() -> None:
    fractions: list[float] = []
    utterance = Worker().begin(work(prompt=None), lambda fraction, _: fractions.append(fraction))
    assert fractions == [1.0]
    assert utterance.new_prompt
    assert list(utterance)


def test_what_progress_raises_ends_the_making_of_a_prompt() -> None:
    def give_up(fraction: float, step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Worker().begin(work(prompt=None), give_up)


def test_work_needs_a_prompt_or_a_reference() -> None:
    with pytest.raises(ValueError, match="a prompt or a reference"):
        Work(text="hello", lang="en", backend="tone", voice_id="me")


def test_a_reference_that_is_no_wav_is_refused() -> None:
    broken = Work(text="hello", lang="en", backend="tone", voice_id="me", reference=b"ID3 and so on" * 9)
    with pytest.raises(NotWavError):
        Worker().begin(broken)


def test_a_backend_that_is_not_here_is_refused() -> None:
    with pytest.raises(InvalidBackendError):
        Worker().begin(work(backend="gpt-9"))


def test_loading_ahead_tells_how_far_it_is() -> None:
    fractions: list[float] = []
    assert Worker().load("tone", lambda fraction, _: fractions.append(fraction)).name == "tone"
    assert fractions[-1] == 1.0


def test_an_utterance_given_up_closes_the_engine_s_own() -> None:
    utterance = Worker().begin(work(TEXT * 10))
    assert next(iter(utterance))
    utterance.close()
    assert list(utterance) == []


def test_what_an_engine_raises_unforeseen_is_a_synthesis_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    with pytest.raises(SynthesisError, match="ValueError"):
        list(Worker().begin(work("fault-error and on")))


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize("cause", [MemoryError(), OutOfMemoryError("CUDA"), RuntimeError("std::bad_alloc")])
def test_a_lack_of_memory_is_known_beneath_what_was_made_of_it(cause: Exception) -> None:
    with pytest.raises(SynthesisError) as raised:
        raise SynthesisError("lite", why="it raised something") from cause
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(SynthesisError("lite", why="it is ill"))


def test_text_and_voice_stay_out_of_every_repr() -> None:
    shown = repr(work("a secret", prompt=b"a secret prompt"))
    assert "secret" not in shown
    assert "what is said" not in shown
    assert "RIFF" not in shown


def test_a_worker_knows_neither_web_nor_database() -> None:
    code = "import afterwords.server.dispatch.worker, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"fastapi", "starlette", "sqlalchemy", "obstore", "httpx", "uvicorn", "asyncio"}
