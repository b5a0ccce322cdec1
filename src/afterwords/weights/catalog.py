"""The checkpoints that engines need and that are not part of the package: their status on this machine, and removal.

    AFTERWORDS_MODELS, or `models` in the home folder
    ├── qwen3-1.7b/             complete and verified, with its lock.json; or a folder that the user put there
    ├── .pulling-qwen3-1.7b/    a download in progress or interrupted; the next pull resumes it
    └── .qwen3-1.7b.lock        held while one of these changes

A model appears by one rename of its folder, so readers need no lock, and an update keeps the old one until the new
one is complete. Engines call `locate`; the `download` module fills the folders; the command line calls the rest.
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
from afterwords.errors import AfterwordsError, ModelError, NotFoundError
from afterwords.weights.folder import LOCK, Lock, ModelFolder

EDGE_BYTES: Final = 1 << 16
"""Bytes read from both ends of a weight file to fingerprint weights without a revision."""
Progress = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in total, and the current step."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a checkpoint in one repository of the hub.

    Attributes:
        repository: Repository on the hub.
        required: Patterns of which each must match a file; `*` does not cross a slash.
        optional: Patterns of further files to download. Weights are safetensors only, since a pickle can run code.
        revision: Commit or branch to download.
        is_gated: The hub gives the files only to accounts that accepted the terms on the page of the repository.
    """

    repository: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    revision: str = "main"
    is_gated: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights with a name.

    Attributes:
        name: Name of the backend that loads them; for MLX followed by the format of the weights.
        sources: Where its files are. The first source has the weights, and their commit is the revision.
        extra: The extra of afterwords that loads and downloads them.
        terms: License and conditions of the weights, shown before the first download; empty if only the page of the
            repository states them.
    """

    name: str
    sources: tuple[Source, ...]
    extra: str
    terms: str = ""

    @property
    def repository(self) -> str:
        return self.sources[0].repository

    @property
    def required(self) -> list[str]:
        return [pattern for source in self.sources for pattern in source.required]


_QWEN3_REQUIRED: Final = (
    "config.json",
    "vocab.json",
    "merges.txt",
    "*.safetensors",
    "speech_tokenizer/config.json",
    "speech_tokenizer/*.safetensors",
)
_QWEN3_OPTIONAL: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "*.safetensors.index.json",
    "speech_tokenizer/*.json",
)
_POCKET: Final = Checkpoint(
    "pocket",
    (  # the commits that pocket-tts 4.0.1 names; `languages/english` would change its weights under one name
        Source(
            "kyutai/pocket-tts",
            ("languages/english_2026-10/model.safetensors",),
            ("languages/english_2026-10/config.yaml",),
            revision="db04f0e653473e5c7333c69686ac92b7460b0c1d",
            is_gated=True,
        ),
        Source(
            "kyutai/pocket-tts-without-voice-cloning",
            ("languages/english_2026-09/tokenizer.json",),
            revision="00eac05ed3d16bdc3f6b5d598874019c34a89214",
        ),
    ),
    "pocket",
    "Pocket TTS by Kyutai: the weights are under CC-BY-4.0, so credit Kyutai where you publish speech; the code is "
    "under MIT. Kyutai prohibits cloning a voice without explicit, lawful consent, and speech that deceives or harms. "
    "The repository is gated: accept its terms once at https://huggingface.co/kyutai/pocket-tts, create a token with "
    "read access at https://huggingface.co/settings/tokens, and set HF_TOKEN to it.",
)
CHECKPOINTS: Final = {
    **{
        name: Checkpoint(name, (Source(repository, _QWEN3_REQUIRED, _QWEN3_OPTIONAL),), extra)
        for name, repository, extra in (
            ("qwen3-1.7b", "Qwen/Qwen3-TTS-12Hz-1.7B-Base", "cuda"),
            ("qwen3-0.6b", "Qwen/Qwen3-TTS-12Hz-0.6B-Base", "cuda"),
            *(
                (f"qwen3-{size}-{weights}", f"mlx-community/Qwen3-TTS-12Hz-{size.upper()}-Base-{weights}", "mlx")
                for size in ("1.7b", "0.6b")
                for weights in ("bf16", "8bit", "4bit")
            ),
        )
    },
    "pocket": _POCKET,
}


class ModelState(StrEnum):
    WHOLE = "whole"
    PARTIAL = "partial"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Status of a checkpoint on this machine.

    Attributes:
        path: Its folder, or None if absent.
        revision: Commit of the files, or None if unknown or if the user put them there.
        size_bytes: Total size of the files of the revision, or None if unknown.
        present_bytes: Size of what is here.
        problem: Why it can't be used, if partial.
        is_pulled: Whether it was downloaded by `pull`.
    """

    checkpoint: Checkpoint
    state: ModelState
    path: Path | None = None
    revision: str | None = None
    size_bytes: int | None = None
    present_bytes: int = 0
    problem: AfterwordsError | None = None
    is_pulled: bool = False


def find_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint of that name, or raise NotFoundError."""
    if name not in CHECKPOINTS:
        raise NotFoundError(
            f"There is no model '{name}'.",
            code="unknown_model",
            hint=f"choose one of: {', '.join(CHECKPOINTS)}.",
        )
    return CHECKPOINTS[name]


def locate(name: str, config: Config | None = None) -> Path:
    """Return the folder of a checkpoint, without network access and without reading weights.

    The folder is AFTERWORDS_MODELS/<name> or `models/<name>` in the home folder, in this order.

    Raises:
        NotFoundError: There is no such checkpoint.
        ModelError: It was not downloaded, or not completely.
        ModelError: A file is missing or truncated.
    """
    status = get_status(name, config)
    if status.problem is not None:
        raise status.problem
    if status.path is None:
        raise ModelError.not_downloaded(name)
    return status.path


def list_statuses(config: Config | None = None) -> list[ModelStatus]:
    """Return the status of every checkpoint, in order of preference."""
    return [get_status(name, config) for name in CHECKPOINTS]


def get_status(name: str, config: Config | None = None) -> ModelStatus:
    """Return the status of a checkpoint, judged by the sizes of its files; `verify` reads them.

    Raises:
        NotFoundError: There is no such checkpoint.
    """
    checkpoint = find_checkpoint(name)
    roots = model_roots(config or load_config())
    folders = [ModelFolder(root / name) for root in roots] + [partial_folder(root, name) for root in roots]
    folder = next((folder for folder in folders if folder.path.is_dir()), None)
    if folder is None:
        return ModelStatus(checkpoint, ModelState.ABSENT)
    lock: Lock | None = None
    problem: AfterwordsError | None = None
    is_partial = folder.path.name != name
    try:
        lock = folder.read_lock()
        if is_partial:
            problem = ModelError.not_downloaded(name, why="is not completely downloaded")
        elif lock is not None:
            folder.check_sizes(lock, hint=f"afterwords models pull {name}")
        else:
            hint = "copy the complete model there again, or move that folder away."
            folder.check_without_lock(checkpoint.required, hint=hint)
    except ModelError as error:
        problem = error
    return ModelStatus(
        checkpoint,
        ModelState.WHOLE if problem is None else ModelState.PARTIAL,
        folder.path,
        revision=lock.revision if lock else None,
        size_bytes=lock.size_bytes if lock else None,
        present_bytes=folder.present_bytes(lock),
        problem=problem,
        is_pulled=lock is not None or is_partial or (folder.path / LOCK).exists(),
    )


def find_revision(name: str) -> str:
    """Return what identifies the weights, in up to 18 characters.

    This is the downloaded commit; for weights of the user's own a hash over both ends of the files; "none" if the
    checkpoint can't be used.
    """
    try:
        status = get_status(name)
        if status.path is None or status.problem is not None:
            return "none"
        if status.revision is not None:
            return status.revision[:18]
        digest = sha256()
        for path in sorted([*status.path.rglob("config.json"), *status.path.rglob("*.safetensors")]):
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.relative_to(status.path).as_posix()} {size} ".encode())
                for offset in (0, max(0, size - EDGE_BYTES)):
                    file.seek(offset)
                    digest.update(file.read(EDGE_BYTES))
        return f"local-{digest.hexdigest()}"[:18]
    except (AfterwordsError, OSError):
        return "none"


def verify(
    name: str, config: Config | None = None, *, progress: Progress = lambda _done, _total, _step: None
) -> ModelStatus:
    """Read every file of a checkpoint and compare its hash with the one in `lock.json`.

    Without a lock no hash is known; then only lengths are checked.

    Raises:
        NotFoundError, ModelError: The checkpoint is not here.
        ModelError: A file is missing, truncated or altered.
    """
    folder = ModelFolder(locate(name, config))
    lock = folder.read_lock()
    if lock is not None:
        counter = ByteCounter(lock.size_bytes, progress)
        folder.verify(lock, hint=f"afterwords models pull {name} --repair", on_read=counter.add)
    return get_status(name, config)


def model_roots(config: Config) -> list[Path]:
    """Return the folders where checkpoints are looked up; downloads go to the first."""
    own = config.home / "models"
    return [own] if config.models in (None, own) else [config.models, own]


def partial_folder(root: Path, name: str) -> ModelFolder:
    """Return the folder in which a download is collected."""
    return ModelFolder(root / f".pulling-{name}")


class ByteCounter:
    """Adds up bytes and reports them to a Progress."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes, self._progress, self.done_bytes = total_bytes, progress, 0

    def add(self, n_bytes: int, step: str) -> None:
        self.done_bytes += n_bytes
        self._progress(min(self.done_bytes, self._total_bytes), self._total_bytes, step)


def remove(name: str, config: Config | None = None) -> Path:
    """Remove what was downloaded of a checkpoint and return its folder.

    Raises:
        NotFoundError, ModelError: There is nothing to remove.
        ModelError: The user put it there.
        ModelError: Another process is downloading it.
    """
    status = get_status(name, config)
    if status.path is None:
        raise ModelError.not_downloaded(name)
    if not status.is_pulled or status.path.is_symlink():
        raise foreign_model(status.path)
    root = status.path.parent
    with lock_model(root, name):
        for path in (status.path, partial_folder(root, name).path):
            if path.is_dir():
                disk.move(path, root / f".trash-{name}-{uuid4()}")
        empty_trash(root, name)
    return status.path


def foreign_model(path: Path) -> ModelError:
    why = f"The model in {path} was not downloaded by afterwords, so it is not changed."
    return ModelError(why, code="foreign_model")


def empty_trash(root: Path, name: str) -> None:
    """Delete replaced and removed folders; what another program holds open is deleted next time."""
    for path in root.glob(f".trash-{name}-*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock_model(root: Path, name: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes from changing a checkpoint.

    Args:
        root: Folder that holds the checkpoint's folder.
        name: Name of the checkpoint.
        on_wait: Called once before waiting for another process; if None, ModelError is raised instead.
    """
    disk.make_folder(root)
    with disk.lock(
        root / f".{name}.lock",
        timeout_s=0,
        busy=ModelError(f"Another process is downloading the model {name}.", code="model_busy"),
        waiting=on_wait,
    ):
        yield
