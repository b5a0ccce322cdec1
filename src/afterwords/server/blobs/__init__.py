"""The storage of audio: a folder on this disk, or an S3 bucket. These are the adapters of the port `Blobs`.

    /srv/afterwords · file:///srv/afterwords                   a folder
    s3://bucket/prefix?endpoint=https://…&region=…             a bucket of S3, R2 (region auto), MinIO
    memory://                                                  in memory, for tests

The credentials of a bucket come from the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from afterwords.errors import InvalidOptionError
from afterwords.server.ports import Blobs

_OPTIONS = {"endpoint", "region"}


def open_blobs(url: str) -> Blobs:
    """Open the storage at a URL. A missing folder is created; a bucket is not contacted yet.

    Raises:
        InvalidOptionError: The URL is invalid.
        StorageFullError, StorageUnavailableError: The folder can't be created.
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
        raise _invalid_url()
    from afterwords.server.blobs.bucket import open_bucket

    try:
        return open_bucket(parts.netloc, prefix=parts.path.strip("/"), **options)
    except ValueError:  # `from error` would show the URL, which may contain a secret, in a traceback
        raise _invalid_url() from None


def _folder(path: str) -> Blobs:
    from afterwords.server.blobs.folder import open_folder

    if not path:
        raise _invalid_url()
    return open_folder(Path(path).absolute())


def _invalid_url() -> InvalidOptionError:
    return InvalidOptionError(  # without the value, which may contain a secret
        "AFTERWORDS_STORAGE_URL is neither a folder nor a valid s3:// URL.",
        hint="set it to a folder, or to s3://bucket?endpoint=https://…&region=….",
    )
