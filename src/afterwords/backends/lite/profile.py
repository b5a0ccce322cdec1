"""The profile of a voice: the prompt of the lite engine, created by `enroll` from the reference."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from math import prod
from typing import Any, Final
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.base import InvalidPromptError
from afterwords.backends.lite import PROMPT_VERSION
from afterwords.backends.lite.kokoro import PitchTarget
from afterwords.backends.lite.shaping import CEPSTRA, TAPS, CepstralMap
from afterwords.backends.lite.styles import ROWS, WIDTH

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LiteProfile:
    """The parameters of a voice.

    Attributes:
        style: The style for each length of text, shape (510, 256).
        pitch: The pitch.
        equalizer_db: Gain of the equalizer, shape (513,).
        cepstra: The envelope map.
        gain: Gain to the loudness of the engine.
        similarity: GE2E cosine of calibration speech to the reference; same speaker ≈ 0.92, another ≈ 0.58.
        baseline: The same for the unchanged nearest stock voice.
        nearest_stock: Name of that stock voice.
    """

    style: Array
    pitch: PitchTarget
    equalizer_db: Array
    cepstra: CepstralMap
    gain: float
    similarity: float
    baseline: float
    nearest_stock: str

    def to_bytes(self) -> bytes:
        facts = {
            "version": PROMPT_VERSION,
            "pitch": [self.pitch.target_hz, self.pitch.source_hz, self.pitch.range_scale],
            "gain": self.gain,
            "similarity": round(self.similarity, 4),
            "baseline": round(self.baseline, 4),
            "nearest_stock": self.nearest_stock,
        }
        out = io.BytesIO()
        np.savez_compressed(
            out,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            style=self.style.astype(np.float16),
            equaliser_db=self.equalizer_db.astype(np.float16),
            cepstra=np.stack([getattr(self.cepstra, name) for name in _CEPSTRAL_FIELDS]).astype(np.float32),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> LiteProfile:
        """Read untrusted bytes of a profile.

        Raises:
            InvalidPromptError: The bytes are not a profile of this version.
        """
        try:
            with ZipFile(io.BytesIO(content)) as stored:
                facts: dict[str, Any] = json.loads(_array(stored, "facts", max_bytes=_FACTS_MAX_BYTES).tobytes())
                version = facts["version"]
                arrays = {name: _array(stored, name, max_bytes=8 * prod(shape)) for name, shape in _SHAPES.items()}
        except Exception as error:  # untrusted bytes fail in many ways
            raise InvalidPromptError("not a profile") from error
        if version != PROMPT_VERSION:
            found = ascii(version)[:40].strip("'")
            raise InvalidPromptError(f"a profile of version {found}, not {PROMPT_VERSION}")
        shapes = {name: array.shape for name, array in arrays.items()}
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        if shapes != _SHAPES or not _are_valid(facts) or not all(np.isfinite(a).all() for a in arrays.values()):
            raise InvalidPromptError("a damaged profile")
        return cls(
            style=arrays["style"],
            pitch=PitchTarget(*facts["pitch"]),
            equalizer_db=arrays["equaliser_db"],
            cepstra=CepstralMap(**dict(zip(_CEPSTRAL_FIELDS, arrays["cepstra"], strict=True))),
            gain=facts["gain"],
            similarity=facts["similarity"],
            baseline=facts["baseline"],
            nearest_stock=facts["nearest_stock"],
        )


def _array(stored: ZipFile, name: str, *, max_bytes: int) -> NDArray[Any]:
    """Return an array of an untrusted npz file without unpacking or allocating more than `max_bytes`."""
    info = stored.getinfo(f"{name}.npy")
    if info.file_size > max_bytes + _NPY_HEADER_MAX_BYTES:
        raise ValueError("too large")
    file = io.BytesIO(stored.read(info))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an array of version 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "fu":
        raise ValueError("not numeric")
    return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if is_fortran else "C")


def _are_valid(facts: dict[str, Any]) -> bool:
    """Return whether all facts are in range."""
    if not facts.keys() >= _FACTS or not isinstance(facts["pitch"], list) or len(facts["pitch"]) != 3:
        return False
    target_hz, source_hz, range_scale = facts["pitch"]
    return (
        all(_is_within(hz, 20, 2000) for hz in (target_hz, target_hz if source_hz is None else source_hz))
        and _is_within(range_scale, 0.01, 100)
        and _is_within(facts["gain"], 1e-6, 1e6)
        and all(_is_within(facts[name], -1.001, 1.001) for name in ("similarity", "baseline"))
        and isinstance(facts["nearest_stock"], str)
        and len(facts["nearest_stock"]) <= 64
    )


def _is_within(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and least <= value <= most


_SHAPES: Final = {"style": (ROWS, WIDTH), "equaliser_db": (TAPS // 2 + 1,), "cepstra": (4, CEPSTRA)}
_FACTS_MAX_BYTES: Final = 4096
_NPY_HEADER_MAX_BYTES: Final = 1024
_FACTS: Final = {"pitch", "gain", "similarity", "baseline", "nearest_stock"}
_CEPSTRAL_FIELDS: Final = ("spoken_mean", "spoken_std", "speaker_mean", "speaker_std")
