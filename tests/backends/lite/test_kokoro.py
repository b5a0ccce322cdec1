"""The network: pitch control, products; its file when damaged, assembled concurrently, or without disk space."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from errno import EACCES
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from afterwords.audio.analysis import Pitch, measure_pitch
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import (
    PARTS,
    PITCHED_SHA256,
    PRODUCTS_SHA256,
    SAMPLE_RATE,
    Kokoro,
    KokoroOutput,
    PitchTarget,
    add_pitch_control,
    assemble,
    has_exact_products,
    model_file,
    pitch_stats,
)
from afterwords.backends.lite.styles import style_space
from afterwords.config import load_config
from afterwords.errors import FileError, ModelError
from afterwords.models import SpeechTask
from tests.lite_voice import Enrolment

EXPECTED_SHA256 = PRODUCTS_SHA256 if has_exact_products() else PITCHED_SHA256
MAKE = "import sys; from pathlib import Path; from afterwords.backends.lite.kokoro import model_file;"


def say(kokoro: Kokoro, pitch: PitchTarget | None = None) -> KokoroOutput:
    ids, space = tokens("The boy was there when the sun rose early."), style_space()
    return kokoro.speak(ids, space.voices[space.names.index("am_michael")][len(ids) - 1], pitch)


def pitch_of(utterance: KokoroOutput) -> Pitch:
    return measure_pitch(utterance.samples, SAMPLE_RATE)


@pytest.fixture(scope="module")
def high(kokoro: Kokoro) -> KokoroOutput:
    return say(kokoro, PitchTarget(150))


def packaged_graph() -> bytes:
    folders = [Path(str(spec.origin)).parent for name in PARTS if (spec := find_spec(name))]
    return b"".join((folder / "part.bin").read_bytes() for folder in folders)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- pitch ---------------------------------------------------------------------------------------------------


def test_output_has_the_requested_pitch(kokoro: Kokoro, high: KokoroOutput) -> None:
    low = pitch_of(say(kokoro, PitchTarget(100)))
    assert pitch_of(high).median_hz / low.median_hz == pytest.approx(1.5, rel=0.08)
    assert low.median_hz == pytest.approx(100, rel=0.12)


def test_pitch_range_follows_its_factor(kokoro: Kokoro, high: KokoroOutput) -> None:
    flat = say(kokoro, PitchTarget(150, range_scale=0.3))
    assert pitch_of(flat).spread_st < 0.6 * pitch_of(high).spread_st
    assert pitch_of(flat).median_hz == pytest.approx(150, rel=0.12)


def test_raw_pitch_ignores_the_request(kokoro: Kokoro, high: KokoroOutput) -> None:
    free = say(kokoro)
    np.testing.assert_array_equal(free.raw_pitch, high.raw_pitch)
    assert pitch_stats(free.raw_pitch)[0] == pytest.approx(pitch_of(free).median_hz, rel=0.1)


def test_given_source_keeps_distance_between_utterances(kokoro: Kokoro, high: KokoroOutput) -> None:
    own_hz, _ = pitch_stats(high.raw_pitch)
    at_source = say(kokoro, PitchTarget(150, source_hz=own_hz))
    below_source = say(kokoro, PitchTarget(150, source_hz=own_hz * 1.25))
    assert pitch_of(at_source).median_hz == pytest.approx(pitch_of(high).median_hz, rel=0.02)
    assert pitch_of(high).median_hz / pitch_of(below_source).median_hz == pytest.approx(1.25, rel=0.08)


def test_pitch_statistics_skip_unvoiced_frames() -> None:
    median_hz, spread_st = pitch_stats(np.array([0, 100, 200, 0, 12], np.float32))
    assert median_hz == pytest.approx(np.sqrt(100 * 200))
    assert spread_st == pytest.approx(6.0, rel=1e-4)
    assert pitch_stats(np.zeros(3, np.float32)) == (0.0, 0.0)


# -- matrix products -----------------------------------------------------------------------------------------


def test_products_speak_as_the_convolutions_do(tmp_path: Path, high: KokoroOutput) -> None:
    path = tmp_path / "pitched.onnx"
    path.write_bytes(assemble())
    convolved = say(Kokoro(path), PitchTarget(150))
    np.testing.assert_array_equal(high.frames, convolved.frames)
    np.testing.assert_allclose(high.raw_pitch, convolved.raw_pitch, rtol=0.02, atol=1.0)
    assert np.corrcoef(high.samples, convolved.samples)[0, 1] > 0.95


def test_processor_without_exact_products_convolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, because the processor is what it is.
    monkeypatch.setattr("afterwords.backends.lite.kokoro.has_exact_products", lambda: False)
    assert hashlib.sha256(model_file(tmp_path).read_bytes()).hexdigest() == PITCHED_SHA256


# -- the model file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip_a_byte, lambda path: path.write_bytes(b"")])
def test_damaged_model_file_is_assembled_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = model_file(tmp_path)
    damage(path)
    Kokoro.load(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == EXPECTED_SHA256


def test_unreadable_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("products", "pitched"):
        (tmp_path / f"kokoro-82m-int8-{name}.onnx").touch()

    def refuse(_: Path) -> bytes:  # root reads every file
        raise PermissionError(EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FileError, match=r"kokoro\S+ can't be read: permission denied"):
        Kokoro.load(tmp_path)


def test_joined_export_gives_the_same_file(tmp_path: Path) -> None:
    override = tmp_path / "kokoro.onnx"
    override.write_bytes(packaged_graph())
    assert hashlib.sha256(model_file(tmp_path, override).read_bytes()).hexdigest() == EXPECTED_SHA256


def test_only_assembling_the_file_reports_progress(tmp_path: Path) -> None:
    steps: list[str] = []
    for _ in range(2):
        model_file(tmp_path, progress=lambda _, step: steps.append(step))
    assert steps == ["assembling the model file"]


def test_damaged_export_is_refused_without_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    override = home / "kokoro.onnx"
    override.write_bytes(packaged_graph())
    flip_a_byte(override)
    monkeypatch.setenv("AFTERWORDS_KOKORO_ONNX", str(override))
    (home / "models").unlink()
    with pytest.raises(ModelError, match="SHA-256") as caught:
        model_file(home / "models", load_config().kokoro_onnx)
    assert "AFTERWORDS_KOKORO_ONNX" in caught.value.hint
    assert not list((home / "models").glob("*.onnx*"))


def test_missing_export_error_names_it(home: Path, monkeypatch: pytest.MonkeyPatch, enrolment: Enrolment) -> None:
    monkeypatch.setenv("AFTERWORDS_KOKORO_ONNX", "/nowhere/kokoro.onnx")
    (home / "models").unlink()
    task = SpeechTask(text="Hello.", lang="en", backend="lite", voice_id="1", prompt=enrolment.prompt)
    with pytest.raises(ModelError, match=r"/nowhere/kokoro\.onnx can't be read"):
        list(LiteEngine().synthesize(task))


def test_graph_without_pitch_curve_is_refused() -> None:
    with pytest.raises(ModelError, match="no pitch curve"):
        add_pitch_control(b"some other graph")


def test_two_processes_assemble_the_model_once(tmp_path: Path) -> None:
    code = f"{MAKE} print(model_file(Path({str(tmp_path)!r})))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest() == EXPECTED_SHA256
    assert paths[0] == paths[1]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk_error_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000));"
        f"{MAKE} model_file(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "StorageFullError" in done.stderr
    assert not list(tmp_path.glob("*.onnx*"))
