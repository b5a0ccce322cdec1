"""One folder with the weights of a model, and `lock.json`, which states what belongs in it.

Apart because what was read from the hub once must hold for as long as the files are here: the revision, and the size
and hash of each file. The hub fills a lock, `checkpoints` fills the folder. A file under its own name was checked; one
that is still on its way ends in `.part`. A folder without a lock was brought here by a person, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, Final

from afterwords import disk
from afterwords.errors import ModelFileError

LOCK: Final = "lock.json"
_SCHEMA: Final = 1
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_NAME: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
"""A path within a folder and nothing else: no part of it is hidden, or leads out."""
_HEADER_MAX_BYTES: Final = 100_000_000
"""What the reader of safetensors allows."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model.

    Attributes:
        name: its path within the folder, with `/`.
        sha256: stated by the hub for large files, read from the checked bytes for small ones; None until then.
        git_sha1: of a small file as a git blob, stated by the hub.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def hash(self) -> str:
        """What it is known by."""
        return self.sha256 or str(self.git_sha1)


@dataclass(frozen=True, slots=True)
class Lock:
    """What belongs in a folder: the files of one revision, a commit of a repository on the hub."""

    repository: str
    revision: str
    files: tuple[ModelFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def with_file(self, file: ModelFile) -> Lock:
        """The same with another entry for one file."""
        return replace(self, files=tuple(file if file.name == old.name else old for old in self.files))


class Digest:
    """The hash of a file, of its bytes as they come."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git_sha1 = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)

    def add(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self._file.git_sha1 is not None:
            self._git_sha1.update(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def is_right(self) -> bool:
        """Whether these are the bytes that were stated."""
        return self._file.sha256 in (None, self.sha256) and self._file.git_sha1 in (None, self._git_sha1.hexdigest())


class ModelFolder:
    """A folder of weights. Making one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- the lock --------------------------------------------------------------------------------------------

    def lock(self) -> Lock | None:
        """What belongs here; None where nothing states it.

        Raises:
            ModelFileError: the lock can't be read.
        """
        path = self.path / LOCK
        try:
            return lock_from(json.loads(disk.read(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            why = f"can't be read ({error.strerror})"
            raise ModelFileError(str(path), why=why, hint="see that it is yours to read.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelFileError(str(path), why="is damaged", hint="remove it, and pull the model again.") from error

    def keep(self, lock: Lock) -> None:
        """Write down what belongs here."""
        disk.make_folder(self.path)
        disk.write(self.path / LOCK, [json.dumps({"schema": _SCHEMA, **asdict(lock)}, indent=2).encode(), b"\n"])

    # -- the files -------------------------------------------------------------------------------------------

    def file(self, file: ModelFile) -> Path:
        return self.path / file.name

    def part(self, file: ModelFile) -> Path:
        """Where a file grows. Its hash is in the name, so that bytes of another file are never taken for its own."""
        return self.path / f"{file.name}.{file.hash[:16]}.part"

    def has(self, file: ModelFile) -> bool:
        return _size(self.file(file)) == file.size_bytes

    def present_bytes(self, lock: Lock) -> int:
        """How much of it all is here."""
        return sum(
            file.size_bytes if self.has(file) else min(_size(self.part(file)) or 0, file.size_bytes)
            for file in lock.files
        )

    def check(self, lock: Lock, *, hint: str) -> None:
        """See that every file is here in its size.

        Raises:
            ModelFileError: names the first that is not.
        """
        for file in lock.files:
            size = _size(self.file(file))
            if size != file.size_bytes:
                why = "is missing" if size is None else f"has {size:,} bytes where {file.size_bytes:,} belong"
                raise ModelFileError(str(self.file(file)), why=why, hint=hint)

    def check_loose(self, needs: Sequence[str], *, hint: str) -> None:
        """See that a folder without a lock holds what a model needs, and that no weights are cut short.

        Raises:
            ModelFileError: names the first file that is missing or cut.
        """
        for pattern in needs:
            if not any(path.is_file() for path in self.path.glob(pattern)):
                raise ModelFileError(str(self.path / pattern), why="is missing", hint=hint)
        for index in self._all("*.safetensors.index.json"):
            for shard in shards_of(index, hint=hint):
                if not (index.parent / shard).is_file():
                    raise ModelFileError(str(index.parent / shard), why="is missing", hint=hint)
        for path in self._all("*.safetensors"):
            check_length(path, hint=hint)

    def _all(self, pattern: str) -> list[Path]:
        return sorted(chain(self.path.glob(pattern), self.path.glob(f"*/{pattern}")))

    def verify(self, lock: Lock, *, hint: str, told: Callable[[int, str], None]) -> None:
        """Read every file, and see that it has the hash that the lock states.

        Args:
            told: how many more bytes were read, and of which file.

        Raises:
            ModelFileError: names the first that is missing, cut or altered.
        """
        self.check(lock, hint=hint)
        for file in lock.files:
            if not self.digest(self.file(file), file, told=told).is_right:
                raise ModelFileError(str(self.file(file)), why="was altered: its hash is another", hint=hint)

    def digest(self, path: Path, file: ModelFile, *, told: Callable[[int, str], None]) -> Digest:
        """The hash of what is at a path so far, which is `file` or grows to be."""
        digest = Digest(file)
        for piece in disk.read_pieces(path):
            digest.add(piece)
            told(len(piece), file.name)
        return digest


# -- what a lock may say --------------------------------------------------------------------------------------


def lock_from(value: Any) -> Lock:
    """The lock that JSON states.

    Raises:
        ValueError, KeyError, TypeError: it is none, or names what must not be touched.
    """
    if value["schema"] != _SCHEMA:
        raise ValueError("another schema")
    files = tuple(ModelFile(**entry) for entry in value["files"])
    lock = Lock(str(value["repository"]), value["revision"], files)
    if not is_commit(lock.revision) or not files or not all(map(is_sound, files)):
        raise ValueError("not what a lock holds")
    return lock


def is_sound(file: ModelFile) -> bool:
    """Whether an entry can be believed: a path within the folder, a size, at least one hash."""
    hashes = [found for found in (file.sha256, file.git_sha1) if found is not None]
    return (
        _NAME.fullmatch(file.name) is not None
        and isinstance(file.size_bytes, int)
        and file.size_bytes >= 0
        and bool(hashes)
        and (file.sha256 is None or _SHA256.fullmatch(file.sha256) is not None)
        and (file.git_sha1 is None or _SHA1.fullmatch(file.git_sha1) is not None)
    )


def is_commit(revision: object) -> bool:
    """Whether it names one state for ever, as a branch does not."""
    return isinstance(revision, str) and _SHA1.fullmatch(revision) is not None


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits one of the patterns, part by part: `*` does not reach into folders."""
    parts = name.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


# -- safetensors ----------------------------------------------------------------------------------------------


def check_length(path: Path, *, hint: str) -> None:
    """See that a safetensors file is as long as its header says: 8 bytes, the header, the data.

    Raises:
        ModelFileError: it is cut, or no such file.

    Source: github.com/huggingface/safetensors, "Format".
    """
    try:
        with disk.open_plain(path) as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = file.read(n_header) if n_header <= _HEADER_MAX_BYTES else b""
        ends = list(_ends(json.loads(header)))
        stated = 8 + n_header + max(ends, default=0)
    except OSError as error:
        raise ModelFileError(str(path), why=f"can't be read ({error.strerror})", hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(str(path), why="is cut, or no safetensors file", hint=hint) from error
    size = _size(path)
    if size != stated:
        raise ModelFileError(str(path), why=f"has {size:,} bytes where {stated:,} belong", hint=hint)


def _ends(header: dict[str, Any]) -> Iterator[int]:
    return (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")


def shards_of(index: Path, *, hint: str) -> list[str]:
    """The files that an index names.

    Raises:
        ModelFileError: it can't be read.
    """
    try:
        names = sorted(set(json.loads(disk.read(index))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(str(index), why="can't be read", hint=hint) from error
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ModelFileError(str(index), why="names files that lie elsewhere", hint=hint)
    return names


def _size(path: Path) -> int | None:
    """How long a file is; None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
