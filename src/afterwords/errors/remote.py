"""A server could not be reached, or what it answered can't be believed; and what becomes of jobs there."""

from __future__ import annotations

from typing import Final

from afterwords.errors.root import AfterwordsError


class RemoteError(AfterwordsError):
    """Something between here and a server went wrong."""

    code = "remote"
    http_status = 502
    exit_code = 8


class UnreachableError(RemoteError):
    """Nothing was sent: no connection came about."""

    code = "unreachable"
    http_status = 503

    def __init__(self, url: str, *, why: str, check: str = "") -> None:
        also = f", and that {check}" if check else ""
        hint = f"see that the address is right and the server runs{also}; `afterwords whoami` shows which one is asked."
        super().__init__(f"There is no connection to {url}: {why}.", hint=hint)


class NetworkSettingError(RemoteError):
    """A proxy or a certificate that the environment names can't be used. Nothing was sent."""

    code = "network_setting"
    http_status = 503

    def __init__(self, variable: str, *, why: str, hint: str) -> None:
        super().__init__(f"The network can't be used as {variable} says: {why}.", hint=hint)


class ConnectionLostError(RemoteError):
    """The connection ended before the answer did. Whether the server did what was asked is not known."""

    code = "connection_lost"

    def __init__(self, url: str, *, why: str = "it was closed", hint: str = "") -> None:
        super().__init__(
            f"The connection to {url} was lost: {why}.",
            hint=hint or "look whether it was done (`afterwords jobs list`), then try again.",
        )


class ServerSilentError(ConnectionLostError):
    code = "server_silent"
    http_status = 504
    exit_code = 9

    def __init__(self, url: str, *, waited_s: float) -> None:
        super().__init__(url, why=f"nothing came for {waited_s:g} s", hint="try again, or give it more time.")


class StrangeAnswerError(RemoteError):
    """What came is no answer of the API, or not the bytes that were meant."""

    code = "strange_answer"

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"The server's answer can't be used: {why}.",
            hint=hint or "see that the address is that of an afterwords server, and that no proxy answers for it.",
        )


class UnsupportedByServerError(RemoteError):
    """The hosted service has no such thing; a server of one's own has."""

    code = "unsupported_by_server"
    http_status = 501
    exit_code = 5

    def __init__(self, what: str) -> None:
        super().__init__(
            f"This server does not know {what}.", hint="ask a server of your own (`afterwords serve`), or do without."
        )


class NotLoggedInError(RemoteError):
    code = "not_logged_in"
    http_status = 401
    exit_code = 3

    def __init__(self, url: str, *, what: str = "key") -> None:
        names = {"key": ("AFTERWORDS_API_KEY", "afterwords login"), "admin secret": ("AFTERWORDS_ADMIN_SECRET", "")}
        variable, command = names[what]
        super().__init__(
            f"There is no {what} for {url}.", hint=f"{f'{command}, or ' if command else ''}set {variable}."
        )


class HubError(RemoteError):
    """The hub of models answered with what can't be used."""

    code = "hub"

    def __init__(self, url: str, *, why: str, hint: str = "") -> None:
        super().__init__(
            f"The model hub {url} {why}.",
            hint=hint or "try again; if it stays, see that HF_ENDPOINT, if set, is a whole mirror.",
        )


class HubUnreachableError(HubError):
    """No connection, or none that lasts."""

    code = "hub_unreachable"
    http_status = 503

    def __init__(self, url: str, *, why: str, check: str = "") -> None:
        also = f", that {check}," if check else ""
        hint = f"see that there is a network{also} and pull again, it goes on where it was; HF_ENDPOINT names a mirror."
        super().__init__(url, why=f"can't be reached: {why}", hint=hint)


class HubRefusedError(HubError):
    code = "hub_refused"
    exit_code = 3

    def __init__(self, url: str, *, what: str, has_token: bool) -> None:
        hint = (
            "see that HF_TOKEN is valid and may read it, or unset it."
            if has_token
            else "set HF_TOKEN to a token that may read it."
        )
        super().__init__(url, why=f"does not hand out {what}", hint=hint)


class HubMissingError(HubError):
    code = "hub_missing"
    http_status = 404
    exit_code = 4

    def __init__(self, url: str, *, what: str) -> None:
        hint = "see that HF_ENDPOINT, if set, is a whole mirror; `--update` takes another revision."
        super().__init__(url, why=f"has no {what}", hint=hint)


class HubBusyError(HubError):
    """It asks for patience, more than a program should have without being told."""

    code = "hub_busy"
    http_status = 503
    exit_code = 6

    def __init__(self, url: str, *, retry_after_s: int | None) -> None:
        wait = "later" if retry_after_s is None else f"in {retry_after_s} s"
        super().__init__(
            url, why="gets too many requests from here", hint=f"pull again {wait}; HF_TOKEN raises the limit."
        )


class RemoteJobError(AfterwordsError):
    """A job on a server did not come to its audio; it is not lost. `job_id` says which."""

    code = "job_error"
    exit_code = 7

    def __init__(self, message: str, *, job_id: str | None, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id


_JOB_FAILURES: Final = {
    "synthesis_failed": ("the engine could not speak the text", ""),
    "worker_lost": ("the process that spoke it ended in every attempt", ""),
    "out_of_memory": ("the server has too little memory for it", ""),
    "runaway_audio": ("the engine did not find the end of the text", ""),
    "reference_missing": ("the recording of the voice is missing from the storage", ""),
    "audio_lost": ("its audio is missing from the storage, or was changed", ""),
    "loading_timed_out": (
        "loading the model made no progress for too long",
        "try again; the setting of the server is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "preparing_timed_out": (
        "preparing the voice made no progress for too long",
        "try again: it goes on where it was. The setting of the server is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "speaking_timed_out": (
        "speaking made no sound for too long",
        "try again; the setting of the server is AFTERWORDS_STALL_S.",
    ),
}
"""What each code of a failed job means, and what to do about it. docs/api.md lists the codes."""


class JobFailedError(RemoteJobError):
    """A job failed. `reason` is the server's code for it."""

    code = "job_failed"

    def __init__(self, job_id: str | None, *, reason: str) -> None:
        meaning, fix = _JOB_FAILURES.get(reason, ("", ""))
        why = f"{meaning} ({reason})" if meaning else reason.rstrip(".")
        fix = fix or "try again; if it fails again, ask the person who runs the server."
        super().__init__(f"The job {job_id} failed: {why}.", job_id=job_id, hint=f"nothing was charged; {fix}")
        self.reason = reason


class JobCancelledError(RemoteJobError):
    code = "job_cancelled"

    def __init__(self, job_id: str | None) -> None:
        super().__init__(
            f"The job {job_id} was cancelled.", job_id=job_id, hint="nothing was charged; ask again if you want it."
        )


class JobTimeoutError(RemoteJobError):
    """The job goes on."""

    code = "job_timeout"
    http_status = 504
    exit_code = 9

    def __init__(self, job_id: str | None, *, waited_s: float) -> None:
        super().__init__(
            f"The job {job_id} is still pending after {waited_s:g} s.",
            job_id=job_id,
            hint=f"it goes on; wait for it again: afterwords jobs wait {job_id}",
        )
