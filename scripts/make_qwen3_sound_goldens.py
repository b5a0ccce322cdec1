"""Write what the reference package makes of sounds and codes with the tiny checkpoint; tests compare with it.

Run it in the environment that `make_qwen3_goldens` describes: `python -m scripts.make_qwen3_sound_goldens`. The version
of transformers counts: later ones make other codes from 10.2 s on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scripts.make_qwen3_goldens import GOLDENS, load_reference, stub_unused_tokenizer
from scripts.make_qwen3_tiny import N_CODE_GROUPS, N_CODES, make_checkpoint

CLIPS: Final = {"short": (2.4, 24_000), "odd": (1.2345, 24_000), "long": (12.0, 24_000), "slow": (2.4, 16_000)}
"""Seconds and rate in Hz. The long one exceeds 10.2 s, from where a window in the encoder would change codes."""
N_FRAMES: Final = {"short": 12, "long": 300}
EVERY: Final = {"short": 1, "long": 13}
"""Which samples of the decoded sound are kept, so that the file stays small."""


def clip(name: str) -> NDArray[np.float32]:
    """Return a recording that is the same on every machine: a sawtooth in noise, of whole numbers only."""
    seconds, rate = CLIPS[name]
    n_samples = int(seconds * rate)
    noise = np.random.Generator(np.random.PCG64(n_samples)).integers(-6000, 6000, n_samples)
    return ((noise + np.arange(n_samples) * 90 % 16_000 - 8000) / 32_768).astype(np.float32)


def codes(name: str) -> NDArray[np.int64]:
    """Codes of shape (2, n_frames, 16)."""
    generator = np.random.Generator(np.random.PCG64(N_FRAMES[name]))
    return generator.integers(0, N_CODES, (2, N_FRAMES[name], N_CODE_GROUPS))


def write_goldens(folder: Path) -> None:
    """Write `sound.npz`: codes and embedding of each clip, and the sound of each set of codes as int16."""
    stub_unused_tokenizer()
    import torch

    with tempfile.TemporaryDirectory() as made:
        model = load_reference(make_checkpoint(Path(made))).model
    goldens: dict[str, NDArray[Any]] = {}
    for name, (_, rate) in CLIPS.items():
        encoded = model.speech_tokenizer.encode(clip(name), sr=rate)
        goldens[f"codes_{name}"] = encoded.audio_codes[0].numpy().astype(np.uint8)
        if rate == 24_000:
            goldens[f"speaker_{name}"] = model.extract_speaker_embedding(clip(name), rate).numpy()
    for name, every in EVERY.items():
        with torch.no_grad():
            sound = model.speech_tokenizer.model.decoder(torch.from_numpy(codes(name)).transpose(1, 2))[:, 0, ::every]
        goldens[f"sound_{name}"] = np.round(sound.numpy() * 32_767).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "sound.npz", allow_pickle=False, **goldens)


if __name__ == "__main__":
    write_goldens(GOLDENS)
