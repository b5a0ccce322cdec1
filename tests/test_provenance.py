"""The seal of a voice and the mark of synthetic speech in a file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import afterwords
from afterwords.models import Consent, ConsentKind, Provenance, ReferenceInfo, Voice
from afterwords.provenance import Mark, mark_tags, read_mark, seal, verify, verify_seal

WHEN = datetime(2026, 11, 22, 12, 0, 0, 123456, UTC)
CONSENT = Consent(kind=ConsentKind.SELF, stated_at=WHEN)


def sealed_voice() -> Voice:
    return Voice(
        name="me",
        backend="lite",
        reference=ReferenceInfo(sha256="a" * 64, duration_s=12.5, sample_rate=24_000, grade="A"),
        consent=CONSENT,
        provenance=seal(reference_sha256="a" * 64, original_sha256="b" * 64, window_start_s=1, consent=CONSENT),
    )


# -- the seal ------------------------------------------------------------------------------------------------


def test_sealed_voice_verifies() -> None:
    voice = sealed_voice()
    assert voice.provenance is not None
    assert voice.provenance.software == f"afterwords {afterwords.__version__}"
    assert verify_seal(voice)


def test_seal_survives_json() -> None:
    assert verify_seal(Voice.model_validate_json(sealed_voice().model_dump_json()))


def test_renaming_keeps_the_seal_valid() -> None:
    assert verify_seal(sealed_voice().model_copy(update={"name": "other"}))


@pytest.mark.parametrize(
    "change",
    [
        {"original_sha256": "c" * 64},
        {"window_start_s": 1.5},
        {"software": "afterwords 9"},
        {"sealed_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"seal": "0" * 64},
    ],
)
def test_changed_field_breaks_the_seal(change: dict[str, object]) -> None:
    voice = sealed_voice()
    assert isinstance(voice.provenance, Provenance)
    assert not verify_seal(voice.model_copy(update={"provenance": voice.provenance.model_copy(update=change)}))


@pytest.mark.parametrize(
    "change",
    [
        {"reference": ReferenceInfo(sha256="d" * 64, duration_s=12.5, sample_rate=24_000, grade="A")},
        {"consent": Consent(kind=ConsentKind.SYNTHETIC, stated_at=WHEN)},
        {"consent": Consent(kind=ConsentKind.SELF, stated_at=datetime(2020, 1, 1, tzinfo=UTC))},
        {"consent": None},
        {"provenance": None},
    ],
)
def test_exchanged_recording_or_consent_breaks_the_seal(change: dict[str, object]) -> None:
    assert not verify_seal(sealed_voice().model_copy(update=change))


# -- the mark ------------------------------------------------------------------------------------------------


def test_mark_is_one_readable_line() -> None:
    tags = mark_tags(backend="lite", voice_name="me", voice_id="11-22", made_at=WHEN)
    assert tags == {
        "title": "Synthetic speech",
        "artist": "me",
        "comment": "Synthetic speech. digitalSourceType=trainedAlgorithmicMedia; "
        f'generator=afterwords/{afterwords.__version__}; backend=lite; voice="me"; voice_id=11-22; '
        "made_at=2026-11-22T12:00:00.123Z",
        "software": f"afterwords {afterwords.__version__}",
        "date": "2026-11-22",
    }


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_mark_survives_any_name(voice_name: str, voice_id: str) -> None:
    tags = mark_tags(backend="qwen3-1.7b", voice_name=voice_name, voice_id=voice_id, made_at=WHEN)
    found = read_mark(tags)
    assert tags["comment"].isascii()
    assert tags["comment"].isprintable()
    assert found == Mark(
        is_synthetic=True,
        generator=f"afterwords/{afterwords.__version__}",
        backend="qwen3-1.7b",
        voice_name=voice_name,
        voice_id=voice_id,
        made_at=WHEN.replace(microsecond=123_000),
    )


def test_voice_name_cannot_forge_a_field() -> None:
    name = 'me"; backend=other; digitalSourceType=humanEdits; x="'
    found = read_mark(mark_tags(backend="lite", voice_name=name, voice_id="1", made_at=WHEN))
    assert found is not None
    assert (found.is_synthetic, found.backend, found.voice_name) == (True, "lite", name)


@pytest.mark.parametrize("length", [60, 75, 100, 115, 125, 160, 170, 190])
def test_truncated_mark_still_says_synthetic(length: int) -> None:
    comment = mark_tags(backend="lite", voice_name="me;\"'", voice_id="11-22", made_at=WHEN)["comment"]
    found = read_mark({"comment": comment[:length]})
    assert found is not None
    assert found.is_synthetic


@pytest.mark.parametrize("tags", [{}, {"comment": "a song"}, {"title": "Synthetic speech"}, {"comment": '="\\'}])
def test_tags_without_a_mark_return_none(tags: dict[str, str]) -> None:
    assert read_mark(tags) is None


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus"])
def test_verify_reads_the_mark_of_a_file(tmp_path: Path, suffix: str) -> None:
    from afterwords.audio.audio import Audio

    tone = (np.sin(np.arange(24_000) / 20) / 4).astype(np.float32)
    voice = sealed_voice().model_copy(update={"name": 'Zoë "声"; x'})
    tags = mark_tags(backend="lite", voice_name=voice.name, voice_id=voice.voice_id, made_at=WHEN)
    Audio(samples=tone, sample_rate=24_000, tags=tags).save(tmp_path / f"out{suffix}")
    found = verify(tmp_path / f"out{suffix}")
    assert found is not None
    assert (found.is_synthetic, found.voice_name, found.voice_id) == (True, voice.name, voice.voice_id)


def test_file_of_another_program_has_no_mark(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "plain.wav", np.zeros(24_000, np.float32), 24_000)
    assert verify(tmp_path / "plain.wav") is None
