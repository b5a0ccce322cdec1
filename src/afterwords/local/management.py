"""The voices of this machine: list, rename, remove, export and import them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from afterwords.audio.output import write_atomically
from afterwords.config import Config, load_config
from afterwords.errors import VoiceExistsError
from afterwords.library.bundle import Bundle, pack, read_bundle, unpack
from afterwords.library.library import Library
from afterwords.library.prompts import save_bundled_prompts, usable_prompts
from afterwords.models import Voice
from afterwords.text import check_name


def library(config: Config | None = None) -> Library:
    """Return the library of voices on this machine."""
    return Library((config or load_config()).home)


def voices() -> list[Voice]:
    """Return all voices of the library, by name. Damaged ones are left out; `library().scan()` reports them."""
    return library().list()


def rename(voice: Voice | str, new: str) -> Voice:
    """Rename a voice of the library, and return it.

    Raises:
        VoiceNotFoundError: The library has no such voice.
        InvalidInputError, VoiceExistsError: The new name is invalid or taken.
    """
    return library().rename(_id_or_name(voice), new)


def remove(voice: Voice | str) -> None:
    """Remove a voice from the library with its recordings, transcript and everything made from them.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    library().remove(_id_or_name(voice))


def default_voice(voice: Voice | str | None = None) -> Voice | None:
    """Set the voice to use when none is named, or return it; None if no default is set.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    return library().default() if voice is None else library().set_default(_id_or_name(voice))


def _id_or_name(voice: Voice | str) -> str:
    return voice.voice_id if isinstance(voice, Voice) else voice


def export_voice(voice: Voice | str, path: Path | str) -> Path:
    """Export a voice to one file that `import_voice` reads on any machine, and return its path.

    The file is readable only by its owner: anyone who has it can clone the speaker.

    Raises:
        VoiceNotFoundError: The library has no such voice.
        FileError, StorageFullError: The file can't be written.
    """
    _, data = export_bundle(_id_or_name(voice))
    write_atomically(Path(path), data, is_private=True)
    return Path(path)


def import_voice(file: Path | str | bytes | BinaryIO, *, name: str | None = None, replace: bool = False) -> Voice:
    """Import a voice that `export_voice` wrote into the library, and return it.

    Args:
        file: The file, its bytes, or an open binary file.
        name: New name of the voice; None keeps its own.
        replace: Replace the voice of that name.

    Raises:
        InvalidBundleError: The file is not a voice, or was altered.
        VoiceExistsError: The name is taken and `replace` is not set.
    """
    bundle = unpack(file if isinstance(file, bytes) else read_bundle(Path(file) if isinstance(file, str) else file))
    voice = bundle.voice if name is None else bundle.voice.model_copy(update={"name": check_name(name)})
    return import_bundle(voice, bundle, may_replace=lambda _: replace)[0]


def export_bundle(name_or_id: str) -> tuple[Voice, bytes]:
    """Return a voice of the library and its bundle.

    Raises:
        VoiceNotFoundError: The library has no such voice.
    """
    voices = library()
    voice = voices.get(name_or_id)
    return voice, pack(voice, voices.reference(voice), usable_prompts(voices, voice))


def import_bundle(voice: Voice, bundle: Bundle, *, may_replace: Callable[[Voice], bool]) -> tuple[Voice, list[str]]:
    """Store a bundle's voice in the library; return it, and notices about prompts that can't be used here.

    Args:
        voice: The voice of the bundle, perhaps under another name.
        may_replace: Called with a voice that has the same name; returns whether to replace it.

    Raises:
        VoiceExistsError: The name is taken and may not be replaced.
    """
    voices = library()
    taken = [other for other in voices.list() if other.name == voice.name or other.voice_id == voice.voice_id]
    if voice in taken:
        return voice, []
    if len(taken) > 1:
        error = VoiceExistsError.for_name(voice.name)
        error.hint = "the voice in the file is here under another name; rename or remove one of the two first."
        raise error
    if taken and not may_replace(taken[0]):
        raise VoiceExistsError.for_name(voice.name, where="`replace`")
    # A bundle has no original recording. If it replaces an earlier copy of the same voice, the copy's original stays.
    same = [other for other in taken if (other.voice_id, other.provenance) == (voice.voice_id, voice.provenance)]
    original = voices.original_path(same[0]) if same else None
    suffix = original.suffix if original else ""
    saved = voices.save(voice, reference_wav=bundle.wav, original=original, original_suffix=suffix, replace=bool(taken))
    return saved, save_bundled_prompts(voices, saved, bundle)
