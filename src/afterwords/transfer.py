"""Copy voices between the library and a server: push, pull and sync.

Two voices with the same recording are the same voice, so repeating a transfer changes nothing, from any machine. `sync`
does not restore a voice that was removed on one side, and nothing is overwritten without `replace`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Protocol

from afterwords.client import Client
from afterwords.config import load_config
from afterwords.errors import (
    AfterwordsError,
    ConflictError,
    InvalidBundleError,
    InvalidRequestError,
    InvalidResponseError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedByServerError,
    VoiceExistsError,
    VoiceNotFoundError,
)
from afterwords.library.bundle import BundledPrompt, pack, unpack
from afterwords.library.library import Library
from afterwords.library.links import Links
from afterwords.library.prompts import save_bundled_prompts, usable_prompts
from afterwords.library.takes import takes
from afterwords.models import Voice, new_id


class TransferStatus(StrEnum):
    """The result of transferring one voice."""

    PUSHED = "pushed"
    UPDATED = "updated"
    PULLED = "pulled"
    SAME = "the same"
    DIFFERS = "differs"
    REMOVED_HERE = "removed here"
    REMOVED_THERE = "removed there"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What a transfer did with one voice.

    Attributes:
        name: Name of the voice.
        outcome: What was done.
        voice: The voice as it is stored at the destination; None if it was not transferred.
        error: Why the transfer failed.
        notices: Sentences to show to the user.
    """

    name: str
    outcome: TransferStatus
    voice: Voice | None = None
    error: AfterwordsError | None = None
    notices: tuple[str, ...] = ()


# -- one voice ------------------------------------------------------------------------------------------------


def push(voice: Voice | str, *, client: Client | None = None, replace: bool = False) -> Voice:
    """Copy a voice from the library to a server, with its takes: recordings, transcripts, consent and seals.

    Args:
        voice: A voice of the library, its name or its id.
        client: The server; None uses the one that `Client()` finds.
        replace: Replace a different voice of that name on the server, which is deleted with all its audio.

    Returns:
        The voice as the server stores it. Pushing it again only updates its name, transcript, language, family,
        emotion and lexicon, and pushes new takes.

    Raises:
        VoiceNotFoundError: The library has no such voice.
        VoiceExistsError: The server has a different voice of that name.
    """
    with _connect(client) as server:
        pushed = send(voice, client=server, replace=replace).voice
        for take in takes_of(voice):
            send(take, client=server, replace=replace)
    assert pushed is not None, "send returns the voice"
    return pushed


def pull(voice: Voice | str, *, client: Client | None = None, replace: bool = False) -> Voice:
    """Copy a voice from a server into the library: recording, transcript, language, consent and seal.

    Args:
        voice: A voice of the server, its name there or its id.
        client: The server; None uses the one that `Client()` finds.
        replace: Replace a different voice of that name in the library.

    Returns:
        The voice as the library stores it. Pulling it again changes nothing.

    Raises:
        VoiceNotFoundError: The server has no such voice.
        VoiceExistsError: The library has a different voice of that name.
        UnsupportedByServerError: The hosted service does not export voices.
    """
    with _connect(client) as server:
        pulled = fetch(voice, client=server, replace=replace).voice
    assert pulled is not None, "fetch returns the voice"
    return pulled


def send(voice: Voice | str, *, client: Client, replace: bool = False) -> TransferResult:
    """Push a voice like `push`, and return what was done."""
    library, links = _open_library()
    local = library.get(voice.voice_id if isinstance(voice, Voice) else voice)
    wav = library.reference(local)
    with links.lock():
        remote, others = _match(local, client, links)
        if remote is None:
            if others and not replace:
                raise VoiceExistsError.for_name(local.name, where="`afterwords push --replace`")
            prompts = usable_prompts(library, local)
            # The key names the recording and the voice's name, so that two concurrent pushes create one voice.
            key = sha256(f"{local.ref_sha256}\0{local.name}".encode()).hexdigest()
            for attempt in (f"push-{key}", f"push-{key[:32]}-{new_id()}"):
                with suppress(VoiceNotFoundError):  # the first key was used for a voice that was deleted since
                    try:
                        remote = client.voices.get(_upload(local, wav, prompts, client, attempt))
                        break
                    except ConflictError as error:
                        if error.code != "idempotency_conflict":
                            raise  # otherwise the first key was used for a push with another transcript
            if remote is None:
                raise InvalidResponseError.for_reason("the voice that it created can't be found")
            if remote.ref_sha256 not in (None, local.ref_sha256):
                client.voices.delete(remote)
                raise InvalidResponseError.for_reason("the recording that it stored differs from the one that was sent")
            links.link(client.base_url, local.voice_id, remote.voice_id)
            for other in others:
                client.voices.delete(other)
            return TransferResult(local.name, TransferStatus.PUSHED, remote)
        links.link(client.base_url, local.voice_id, remote.voice_id)
        changes = _differences(local, remote)
        if not changes:
            return TransferResult(local.name, TransferStatus.SAME, remote)
        return TransferResult(local.name, TransferStatus.UPDATED, client.voices.update(remote, **changes))


def fetch(voice: Voice | str, *, client: Client, replace: bool = False) -> TransferResult:
    """Pull a voice like `pull`, and return what was done."""
    library, links = _open_library()
    remote = client.voices.get(voice)
    with links.lock():
        linked_id = links.voice_id(client.base_url, remote.voice_id)
        for local in library.list():
            if local.voice_id == linked_id or (remote.ref_sha256 and local.ref_sha256 == remote.ref_sha256):
                links.link(client.base_url, local.voice_id, remote.voice_id)
                return TransferResult(local.name, TransferStatus.SAME, local)
        bundle = unpack(client.voices.export(remote))
        name = bundle.voice.name
        if not replace and any(local.name == name for local in library.list()):
            raise VoiceExistsError.for_name(name, where="`afterwords pull --replace`")
        saved = library.save(bundle.voice, reference_wav=bundle.wav, replace=replace)
        links.link(client.base_url, saved.voice_id, remote.voice_id)
        notices = tuple(save_bundled_prompts(library, saved, bundle))
        return TransferResult(saved.name, TransferStatus.PULLED, saved, notices=notices)


def takes_of(voice: Voice | str) -> list[Voice]:
    """Return the takes of a voice of the library; a take has none."""
    library, _ = _open_library()
    speaker = library.get(voice.voice_id if isinstance(voice, Voice) else voice)
    return [] if speaker.emotion else [*takes(library.list(), speaker).values()]


def find_remote(voice: Voice, *, client: Client) -> Voice | None:
    """Return the copy of a library's voice on a server, or None if it was never pushed there."""
    return _match(voice, client, _open_library()[1])[0]


def find_by_name(voice: Voice, client: Client) -> tuple[Voice | None, list[Voice]]:
    """Return the server's voice with this name and recording; without one, all others with this name."""
    candidates = [client.voices.get(other) for other in client.voices.list() if other.name == voice.name]
    same = next((other for other in candidates if other.ref_sha256 and other.ref_sha256 == voice.ref_sha256), None)
    return same, [] if same else candidates


def _match(local: Voice, client: Client, links: Links) -> tuple[Voice | None, list[Voice]]:
    """Find the server's copy of a voice by its link or its recording, and different voices with its name."""
    for remote_id in links.remote_ids(client.base_url, local.voice_id):
        try:
            return client.voices.get(remote_id), []
        except VoiceNotFoundError:  # deleted there, or another account's
            continue
    return find_by_name(local, client)


def _upload(local: Voice, wav: bytes, prompts: list[BundledPrompt], client: Client, key: str) -> Voice:
    """Upload a voice as a bundle, or as a recording with fields to a server that has no bundle route."""
    try:
        try:
            return client.voices.import_(pack(local, wav, prompts), idempotency_key=key)
        except (InvalidBundleError, InvalidRequestError) as error:
            if not prompts or error.code not in ("invalid_bundle", "request_too_large"):
                raise  # otherwise it is an older server, which reads only version 1, without prompts
        return client.voices.import_(pack(local, wav), idempotency_key=key)
    except UnsupportedByServerError:
        return client.voices.create(
            wav,
            name=local.name,
            text=local.ref_text,
            lang=local.lang,
            backend=local.backend if local.backend in client.health().backends else None,
            family=local.family,
            consent=local.consent.kind if local.consent else None,
            idempotency_key=key,
        )


def _differences(local: Voice, remote: Voice) -> dict[str, Any]:
    """Return the fields to update on the server; fields that are unset locally are left as they are."""
    wanted = {"name": local.name, "text": local.ref_text, "lang": local.lang, "family": local.family}
    stored = {"name": remote.name, "text": remote.ref_text, "lang": remote.lang, "family": remote.family}
    changes: dict[str, Any] = {f: value for f, value in wanted.items() if value is not None and value != stored[f]}
    ours = {name: local.metadata[name] for name in ("emotion", "lexicon") if name in local.metadata}
    if not ours.items() <= remote.metadata.items():  # the rest may have been changed there
        changes["metadata"] = remote.metadata | ours
    return changes


# -- all of them ----------------------------------------------------------------------------------------------


def sync(*, client: Client | None = None, is_dry: bool = False) -> list[TransferResult]:
    """Copy every voice that only one side has to the other.

    Nothing is removed or overwritten: voices that were removed on one side, and different voices with the same name,
    are reported and left alone. A failure does not stop the rest.

    Args:
        client: The server; None uses the one that `Client()` finds.
        is_dry: Only report what would be done.
    """
    results = []
    with _connect(client) as server:
        library, links = _open_library()
        remote = {voice.voice_id: voice for voice in server.voices.list()}
        for voice in library.list():
            linked = links.remote_ids(server.base_url, voice.voice_id)
            if linked and not remote.keys() & set(linked):
                results.append(TransferResult(voice.name, TransferStatus.REMOVED_THERE))
            else:
                results.append(_try(_preview if is_dry else send, voice, server))
        local = library.list()
        names, ids = {voice.name for voice in local}, {voice.voice_id for voice in local}
        for voice in remote.values():
            linked_id = links.voice_id(server.base_url, voice.voice_id)
            if linked_id in ids or voice.name in names:  # reported above
                continue
            if linked_id is not None:
                results.append(TransferResult(voice.name, TransferStatus.REMOVED_HERE))
            elif is_dry:
                results.append(TransferResult(voice.name, TransferStatus.PULLED))
            else:
                results.append(_try(fetch, voice, server))
    return results


def _preview(voice: Voice, *, client: Client) -> TransferResult:
    """Return what `send` would do."""
    remote, others = _match(voice, client, _open_library()[1])
    if remote is None:
        return TransferResult(voice.name, TransferStatus.DIFFERS if others else TransferStatus.PUSHED)
    return TransferResult(voice.name, TransferStatus.UPDATED if _differences(voice, remote) else TransferStatus.SAME)


class _Transfer(Protocol):
    def __call__(self, voice: Voice, /, *, client: Client) -> TransferResult: ...


def _try(transfer: _Transfer, voice: Voice, client: Client) -> TransferResult:
    """Transfer one voice; return a failure as a result unless it would stop every other voice too."""
    try:
        return transfer(voice, client=client)
    except VoiceExistsError as error:
        return TransferResult(voice.name, TransferStatus.DIFFERS, error=error)
    except (UnreachableError, UnauthorizedError):
        raise
    except AfterwordsError as error:
        return TransferResult(voice.name, TransferStatus.FAILED, error=error)


def _open_library() -> tuple[Library, Links]:
    home = load_config().home
    return Library(home), Links(home)


@contextmanager
def _connect(client: Client | None) -> Iterator[Client]:
    """Yield the client, or a new one that is closed at the end."""
    if client is not None:
        yield client
        return
    with Client() as own:
        yield own
