"""The profile as bytes: round trip and validation."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from afterwords.backends.lite.kokoro import PitchTarget
from afterwords.backends.lite.profile import LiteProfile
from afterwords.backends.lite.shaping import CepstralMap
from afterwords.backends.lite.styles import ROWS, WIDTH

STATS = np.linspace(-3, 3, 48, dtype=np.float32).reshape(4, 12)
PROFILE = LiteProfile(
    style=np.sin(np.arange(ROWS * WIDTH, dtype=np.float32)).reshape(ROWS, WIDTH),
    pitch=PitchTarget(118.5, 131.25, 0.9),
    equalizer_db=np.linspace(-8, 8, 513, dtype=np.float32),
    cepstra=CepstralMap(*STATS),
    gain=1.25,
    similarity=0.8123,
    baseline=0.6,
    nearest_stock="am_michael",
)


class Evil:
    """Record whether it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def changed(**entries: Any) -> bytes:
    """Return the profile with changed entries; "facts" are merged, and None removes an entry."""
    with np.load(io.BytesIO(PROFILE.to_bytes())) as stored:
        arrays = {name: stored[name] for name in stored.files}
    facts = json.loads(arrays["facts"].tobytes()) | entries.pop("facts", {})
    kept = {name: value for name, value in facts.items() if value is not None}
    out = io.BytesIO()
    arrays["facts"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)
    np.savez(out, allow_pickle=True, **arrays | entries)
    return out.getvalue()


def bomb(style: np.ndarray[Any, Any], *, shape: str | None = None) -> bytes:
    """Return a small profile whose style unpacks to much more or declares another shape."""
    entry = io.BytesIO()
    np.save(entry, style)
    content = entry.getvalue()
    if shape is not None:
        content = content.replace(b"(16,), }" + b" " * (len(shape) - 5), f"{shape}, }}".encode(), 1)
        assert shape.encode() in content
    out = io.BytesIO(PROFILE.to_bytes())
    with zipfile.ZipFile(out) as whole:
        others = {name: whole.read(name) for name in whole.namelist() if name != "style.npy"}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*others.items(), ("style.npy", content)]:
            archive.writestr(name, data)
    return out.getvalue()


def test_profile_round_trips() -> None:
    back = LiteProfile.from_bytes(PROFILE.to_bytes())
    assert (back.pitch, back.gain, back.nearest_stock) == (PROFILE.pitch, PROFILE.gain, PROFILE.nearest_stock)
    assert (back.similarity, back.baseline) == (PROFILE.similarity, PROFILE.baseline)
    np.testing.assert_allclose(back.style, PROFILE.style, atol=2e-3)
    np.testing.assert_allclose(back.equalizer_db, PROFILE.equalizer_db, atol=4e-3)
    np.testing.assert_array_equal(back.cepstra.speaker_std, STATS[3])


def test_pitch_without_source_round_trips() -> None:
    assert LiteProfile.from_bytes(changed(facts={"pitch": [100.0, None, 1.0]})).pitch == PitchTarget(100.0)


def test_profile_fits_into_a_bundle() -> None:
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
        bomb(np.zeros(1 << 24, np.uint8)),
        bomb(np.zeros(16, np.float16), shape="(1099511627776,)"),
        changed(style=np.full((510, 256), "x")),
    ],
    ids=[
        *("nothing", "a wav", "cut", "cut short", "a pickle", "a pickle within"),
        *("a bomb", "an array that says it is huge", "no numbers"),
    ],
)
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a profile"):
        LiteProfile.from_bytes(content)


def test_older_version_is_named() -> None:
    with pytest.raises(ValueError, match="version 0, not 3"):
        LiteProfile.from_bytes(changed(facts={"version": "0"}))


@pytest.mark.parametrize(
    "content",
    [
        changed(facts={"gain": None}),
        changed(facts={"gain": float("nan")}),
        changed(facts={"pitch": [100.0, "high", 1.0]}),
        changed(facts={"pitch": 100.0}),
        changed(facts={"nearest_stock": "x" * 1000}),
        changed(style=np.zeros((3, 256), np.float16)),
        changed(cepstra=np.zeros((4, 11), np.float32)),
        changed(equaliser_db=np.full(513, np.nan, np.float16)),
    ],
    ids=[
        "no gain",
        "gain no number",
        "pitch in words",
        "one pitch",
        "long name",
        "short style",
        "narrow cepstra",
        "not a number",
    ],
)
def test_damaged_profile_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        LiteProfile.from_bytes(content)
