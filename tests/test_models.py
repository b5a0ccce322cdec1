"""The shared types: descriptions, limits, times and reprs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from afterwords.models import (
    Account,
    Alias,
    Alignment,
    ApiKey,
    Consent,
    ConsentKind,
    ConsentName,
    DayUsage,
    Estimate,
    FormatName,
    Health,
    Job,
    JobStatus,
    LexiconEntry,
    Model,
    NewApiKey,
    Provenance,
    Reading,
    ReferenceInfo,
    Seed,
    SentenceVerification,
    SpeechAttempt,
    SpeechFormat,
    SpeechOptions,
    SpeechResult,
    SpeechTask,
    Speed,
    Usage,
    Verification,
    Voice,
    WordTiming,
    is_id,
    new_id,
    now,
    parse_id,
    word_spans,
)
from afterwords.provenance import Mark

NOON = datetime(2026, 11, 22, 12, 0, 0, 123_999, UTC)
REFERENCE = ReferenceInfo(sha256="a" * 64, duration_s=12.5, sample_rate=24_000, grade="A")
CONSENT = Consent(kind=ConsentKind.SELF, stated_at=NOON)
CANARY = "canary-never-print-this"
ONE_ID = "0b9f6c3e-8f52-4c1e-9d7a-1f2e3d4c5b6a"
ATTEMPT = SpeechAttempt(
    seed=None,
    faults=(),
    recognized=CANARY,
    word_error_rate=0,
    longest_error=0,
    margin=0,
    excess_s=0,
    longest_silence_s=0,
    s_per_character=0.06,
)
SENTENCE = SentenceVerification(text=CANARY, start_s=0, end_s=1, attempts=(ATTEMPT,), kept=0)

EXAMPLES: list[Model] = [
    CONSENT,
    REFERENCE,
    Provenance(original_sha256="b" * 64, window_start_s=0, software="x", sealed_at=NOON, seal="c" * 64),
    Voice(name="me", backend="lite", reference=REFERENCE, consent=CONSENT, ref_text=CANARY, metadata={"note": CANARY}),
    Job(job_id="1", status=JobStatus.READY, audio_url="https://example.com/a"),
    SpeechOptions(lang="en", backend="lite", speed=2, seed=7),
    SpeechTask(text=CANARY, lang="en", backend="lite", voice_id="1", prompt=CANARY.encode()),
    SpeechResult(backend="lite", sample_rate=24_000, duration_s=2, synth_ms=500),
    LexiconEntry(word=CANARY, alias=CANARY, ipa=CANARY),
    Reading(lexicon=(LexiconEntry(word=CANARY, alias=CANARY),), emotions=("happy",)),
    Alias(alias="alloy", voice_id="1", voice="me"),
    Usage(characters=1, period_start=NOON, period_end=NOON, days=(DayUsage(day=NOON.date(), characters=1),)),
    DayUsage(day=NOON.date(), characters=1),
    ATTEMPT,
    SENTENCE,
    Verification(has_passed=True, sentences=(SENTENCE,)),
    Estimate(
        characters=1,
        charged_characters=1,
        is_cached=False,
        backend="lite",
        lang="en",
        duration_s=1,
        is_within_limit=True,
    ),
    ApiKey(key_id="1", created_at=NOON),
    Account(account_id="1", created_at=NOON, voices=1, keys=1, characters=1, storage_bytes=1),
    NewApiKey(api_key=CANARY, created_at=NOON, webhook_secret=CANARY),
    Health(status="ok", backends=("lite",)),
    WordTiming(text=CANARY, start=0, start_s=0, end_s=1),
    Alignment(characters=tuple(CANARY), start_s=(0,) * len(CANARY), end_s=(1,) * len(CANARY)),
    Mark(is_synthetic=True),
]


def subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for sub in model.__subclasses__():
        if sub.__module__.startswith("afterwords."):
            yield sub
        yield from subclasses(sub)


def test_every_shared_model_has_an_example() -> None:
    modules = ("afterwords.models", "afterwords.provenance")
    assert {type(example) for example in EXAMPLES} == {m for m in subclasses(Model) if m.__module__ in modules}


def test_every_field_has_a_description() -> None:
    fields = [(model, name, field) for model in subclasses(Model) for name, field in model.model_fields.items()]
    assert [(model, name) for model, name, field in fields if not (field.description or "").endswith(".")] == []


def test_models_reject_unknown_fields() -> None:
    for example in EXAMPLES:
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(example).model_validate({**example.model_dump(), "surprise": 1})


def test_models_survive_json() -> None:
    for example in EXAMPLES:
        again = type(example).model_validate_json(example.model_dump_json())
        assert again.model_dump_json() == example.model_dump_json()


def test_reprs_hold_no_text_or_key() -> None:
    assert [type(example) for example in EXAMPLES if CANARY in f"{example!r}{example}"] == []


def test_validation_errors_do_not_repeat_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        SpeechTask.model_validate({"text": CANARY, "seed": CANARY})
    assert CANARY not in str(caught.value)


# -- times and IDs -------------------------------------------------------------------------------------------


def test_times_are_written_in_utc_with_milliseconds() -> None:
    paris = NOON.astimezone(timezone(timedelta(hours=1)))
    consent = Consent(kind=ConsentKind.SELF, stated_at=paris)
    assert consent.stated_at.utcoffset() == timedelta(0)
    assert json.loads(consent.model_dump_json())["stated_at"] == "2026-11-22T12:00:00.123Z"


def test_times_without_a_zone_are_rejected() -> None:
    with pytest.raises(ValidationError):
        Consent(kind=ConsentKind.SELF, stated_at=NOON.replace(tzinfo=None))


def test_current_time_survives_json() -> None:
    consent = Consent(kind=ConsentKind.SELF, stated_at=now())
    assert Consent.model_validate_json(consent.model_dump_json()) == consent


def test_only_a_lower_case_uuid_is_an_id() -> None:
    odd = ["", "me", ONE_ID.upper(), f"{ONE_ID}\n", ONE_ID.replace("-", ""), f"../{ONE_ID}"]
    assert is_id(ONE_ID)
    assert is_id(new_id())
    assert new_id() != new_id()
    assert [value for value in odd if is_id(value)] == []


def test_parse_id_accepts_either_case() -> None:
    assert parse_id(ONE_ID.upper()) == parse_id(ONE_ID) == ONE_ID
    assert parse_id("me") is None


# -- invalid states ------------------------------------------------------------------------------------------


def test_voice_has_no_owner_and_no_key() -> None:
    suspicious = ("owner", "key", "secret", "token", "tenant", "user")
    assert not [name for name in Voice.model_fields if any(word in name for word in suspicious)]


def test_only_ready_jobs_have_audio_and_failed_ones_an_error() -> None:
    for status in JobStatus:
        if status is not JobStatus.READY:
            with pytest.raises(ValidationError, match="only a ready job has audio"):
                Job(job_id="1", status=status, audio_url="https://example.com/a")
        if status is not JobStatus.FAILED:
            with pytest.raises(ValidationError, match="only a failed job has an error"):
                Job(job_id="1", status=status, error="worker_lost")


def test_every_status_but_pending_is_final() -> None:
    assert [status for status in JobStatus if not status.is_final] == [JobStatus.PENDING]


def test_invalid_references_are_rejected() -> None:
    assert ReferenceInfo(sha256="a" * 64, duration_s=1, sample_rate=8_000).grade is None
    for change in (
        {"sha256": "A" * 64},
        {"sha256": "a" * 63},
        {"duration_s": 0},
        {"sample_rate": 0},
        {"grade": "G"},
        {"grade": "AB"},
    ):
        with pytest.raises(ValidationError):
            ReferenceInfo.model_validate({**REFERENCE.model_dump(), **change})


@pytest.mark.parametrize("name", ["", "a" * 201])
def test_voice_names_have_1_to_200_characters(name: str) -> None:
    with pytest.raises(ValidationError):
        Voice(name=name, backend="lite", reference=REFERENCE)


def test_limits_of_speed_and_seed() -> None:
    for field, value in [(Speed, 0.25), (Speed, 4.0), (Seed, 0), (Seed, 2**63 - 1)]:
        assert TypeAdapter[float](field).validate_python(value) == value
    for field, value in [(Speed, 0.2), (Speed, 4.1), (Speed, float("nan")), (Seed, -1), (Seed, 2**63)]:
        with pytest.raises(ValidationError):
            TypeAdapter[float](field).validate_python(value)


def test_empty_text_is_not_a_task() -> None:
    with pytest.raises(ValidationError):
        SpeechTask(text="", lang="en", backend="lite", voice_id="1", prompt=b"")


@pytest.mark.parametrize(("duration_s", "factor"), [(2.0, 0.25), (0.0, float("inf"))])
def test_real_time_factor_is_synthesis_time_per_audio_time(duration_s: float, factor: float) -> None:
    result = SpeechResult(backend="lite", sample_rate=24_000, duration_s=duration_s, synth_ms=500)
    assert result.real_time_factor == factor


def test_literal_types_match_the_enums() -> None:
    assert set(get_args(ConsentName)) == set(ConsentKind)
    assert set(get_args(FormatName)) == set(SpeechFormat)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("“Well,” she said — it's 5% off…now!", ["Well", "she", "said", "it's", "5%", "off", "now"]),
        ("明日は\n晴れ。", ["明", "日", "は", "晴", "れ"]),
        (" … — ?! ", []),
    ],
)
def test_words_have_no_punctuation_around_them(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_pause_belongs_to_characters_between_words() -> None:
    words = [
        WordTiming(text="Hi", start=1, start_s=0.5, end_s=0.9),
        WordTiming(text="you", start=5, start_s=1.1, end_s=1.7),
    ]
    aligned = Alignment.from_words("“Hi, you”", words, 2.0)
    assert aligned.characters == tuple("“Hi, you”")
    assert aligned.start_s == pytest.approx((0, 0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5, 1.7))
    assert aligned.end_s == pytest.approx((*aligned.start_s[1:], 2.0))
    assert [(word.text, word.start) for word in aligned.words] == [("Hi", 1), ("you", 5)]
    assert [word.start_s for word in aligned.words] == pytest.approx([0.5, 1.1])
    assert [word.end_s for word in aligned.words] == pytest.approx([0.9, 1.7])


@given(text=st.text(max_size=60), times=st.lists(st.floats(0, 30)), duration_s=st.floats(0, 20))
def test_alignment_is_within_audio_for_any_times(text: str, times: list[float], duration_s: float) -> None:
    spans = zip(word_spans(text), times, reversed(times), strict=False)
    words = [WordTiming(text=text[a:b], start=a, start_s=first, end_s=last) for (a, b), first, last in spans]
    aligned = Alignment.from_words(text, words, duration_s)
    assert "".join(aligned.characters) == text
    assert max(aligned.end_s, default=0) <= duration_s + 1e-9
    assert len(aligned.words) == len(word_spans(text))


@pytest.mark.parametrize(
    ("start_s", "end_s"),
    [((0.0,), (1.0,)), ((0.0, 2.0), (3.0, 1.0)), ((1.0, 0.5), (1.0, 1.0)), ((1.0, 1.0), (0.5, 2.0))],
)
def test_inconsistent_alignment_is_refused(start_s: tuple[float, ...], end_s: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Alignment(characters=("a", "b"), start_s=start_s, end_s=end_s)
