"""The library: save, find, rename and remove the voices on this disk.

    library.json        the schema and the default voice
    voices/<voice_id>/  one folder per voice, see folder.py
    .lock               locked by every change

Several processes may read and write a library, and any may crash. A voice appears and disappears by one rename of its
folder, so readers need no lock. The names are what recovery after a crash goes by: `.new-…` and `.trash-…` are removed;
`.old-<a>-by-<b>` is voice a, replaced by b, and is restored if b doesn't exist.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from afterwords import disk
from afterwords.errors import (
    AfterwordsError,
    CorruptVoiceError,
    FileError,
    InvalidInputError,
    InvalidOptionError,
    LibraryError,
    VoiceExistsError,
    VoiceNotFoundError,
    pip_install,
)
from afterwords.library import migrations
from afterwords.library.folder import Original, VoiceFolder
from afterwords.models import (
    ID_PATTERN,
    LEXICON_MAX_BYTES,
    LEXICON_MAX_ENTRIES,
    NAME_MAX_CHARS,
    LexiconEntry,
    Voice,
    is_id,
    new_id,
    parse_id,
)
from afterwords.text import check_name

LOCK_TIMEOUT_S = 10.0
"""How long a change waits for another process. A change takes milliseconds, a long original a second or two."""

_SCANS_MAX = 10
"""How often a scan is repeated: damage that is gone in the second scan, or whose folder is gone, was a folder being
moved by another process."""

_REPLACED = re.compile(rf"\.old-({ID_PATTERN})-by-({ID_PATTERN})")
_LEFTOVER = re.compile(r"\.(?:new|trash|old)-.+")

Voices = list[Voice]
Damage = list[CorruptVoiceError]


class _Record(NamedTuple):
    """The contents of library.json."""

    schema: int
    default: str | None
    is_damaged: bool = False


class _Folders(NamedTuple):
    """The voice folders by ID, and the replacement of each replaced voice."""

    by_id: dict[str, VoiceFolder]
    replaced_by: dict[str, str]


class Library:
    """The voices in a home folder. Creating a Library and reading it never create the folder.

    Raises, from every method:
        LibraryError: A later version of afterwords wrote the library.
        FileError: The folder can't be read.
        LibraryError, StorageFullError, FileError: A write is needed and fails.
    """

    def __init__(self, home: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self.home = home
        self._lock_timeout_s = lock_timeout_s
        self._voices = home / "voices"

    # -- reading ---------------------------------------------------------------------------------------------

    def scan(self) -> tuple[Voices, Damage]:
        """Return all valid voices, sorted by name, and an error for each damaged one."""
        self._open()
        voices, by_id = self._scan()
        damaged = [*by_id.values()]
        if self._record().is_damaged:
            damaged.append(
                CorruptVoiceError.for_folder(self.home / "library.json", why="schema or default is missing or invalid")
            )
        return voices, damaged

    def list(self) -> Voices:
        """Return all valid voices, sorted by name."""
        return self.scan()[0]

    def get(self, name_or_id: str) -> Voice:
        """Return a voice by name or ID.

        Raises:
            VoiceNotFoundError: No such voice; the error suggests similar names.
            CorruptVoiceError: The voice with this ID is damaged.
        """
        self._open()
        return self._get(name_or_id)

    def default(self) -> Voice | None:
        """Return the default voice, if one is set."""
        self._open()
        for _ in range(_SCANS_MAX):  # it may be replaced in the meantime, even by an earlier one
            chosen = self._record().default
            if chosen is None:
                break
            with suppress(VoiceNotFoundError):
                return self._get(chosen)
        return None

    def choose(self, name: str | None) -> Voice:
        """Return the voice with a name, else the default, else the only one; its takes don't count.

        Raises:
            VoiceNotFoundError: No voice has the name.
            InvalidInputError: No name is given, and there is no default and not exactly one voice.
        """
        if name is not None:
            return self.get(name)
        if voice := self.default():
            return voice
        voices = self.list()
        voices = [voice for voice in voices if not voice.emotion] or voices
        if len(voices) != 1:
            message = (
                f"There are {len(voices)} voices, and no voice is chosen." if voices else "There are no voices yet."
            )
            hint = "create one: afterwords clone me.wav --name me (or try `afterwords demo`)."
            if voices:
                names = ", ".join(voice.name for voice in voices[:5])
                hint = f"add --voice NAME ({names}), or set a default with `afterwords voices default NAME`."
            raise InvalidInputError(message, code="voice_required", hint=hint)
        return voices[0]

    def reference(self, voice: Voice) -> bytes:
        """Read the prepared recording of a voice, a canonical WAV.

        Raises:
            VoiceNotFoundError: The voice was removed in the meantime.
            CorruptVoiceError: The recording is missing or changed.
        """
        self._open()
        try:
            return self._folder(voice).reference(voice)
        except (CorruptVoiceError, VoiceNotFoundError):  # another process may have moved the folder
            return self._folder(voice).reference(voice)

    def original_path(self, voice: Voice) -> Path | None:
        """Return the path of the original recording of a voice; None if it isn't on this machine."""
        self._open()
        return self._folder(voice).original()

    def prompt(self, voice: Voice, key: str) -> bytes | None:
        """Return a prompt of a voice; None if missing or corrupt."""
        with suppress(VoiceNotFoundError):
            self._open()
            return self._folder(voice).prompt(key)
        return None

    # -- writing ---------------------------------------------------------------------------------------------

    def save(
        self,
        voice: Voice,
        *,
        reference_wav: bytes,
        original: Path | bytes | None = None,
        original_suffix: str = "",
        replace: bool = False,
    ) -> Voice:
        """Save a new voice.

        Args:
            voice: The voice. Its name must be unused, unless `replace` is set.
            reference_wav: The canonical WAV that `voice.reference` describes.
            original: The original recording, copied unchanged; None if it isn't on this machine.
            original_suffix: Extension of the original, such as ".m4a".
            replace: Replace the voice with the same name, also as the default. It stays until the new one is complete.

        Returns:
            The voice as stored.

        Raises:
            InvalidInputError: The name is invalid.
            VoiceExistsError: The name or the ID is in use.
            CorruptVoiceError: The recording doesn't match the voice.
            FileError: The original can't be read, or changed since it was sealed.
        """
        voice = voice.model_copy(update={"name": check_name(voice.name)})
        if not is_id(voice.voice_id):
            raise InvalidOptionError.for_option("voice_id", value=voice.voice_id[:40], allowed="a UUID in lowercase")
        with self._locked():
            folders = self._folders().by_id
            taken = {other.voice_id for other in self._scan()[0] if other.name == voice.name}
            taken |= {voice.voice_id} & folders.keys()
            if len(taken) > 1 or (taken and not replace):
                raise VoiceExistsError.for_name(voice.name)
            fresh = VoiceFolder(self._voices / f".new-{new_id()}")
            source = None if original is None else Original(original, original_suffix)
            fresh.write(voice, reference_wav=reference_wav, original=source)
            for old in taken:
                disk.move(folders[old].path, self._voices / f".old-{old}-by-{voice.voice_id}")
            disk.move(fresh.path, self._voices / voice.voice_id)
        return Voice.model_validate_json(voice.model_dump_json())

    def rename(self, name: str, new: str) -> Voice:
        """Rename a voice.

        Raises:
            VoiceNotFoundError: No voice has this name or ID.
            InvalidInputError, VoiceExistsError: The new name is invalid or in use.
        """
        new = check_name(new)
        with self._locked():
            voice = self._get(name)
            if any(other.name == new and other.voice_id != voice.voice_id for other in self._scan()[0]):
                raise VoiceExistsError.for_name(new)
            voice = voice.model_copy(update={"name": new})
            self._folders().by_id[voice.voice_id].write_voice(voice)
        return voice

    def set_family(self, name: str, family: str) -> Voice:
        """Set the family of a voice.

        Raises:
            VoiceNotFoundError: No voice has this name or ID.
        """
        with self._locked():
            voice = self._get(name).model_copy(update={"family": family})
            self._folders().by_id[voice.voice_id].write_voice(voice)
        return voice

    def set_lexicon(self, name: str, lexicon: Sequence[LexiconEntry]) -> Voice:
        """Replace the lexicon of a voice, which is part of its metadata.

        Raises:
            VoiceNotFoundError: No voice has this name or ID.
            InvalidOptionError: The lexicon is too long.
        """
        entries = [entry.model_dump(exclude_none=True) for entry in lexicon]
        if len(entries) > LEXICON_MAX_ENTRIES or len(json.dumps(entries)) > LEXICON_MAX_BYTES:
            allowed = f"up to {LEXICON_MAX_ENTRIES:,} entries and {LEXICON_MAX_BYTES:,} bytes"
            raise InvalidOptionError.for_option("lexicon", value=f"{len(entries):,} entries", allowed=allowed)
        with self._locked():
            voice = self._get(name)
            voice = voice.model_copy(update={"metadata": voice.metadata | {"lexicon": entries}})
            self._folders().by_id[voice.voice_id].write_voice(voice)
        return voice

    def remove(self, name: str) -> None:
        """Remove a voice with its recordings and prompts; a damaged one by its ID, the name of its folder.

        Raises:
            VoiceNotFoundError: No voice has this name or ID.
        """
        with self._locked():
            folders = self._folders().by_id
            voice_id = parse_id(name)
            disk.remove_folder(folders[voice_id if voice_id in folders else self._get(name).voice_id].path)

    def set_default(self, name: str) -> Voice:
        """Set the default voice.

        Raises:
            VoiceNotFoundError: No voice has this name or ID.
        """
        with self._locked():
            voice = self._get(name)
            self._write_record(voice.voice_id)
        return voice

    def save_prompt(self, voice: Voice, key: str, data: bytes) -> None:
        """Save a prompt under a key that names the engine and its prompt version.

        Raises:
            VoiceNotFoundError: The voice was removed in the meantime.
        """
        with self._locked():
            self._folder(voice).save_prompt(key, data)

    # -- finding, without a lock -----------------------------------------------------------------------------

    def _folders(self) -> _Folders:
        names: set[str] = set()
        before: set[str] | None = None
        try:
            for _ in range(_SCANS_MAX):  # until two lists agree: one may miss a concurrent rename
                names = {path.name for path in self._voices.iterdir()}
                if names == before:
                    break
                before = names
        except FileNotFoundError:
            names = set()
        except OSError as error:
            raise FileError.unreadable(self._voices, why=error.strerror or str(error)) from error
        by_id = {n: VoiceFolder(self._voices / n) for n in names if is_id(n)}
        replaced_by: dict[str, str] = {}
        for found in filter(None, map(_REPLACED.fullmatch, names)):
            old, new = found.groups()
            if new in by_id:
                replaced_by[old] = new
            else:  # between the two renames of `save`, or after a crash there
                by_id[old] = VoiceFolder(self._voices / found.string)
        return _Folders(by_id, replaced_by)

    def _scan(self) -> tuple[Voices, dict[str, CorruptVoiceError]]:
        voices: Voices = []
        damaged: dict[str, CorruptVoiceError] = {}
        for _ in range(_SCANS_MAX):
            before, voices, damaged, has_moved = damaged, [], {}, False
            for voice_id, folder in self._folders().by_id.items():
                try:
                    voices.append(folder.read(voice_id))
                except CorruptVoiceError as error:
                    damaged[voice_id] = error
                    has_moved |= not folder.path.exists()
            if damaged.keys() == before.keys() and not has_moved:
                break
        return sorted(voices, key=lambda voice: voice.name), damaged

    def _get(self, name_or_id: str) -> Voice:
        wanted = unicodedata.normalize("NFC", name_or_id).strip()
        voices, damaged = self._scan()
        wanted_id = parse_id(wanted)
        for voice in (*(v for v in voices if v.voice_id == wanted_id), *(v for v in voices if v.name == wanted)):
            return voice
        if wanted_id in damaged:
            raise damaged[wanted_id]
        if wanted_id and (replacement := self._folders().replaced_by.get(wanted_id)):
            return self._get(replacement)
        names = {voice.name.casefold(): voice.name for voice in voices}
        near = get_close_matches(wanted.casefold()[:NAME_MAX_CHARS], names, n=3)
        raise VoiceNotFoundError.for_name(name_or_id[:NAME_MAX_CHARS], nearest=[names[key] for key in near])

    def _folder(self, voice: Voice) -> VoiceFolder:
        folder = self._folders().by_id.get(voice.voice_id)
        if folder is None:
            raise VoiceNotFoundError.for_name(voice.name)
        return folder

    # -- library.json, locking and recovery ------------------------------------------------------------------

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
            raise LibraryError(
                f"The library in {self.home} has schema {schema}, but this version supports up to {migrations.SCHEMA}.",
                code="newer_library",
                hint=f"install a newer afterwords: {pip_install(options='--upgrade')}",
            )
        return _Record(schema, default)

    def _write_record(self, default: str | None) -> None:
        record = {"schema": migrations.SCHEMA, "default": default}
        disk.write(self.home / "library.json", [json.dumps(record).encode(), b"\n"])

    def _open(self) -> None:
        """Migrate an old library, and recover from a crash unless another process holds the lock."""
        if self._record().schema < migrations.SCHEMA:
            with self._locked():
                return
        if next(self._leftovers(), None) is not None:
            with suppress(AfterwordsError), self._locked(waits=False):
                return

    @contextmanager
    def _locked(self, *, waits: bool = True) -> Iterator[None]:
        """Hold the lock for a change, and recover before and after it."""
        timeout_s = self._lock_timeout_s if waits else 0
        self._record()  # refuse a newer library before any write
        disk.make_folder(self.home)
        busy = LibraryError(
            f"Another process has locked the library in {self.home} for {timeout_s:g} s.", code="library_busy"
        )
        with disk.lock(self.home / ".lock", timeout_s=timeout_s, busy=busy):
            schema = self._record().schema
            migrations.migrate(self.home, schema)
            disk.make_folder(self._voices)
            self._recover()
            if schema < migrations.SCHEMA or not (self.home / "library.json").exists():
                self._write_record(None)
            try:
                yield
            finally:
                self._recover()

    def _recover(self) -> None:
        """Complete or undo replacements, correct the default, and remove leftovers."""
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
            with suppress(AfterwordsError):  # the next change tries again
                disk.move(path, trash)
                shutil.rmtree(trash, ignore_errors=True)

    def _leftovers(self) -> Iterator[Path]:
        for folder in (self.home, self._voices):
            with suppress(OSError):
                yield from (path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))
