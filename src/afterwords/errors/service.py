"""What a server refuses, and what it could not do: one class for every error code of the /v1 API.

Messages name the measured value and the rule; they never echo what was sent, since it may be a text, a transcript or
a key. `retry_after_s` becomes the header of that name.
"""

from __future__ import annotations

from collections.abc import Sequence

from afterwords.errors.root import AfterwordsError
from afterwords.install import pip_install


class ServiceError(AfterwordsError):
    """A server refused, or failed. `param` names the field that is wrong, `retry_after_s` when to come back."""

    code = "internal_error"
    exit_code = 8
    param: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str = "The server failed, and wrote down why.", *, hint: str = "") -> None:
        super().__init__(
            message, hint=hint or "try again; if it fails again, give the request id to the person who runs the server."
        )


# -- the request itself --------------------------------------------------------------------------------------


class BadRequestError(ServiceError):
    """The request can't be understood."""

    code = "bad_request"
    http_status = 400
    exit_code = 5


class MissingFieldError(BadRequestError):
    code = "missing_field"

    def __init__(self, param: str) -> None:
        super().__init__(f"The field {param} is missing.", hint=f"send {param}.")
        self.param = param


class InvalidJsonError(BadRequestError):
    code = "invalid_json"

    def __init__(self, *, why: str = "it can't be parsed") -> None:
        super().__init__(f"The body is not a JSON object: {why}.", hint="send one JSON object in UTF-8.")


class InvalidMultipartError(BadRequestError):
    code = "invalid_multipart"

    def __init__(self, *, why: str) -> None:
        super().__init__(f"The body is not the form that was expected: {why}.", hint="send multipart/form-data.")


class InvalidHostError(BadRequestError):
    code = "invalid_host"

    def __init__(self) -> None:
        super().__init__(
            "This server does not answer to the name in the Host header.",
            hint="use its own address, or name yours in AFTERWORDS_PUBLIC_URL or AFTERWORDS_ALLOWED_HOSTS.",
        )


class InvalidFieldError(ServiceError):
    """A field has a value that can't be used."""

    code = "invalid_field"
    http_status = 422
    exit_code = 5

    def __init__(self, param: str, *, rule: str) -> None:
        super().__init__(f"The field {param} can't be used: {rule}.", hint=f"see the reference of the API for {param}.")
        self.param = param


class BadContentTypeError(ServiceError):
    code = "bad_content_type"
    http_status = 422
    exit_code = 5

    def __init__(self, *, allowed: str) -> None:
        super().__init__(f"The content type is not one that is taken; taken: {allowed}.", hint=f"send {allowed}.")


class InvalidWebhookUrlError(ServiceError):
    code = "invalid_webhook_url"
    http_status = 422
    exit_code = 5
    param = "webhook_url"

    def __init__(self, *, why: str) -> None:
        super().__init__(f"The webhook URL can't be used: {why}.", hint="give an https:// URL of a public host.")


class InvalidBundleError(ServiceError):
    code = "invalid_bundle"
    http_status = 422
    exit_code = 5

    def __init__(self, *, why: str) -> None:
        super().__init__(f"The bundle can't be used: {why}.", hint="export the voice again.")


class RequestTooLargeError(ServiceError):
    code = "request_too_large"
    http_status = 413
    exit_code = 5

    def __init__(self, *, maximum_bytes: int) -> None:
        super().__init__(f"The body has more than {maximum_bytes:,} bytes.", hint="send less at once.")


class RequestTimeoutError(ServiceError):
    code = "request_timeout"
    http_status = 408

    def __init__(self, *, waited_s: float) -> None:
        super().__init__(f"The body did not arrive: nothing came for {waited_s:g} s.", hint="send it again.")


class RouteNotFoundError(ServiceError):
    code = "not_found"
    http_status = 404
    exit_code = 4

    def __init__(self) -> None:
        super().__init__("There is nothing at this address.", hint="see the reference of the API.")


class MethodNotAllowedError(ServiceError):
    code = "method_not_allowed"
    allowed: str = ""
    http_status = 405
    exit_code = 5

    def __init__(self, *, allowed: Sequence[str]) -> None:
        methods = ", ".join(allowed)
        super().__init__(f"This address takes {methods}.", hint=f"use {methods}.")
        self.allowed = methods


class RangeNotSatisfiableError(ServiceError):
    code = "range_not_satisfiable"
    size_bytes: int | None = None
    http_status = 416
    exit_code = 5

    def __init__(self, *, size_bytes: int) -> None:
        super().__init__(f"The audio has {size_bytes:,} bytes, and no such range.", hint="ask for one range within it.")
        self.size_bytes = size_bytes


# -- who asks ------------------------------------------------------------------------------------------------


class UnauthorizedError(ServiceError):
    code = "unauthorized"
    http_status = 401
    exit_code = 3

    def __init__(self) -> None:
        super().__init__(
            "The key is missing, unknown, expired or revoked.", hint="send `Authorization: Bearer` and a valid key."
        )


class AdminRequiredError(UnauthorizedError):
    """The key is good, and only the admin secret opens this."""

    code = "admin_required"

    def __init__(self) -> None:
        ServiceError.__init__(
            self,
            "Only the admin secret of the server opens this; a key was sent.",
            hint="set AFTERWORDS_ADMIN_SECRET to the server's; a key without scopes and limit can make keys with "
            "scopes for its own account.",
        )


class InsufficientScopeError(ServiceError):
    code = "insufficient_scope"
    http_status = 403
    exit_code = 3

    def __init__(self, scope: str) -> None:
        super().__init__(f"The key lacks the scope {scope}.", hint=f"use a key with the scope {scope}.")


class LimitError(ServiceError):
    """A limit of use is reached."""

    code = "limit_reached"
    http_status = 429
    exit_code = 6
    limit: int | None = None

    def __init__(self, message: str, *, hint: str, limit: int, retry_after_s: int) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.retry_after_s = retry_after_s


class RateLimitedError(LimitError):
    code = "rate_limited"

    def __init__(self, *, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"The key has used up its {limit:,} requests.",
            hint=f"wait {retry_after_s} s.",
            limit=limit,
            retry_after_s=retry_after_s,
        )


class TooManyAuthFailuresError(LimitError):
    code = "too_many_auth_failures"

    def __init__(self, *, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"More than {limit:,} keys or secrets from this address were wrong within a minute.",
            hint=f"wait {retry_after_s} s, and check the key.",
            limit=limit,
            retry_after_s=retry_after_s,
        )


class TooManyConcurrentRequestsError(LimitError):
    code = "too_many_concurrent_requests"

    def __init__(self, *, limit: int, doing: str = "jobs waiting", retry_after_s: int = 1) -> None:
        super().__init__(
            f"The account has {limit:,} {doing} already, the most there may be.",
            hint="wait until some have ended.",
            limit=limit,
            retry_after_s=retry_after_s,
        )


class QueueFullError(LimitError):
    code = "queue_full"

    def __init__(self, *, limit: int, retry_after_s: int = 5) -> None:
        super().__init__(
            f"The server has {limit:,} jobs waiting already, the most there may be.",
            hint="try again later.",
            limit=limit,
            retry_after_s=retry_after_s,
        )


class QuotaExceededError(LimitError):
    code = "quota_exceeded"

    def __init__(self, *, limit: int, used: int, asked: int, retry_after_s: int) -> None:
        super().__init__(
            f"The key has spent {used:,} of its {limit:,} characters, and this text has {asked:,}.",
            hint="wait for the next period, or ask for a higher limit.",
            limit=limit,
            retry_after_s=retry_after_s,
        )


class StorageQuotaExceededError(ServiceError):
    """The account has stored as much as it may; only less of it helps, not time."""

    code = "storage_quota_exceeded"
    http_status = 507
    exit_code = 6

    def __init__(self, *, stored_bytes: int, quota_bytes: int) -> None:
        super().__init__(
            f"The account may store {quota_bytes / 1e6:,.0f} MB and has {stored_bytes / 1e6:,.1f} MB.",
            hint="delete a voice with its audio and cache, or have AFTERWORDS_STORAGE_PER_ACCOUNT_MB raised.",
        )


# -- what is there -------------------------------------------------------------------------------------------


class JobNotFoundError(ServiceError):
    code = "job_not_found"
    http_status = 404
    exit_code = 4

    def __init__(self) -> None:
        super().__init__("There is no such job.", hint="`GET /v1/jobs` lists those there are.")


class JobNotReadyError(ServiceError):
    code = "job_not_ready"
    http_status = 404
    exit_code = 4

    def __init__(self, status: str) -> None:
        super().__init__(f"The job has no audio: it is {status}.", hint="wait until its status is ready.")


class KeyNotFoundError(ServiceError):
    code = "key_not_found"
    http_status = 404
    exit_code = 4

    def __init__(self) -> None:
        super().__init__("There is no such key.", hint="`afterwords keys list` shows those there are.")


class ConflictError(ServiceError):
    """What is there stands against it."""

    code = "conflict"
    http_status = 409
    exit_code = 5


class IdempotencyConflictError(ConflictError):
    code = "idempotency_conflict"

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key came before with another request.", hint="use a new key for a new request."
        )


class JobFinalError(ConflictError):
    code = "job_final"

    def __init__(self, status: str) -> None:
        super().__init__(f"The job is {status} already, and can't be cancelled.", hint="nothing is left to cancel.")


class AmbiguousVoiceNameError(ConflictError):
    code = "ambiguous_voice_name"

    def __init__(self) -> None:
        super().__init__("Several voices have this name.", hint="use the voice_id; GET /v1/voices lists them.")


class KeyReplacedError(ConflictError):
    code = "key_replaced"

    def __init__(self) -> None:
        super().__init__(
            "This key was replaced and is valid only until its overlap ends, so it can't replace or revoke others.",
            hint="use the key that replaced it; `afterwords keys list` shows both.",
        )


class HomeVoiceError(ConflictError):
    code = "home_voice"

    def __init__(self) -> None:
        super().__init__(
            "This voice belongs to the library on the server's machine and can't be changed over HTTP.",
            hint="run `afterwords voices rename` or `afterwords voices rm` on that machine.",
        )


class StaleAttemptError(ConflictError):
    code = "stale_attempt"

    def __init__(self) -> None:
        super().__init__("Another attempt has taken this job over.", hint="drop this result.")


class VoiceDeletedError(ServiceError):
    code = "voice_deleted"
    http_status = 410
    exit_code = 4

    def __init__(self) -> None:
        super().__init__("The voice was deleted, and the job with it.", hint="drop this result.")


class RunawayAudioError(ServiceError):
    code = "runaway_audio"
    http_status = 422
    exit_code = 7

    def __init__(self, *, duration_s: float, maximum_s: float) -> None:
        super().__init__(
            f"The speech lasts {duration_s:.1f} s, and its text may last at most {maximum_s:.0f} s.",
            hint="try again, or with another seed.",
        )


# -- what the server could not do ----------------------------------------------------------------------------


class LostAudioError(ServiceError):
    """Audio that was kept is gone or altered."""

    code = "audio_lost"

    def __init__(self) -> None:
        super().__init__("The audio is missing from storage or was altered.", hint="synthesize it again.")


class LostReferenceError(ServiceError):
    code = "reference_missing"

    def __init__(self) -> None:
        super().__init__(
            "The reference recording is missing from storage or was altered.", hint="register the voice again."
        )


class ServiceUnavailableError(ServiceError):
    """The server can't do this at the moment; nothing was changed."""

    code = "service_unavailable"
    http_status = 503
    retry_after_s = 1

    def __init__(self, what: str = "The server is stopping", *, hint: str = "try again in a moment.") -> None:
        super().__init__(f"{what}; nothing was changed.", hint=hint)


class DatabaseUnavailableError(ServiceUnavailableError):
    code = "database_unavailable"

    def __init__(self) -> None:
        super().__init__("The database does not answer")


class StorageUnavailableError(ServiceUnavailableError):
    code = "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The storage does not answer")


# -- starting a server ---------------------------------------------------------------------------------------


class ServerSetupError(AfterwordsError):
    """A server can't start with these settings."""

    code = "server_setup"
    exit_code = 2
    http_status = 500


class InsecureServerError(ServerSetupError):
    code = "insecure_server"

    def __init__(self, host: str, *, minimum: int, setting: str = "admin_secret") -> None:
        super().__init__(
            f"{host} can be reached from other machines, and no {setting.replace('_', ' ')} of at least {minimum} "
            "characters is set.",
            hint=f'export AFTERWORDS_{setting.upper()}="$(openssl rand -hex 32)", or serve this machine alone: on '
            "127.0.0.1, without a public URL and allowed hosts.",
        )


class ServerRunningError(ServerSetupError):
    code = "server_running"

    def __init__(self) -> None:
        super().__init__("A server uses the database that would be replaced.", hint="stop it, then run this again.")


class ServerNotEmptyError(ServerSetupError):
    code = "server_not_empty"

    def __init__(self, *, why: str) -> None:
        super().__init__(
            f"There is a server here already: {why}.",
            hint="back it up, then add --replace; or set AFTERWORDS_HOME to another folder.",
        )


class NotOpenedError(ServiceError):
    code = "not_opened"
    http_status = 503

    def __init__(self) -> None:
        super().__init__(
            "The server was not opened: the lifespan of its router did not run.",
            hint="run the application with its lifespan, or enter app.router.lifespan_context(app) of a mounted one "
            "in the lifespan of yours (docs/server.md).",
        )


class OpenedTwiceError(ServerSetupError):
    code = "opened_twice"

    def __init__(self) -> None:
        super().__init__(
            "One router is opened twice: it is included twice, or its application runs twice.",
            hint="make one with router(settings) for each place, each with a data folder of its own.",
        )


class AddressInUseError(ServerSetupError):
    code = "address_in_use"
    exit_code = 8

    def __init__(self, host: str, port: int, *, why: str) -> None:
        super().__init__(f"Nothing can listen on {host} port {port}: {why}.", hint="choose another with --port.")


class NewerDatabaseError(ServerSetupError):
    code = "newer_database"
    exit_code = 1

    def __init__(self, *, found: str, known: str) -> None:
        super().__init__(
            f"The database has schema {found}, and this version knows up to {known}.",
            hint=f"install a newer afterwords: {pip_install(options='--upgrade')}",
        )
