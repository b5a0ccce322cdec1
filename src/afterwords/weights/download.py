"""Bringing a checkpoint from the hub to this machine: resumed, checked, and put in its place whole.

Apart from `checkpoints`, which engines use: what is here needs no network. The command line calls `pull`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from afterwords import disk
from afterwords.config import Config, load_config
from afterwords.errors import ForeignModelError, ModelFileError, OfflineError, StorageFullError
from afterwords.weights.catalog import (
    Checkpoint,
    Counter,
    Progress,
    State,
    alone,
    named,
    shelves,
    standing,
    sweep,
    unfinished,
)
from afterwords.weights.folder import LOCK, Digest, Lock, ModelFile, ModelFolder

if TYPE_CHECKING:
    from afterwords.weights.hub import Hub


def pull(
    name: str,
    config: Config | None = None,
    *,
    is_update: bool = False,
    is_repair: bool = False,
    progress: Progress = lambda _done, _total, _step: None,
    hub: Callable[[], Hub] | None = None,
) -> Path:
    """Bring a checkpoint from the hub to this machine, whole or not at all, and return its folder.

    One that is here is left as it is, and the hub is not asked. A pull that was broken off goes on where it was, at the
    revision that was the newest when it began. Of two pulls at once, one waits for the other.

    Args:
        is_update: take the newest revision; files that are the same are not fetched again.
        is_repair: read what is here, and fetch what was altered.
        hub: makes the connection; None takes HF_ENDPOINT and HF_TOKEN.

    Raises:
        UnknownModelError: there is no such checkpoint.
        OfflineError: it would have to be downloaded, and that is forbidden.
        ForeignModelError: it is in the way, and was not pulled.
        HubError and its kinds: the hub refused, was not reached, or its answer can't be used.
        ModelFileError: a file came with another hash than the hub states, twice; or one that a person put here is cut.
        StorageFullError, UnwritableOutputError: it can't be written; what came so far is kept.
    """
    config = config or load_config()
    checkpoint = named(name)
    is_wanted = is_update or is_repair
    if (here := _usable(name, config)) and not is_wanted:
        return here
    if config.is_offline:
        raise OfflineError(name)
    shelf = shelves(config)[0]
    with alone(shelf, name, waiting=lambda: progress(0, 1, "waiting for another pull")):
        if (here := _usable(name, config)) and not is_wanted:
            return here
        if (shelf / name).is_symlink() or (here and not standing(name, config).is_pulled):
            raise ForeignModelError(shelf / name if here is None else here)
        sweep(shelf, name)
        with (hub or _public_hub)() as open_hub:
            return _Pull(checkpoint, config, open_hub, progress).run(is_update=is_update)


def _usable(name: str, config: Config) -> Path | None:
    """Its folder, if it can be used. One that a person put here and that can't is theirs to mend."""
    found = standing(name, config)
    if found.problem is not None and not found.is_pulled:
        raise found.problem
    return found.path if found.state is State.WHOLE else None


def _public_hub() -> Hub:
    from afterwords.weights.hub import Hub

    return Hub()


class _Pull:
    """One pull, alone with its folders."""

    def __init__(self, checkpoint: Checkpoint, config: Config, hub: Hub, progress: Progress) -> None:
        self._checkpoint, self._hub, self._progress = checkpoint, hub, progress
        places = shelves(config)
        self._target = places[0] / checkpoint.name
        self._work = unfinished(places[0], checkpoint.name)
        olds = [ModelFolder(shelf / checkpoint.name) for shelf in places]
        self._old = next((old for old in olds if old.path.is_dir()), None)

    def run(self, *, is_update: bool) -> Path:
        plan = self._plan(is_update=is_update)
        if is_update and (newest := self._newest(plan)):
            return newest
        self._work.keep(plan)
        self._drop_strangers(plan)
        counted = Counter(plan.size_bytes, self._progress)
        for file in plan.files:
            self._take_over(file, counted)
        self._check_space(plan)
        counted.done_bytes = sum(file.size_bytes for file in plan.files if self._work.has(file))
        for file in plan.files:
            if not self._work.has(file) or file.sha256 is None:
                plan = plan.with_file(self._fetched(plan, file, counted))
        self._put_in_place()
        return self._target

    def _plan(self, *, is_update: bool) -> Lock:
        """What shall be there: what was begun, else what is here and damaged, else the newest."""
        if not is_update:
            for folder in filter(None, (self._work, self._old)):
                with suppress(ModelFileError):
                    if (lock := folder.lock()) is not None and lock.repository == self._checkpoint.repository:
                        return lock
        wants = (*self._checkpoint.needs, *self._checkpoint.takes)
        return self._hub.lock(self._checkpoint.repository, takes=wants, needs=self._checkpoint.needs)

    def _newest(self, plan: Lock) -> Path | None:
        """The folder that is here, if it is what the hub has now."""
        with suppress(ModelFileError):
            if self._old is not None and (lock := self._old.lock()) is not None and lock.revision == plan.revision:
                self._old.check(lock, hint="")
                return self._old.path
        return None

    def _drop_strangers(self, plan: Lock) -> None:
        """Remove what an earlier plan left; its parts could fill the disk."""
        known = {self._work.path / LOCK}
        known |= {place(file) for file in plan.files for place in (self._work.file, self._work.part)}
        with disk.storing(self._work.path):
            for path in list(self._work.path.rglob("*")):
                if not path.is_dir() and path not in known:
                    path.unlink()

    def _take_over(self, file: ModelFile, counted: Counter) -> None:
        """Use a file of the folder that is replaced, if it is the same; its hash says so."""
        if self._old is None or self._work.has(file) or not self._old.has(file):
            return
        source, target = self._old.file(file), self._work.file(file)
        if not self._old.digest(source, file, told=lambda n, _name: counted(n, f"checking {file.name}")).is_right:
            return
        disk.make_folder(target.parent)
        try:
            target.hardlink_to(source)
        except OSError:  # another disk, or one without links
            disk.write(target, disk.read_pieces(source))

    def _check_space(self, plan: Lock) -> None:
        """See that what is missing has room, before gigabytes are fetched for nothing."""
        needed_bytes = plan.size_bytes - self._work.present_bytes(plan)
        free_bytes = shutil.disk_usage(self._work.path).free
        if needed_bytes > free_bytes:
            raise StorageFullError(self._work.path.parent, needed_bytes=needed_bytes, free_bytes=free_bytes)

    def _fetched(self, plan: Lock, file: ModelFile, counted: Counter) -> ModelFile:
        """Bring a file to its place, and return it with its SHA-256. One that comes altered is fetched once more."""
        done_bytes = counted.done_bytes
        part = self._work.part(file)
        if self._work.has(file):  # its hash was not written down any more
            with disk.storing(part):
                self._work.file(file).replace(part)
            done_bytes -= file.size_bytes
        for _attempt in range(2):
            counted.done_bytes = done_bytes
            digest = self._downloaded(plan, file, counted)
            if digest.is_right:
                checked = replace(file, sha256=digest.sha256)
                self._work.keep(plan.with_file(checked))
                disk.move(part, self._work.file(file))
                return checked
            with disk.storing(part):
                part.unlink()
        from afterwords.weights.hub import CHANGED

        raise ModelFileError(file.name, why="came twice with another hash than the hub states", hint=CHANGED)

    def _downloaded(self, plan: Lock, file: ModelFile, counted: Counter) -> Digest:
        """Fetch what is missing of a file into its part, and return the hash of all of it."""
        part = self._work.part(file)
        disk.make_folder(part.parent)
        with disk.storing(part):
            if part.exists() and part.stat().st_size > file.size_bytes:
                part.unlink()
            part.touch(mode=0o600)
            digest = self._work.digest(part, file, told=counted)
            start = part.stat().st_size
            with part.open("ab") as grown:
                for piece in self._hub.pieces(plan, file, start=start):
                    grown.write(piece)
                    digest.add(piece)
                    counted(len(piece), file.name)
                grown.flush()
                os.fsync(grown.fileno())
        return digest

    def _put_in_place(self) -> None:
        """Put the whole folder where engines look, and what stood there away."""
        shelf, name = self._target.parent, self._target.name
        if self._target.is_dir():
            disk.move(self._target, shelf / f".trash-{name}-{uuid4()}")
        disk.move(self._work.path, self._target)
        sweep(shelf, name)
