"""A voice between this library and a server: push, pull, sync.

Two voices with the same recording are the same voice, so doing it again changes nothing, from any machine. What was
removed on one side is never brought back without being asked for, and nothing is overwritten unless it is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Protocol

from afterwords.client.sync import Client
from afterwords.config import load_config
from afterwords.errors import (
    AfterwordsError,
    IdempotencyConflictError,
    InvalidBundleError,
    NotLoggedInError,
    RequestTooLargeError,
    StrangeAnswerError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedByServerError,
    VoiceExistsError,
    VoiceNotFoundError,
)
from afterwords.library.bundle import BundledPrompt, pack, unpack_all
from afterwords.library.library import Library
from afterwords.library.links import Links
from afterwords.library.prompts import keep_prompts, prompts_of
from afterwords.models import Voice, new_id


class Outcome(StrEnum):
    """What became of a voice."""

    PUSHED = "pushed"
    UPDATED = "updated"
    PULLED = "pulled"
    SAME = "the same"
    DIFFERS = "differs"
    REMOVED_HERE = "removed here"
    REMOVED_THERE = "removed there"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trip:
    """What came of bringing a voice across.

    Attributes:
        name: what it is called.
        outcome: what became of it.
        voice: as it stands where it was brought; None if it was not.
        error: why it failed.
        notices: what its owner should know, a sentence each.
    """

    name: str
    outcome: Outcome
    voice: Voice | None = None
    error: AfterwordsError | None = None
    notices: tuple[str, ...] = ()


# -- one voice ------------------------------------------------------------------------------------------------


def push(voice: Voice | str, *, client: Client | None = None, replace: bool = False) -> Voice:
    """Bring a voice of this library to a server: its prepared recording, transcript, consent and seal.

    Args:
        voice: a voice of this library, its name or identifier.
        client: the server; None asks the one that `Client()` finds.
        replace: take the place of another voice of that name there, which is deleted with all its audio.

    Returns:
        The voice as the server has it. Pushing again changes nothing but what is said about it.

    Raises:
        VoiceNotFoundError: there is no such voice here.
        VoiceExistsError: the server has another voice of that name.
    """
    with _asking(client) as server:
        sent = send(voice, client=server, replace=replace).voice
    assert sent is not None, "a voice that was sent is there"
    return sent


def pull(voice: Voice | str, *, client: Client | None = None, replace: bool = False) -> Voice:
    """Bring a voice of a server into this library: recording, transcript, language, consent and seal.

    Args:
        voice: a voice of the server, its name there, or its identifier.
        client: the server; None asks the one that `Client()` finds.
        replace: take the place of another voice of that name here.

    Returns:
        The voice as this library has it. Pulling again changes nothing.

    Raises:
        VoiceNotFoundError: the server has no such voice.
        VoiceExistsError: this library has another voice of that name.
        UnsupportedByServerError: the hosted service gives no voices back.
    """
    with _asking(client) as server:
        brought = fetch(voice, client=server, replace=replace).voice
    assert brought is not None, "a voice that was fetched is here"
    return brought


def send(voice: Voice | str, *, client: Client, replace: bool = False) -> Trip:
    """As `push`, and tell what was done."""
    shelf, links = _home()
    here = shelf.get(voice.voice_id if isinstance(voice, Voice) else voice)
    wav = shelf.reference(here)
    with links.alone():
        there, others = _looked_for(here, client, links)
        if there is None:
            if others and not replace:
                raise VoiceExistsError(here.name, where="`afterwords push --replace`")
            there = _made(here, wav, prompts_of(shelf, here), client)
            links.link(client.base_url, here.voice_id, there.voice_id)
            for other in others:
                client.voices.delete(other)
            return Trip(here.name, Outcome.PUSHED, there)
        links.link(client.base_url, here.voice_id, there.voice_id)
        changes = _differences(here, there)
        if not changes:
            return Trip(here.name, Outcome.SAME, there)
        return Trip(here.name, Outcome.UPDATED, client.voices.update(there, **changes))


def fetch(voice: Voice | str, *, client: Client, replace: bool = False) -> Trip:
    """As `pull`, and tell what was done."""
    shelf, links = _home()
    there = client.voices.get(voice)
    with links.alone():
        known = links.here(client.base_url, there.voice_id)
        for here in shelf.list():
            if here.voice_id == known or (there.ref_sha256 and here.ref_sha256 == there.ref_sha256):
                links.link(client.base_url, here.voice_id, there.voice_id)
                return Trip(here.name, Outcome.SAME, here)
        bundle = unpack_all(client.voices.export(there))
        brought = bundle.voice
        if not replace and any(other.name == brought.name for other in shelf.list()):
            raise VoiceExistsError(brought.name, where="`afterwords pull --replace`")
        saved = shelf.save(brought, reference_wav=bundle.wav, replace=replace)
        links.link(client.base_url, saved.voice_id, there.voice_id)
        return Trip(saved.name, Outcome.PULLED, saved, notices=tuple(keep_prompts(shelf, saved, bundle)))


def counterpart(voice: Voice, *, client: Client) -> Voice | None:
    """The voice on a server that a voice of this library is; None where it was never brought there."""
    return _looked_for(voice, client, _home()[1])[0]


def _looked_for(here: Voice, client: Client, links: Links) -> tuple[Voice | None, list[Voice]]:
    """The voice on the server that this one is, by its link or its recording; and others there with its name."""
    for remote_id in links.there(client.base_url, here.voice_id):
        try:
            return client.voices.get(remote_id), []
        except VoiceNotFoundError:  # it was deleted there, or belongs to another account
            continue
    return namesakes(here, client)


def namesakes(voice: Voice, client: Client) -> tuple[Voice | None, list[Voice]]:
    """The voice of that name on the server with the same recording; without one, all others there of that name."""
    named = [client.voices.get(other) for other in client.voices.list() if other.name == voice.name]
    same = next((other for other in named if other.ref_sha256 and other.ref_sha256 == voice.ref_sha256), None)
    return same, [] if same else named


def _made(here: Voice, wav: bytes, prompts: list[BundledPrompt], client: Client) -> Voice:
    """Register it. The key says which recording under which name, so that two who push it at once make one voice."""
    key = sha256(f"{here.ref_sha256}\0{here.name}".encode()).hexdigest()
    for attempt in (f"push-{key}", f"push-{key[:32]}-{new_id()}"):
        try:
            there = client.voices.get(_uploaded(here, wav, prompts, client, attempt))
        except (IdempotencyConflictError, VoiceNotFoundError):
            continue  # it was pushed before, with other words or before it was deleted: this is another time
        if there.ref_sha256 not in (None, here.ref_sha256):
            client.voices.delete(there)
            raise StrangeAnswerError("the recording that it keeps is not the one that was sent")
        return there
    raise StrangeAnswerError("the voice that it made is not there")


def _uploaded(here: Voice, wav: bytes, prompts: list[BundledPrompt], client: Client, key: str) -> Voice:
    """Send it whole, without prompts to a server that takes none; to the hosted service, what that takes."""
    try:
        try:
            return client.voices.import_(pack(here, wav, prompts), idempotency_key=key)
        except (InvalidBundleError, RequestTooLargeError):  # an older server knows version 1 alone
            if not prompts:
                raise
        return client.voices.import_(pack(here, wav), idempotency_key=key)
    except UnsupportedByServerError:
        return client.voices.create(
            wav,
            name=here.name,
            text=here.ref_text,
            lang=here.lang,
            backend=here.backend if here.backend in client.health().backends else None,
            family=here.family,
            consent=here.consent.kind if here.consent else None,
            idempotency_key=key,
        )


def _differences(here: Voice, there: Voice) -> dict[str, Any]:
    """What is said here and not there; what is not said here stays as it is there."""
    said = {"name": here.name, "text": here.ref_text, "lang": here.lang, "family": here.family}
    known = {"name": there.name, "text": there.ref_text, "lang": there.lang, "family": there.family}
    return {field: value for field, value in said.items() if value is not None and value != known[field]}


# -- all of them ----------------------------------------------------------------------------------------------


def sync(*, client: Client | None = None, is_dry: bool = False) -> list[Trip]:
    """Bring every voice that is on one side only to the other.

    Nothing is removed or overwritten: a voice that was removed on one side stays removed there and is told, and so are
    two different voices of one name. What fails does not stop the rest.

    Args:
        client: the server; None asks the one that `Client()` finds.
        is_dry: only tell what would be done.
    """
    with _asking(client) as server:
        shelf, links = _home()
        there = {voice.voice_id: voice for voice in server.voices.list()}
        return [*_out(shelf.list(), there, server, links, is_dry), *_in(there, shelf, server, links, is_dry)]


def _out(here: list[Voice], there: dict[str, Voice], client: Client, links: Links, is_dry: bool) -> Iterator[Trip]:
    for voice in here:
        linked = links.there(client.base_url, voice.voice_id)
        if linked and not there.keys() & set(linked):
            yield Trip(voice.name, Outcome.REMOVED_THERE)
        else:
            yield _tried(_foreseen if is_dry else send, voice, client)


def _in(there: dict[str, Voice], shelf: Library, client: Client, links: Links, is_dry: bool) -> Iterator[Trip]:
    here = shelf.list()
    names, known = {voice.name for voice in here}, {voice.voice_id for voice in here}
    for voice in there.values():
        link = links.here(client.base_url, voice.voice_id)
        if link in known or voice.name in names:  # told on the way out
            continue
        if link is not None:
            yield Trip(voice.name, Outcome.REMOVED_HERE)
        elif is_dry:
            yield Trip(voice.name, Outcome.PULLED)
        else:
            yield _tried(fetch, voice, client)


def _foreseen(voice: Voice, *, client: Client) -> Trip:
    """What sending would do."""
    there, others = _looked_for(voice, client, _home()[1])
    if there is None:
        return Trip(voice.name, Outcome.DIFFERS if others else Outcome.PUSHED)
    return Trip(voice.name, Outcome.UPDATED if _differences(voice, there) else Outcome.SAME)


class _Bring(Protocol):
    def __call__(self, voice: Voice, /, *, client: Client) -> Trip: ...


def _tried(bring: _Bring, voice: Voice, client: Client) -> Trip:
    """Bring a voice; what fails is told, and the next one has its turn."""
    try:
        return bring(voice, client=client)
    except VoiceExistsError as error:
        return Trip(voice.name, Outcome.DIFFERS, error=error)
    except (UnreachableError, UnauthorizedError, NotLoggedInError):  # nothing else will go better
        raise
    except AfterwordsError as error:
        return Trip(voice.name, Outcome.FAILED, error=error)


# -- the two ends ---------------------------------------------------------------------------------------------


def _home() -> tuple[Library, Links]:
    home = load_config().home
    return Library(home), Links(home)


@contextmanager
def _asking(client: Client | None) -> Iterator[Client]:
    """The server to ask; one that was opened here is closed again."""
    if client is not None:
        yield client
        return
    with Client() as own:
        yield own
