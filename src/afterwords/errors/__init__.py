"""Every error that afterwords raises on purpose.

One class a cause. A class takes facts, writes its own one-sentence message, and carries what each face of
the product needs: `code` for the API, `http_status` for the server, `exit_code` for the shell, `hint` for
the person. No message repeats text, a transcript or a key.

    AfterwordsError
    ├── InvalidInputError                  what was given can't be used (exit 5)
    │   ├── RecordingError
    │   │   ├── UnsupportedAudioError · NoAudioError · ReferenceTooShortError · ReferenceTooLongError
    │   │   ├── DamagedAudioError · FileTooLargeError · SilentAudioError · NonFiniteAudioError · UnvoicedReferenceError
    │   │   ├── PoorRecordingError
    │   │   └── MalformedWavError
    │   │       ├── NotWavError · MissingFormatError · TruncatedWavError · EmptyDataError · TooManyChunksError
    │   │       └── BadChannelsError · BadSampleRateError · BadBitsError · BadBlockAlignError · UnsupportedEncodingError
    │   ├── TextError
    │   │   └── EmptyTextError · UnspeakableTextError · ControlCharacterError · InvalidUnicodeError · TextTooLongError
    │   ├── UnsupportedLangError · InvalidBackendError · InvalidNameError · InvalidOptionError · InvalidConfigError
    │   ├── ConsentRequiredError · VoiceRequiredError · VoiceExistsError
    │   └── UnreadableFileError · UnwritableOutputError · UnmarkableFormatError · InvalidBackupError
    ├── VoiceNotFoundError                 no such voice (exit 4)
    ├── UnavailableError                   this machine lacks something (exit 1)
    │   ├── MissingExtraError · BackendUnavailableError · AudioDeviceError · TranscriberError
    │   └── ModelNotHereError · TooLittleMemoryError · OfflineError · ModelBusyError · PrecisionError
    ├── UnknownModelError                  no such model can be pulled (exit 4)
    ├── ForeignModelError                  a folder of weights that a person brought here (exit 1)
    ├── SynthesisError                     an engine could not speak (exit 7)
    ├── MeasurementTimeoutError            a backend took too long to measure (exit 9)
    ├── SpeechReadError                    a Speech was read twice
    ├── ModelFileError                     a weight file is missing or altered (exit 1)
    ├── LibraryError                       the voices on this disk (exit 1)
    │   └── CorruptVoiceError · NewerLibraryError · LibraryBusyError · StorageFullError
    ├── ServiceError                       a server refused, or failed (exit 8)
    │   ├── BadRequestError
    │   │   └── MissingFieldError · InvalidJsonError · InvalidMultipartError · InvalidHostError
    │   ├── InvalidFieldError · BadContentTypeError · InvalidWebhookUrlError · InvalidBundleError
    │   ├── RequestTooLargeError · RequestTimeoutError · RangeNotSatisfiableError
    │   ├── UnauthorizedError
    │   │   └── AdminRequiredError
    │   ├── InsufficientScopeError
    │   ├── LimitError
    │   │   ├── RateLimitedError · TooManyConcurrentRequestsError · QueueFullError · QuotaExceededError
    │   │   └── TooManyAuthFailuresError
    │   ├── StorageQuotaExceededError
    │   ├── RouteNotFoundError · MethodNotAllowedError · JobNotFoundError · JobNotReadyError · KeyNotFoundError
    │   ├── ConflictError
    │   │   ├── AmbiguousVoiceNameError · HomeVoiceError
    │   │   └── IdempotencyConflictError · JobFinalError · KeyReplacedError · StaleAttemptError
    │   ├── VoiceDeletedError · RunawayAudioError · LostAudioError · LostReferenceError · NotOpenedError
    │   └── ServiceUnavailableError
    │       └── DatabaseUnavailableError · StorageUnavailableError
    ├── RemoteError                        something on the way to a server, or back (exit 8)
    │   ├── UnreachableError · NetworkSettingError · StrangeAnswerError · UnsupportedByServerError · NotLoggedInError
    │   ├── ConnectionLostError
    │   │   └── ServerSilentError
    │   └── HubError                       the hub of models: refused (exit 3), missing (4), busy (6)
    │       └── HubUnreachableError · HubRefusedError · HubMissingError · HubBusyError
    ├── RemoteJobError                     a job on a server has no audio (exit 7, or 9 while it is pending)
    │   └── JobFailedError · JobCancelledError · JobTimeoutError
    └── ServerSetupError                   a server can't start like this (exit 2)
        ├── InsecureServerError · AddressInUseError · NewerDatabaseError
        ├── ServerRunningError · ServerNotEmptyError
        └── OpenedTwiceError
"""

from __future__ import annotations

from afterwords.errors.given import (
    BadBitsError,
    BadBlockAlignError,
    BadChannelsError,
    BadSampleRateError,
    ConsentRequiredError,
    ControlCharacterError,
    DamagedAudioError,
    EmptyDataError,
    EmptyTextError,
    FileTooLargeError,
    InvalidBackendError,
    InvalidBackupError,
    InvalidConfigError,
    InvalidInputError,
    InvalidNameError,
    InvalidOptionError,
    InvalidUnicodeError,
    MalformedWavError,
    MissingFormatError,
    NoAudioError,
    NonFiniteAudioError,
    NotWavError,
    PoorRecordingError,
    RecordingError,
    RecordingWarning,
    ReferenceTooLongError,
    ReferenceTooShortError,
    SilentAudioError,
    TextError,
    TextTooLongError,
    TextWarning,
    TooManyChunksError,
    TruncatedWavError,
    UnknownSettingWarning,
    UnmarkableFormatError,
    UnreadableFileError,
    UnspeakableTextError,
    UnsupportedAudioError,
    UnsupportedEncodingError,
    UnsupportedLangError,
    UnvoicedReferenceError,
    UnwritableOutputError,
    VoiceExistsError,
    VoiceRequiredError,
)
from afterwords.errors.machine import (
    AudioDeviceError,
    BackendUnavailableError,
    CorruptVoiceError,
    ForeignModelError,
    LibraryBusyError,
    LibraryError,
    MeasurementTimeoutError,
    MissingExtraError,
    ModelBusyError,
    ModelFileError,
    ModelNotHereError,
    NewerLibraryError,
    OfflineError,
    PrecisionError,
    SpeechReadError,
    StorageFullError,
    SynthesisError,
    TooLittleMemoryError,
    TranscriberError,
    UnavailableError,
    UnknownModelError,
    VoiceNotFoundError,
)
from afterwords.errors.remote import (
    ConnectionLostError,
    HubBusyError,
    HubError,
    HubMissingError,
    HubRefusedError,
    HubUnreachableError,
    JobCancelledError,
    JobFailedError,
    JobTimeoutError,
    NetworkSettingError,
    NotLoggedInError,
    RemoteError,
    RemoteJobError,
    ServerSilentError,
    StrangeAnswerError,
    UnreachableError,
    UnsupportedByServerError,
)
from afterwords.errors.root import (
    AfterwordsError,
)
from afterwords.errors.service import (
    AddressInUseError,
    AdminRequiredError,
    AmbiguousVoiceNameError,
    BadContentTypeError,
    BadRequestError,
    ConflictError,
    DatabaseUnavailableError,
    HomeVoiceError,
    IdempotencyConflictError,
    InsecureServerError,
    InsufficientScopeError,
    InvalidBundleError,
    InvalidFieldError,
    InvalidHostError,
    InvalidJsonError,
    InvalidMultipartError,
    InvalidWebhookUrlError,
    JobFinalError,
    JobNotFoundError,
    JobNotReadyError,
    KeyNotFoundError,
    KeyReplacedError,
    LimitError,
    LostAudioError,
    LostReferenceError,
    MethodNotAllowedError,
    MissingFieldError,
    NewerDatabaseError,
    NotOpenedError,
    OpenedTwiceError,
    QueueFullError,
    QuotaExceededError,
    RangeNotSatisfiableError,
    RateLimitedError,
    RequestTimeoutError,
    RequestTooLargeError,
    RouteNotFoundError,
    RunawayAudioError,
    ServerNotEmptyError,
    ServerRunningError,
    ServerSetupError,
    ServiceError,
    ServiceUnavailableError,
    StaleAttemptError,
    StorageQuotaExceededError,
    StorageUnavailableError,
    TooManyAuthFailuresError,
    TooManyConcurrentRequestsError,
    UnauthorizedError,
    VoiceDeletedError,
)

__all__ = [
    "AddressInUseError",
    "AdminRequiredError",
    "AfterwordsError",
    "AmbiguousVoiceNameError",
    "AudioDeviceError",
    "BackendUnavailableError",
    "BadBitsError",
    "BadBlockAlignError",
    "BadChannelsError",
    "BadContentTypeError",
    "BadRequestError",
    "BadSampleRateError",
    "ConflictError",
    "ConnectionLostError",
    "ConsentRequiredError",
    "ControlCharacterError",
    "CorruptVoiceError",
    "DamagedAudioError",
    "DatabaseUnavailableError",
    "EmptyDataError",
    "EmptyTextError",
    "FileTooLargeError",
    "ForeignModelError",
    "HomeVoiceError",
    "HubBusyError",
    "HubError",
    "HubMissingError",
    "HubRefusedError",
    "HubUnreachableError",
    "IdempotencyConflictError",
    "InsecureServerError",
    "InsufficientScopeError",
    "InvalidBackendError",
    "InvalidBackupError",
    "InvalidBundleError",
    "InvalidConfigError",
    "InvalidFieldError",
    "InvalidHostError",
    "InvalidInputError",
    "InvalidJsonError",
    "InvalidMultipartError",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidUnicodeError",
    "InvalidWebhookUrlError",
    "JobCancelledError",
    "JobFailedError",
    "JobFinalError",
    "JobNotFoundError",
    "JobNotReadyError",
    "JobTimeoutError",
    "KeyNotFoundError",
    "KeyReplacedError",
    "LibraryBusyError",
    "LibraryError",
    "LimitError",
    "LostAudioError",
    "LostReferenceError",
    "MalformedWavError",
    "MeasurementTimeoutError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "MissingFieldError",
    "MissingFormatError",
    "ModelBusyError",
    "ModelFileError",
    "ModelNotHereError",
    "NetworkSettingError",
    "NewerDatabaseError",
    "NewerLibraryError",
    "NoAudioError",
    "NonFiniteAudioError",
    "NotLoggedInError",
    "NotOpenedError",
    "NotWavError",
    "OfflineError",
    "OpenedTwiceError",
    "PoorRecordingError",
    "PrecisionError",
    "QueueFullError",
    "QuotaExceededError",
    "RangeNotSatisfiableError",
    "RateLimitedError",
    "RecordingError",
    "RecordingWarning",
    "ReferenceTooLongError",
    "ReferenceTooShortError",
    "RemoteError",
    "RemoteJobError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "RouteNotFoundError",
    "RunawayAudioError",
    "ServerNotEmptyError",
    "ServerRunningError",
    "ServerSetupError",
    "ServerSilentError",
    "ServiceError",
    "ServiceUnavailableError",
    "SilentAudioError",
    "SpeechReadError",
    "StaleAttemptError",
    "StorageFullError",
    "StorageQuotaExceededError",
    "StorageUnavailableError",
    "StrangeAnswerError",
    "SynthesisError",
    "TextError",
    "TextTooLongError",
    "TextWarning",
    "TooLittleMemoryError",
    "TooManyAuthFailuresError",
    "TooManyChunksError",
    "TooManyConcurrentRequestsError",
    "TranscriberError",
    "TruncatedWavError",
    "UnauthorizedError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownSettingWarning",
    "UnmarkableFormatError",
    "UnreachableError",
    "UnreadableFileError",
    "UnspeakableTextError",
    "UnsupportedAudioError",
    "UnsupportedByServerError",
    "UnsupportedEncodingError",
    "UnsupportedLangError",
    "UnvoicedReferenceError",
    "UnwritableOutputError",
    "VoiceDeletedError",
    "VoiceExistsError",
    "VoiceNotFoundError",
    "VoiceRequiredError",
]
