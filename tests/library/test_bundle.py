"""Bundles: deterministic bytes, and strict validation."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.audio.wav import canonical_wav, wav_header
from afterwords.errors import InvalidBundleError
from afterwords.library.bundle import BUNDLE_MAX_BYTES, PROMPT_MAX_BYTES, BundledPrompt, pack, unpack
from afterwords.models import Consent, ConsentKind, ReferenceInfo, Voice
from afterwords.provenance import seal, verify_seal

RATE = 8_000  # Hz; the lowest that is taken keeps the files small
WAV = canonical_wav((0.5 * np.sin(np.arange(5 * RATE) / 6)).astype(np.float32), RATE)
OTHER_WAV = canonical_wav((0.4 * np.sin(np.arange(5 * RATE) / 6)).astype(np.float32), RATE)
CONSENT = Consent(kind=ConsentKind.SELF, stated_at="2026-11-22T12:00:00Z")  # type: ignore[arg-type]


def voice(**changes: object) -> Voice:
    digest = sha256(WAV).hexdigest()
    facts: dict[str, Any] = {
        "voice_id": "0c6f2f0e-8a5d-4c4e-9a53-0c1d9a2b3c4d",
        "name": "Zoë 声",
        "backend": "qwen3-1.7b",
        "lang": "en",
        "ref_text": "Good morning. – Guten Morgen.",
        "family": "zoe",
        "reference": ReferenceInfo(sha256=digest, duration_s=5, sample_rate=RATE, grade="A"),
        "consent": CONSENT,
        "provenance": seal(reference_sha256=digest, original_sha256="b" * 64, window_start_s=1.5, consent=CONSENT),
        "created_at": "2026-11-22T12:00:00.123Z",
        "metadata": {"mood": "calm", "deep": [{"n": 1.5}], "windows": "C:\\u0000"},
    }
    return Voice.model_validate({**facts, **changes})


VOICE = voice()
GOOD = pack(VOICE, WAV)


def members(data: bytes = GOOD) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a ZIP as another program writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def forged(change: Callable[[dict[str, Any]], object], *, reference: bytes = WAV) -> bytes:
    """Return a bundle with consistent checksums."""
    parts = members()
    stated = json.loads(parts["manifest.json"])
    parts["reference.wav"] = reference
    stated["members"]["reference.wav"] = {"sha256": sha256(reference).hexdigest(), "size_bytes": len(reference)}
    change(stated)
    return repacked(parts | {"manifest.json": json.dumps(stated).encode()})


def repacked(parts: dict[str, bytes]) -> bytes:
    from afterwords.library.bundle import _archive  # to make what no other program writes

    return b"".join(_archive(parts))


def refused(data: bytes) -> str:
    with pytest.raises(InvalidBundleError) as error:
        unpack(data)
    return error.value.message


# -- there and back ------------------------------------------------------------------------------------------


def contents(data: bytes) -> tuple[Voice, bytes]:
    bundle = unpack(data)
    return bundle.voice, bundle.wav


def test_voice_round_trips() -> None:
    found, wav = contents(GOOD)
    assert found == VOICE
    assert wav == WAV
    assert verify_seal(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"ref_text": None},
        {"consent": None, "provenance": None},
        {"provenance": None},
        {"family": None, "metadata": {}, "backend": "lite"},
        {"reference": ReferenceInfo(sha256=sha256(WAV).hexdigest(), duration_s=5.0004, sample_rate=RATE)},
    ],
    ids=["no transcript", "no consent", "no seal", "least", "no grade"],
)
def test_missing_facts_stay_missing(changes: dict[str, object]) -> None:
    packed = voice(**changes)
    assert contents(pack(packed, WAV)) == (packed, WAV)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé声\\u0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\\"), inner, max_size=3),
)


@given(st.dictionaries(st.text("abü"), _JSON), st.text('ab .,é声\n"\\', min_size=1).filter(lambda s: "a" in s))
def test_any_metadata_and_transcript_round_trip(metadata: dict[str, Any], ref_text: str) -> None:
    packed = voice(metadata=metadata, ref_text=ref_text)
    assert unpack(pack(packed, WAV)).voice == packed


def test_equal_voices_give_equal_bytes_in_any_process() -> None:
    assert pack(VOICE.model_copy(), WAV) == GOOD
    saw = wav_header(RATE, n_frames=5 * RATE) + bytes(range(256)) * 312 + bytes(128)
    facts = ReferenceInfo(sha256=sha256(saw).hexdigest(), duration_s=5, sample_rate=RATE)
    packed = pack(voice(provenance=None, reference=facts), saw)
    assert unpack(packed).wav == saw
    assert sha256(packed).hexdigest() == "6faf3535650844cfa925d4e647782674fa7a40888a2efc114505f3f94602dabb"


def test_unzip_programs_open_it() -> None:
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "reference.wav", "transcript.txt"]
        assert archive.read("reference.wav") == WAV
        assert archive.read("transcript.txt").decode() == VOICE.ref_text


def test_manifest_has_format_checksums_and_voice() -> None:
    stated = json.loads(members()["manifest.json"])
    assert (stated["format"], stated["version"]) == ("afterwords-voice", 1)
    assert stated["members"]["reference.wav"] == {"sha256": sha256(WAV).hexdigest(), "size_bytes": len(WAV)}
    assert stated["members"].keys() == {"reference.wav", "transcript.txt"}
    assert stated["voice"] == VOICE.model_dump(mode="json", exclude={"ref_text", "status"})


def test_recording_of_another_voice_is_not_packed() -> None:
    with pytest.raises(ValueError, match="does not match"):
        pack(VOICE, OTHER_WAV)


# -- one byte ------------------------------------------------------------------------------------------------

_END = len(GOOD) - 400  # where the directory begins, about


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize(
    "positions",
    [range(0, 3_000), range(3_000, len(GOOD), 211), range(_END, len(GOOD))],
    ids=["manifest", "sound", "directory"],
)
def test_any_changed_byte_is_detected(positions: range, change: int) -> None:
    altered = bytearray(GOOD)
    for position in positions:
        altered[position] ^= change
        with pytest.raises(InvalidBundleError):
            unpack(bytes(altered))
        altered[position] ^= change


@pytest.mark.parametrize("length", [0, 1, 4, 30, 50, 1_000, len(GOOD) // 2, len(GOOD) - 22, len(GOOD) - 1])
def test_truncated_file_is_refused(length: int) -> None:
    refused(GOOD[:length])


@pytest.mark.parametrize(
    "data", [GOOD + b"\0", b"\0" + GOOD, GOOD + GOOD, WAV, b"{}", b"PK\3\4", b"PK\5\6" + bytes(18)]
)
def test_other_data_and_trailing_bytes_are_refused(data: bytes) -> None:
    refused(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(noise: bytes) -> None:
    refused(noise)
    refused(GOOD[:30] + noise)
    refused(GOOD[:-40] + noise)


# -- untrusted files ------------------------------------------------------------------------------------------


def test_compressed_member_is_refused_without_inflating() -> None:
    parts = members() | {"reference.wav": bytes(15_000_000)}
    began = time.perf_counter()
    assert "compressed or encrypted" in refused(zipped(parts, method=zipfile.ZIP_DEFLATED))
    assert time.perf_counter() - began < 1  # a deadline, not a measurement


def test_encrypted_member_is_refused() -> None:
    data = bytearray(GOOD)
    data[6] |= 1
    assert "compressed or encrypted" in refused(bytes(data))


def test_zip_of_another_program_is_refused_with_reason() -> None:
    assert "another program" in refused(zipped(members()))


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../manifest.json", "MANIFEST.JSON", "x" * 60_000, "", "\0"]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_unknown_member_is_refused_and_not_quoted(name: str, is_first: bool) -> None:
    parts = {name: b"x", **members()} if is_first else {**members(), name: b"x"}
    message = refused(repacked(parts))
    assert "other than manifest.json" in message
    assert not name.strip("\0") or name not in message


def test_duplicate_and_unordered_members_are_refused() -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # zipfile warns of what is wanted here
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("manifest.json", "reference.wav", "reference.wav"):
                archive.writestr(zipfile.ZipInfo(name), members()[name])
    assert "twice" in refused(file.getvalue())
    assert "out of order" in refused(repacked(dict(reversed(members().items()))))


@pytest.mark.parametrize("lacking", ["manifest.json", "reference.wav"])
def test_missing_member_is_refused(lacking: str) -> None:
    refused(repacked({name: data for name, data in members().items() if name != lacking}))


def test_many_members_are_refused_at_the_first() -> None:
    many = repacked({f"{number:05}": b"" for number in range(5_000)})
    began = time.perf_counter()
    assert "other than manifest.json" in refused(many)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("size", [20 * 1024 * 1024 + 1, 0xFFFFFFFF])
def test_member_with_excessive_size_is_refused(size: int) -> None:
    data = bytearray(GOOD)
    start = GOOD.index(b"PK\3\4", 4)
    data[start + 18 : start + 22] = size.to_bytes(4, "little")
    assert "more than 20,971,520 bytes" in refused(bytes(data))


def test_file_over_the_limit_allocates_no_memory() -> None:
    data = GOOD + bytes(BUNDLE_MAX_BYTES)
    tracemalloc.start()
    assert f"limit of {BUNDLE_MAX_BYTES:,}" in refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"9" * 5_000,
        b'{"format": "other", "version": 1}',
    ],
)
def test_invalid_manifest_is_refused(manifest: bytes) -> None:
    assert "manifest.json is invalid" in refused(repacked(members() | {"manifest.json": manifest}))


def test_newer_version_has_its_own_message() -> None:
    assert "newer than version 2" in refused(forged(lambda stated: stated.update(version=3)))
    assert "other prompts" in refused(forged(lambda stated: stated.update(version=2)))
    assert "manifest.json is invalid" in refused(forged(lambda stated: stated.update(version=1, prompts=[])))


PROMPTS = (BundledPrompt("lite", "3", is_fast=True, data=b"fast"), BundledPrompt("tone", "1", is_fast=False, data=b"t"))


def test_prompts_are_packed_in_version_2() -> None:
    data = pack(VOICE, WAV, PROMPTS)
    bundle = unpack(data)
    assert (bundle.voice, bundle.wav, bundle.prompts, bundle.n_mismatched) == (VOICE, WAV, PROMPTS, 0)
    assert (bundle.voice, bundle.wav) == (VOICE, WAV)
    assert json.loads(members(data)["manifest.json"])["version"] == 2
    assert pack(VOICE, WAV, []) == GOOD, "version 1 without prompts, for older readers"


def test_prompt_of_another_reference_is_dropped() -> None:
    parts = members(pack(VOICE, WAV, PROMPTS))
    stated = json.loads(parts["manifest.json"])
    stated["prompts"]["prompt-1.bin"]["made_from"] = "0" * 64
    bundle = unpack(repacked(parts | {"manifest.json": json.dumps(stated).encode()}))
    assert (bundle.prompts, bundle.n_mismatched) == (PROMPTS[1:], 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda stated: stated["prompts"].pop("prompt-1.bin"),
        lambda stated: stated["prompts"].update({"prompt-3.bin": stated["prompts"]["prompt-1.bin"]}),
        lambda stated: stated["prompts"]["prompt-1.bin"].update(backend="../../etc"),
        lambda stated: stated["prompts"]["prompt-1.bin"].update(version="x" * 201),
        lambda stated: stated.update(version=1),
    ],
)
def test_wrong_prompt_entries_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    parts = members(pack(VOICE, WAV, PROMPTS))
    stated = json.loads(parts["manifest.json"])
    change(stated)
    refused(repacked(parts | {"manifest.json": json.dumps(stated).encode()}))


def test_prompt_over_the_limit_is_not_packed() -> None:
    large = BundledPrompt("lite", "3", is_fast=False, data=bytes(PROMPT_MAX_BYTES + 1))
    assert unpack(pack(VOICE, WAV, [large, *PROMPTS])).prompts == PROMPTS


def test_manifest_without_a_member_is_refused() -> None:
    assert "other members" in refused(forged(lambda stated: stated["members"].pop("transcript.txt")))
    assert "other members" in refused(forged(lambda s: s["members"].update(x=s["members"]["reference.wav"])))


def test_wrong_checksum_is_refused() -> None:
    assert "reference.wav does not match" in refused(
        forged(lambda s: s["members"]["reference.wav"].update(sha256="0" * 64))
    )
    assert "transcript.txt does not match" in refused(
        forged(lambda s: s["members"]["transcript.txt"].update(size_bytes=1))
    )


def deep(levels: int) -> object:
    value: object = "canary"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"voice_id": "../canary"},
        {"voice_id": "0C6F2F0E-8A5D-4C4E-9A53-0C1D9A2B3C4D"},
        {"name": ""},
        {"name": "canary\u202e"},
        {"name": "canary\n"},
        {"name": "canary\u0308 e\u0301"},
        {"name": "n" * 201},
        {"name": "canary\ud800"},
        {"family": "canary\0"},
        {"backend": "canary\n"},
        {"backend": ""},
        {"lang": "canary"},
        {"ref_text": "canary"},
        {"owner": "canary"},
        {"reference": "canary"},
        {"created_at": "canary"},
        {"created_at": "2026-11-22T12:00:00"},
        {"created_at": "9999-12-31T23:59:59-23:59"},
        {"created_at": "0001-01-01T00:00:00+23:59"},
        {"consent": {"kind": "self", "stated_at": "9999-12-31T23:59:59-23:59"}},
        {"consent": {"kind": "canary", "stated_at": "2026-11-22T12:00:00Z"}},
        {"metadata": ["canary"]},
        {"metadata": {"canary": "\ud800"}},
        {"metadata": {"canary": "\0"}},
        {"metadata": {"canary": float("nan")}},
        {"metadata": {"canary": float("inf")}},
        {"metadata": deep(500)},
        {"metadata": {"a": deep(500)}},
    ],
)
def test_invalid_voice_is_refused_and_not_quoted(change: dict[str, object]) -> None:
    assert "canary" not in refused(forged(lambda stated: stated["voice"].update(change)))


@pytest.mark.parametrize("field", ["voice_id", "name", "lang", "backend", "reference", "created_at"])
def test_voice_without_required_field_is_refused(field: str) -> None:
    assert "missing fields" in refused(forged(lambda stated: stated["voice"].pop(field)))


@pytest.mark.parametrize("transcript", [b"", b"  ", b"\xff", b"a\0", b"a\x1b[2J", "\u2060".encode(), b"a" * 200_000])
def test_invalid_transcript_is_refused(transcript: bytes) -> None:
    parts = members() | {"transcript.txt": transcript}
    stated = json.loads(parts["manifest.json"])
    stated["members"]["transcript.txt"] = {"sha256": sha256(transcript).hexdigest(), "size_bytes": len(transcript)}
    refused(repacked(parts | {"manifest.json": json.dumps(stated).encode()}))


# -- the recording and the seal ------------------------------------------------------------------------------


def restated(wav: bytes, **facts: object) -> Callable[[dict[str, Any]], object]:
    """Replace the recording consistently, without the seal."""
    return lambda stated: stated["voice"].update(
        provenance=None, reference=stated["voice"]["reference"] | {"sha256": sha256(wav).hexdigest(), **facts}
    )


def test_consistent_unsealed_recording_is_accepted() -> None:
    found, wav = contents(forged(restated(OTHER_WAV), reference=OTHER_WAV))
    assert (wav, found.provenance) == (OTHER_WAV, None)


@pytest.mark.parametrize(
    ("wav", "code"),
    [
        (b"fLaC" + WAV[4:], "not_wav"),
        (WAV[:-2], "truncated"),
        (canonical_wav(np.zeros(5 * RATE, np.float32), RATE), "silent_audio"),
        (canonical_wav(np.ones(RATE, np.float32), RATE), "too_short"),
        (b"", "not_wav"),
    ],
)
def test_invalid_recording_is_refused_with_its_code(wav: bytes, code: str) -> None:
    assert f"({code})" in refused(forged(restated(wav), reference=wav))


def test_recording_with_extra_chunks_is_refused() -> None:
    tagged = wav_header(RATE, n_frames=5 * RATE, tags={"comment": "hidden"}) + WAV[44:]
    assert "plain mono" in refused(forged(restated(tagged), reference=tagged))
    assert "plain mono" in refused(forged(restated(WAV + b"hidden"), reference=WAV + b"hidden"))


@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"sample_rate": 16_000}, {"duration_s": 6}])
def test_facts_that_contradict_the_recording_are_refused(facts: dict[str, object]) -> None:
    assert "does not match its voice" in refused(forged(restated(WAV, **facts)))


@pytest.mark.parametrize(
    "change",
    [
        {"consent": None},
        {"consent": {"kind": "synthetic", "stated_at": "2026-11-22T12:00:00Z"}},
        {"consent": {"kind": "self", "stated_at": "2026-11-21T12:00:00Z"}},
    ],
)
def test_changed_consent_breaks_the_seal(change: dict[str, object]) -> None:
    assert "seal" in refused(forged(lambda stated: stated["voice"].update(change)))


def test_changed_recording_breaks_the_seal() -> None:
    def exchange(stated: dict[str, Any]) -> None:
        stated["voice"]["reference"]["sha256"] = sha256(OTHER_WAV).hexdigest()

    assert "seal" in refused(forged(exchange, reference=OTHER_WAV))
