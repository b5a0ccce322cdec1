"""The voices on this disk: saved, found by name, renamed, removed.

    library.json        the schema, and which voice is the default
    voices/<voice_id>/  one folder a voice, see voicefolder.py
    .lock               held by whoever changes something

Apart because a library outlives processes: many read and write it at once, and any may die half-way. A voice appears
and vanishes by one rename of its folder, so readers need no lock. What a crash leaves has a name that says what to do:
`.new-…` and `.trash-…` are removed, `.old-<a>-by-<b>` is the voice that b replaces, and comes back if b never came.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from afterwords import disk
from afterwords.errors import (
    AfterwordsError,
    CorruptVoiceError,
    InvalidOptionError,
    LibraryBusyError,
    NewerLibraryError,
    UnreadableFileError,
    VoiceExistsError,
    VoiceNotFoundError,
    VoiceRequiredError,
)
from afterwords.library import migrations
from afterwords.library.folder import Original, VoiceFolder
from afterwords.models import ID_PATTERN, NAME_MAX_CHARS, Voice, as_id, is_id, new_id
from afterwords.text import check_name

LOCK_TIMEOUT_S = 10.0
"""How long a change waits for another process; a change takes milliseconds, a long original a second or two."""

_LOOKS = 5
"""How often damage is looked at: what is gone at the second look was a folder that another process moved."""

_REPLACED = re.compile(rf"\.old-({ID_PATTERN})-by-({ID_PATTERN})")
_LEFTOVER = re.compile(r"\.(?:new|trash|old)-.+")

Voices = list[Voice]
Damage = list[CorruptVoiceError]


class _Record(NamedTuple):
    """What library.json says."""

    schema: int
    default: str | None
    is_damaged: bool = False


class _Folders(NamedTuple):
    """What the voices folder holds at one moment: folders by voice_id, and who replaced whom."""

    by_id: dict[str, VoiceFolder]
    replaced_by: dict[str, str]


class Library:
    """The voices in one home folder. Making a Library touches nothing; reading never makes the folder.

    Raises, from every method:
        NewerLibraryError: a later version of afterwords has written here.
        UnreadableFileError: the folder can't be read.
        LibraryBusyError, StorageFullError, UnwritableOutputError: only when something has to be written.
    """

    def __init__(self, home: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self.home = home
        self._lock_timeout_s = lock_timeout_s
        self._voices = home / "voices"

    # -- reading ---------------------------------------------------------------------------------------------

    def scan(self) -> tuple[Voices, Damage]:
        """Read every voice, sorted by name; and say what is damaged, which never hides the others."""
        self._open()
        voices, by_id = self._scan()
        damaged = [*by_id.values()]
        if self._record().is_damaged:
            damaged.append(CorruptVoiceError(self.home / "library.json", why="it does not state schema and default"))
        return voices, damaged

    def list(self) -> Voices:
        """Read every whole voice, sorted by name."""
        return self.scan()[0]

    def get(self, name_or_id: str) -> Voice:
        """Find a voice.

        Raises:
            VoiceNotFoundError: there is none; says which names are near.
            CorruptVoiceError: the voice with this identifier is damaged.
        """
        self._open()
        return self._get(name_or_id)

    def default(self) -> Voice | None:
        """The voice that speaks when none is named, if one was chosen."""
        self._open()
        tried = None
        while (chosen := self._record().default) not in (None, tried):  # another one, if it is replaced meanwhile
            tried = chosen
            with suppress(VoiceNotFoundError):
                return self._get(str(chosen))
        return None

    def choose(self, name: str | None) -> Voice:
        """Find the voice to speak with: the one named, else the default, else the only one.

        Raises:
            VoiceNotFoundError: none has that name.
            VoiceRequiredError: none was named, and it is not clear which to take.
        """
        if name is not None:
            return self.get(name)
        if voice := self.default():
            return voice
        voices = self.list()
        if len(voices) != 1:
            raise VoiceRequiredError(names=[voice.name for voice in voices])
        return voices[0]

    def reference(self, voice: Voice) -> bytes:
        """Read the prepared recording of a voice, a canonical WAV, and see that it is the one the voice states.

        Raises:
            VoiceNotFoundError: the voice was removed meanwhile.
            CorruptVoiceError: the recording is missing or was changed.
        """
        self._open()
        try:
            return self._folder(voice).reference(voice)
        except (CorruptVoiceError, VoiceNotFoundError):  # perhaps another process only moved it: look again
            return self._folder(voice).reference(voice)

    def original_path(self, voice: Voice) -> Path | None:
        """Where the untouched original of a voice is; None where it never was on this machine."""
        self._open()
        return self._folder(voice).original()

    def prompt(self, voice: Voice, key: str) -> bytes | None:
        """Read what an engine made of the reference; None where it has to be made, be it that a byte was changed."""
        with suppress(VoiceNotFoundError):
            self._open()
            return self._folder(voice).prompt(key)
        return None

    # -- changing --------------------------------------------------------------------------------------------

    def save(
        self,
        voice: Voice,
        *,
        reference_wav: bytes,
        original: Path | bytes | None = None,
        original_suffix: str = "",
        replace: bool = False,
    ) -> Voice:
        """Keep a new voice.

        Args:
            voice: its name must be free, unless it replaces the one that bears it.
            reference_wav: the canonical WAV that `voice.reference` states.
            original: the untouched recording, copied byte for byte; None where it stayed on another machine.
            original_suffix: how its name ends, for example ".m4a".
            replace: take the place of the voice of that name, and be the default if that was; it stays whole until
                this one is.

        Returns:
            The voice as it was stored.

        Raises:
            InvalidNameError: it can't be called so.
            VoiceExistsError: the name or the identifier is taken.
            CorruptVoiceError: the recording is not the one that the voice states.
            UnreadableFileError: the original can't be read, or is not the one that was sealed.
        """
        voice = voice.model_copy(update={"name": check_name(voice.name)})
        if not is_id(voice.voice_id):
            raise InvalidOptionError("voice_id", value=voice.voice_id[:40], allowed="a UUID in lower case")
        with self._changing():
            folders = self._folders().by_id
            taken = {other.voice_id for other in self._scan()[0] if other.name == voice.name}
            taken |= {voice.voice_id} & folders.keys()
            if len(taken) > 1 or (taken and not replace):
                raise VoiceExistsError(voice.name)
            fresh = VoiceFolder(self._voices / f".new-{new_id()}")
            source = None if original is None else Original(original, original_suffix)
            fresh.write(voice, reference_wav=reference_wav, original=source)
            for old in taken:
                disk.move(folders[old].path, self._voices / f".old-{old}-by-{voice.voice_id}")
            disk.move(fresh.path, self._voices / voice.voice_id)
        return Voice.model_validate_json(voice.model_dump_json())

    def rename(self, name: str, new: str) -> Voice:
        """Call a voice something else.

        Raises:
            VoiceNotFoundError: there is none of that name or identifier.
            InvalidNameError, VoiceExistsError: it can't have the new one.
        """
        new = check_name(new)
        with self._changing():
            voice = self._get(name)
            if any(other.name == new and other.voice_id != voice.voice_id for other in self._scan()[0]):
                raise VoiceExistsError(new)
            voice = voice.model_copy(update={"name": new})
            self._folders().by_id[voice.voice_id].describe(voice)
        return voice

    def remove(self, name: str) -> None:
        """Remove a voice with its recordings and prompts. A damaged one goes by its identifier, its folder's name.

        Raises:
            VoiceNotFoundError: there is none of that name or identifier.
        """
        with self._changing():
            folders = self._folders().by_id
            voice_id = as_id(name)
            disk.discard(folders[voice_id if voice_id in folders else self._get(name).voice_id].path)

    def set_default(self, name: str) -> Voice:
        """Choose the voice that speaks when none is named.

        Raises:
            VoiceNotFoundError: there is none of that name or identifier.
        """
        with self._changing():
            voice = self._get(name)
            self._write_record(voice.voice_id)
        return voice

    def save_prompt(self, voice: Voice, key: str, data: bytes) -> None:
        """Keep what an engine made of the reference, under a key that names the engine and its prompt's version.

        Raises:
            VoiceNotFoundError: the voice was removed meanwhile.
        """
        with self._changing():
            self._folder(voice).save_prompt(key, data)

    # -- finding, without a lock -----------------------------------------------------------------------------

    def _names(self) -> set[str]:
        """What lies in the voices folder: listed until two lists agree, since one misses what is renamed meanwhile."""
        before: set[str] | None = None
        try:
            for _ in range(_LOOKS):
                names = {path.name for path in self._voices.iterdir()}
                if names == before:
                    break
                before = names
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UnreadableFileError(self._voices, why=error.strerror or str(error)) from error
        return names

    def _folders(self) -> _Folders:
        names = self._names()
        by_id = {n: VoiceFolder(self._voices / n) for n in names if is_id(n)}
        replaced_by: dict[str, str] = {}
        for found in filter(None, map(_REPLACED.fullmatch, names)):
            old, new = found.groups()
            if new in by_id:
                replaced_by[old] = new
            else:  # between two renames, or after a crash there
                by_id[old] = VoiceFolder(self._voices / found.string)
        return _Folders(by_id, replaced_by)

    def _scan(self) -> tuple[Voices, dict[str, CorruptVoiceError]]:
        voices: Voices = []
        damaged: dict[str, CorruptVoiceError] = {}
        for _ in range(_LOOKS):
            before, voices, damaged = damaged, [], {}
            for voice_id, folder in self._folders().by_id.items():
                try:
                    voices.append(folder.read(voice_id))
                except CorruptVoiceError as error:
                    damaged[voice_id] = error
            if damaged.keys() == before.keys():
                break
        return sorted(voices, key=lambda voice: voice.name), damaged

    def _get(self, name_or_id: str) -> Voice:
        wanted = unicodedata.normalize("NFC", name_or_id).strip()
        voices, damaged = self._scan()
        wanted_id = as_id(wanted)
        for voice in (*(v for v in voices if v.voice_id == wanted_id), *(v for v in voices if v.name == wanted)):
            return voice
        if wanted_id in damaged:
            raise damaged[wanted_id]
        if wanted_id and (replacement := self._folders().replaced_by.get(wanted_id)):
            return self._get(replacement)
        names = {voice.name.casefold(): voice.name for voice in voices}
        near = get_close_matches(wanted.casefold()[:NAME_MAX_CHARS], names, n=3)
        raise VoiceNotFoundError(name_or_id[:NAME_MAX_CHARS], nearest=[names[key] for key in near])

    def _folder(self, voice: Voice) -> VoiceFolder:
        folder = self._folders().by_id.get(voice.voice_id)
        if folder is None:
            raise VoiceNotFoundError(voice.name)
        return folder

    # -- the record, the lock, and what a crash left ---------------------------------------------------------

    def _record(self) -> _Record:
        try:
            found = disk.read_json(self.home / "library.json")
            schema, default = found["schema"], found["default"]
        except FileNotFoundError:
            return _Record(migrations.unmarked_schema(self.home), None)
        except (ValueError, KeyError, TypeError):
            return _Record(migrations.SCHEMA, None, is_damaged=True)
        if type(schema) is not int or schema < 1 or not isinstance(default, str | None):
            return _Record(migrations.SCHEMA, None, is_damaged=True)
        if schema > migrations.SCHEMA:
            raise NewerLibraryError(self.home, found=schema, known=migrations.SCHEMA)
        return _Record(schema, default)

    def _write_record(self, default: str | None) -> None:
        record = {"schema": migrations.SCHEMA, "default": default}
        disk.write(self.home / "library.json", [json.dumps(record).encode(), b"\n"])

    def _open(self) -> None:
        """Bring an older library up to date, and finish what a crashed process left, unless a living one is at it."""
        if self._record().schema < migrations.SCHEMA:
            with self._changing():
                return
        if next(self._leftovers(), None) is not None:
            with suppress(AfterwordsError), self._changing(is_patient=False):
                return

    @contextmanager
    def _changing(self, *, is_patient: bool = True) -> Iterator[None]:
        """Hold the lock, and have everything in order before and after."""
        timeout_s = self._lock_timeout_s if is_patient else 0
        self._record()  # a newer library is refused before anything is written
        disk.make_folder(self.home)
        busy = LibraryBusyError(self.home, waited_s=timeout_s)
        with disk.locked(self.home / ".lock", timeout_s=timeout_s, busy=busy):
            schema = self._record().schema
            migrations.migrate(self.home, schema)
            disk.make_folder(self._voices)
            self._tidy()
            if schema < migrations.SCHEMA or not (self.home / "library.json").exists():
                self._write_record(None)
            try:
                yield
            finally:
                self._tidy()

    def _tidy(self) -> None:
        """Finish each replacement or undo it, see that the default is a voice, and remove what is left over."""
        folders = self._folders()
        for voice_id, folder in folders.by_id.items():
            if folder.path.name != voice_id:
                disk.move(folder.path, self._voices / voice_id)
        default = chosen = self._record().default
        if chosen is not None:
            chosen = folders.replaced_by.get(chosen, chosen)
            chosen = chosen if chosen in folders.by_id else None
        if chosen != default:
            self._write_record(chosen)
        for path in list(self._leftovers()):
            trash = path.with_name(f".trash-{new_id()}")
            with suppress(AfterwordsError):  # it is no voice any more; the next change tries again
                disk.move(path, trash)
                shutil.rmtree(trash, ignore_errors=True)

    def _leftovers(self) -> Iterator[Path]:
        for folder in (self.home, self._voices):
            with suppress(OSError):
                yield from (path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))
