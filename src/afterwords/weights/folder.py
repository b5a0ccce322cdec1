"""A folder with the weights of one checkpoint, and its `lock.json`: the revision, and the size and hash of each file.

A file that is still being downloaded ends in `.part`. A folder without a lock was put there by the user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from afterwords import disk
from afterwords.errors import ModelError

LOCK: Final = "lock.json"
_HEADER_MAX_BYTES: Final = 100_000_000
"""The limit of the safetensors library."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")]
"""A path inside a folder: no part is hidden or leads out."""
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class ModelFile(BaseModel):
    """A file of a model. The hub states the SHA-256 of large files, and the SHA-1 of git of small ones.

    `repository` and `revision` are set if they differ from those of the lock.
    """

    model_config = ConfigDict(frozen=True)

    name: FileName
    size_bytes: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    git_sha1: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    repository: str | None = None
    revision: Commit | None = None

    @model_validator(mode="after")
    def _check_has_hash(self) -> Self:
        if self.sha256 is None and self.git_sha1 is None:
            raise ValueError("the file has no hash")
        return self


class Lock(BaseModel):
    """The files of one revision (a commit) of a hub repository, as `lock.json` holds them."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    repository: str
    revision: Commit
    files: tuple[ModelFile, ...] = Field(min_length=1)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class ModelFolder:
    """A folder of weights. Nothing is read or created until a method is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_lock(self) -> Lock | None:
        """Return the lock, or None if the folder has none.

        Raises:
            ModelError: The lock can't be read.
        """
        path = self.path / LOCK
        try:
            return Lock.model_validate_json(disk.read(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            why = f"can't be read ({error.strerror})"
            raise ModelError.for_file(str(path), why=why, hint="check its permissions.") from error
        except ValidationError as error:
            raise ModelError.for_file(
                str(path), why="is damaged", hint="delete it and pull the model again."
            ) from error

    def write_lock(self, lock: Lock) -> None:
        """Write the lock, creating the folder if needed."""
        disk.make_folder(self.path)
        disk.write(self.path / LOCK, [lock.model_dump_json(by_alias=True, indent=2).encode(), b"\n"])

    def file_path(self, file: ModelFile) -> Path:
        return self.path / file.name

    def part_path(self, file: ModelFile) -> Path:
        """Return where a file is downloaded to; the hash in its name keeps bytes of two versions apart."""
        return self.path / f"{file.name}.{(file.sha256 or str(file.git_sha1))[:16]}.part"

    def has(self, file: ModelFile) -> bool:
        return _size(self.file_path(file)) == file.size_bytes

    def present_bytes(self, lock: Lock | None) -> int:
        """Return how many bytes of the locked files are here; without a lock, the size of the folder."""
        if lock is None:
            return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        return sum(
            file.size_bytes if self.has(file) else min(_size(self.part_path(file)) or 0, file.size_bytes)
            for file in lock.files
        )

    def check_sizes(self, lock: Lock, *, hint: str) -> None:
        """Raise ModelError for the first locked file that is missing or has another size."""
        for file in lock.files:
            size = _size(self.file_path(file))
            if size != file.size_bytes:
                why = "is missing" if size is None else f"has {size:,} bytes instead of {file.size_bytes:,}"
                raise ModelError.for_file(str(self.file_path(file)), why=why, hint=hint)

    def check_without_lock(self, required: Sequence[str], *, hint: str) -> None:
        """Raise ModelError for the first required file that is missing, or weight file that is truncated.

        Args:
            required: Patterns; each must match at least one file.
            hint: How to fix it.
        """
        for pattern in required:
            if not any(path.is_file() for path in self.path.glob(pattern)):
                raise ModelError.for_file(str(self.path / pattern), why="is missing", hint=hint)
        indexes, weights = (
            sorted(self.path.rglob(pattern)) for pattern in ("*.safetensors.index.json", "*.safetensors")
        )
        for index in indexes:
            for shard in read_shard_names(index, hint=hint):
                if not (index.parent / shard).is_file():
                    raise ModelError.for_file(str(index.parent / shard), why="is missing", hint=hint)
        for path in weights:
            check_length(path, hint=hint)

    def verify(self, lock: Lock, *, hint: str, on_read: Callable[[int, str], None]) -> None:
        """Read every locked file and compare its hash.

        Args:
            lock: The expected files.
            hint: How to fix a damaged file.
            on_read: Called with a number of bytes read and the file's name.

        Raises:
            ModelError: A file is missing, truncated or altered.
        """
        self.check_sizes(lock, hint=hint)
        for file in lock.files:
            if not has_hash(self.file_path(file), file, on_read=on_read):
                raise ModelError.for_file(str(self.file_path(file)), why="was altered: its hash differs", hint=hint)


def has_hash(
    path: Path, file: ModelFile, *, on_read: Callable[[int, str], None] = lambda _n_bytes, _name: None
) -> bool:
    """Return whether the file at a path has the hashes that are stated for `file`."""
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    for block in disk.read_pieces(path):
        sha256.update(block)
        if file.git_sha1 is not None:
            git_sha1.update(block)
        on_read(len(block), file.name)
    return file.sha256 in (None, sha256.hexdigest()) and file.git_sha1 in (None, git_sha1.hexdigest())


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a path matches one of the patterns, in which `*` does not cross a slash."""
    parts = name.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def check_length(path: Path, *, hint: str) -> None:
    """Check that a safetensors file is as long as its header says: 8 bytes, the header, the tensors.

    Raises:
        ModelError: The file is truncated or is not a safetensors file.

    Source: github.com/huggingface/safetensors, "Format".
    """
    try:
        with disk.open_plain(path) as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_header) if n_header <= _HEADER_MAX_BYTES else b"")
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + n_header + max(ends, default=0)
    except OSError as error:
        raise ModelError.for_file(str(path), why=f"can't be read ({error.strerror})", hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError.for_file(str(path), why="is truncated or not a safetensors file", hint=hint) from error
    size = _size(path)
    if size != expected:
        raise ModelError.for_file(str(path), why=f"has {size:,} bytes instead of {expected:,}", hint=hint)


class _ShardIndex(BaseModel):
    weight_map: dict[str, FileName]


def read_shard_names(index: Path, *, hint: str) -> list[str]:
    """Return the names of the files that a `*.safetensors.index.json` lists.

    Raises:
        ModelError: The index can't be read, or names files outside its folder.
    """
    try:
        return sorted(set(_ShardIndex.model_validate_json(disk.read(index)).weight_map.values()))
    except (OSError, ValidationError) as error:
        raise ModelError.for_file(str(index), why="is not an index of weight files", hint=hint) from error


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if there is no such file."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
