"""The profile as bytes: what comes back, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest

from afterwords.backends.lite.kokoro import PitchTarget
from afterwords.backends.lite.profile import Profile
from afterwords.backends.lite.shaping import CepstralMap
from afterwords.backends.lite.styles import style_space

STATS = np.linspace(-3, 3, 48, dtype=np.float32).reshape(4, 12)
PROFILE = Profile(
    style=style_space().voices[3],
    pitch=PitchTarget(118.5, 131.25, 0.9),
    equaliser_db=np.linspace(-8, 8, 513, dtype=np.float32),
    cepstra=CepstralMap(*STATS),
    gain=1.25,
    similarity=0.8123,
    baseline=0.6,
    nearest_stock="am_michael",
)


class Evil:
    """Would tell if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def changed(**entries: Any) -> bytes:
    """The profile with other entries; "facts" are merged into its own, and None takes one out."""
    with np.load(io.BytesIO(PROFILE.to_bytes())) as stored:
        arrays = {name: stored[name] for name in stored.files}
    facts = json.loads(arrays["facts"].tobytes()) | entries.pop("facts", {})
    kept = {name: value for name, value in facts.items() if value is not None}
    out = io.BytesIO()
    arrays["facts"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)
    np.savez(out, allow_pickle=True, **arrays | entries)
    return out.getvalue()


def test_a_profile_comes_back_as_it_was() -> None:
    back = Profile.from_bytes(PROFILE.to_bytes())
    assert (back.pitch, back.gain, back.nearest_stock) == (PROFILE.pitch, PROFILE.gain, PROFILE.nearest_stock)
    assert (back.similarity, back.baseline) == (PROFILE.similarity, PROFILE.baseline)
    np.testing.assert_allclose(back.style, PROFILE.style, atol=2e-3)
    np.testing.assert_allclose(back.equaliser_db, PROFILE.equaliser_db, atol=4e-3)
    np.testing.assert_array_equal(back.cepstra.speaker_std, STATS[3])


def test_a_pitch_without_a_source_comes_back_without_one() -> None:
    assert Profile.from_bytes(changed(facts={"pitch": [100.0, None, 1.0]})).pitch == PitchTarget(100.0)


def test_it_is_small_enough_to_travel_with_a_voice() -> None:
    assert len(PROFILE.to_bytes()) < 400_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF" + bytes(100),
        PROFILE.to_bytes()[:-100],
        PROFILE.to_bytes()[:2000],
        pickle.dumps(Evil()),
        changed(style=np.array([Evil()], object)),
    ],
    ids=["nothing", "a wav", "cut", "cut short", "a pickle", "a pickle within"],
)
def test_foreign_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a profile"):
        Profile.from_bytes(content)


def test_an_older_version_is_named() -> None:
    with pytest.raises(ValueError, match="version 0, not 1"):
        Profile.from_bytes(changed(facts={"version": "0"}))


@pytest.mark.parametrize(
    "content",
    [
        changed(facts={"gain": None}),
        changed(style=np.zeros((3, 256), np.float16)),
        changed(cepstra=np.zeros((4, 11), np.float32)),
        changed(equaliser_db=np.full(513, np.nan, np.float16)),
    ],
    ids=["no gain", "short style", "narrow cepstra", "not a number"],
)
def test_a_profile_with_something_amiss_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Profile.from_bytes(content)
