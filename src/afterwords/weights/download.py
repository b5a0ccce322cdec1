"""Download a checkpoint from the model hub with huggingface_hub: resumed, verified, moved into place when complete.

`afterwords models pull` calls `pull`. Everything that needs no network is in `catalog`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from afterwords import __version__, disk
from afterwords.config import Config, load_config
from afterwords.errors import HubError, InvalidInputError, MissingExtraError, ModelError, StorageFullError
from afterwords.network import explain_network_errors, root_cause, setting_to_check, turn_off_telemetry
from afterwords.weights.catalog import (
    ByteCounter,
    Checkpoint,
    ModelState,
    Progress,
    Source,
    empty_trash,
    find_checkpoint,
    foreign_model,
    get_status,
    lock_model,
    model_roots,
    partial_folder,
)
from afterwords.weights.folder import LOCK, Lock, ModelFile, ModelFolder, has_hash, matches

PUBLIC_URL: Final = "https://huggingface.co"
_CHANGED_HINT: Final = (
    "`afterwords models pull --update` downloads the current revision; if the error persists, a proxy or mirror "
    "alters the file."
)


def pull(
    name: str,
    config: Config | None = None,
    *,
    is_update: bool = False,
    is_repair: bool = False,
    progress: Progress = lambda _done, _total, _step: None,
) -> Path:
    """Download a checkpoint and return its folder.

    A complete checkpoint is left as it is, without asking the hub. An interrupted download is resumed at the same
    revision. Of two processes that pull at once, one waits for the other.

    Args:
        name: Name of the checkpoint.
        config: Settings; None reads them.
        is_update: Download the newest revision; unchanged files are kept.
        is_repair: Verify the files that are here, and download those that were altered.
        progress: Called with bytes done, bytes in total, and the file.

    Raises:
        NotFoundError: There is no such checkpoint.
        ModelError: A download is needed and forbidden.
        MissingExtraError: huggingface_hub is not installed.
        ModelError: A folder of the user's own is in the way.
        HubError: The hub refused, could not be reached, or gave an invalid answer.
        ModelError: A downloaded file has the wrong hash twice, or a file of the user's own is truncated.
        StorageFullError, FileError: The files can't be written; what was downloaded is kept.
    """
    config = config or load_config()
    checkpoint = find_checkpoint(name)
    is_wanted = is_update or is_repair
    if (path := _find_usable(name, config)) and not is_wanted:
        return path
    if config.is_offline:
        raise ModelError(
            f"The model {name} is not downloaded, and AFTERWORDS_OFFLINE or HF_HUB_OFFLINE forbids downloads.",
            code="offline",
            hint=f"unset it, or put the files into the folder {name} in AFTERWORDS_MODELS.",
        )
    root = model_roots(config)[0]
    with lock_model(root, name, on_wait=lambda: progress(0, 1, "waiting for another pull")):
        if (path := _find_usable(name, config)) and not is_wanted:
            return path
        if (root / name).is_symlink() or (path and not get_status(name, config).is_pulled):
            raise foreign_model(path or root / name)
        empty_trash(root, name)
        return _Download(checkpoint, config, progress).run(is_update=is_update)


def _find_usable(name: str, config: Config) -> Path | None:
    """Return the folder of a complete checkpoint; raise the problem of one that the user put there."""
    status = get_status(name, config)
    if status.problem is not None and not status.is_pulled:
        raise status.problem
    return status.path if status.state is ModelState.WHOLE else None


class _Download:
    """One download, while the lock of the checkpoint is held."""

    def __init__(self, checkpoint: Checkpoint, config: Config, progress: Progress) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        roots = model_roots(config)
        self._target = roots[0] / checkpoint.name
        self._partial = partial_folder(roots[0], checkpoint.name)
        folders = [ModelFolder(root / checkpoint.name) for root in roots]
        self._old = next((folder for folder in folders if folder.path.is_dir()), None)
        self._hub = _Hub(checkpoint)

    def run(self, *, is_update: bool) -> Path:
        lock: Lock | None = None
        for folder in filter(None, (self._partial, self._old)):  # keep the revision of what is here
            with suppress(ModelError):
                found = None if is_update or lock else folder.read_lock()
                lock = found if found and found.repository == self._checkpoint.repository else lock
        if lock is None:
            lock = self._hub.read_lock(self._checkpoint)
            if is_update and self._old is not None:
                with suppress(ModelError):
                    old_lock = self._old.read_lock()
                    if old_lock is not None and old_lock.revision == lock.revision:
                        self._old.check_sizes(old_lock, hint="")
                        return self._old.path
        self._partial.write_lock(lock)
        known = {self._partial.path / LOCK}  # files of another revision could fill the disk
        for file in lock.files:
            known |= {self._partial.file_path(file), self._partial.part_path(file)}
        with disk.translate_errors(self._partial.path):
            for path in list(self._partial.path.rglob("*")):
                if not path.is_dir() and path not in known:
                    path.unlink()
        counter = ByteCounter(lock.size_bytes, self._progress)
        for file in lock.files:  # link or copy a file of the folder that will be replaced, if its hash is the same
            if self._old is None or self._partial.has(file) or not self._old.has(file):
                continue
            source, target = self._old.file_path(file), self._partial.file_path(file)
            if has_hash(source, file, on_read=lambda n, name: counter.add(n, f"checking {name}")):
                disk.make_folder(target.parent)
                try:
                    target.hardlink_to(source)
                except OSError:  # on another disk, or on one without links
                    disk.write(target, disk.read_pieces(source))
        needed_bytes = lock.size_bytes - self._partial.present_bytes(lock)
        free_bytes = shutil.disk_usage(self._partial.path).free
        if needed_bytes > free_bytes:
            raise StorageFullError(
                f"The disk that holds {self._partial.path.parent} has {free_bytes / 1e9:.1f} GB free, but "
                f"{needed_bytes / 1e9:.1f} GB are needed."
            )
        counter.done_bytes = sum(file.size_bytes for file in lock.files if self._partial.has(file))
        for file in lock.files:
            if not self._partial.has(file):
                self._download(lock, file, counter)
        if self._target.is_dir():
            disk.move(self._target, self._target.with_name(f".trash-{self._target.name}-{uuid4()}"))
        disk.move(self._partial.path, self._target)
        empty_trash(self._target.parent, self._target.name)
        return self._target

    def _download(self, lock: Lock, file: ModelFile, counter: ByteCounter) -> None:
        """Download one file, verify it and move it to its name. A file with the wrong hash is downloaded once more."""
        part = self._partial.part_path(file)
        disk.make_folder(part.parent)
        done_bytes = counter.done_bytes

        def report(n_bytes: int) -> None:
            counter.done_bytes = max(counter.done_bytes, done_bytes + n_bytes)
            counter.add(0, file.name)

        for _attempt in range(2):
            with disk.translate_errors(part):
                if part.exists() and part.stat().st_size > file.size_bytes:
                    part.unlink()
                part.touch(mode=0o600)
                self._hub.download(lock, file, part, on_bytes=report)
            if has_hash(part, file):
                report(file.size_bytes)
                disk.move(part, self._partial.file_path(file))
                return
            with disk.translate_errors(part):
                part.unlink()
        raise ModelError.for_file(file.name, why="has the wrong hash, in two downloads", hint=_CHANGED_HINT)


class _Hub:
    """The model hub at HF_ENDPOINT, read with the token in HF_TOKEN.

    The token goes to that host only, and not over plain HTTP to another machine.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        InvalidInputError: HF_ENDPOINT or HF_TOKEN is malformed.
        RemoteError: The environment names an unusable proxy or certificate.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        turn_off_telemetry()
        try:
            import huggingface_hub  # noqa: F401
        except ImportError as error:
            raise MissingExtraError.for_extra(checkpoint.extra, purpose=f"Downloading {checkpoint.name}") from error
        self.url = (os.environ.get("HF_ENDPOINT") or PUBLIC_URL).strip().rstrip("/")
        token = os.environ.get("HF_TOKEN", "").strip()
        try:
            parts = urlsplit(self.url)
            is_valid = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
            is_valid = is_valid and self.url.isprintable() and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            hint = f"unset it, or set it to a URL such as {PUBLIC_URL}."
            raise InvalidInputError("HF_ENDPOINT is not the URL of a model hub.", hint=hint)
        if not (token.isascii() and token.isprintable()):
            raise InvalidInputError("HF_TOKEN is not a token.", hint="copy the token again, or unset HF_TOKEN.")
        self._is_loopback = parts.hostname == "localhost"
        with suppress(ValueError):
            self._is_loopback = self._is_loopback or ip_address(str(parts.hostname)).is_loopback
        if not self._is_loopback:
            with (
                explain_network_errors()
            ):  # names unusable settings before the hub's client fails on them in its own words
                httpx.Client().close()
        self._token = token if token and (self._is_loopback or parts.scheme == "https") else False
        self._gated = [source.repository for source in checkpoint.sources if source.is_gated]

    def read_lock(self, checkpoint: Checkpoint) -> Lock:
        """Ask for the newest commit of each repository, and the sizes and hashes of its files."""
        first, *others = (self._read_source(source) for source in checkpoint.sources)
        files = [
            file.model_copy(update={"repository": other.repository, "revision": other.revision})
            for other in others
            for file in other.files
        ]
        return first.model_copy(update={"files": (*first.files, *files)})

    def _read_source(self, source: Source) -> Lock:
        from huggingface_hub import HfApi

        repository = source.repository
        api = HfApi(self.url, token=self._token, library_name="afterwords", library_version=__version__)
        with self._translate_errors(f"repository {repository}"):
            try:
                info = api.model_info(repository, revision=source.revision, timeout=30, files_metadata=True)
                siblings: list[Any] = info.siblings or []
                files = [  # the hub lists the SHA-256 of large files, and the SHA-1 of git of the others
                    ModelFile(name=file.rfilename, size_bytes=file.lfs.size, sha256=file.lfs.sha256)
                    if file.lfs
                    else ModelFile(name=file.rfilename, size_bytes=file.size, git_sha1=file.blob_id)
                    for file in siblings
                    if matches(file.rfilename, (*source.required, *source.optional))
                ]
                lock = Lock(repository=repository, revision=info.sha or "", files=tuple(files))
            except OSError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise HubError.for_url(
                    self.url, why=f"does not state commit, sizes and hashes of {repository}"
                ) from error
        for pattern in source.required:
            if not any(matches(file.name, [pattern]) for file in lock.files):
                raise HubError.for_url(self.url, f"has no {pattern} in {repository}", code="hub_missing")
        return lock

    def download(self, lock: Lock, file: ModelFile, part: Path, *, on_bytes: Callable[[int], None]) -> None:
        """Download a file, from the length that its part already has.

        huggingface_hub.hf_hub_download deletes the partial file of an interrupted download, so this calls the function
        beneath it, which resumes.
        """
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get

        class Bar:
            """Stands in for a tqdm bar, and reports how many bytes of the file are here."""

            def __init__(self, *, initial: int = 0, **_options: Any) -> None:
                self.n = initial

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_exception: object) -> None:
                pass

            def update(self, n_bytes: int) -> None:
                self.n += n_bytes
                on_bytes(self.n)

        repository = file.repository or lock.repository
        url = hf_hub_url(repository, file.name, revision=file.revision or lock.revision, endpoint=self.url)
        headers = {"User-Agent": f"afterwords/{__version__}", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        with part.open("ab") as output, self._translate_errors(f"file {file.name} in {repository}"):
            is_complete = False
            while not is_complete:
                start = output.tell()
                try:
                    http_get(
                        url,
                        output,
                        resume_size=start,
                        headers=headers,
                        expected_size=file.size_bytes,
                        displayed_filename=file.name,
                        tqdm_class=Bar,
                    )
                    is_complete = True
                except httpx2.ReadError:  # a reset connection, which http_get does not retry
                    if output.tell() <= start:
                        raise
            output.flush()
            os.fsync(output.fileno())

    @contextmanager
    def _translate_errors(self, what: str) -> Iterator[None]:
        """Raise HubError and its subclasses for the errors of huggingface_hub and its HTTP library."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            raise self._refusal(error.response, what) from error
        except httpx2.TooManyRedirects as error:
            raise HubError.for_url(self.url, why=f"redirects in a loop for the {what}") from error
        except httpx2.HTTPError as error:
            cause = root_cause(error)
            why = "the connection was lost"
            if isinstance(error, httpx2.TimeoutException):
                why = "it did not answer in time"
            elif isinstance(cause, OSError) and cause.strerror:
                why = cause.strerror.lower()
            check = "" if self._is_loopback else setting_to_check(self.url, error)
            raise self._unreachable(why, check) from error
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            raise HubError.for_url(self.url, why=f"sends another size than it states for the {what}") from error

    def _unreachable(self, why: str, check: str = "") -> HubError:
        also = f" and that {check}" if check else ""
        hint = f"check the network{also}, then pull again to resume; HF_ENDPOINT sets a mirror."
        return HubError.for_url(self.url, f"can't be reached: {why}", code="hub_unreachable", hint=hint)

    def _refusal(self, response: Any, what: str) -> HubError:
        from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

        status = response.status_code
        if status == 429:
            limit = parse_ratelimit_headers(response.headers)
            wait = response.headers.get("Retry-After", "")
            wait_s = int(wait) if wait.isdecimal() else limit.reset_in_seconds if limit else None
            when = "later" if wait_s is None else f"in {wait_s} s"
            hint = f"pull again {when}; HF_TOKEN raises the limit."
            return HubError.for_url(self.url, "received too many requests from here", code="hub_busy", hint=hint)
        if status == 408 or status >= 500:
            return self._unreachable(f"it answers with status {status}")
        if status in (401, 403):  # the public hub answers 401 also for repositories that do not exist
            hint = "set HF_TOKEN to a token that may read it."
            if self._token:
                hint = "check that HF_TOKEN is valid and may read it, or unset it."
            if gated := next((name for name in self._gated if what.endswith(name)), ""):
                then = "check that HF_TOKEN is" if self._token else "set HF_TOKEN to"
                hint = (
                    f"log in and accept the terms at {PUBLIC_URL}/{gated}, and {then} a token of that account with "
                    f"read access, from {PUBLIC_URL}/settings/tokens."
                )
            return HubError.for_url(self.url, f"refused the {what}", code="hub_refused", hint=hint)
        if status in (404, 410):
            return HubError.for_url(self.url, f"has no {what}", code="hub_missing")
        return HubError.for_url(self.url, why=f"answers with status {status} for the {what}")
