"""The prompt of a voice: the latents of its recording, which the model continues.

10 s are 8 KB, where the state that the model computes from them has 6 MB. A prompt is a cache: one of other weights or
of another version of the package is refused and made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.base import InvalidPromptError

MAX_BYTES = 1 << 17
"""More than the latents of two minutes."""


@dataclass(frozen=True, slots=True)
class PocketPrompt:
    """A voice.

    Attributes:
        latents: float16 of shape (n_frames, n_latents), 12.5 frames per second.
        similarity: Cosine of speaker embeddings of the recording and of two spoken sentences; None if not measured.
    """

    latents: NDArray[np.float16] = field(repr=False)
    similarity: float | None = None

    def to_bytes(self, version: str) -> bytes:
        """Serialize the prompt, for one version of the engine's prompts."""
        from safetensors.numpy import save

        facts = {"version": version}
        if self.similarity is not None:
            facts["similarity"] = f"{self.similarity:.4f}"
        return save({"latents": self.latents}, metadata=facts)

    @classmethod
    def from_bytes(cls, content: bytes, version: str) -> PocketPrompt:
        """Read a serialized prompt.

        Raises:
            InvalidPromptError: It is of another version, or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:  # the header of safetensors: JSON after its length in 8 bytes
            if len(content) > MAX_BYTES:
                raise ValueError
            latents = load(content)["latents"]
            facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            similarity = float(facts["similarity"]) if "similarity" in facts else None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InvalidPromptError("not a prompt for pocket: it can't be read") from error
        if facts.get("version") != version:
            raise InvalidPromptError(f"of version {facts.get('version')!a}, not {version!a}")
        if similarity is not None and not abs(similarity) <= 1.001:  # also NaN, which JSON can't hold
            raise InvalidPromptError("not a prompt for pocket: its similarity is not a cosine")
        if latents.dtype != np.float16 or latents.ndim != 2 or not latents.size or not np.isfinite(latents).all():
            raise InvalidPromptError("not a prompt for pocket: its latents are damaged")
        return cls(latents, similarity)
