"""The voices that the `voices` commands work on: `LocalVoices` is the library, `RemoteVoices` a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from afterwords.cli import output
from afterwords.cli.options import is_remote
from afterwords.cli.remote import command, connect, explain_interrupt

if TYPE_CHECKING:
    from afterwords.client import Client
    from afterwords.library.bundle import Bundle
    from afterwords.models import Voice

ASKING = "asking the server"


@dataclass(frozen=True, slots=True)
class VoiceList:
    """All voices of a store, as a table and as JSON.

    Attributes:
        hint: What to print if there are no voices.
    """

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    facts: list[dict[str, Any]]
    hint: str


@dataclass(frozen=True, slots=True)
class Removal:
    """A voice that is about to be removed.

    Attributes:
        key: Its name or id, for `VoiceStore.remove`.
        label: How to name it in a message, as Rich markup.
        warning: What is lost, as Rich markup.
    """

    key: str
    label: str
    warning: str


class VoiceStore(Protocol):
    """A place that stores voices."""

    def list(self) -> VoiceList:
        """Return all voices."""

    def show(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return everything known about a voice for JSON, and what to print of it."""

    def rename(self, name: str, new: str) -> Voice:
        """Rename a voice."""

    def find_for_removal(self, name: str) -> Removal:
        """Find a voice to remove."""

    def remove(self, key: str) -> None:
        """Remove a voice."""

    def export(self, name: str) -> tuple[Voice, bytes]:
        """Return a voice and its bundle."""

    def import_(self, voice: Voice, bundle: Bundle, *, replace: bool) -> Voice:
        """Store the voice of a bundle; ask at a terminal before a voice of that name is replaced.

        Raises:
            VoiceExistsError: The name is taken and there is no terminal to ask at.
        """


def _grade(voice: Voice) -> str:
    return (voice.reference and voice.reference.grade) or "-"


@contextmanager
def open_store(remote: bool, profile: str | None) -> Iterator[VoiceStore]:
    """Yield the server's voices if a server was asked for, and the library's otherwise."""
    if not is_remote(remote, profile):
        yield LocalVoices()
        return
    with connect(profile) as client:
        yield RemoteVoices(client, profile)


class LocalVoices:
    """The voices of the library."""

    def __init__(self) -> None:
        from afterwords.local import library

        self._library = library()

    def list(self) -> VoiceList:
        """Return all voices, and print which ones are damaged."""
        voices, damaged = self._library.scan()
        default = self._library.default()
        default_id = default.voice_id if default else None
        for error in damaged:
            output.note(f"[red]{output.shown(error.message)}[/red]\n  Fix: {output.shown(error.hint)}")
        rows = [
            (
                f"{voice.name}{' *' if voice.voice_id == default_id else ''}",
                voice.lang,
                voice.backend,
                _grade(voice),
                f"{voice.reference.duration_s:.1f} s" if voice.reference else "-",
                voice.consent.kind.value if voice.consent else "not stated",
                f"{voice.created_at:%Y-%m-%d}",
            )
            for voice in voices
        ]
        facts = [{**voice.model_dump(mode="json"), "is_default": voice.voice_id == default_id} for voice in voices]
        hint = "No voices yet. Make one: afterwords clone me.wav --name me (or try `afterwords demo`)."
        headers = ("name", "lang", "backend", "grade", "length", "consent", "made")
        return VoiceList(headers, rows, facts, "" if damaged else hint)

    def show(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return everything known about a voice for JSON, and a summary without the hashes."""
        from afterwords.library.takes import takes
        from afterwords.local import likeness
        from afterwords.provenance import verify_seal

        voice = self._library.get(name)
        self._library.reference(voice)  # raises if the recording was changed
        original = self._library.original_path(voice)
        is_sealed, similarity = verify_seal(voice), likeness(voice)
        palette = takes(self._library.list(), voice)
        reference, consent = voice.reference, voice.consent
        facts = {
            **voice.model_dump(mode="json"),
            "original": str(original) if original else None,
            "is_sealed": is_sealed,
            "likeness": similarity,
            "takes": {emotion: take.name for emotion, take in palette.items()},
        }
        summary: dict[str, Any] = {
            "name": voice.name,
            "language": voice.lang,
            "backend": voice.backend,
            "grade": reference.grade if reference else None,
            "recording": f"{reference.duration_s:.1f} s at {reference.sample_rate:,} Hz" if reference else None,
            "original": original,
            "transcript": voice.ref_text,
            "consent": f"{consent.kind.value}, stated {consent.stated_at:%Y-%m-%d}" if consent else "not stated",
            "seal": "intact" if is_sealed else "missing, or the voice was changed since",
            "made": f"{voice.created_at:%Y-%m-%d %H:%M} UTC",
            "family": voice.family,
            "takes": ", ".join(f"{emotion} ({_grade(take)})" for emotion, take in sorted(palette.items())) or None,
            "id": voice.voice_id,
        }
        if "similarity" in similarity:
            summary["likeness"] = f"{similarity['similarity']:.2f}"
            if "baseline" in similarity:
                summary["likeness"] += f" (nearest stock voice {similarity['baseline']:.2f})"
        return facts, summary

    def rename(self, name: str, new: str) -> Voice:
        return self._library.rename(name, new)

    def find_for_removal(self, name: str) -> Removal:
        """Find a voice to remove; a damaged one only by its id."""
        from afterwords.errors import CorruptVoiceError

        try:
            label = output.shown(self._library.get(name).name)
        except CorruptVoiceError:
            label = f"the damaged voice {output.shown(name)}"
        return Removal(name, label, f"This removes {label} with its recordings, for good.")

    def remove(self, key: str) -> None:
        self._library.remove(key)

    def export(self, name: str) -> tuple[Voice, bytes]:
        from afterwords.local import export_bundle

        return export_bundle(name)

    def import_(self, voice: Voice, bundle: Bundle, *, replace: bool) -> Voice:
        """Store the voice of a bundle, and print which prepared prompts could not be used."""
        from afterwords.local import import_bundle

        def may_replace(other: Voice) -> bool:
            return replace or _ask_to_replace(other, place="here")

        imported, notices = import_bundle(voice, bundle, may_replace=may_replace)
        for notice in notices:
            output.note(f"  {output.shown(notice)}")
        return imported


class RemoteVoices:
    """The voices of a server."""

    def __init__(self, client: Client, profile: str | None) -> None:
        self._client, self._profile = client, profile

    def list(self) -> VoiceList:
        """Return all voices, oldest first."""
        with output.waiting(ASKING):
            voices = list(self._client.voices.list())
        rows = [(v.name, v.lang, v.backend, v.status or "-", f"{v.created_at:%Y-%m-%d}", v.voice_id) for v in voices]
        facts = [voice.model_dump(mode="json", exclude_none=True) for voice in voices]
        push = output.shown(command("push", "NAME", profile=self._profile))
        hint = f"{output.shown(self._client.base_url)} has no voices yet. Copy one there: {push}"
        return VoiceList(("name", "lang", "backend", "status", "made", "id"), rows, facts, hint)

    def show(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with output.waiting(ASKING):
            facts = self._client.voices.get(name).model_dump(mode="json", exclude_none=True)
        return facts, facts

    def rename(self, name: str, new: str) -> Voice:
        from afterwords.text import check_name

        new = check_name(new)
        with output.waiting(ASKING):
            return self._client.voices.update(name, name=new)

    def find_for_removal(self, name: str) -> Removal:
        voice = self._client.voices.get(name)
        label = f"{output.shown(voice.name)} ({output.shown(voice.voice_id)})"
        warning = (
            f"This removes {label} from {output.shown(self._client.base_url)}, for good: "
            "its recording, its jobs and all speech made with it."
        )
        return Removal(voice.voice_id, label, warning)

    def remove(self, key: str) -> None:
        self._client.voices.delete(key)

    def export(self, name: str) -> tuple[Voice, bytes]:
        from afterwords.library.bundle import unpack

        with output.waiting("fetching the voice"):
            data = self._client.voices.export(name)
        return unpack(data).voice, data

    def import_(self, voice: Voice, bundle: Bundle, *, replace: bool) -> Voice:
        """Upload the voice of a bundle; voices that it replaces are deleted after it has arrived."""
        from afterwords.library.bundle import pack
        from afterwords.transfer import find_by_name

        with output.waiting(ASKING):
            same, others = find_by_name(voice, self._client)
        if same is not None:
            return same
        if others and not replace:
            _ask_to_replace(others[0], place=f"on {self._client.base_url}")
        voices = command("voices", "list", "--remote", profile=self._profile)
        with explain_interrupt("The server may have accepted the voice already. List its voices with:", voices):
            with output.waiting("sending the voice"):
                imported = self._client.voices.import_(pack(voice, bundle.wav, bundle.prompts))
            for other in others:
                self._client.voices.delete(other)
            return self._client.voices.get(imported)  # the response to an import leaves out some fields


def _ask_to_replace(voice: Voice, *, place: str) -> bool:
    """Ask at the terminal whether to replace a voice; return True, or raise.

    Raises:
        VoiceExistsError: There is no terminal to ask at.
        Exit: The user said no.
    """
    from afterwords.errors import VoiceExistsError

    if not output.is_terminal():
        raise VoiceExistsError.for_name(voice.name, where="`afterwords voices import --replace`")
    output.confirm_replacing(f"There is already a voice named {output.shown(voice.name)} {output.shown(place)}.")
    return True
