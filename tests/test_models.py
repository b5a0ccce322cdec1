"""What holds for every shared type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from afterwords.models import (
    Account,
    ApiKey,
    Consent,
    ConsentKind,
    ConsentName,
    FormatName,
    Health,
    Job,
    JobStatus,
    Model,
    NewApiKey,
    Provenance,
    ReferenceInfo,
    Seed,
    SpeechFormat,
    SpeechOptions,
    SpeechResult,
    SpeechTask,
    Speed,
    Usage,
    Voice,
    as_id,
    is_id,
    new_id,
    now,
)
from afterwords.provenance import Mark

NOON = datetime(2026, 11, 22, 12, 0, 0, 123_999, UTC)
REFERENCE = ReferenceInfo(sha256="a" * 64, duration_s=12.5, sample_rate=24_000, grade="A")
CONSENT = Consent(kind=ConsentKind.SELF, stated_at=NOON)
CANARY = "canary-nobody-may-print-this"
ONE_ID = "0b9f6c3e-8f52-4c1e-9d7a-1f2e3d4c5b6a"

EXAMPLES: list[Model] = [
    CONSENT,
    REFERENCE,
    Provenance(original_sha256="b" * 64, window_start_s=0, software="x", sealed_at=NOON, seal="c" * 64),
    Voice(name="me", backend="lite", reference=REFERENCE, consent=CONSENT, ref_text=CANARY, metadata={"note": CANARY}),
    Job(job_id="1", status=JobStatus.READY, audio_url="https://example.com/a"),
    SpeechOptions(lang="en", backend="lite", speed=2, seed=7),
    SpeechTask(text=CANARY, lang="en", backend="lite", voice_id="1", prompt=CANARY.encode()),
    SpeechResult(backend="lite", sample_rate=24_000, duration_s=2, synth_ms=500),
    Usage(characters=1, period_start=NOON, period_end=NOON),
    ApiKey(key_id="1", created_at=NOON),
    Account(account_id="1", created_at=NOON, voices=1, keys=1, characters=1, storage_bytes=1),
    NewApiKey(api_key=CANARY, created_at=NOON, webhook_secret=CANARY),
    Health(status="ok", backends=("lite",)),
    Mark(is_synthetic=True),
]


def name_of(model: type[Model]) -> str:
    return model.__name__


def subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for sub in model.__subclasses__():
        if sub.__module__.startswith("afterwords."):
            yield sub
        yield from subclasses(sub)


MODELS = sorted(subclasses(Model), key=name_of)


def test_every_model_here_and_in_provenance_has_an_example() -> None:
    at_home = {
        model for model in subclasses(Model) if model.__module__ in ("afterwords.models", "afterwords.provenance")
    }
    assert {type(example) for example in EXAMPLES} == at_home


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_every_field_is_described_in_a_sentence(model: type[Model]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
class TestEveryModel:
    def test_is_frozen(self, example: Model) -> None:
        field = next(iter(type(example).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(example, field, getattr(example, field))

    def test_refuses_unknown_fields(self, example: Model) -> None:
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(example).model_validate({**example.model_dump(), "surprise": 1})

    def test_comes_back_from_json(self, example: Model) -> None:
        again = type(example).model_validate_json(example.model_dump_json())
        assert again.model_dump_json() == example.model_dump_json()

    def test_shows_no_text_in_its_repr(self, example: Model) -> None:
        assert CANARY not in repr(example)
        assert CANARY not in str(example)


def test_refused_value_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        SpeechTask.model_validate({"text": CANARY, "seed": CANARY})
    assert CANARY not in str(refused.value)


# -- times ---------------------------------------------------------------------------------------------------


def test_time_is_written_in_utc_with_milliseconds_and_z() -> None:
    paris = NOON.astimezone(timezone(timedelta(hours=1)))
    consent = Consent(kind=ConsentKind.SELF, stated_at=paris)
    assert consent.stated_at.utcoffset() == timedelta(0)
    assert json.loads(consent.model_dump_json())["stated_at"] == "2026-11-22T12:00:00.123Z"


def test_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        Consent(kind=ConsentKind.SELF, stated_at=NOON.replace(tzinfo=None))


def test_present_moment_is_aware_and_survives_json() -> None:
    consent = Consent(kind=ConsentKind.SELF, stated_at=now())
    assert Consent.model_validate_json(consent.model_dump_json()) == consent


def test_identifiers_differ() -> None:
    assert new_id() != new_id()


@pytest.mark.parametrize("odd", ["", "me", ONE_ID.upper(), f"{ONE_ID}\n", ONE_ID.replace("-", ""), f"../{ONE_ID}"])
def test_only_a_uuid_in_lower_case_can_be_an_identifier(odd: str) -> None:
    assert is_id(ONE_ID)
    assert is_id(new_id())
    assert not is_id(odd)


# -- illegal states ------------------------------------------------------------------------------------------


def test_voice_has_no_owner_and_no_key() -> None:
    suspicious = ("owner", "key", "secret", "token", "tenant", "user")
    assert not [name for name in Voice.model_fields if any(word in name for word in suspicious)]


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.FAILED, JobStatus.CANCELLED])
def test_only_a_ready_job_has_audio(status: JobStatus) -> None:
    with pytest.raises(ValidationError, match="only a ready job has audio"):
        Job(job_id="1", status=status, audio_url="https://example.com/a")


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.READY, JobStatus.CANCELLED])
def test_only_a_failed_job_has_an_error(status: JobStatus) -> None:
    with pytest.raises(ValidationError, match="only a failed job has an error"):
        Job(job_id="1", status=status, error="worker_lost")


def test_every_status_but_pending_is_final() -> None:
    assert [status for status in JobStatus if not status.is_final] == [JobStatus.PENDING]


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "A" * 64},
        {"sha256": "a" * 63},
        {"duration_s": 0},
        {"sample_rate": 0},
        {"grade": "G"},
        {"grade": "AB"},
    ],
)
def test_impossible_reference_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReferenceInfo.model_validate({**REFERENCE.model_dump(), **change})


def test_reference_may_be_ungraded() -> None:
    assert ReferenceInfo(sha256="a" * 64, duration_s=1, sample_rate=8_000).grade is None


@pytest.mark.parametrize("name", ["", "a" * 201])
def test_voice_name_has_1_to_200_characters(name: str) -> None:
    with pytest.raises(ValidationError):
        Voice(name=name, backend="lite", reference=REFERENCE)


@pytest.mark.parametrize(
    ("field", "value"), [(Speed, 0.2), (Speed, 4.1), (Speed, float("nan")), (Seed, -1), (Seed, 2**63)]
)
def test_impossible_speed_or_seed_is_refused(field: Any, value: float) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(field).validate_python(value)


@pytest.mark.parametrize(("field", "value"), [(Speed, 0.25), (Speed, 4.0), (Seed, 0), (Seed, 2**63 - 1)])
def test_speed_or_seed_at_the_edge_is_taken(field: Any, value: float) -> None:
    assert TypeAdapter(field).validate_python(value) == value


def test_nothing_can_not_be_spoken() -> None:
    with pytest.raises(ValidationError):
        SpeechTask(text="", lang="en", backend="lite", voice_id="1", prompt=b"")


@pytest.mark.parametrize(("duration_s", "factor"), [(2.0, 0.25), (0.0, float("inf"))])
def test_real_time_factor_is_work_for_each_second_of_audio(duration_s: float, factor: float) -> None:
    result = SpeechResult(backend="lite", sample_rate=24_000, duration_s=duration_s, synth_ms=500)
    assert result.real_time_factor == factor


def test_as_id_takes_a_uuid_in_either_case() -> None:
    assert as_id(ONE_ID.upper()) == as_id(ONE_ID) == ONE_ID
    assert as_id("me") is None


def test_names_for_type_checkers_are_the_values_of_the_enums() -> None:
    assert set(get_args(ConsentName)) == set(ConsentKind)
    assert set(get_args(FormatName)) == set(SpeechFormat)
