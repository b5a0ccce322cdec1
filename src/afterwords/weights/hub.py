"""The public hub of models: what a repository holds at a commit, and the bytes of its files, to the last one.

Two of the hub's addresses are used: `GET /api/models/<repository>/revision/<revision>?blobs=true` states sizes and
hashes, `GET /<repository>/resolve/<commit>/<file>` leads to the bytes, mostly on another host. The token goes to the
hub alone, and only where nobody on the way can read it. No file is written here: `checkpoints` does, and checks hashes.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx

from afterwords import __version__
from afterwords.client.profiles import Access, check_secret, check_url
from afterwords.errors import (
    AfterwordsError,
    HubBusyError,
    HubError,
    HubMissingError,
    HubRefusedError,
    HubUnreachableError,
    InvalidInputError,
    ModelFileError,
)
from afterwords.network import checked_network, root_cause, setting_to_check
from afterwords.weights.folder import Lock, ModelFile, is_commit, is_sound, matches

PUBLIC_URL: Final = "https://huggingface.co"
RETRIES: Final = 5
BACKOFF_S, BACKOFF_MAX_S = 0.5, 8.0
RETRY_AFTER_MAX_S: Final = 60
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
JSON_MAX_BYTES: Final = 16 * 2**20
CHANGED: Final = (
    "`afterwords models pull --update` takes what is there now; if it stays, something alters it on the way."
)

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE_START: Final = re.compile(r"bytes (\d{1,18})-")
_RESET: Final = re.compile(r"\bt=(\d{1,9})\b")
"""Seconds until the limit is reset, in the header RateLimit. Source: huggingface.co/docs/hub/rate-limits."""


class _PassingError(Exception):
    """What may go well next time; `error` is what to tell if it does not."""

    def __init__(self, error: AfterwordsError, *, wait_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s


class Hub:
    """A hub and a connection to it; close it, or use it as a context.

    Args:
        url: None takes HF_ENDPOINT, else the public hub.
        token: None takes HF_TOKEN; none is needed for what is public.
        pause: how time is let pass before a request is repeated.

    Raises:
        InvalidInputError: HF_ENDPOINT or HF_TOKEN can't be used.
        NetworkSettingError: a proxy or a certificate that the environment names can't be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        environ: Mapping[str, str] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        env = os.environ if environ is None else environ
        self._access = _access(url or env.get("HF_ENDPOINT") or PUBLIC_URL, token or env.get("HF_TOKEN") or None)
        self._pause = pause
        self._is_reached = False
        with checked_network():
            self._http = httpx.Client(
                headers={"User-Agent": f"afterwords/{__version__}", "Accept-Encoding": "identity"},
                timeout=TIMEOUT,
                trust_env=not self._access.is_loopback,
                follow_redirects=True,  # httpx takes the token off where one leads to another host
                max_redirects=5,
            )

    @property
    def url(self) -> str:
        return self._access.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._http.close()

    # -- what there is ---------------------------------------------------------------------------------------

    def lock(self, repository: str, *, takes: Sequence[str], needs: Sequence[str]) -> Lock:
        """Ask what the newest commit of a repository holds.

        Args:
            takes: patterns of the files that are wanted.
            needs: patterns of which each must be there.

        Raises:
            HubError and its kinds: the hub refused, was not reached, or its answer can't be used.
        """
        path = f"/api/models/{repository}/revision/main?blobs=true"
        told = self._repeated(lambda: self._json(path, what=f"repository {repository}"))
        try:
            siblings = [sibling for sibling in told["siblings"] if matches(sibling["rfilename"], takes)]
            lock = Lock(repository, told["sha"], tuple(map(_file_of, siblings)))
            is_usable = is_commit(lock.revision) and all(map(is_sound, lock.files))
        except (KeyError, TypeError, AttributeError):
            is_usable = False
        if not is_usable:
            raise HubError(self.url, why=f"does not state commit, sizes and hashes of {repository}")
        for pattern in needs:
            if not any(matches(file.name, [pattern]) for file in lock.files):
                raise HubMissingError(self.url, what=f"{pattern} in {repository}")
        return lock

    def _json(self, path: str, *, what: str) -> Any:
        with self._answer(path, what=what) as response:
            if _origin(response.url) != _origin(httpx.URL(self.url)):  # its hashes would be another's word
                raise HubError(self.url, why=f"sends those who ask for {what} to another host")
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > JSON_MAX_BYTES:
                    raise HubError(self.url, why=f"says far too much of {what}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HubError(self.url, why=f"answers for {what} with what is not JSON") from error

    # -- files -----------------------------------------------------------------------------------------------

    def pieces(self, lock: Lock, file: ModelFile, *, start: int = 0) -> Iterator[bytes]:
        """Fetch a file from a byte on, going on where a connection breaks off.

        No ETag guards the joints: hosts behind the hub name the same bytes differently, mirrors leave it out, and the
        commit in the address means one content for ever. The hash of the whole file decides.

        Raises:
            HubError and its kinds: the hub refused, or kept failing without a byte in between.
            ModelFileError: the hub now has another file at this commit.
        """
        failures = 0
        while start < file.size_bytes:
            try:
                for piece in self._rest(lock, file, start):
                    failures = 0
                    start += len(piece)
                    if start > file.size_bytes:
                        raise _changed(file)
                    yield piece
                if start < file.size_bytes:
                    raise _PassingError(HubUnreachableError(self.url, why=f"{file.name} ended too early"))
            except _PassingError as passing:
                self._wait(failures, passing)
                failures += 1

    def _rest(self, lock: Lock, file: ModelFile, start: int) -> Iterator[bytes]:
        """The bytes from `start` on, as far as one connection brings them."""
        path = f"/{lock.repository}/resolve/{lock.revision}/{file.name}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._answer(path, what=f"file {file.name} in {lock.repository}", headers=headers) as response:
            self._check(response, file)
            skip = start - _first_byte(response, start)
            if skip < 0:
                raise HubError(self.url, why=f"sent another part of {file.name} than was asked for")
            for piece in response.iter_bytes():
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))

    def _check(self, response: httpx.Response, file: ModelFile) -> None:
        """See on the way, before gigabytes come, that the hub still means the same file."""
        for hop in (*response.history, response):
            told = hop.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
            if file.git_sha1 is None and _SHA256.fullmatch(told) and told != file.sha256:
                raise _changed(file)

    # -- one request, and the next ---------------------------------------------------------------------------

    @contextmanager
    def _answer(self, path: str, *, what: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """Ask once.

        Raises:
            _PassingError: it may go well next time.
            HubError and its kinds: it will not.
        """
        headers = dict(headers or {})
        if self._access.api_key is not None and self._access.is_private:
            headers["Authorization"] = f"Bearer {self._access.api_key}"
        try:
            with self._http.stream("GET", f"{self.url}{path}", headers=headers) as response:
                self._is_reached = True
                if response.status_code not in (200, 206):
                    raise self._refusal(response, what)
                yield response
        except httpx.TooManyRedirects as error:
            raise HubError(self.url, why=f"leads round in circles to the {what}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            check = "" if self._access.is_loopback or self._is_reached else setting_to_check(self.url, error)
            unreachable = HubUnreachableError(self.url, why=_why(error), check=check)
            if not self._is_reached:  # no network, or a wrong address: waiting helps little
                raise unreachable from error
            raise _PassingError(unreachable) from error
        except httpx.InvalidURL as error:
            raise HubError(self.url, why=f"leads to no address for the {what}") from error

    def _refusal(self, response: httpx.Response, what: str) -> Exception:
        status = response.status_code
        if status in _PASSING:
            if status != 429:
                return _PassingError(HubUnreachableError(self.url, why=f"it answers with status {status}"))
            wish_s = _retry_after(response)
            busy = HubBusyError(self.url, retry_after_s=wish_s)
            return busy if (wish_s or 0) > RETRY_AFTER_MAX_S else _PassingError(busy, wait_s=wish_s)
        if status in (401, 403):  # the public hub says 401 also of what does not exist
            return HubRefusedError(self.url, what=f"the {what}", has_token=self._access.api_key is not None)
        if status in (404, 410):
            return HubMissingError(self.url, what=what)
        return HubError(self.url, why=f"answers with status {status} for the {what}")

    def _repeated(self, ask: Callable[[], Any]) -> Any:
        for failures in range(RETRIES + 1):
            try:
                return ask()
            except _PassingError as passing:
                self._wait(failures, passing)
        raise AssertionError("the last wait raises")

    def _wait(self, failures: int, passing: _PassingError) -> None:
        """Let time pass before the next try; raises what to tell if there is none."""
        if failures == RETRIES:
            raise passing.error from passing
        backoff_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0**failures) * random.uniform(0.5, 1.0)
        self._pause(backoff_s if passing.wait_s is None else passing.wait_s + random.uniform(0.0, 0.25))


def _access(url: str, token: str | None) -> Access:
    try:
        url = check_url(url)
    except InvalidInputError as error:
        raise InvalidInputError(
            "HF_ENDPOINT is not the address of a hub.", hint=f"unset it, or give one such as {PUBLIC_URL}."
        ) from error
    return Access(url, api_key=None if token is None else check_secret(token, "the token in HF_TOKEN"))


def _file_of(sibling: Mapping[str, Any]) -> ModelFile:
    """Large files state their SHA-256; the others are git blobs, and state its SHA-1."""
    lfs = sibling.get("lfs")
    if lfs:
        return ModelFile(sibling["rfilename"], lfs["size"], sha256=lfs["sha256"])
    return ModelFile(sibling["rfilename"], sibling["size"], git_sha1=sibling["blobId"])


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _first_byte(response: httpx.Response, asked: int) -> int:
    """Where in the file the body begins; a mirror may answer a range without saying which."""
    if response.status_code != 206:
        return 0
    told = _RANGE_START.match(response.headers.get("Content-Range", ""))
    return int(told[1]) if told else asked


def _changed(file: ModelFile) -> ModelFileError:
    return ModelFileError(file.name, why="was changed at the hub since its hash was read", hint=CHANGED)


def _retry_after(response: httpx.Response) -> int | None:
    wish = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", wish):
        return int(wish)
    told = _RESET.search(response.headers.get("RateLimit", ""))
    return int(told[1]) if told else None


def _why(error: Exception) -> str:
    cause = root_cause(error)
    if isinstance(error, httpx.TimeoutException):
        return "nothing came in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return "the connection ended too early"
