"""Where the audio bytes lie: a folder on this disk, or a bucket that speaks S3. The adapters of the port `Blobs`.

    /srv/afterwords · file:///srv/afterwords                   a folder
    s3://bucket/prefix?endpoint=https://…&region=…             a bucket of S3, R2 (region auto), MinIO
    memory://                                                  nothing is kept: for tests

Keys for a bucket come from the environment under their usual names (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from afterwords.errors import InvalidOptionError
from afterwords.server.ports import Blobs

_OPTIONS = {"endpoint", "region"}


def open_blobs(url: str) -> Blobs:
    """Make the storage that a URL names. A folder is made where there is none; nothing is asked of a bucket yet.

    Raises:
        InvalidOptionError: the URL names no storage.
        StorageFullError, StorageUnavailableError: the folder can't be made.
    """
    if "://" not in url:
        return _folder(url)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and not parts.query and not parts.fragment:
        return _folder(unquote(parts.path))
    if parts.scheme == "memory" and not (parts.netloc or parts.path or parts.query):
        from afterwords.server.blobs.bucket import open_memory

        return open_memory()
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    has_user = any("@" in part for part in (parts.netloc, *options.values()))
    if parts.scheme != "s3" or not parts.netloc or has_user or options.keys() - _OPTIONS:
        raise _unusable()
    from afterwords.server.blobs.bucket import open_bucket

    try:
        return open_bucket(parts.netloc, prefix=parts.path.strip("/"), **options)
    except ValueError:  # `from error` would put the URL, which may hold a secret, into a traceback
        raise _unusable() from None


def _folder(path: str) -> Blobs:
    from afterwords.server.blobs.folder import open_folder

    if not path:
        raise _unusable()
    return open_folder(Path(path).absolute())


def _unusable() -> InvalidOptionError:
    return InvalidOptionError.for_option(
        "AFTERWORDS_STORAGE_URL", value="what it is", allowed="a folder, or s3://bucket?endpoint=https://…&region=…"
    )
