"""The weights that engines need and that are not in the package: which there are, where they lie, and removing them.

    AFTERWORDS_MODELS, or `models` in the home folder
    ├── qwen3-1.7b/             whole and checked, with its lock.json; or a folder that a person put there
    ├── .pulling-qwen3-1.7b/    a pull that is under way, or was broken off; the next one goes on from there
    └── .qwen3-1.7b.lock        held by whoever changes these

A model appears by one rename of its folder, so who looks for it needs no lock, and an update leaves the old one whole
until the new one is. Engines call `locate`; `pulling` fills these folders; the command line calls the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import uuid4

from afterwords import disk
from afterwords.config import Config, load_config
from afterwords.errors import (
    AfterwordsError,
    ForeignModelError,
    ModelBusyError,
    ModelFileError,
    ModelNotHereError,
    UnknownModelError,
)
from afterwords.weights.folder import Lock, ModelFolder

EDGE_BYTES: Final = 1 << 16
"""Read of both ends of a weight file, to tell weights apart that nobody gave a revision."""
Progress = Callable[[int, int, str], None]
"""Told how many bytes are done, of how many, and what is being done."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights with a name.

    Attributes:
        name: that of the backend that speaks with them, and for MLX that of the weights behind it.
        repository: where the hub has them.
        needs: patterns of which each must be met; `*` does not reach into folders.
        takes: patterns of further files that are wanted. Weights are safetensors only: a pickle runs what it holds.
    """

    name: str
    repository: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]


_QWEN3_NEEDS: Final = (
    "config.json",
    "vocab.json",
    "merges.txt",
    "*.safetensors",
    "speech_tokenizer/config.json",
    "speech_tokenizer/*.safetensors",
)
_QWEN3_TAKES: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "*.safetensors.index.json",
    "speech_tokenizer/*.json",
)
CHECKPOINTS: Final = {
    name: Checkpoint(name, repository, _QWEN3_NEEDS, _QWEN3_TAKES)
    for name, repository in (
        ("qwen3-1.7b", "Qwen/Qwen3-TTS-12Hz-1.7B-Base"),
        ("qwen3-0.6b", "Qwen/Qwen3-TTS-12Hz-0.6B-Base"),
        *(
            (f"qwen3-{size}-{weights}", f"mlx-community/Qwen3-TTS-12Hz-{size.upper()}-Base-{weights}")
            for size in ("1.7b", "0.6b")
            for weights in ("bf16", "8bit", "4bit")
        ),
    )
}


class State(StrEnum):
    WHOLE = "whole"
    PARTIAL = "partial"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a checkpoint stands on this machine.

    Attributes:
        path: its folder; None where it is absent.
        revision: the commit that it is; None where a person put it there, or nothing is known yet.
        size_bytes: of all its files, here or not; None where that is not known.
        present_bytes: of what is here.
        problem: why it can't be used, where it is there in part.
        is_pulled: whether it came by `pull`.
    """

    checkpoint: Checkpoint
    state: State
    path: Path | None = None
    revision: str | None = None
    size_bytes: int | None = None
    present_bytes: int = 0
    problem: AfterwordsError | None = None
    is_pulled: bool = False


# -- what is here ---------------------------------------------------------------------------------------------


def named(name: str) -> Checkpoint:
    """The checkpoint of that name.

    Raises:
        UnknownModelError: there is none.
    """
    if name not in CHECKPOINTS:
        raise UnknownModelError(name, known=list(CHECKPOINTS))
    return CHECKPOINTS[name]


def locate(name: str, config: Config | None = None) -> Path:
    """Find the folder of a checkpoint. Nothing is downloaded, and no weights are read.

    Looks in AFTERWORDS_MODELS/<name>, then in `models/<name>` in the home folder.

    Raises:
        UnknownModelError: there is no such checkpoint.
        ModelNotHereError: it was not pulled, or not to the end.
        ModelFileError: a file is missing or cut; says which.
    """
    found = standing(name, config)
    if found.problem is not None:
        raise found.problem
    if found.path is None:
        raise ModelNotHereError(name)
    return found.path


def listing(config: Config | None = None) -> list[Standing]:
    """How every checkpoint stands, in order of preference."""
    return [standing(name, config) for name in CHECKPOINTS]


def standing(name: str, config: Config | None = None) -> Standing:
    """How a checkpoint stands; by the sizes of its files, `verify` reads them.

    Raises:
        UnknownModelError: there is no such checkpoint.
    """
    checkpoint = named(name)
    places = shelves(config or load_config())
    for shelf in places:
        if (shelf / name).is_dir():
            return _standing_of(checkpoint, ModelFolder(shelf / name))
    for shelf in places:
        if (folder := unfinished(shelf, name)).path.is_dir():
            return _standing_of(checkpoint, folder)
    return Standing(checkpoint, State.ABSENT)


def _standing_of(checkpoint: Checkpoint, folder: ModelFolder) -> Standing:
    fix = f"afterwords models pull {checkpoint.name}"
    lock: Lock | None = None
    problem: AfterwordsError | None = None
    is_unfinished = folder.path.name != checkpoint.name
    try:
        lock = folder.lock()
        if is_unfinished:
            problem = ModelNotHereError(checkpoint.name, why="was not pulled to the end")
        elif lock is not None:
            folder.check(lock, hint=fix)
        else:
            folder.check_loose(checkpoint.needs, hint="put it there again, whole, or move that folder away.")
    except ModelFileError as error:
        problem = error
    return Standing(
        checkpoint,
        State.WHOLE if problem is None else State.PARTIAL,
        folder.path,
        revision=lock.revision if lock else None,
        size_bytes=lock.size_bytes if lock else None,
        present_bytes=folder.present_bytes(lock) if lock else _weight(folder.path),
        problem=problem,
        is_pulled=lock is not None or is_unfinished or (folder.path / "lock.json").exists(),
    )


def revision(name: str) -> str:
    """Which weights these are, in up to 18 letters: the commit that was pulled, or, of a person's own, how their files
    begin and end; "none" where there are none.
    """
    try:
        found = standing(name)
        if found.path is None or found.problem is not None:
            return "none"
        return (found.revision or f"local-{_fingerprint(found.path)}")[:18]
    except (AfterwordsError, OSError):
        return "none"


def _fingerprint(folder: Path) -> str:
    digest = sha256()
    for path in sorted([*folder.rglob("config.json"), *folder.rglob("*.safetensors")]):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.relative_to(folder).as_posix()} {size} ".encode())
            for place in (0, max(0, size - EDGE_BYTES)):
                file.seek(place)
                digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def verify(
    name: str, config: Config | None = None, *, progress: Progress = lambda _done, _total, _step: None
) -> Standing:
    """Read every file of a checkpoint, and see that it has the hash that the hub stated when it was pulled.

    Where a person put it there, no hash is known: then only lengths can be checked.

    Raises:
        UnknownModelError, ModelNotHereError: it is not here.
        ModelFileError: a file is missing, cut or altered; says which.
    """
    folder = ModelFolder(locate(name, config))
    lock = folder.lock()
    if lock is not None:
        counted = Counter(lock.size_bytes, progress)
        folder.verify(lock, hint=f"afterwords models pull {name} --repair", told=counted)
    return standing(name, config)


def shelves(config: Config) -> list[Path]:
    """Where checkpoints are looked for; the first is where they are pulled to."""
    own = config.home / "models"
    return [own] if config.models in (None, own) else [config.models, own]


def unfinished(shelf: Path, name: str) -> ModelFolder:
    """Where a pull collects what comes."""
    return ModelFolder(shelf / f".pulling-{name}")


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Counter:
    """Adds up bytes for a progress."""

    def __init__(self, total_bytes: int, progress: Progress, *, done_bytes: int = 0) -> None:
        self._total_bytes, self._progress, self.done_bytes = total_bytes, progress, done_bytes

    def __call__(self, n_bytes: int, step: str) -> None:
        self.done_bytes += n_bytes
        self._progress(min(self.done_bytes, self._total_bytes), self._total_bytes, step)


# -- removing, and being alone --------------------------------------------------------------------------------


def remove(name: str, config: Config | None = None) -> Path:
    """Remove what was pulled of a checkpoint, whole or not, and return where it was.

    Raises:
        UnknownModelError, ModelNotHereError: there is nothing to remove.
        ForeignModelError: a person put it there.
        ModelBusyError: it is being pulled.
    """
    found = standing(name, config)
    if found.path is None:
        raise ModelNotHereError(name)
    if not found.is_pulled or found.path.is_symlink():
        raise ForeignModelError(found.path)
    shelf = found.path.parent
    with alone(shelf, name):
        for path in (found.path, unfinished(shelf, name).path):
            if path.is_dir():
                disk.move(path, shelf / f".trash-{name}-{uuid4()}")
        sweep(shelf, name)
    return found.path


def sweep(shelf: Path, name: str) -> None:
    """Remove what was put away; what another program still holds open goes next time."""
    for path in shelf.glob(f".trash-{name}-*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(shelf: Path, name: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other programs from changing a checkpoint.

    Args:
        waiting: called when another one is at it, whose end is then waited for; without it there is no waiting.
    """
    disk.make_folder(shelf)
    with disk.locked(shelf / f".{name}.lock", timeout_s=0, busy=ModelBusyError(name), waiting=waiting):
        yield
