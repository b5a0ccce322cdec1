"""The error tree: each class is drawn, says what happened in one line, and how to fix it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterwords import errors
from afterwords.errors import AfterwordsError

HOSTILE = "a\x1b[2J\u202e\nb"

# Every class that writes a message of its own, once, with facts as hostile as they may come.
EXAMPLES: list[AfterwordsError] = [
    errors.UnsupportedAudioError("me.txt"),
    errors.UnsupportedAudioError("me.mp4", codec=HOSTILE),
    errors.DamagedAudioError("me.m4a"),
    errors.NoAudioError("me.wav"),
    errors.ReferenceTooShortError("me.wav", duration_s=3.2, minimum_s=5),
    errors.ReferenceTooLongError("me.wav", duration_s=1801, maximum_s=1800),
    errors.FileTooLargeError("me.wav", size_bytes=20_971_521, maximum_bytes=20_971_520),
    errors.SilentAudioError("me.wav", peak_db=-90),
    errors.NonFiniteAudioError("me.wav"),
    errors.UnvoicedReferenceError("me.wav", voiced_s=0.5, minimum_s=3),
    errors.PoorRecordingError("me.wav", reason="It is clipped.", advice="record again"),
    errors.MalformedWavError("me.wav"),
    errors.NotWavError("me.wav", found="'fLaC'"),
    errors.MissingFormatError("me.wav"),
    errors.TruncatedWavError("me.wav", declared_bytes=10, present_bytes=5),
    errors.EmptyDataError("me.wav"),
    errors.TooManyChunksError("me.wav", maximum=100),
    errors.BadChannelsError("me.wav", channels=255),
    errors.BadSampleRateError("me.wav", sample_rate=1, minimum=8_000, maximum=192_000),
    errors.BadBitsError("me.wav", bits=12),
    errors.BadBlockAlignError("me.wav", block_align=0, expected=2),
    errors.UnsupportedEncodingError("me.wav", encoding="A-law"),
    errors.EmptyTextError(),
    errors.UnspeakableTextError("lite"),
    errors.ControlCharacterError(codepoint=0x1B, position=3),
    errors.InvalidUnicodeError(position=3),
    errors.TextTooLongError(length=5_001, maximum=5_000),
    errors.UnsupportedLangError(HOSTILE, supported=("en", "zh")),
    errors.InvalidBackendError(HOSTILE, offered=("lite",)),
    errors.InvalidNameError("it is empty"),
    errors.InvalidOptionError("--speed", value=HOSTILE, allowed="0.25 to 4"),
    errors.ConsentRequiredError(),
    errors.VoiceRequiredError(names=["me", HOSTILE]),
    errors.VoiceRequiredError(names=[]),
    errors.VoiceExistsError(HOSTILE),
    errors.UnreadableFileError(Path(HOSTILE), why="there is no such file"),
    errors.InvalidConfigError(Path(HOSTILE), why=HOSTILE, hint=HOSTILE),
    errors.InvalidBackupError(Path(HOSTILE), why="it was cut"),
    errors.ServerRunningError(),
    errors.AdminRequiredError(),
    errors.ServerNotEmptyError(why="it has 1 voices"),
    errors.UnwritableOutputError(Path(HOSTILE), why="its folder does not exist"),
    errors.UnmarkableFormatError(HOSTILE, formats=("wav", "mp3")),
    errors.VoiceNotFoundError(HOSTILE, nearest=[HOSTILE, "me"]),
    errors.VoiceNotFoundError("me"),
    errors.MissingExtraError("lite", purpose="Speaking"),
    errors.BackendUnavailableError("cuda", reason="no GPU answers", fix="use --backend lite."),
    errors.AudioDeviceError("Playing", why="none was found"),
    errors.AudioDeviceError("Recording", why="none was found"),
    errors.TranscriberError("no model was found"),
    errors.ModelNotHereError("qwen3-1.7b"),
    errors.TooLittleMemoryError("qwen3-1.7b", needed_bytes=5 * 10**9, room_bytes=10**9, fitting=[]),
    errors.TooLittleMemoryError("qwen3-1.7b", needed_bytes=5 * 10**9, room_bytes=10**9, fitting=["qwen3-0.6b-4bit"]),
    errors.OfflineError("qwen3-1.7b"),
    errors.ModelBusyError("qwen3-1.7b"),
    errors.PrecisionError("qwen3-1.7b", precision="fp8", why="70 % of its codes are the same, and 75 % must be"),
    errors.UnknownModelError(HOSTILE, known=["qwen3-1.7b"]),
    errors.ForeignModelError(Path(HOSTILE)),
    errors.SynthesisError("lite", why="it ran out of memory"),
    errors.MeasurementTimeoutError("lite", waited_s=600),
    errors.SpeechReadError(),
    errors.ModelFileError("kokoro.onnx", why="was altered", hint="reinstall it."),
    errors.CorruptVoiceError(Path(HOSTILE), why="voice.json is not JSON"),
    errors.NewerLibraryError(Path(HOSTILE), found=3, known=2),
    errors.LibraryBusyError(Path(HOSTILE), waited_s=10),
    errors.StorageFullError(Path(HOSTILE)),
    errors.StorageFullError(Path(HOSTILE), needed_bytes=4_000_000_000, free_bytes=1),
    errors.ServiceError(),
    errors.MissingFieldError("text"),
    errors.InvalidJsonError(),
    errors.InvalidMultipartError(why="it has no boundary"),
    errors.InvalidHostError(),
    errors.InvalidFieldError("speed", rule="it must be 0.25 to 4"),
    errors.BadContentTypeError(allowed="audio/wav"),
    errors.InvalidWebhookUrlError(why="its host is not public"),
    errors.InvalidBundleError(why="it holds no voice.json"),
    errors.RequestTooLargeError(maximum_bytes=131_072),
    errors.RequestTimeoutError(waited_s=15),
    errors.RouteNotFoundError(),
    errors.MethodNotAllowedError(allowed=["GET"]),
    errors.RangeNotSatisfiableError(size_bytes=44),
    errors.UnauthorizedError(),
    errors.InsufficientScopeError("synthesize"),
    errors.LimitError("The limit of 3 is reached.", hint="wait.", limit=3, retry_after_s=1),
    errors.RateLimitedError(limit=600, retry_after_s=1),
    errors.TooManyAuthFailuresError(limit=30, retry_after_s=9),
    errors.TooManyConcurrentRequestsError(limit=100),
    errors.QueueFullError(limit=1_000),
    errors.QuotaExceededError(limit=1_000, used=990, asked=11, retry_after_s=86_400),
    errors.StorageQuotaExceededError(stored_bytes=10**9, quota_bytes=10**9),
    errors.JobNotFoundError(),
    errors.JobNotReadyError("pending"),
    errors.KeyNotFoundError(),
    errors.IdempotencyConflictError(),
    errors.JobFinalError("ready"),
    errors.KeyReplacedError(),
    errors.StaleAttemptError(),
    errors.AmbiguousVoiceNameError(),
    errors.HomeVoiceError(),
    errors.VoiceDeletedError(),
    errors.RunawayAudioError(duration_s=90, maximum_s=20),
    errors.LostAudioError(),
    errors.LostReferenceError(),
    errors.ServiceUnavailableError(),
    errors.DatabaseUnavailableError(),
    errors.StorageUnavailableError(),
    errors.InsecureServerError(HOSTILE, minimum=32),
    errors.AddressInUseError(HOSTILE, 7860, why="it is in use"),
    errors.NewerDatabaseError(found="9", known="1"),
    errors.NotOpenedError(),
    errors.OpenedTwiceError(),
    errors.UnreachableError(HOSTILE, why="the name is not known", check=HOSTILE),
    errors.NetworkSettingError(HOSTILE, why=HOSTILE, hint=HOSTILE),
    errors.ConnectionLostError(HOSTILE),
    errors.ServerSilentError(HOSTILE, waited_s=60),
    errors.StrangeAnswerError("it is HTML"),
    errors.UnsupportedByServerError("exporting a voice"),
    errors.NotLoggedInError(HOSTILE),
    errors.HubError(HOSTILE, why="answers in HTML"),
    errors.HubUnreachableError(HOSTILE, why="the name is not known", check=HOSTILE),
    errors.HubRefusedError(HOSTILE, what="config.json", has_token=True),
    errors.HubRefusedError(HOSTILE, what="config.json", has_token=False),
    errors.HubMissingError(HOSTILE, what="config.json"),
    errors.HubBusyError(HOSTILE, retry_after_s=None),
    errors.RemoteJobError("The job is gone.", job_id="1", hint="ask again."),
    errors.JobFailedError("1", reason=HOSTILE),
    errors.JobCancelledError("1"),
    errors.JobTimeoutError("1", waited_s=600),
]


def tree(root: type[AfterwordsError] = AfterwordsError) -> Iterator[type[AfterwordsError]]:
    yield root
    for sub in root.__subclasses__():
        if sub.__module__.startswith(errors.__name__):
            yield from tree(sub)


CLASSES = list(tree())


def test_every_class_that_writes_a_message_has_an_example() -> None:
    writers = {cls for cls in CLASSES if "__init__" in vars(cls) and cls is not AfterwordsError}
    assert {type(example) for example in EXAMPLES} == writers


def test_docstring_draws_every_class_and_nothing_else() -> None:
    drawn = re.findall(r"\w+Error", errors.__doc__ or "")
    assert Counter(drawn) == Counter(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_stands_in_the_docstring_under_its_parent(cls: type[AfterwordsError]) -> None:
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        names = re.findall(r"\w+Error", line)
        if names:
            indent = line.index(names[0])
            path = [entry for entry in path if entry[0] < indent]
            parents |= dict.fromkeys(names, path[-1][1] if path else "Exception")
            path.append((indent, names[-1]))
    assert parents[cls.__name__] == cls.__bases__[0].__name__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_a_code_of_its_own(cls: type[AfterwordsError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", vars(cls)["code"])


def test_no_two_classes_share_a_code_but_the_two_kinds_of_no_sound() -> None:
    counted = Counter(cls.code for cls in CLASSES)
    assert {code for code, count in counted.items() if count > 1} == {"empty_data"}
    assert {cls for cls in CLASSES if cls.code == "empty_data"} == {errors.NoAudioError, errors.EmptyDataError}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_exit_code_and_status_are_ones_that_are_documented(cls: type[AfterwordsError]) -> None:
    assert cls.exit_code in {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert cls.http_status in range(400, 600)


@pytest.mark.parametrize(
    ("cls", "exit_code", "http_status"),
    [
        (errors.EmptyTextError, 5, 422),
        (errors.UnspeakableTextError, 5, 422),
        (errors.NotWavError, 5, 422),
        (errors.VoiceExistsError, 5, 409),
        (errors.VoiceRequiredError, 2, 422),
        (errors.VoiceNotFoundError, 4, 404),
        (errors.MissingExtraError, 1, 503),
        (errors.SynthesisError, 7, 500),
        (errors.StorageFullError, 1, 507),
    ],
)
def test_each_face_is_told_what_kind_of_failure_it_is(
    cls: type[AfterwordsError], exit_code: int, http_status: int
) -> None:
    assert (cls.exit_code, cls.http_status) == (exit_code, http_status)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
class TestEveryError:
    def test_says_what_happened_in_one_sentence(self, error: AfterwordsError) -> None:
        assert str(error) == error.message
        assert error.message.endswith(".")

    def test_says_how_to_fix_it(self, error: AfterwordsError) -> None:
        assert error.hint

    def test_shows_a_terminal_nothing_that_it_would_act_on(self, error: AfterwordsError) -> None:
        assert error.message.isprintable()
        assert error.hint.isprintable()

    def test_is_caught_as_an_afterwords_error(self, error: AfterwordsError) -> None:
        with pytest.raises(AfterwordsError):
            raise error


def test_truncated_wav_is_told_from_one_that_ends_before_its_sound() -> None:
    assert "10 bytes" in errors.TruncatedWavError("a", declared_bytes=10, present_bytes=5).message
    assert "before its sound" in errors.TruncatedWavError("a", declared_bytes=None, present_bytes=0).message
