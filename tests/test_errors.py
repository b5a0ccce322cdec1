"""Every error says what happened and how to fix it, and its code fixes the HTTP status and the exit code."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from afterwords import errors
from afterwords.errors import AfterwordsError, JobError, RemoteError, ServerSetupError, error_from_code

HOSTILE = "a\x1b[2J\u202e\nb"
SOURCES = sorted(Path(errors.__file__).parent.rglob("*.py"))

STATUSES = {
    (400, 5): "bad_request invalid_event invalid_host invalid_json invalid_multipart invalid_signature missing_field",
    (401, 3): "admin_required not_logged_in unauthorized",
    (402, 6): "subscription_inactive",
    (403, 3): "insufficient_scope",
    (
        404,
        4,
    ): "billing_disabled consent_not_found customer_not_found hub_missing job_not_found job_not_ready key_not_found "
    "model_not_found not_found unknown_model voice_not_found",
    (405, 5): "method_not_allowed",
    (426, 5): "worker_protocol",
    (408, 8): "request_timeout",
    (409, 5): "alias_taken ambiguous_voice_name checkout_replaced conflict email_in_use home_voice "
    "idempotency_conflict job_final key_replaced stale_attempt voice_exists",
    (410, 4): "voice_deleted",
    (413, 5): "request_too_large",
    (416, 5): "range_not_satisfiable",
    (422, 1): "timestamps_unavailable verification_unavailable",
    (422, 2): "voice_required",
    (422, 5): "bad_bits bad_block_align bad_channels bad_content_type bad_sample_rate consent_required "
    "control_character damaged_audio empty_data empty_text file_too_large invalid_audio invalid_backend "
    "invalid_backup invalid_book invalid_bundle invalid_config invalid_field invalid_format invalid_input "
    "invalid_name invalid_option invalid_text invalid_unicode invalid_webhook_url malformed_wav no_fmt no_voice "
    "non_finite_audio not_wav poor_recording protected_book silent_audio text_too_long too_long too_many_chunks "
    "too_short truncated unreadable_file unspeakable_text unsupported_audio unsupported_encoding "
    "unsupported_lang unwritable_output",
    (422, 7): "runaway_audio",
    (429, 6): "limit_reached queue_full quota_exceeded rate_limited too_many_auth_failures "
    "too_many_concurrent_requests",
    (500, 1): "corrupt_voice error foreign_model library model_file newer_database newer_library "
    "older_database speech_read"
    " system_error unexpected_error",
    (500, 2): "database_refused insecure_server opened_twice server_not_empty server_running server_setup"
    " storage_refused",
    (500, 7): "job_cancelled job_error job_failed synthesis_failed",
    (500, 8): "address_in_use audio_lost internal_error reference_missing",
    (501, 5): "unsupported_by_server",
    (502, 3): "hub_refused",
    (502, 8): "connection_lost hub remote strange_answer",
    (503, 1): "backend_unavailable library_busy missing_extra model_busy model_not_here no_audio_device offline "
    "precision too_little_memory transcriber_unavailable unavailable",
    (503, 6): "hub_busy",
    (503, 8): "database_unavailable hub_unreachable mail_unavailable network_setting not_opened payments_failed "
    "payments_unavailable service_unavailable storage_unavailable unreachable",
    (504, 9): "job_timeout measurement_timeout server_silent",
    (507, 1): "storage_full",
    (507, 6): "storage_quota_exceeded",
}
"""HTTP status and exit code of every code; both are part of the API."""

MESSAGES: list[AfterwordsError] = [
    errors.RecordingError.unsupported("me.txt"),
    errors.RecordingError.damaged("me.m4a"),
    errors.RecordingError.no_audio("me.wav"),
    errors.RecordingError.too_short("me.wav", duration_s=3.2, minimum_s=5),
    errors.RecordingError.too_long("me.wav", duration_s=1801, maximum_s=1800),
    errors.RecordingError.too_large("me.wav", size_bytes=20_971_521, maximum_bytes=20_971_520),
    errors.RecordingError.non_finite("me.wav"),
    errors.MalformedWavError.for_source("me.wav"),
    errors.MalformedWavError.for_source("me.wav", "it has no fmt chunk", code="no_fmt"),
    errors.UnsupportedLangError.for_lang(HOSTILE, supported=("en", "zh")),
    errors.UnsupportedLangError.for_lang(None, supported=("en",), backend="lite", others=["tone"]),
    errors.UnsupportedLangError.for_lang("de", supported=("en",), unavailable=["a", "b", "c"]),
    errors.InvalidInputError.for_backup(Path(HOSTILE), "it was cut"),
    errors.InvalidOptionError.for_option("--speed", value=HOSTILE, allowed="0.25 to 4"),
    errors.VoiceExistsError.for_name(HOSTILE),
    errors.FileError.unreadable(Path(HOSTILE), "there is no such file"),
    errors.FileError.unwritable(Path(HOSTILE), "its folder does not exist"),
    errors.VoiceNotFoundError.for_name(HOSTILE, nearest=[HOSTILE, "me"]),
    errors.VoiceNotFoundError.for_name("me"),
    errors.MissingExtraError.for_extra("lite", purpose="Speaking"),
    errors.ModelError.for_file("kokoro.onnx", "was altered", hint="reinstall it."),
    errors.ModelError.not_downloaded("qwen3-1.7b"),
    errors.SynthesisError.for_backend("lite", "it ran out of memory"),
    errors.SynthesisError.runaway(duration_s=90, maximum_s=20),
    errors.CorruptVoiceError.for_folder(Path(HOSTILE), "voice.json is not JSON"),
    errors.StorageFullError.for_path(Path(HOSTILE)),
    errors.InvalidRequestError.missing_field("text"),
    errors.InvalidRequestError.invalid_field("speed", "it must be 0.25 to 4"),
    errors.InvalidRequestError.invalid_form("it has no boundary"),
    errors.InvalidRequestError.invalid_webhook_url("its host is not public"),
    errors.InvalidRequestError.too_large(maximum_bytes=131_072),
    errors.InvalidBundleError.for_reason("it has no voice.json"),
    errors.UnauthorizedError.not_logged_in(HOSTILE),
    errors.UnauthorizedError.not_logged_in(HOSTILE, is_admin=True),
    errors.ConnectionLostError.for_url(HOSTILE),
    errors.InvalidResponseError.for_reason("it is HTML"),
    errors.HubError.for_url(HOSTILE, "responds in HTML"),
]
"""A call of each constructor, with values as hostile as they may come."""


def classes(base: type[AfterwordsError] = AfterwordsError) -> Iterator[type[AfterwordsError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from classes(kind)


CLASSES = list(classes())
CODES = [(kind, code) for kind in CLASSES for code in (kind.code, *vars(kind).get("codes", ()))]


def test_docstring_lists_every_class_below_its_parent() -> None:
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    names = re.findall(r"\w+Error", errors.__doc__ or "")
    for line in (errors.__doc__ or "").splitlines():
        if found := re.findall(r"\w+Error", line):
            indent = line.index(found[0])
            path = [entry for entry in path if entry[0] < indent]
            parents |= dict.fromkeys(found, path[-1][1] if path else "Exception")
            path.append((indent, found[-1]))
    assert parents == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}
    assert max(Counter(names).values()) == 1


def test_every_code_keeps_its_statuses() -> None:
    expected = {code: statuses for statuses, codes in STATUSES.items() for code in codes.split()}
    made = {code: kind("It failed.", code=code) for kind, code in CODES}
    assert {code: (error.http_status, error.exit_code) for code, error in made.items()} == expected


def test_codes_belong_to_one_class_except_empty_audio() -> None:
    counts = Counter(code for _, code in CODES)
    assert [code for code, count in counts.items() if count > 1] == ["empty_data"]


def test_source_uses_only_codes_of_the_class() -> None:
    wrong = []
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call) or not (name := ast.unparse(call.func).split("."))[0].endswith("Error"):
                continue
            kind = getattr(errors, name[0], None)
            codes = [
                word.value.value
                for word in call.keywords
                if word.arg == "code" and isinstance(word.value, ast.Constant)
            ]
            wrong += [f"{path}:{call.lineno} {code!r}" for code in codes if kind and (kind, code) not in CODES]
    assert wrong == []


def test_every_message_is_a_sentence_with_a_hint() -> None:
    defaults = [kind(code=code) for kind, code in CODES]
    whole = MESSAGES + [error for error in defaults if error.message]
    assert [repr(e) for e in whole if not e.message.endswith(".") or not e.hint or str(e) != e.message] == []


def test_every_constructor_has_an_example() -> None:
    made = {
        f"{kind.__name__}.{name}"
        for kind in CLASSES
        for name, member in vars(kind).items()
        if isinstance(member, classmethod) and not name.startswith("_")
    }
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    calls = {ast.unparse(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call)}
    assert {name for name in made if f"errors.{name}" not in calls} == set()


def test_messages_and_hints_hold_no_control_characters() -> None:
    assert [repr(e) for e in MESSAGES if not e.message.isprintable() or not e.hint.isprintable()] == []


def test_error_from_code_builds_the_class_of_the_code() -> None:
    client_side = (RemoteError, JobError, ServerSetupError)
    wrong = []
    for kind, code in CODES:
        error = error_from_code(code, "It failed.", http_status=418, retry_after_s=2, request_id="r")
        expected = errors.InvalidRequestError if issubclass(kind, client_side) or kind is AfterwordsError else kind
        if code != "empty_data" and type(error) is not expected:
            wrong.append(f"{code}: {type(error)}")
        assert (error.message, error.code, error.http_status, error.retry_after_s) == ("It failed.", code, 418, 2)
    assert wrong == []


def test_unknown_codes_become_the_class_of_the_status() -> None:
    assert type(error_from_code("new", "It failed.", http_status=422)) is errors.InvalidRequestError
    assert type(error_from_code("new", "It failed.", http_status=500)) is errors.ServiceError
    assert type(error_from_code("", "It failed.", http_status=500)) is errors.ServiceError


def test_errors_survive_pickle_and_copy() -> None:
    limit = errors.LimitError("Wait.", code="rate_limited", limit=600, retry_after_s=1)
    job = errors.JobFailedError("It failed.", hint="try again.", job_id="1", reason="worker_lost")
    for error in (limit, job):
        for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(copied), vars(copied), copied.args) == (type(error), vars(error), error.args)
