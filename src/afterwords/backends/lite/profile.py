"""The profile of a voice: all that the lite engine needs to speak with it, as bytes that can be kept.

This is the engine's prompt: made by `enrol` from the reference recording, and made again whenever it is lost.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.lite import PROMPT_VERSION
from afterwords.backends.lite.kokoro import PitchTarget
from afterwords.backends.lite.shaping import CEPSTRA, TAPS, CepstralMap
from afterwords.backends.lite.styles import ROWS, WIDTH

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """How to speak with a voice.

    Attributes:
        style: the style for each length of text, shape (510, 256).
        pitch: where its pitch lies.
        equaliser_db: gain of the equaliser, shape (513,).
        cepstra: the envelope map.
        gain: brings speech to the engine's loudness.
        similarity: GE2E cosine of calibration speech to the reference; same speaker ≈ 0.92, another ≈ 0.58.
        baseline: the same for the nearest stock voice as it is.
        nearest_stock: the name of that stock voice.
    """

    style: Array
    pitch: PitchTarget
    equaliser_db: Array
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
            equaliser_db=self.equaliser_db.astype(np.float16),
            cepstra=np.stack([getattr(self.cepstra, name) for name in _CEPSTRAL_FIELDS]).astype(np.float32),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Profile:
        """Read a profile.

        Raises:
            ValueError: these bytes are not a profile of this version.
        """
        facts, arrays = _read(content)
        return cls(
            style=arrays["style"],
            pitch=PitchTarget(*facts["pitch"]),
            equaliser_db=arrays["equaliser_db"],
            cepstra=CepstralMap(**dict(zip(_CEPSTRAL_FIELDS, arrays["cepstra"], strict=True))),
            gain=facts["gain"],
            similarity=facts["similarity"],
            baseline=facts["baseline"],
            nearest_stock=facts["nearest_stock"],
        )


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts and the arrays in a profile, each as it should be."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            facts: dict[str, Any] = json.loads(stored["facts"].tobytes())
            version = facts["version"]
            arrays = {name: stored[name].astype(np.float32) for name in _SHAPES}
    except Exception as error:  # a plug-in's reader at the edge: foreign bytes fail in many ways
        raise ValueError("not a profile") from error
    if version != PROMPT_VERSION:
        raise ValueError(f"a profile of version {version}, not {PROMPT_VERSION}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != _SHAPES or not facts.keys() >= _FACTS or not all(np.isfinite(a).all() for a in arrays.values()):
        raise ValueError("a damaged profile")
    return facts, arrays


_SHAPES: Final = {"style": (ROWS, WIDTH), "equaliser_db": (TAPS // 2 + 1,), "cepstra": (4, CEPSTRA)}
_FACTS: Final = {"pitch", "gain", "similarity", "baseline", "nearest_stock"}
_CEPSTRAL_FIELDS: Final = ("spoken_mean", "spoken_std", "speaker_mean", "speaker_std")
